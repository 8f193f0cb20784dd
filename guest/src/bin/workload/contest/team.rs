// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device's part in the contest: its queues, the commands it chooses from, and when it is over.

use super::{Book, COUNTERS, Counters, Goals, NARROW, WIDE};
use crate::random::Random;
use crate::scenario::{patience, step};
use anyhow::{Context, Result, ensure};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use svmx::{Command, Device, IndexArray, Queue, QueueSize};

/// Commands in flight in each queue.
const DEPTH: usize = 4;

/// A device's queues, and the book about them.
pub(super) struct Team {
    device: Device,
    queues: Vec<(Queue, VecDeque<usize>)>,
    plays: Vec<Play>,
    random: Random,
    pub(super) book: Book,
    pub(super) ops: u64,
}

/// A command and what it adds.
struct Play {
    command: Command,
    adds: Book,
    ops: u32,
}

impl Team {
    pub(super) fn new(device: &Device, counters: &Counters, random: &mut Random) -> Result<Self> {
        let mut queues = Vec::new();
        for _ in 0..2 {
            let mut queue = device.create_queue(QueueSize { sq_log2: 4, cq_log2: 5 })?;
            // The CPUs belong to the threads that increment.
            queue.set_spin(Duration::ZERO);
            queues.push((queue, VecDeque::new()));
        }
        let plays = plays(counters, random)?;
        Ok(Team {
            device: device.clone(),
            queues,
            plays,
            random: random.clone(),
            book: [0; COUNTERS],
            ops: 0,
        })
    }

    /// Fills the queues up, then takes a completion of each.
    fn round(&mut self, more: bool) -> Result<()> {
        for (queue, sent) in &mut self.queues {
            while more && sent.len() < DEPTH {
                let play = self.random.below(self.plays.len() as u64) as usize;
                queue.submit(&self.plays[play].command)?;
                sent.push_back(play);
            }
        }
        for (queue, sent) in &mut self.queues {
            let Some(play) = sent.pop_front() else { continue };
            let play = &self.plays[play];
            let completion = queue.complete(Some(patience())).with_context(|| {
                // Says on whom it waits: the driver answers faults, the device does all else.
                let stats = self.device.stats().map(|s| (s.faults, s.replays, s.cancels));
                format!(
                    "queue {}, (faults, replays, cancels) {stats:?}, {:?}",
                    queue.id(),
                    play.command.entry()
                )
            })?;
            ensure!(
                completion.status.is_success() && completion.applied == play.command.entry().count.max(1),
                "{:?} ended with {completion:?}",
                play.command.entry()
            );
            self.book.iter_mut().zip(play.adds).for_each(|(sum, n)| *sum += n);
            self.ops += u64::from(play.ops);
        }
        Ok(())
    }

    fn idle(&self) -> bool {
        self.queues.iter().all(|(_, sent)| sent.is_empty())
    }
}

/// Plays until the goals are reached; then, or if they can't be, lets the commands in flight end.
pub(super) fn play(teams: &mut [Team], cpu_ops: &AtomicU64, goals: Goals) -> Result<()> {
    let start = Instant::now();
    let mut short = Some(String::new());
    for round in 0u32.. {
        let more = short.is_some();
        for team in &mut *teams {
            team.round(more)?;
        }
        if !more && teams.iter().all(Team::idle) {
            return Ok(());
        }
        if more && round.is_multiple_of(16) {
            short = missing(teams, cpu_ops, goals, start.elapsed())?;
            if let Some(short) = &short {
                step(short.clone());
                ensure!(start.elapsed() < goals.limit, "after {:?}: {short}", goals.limit);
            }
        }
    }
    Ok(())
}

/// What is missing to the goals.
fn missing(teams: &[Team], cpu_ops: &AtomicU64, goals: Goals, elapsed: Duration) -> Result<Option<String>> {
    let cpu_ops = cpu_ops.load(Relaxed);
    let mut reached = cpu_ops >= goals.cpu_ops && elapsed >= goals.at_least;
    let mut text = format!("cpu_ops {cpu_ops} of {}", goals.cpu_ops);
    for team in teams {
        let stats = team.device.stats()?;
        reached &= team.ops >= goals.device_ops && stats.grants.min(stats.revocations) >= goals.grants;
        text += &format!(
            ", device_ops {} of {}, grants {} and revocations {} of {}",
            team.ops, goals.device_ops, stats.grants, stats.revocations, goals.grants
        );
    }
    Ok((!reached).then_some(text))
}

/// The commands: scalar and bulk, by strides of every sign, by indices of both widths.
fn plays(counters: &Counters, random: &mut Random) -> Result<Vec<Play>> {
    let Counters { wide, narrow } = counters;
    let mut plays = Vec::new();
    let w = WIDE.len();
    for (counter, &element) in WIDE.iter().enumerate() {
        plays.push(Play::new(Command::fetch_add(wide.at(element), 1), [counter])?);
    }
    for (n, &element) in NARROW.iter().enumerate() {
        plays.push(Play::new(Command::fetch_add(narrow.at(element), 1), [w + n])?);
    }
    let same = |counter: usize, times: u32| std::iter::repeat_n(counter, times as usize);
    plays.push(Play::new(wide.strided(0, 1, 8)?.fetch_add(1), 0..8)?);
    plays.push(Play::new(wide.strided(513, -1, 5)?.fetch_add(1), 8..13)?);
    plays.push(Play::new(wide.strided(0, 512, 4)?.fetch_add(1), [0, 11, 15, 16])?);
    plays.push(Play::new(wide.strided(1, 0, 4000)?.fetch_add(1), same(1, 4000))?);
    plays.push(Play::new(wide.strided(1536, 0, 2000)?.fetch_add(1), same(16, 2000))?);
    plays.push(Play::new(narrow.strided(3, -1, 4)?.fetch_add(1), w..w + 4)?);
    plays.push(Play::new(narrow.strided(511, 0, 2000)?.fetch_add(1), same(w + 5, 2000))?);
    for _ in 0..4 {
        let picked: Vec<usize> = (0..256).map(|_| random.below(w as u64) as usize).collect();
        let indices: Vec<u64> = picked.iter().map(|&counter| WIDE[counter] as u64).collect();
        let command = wide.indexed(&IndexArray::new(&indices)?, 0..256)?.fetch_add(1);
        plays.push(Play::new(command, picked.iter().copied())?);
        let indices: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
        let command = wide.indexed(&IndexArray::new(&indices)?, 0..256)?.fetch_add(1);
        plays.push(Play::new(command, picked)?);
    }
    Ok(plays)
}

impl Play {
    fn new(command: Command, counters: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut adds = [0; COUNTERS];
        let mut ops = 0;
        for counter in counters {
            adds[counter] += 1;
            ops += 1;
        }
        ensure!(ops == command.entry().count.max(1), "a play's book differs from its command");
        Ok(Play { command, adds, ops })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_play_is_in_its_book() {
        let counters = Counters::new().unwrap();
        plays(&counters, &mut Random::new(1)).unwrap();
    }
}
