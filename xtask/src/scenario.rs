// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The table of what is run in the guest: one row a scenario.

/// A row. A workload in the guest does the work and judges it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What the guest calls its workload, if not by the row's name.
    pub(crate) workload: Option<&'static str>,
    /// What a pass shows, in a line.
    pub(crate) shows: &'static str,
    /// Devices it has unless `--devices` says otherwise; it can't do with fewer.
    pub(crate) devices: u32,
    /// Nodes that memory and CPUs are spread over. With more than one, half of the memory is movable, so that
    /// blocks of it can be taken offline.
    pub(crate) nodes: u32,
    /// Engines of each device, unless `--engines` says otherwise.
    pub(crate) engines: u16,
    /// Nanoseconds between the read and the write of an atomic, unless `--rmw-delay` says otherwise.
    pub(crate) rmw_delay: Option<u64>,
    /// How the devices misbehave, besides what `--chaos` says.
    pub(crate) chaos: Option<&'static str>,
    /// Whether exclusivity checkers look on, unless `--check-exclusive=off` says that none does.
    pub(crate) watched: bool,
    /// Whether somebody else stores to pages that the device holds.
    pub(crate) meddling: Meddling,
    /// Parameters of the driver.
    pub(crate) module: &'static str,
    /// Seconds that a workload without an end of its own works.
    pub(crate) duration: Option<u32>,
    /// Whether the guest may ask for a device to be killed, and devices may end before the guest does.
    pub(crate) kills_devices: bool,
    /// Whether the guest may ask for a device to be stopped for a while.
    pub(crate) stops_devices: bool,
    /// Seconds after which QEMU gives up a device that does not answer, as if it were killed.
    pub(crate) device_timeout: u32,
    /// Whether `test` runs it with the flavour `debug`, too: a part, so that CI has it in its time.
    pub(crate) debug_too: bool,
    /// Seconds from QEMU's start to its end with the flavour `fast` under TCG.
    pub(crate) timeout: u32,
}

/// Whether somebody else stores to pages that a device holds, and what its exclusivity checker makes of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meddling {
    /// A finding is a failure.
    Never,
    /// It depends on the moment: a finding means nothing.
    Perhaps,
    /// Every device must find it, if it looks.
    Always,
}

/// What a row is unless it says otherwise.
const ROW: Scenario = Scenario {
    name: "",
    workload: None,
    shows: "",
    devices: 1,
    nodes: 1,
    // Two, also on a small host: what engines do to each other is to be seen.
    engines: 2,
    rmw_delay: None,
    chaos: None,
    watched: true,
    meddling: Meddling::Never,
    module: "",
    duration: None,
    kills_devices: false,
    stops_devices: false,
    // QEMU's own 5 s are too short for a device that is being debugged, or a machine that is overloaded.
    device_timeout: 120,
    debug_too: false,
    timeout: 180,
};

/// A workload with a device as users have it. One that is watched takes each element the general way, as its
/// instrument is told of every access; only one that nobody watches works on many at a time.
const UNWATCHED: Scenario = Scenario { watched: false, ..ROW };

