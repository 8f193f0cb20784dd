// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The workloads: `workload SCENARIO [--seed N] [--cpus N] [--devices N] [--limit S] [--duration S]
//! [--module PARAMETERS] [--only TEXT]`, or `workload --list`. Run by the init, or by hand in the guest's shell.

mod area;
mod atomics;
mod c_example;
mod coherent;
mod contest;
mod contexts;
mod counter;
mod device_dies;
mod device_silent;
mod device_stops;
mod discard;
mod events;
mod exit_while_busy;
mod failures;
mod garbage;
mod hmm_baseline;
mod huge;
mod limits;
mod link;
mod litmus;
mod looking;
mod maps;
mod mixture;
mod pins;
mod process;
mod progress;
mod random;
mod ranges;
mod reload;
mod scenario;
mod spans;
mod system;
mod tracing;
mod two_devices;
mod two_processes;
mod userfaultfd;

use anyhow::{Context, Result, bail};
use scenario::{Run, SCENARIOS, Shown};
use std::process::ExitCode;
use std::time::Duration;
use svmx::report::Verdict;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        None | Some("--list") => {
            SCENARIOS.iter().for_each(|row| println!("{:20} {}", row.name, row.shows));
            ExitCode::SUCCESS
        }
        Some("child") => scenario::child(&arguments[1..]),
        Some(_) => judge(&arguments),
    }
}

/// Runs a scenario and says its verdict.
fn judge(arguments: &[String]) -> ExitCode {
    link::open();
    let outcome = std::thread::scope(|scope| {
        // In a thread, so that a panic is a failure that says what it was.
        let scenario = std::thread::Builder::new().name("scenario".into());
        let handle = scenario.spawn_scoped(scope, || start(arguments));
        handle.context("no thread").and_then(|handle| match handle.join() {
            Ok(outcome) => outcome,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
                bail!("panic: {}", text.unwrap_or_default())
            }
        })
    });
    let passed = outcome.is_ok();
    match outcome {
        Ok(Shown::Pass(detail)) => link::say(Verdict::Pass, detail),
        Ok(Shown::Skip(detail)) => link::say(Verdict::Skip, detail),
        Err(error) => link::say(Verdict::Fail, format!("{error:#}; at: {}", scenario::current_step())),
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start(arguments: &[String]) -> Result<Shown> {
    let (name, run) = parse(arguments)?;
    let row = SCENARIOS.iter().find(|row| row.name == name).with_context(|| format!("no scenario {name}"))?;
    scenario::watch(run.limit);
    (row.run)(&run)
}

fn parse(arguments: &[String]) -> Result<(&str, Run)> {
    let (name, rest) = arguments.split_first().context("no scenario")?;
    let mut run = Run::default();
    for pair in rest.chunks(2) {
        let [key, value] = pair else { bail!("{} needs a value", pair[0]) };
        let number = || value.parse::<u64>().with_context(|| format!("{key} {value}"));
        match key.as_str() {
            "--seed" => run.seed = number()?,
            "--cpus" => run.cpus = u32::try_from(number()?)?,
            "--devices" => run.devices = u32::try_from(number()?)?,
            "--limit" => run.limit = Duration::from_secs(number()?),
            "--duration" => run.duration = Some(Duration::from_secs(number()?)),
            "--module" => run.module = value.clone(),
            "--only" => run.only = value.clone(),
            _ => bail!("unknown option {key}"),
        }
    }
    Ok((name, run))
}
