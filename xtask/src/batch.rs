// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs scenarios one after the other and says how each ended; shared by `run` and `test`.

use crate::failure::{self, bad_request};
use crate::options::RunOptions;
use crate::progress::Progress;
use crate::report::Row;
use crate::scenario::Scenario;
use crate::vm::{Instruments, Machine, Plan, Verdict};
use anyhow::Result;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Refuses what no boot could satisfy.
pub(crate) fn check(options: &RunOptions, scenarios: &[&'static Scenario]) -> Result<()> {
    for scenario in scenarios {
        if let Some(devices) = options.vm.devices.filter(|devices| *devices < scenario.devices) {
            let (name, least) = (scenario.name, scenario.devices);
            return Err(bad_request(format!("--devices {devices}: {name} needs at least {least}")));
        }
    }
    Ok(())
}

/// How much longer a scenario may take while its devices misbehave.
const CHAOS_SLOWDOWN: u32 = 3;

/// What `options` make of a row.
pub(crate) fn plan(options: &RunOptions, scenario: &'static Scenario) -> Plan {
    let chaos = if options.vm.chaos.is_some() { CHAOS_SLOWDOWN } else { 1 };
    let own = u64::from(scenario.timeout * options.vm.kernel.flavour().slowdown() * chaos);
    let duration = scenario.duration.map(|own| options.duration.unwrap_or(own));
    // What is asked for beyond the row's own time comes on top of the row's limit.
    let longer = duration.unwrap_or(0).saturating_sub(scenario.duration.unwrap_or(0));
    Plan {
        scenario,
        devices: options.vm.devices.unwrap_or(scenario.devices),
        engines: options.vm.engines,
        rmw_delay: options.vm.rmw_delay,
        instruments: Instruments::new(&options.vm, scenario),
        // A hasher of the standard library is seeded at random.
        seed: options.seed.unwrap_or_else(|| RandomState::new().hash_one(scenario.name) >> 1),
        only: options.only.clone(),
        duration,
        timeout: Some(Duration::from_secs(options.timeout.unwrap_or(own + u64::from(longer)))),
    }
}

/// Runs scenarios, each whatever became of those before it. Every one has a row, with the name that `name` gives it,
/// also when there is nothing to boot; the error, if any, is a bad request that showed only then.
pub(crate) async fn run(
    machine: Result<Machine>,
    options: &RunOptions,
    scenarios: &[&'static Scenario],
    name: fn(&Scenario) -> String,
    progress: &Progress,
) -> (Vec<Row>, Result<()>) {
    let machine = match machine {
        Ok(machine) => machine,
        Err(error) => {
            let rows = scenarios.iter().map(|scenario| Row::failed(&name(scenario))).collect();
            if failure::is_bad_request(&error) {
                return (rows, Err(error));
            }
            println!("no scenario can run: {error:#}");
            return (rows, Ok(()));
        }
    };
    if let Ok(release) = machine.kernel.release() {
        progress.detail(format!("kernel: {release}"));
    }
    let mut rows = Vec::new();
    for scenario in scenarios {
        match one(&machine, options, scenario, name(scenario), progress).await {
            Ok(row) => rows.push(row),
            Err(refused) => return (rows, Err(refused)),
        }
    }
    (rows, Ok(()))
}

/// Runs one scenario and says how it ended. One that can't even begin has failed, unless that was asked for.
async fn one(
    machine: &Machine,
    options: &RunOptions,
    scenario: &'static Scenario,
    name: String,
    progress: &Progress,
) -> Result<Row> {
    let plan = plan(options, scenario);
    let step = progress.quiet_step(&name);
    progress.detail(format!("{name}: seed {}", plan.seed));
    let outcome = machine.run(&plan, progress).await;
    drop(step);
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) if failure::is_bad_request(&error) => return Err(error),
        Err(error) => {
            let row = Row::failed(&name);
            println!("{}", row.line(&format!("{error:#}")));
            return Ok(row);
        }
    };
    let row = Row {
        name,
        verdict: outcome.verdict,
        duration_s: outcome.duration.as_secs_f64(),
        metrics: outcome.metrics.clone(),
    };
    println!("{}", row.line(&outcome.detail));
    if outcome.verdict == Verdict::Fail {
        for problem in &outcome.problems {
            println!("  {problem}");
        }
        println!("  seed {}\n{}", plan.seed, outcome.log_tails());
    }
    progress.detail(format!("logs: {}", outcome.dir.display()));
    Ok(row)
}
