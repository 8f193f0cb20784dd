// SPDX-License-Identifier: Apache-2.0 OR MIT

//! CPU threads and devices that increment the same counters for as long as it takes, and the books about
//! it: who added how often to which counter.
//!
//! Every increment is by one, so a counter must be the number of increments that its book has, and what
//! is missing is the number of updates that got lost.

use crate::random::Random;
use crate::scenario::{Run, step};
use anyhow::{Context, Result, ensure};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use svmx::{Command, Device, IndexArray, Queue, QueueSize, SharedMemory, SharedSlice};

/// The 64-bit counters, as elements of three and a half pages: several in a page, at both sides of its
/// ends, and in neighbouring pages.
const WIDE: [usize; 18] = [0, 1, 2, 3, 4, 5, 6, 7, 509, 510, 511, 512, 513, 1000, 1023, 1024, 1536, 1537];
/// The 32-bit counters, in the rest of the fourth page.
const NARROW: [usize; 6] = [0, 1, 2, 3, 510, 511];
const COUNTERS: usize = WIDE.len() + NARROW.len();
const WIDE_LEN: usize = 4 * 512 - 256;
const NARROW_LEN: usize = 512;
/// Increments that a CPU thread does in one page before it goes to another.
const BURST: u64 = 512;
/// Commands in flight in each queue.
const DEPTH: usize = 4;

/// Increments by counter: first the wide ones, then the narrow ones.
pub(crate) type Book = [u64; COUNTERS];

/// The counters.
pub(crate) struct Counters {
    wide: SharedSlice<u64>,
    narrow: SharedSlice<u32>,
}

/// When the contest may end: when all of it is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goals {
    pub(crate) cpu_ops: u64,
    /// By each device.
    pub(crate) device_ops: u64,
    /// Grants of each context, and revocations.
    pub(crate) grants: u64,
    /// It takes at least this long.
    pub(crate) at_least: Duration,
    /// It has failed if they are not reached by then.
    pub(crate) limit: Duration,
}

/// What was done.
#[derive(Debug)]
pub(crate) struct Score {
    pub(crate) cpu_ops: u64,
    /// By device.
    pub(crate) device_ops: Vec<u64>,
    pub(crate) elapsed: Duration,
    pub(crate) book: Book,
}

/// What the counters say about the book.
#[derive(Debug)]
pub(crate) struct Audit {
    pub(crate) expected: u64,
    pub(crate) observed: u64,
    /// Updates that are missing. Negative: there are more than were made.
    pub(crate) lost: i64,
    /// The counters that are wrong, in words.
    pub(crate) wrong: Vec<String>,
}

impl Counters {
    pub(crate) fn new() -> Result<Self> {
        let mut memory = SharedMemory::new(4 * 4096)?;
        let wide = memory.carve(WIDE_LEN).context("no room for the wide counters")?;
        let narrow = memory.carve(NARROW_LEN).context("no room for the narrow counters")?;
        Ok(Counters { wide, narrow })
    }

    fn increment(&self, counter: usize) {
        // `lock xadd`, or `lock inc` where the result is unused: one atomic instruction either way.
        match counter.checked_sub(WIDE.len()) {
            None => drop(self.wide[WIDE[counter]].fetch_add(1, Relaxed)),
            Some(narrow) => drop(self.narrow[NARROW[narrow]].fetch_add(1, Relaxed)),
        }
    }

    /// Compares every counter with the book, and everything between them with zero.
    pub(crate) fn audit(&self, book: &Book) -> Audit {
        let mut audit = Audit { expected: 0, observed: 0, lost: 0, wrong: Vec::new() };
        let mut check = |name: String, expected: u64, observed: u64, lost: i64| {
            audit.expected += expected;
            audit.observed += observed;
            audit.lost += lost;
            if expected != observed {
                audit.wrong.push(format!("{name}: expected {expected}, found {observed}"));
            }
        };
        for (element, word) in self.wide.iter().enumerate() {
            let expected = WIDE.iter().position(|&at| at == element).map_or(0, |counter| book[counter]);
            let observed = word.load(Relaxed);
            check(format!("u64 {element}"), expected, observed, expected.wrapping_sub(observed) as i64);
        }
        for (element, word) in self.narrow.iter().enumerate() {
            let counter = NARROW.iter().position(|&at| at == element);
            let expected = counter.map_or(0, |counter| book[WIDE.len() + counter]) as u32;
            let observed = word.load(Relaxed);
            let lost = expected.wrapping_sub(observed).cast_signed();
            check(format!("u32 {element}"), expected.into(), observed.into(), lost.into());
        }
        audit
    }

