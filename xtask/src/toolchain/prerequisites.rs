// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the toolchain root needs of the machine: mmdebstrap and bubblewrap, and for an ordinary user
//! the right to user namespaces with several ids.

use crate::cache::Cache;
use crate::failure::bad_request;
use crate::process;
use crate::progress::Progress;
use anyhow::Result;
use nix::unistd::{Uid, User};
use std::path::PathBuf;
use tokio::process::Command;

/// Something that is missing, and what to type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) what: String,
    pub(crate) remedy: String,
}

/// Programs and the Debian packages they are in. A root that was made needs only the second.
const PROGRAMS: [(&str, &str); 2] = [("mmdebstrap", "mmdebstrap"), ("bwrap", "bubblewrap")];

/// The file that a program name on the PATH stands for.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Debian packages that aren't installed but needed.
fn packages() -> Vec<&'static str> {
    let mut missing = without(&PROGRAMS);
    if !Uid::effective().is_root() && on_path("newuidmap").is_none() {
        missing.push("uidmap");
    }
    missing
}

/// The packages of those programs that aren't there.
fn without(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    programs.iter().filter(|(program, _)| on_path(program).is_none()).map(|(_, package)| *package).collect()
}

/// Everything that keeps us from making a toolchain root.
pub(crate) fn missing() -> Vec<Missing> {
    let mut missing = Vec::new();
    missing.extend(not_installed(&packages()));
    if !Uid::effective().is_root() {
        missing.extend(missing_sub_ids());
    }
    missing
}

fn not_installed(packages: &[&str]) -> Option<Missing> {
    let missing = || Missing { what: packages.join(", "), remedy: install_command(packages) };
    (!packages.is_empty()).then(missing)
}

fn install_command(packages: &[&str]) -> String {
    let packages = packages.join(" ");
    let sudo = if Uid::effective().is_root() { "" } else { "sudo " };
    if on_path("apt-get").is_some() {
        format!("{sudo}apt-get install {packages}")
    } else if on_path("dnf").is_some() {
        format!("{sudo}dnf install {} debian-keyring", packages.replace("uidmap", "shadow-utils"))
    } else {
        format!("install the packages {packages} and Debian's archive keyring")
    }
}

/// mmdebstrap needs a range of ids for an ordinary user.
fn missing_sub_ids() -> Option<Missing> {
    let uid = Uid::effective();
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let has = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split(':').next())
            .any(|user| user == name || user == uid.to_string())
    };
    if has("/etc/subuid") && has("/etc/subgid") {
        return None;
    }
    Some(Missing {
        what: format!("ids for {name} in /etc/subuid and /etc/subgid"),
        remedy: format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"),
    })
}

/// Whether bubblewrap works here; the reason if it does not.
pub(crate) async fn sandbox_works() -> Result<(), String> {
    let mut command = Command::new("bwrap");
    command.args(["--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--", "true"]);
    match process::answer(&mut command).await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Sees to it that a root can be made: installs what is missing if we may, else says what to type.
pub(crate) async fn ensure(progress: &Progress) -> Result<()> {
    install(&packages(), progress).await?;
    refuse(&missing())?;
    sandbox_works().await.map_err(|reason| bad_request(format!("bwrap does not work here: {reason}")))
}

/// The same for a root that is there, which needs no more than the sandbox.
pub(crate) async fn ensure_sandbox(progress: &Progress) -> Result<()> {
    let programs = &PROGRAMS[1..];
    install(&without(programs), progress).await?;
    refuse(not_installed(&without(programs)).as_slice())
}

fn refuse(missing: &[Missing]) -> Result<()> {
    let lines: Vec<_> =
        missing.iter().map(|missing| format!("{} is missing: {}", missing.what, missing.remedy)).collect();
    if lines.is_empty() { Ok(()) } else { Err(bad_request(lines.join("; "))) }
}

/// Installs packages where that needs nobody's leave.
async fn install(packages: &[&str], progress: &Progress) -> Result<()> {
    if packages.is_empty() || !Uid::effective().is_root() || on_path("apt-get").is_none() {
        return Ok(());
    }
    let step = progress.step(format!("apt-get install {}", packages.join(" ")));
    let log = Cache::open()?.log("apt-get")?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    let mut arguments = vec!["install", "--no-install-recommends"];
    arguments.extend(packages);
    // A fresh image has no package lists; an old one may have stale ones.
    if process::logged(&mut apt(&arguments), &log, &step, |_, _| ()).await.is_err() {
        process::logged(&mut apt(&["update"]), &log, &step, |_, _| ()).await?;
        process::logged(&mut apt(&arguments), &log, &step, |_, _| ()).await?;
    }
    step.done();
    Ok(())
}
