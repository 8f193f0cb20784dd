// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One of the processes: contexts with a thread each. A round is a command, which faults unless the context
//! still has the page.

use crate::process;
use crate::scenario::patience;
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;
use svmx::{Command, Device, Queue, QueueSize, SharedSlice};

/// A context that faults in a loop: its thread takes the page back, then the device needs it.
pub(super) struct Loop {
    device: Device,
    queue: Queue,
    memory: SharedSlice<u64>,
    rounds: u64,
}

impl Loop {
    pub(super) fn new() -> Result<Self> {
        let device = Device::open_nth(0)?;
        let mut queue = device.create_queue(QueueSize { sq_log2: 1, cq_log2: 2 })?;
        // The CPUs belong to whoever has something to do.
        queue.set_spin(Duration::ZERO);
        Ok(Loop { device, queue, memory: SharedSlice::zeroed(512)?, rounds: 0 })
    }

    pub(super) fn round(&mut self) -> Result<()> {
        self.memory[0].fetch_add(1, Relaxed);
        add(&mut self.queue, &self.memory)?;
        self.rounds += 1;
        Ok(())
    }

    /// Both have added one in each round.
    pub(super) fn audit(&self) -> Result<()> {
        let (expected, observed) = (2 * self.rounds, self.memory[0].load(Relaxed));
        ensure!(observed == expected, "expected {expected}, found {observed}");
        Ok(())
    }
}

/// The device adds one to the first word.
fn add(queue: &mut Queue, memory: &SharedSlice<u64>) -> Result<()> {
    queue.submit(&Command::fetch_add(memory.at(0), 1))?;
    let completion = queue.complete(Some(patience()))?;
    ensure!(completion.status.is_success(), "{completion:?}");
    Ok(())
}

/// The process: `MEMBERS ROUNDS ROUNDS`, the latter for pages of their own and for one that all share.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let numbers: Vec<u64> = arguments.iter().map(|word| word.parse()).collect::<Result<_, _>>()?;
    let [members, own, shared] = numbers[..] else { anyhow::bail!("bad arguments {arguments:?}") };
    let loops: Vec<Loop> = (0..members).map(|_| Loop::new()).collect::<Result<_>>()?;
    let mut loops = contest(loops, own, |member| member.round())?;
    loops.iter().try_for_each(Loop::audit)?;

    // The same contexts, and no page but one.
    let page = SharedSlice::<u64>::zeroed(512)?;
    for member in &mut loops {
        (member.memory, member.rounds) = (page.clone(), 0);
    }
    let loops = contest(loops, shared, |member| {
        add(&mut member.queue, &member.memory)?;
        member.rounds += 1;
        Ok(())
    })?;
    let expected: u64 = loops.iter().map(|member| member.rounds).sum();
    let observed = page[0].load(Relaxed);
    ensure!(observed == expected, "one page: expected {expected}, found {observed}");
    Ok(())
}

/// Lets every member go round, a thread each, until the parent says stop; says when all of them have made
/// `least` rounds, and in the end how many each has made, and
/// how many of its faults were served.
fn contest(loops: Vec<Loop>, least: u64, round: fn(&mut Loop) -> Result<()>) -> Result<Vec<Loop>> {
    let served = |loops: &[Loop]| -> Result<Vec<u64>> {
        loops.iter().map(|member| Ok(member.device.stats()?.faults)).collect()
    };
    let before = served(&loops)?;
    let (stop, short) = (AtomicBool::new(false), AtomicU64::new(loops.len() as u64));
    let (reached, all_reached) = channel();
    process::tell("ready")?;
    process::listen()?;
    let loops = thread::scope(|scope| {
        let (stop, short) = (&stop, &short);
        let threads: Vec<_> = loops
            .into_iter()
            .map(|member| {
                let goal = Goal { least, short, reached: reached.clone() };
                scope.spawn(move || go_round(member, round, stop, &goal))
            })
            .collect();
        drop(reached);
        // An error if a thread failed, which says so below.
        if all_reached.recv().is_ok() {
            process::tell("reached")?;
            process::listen()?;
        }
        stop.store(true, Relaxed);
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|end| end.ok().context("a thread panicked")?).collect::<Result<Vec<_>>>()
    })?;
    let faults = served(&loops)?.into_iter().zip(before).map(|(after, before)| after - before);
    let rounds = loops.iter().map(|member| member.rounds);
    let scores: Vec<String> =
        rounds.zip(faults).map(|(rounds, faults)| format!("{rounds} {faults}")).collect();
    process::tell(&scores.join(" "))?;
    Ok(loops)
}

/// When everybody has made enough rounds.
struct Goal<'a> {
    least: u64,
    /// Members that have not.
    short: &'a AtomicU64,
    reached: Sender<()>,
}

fn go_round(
    mut member: Loop,
    round: fn(&mut Loop) -> Result<()>,
    stop: &AtomicBool,
    goal: &Goal<'_>,
) -> Result<Loop> {
    while !stop.load(Relaxed) {
        round(&mut member)?;
        if member.rounds == goal.least && goal.short.fetch_sub(1, Relaxed) == 1 {
            // Who would listen has given up.
            let _ = goal.reached.send(());
        }
    }
    Ok(member)
}