    /// Lets `threads` CPU threads and the devices increment until the goals are reached.
    pub(crate) fn contest(&self, run: &Run, threads: u32, devices: &[Device], goals: Goals) -> Result<Score> {
        let mut teams = Vec::new();
        for (n, device) in devices.iter().enumerate() {
            teams.push(Team::new(device, self, &mut Random::part(run.seed, 100 + n as u64))?);
        }
        let (stop, cpu_ops) = (AtomicBool::new(false), AtomicU64::new(0));
        let start = Instant::now();
        let (played, books) = thread::scope(|scope| {
            let cpus: Vec<_> = (0..threads)
                .map(|n| {
                    let mut random = Random::part(run.seed, n.into());
                    let (stop, cpu_ops) = (&stop, &cpu_ops);
                    scope.spawn(move || self.hammer(&mut random, stop, cpu_ops))
                })
                .collect();
            let played = play(&mut teams, &cpu_ops, goals);
            // Only now, when no command is in flight: both sides overlapped from start to end.
            stop.store(true, Relaxed);
            (played, cpus.into_iter().map(|thread| thread.join()).collect::<Vec<_>>())
        });
        let elapsed = start.elapsed();
        played?;
        let mut book: Book = [0; COUNTERS];
        for part in books {
            let part = part.map_err(|_| anyhow::anyhow!("a CPU thread panicked"))?;
            book.iter_mut().zip(part).for_each(|(sum, n)| *sum += n);
        }
        let cpu_ops = book.iter().sum();
        for team in &teams {
            book.iter_mut().zip(team.book).for_each(|(sum, n)| *sum += n);
        }
        Ok(Score { cpu_ops, device_ops: teams.iter().map(|team| team.ops).collect(), elapsed, book })
    }

    /// What a CPU thread does.
    fn hammer(&self, random: &mut Random, stop: &AtomicBool, cpu_ops: &AtomicU64) -> Book {
        // By page; the fourth has counters of both widths.
        const PAGES: [std::ops::Range<usize>; 4] = [0..11, 11..15, 15..16, 16..COUNTERS];
        let mut book = [0; COUNTERS];
        while !stop.load(Relaxed) {
            let page = random.pick(&PAGES).clone();
            let mut counter = page.start;
            for _ in 0..BURST {
                self.increment(counter);
                book[counter] += 1;
                counter = if counter + 1 == page.end { page.start } else { counter + 1 };
            }
            cpu_ops.fetch_add(BURST, Relaxed);
        }
        book
    }
}

/// A device's queues, and the book about them.
struct Team {
    device: Device,
    queues: Vec<(Queue, VecDeque<usize>)>,
    plays: Vec<Play>,
    random: Random,
    book: Book,
    ops: u64,
}

/// A command and what it adds.
struct Play {
    command: Command,
    adds: Book,
    ops: u32,
}

impl Team {
    fn new(device: &Device, counters: &Counters, random: &mut Random) -> Result<Self> {
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
            let completion = queue.complete(Some(Duration::from_secs(20)))?;
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
fn play(teams: &mut [Team], cpu_ops: &AtomicU64, goals: Goals) -> Result<()> {
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
    plays.push(Play::new(Command::fetch_add_strided(wide, 0, 1, 8, 1)?, 0..8)?);
    plays.push(Play::new(Command::fetch_add_strided(wide, 513, -1, 5, 1)?, 8..13)?);
    plays.push(Play::new(Command::fetch_add_strided(wide, 0, 512, 4, 1)?, [0, 11, 15, 16])?);
    plays.push(Play::new(Command::fetch_add_strided(wide, 1, 0, 300, 1)?, same(1, 300))?);
    plays.push(Play::new(Command::fetch_add_strided(wide, 1536, 0, 64, 1)?, same(16, 64))?);
    plays.push(Play::new(Command::fetch_add_strided(narrow, 3, -1, 4, 1)?, w..w + 4)?);
    plays.push(Play::new(Command::fetch_add_strided(narrow, 511, 0, 100, 1)?, same(w + 5, 100))?);
    for _ in 0..4 {
        let picked: Vec<usize> = (0..256).map(|_| random.below(w as u64) as usize).collect();
        let indices: Vec<u64> = picked.iter().map(|&counter| WIDE[counter] as u64).collect();
        let command = Command::fetch_add_indexed(wide, &IndexArray::new(&indices)?, 0..256, 1)?;
        plays.push(Play::new(command, picked.iter().copied())?);
        let indices: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
        let command = Command::fetch_add_indexed(wide, &IndexArray::new(&indices)?, 0..256, 1)?;
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
    fn an_audit_sees_every_kind_of_error() {
        let counters = Counters::new().unwrap();
        let mut book: Book = [0; COUNTERS];
        for (counter, ops) in book.iter_mut().enumerate() {
            counters.increment(counter);
            *ops += 1;
        }
        assert!(counters.audit(&book).wrong.is_empty());
        counters.narrow[7].store(1, Relaxed);
        assert_eq!(counters.audit(&book).lost, -1, "a stray increment");
        counters.narrow[7].store(0, Relaxed);
        book[0] += 2;
        book[WIDE.len()] += 3;
        let audit = counters.audit(&book);
        assert_eq!((audit.lost, audit.wrong.len()), (5, 2));
        book[WIDE.len()] = (1 << 32) + 1;
        assert_eq!(counters.audit(&book).wrong.len(), 1, "32 bits wrap");
    }

    #[test]
    fn every_play_is_in_its_book() {
        let counters = Counters::new().unwrap();
        plays(&counters, &mut Random::new(1)).unwrap();
    }
}
