// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's source: the newest supported package of the mirror, unpacked into the cache.

use crate::cache::{Cache, Key};
use crate::process;
use crate::progress::{Progress, Step};
use crate::toolchain::{Manifest, Sandbox, Toolchain};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Raised when the way the source is fetched changes.
const RECIPE: &str = "1";

/// A source tree in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) tree: PathBuf,
    /// The package and its version, for example `linux-source-7.3 7.3.4-1`.
    pub(crate) package: String,
}

impl Source {
    fn name(manifest: &Manifest) -> Result<String> {
        let key = Key::new()
            .part(RECIPE)
            .part(serde_json::to_vec(&manifest.debian)?)
            .part(serde_json::to_vec(&manifest.kernel)?);
        Ok(format!("kernel-source-{}", key.finish()))
    }

    fn at(entry: &Path) -> Result<Self> {
        let package = fs::read_to_string(entry.join("package"))?;
        Ok(Source { tree: entry.join("tree"), package: package.trim().to_owned() })
    }

    /// The source if it has been fetched.
    pub(crate) fn find(cache: &Cache, manifest: &Manifest) -> Result<Option<Self>> {
        cache.find(&Self::name(manifest)?).map(|entry| Self::at(&entry)).transpose()
    }

    /// The source, fetched first if need be.
    pub(crate) async fn ensure(
        cache: &Cache,
        manifest: &Manifest,
        toolchain: &Toolchain,
        progress: &Progress,
    ) -> Result<Self> {
        let name = Self::name(manifest)?;
        let log = cache.log(&name)?;
        let make = async |entry: &Path| {
            let step = progress.step("kernel source");
            File::create(&log)?;
            fetch(manifest, toolchain, entry, &log, &step).await?;
            step.done();
            progress.say(format!("kernel source: {}", Self::at(entry)?.package));
            Ok(())
        };
        Self::at(&cache.entry(&name, progress, make).await?)
    }
}

/// Downloads the package into `entry` and leaves `package` and `tree` there.
async fn fetch(
    manifest: &Manifest,
    toolchain: &Toolchain,
    entry: &Path,
    log: &Path,
    step: &Step,
) -> Result<()> {
    let inside = toolchain.sandbox().apt().writable(entry, Path::new("/svmx")).directory("/svmx");
    step.note("looking for the newest package");
    let mut list = inside.command("sh");
    list.args(["-ec", LIST, "sh", &manifest.kernel.prefix]);
    process::logged_within(process::LONG_STEP_LIMIT, &mut list, log, step, |_, _| ()).await?;
    let names = fs::read_to_string(entry.join("names"))?;
    let (oldest, newest) = (manifest.kernel.oldest, manifest.kernel.newest);
    let Some(package) = manifest.kernel.newest_of(names.lines()) else {
        bail!("the mirror has no {}X.Y between {oldest} and {newest}", manifest.kernel.prefix);
    };
    step.note(format!("downloading {package}"));
    let mut download = inside.command("sh");
    download.args(["-ec", DOWNLOAD, "sh", &package]);
    process::logged_within(process::LONG_STEP_LIMIT, &mut download, log, step, |_, _| ()).await?;
    unpack(&inside, entry, &package, log, step).await
}

// The package lists are in the sandbox's memory, so each of these makes its own. apt's user for downloads
// may not exist in it. Positional parameters, so that nothing needs quoting.
const LIST: &str = "apt-get -q -o APT::Sandbox::User=root update; apt-cache pkgnames \"$1\" > names";
const DOWNLOAD: &str = "apt-get -q -o APT::Sandbox::User=root update; \
    apt-get -q -o APT::Sandbox::User=root download \"$1\"; \
    mv \"$1\"_*.deb source.deb";

async fn unpack(inside: &Sandbox, entry: &Path, package: &str, log: &Path, step: &Step) -> Result<()> {
    step.note(format!("unpacking {package}"));
    let mut version = inside.command("dpkg-deb");
    version.args(["--field", "source.deb", "Version"]);
    let mut found = String::new();
    process::logged(&mut version, log, step, |_, line| found = line.to_owned()).await?;

    let mut deb = inside.command("dpkg-deb");
    process::logged(deb.args(["--extract", "source.deb", "deb"]), log, step, |_, _| ()).await?;
    let archive = archive(&entry.join("deb/usr/src"))?;
    fs::create_dir(entry.join("tree"))?;
    let mut tar = inside.command("tar");
    tar.args(["--extract", "--no-same-owner", "--strip-components=1", "--directory=tree", "--file"]);
    tar.arg(Path::new("deb/usr/src").join(archive));
    process::logged(&mut tar, log, step, |_, _| ()).await?;

    for leftover in ["names", "source.deb"] {
        fs::remove_file(entry.join(leftover))?;
    }
    fs::remove_dir_all(entry.join("deb"))?;
    fs::write(entry.join("package"), format!("{package} {found}\n"))?;
    Ok(())
}

/// The tarball among the package's files.
fn archive(dir: &Path) -> Result<String> {
    fs::read_dir(dir)?
        .filter_map(|file| file.ok()?.file_name().into_string().ok())
        .find(|name| name.contains(".tar"))
        .with_context(|| format!("there is no tarball in {}", dir.display()))
}
