// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The programs that cargo builds: the device for the host, static binaries for the guest.

use crate::cache::Cache;
use crate::checkout;
use crate::process;
use crate::progress::Progress;
use anyhow::{Context, Result};
use std::path::PathBuf;
use tokio::process::Command;

/// The guest has no libraries, so glibc is linked in; a target given by name keeps build scripts out of it.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `svmx-device`; returns its path.
pub(crate) async fn device(progress: &Progress) -> Result<PathBuf> {
    let target = checkout::target();
    let mut command = Command::new(checkout::cargo());
    command.args(["build", "--release", "--package", "svmx-device", "--bin", "svmx-device"]);
    // Said here, as a user's configuration of cargo may name another place.
    command.arg("--target-dir").arg(&target);
    build(&mut command, "device", progress).await?;
    Ok(target.join("release/svmx-device"))
}

/// Builds the guest's programs; returns the folder they are in.
pub(crate) async fn guest(progress: &Progress) -> Result<PathBuf> {
    let target = checkout::target().join("guest");
    let mut command = Command::new(checkout::cargo());
    command.args(["build", "--release", "--package", "svmx", "--bins", "--target", GUEST_TARGET]);
    // A folder of its own: other flags and parallel builds would invalidate and block each other.
    command.arg("--target-dir").arg(&target).env("RUSTFLAGS", "-C target-feature=+crt-static");
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    build(&mut command, "guest programs", progress).await?;
    Ok(target.join(GUEST_TARGET).join("release"))
}

async fn build(command: &mut Command, what: &str, progress: &Progress) -> Result<()> {
    let log = Cache::open()?.log(&format!("cargo-{}", what.replace(' ', "-")))?;
    std::fs::File::create(&log)?;
    let step = progress.quiet_step(what);
    command.current_dir(checkout::root()).env("CARGO_TERM_COLOR", "never");
    process::logged(command, &log, &step, |step, line| {
        if let Some(package) = line.trim_start().strip_prefix("Compiling ") {
            step.note(package);
        }
    })
    .await
    .with_context(|| format!("the {what} can't be built"))?;
    step.done();
    Ok(())
}
