// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `counter`: two CPU threads and the device increment the same counters, and nothing is lost.
//! `counter-slow`: the same code, with a device that lets time pass between read and write.
//! `counter-unprotected`: the same code without exclusive access, and updates are lost; if they were not,
//! the first would show nothing.

use crate::contest::{Counters, Goals};
use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Result, bail, ensure};
use serde_json::Value;
use std::time::Duration;
use svmx::Device;
use svmx::abi::uapi::{INFO_PROTECTION_OFF, Stats};
use svmx::latency::percentile;

pub(crate) fn protected(run: &Run) -> Result<Shown> {
    let device = Device::open_nth(0)?;
    ensure!(device.info()?.state & INFO_PROTECTION_OFF == 0, "the driver was loaded without protection");
    let goals = Goals { grants: 1001, at_least: Duration::from_secs(5), ..goals(run) };
    let lost = race(run, &device, goals)?;
    if let Some(wrong) = lost.wrong {
        bail!("{wrong}");
    }
    Ok(Shown::Pass(format!("{} updates by CPUs and device, none lost", lost.expected)))
}

pub(crate) fn unprotected(run: &Run) -> Result<Shown> {
    let device = Device::open_nth(0)?;
    ensure!(device.info()?.state & INFO_PROTECTION_OFF != 0, "the driver was loaded with protection");
    let Lost { lost, expected, .. } = race(run, &device, Goals { device_ops: 3_000_000, ..goals(run) })?;
    ensure!(lost > 0, "no update of {expected} was lost (lost = {lost}) without exclusive access");
    Ok(Shown::Pass(format!("{lost} of {expected} updates lost, as it should be without protection")))
}

fn goals(run: &Run) -> Goals {
    Goals {
        cpu_ops: 20_000_000,
        device_ops: 200_000,
        grants: 0,
        at_least: Duration::ZERO,
        limit: run.part(4, 5),
    }
}

struct Lost {
    expected: u64,
    lost: i64,
    wrong: Option<String>,
}

fn race(run: &Run, device: &Device, goals: Goals) -> Result<Lost> {
    let counters = Counters::new()?;
    let score = counters.contest(run, 2, std::slice::from_ref(device), goals)?;
    step("audit");
    let audit = counters.audit(&score.book);
    let device_ops: u64 = score.device_ops.iter().sum();
    metric("cpu_ops", score.cpu_ops);
    metric("device_ops", device_ops);
    metric("expected", audit.expected);
    metric("observed", audit.observed);
    metric("lost", audit.lost);
    metric("elapsed_s", score.elapsed.as_secs_f64());
    metric("device_ops_per_s", (device_ops as f64 / score.elapsed.as_secs_f64()) as u64);
    statistics(&*device.stats()?, "");
    ensure!(audit.expected == score.cpu_ops + device_ops, "the books disagree");
    let wrong = audit.wrong.len();
    let wrong = (wrong > 0).then(|| {
        format!("{} updates lost in {wrong} counters: {}", audit.lost, audit.wrong[..wrong.min(4)].join("; "))
    });
    Ok(Lost { expected: audit.expected, lost: audit.lost, wrong })
}

/// The driver's numbers of a context as metrics, with names that end with `suffix`.
pub(crate) fn statistics(stats: &Stats, suffix: &str) {
    let number = |name: &str, value: u64| metric(&format!("{name}{suffix}"), value);
    number("exclusive_grants", stats.grants);
    number("revocations", stats.revocations);
    number("shared_grants", stats.shared_grants);
    number("faults", stats.faults);
    number("replays", stats.replays);
    number("cancels", stats.cancels);
    number("retries", stats.retries);
    number("invalidations", stats.invalidations);
    number("ahead", stats.ahead);
    number("ahead_lost", stats.ahead_lost);
    number("evictions", stats.evictions);
    number("huge_grants", stats.huge_grants);
    number("device_syncs", stats.syncs);
    let histograms =
        [("grant_ns", &stats.grant_ns), ("revoke_ns", &stats.revoke_ns), ("replay_ns", &stats.replay_ns)];
    for (name, histogram) in histograms {
        for (percent, label) in [(50.0, "p50"), (99.0, "p99")] {
            let value = percentile(histogram, percent).map_or(Value::Null, Value::from);
            metric(&format!("{name}_{label}{suffix}"), value);
        }
    }
}
