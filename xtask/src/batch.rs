// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs scenarios one after the other and says how each ended; shared by `run` and `test`.

use crate::failure::bad_request;
use crate::kernel::Flavour;
use crate::options::RunOptions;
use crate::progress::Progress;
use crate::report::Row;
use crate::scenario::Scenario;
use crate::vm::{Machine, Outcome, Plan, Verdict};
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

/// What `options` make of a row.
pub(crate) fn plan(options: &RunOptions, scenario: &'static Scenario) -> Plan {
    let flavour: Flavour = options.vm.flavour;
    let own = u64::from(scenario.timeout * flavour.slowdown());
    Plan {
        scenario,
        devices: options.vm.devices.unwrap_or(scenario.devices),
        rmw_delay: options.vm.rmw_delay,
        // A hasher of the standard library is seeded at random.
        seed: options.seed.unwrap_or_else(|| RandomState::new().hash_one(scenario.name) >> 1),
        timeout: Some(Duration::from_secs(options.timeout.unwrap_or(own))),
    }
}

/// Runs one scenario and says how it ended.
pub(crate) async fn run(
    machine: &Machine,
    options: &RunOptions,
    scenario: &'static Scenario,
    progress: &Progress,
) -> Result<(Row, Outcome)> {
    let plan = plan(options, scenario);
    let step = progress.quiet_step(scenario.name);
    progress.detail(format!("{}: seed {}", scenario.name, plan.seed));
    let outcome = machine.run(&plan, progress).await?;
    drop(step);
    let row = Row {
        name: scenario.name.to_owned(),
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
    Ok((row, outcome))
}
