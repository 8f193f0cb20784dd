// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `two-devices`: two devices and CPU threads of one process increment the same counters, exactly. Then the
//! devices do so alone: what is revoked then, one context revoked from the other.

use crate::contest::{Counters, Goals};
use crate::counter::statistics;
use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Result, ensure};
use std::time::Duration;
use svmx::Device;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    if run.devices < 2 {
        return Ok(Shown::Skip(format!("needs two devices, has {}", run.devices)));
    }
    let everybody = Goals { cpu_ops: 5_000_000, device_ops: 50_000, grants: 1001, ..goals(run) };
    let all = contest(run, 2, everybody, "")?;
    let alone = contest(run, 0, Goals { device_ops: 20_000, grants: 500, ..goals(run) }, "_alone")?;
    Ok(Shown::Pass(format!("{all} updates by CPUs and two devices, {alone} by the devices alone, none lost")))
}

/// For each of the two contests.
fn goals(run: &Run) -> Goals {
    Goals { cpu_ops: 0, device_ops: 0, grants: 0, at_least: Duration::ZERO, limit: run.part(3, 5) }
}

fn contest(run: &Run, threads: u32, goals: Goals, suffix: &str) -> Result<u64> {
    let devices = [Device::open_nth(0)?, Device::open_nth(1)?];
    let counters = Counters::new()?;
    let score = counters.contest(run, threads, &devices, goals)?;
    step("audit");
    metric(&format!("cpu_ops{suffix}"), score.cpu_ops);
    for (n, device) in devices.iter().enumerate() {
        metric(&format!("device_ops{suffix}_{n}"), score.device_ops[n]);
        statistics(&*device.stats()?, &format!("{suffix}_{n}"));
    }
    let audit = counters.audit(&score.book);
    metric(&format!("lost{suffix}"), audit.lost);
    let made = score.cpu_ops + score.device_ops.iter().sum::<u64>();
    ensure!(audit.expected == made, "the books disagree: {} and {made}", audit.expected);
    ensure!(
        audit.wrong.is_empty(),
        "{} updates lost with {threads} CPU threads: {:?}",
        audit.lost,
        audit.wrong
    );
    Ok(audit.expected)
}
