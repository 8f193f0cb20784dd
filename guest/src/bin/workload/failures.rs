// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `failures`: memory runs out, on purpose, at every place where the driver asks for some. Each failure is reported,
//! nothing hangs, nothing is lost, and what comes afterwards works. That nothing leaks is seen when the driver is
//! unloaded at the end.

mod calls;
mod faults;
mod inject;

use crate::link::metric;
use crate::scenario::{Run, Shown};
use anyhow::Result;
use inject::Injector;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let Some(injector) = Injector::aim()? else {
        return Ok(Shown::Skip("this kernel injects no failures: `--flavour debug` and `kasan` do".into()));
    };
    let calls = calls::run(&injector)?;
    let faults = faults::run(&injector, run)?;
    metric("failed_in_calls", calls);
    metric("failed_in_faults", faults.injected);
    metric("commands", faults.commands);
    metric("commands_ended_early", faults.ended_early);
    Ok(Shown::Pass(format!(
        "{calls} allocations failed in calls and {} behind faults, which ended {} of {} commands; every sum is exact",
        faults.injected, faults.ended_early, faults.commands
    )))
}
