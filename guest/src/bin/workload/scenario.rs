// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The table of scenarios, what a scenario is given, and the watchdog that ends one that hangs.

use crate::link;
use crate::{
    atomics, c_example, coherent, contexts, counter, device_dies, device_silent, device_stops, discard,
    events, exit_while_busy, failures, garbage, hmm_baseline, huge, limits, litmus, looking, mixture, pins,
    progress, ranges, reload, spans, two_devices, two_processes, userfaultfd,
};
use anyhow::Result;
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use svmx::report::Verdict;

/// What a scenario is told.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Of everything that is random.
    pub(crate) seed: u64,
    /// CPUs of the machine.
    pub(crate) cpus: u32,
    /// Devices of the machine.
    pub(crate) devices: u32,
    /// After this the watchdog fails it. Every other limit is a part of it.
    pub(crate) limit: Duration,
    /// How long a scenario without an end of its own should run.
    pub(crate) duration: Option<Duration>,
    /// Parameters of the driver, for the scenario that loads it.
    pub(crate) module: String,
    /// Only the parts whose names contain this, in scenarios that have such.
    pub(crate) only: String,
}

impl Default for Run {
    fn default() -> Self {
        let limit = Duration::from_secs(240);
        Run {
            seed: 1,
            cpus: 2,
            devices: 1,
            limit,
            duration: None,
            module: String::new(),
            only: String::new(),
        }
    }
}

impl Run {
    /// Part of the limit, for a part of the scenario.
    pub(crate) fn part(&self, numerator: u32, denominator: u32) -> Duration {
        self.limit * numerator / denominator
    }
}

static LIMIT: OnceLock<Duration> = OnceLock::new();
/// Tells the limit, in seconds, to processes that a scenario starts.
pub(crate) const LIMIT_VARIABLE: &str = "SVMX_LIMIT";

/// The limit of the scenario of which this process is a part.
pub(crate) fn limit() -> Duration {
    let told = || std::env::var(LIMIT_VARIABLE).ok()?.parse().ok().map(Duration::from_secs);
    *LIMIT.get_or_init(|| told().unwrap_or(Run::default().limit))
}

/// How long a single thing may take, such as a command or the end of a process: enough for the slowest
/// machine that the limit was chosen for.
pub(crate) fn patience() -> Duration {
    (limit() / 8).max(Duration::from_secs(5))
}

/// How a scenario ends that has not failed.
#[derive(Debug)]
pub(crate) enum Shown {
    /// It was shown, in a line.
    Pass(String),
    /// It can't be shown here, because.
    Skip(String),
}

/// A scenario. Its function fails with what was expected and what was found.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) shows: &'static str,
    pub(crate) run: fn(&Run) -> Result<Shown>,
}

