// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end, and the watch over it.

use crate::verdict::{self, Ending};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{getpid, sync};
use std::time::Duration;

/// Powers off. If this is not PID 1 (somebody tries it by hand), exits.
pub(crate) fn off() -> ! {
    sync();
    if getpid().as_raw() != 1 {
        std::process::exit(1);
    }
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    println!("svmx-init: can't power off: {errno}");
    // PID 1 must not end: the kernel would panic.
    loop {
        std::thread::park();
    }
}

/// Fails and powers off after `limit`: a workload that is stuck in the kernel can't be killed. The
/// kernel is asked to log what every blocked task waits for.
pub(crate) fn watch(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let _ = std::fs::write("/proc/sysrq-trigger", "w");
        verdict::say(Ending::fail(format!("init: not over after {} s", limit.as_secs())));
        off();
    });
}