/// All scenarios, in the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "hmm-baseline",
        shows: "the kernel's own test of HMM passes on its own device: what ours builds on is sane",
        // Its longest test alone moves gigabytes.
        timeout: 300,
        ..ROW
    },
    Scenario {
        name: "counter",
        shows: "CPU threads and the device on the same counters: the sum is exact",
        debug_too: true,
        ..ROW
    },
    Scenario {
        name: "counter-unwatched",
        workload: Some("counter"),
        shows: "the same with nobody looking on, as users have it",
        ..UNWATCHED
    },
    Scenario {
        name: "counter-slow",
        shows: "the same with a device that is slow between read and write",
        // Long enough for a CPU to get between, wherever something lets it.
        rmw_delay: Some(10_000),
        ..ROW
    },
    Scenario {
        name: "counter-unprotected",
        shows: "the same without exclusive access: updates are lost",
        module: "unsafe_map_without_exclusive_access=1",
        meddling: Meddling::Always,
        // Without it a run may lose only a few, and by chance none.
        rmw_delay: Some(500),
        ..ROW
    },
    Scenario {
        name: "atomics",
        shows: "every command, width, alignment and form against a model on the CPU",
        ..ROW
    },
    Scenario {
        name: "atomics-unwatched",
        workload: Some("atomics"),
        shows: "the same with nobody looking on: many elements at a time",
        ..UNWATCHED
    },
    Scenario {
        name: "litmus",
        shows: "a CPU thread against a queue: no outcome that the memory model forbids",
        ..ROW
    },
    Scenario {
        name: "litmus-unwatched",
        workload: Some("litmus"),
        shows: "the same with nobody looking on",
        ..UNWATCHED
    },
    Scenario {
        name: "progress",
        shows: "CPU threads hammer the device's word, then words beside it: neither side starves",
        duration: Some(20),
        ..ROW
    },
    Scenario {
        name: "progress-slow",
        shows: "the same with a device that gets one element out of a grant and no more",
        // Longer than a CPU takes to want the page back.
        rmw_delay: Some(1_000_000),
        duration: Some(20),
        ..ROW
    },
    Scenario {
        name: "two-devices",
        shows: "two devices and CPU threads on the same counters: the sum is exact",
        devices: 2,
        debug_too: true,
        ..ROW
    },
    Scenario {
        name: "contexts",
        shows: "64 contexts of four processes: sums are exact, none starves, a greedy one slows nobody much",
        timeout: 300,
        ..ROW
    },
    Scenario { name: "two-processes", shows: "neither of two processes reaches the other's memory", ..ROW },
    Scenario {
        name: "ranges",
        shows: "pages acquired ahead of use and released, and policies by address: exact, whatever happens meanwhile",
        // Long enough for a store to get between read and write, wherever something lets it.
        rmw_delay: Some(2_000),
        timeout: 300,
        ..ROW
    },
    Scenario {
        name: "coherent",
        shows: "CPUs, two devices and two processes on shared memory and files: sums exact, files written back",
        devices: 2,
        timeout: 300,
        ..ROW
    },
    Scenario {
        name: "exit-while-busy",
        shows: "exit, kill, exec, fork and munmap while commands run: no hang, no warning, no leak",
        timeout: 300,
        debug_too: true,
        ..ROW
    },
    Scenario {
        name: "discard",
        shows: "memory discarded at the moment the device gets it: no write goes astray",
        debug_too: true,
        ..ROW
    },
    Scenario {
        name: "discard-unwatched",
        workload: Some("discard"),
        shows: "the same with nobody looking on",
        ..UNWATCHED
    },
    Scenario {
        name: "events",
        shows: "each event of the memory management, whatever the device holds: CPU and device see what they should",
        timeout: 600,
        ..ROW
    },
    Scenario {
        name: "events-pinned",
        shows: "stores of the kernel to pages that it has pinned, whatever the device holds: nothing is lost",
        // It finds the page, and stores to it a moment later: the device may have it back by then.
        meddling: Meddling::Perhaps,
        ..ROW
    },
    Scenario {
        name: "c-example",
        shows: "the example in C, built against svmx.h: the device and CPU threads add, the sums are exact",
        ..ROW
    },
    Scenario {
        name: "limits",
        shows: "users can't take each other's contexts and queues; memory is charged to whom it is for",
        // Few enough that two users could not exhaust a device.
        module: "max_contexts_per_user=4,max_queues_per_user=6",
        ..ROW
    },
    Scenario {
        name: "looking",
        shows: "trace events come in order and number, and agree with debugfs and the STATS ioctl",
        ..ROW
    },
    Scenario {
        name: "huge",
        shows: "a copy of 64 MiB in huge pages is a fault for each 2 MiB at most, and right when they are split",
        ..ROW
    },
    Scenario {
        name: "spans",
        shows: "an event over 50 spans on two devices: one SYNC of each device",
        devices: 2,
        ..ROW
    },
    Scenario {
        name: "spans-evicted",
        shows: "a driver that keeps 8 spans, 50 in use by CPU and device: nothing is lost",
        module: "max_spans=8",
        ..ROW
    },
    Scenario {
        name: "events-system",
        shows: "the same with swap space, several nodes, and memory that goes offline",
        nodes: 2,
        timeout: 300,
        ..ROW
    },
    Scenario {
        name: "userfaultfd",
        shows: "a command waits for a page that its process brings itself, and nothing waits with it",
        ..ROW
    },
    Scenario {
        name: "pins",
        shows: "who has pinned a page earlier goes on beside the device, as the kernel says; later pins revoke it",
        meddling: Meddling::Always,
        ..ROW
    },
    Scenario {
        name: "reload",
        shows: "the driver unloads when unused and refuses when used, 20 rounds",
        debug_too: true,
        ..ROW
    },
    Scenario {
        name: "device-dies",
        shows: "the device is killed while it holds pages: waits fail in time, the memory stays usable",
        // The first is asked for something after its death, the second is not.
        devices: 2,
        kills_devices: true,
        ..ROW
    },
    Scenario {
        name: "device-stops",
        shows: "the device is stopped for 2 s, then 20 s, and continued: nothing is lost, nothing hangs",
        stops_devices: true,
        timeout: 300,
        ..ROW
    },
    Scenario {
        name: "device-given-up",
        shows: "the device is stopped for longer than QEMU waits: as if killed, also when it is continued",
        kills_devices: true,
        stops_devices: true,
        device_timeout: 5,
        // The driver gives memory back without an answer from the device, which may be in the middle of a command.
        meddling: Meddling::Perhaps,
        timeout: 300,
        ..ROW
    },
    Scenario {
        name: "device-silent",
        shows: "the device answers no more while it works and holds pages: declared dead, the memory stays usable",
        // Enough for the driver's start and some rounds.
        chaos: Some("silent-after=400"),
        kills_devices: true,
        ..ROW
    },
    Scenario {
        name: "failures",
        shows: "every allocation of the driver fails once: reported, and nothing hangs, leaks or is lost",
        debug_too: true,
        ..ROW
    },
    Scenario {
        name: "garbage",
        shows: "garbage in rings, doorbells and ioctls for a minute harms nobody but its writer",
        duration: Some(60),
        timeout: 300,
        ..ROW
    },
];