/// Every scenario.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "hmm-baseline",
        shows: "the kernel's own test of exclusive access, on its own device without hardware, passes",
        run: hmm_baseline::run,
    },
    Scenario {
        name: "counter",
        shows: "CPU threads and device on the same counters lose nothing",
        run: counter::protected,
    },
    Scenario {
        name: "counter-slow",
        shows: "the same with a device that is slow between read and write",
        run: counter::protected,
    },
    Scenario {
        name: "counter-unprotected",
        shows: "the same without exclusive access loses updates",
        run: counter::unprotected,
    },
    Scenario {
        name: "atomics",
        shows: "every command does what a model on the CPU says, and every mistake gets its status",
        run: atomics::run,
    },
    Scenario {
        name: "litmus",
        shows: "a CPU thread and a queue see each other's stores in the order that the specification promises",
        run: litmus::run,
    },
    Scenario {
        name: "progress",
        shows: "CPU threads hammer the device's word, or words beside it, and neither side starves",
        run: progress::run,
    },
    Scenario {
        name: "progress-slow",
        shows: "the same with a device that gets one element out of a grant and no more",
        run: progress::slow,
    },
    Scenario {
        name: "two-devices",
        shows: "two devices and CPU threads on the same counters lose nothing, and revoke each other",
        run: two_devices::run,
    },
    Scenario {
        name: "contexts",
        shows: "64 contexts are served alike, and one of them beside a process that faults all the time",
        run: contexts::run,
    },
    Scenario {
        name: "two-processes",
        shows: "two processes never reach each other's memory, nor anything outside their own",
        run: two_processes::run,
    },
    Scenario {
        name: "ranges",
        shows: "pages acquired ahead have no fault, errors say how far, and nothing that happens meanwhile loses anything",
        run: ranges::run,
    },
    Scenario {
        name: "coherent",
        shows: "two processes, CPUs and devices on shared memory and files lose nothing, and files get it all",
        run: coherent::run,
    },
    Scenario {
        name: "exit-while-busy",
        shows: "processes end, exec, fork and unmap while commands run; nothing hangs or leaks",
        run: exit_while_busy::run,
    },
    Scenario {
        name: "discard",
        shows: "memory that is discarded while the device is given it stays the process's own",
        run: discard::run,
    },
    Scenario {
        name: "events",
        shows: "whatever the memory management does to memory that the device holds, both see what they should",
        run: events::run,
    },
    Scenario {
        name: "events-pinned",
        shows: "what the kernel stores to pages that it has pinned is there, and nothing that the device did is lost",
        run: events::pinned,
    },
    Scenario {
        name: "huge",
        shows: "memory in huge pages is mapped so on the device, and right when they are split",
        run: huge::run,
    },
    Scenario {
        name: "spans",
        shows: "an event over many spans on two devices is waited for once",
        run: spans::waits,
    },
    Scenario {
        name: "spans-evicted",
        shows: "a driver that keeps few spans evicts others, and nothing is lost",
        run: spans::evicted,
    },
    Scenario {
        name: "failures",
        shows: "allocations of the driver fail, each in turn: it is reported, and nothing hangs, leaks or is lost",
        run: failures::run,
    },
    Scenario {
        name: "garbage",
        shows: "garbage in rings, doorbells and ioctl arguments harms nobody but its writer",
        run: garbage::run,
    },
    Scenario {
        name: "c-example",
        shows: "the example in C adds on the device and on CPU threads, and nothing is lost",
        run: c_example::run,
    },
    Scenario {
        name: "limits",
        shows: "a user's limits leave others theirs, and memory is charged, given back, and refused at its limit",
        run: limits::run,
    },
    Scenario {
        name: "looking",
        shows: "trace events, debugfs and STATS tell the same story, which is what happened",
        run: looking::run,
    },
    Scenario {
        name: "reload",
        shows: "the driver can't be unloaded while in use, can when not, and works each time",
        run: reload::run,
    },
    Scenario {
        name: "device-dies",
        shows: "when the device's process is killed waits end with ENODEV and the memory stays",
        run: device_dies::run,
    },
    Scenario {
        name: "device-stops",
        shows: "when the device's process is stopped and continued nothing is lost and nothing hangs",
        run: device_stops::run,
    },
    Scenario {
        name: "device-given-up",
        shows: "when the VMM gives up a device that is stopped waits end with ENODEV and the memory stays",
        run: device_dies::given_up,
    },
    Scenario {
        name: "events-system",
        shows: "the same with swap space, several nodes, and memory that goes offline",
        run: events::system,
    },
    Scenario {
        name: "mixture",
        shows: "all events at random, on all kinds of memory, while device and CPUs add to it: every sum is exact",
        run: mixture::run,
    },
    Scenario {
        name: "pins",
        shows: "who has pinned a page earlier goes on beside the device, and who wants to later takes it away first",
        run: pins::run,
    },
    Scenario {
        name: "userfaultfd",
        shows: "commands wait for pages that their process brings itself, and nothing else waits with them",
        run: userfaultfd::run,
    },
    Scenario {
        name: "device-silent",
        shows: "when the device stops answering it is declared dead, waits end with ENODEV and the memory stays",
        run: device_silent::run,
    },
];

/// Programs that scenarios start as processes of their own: `workload child NAME …`.
const CHILDREN: &[(&str, Child)] = &[
    ("two-processes", two_processes::child),
    ("contexts-member", contexts::member),
    ("contexts-greedy", contexts::greedy),
    ("limits-user", limits::user),
    ("limits-memory", limits::charged),
    ("busy", exit_while_busy::child),
    ("coherent", coherent::child),
    ("garbage", garbage::child),
    ("events", events::child),
    ("events-peer", events::peer),
    ("events-after-exec", events::after_exec),
    ("after-exec", exit_while_busy::after_exec),
    ("userfaultfd", userfaultfd::child),
];

type Child = fn(&[String]) -> Result<()>;

/// Runs one of the children.
pub(crate) fn child(arguments: &[String]) -> ExitCode {
    let Some((name, rest)) = arguments.split_first() else { return ExitCode::from(2) };
    let Some((_, run)) = CHILDREN.iter().find(|(child, _)| child == name) else { return ExitCode::from(2) };
    match run(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

static STEP: Mutex<String> = Mutex::new(String::new());

/// Says where the scenario is, for a failure.
pub(crate) fn step(text: impl Into<String>) {
    *STEP.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
}

/// Where it is.
pub(crate) fn current_step() -> String {
    STEP.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Fails the scenario and ends the process after `limit`.
pub(crate) fn watch(limit: Duration) {
    // Nobody has asked for it before.
    let _ = LIMIT.set(limit);
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let text = format!("not over after {} s; at: {}", limit.as_secs(), current_step());
        link::say(Verdict::Fail, text);
        std::process::exit(1);
    });
}
