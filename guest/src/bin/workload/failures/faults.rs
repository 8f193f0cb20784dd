// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults of the device: while the driver serves them, each few allocations one fails, also those for the process's own
//! pages. A command then ends with NO_RESOURCES and says how much of it was done.

use super::inject::Injector;
use crate::random::Random;
use crate::scenario::{Run, step};
use anyhow::{Context, Result, bail, ensure};
use std::time::Instant;
use svmx::abi::status::Status;
use svmx::{Completion, Device, Queue, QueueSize, SharedSlice};

/// Rounds, each with a context and memory of its own, so that everything is to be made again.
const ROUNDS: u32 = 24;
/// Elements of a command, each in a 2 MiB of its own: for each the driver needs a leaf table, a notifier and a page.
const ELEMENTS: u32 = 24;
const APART: u32 = (2 << 20) / size_of::<u64>() as u32;
/// Commands of a round, while allocations fail.
const COMMANDS: u32 = 6;
/// An allocation in so many fails, at most.
const RAREST: u64 = 24;
/// Failures in a round, at most. Of either kind.
const TIMES: u64 = 6;
/// Commands that must have ended early for the rounds to have shown anything.
const ENOUGH: u32 = 10;

/// What came of the rounds.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) injected: u64,
    pub(crate) commands: u32,
    pub(crate) ended_early: u32,
}

pub(crate) fn run(injector: &Injector, run: &Run) -> Result<Outcome> {
    let mut random = Random::part(run.seed, 0);
    let mut outcome = Outcome::default();
    let start = Instant::now();
    for round in 0..ROUNDS {
        let interval = 1 + random.below(RAREST);
        step(format!("round {round}: each {interval}. allocation fails"));
        one(injector, interval, &mut outcome)
            .with_context(|| format!("round {round}, interval {interval}"))?;
        ensure!(start.elapsed() < run.part(3, 4), "after {round} of {ROUNDS} rounds the time is over");
    }
    let Outcome { injected, commands, ended_early } = outcome;
    ensure!(
        ended_early >= ENOUGH && ended_early < commands,
        "{ended_early} of {commands} commands ended early after {injected} failures: expected {ENOUGH}, and not all"
    );
    Ok(outcome)
}

/// A context works while allocations fail, then without failures, and ends while they fail again.
fn one(injector: &Injector, interval: u64, outcome: &mut Outcome) -> Result<()> {
    let device = Device::open_nth(0)?;
    let mut queue = device.create_queue(QueueSize::default())?;
    let memory = SharedSlice::<u64>::zeroed(ELEMENTS as usize * APART as usize)?;
    let mut expected = [0; ELEMENTS as usize];

    injector.each(interval, TIMES)?;
    for _ in 0..COMMANDS {
        let done = add(&mut queue, &memory)?;
        outcome.commands += 1;
        match done.status.0 {
            Status::SUCCESS => ensure!(done.applied == ELEMENTS, "success after {} elements", done.applied),
            Status::NO_RESOURCES => outcome.ended_early += 1,
            _ => bail!("expected SUCCESS or NO_RESOURCES, found {done:?}"),
        }
        expected.iter_mut().take(done.applied as usize).for_each(|count| *count += 1);
    }
    outcome.injected += 2 * TIMES - injector.left()?;
    injector.never()?;
    check(&memory, &expected)?;

    let done = add(&mut queue, &memory)?;
    ensure!(done.status.is_success(), "when there was memory again: {done:?}");
    expected.iter_mut().for_each(|count| *count += 1);
    check(&memory, &expected)?;

    injector.each(1, 2 * TIMES)?;
    queue.destroy()?;
    drop(device);
    injector.never()
}

/// The device adds one to each element.
fn add(queue: &mut Queue, memory: &SharedSlice<u64>) -> Result<Completion> {
    Ok(queue.execute(&memory.strided(0, APART.cast_signed(), ELEMENTS)?.fetch_add(1))?)
}

fn check(memory: &SharedSlice<u64>, expected: &[u64]) -> Result<()> {
    for (index, expected) in expected.iter().enumerate() {
        let found = memory.load(index * APART as usize);
        ensure!(found == *expected, "element {index}: expected {expected}, found {found}");
    }
    Ok(())
}
