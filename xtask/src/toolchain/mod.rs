// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The toolchain root: made once by mmdebstrap, owned by the user, run by [`Sandbox`].

mod manifest;
pub(crate) mod mirror;
pub(crate) mod prerequisites;
mod sandbox;

pub(crate) use manifest::{Debian, KernelSource, Manifest, Version};
pub(crate) use sandbox::Sandbox;

use crate::cache::{Cache, Key};
use crate::kernel::Flavour;
use crate::process::{self, Running};
use crate::progress::{Progress, Step};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;

/// Raised when the way a root is made changes.
const RECIPE: &str = "1";
/// How long mmdebstrap may take to remove its working root, which nobody else could for an ordinary user.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// A complete toolchain root.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// Names its content.
    pub(crate) key: String,
    pub(crate) root: PathBuf,
}

impl Toolchain {
    /// The packages of a flavour's root.
    fn packages(manifest: &Manifest, flavour: Flavour) -> Vec<String> {
        let mut packages = manifest.packages.base.clone();
        if flavour == Flavour::Kasan {
            packages.extend(manifest.packages.kasan.iter().cloned());
        }
        packages
    }

    fn key(manifest: &Manifest, packages: &[String]) -> Result<String> {
        Ok(Key::new()
            .part(RECIPE)
            .part(serde_json::to_vec(&manifest.debian)?)
            .part(packages.join(" "))
            .finish())
    }

    /// The root for `flavour` if it has been made.
    pub(crate) fn find(cache: &Cache, manifest: &Manifest, flavour: Flavour) -> Result<Option<Self>> {
        let key = Self::key(manifest, &Self::packages(manifest, flavour))?;
        Ok(cache.find(&format!("toolchain-{key}")).map(|root| Toolchain { key, root }))
    }

    /// The root for `flavour`, made first if need be.
    pub(crate) async fn ensure(
        cache: &Cache,
        manifest: &Manifest,
        flavour: Flavour,
        progress: &Progress,
    ) -> Result<Self> {
        let packages = Self::packages(manifest, flavour);
        let key = Self::key(manifest, &packages)?;
        let name = format!("toolchain-{key}");
        let log = cache.log(&name)?;
        let make = async |root: &Path| {
            prerequisites::ensure(progress).await?;
            let step = progress.step("toolchain root");
            File::create(&log)?;
            let made = bootstrap(&manifest.debian, &packages, root, &log, &step);
            match tokio::time::timeout(process::LONG_STEP_LIMIT, made).await {
                Ok(made) => made?,
                Err(_) => bail!(
                    "mmdebstrap: not done after {} s\n{}",
                    process::LONG_STEP_LIMIT.as_secs(),
                    process::tail(&log, 20)
                ),
            }
            prepare(root)?;
            step.done();
            Ok(())
        };
        let root = cache.entry(&name, progress, make).await?;
        // A root that was made long ago says nothing about what is installed now.
        prerequisites::ensure_sandbox(progress).await?;
        Ok(Toolchain { key, root })
    }

    /// Runs programs of this root.
    pub(crate) fn sandbox(&self) -> Sandbox {
        Sandbox::new(&self.root)
    }
}

