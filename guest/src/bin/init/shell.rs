// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The interactive guest: busybox on the console, with job control.
#![expect(unsafe_code, reason = "makes the console a controlling terminal between fork and exec")]

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Pid, setsid};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

const BUSYBOX: &str = "/bin/busybox";

/// Runs until the shell ends.
pub(crate) fn run() -> Result<()> {
    // Links for the applets; those that are there already stay.
    let _ = Command::new(BUSYBOX).args(["--install", "-s", "/bin"]).stderr(Stdio::null()).status();
    // /dev/console can't be a controlling terminal: the one behind it can.
    let active = std::fs::read_to_string("/sys/class/tty/console/active").context("the console's name")?;
    let name = active.split_whitespace().next_back().context("no console")?;
    let terminal = OpenOptions::new().read(true).write(true).open(format!("/dev/{name}"))?;
    println!("svmx: a shell on {name}; it powers off at its end. Try: workload counter");
    let mut command = Command::new(BUSYBOX);
    command.arg0("sh").env("PATH", "/bin").env("PS1", "svmx \\w # ").env("HOME", "/");
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    // SAFETY: setsid and ioctl are async-signal-safe, and nothing else happens here.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            Ok(())
        });
    }
    let child = command.spawn().context(BUSYBOX)?;
    crate::workload::reap_until(Pid::from_raw(child.id().cast_signed()))?;
    Ok(())
}
