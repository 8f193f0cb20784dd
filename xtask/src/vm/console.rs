// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's kernel log: which lines mean that something went wrong.

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

/// The lines of `log` that mean that something went wrong.
pub(crate) fn complaints(log: &str) -> Vec<&str> {
    log.lines().map(str::trim_end).filter(|line| is_bad(line)).collect()
}

fn is_bad(line: &str) -> bool {
    // The API's own announcement at boot.
    let announcement = line.contains("DMA-API: preallocated") || line.contains("DMA-API: debugging enabled");
    let leak = line.contains("svmx") && line.contains("leaked");
    (BAD.iter().any(|bad| line.contains(bad)) || leak) && !announcement
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
                   [    0.5] svmx: loading out-of-tree module taints kernel.\n\
                   [    1.0] svmx 0000:01:00.0: ready\n";
        assert!(complaints(log).is_empty(), "{:?}", complaints(log));
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
            assert_eq!(complaints(line).len(), 1, "{line}");
        }
    }
}