/// What `run` shows without an argument.
pub(crate) const DEMONSTRATION: [&str; 2] = ["counter", "counter-unprotected"];

/// An interactive guest: not in the table, as it shows nothing.
pub(crate) const SHELL: Scenario = Scenario { name: "shell", ..ROW };

impl Scenario {
    /// What its result is called.
    pub(crate) fn own_name(&self) -> String {
        self.name.to_owned()
    }

    /// What its result is called with the flavour `debug`, where it ran without, too.
    pub(crate) fn debug_name(&self) -> String {
        format!("{}-debug", self.name)
    }

    /// What the guest is told to run.
    pub(crate) fn workload(&self) -> &'static str {
        self.workload.unwrap_or(self.name)
    }
}

/// The row of that name.
pub(crate) fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rows_are_complete_and_names_differ() {
        let names: HashSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        assert!(
            SCENARIOS
                .iter()
                .all(|row| !row.shows.is_empty() && row.devices > 0 && row.engines > 0 && row.timeout > 0)
        );
        assert!(DEMONSTRATION.iter().all(|name| find(name).is_some()));
    }

    #[test]
    fn a_row_without_watchers_differs_in_nothing_else() {
        let unwatched: Vec<_> = SCENARIOS.iter().filter(|row| !row.watched).collect();
        assert_eq!(unwatched.len(), 4);
        for row in unwatched {
            let watched = find(row.workload()).expect("its workload has a row of its own");
            let Scenario { name, workload, shows, watched: looks_on, debug_too, .. } = *watched;
            assert!(looks_on && workload.is_none());
            assert_eq!(row.name, format!("{name}-unwatched"));
            assert_eq!(Scenario { name, workload, shows, watched: true, debug_too, ..*row }, *watched);
            // What else would keep engines from working on many elements at a time.
            assert_eq!((row.rmw_delay, row.chaos), (None, None), "{}", row.name);
        }
    }
}
