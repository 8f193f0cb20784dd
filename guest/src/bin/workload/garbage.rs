// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `garbage`: processes write garbage over their rings, doorbell pages and ioctl arguments for a minute,
//! while this process counts exactly with queues of its own. The seed reproduces the garbage.

mod entry;
mod writer;

use crate::contest::{Counters, Goals};
use crate::counter::statistics;
use crate::link::metric;
use crate::process::Process;
use crate::random::Random;
use crate::scenario::{Run, Shown, patience, step};
use anyhow::{Context, Result, ensure};
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use svmx::Device;

pub(crate) use writer::child;

/// What a writer takes at most before it is killed: a garbage WAIT may sleep for ever.
const SLICE: Duration = Duration::from_secs(3);

/// What became of the writers.
#[derive(Debug, Default)]
struct Writers {
    started: u64,
    /// In steps of [`writer::REPORT`].
    actions: u64,
    ended: u64,
    crashed: u64,
    killed: u64,
}

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let duration = run.duration.unwrap_or(Duration::from_secs(60));
    let device = Device::open_nth(0)?;
    let counters = Counters::new()?;
    let goals = Goals {
        cpu_ops: 1_000_000,
        device_ops: 10_000,
        grants: 100,
        at_least: duration,
        limit: run.part(4, 5),
    };
    let stop = AtomicBool::new(false);
    let (score, writers) = thread::scope(|scope| {
        let writers = scope.spawn(|| supervise(run, &stop));
        let score = counters.contest(run, 1, std::slice::from_ref(&device), goals);
        stop.store(true, Relaxed);
        (score, writers.join())
    });
    let score = score.context("the honest process")?;
    let writers = writers.map_err(|_| anyhow::anyhow!("the supervisor panicked"))??;
    step("audit");
    let audit = counters.audit(&score.book);
    metric("cpu_ops", score.cpu_ops);
    metric("device_ops", score.device_ops[0]);
    metric("lost", audit.lost);
    metric("writers", writers.started);
    metric("writers_ended", writers.ended);
    metric("writers_crashed", writers.crashed);
    metric("writers_killed", writers.killed);
    metric("garbage_actions", writers.actions);
    statistics(&*device.stats()?, "");
    ensure!(audit.wrong.is_empty(), "the honest process lost {} updates: {:?}", audit.lost, audit.wrong);
    let least = 200 * duration.as_secs();
    ensure!(writers.actions >= least, "expected {least} actions of garbage, found {}", writers.actions);
    Ok(Shown::Pass(format!(
        "{} honest updates exact among {} actions of garbage",
        audit.expected, writers.actions
    )))
}

/// Starts writers, one after the other, until told to stop.
fn supervise(run: &Run, stop: &AtomicBool) -> Result<Writers> {
    let mut writers = Writers::default();
    let mut random = Random::part(run.seed, 50);
    while !stop.load(Relaxed) {
        let seed = random.next();
        let mut writer = Process::start("garbage", &[seed.to_string(), run.devices.to_string()])?;
        writers.started += 1;
        let start = Instant::now();
        let status = loop {
            match writer.wait(Duration::from_millis(20)) {
                Ok(status) => break status,
                Err(_) if start.elapsed() < SLICE && !stop.load(Relaxed) => {}
                Err(_) => {
                    writer.kill()?;
                    break writer.wait(patience()).with_context(|| format!("the writer of seed {seed}"))?;
                }
            }
        };
        match (status.signal(), status.code()) {
            (Some(9), _) => writers.killed += 1,
            (_, Some(0)) => writers.ended += 1,
            _ => writers.crashed += 1,
        }
        writers.actions += writer.lines().count() as u64 * writer::REPORT;
    }
    Ok(writers)
}
