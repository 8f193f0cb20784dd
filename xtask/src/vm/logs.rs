// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guest's kernel and the devices logged: which lines mean that something went wrong.

use crate::scenario::Meddling;
use std::fs;
use std::path::Path;

/// The logs of a run.
pub(super) struct Logs<'a> {
    pub(super) dir: &'a Path,
    pub(super) devices: usize,
    /// Whether devices are meant to die.
    pub(super) deaths: bool,
    /// Whether somebody stores to pages that devices hold.
    pub(super) meddling: Meddling,
    /// Whether they look for that.
    pub(super) watched: bool,
}

impl Logs<'_> {
    /// What is wrong according to them.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        // The kernel always says something: silence is a log that was lost.
        match self.read("console.log") {
            Err(problem) => problems.push(problem),
            Ok(log) if log.trim().is_empty() => problems.push("the kernel log is empty".to_owned()),
            Ok(log) => problems.extend(unclean("the kernel log", &complaints(&log, self.deaths))),
        }
        for index in 0..self.devices {
            match self.read(&format!("device-{index}.log")) {
                Err(problem) => problems.push(problem),
                Ok(log) => problems.extend(self.device_problems(index, &log)),
            }
        }
        problems
    }

    fn device_problems(&self, index: usize, log: &str) -> Vec<String> {
        let allowed = self.meddling != Meddling::Never;
        let found = unclean(&format!("the log of device {index}"), &device_complaints(log, allowed));
        let missed = self.meddling == Meddling::Always && self.watched && !log.contains(MEDDLED);
        let missed = missed.then(|| format!("device {index} did not see that others store to its pages"));
        found.into_iter().chain(missed).collect()
    }

    fn read(&self, name: &str) -> Result<String, String> {
        let bytes =
            fs::read(self.dir.join(name)).map_err(|error| format!("{name} can't be read: {error}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn unclean(what: &str, lines: &[&str]) -> Option<String> {
    let first = lines.first()?;
    Some(format!("{what} is not clean ({} such lines): {first}", lines.len()))
}

/// What the kernel, or our driver, says when something is wrong.
const BAD: [&str; 34] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Kernel panic",
    "kernel BUG at",
    "KASAN:",
    "UBSAN:",
    "KFENCE:",
    "KCSAN:",
    "DMA-API:",
    "ODEBUG:",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
    "possible circular locking",
    "possible recursive locking",
    "possible irq lock inversion",
    "inconsistent lock state",
    "suspicious RCU usage",
    "bad unlock balance",
    "held lock freed",
    "sleeping function called",
    "Bad page state",
    "Bad page map",
    "Bad rss-counter",
    "blocked for more than",
    "soft lockup",
    "detected stall",
    "self-detected stall",
    "general protection fault",
    "Out of memory",
    "new suspected memory leaks",
    "panicked at",
    "Call Trace:",
];

/// What a device may warn about: every user process can break its own queue, as often as it likes.
const USERS_OWN: [&str; 2] = ["bad doorbell; ignored from now on", "more lines like these were dropped"];

/// How a device's exclusivity checker begins when it has found something.
const MEDDLED: &str = "ERROR svmx_device::check: exclusivity:";

/// The lines of a kernel's log that mean that something went wrong.
fn complaints(log: &str, deaths: bool) -> Vec<&str> {
    log.lines().map(str::trim_end).filter(|line| is_bad(line, deaths)).collect()
}

fn is_bad(line: &str, deaths: bool) -> bool {
    // The API's own announcements: at boot, and when it gives up for want of memory, which is denied it on purpose.
    let announcement = ["preallocated", "debugging enabled", "cacheline tracking ENOMEM"]
        .iter()
        .any(|said| line.contains(&format!("DMA-API: {said}")));
    let ours = |said: &str| line.contains("svmx") && line.contains(said);
    let bad = BAD.iter().any(|bad| line.contains(bad));
    (bad || ours("leaked") || (!deaths && ours("declared dead"))) && !announcement
}

/// The lines of a device's log that mean that the driver, the VMM or the device did something wrong, or that its checker
/// did not see everything.
fn device_complaints(log: &str, meddling: bool) -> Vec<&str> {
    let is_bad = |line: &&str| {
        let level = line.split_whitespace().nth(1);
        let expected = meddling && line.contains(MEDDLED);
        !expected
            && (matches!(level, Some("WARN" | "ERROR")) || line.contains("panicked at"))
            && !USERS_OWN.iter().any(|own| line.contains(own))
    };
    log.lines().map(str::trim_end).filter(is_bad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normal_boot_is_clean() {
        let log = "[    0.000000] Linux version 7.3.4-svmx-fast (svmx@svmx)\r\n\
                   [    0.1] rcu: \tRCU debug extended QS entry/exit.\n\
                   [    0.2] kmemleak: Kernel memory leak detector initialized (mem pool available: 15700)\n\
                   [    0.3] DMA-API: preallocated 65536 debug entries\n\
                   [    0.4] DMA-API: debugging enabled by kernel config\n\
                   [    9.9] DMA-API: cacheline tracking ENOMEM, dma-debug disabled\n\
                   [    0.5] svmx: loading out-of-tree module taints kernel.\n\
                   [    1.0] svmx 0000:01:00.0: ready\n";
        assert!(complaints(log, false).is_empty(), "{:?}", complaints(log, false));
    }

    #[test]
    fn trouble_is_seen() {
        for line in [
            "[ 1.0] WARNING: CPU: 0 PID: 1 at mm/memory.c:100 f+0x1/0x2",
            "[ 1.0] WARNING: possible circular locking dependency detected",
            "[ 1.0] BUG: kernel NULL pointer dereference, address: 0",
            "[ 1.0] Oops: 0000 [#1] SMP",
            "[ 1.0] BUG: KASAN: slab-use-after-free in f",
            "[ 1.0] INFO: task workload:42 blocked for more than 30 seconds.",
            "[ 1.0] rcu: INFO: rcu_sched self-detected stall on CPU",
            "[ 1.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "[ 1.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
            "[ 1.0] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "[ 1.0] rust_kernel: panicked at driver.rs:1",
            "[ 1.0] svmx 0000:01:00.0: 2 contexts leaked",
            "[ 1.0] DMA-API: svmx 0000:01:00.0: device driver has pending DMA allocations",
        ] {
            assert_eq!(complaints(line, true).len(), 1, "{line}");
        }
    }

    #[test]
    fn a_device_dies_only_where_it_is_meant_to() {
        let line = "[ 1.2] svmx 0000:02:00.0: declared dead: it is gone";
        assert_eq!(complaints(line, false), [line]);
        assert!(complaints(line, true).is_empty());
    }

    #[test]
    fn a_device_complains_of_drivers_not_of_users() {
        let log = "2026-01-02T03:04:05.6Z  INFO svmx_device: listening on /x/WARN/device-0.sock\n\
                   2026-01-02T03:04:05.6Z  WARN svmx_device::engine: queue 511: bad doorbell; ignored from now on\n\
                   2026-01-02T03:04:05.6Z  WARN svmx_device::engine: 3 more lines like these were dropped\n";
        assert!(device_complaints(log, false).is_empty());
        for line in [
            "2026-01-02T03:04:05.6Z  WARN svmx_device::control: the driver broke a rule: BadRing; stopped until reset",
            "2026-01-02T03:04:05.6Z  WARN svmx_device::control: control entry 0x3 refused: Some(\"BAD_ID\")",
            "2026-01-02T03:04:05.6Z ERROR svmx_device::device: a thread of the device panicked",
            "2026-01-02T03:04:05.6Z  WARN svmx_device::check: exclusivity: 3 times a page was held unwatched: there was no room",
            "thread 'engine' panicked at device/src/engine.rs:1:1:",
        ] {
            assert_eq!(device_complaints(line, true), [line]);
        }
    }

    #[test]
    fn meddling_is_seen_exactly_where_it_happens() {
        let log = "2026-01-02T03:04:05.6Z ERROR svmx_device::check: exclusivity: ASID 1, address 0x7000: expected 0x1\n    \
                   0.000000001 s  engine 0: stored 0x1 at offset 0x0\n";
        let problems = |log, watched| {
            [Meddling::Never, Meddling::Perhaps, Meddling::Always].map(|meddling| {
                let logs = Logs { dir: Path::new("/"), devices: 1, deaths: false, meddling, watched };
                logs.device_problems(0, log).len()
            })
        };
        assert_eq!(problems(log, true), [1, 0, 0]);
        assert_eq!(problems("", true), [0, 0, 1]);
        assert_eq!(problems("", false), [0, 0, 0]);
    }

    #[test]
    fn a_log_that_is_missing_or_empty_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let logs =
            Logs { dir: dir.path(), devices: 1, deaths: false, meddling: Meddling::Never, watched: true };
        assert_eq!(logs.problems().len(), 2);
        for name in ["console.log", "device-0.log"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(logs.problems(), ["the kernel log is empty"]);
        fs::write(dir.path().join("console.log"), "[ 0.0] Linux version\n").unwrap();
        assert!(logs.problems().is_empty());
    }
}
