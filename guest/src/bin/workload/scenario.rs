// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The table of scenarios, what a scenario is given, and the watchdog that ends one that hangs.

use crate::counter;
use crate::link;
use anyhow::Result;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
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
    /// After this the watchdog fails it.
    pub(crate) limit: Duration,
    /// How long a scenario without an end of its own should run.
    pub(crate) duration: Option<Duration>,
    /// Parameters of the driver, for the scenario that loads it.
    pub(crate) module: String,
}

impl Default for Run {
    fn default() -> Self {
        let limit = Duration::from_secs(240);
        Run { seed: 1, cpus: 2, devices: 1, limit, duration: None, module: String::new() }
    }
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
        name: "counter",
        shows: "CPU threads and device on the same counters lose nothing",
        run: counter::protected,
    },
    Scenario {
        name: "counter-unprotected",
        shows: "the same without exclusive access loses updates",
        run: counter::unprotected,
    },
];

/// Programs that scenarios start as processes of their own: `workload child NAME …`.
const CHILDREN: &[(&str, Child)] = &[];

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
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let text = format!("not over after {} s; at: {}", limit.as_secs(), current_step());
        link::say(Verdict::Fail, text);
        std::process::exit(1);
    });
}
