// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask doctor`: what is here, what is missing, and what to type. Changes nothing.

use crate::cache::Cache;
use crate::checkout;
use crate::failure::Reported;
use crate::kernel::{self, Flavour, Kernel, Source};
use crate::process;
use crate::toolchain::{Manifest, Toolchain, mirror, prerequisites};
use crate::vm::probe;
use anyhow::Result;
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use std::collections::BTreeSet;
use std::path::Path;
use tokio::process::Command;

/// What toolchain root (2.1), kernel source (1.6), a kernel (2) and `target` (2) take, with room to work.
const DISK_GIB: u64 = 10;

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// `run` sees to it.
    Later,
    Missing,
}

struct Finding {
    what: String,
    state: State,
    detail: String,
}

fn finding(what: impl Into<String>, state: State, detail: impl Into<String>) -> Finding {
    Finding { what: what.into(), state, detail: detail.into() }
}

/// Prints the table; fails if `run` could not work.
pub(crate) async fn run() -> Result<()> {
    let cache = Cache::locate()?;
    let manifest = Manifest::load()?;
    let toolchain = Toolchain::find(&cache, &manifest, Flavour::Fast)?;
    let mut findings = vec![compiler().await, static_libc().await];
    findings.extend(root_tools(toolchain.is_some()).await);
    findings.push(finding(
        "mirror",
        State::Ok,
        mirror::discover().unwrap_or_else(|| "mmdebstrap's own".to_owned()),
    ));
    let cached = cached(&cache, &manifest, toolchain.is_some())?;
    findings.push(offered(toolchain.as_ref(), &manifest).await);
    findings.push(disk(cache.dir(), cached.iter().all(|finding| finding.state == State::Ok))?);
    findings.extend(cached);
    findings.push(match probe::probe().await {
        Ok(()) => finding("KVM", State::Ok, "works"),
        Err(reason) => finding("KVM", State::Ok, format!("not used, TCG instead: {reason}")),
    });
    for Finding { what, state, detail } in &findings {
        let state = match state {
            State::Ok => "ok",
            State::Later => "later",
            State::Missing => "MISSING",
        };
        println!("{what:<16} {state:<8} {detail}");
    }
    if findings.iter().any(|finding| finding.state == State::Missing) {
        return Err(Reported.into());
    }
    Ok(())
}

async fn compiler() -> Finding {
    let mut command = Command::new(checkout::cargo());
    match process::answer(command.arg("--version")).await {
        Ok(output) => finding("cargo", State::Ok, String::from_utf8_lossy(&output.stdout).trim()),
        Err(error) => finding("cargo", State::Missing, error.to_string()),
    }
}

/// The guest's programs are linked with glibc's static form.
async fn static_libc() -> Finding {
    const REMEDY: &str = "apt-get install gcc libc6-dev (or your distribution's: cc and a static glibc)";
    let mut command = Command::new("cc");
    match process::answer(command.arg("-print-file-name=libc.a")).await {
        Err(_) => finding("cc", State::Missing, REMEDY),
        Ok(output) => {
            let file = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if Path::new(&file).is_absolute() {
                finding("static glibc", State::Ok, file)
            } else {
                finding("static glibc", State::Missing, REMEDY)
            }
        }
    }
}

/// mmdebstrap is needed only until there is a root; bubblewrap always.
async fn root_tools(have_root: bool) -> Vec<Finding> {
    let installs_itself = Uid::effective().is_root() && prerequisites::on_path("apt-get").is_some();
    let missing = prerequisites::missing();
    let bwrap = prerequisites::on_path("bwrap").is_some();
    let mut findings: Vec<Finding> = missing
        .into_iter()
        .filter(|_| !have_root || !bwrap)
        .map(|missing| {
            let state = if installs_itself { State::Later } else { State::Missing };
            finding("host packages", state, format!("{}: {}", missing.what, missing.remedy))
        })
        .collect();
    if findings.is_empty() {
        findings.push(finding("host packages", State::Ok, "mmdebstrap, bubblewrap"));
    }
    if bwrap {
        findings.push(match prerequisites::sandbox_works().await {
            Ok(()) => finding("sandbox", State::Ok, "bwrap works"),
            Err(reason) => finding("sandbox", State::Missing, reason),
        });
    }
    findings
}

/// Which kernels the mirror has for `--kernel`. Not having them is no obstacle if one is there already.
async fn offered(toolchain: Option<&Toolchain>, manifest: &Manifest) -> Finding {
    const WHAT: &str = "kernels offered";
    let Some(toolchain) = toolchain else {
        return finding(WHAT, State::Later, "known when there is a toolchain root");
    };
    match kernel::offered(toolchain, &manifest.kernel).await {
        Ok(offered) => finding(WHAT, State::Ok, format!("{offered} (--kernel VERSION)")),
        Err(error) => finding(WHAT, State::Later, format!("the mirror can't be asked: {error}")),
    }
}

fn disk(cache: &Path, all_made: bool) -> Result<Finding> {
    // The cache may not be there yet.
    let there = cache.ancestors().find(|dir| dir.is_dir()).unwrap_or(cache);
    let status = statvfs(there)?;
    let free = (status.blocks_available() * status.fragment_size()) >> 30;
    let enough = all_made || free >= DISK_GIB;
    let state = if enough { State::Ok } else { State::Missing };
    Ok(finding("disk", state, format!("{free} GiB free in {} (needs {DISK_GIB} once)", cache.display())))
}

fn cached(cache: &Cache, manifest: &Manifest, have_root: bool) -> Result<Vec<Finding>> {
    let entry = |what: &str, found: Option<String>| match found {
        Some(detail) => finding(what, State::Ok, detail),
        None => finding(what, State::Later, "made by `setup` or the first `run`"),
    };
    let source = Source::find(cache, manifest, None)?.map(|source| source.package);
    let mut findings =
        vec![entry("toolchain root", have_root.then(|| "made".to_owned())), entry("kernel source", source)];
    // Others than this one are built when somebody asks for them.
    if Kernel::find(cache, manifest, None, Flavour::Fast)?.is_none() {
        findings.push(entry("kernel fast", None));
    }
    let mut releases = BTreeSet::new();
    for series in [None, Some(manifest.kernel.oldest), Some(manifest.kernel.newest)] {
        for flavour in [Flavour::Fast, Flavour::Debug, Flavour::Kasan] {
            if let Some(kernel) = Kernel::find(cache, manifest, series, flavour)? {
                releases.insert(kernel.release()?);
            }
        }
    }
    findings.extend(releases.into_iter().map(|release| finding("kernel", State::Ok, release)));
    Ok(findings)
}