/// Fills `root`: mmdebstrap writes a tar stream, which tar unpacks as files of our own user. So root's
/// and an ordinary user's toolchains are alike, and can be deleted like anything else.
async fn bootstrap(debian: &Debian, packages: &[String], root: &Path, log: &Path, step: &Step) -> Result<()> {
    let mut mmdebstrap = mmdebstrap(debian, packages).await;
    let errors = File::options().append(true).open(log)?;
    let (messages, writer) = std::io::pipe()?;
    // Dropped after `making`: it could not clean up if what it says about that killed it.
    let _listener = messages.try_clone()?;
    mmdebstrap.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(writer);
    let mut making = Running::start(&mut mmdebstrap)?.with_grace(CLEAN_UP);
    // The command keeps its end of the pipe until it is given another.
    mmdebstrap.stderr(Stdio::null());
    let archive: Stdio = making.child().stdout.take().context("mmdebstrap has no stdout")?.try_into()?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--no-same-permissions", "--exclude=./dev/*", "--directory"])
        .arg(root);
    let mut unpacking = Running::start(tar.stdin(archive).stdout(Stdio::null()).stderr(errors.try_clone()?))?;

    let mut errors = errors;
    process::copy_lines(Receiver::from_owned_fd(messages.into())?, &mut errors, |line| {
        if let Some(message) = line.strip_prefix("I: ") {
            step.note(message);
        }
    })
    .await?;
    let (made, unpacked) = (making.wait().await?, unpacking.wait().await?);
    if !made.success()
        && let Some(hint) = explain(&fs::read_to_string(log).unwrap_or_default())
    {
        bail!("mmdebstrap: {hint}\n{}", process::tail(log, 5));
    }
    process::expect_success(&mmdebstrap, made, log)?;
    process::expect_success(&tar, unpacked, log)
}

async fn mmdebstrap(debian: &Debian, packages: &[String]) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=apt", "--format=tar"]);
    command.arg(format!("--include={}", packages.join(",")));
    command.arg(format!("--aptopt=APT::Default-Release \"{}\"", debian.prefer));
    for setting in proxies().await {
        command.arg(format!("--aptopt={setting}"));
    }
    for path in &debian.exclude_paths {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    if std::env::var_os("TMPDIR").is_none() {
        // Two gigabytes: too much for a /tmp in memory, and other users (of a user namespace) must reach it.
        command.env("TMPDIR", "/var/tmp");
    }
    let components = debian.components.join(" ");
    match mirror::discover() {
        Some(mirror) => {
            command.args([&debian.release, "-"]);
            for suite in &debian.suites {
                command.arg(format!("deb {mirror} {suite} {components}"));
            }
        }
        None => {
            // mmdebstrap puts Debian's own mirror into sources.list, but for the release only.
            for suite in debian.suites.iter().filter(|suite| **suite != debian.release) {
                command.arg(format!(
                    "--setup-hook=sed -n 's/ {} / {suite} /p' \"$1/etc/apt/sources.list\" \
                     > \"$1/etc/apt/sources.list.d/{suite}.list\"",
                    debian.release
                ));
            }
            command.args([&debian.release, "-"]);
        }
    }
    command
}

/// The machine's proxies, in apt's words. mmdebstrap itself doesn't look at the machine's apt settings.
async fn proxies() -> Vec<String> {
    let dump = process::answer(Command::new("apt-config").arg("dump")).await;
    let text = dump.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let is_proxy = |line: &&str| {
        ["Acquire::http::Proxy", "Acquire::https::Proxy"].iter().any(|name| line.starts_with(name))
    };
    text.lines().filter(is_proxy).map(str::to_owned).collect()
}

/// What the machine's owner should know about an error of apt's.
fn explain(log: &str) -> Option<String> {
    let has = |needle: &str| log.contains(needle);
    if has("Release file") && has("expired") {
        return Some("the package mirror's Release file has expired: the mirror is stale, or this machine's clock wrong".into());
    }
    if has("Could not resolve") || has("Unable to connect") || has("Could not connect") {
        return Some(format!(
            "the package mirror can't be reached (set {} to use another one)",
            mirror::VARIABLE
        ));
    }
    if has("NO_PUBKEY") || has("not signed") {
        return Some("the mirror's signature can't be checked; install debian-archive-keyring".into());
    }
    None
}

/// Adds what [`Sandbox`] mounts over, so that it is there when the root is read-only.
fn prepare(root: &Path) -> Result<()> {
    for name in ["resolv.conf", "hosts"] {
        let file = root.join("etc").join(name);
        if !file.is_file() {
            let _ = fs::remove_file(&file);
            File::create(&file)?;
        }
    }
    for tool in ["usr/bin/rustc", "usr/bin/bindgen", "usr/bin/make", "usr/bin/qemu-system-x86_64"] {
        if !root.join(tool).exists() {
            bail!("the toolchain root has no {tool}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_suite_is_explained() {
        let log =
            "E: Release file for http://m.example/debian/dists/x/InRelease is expired (invalid since 3d)";
        assert!(explain(log).unwrap().contains("stale"));
        assert_eq!(explain("E: something else"), None);
    }

    #[test]
    fn a_flavour_with_other_packages_has_another_root() {
        let manifest = Manifest::load().unwrap();
        let key = |flavour| Toolchain::key(&manifest, &Toolchain::packages(&manifest, flavour)).unwrap();
        assert_eq!(key(Flavour::Fast), key(Flavour::Debug));
        assert_ne!(key(Flavour::Fast), key(Flavour::Kasan));
    }
}
