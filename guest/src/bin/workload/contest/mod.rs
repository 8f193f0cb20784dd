// SPDX-License-Identifier: Apache-2.0 OR MIT

//! CPU threads and devices that increment the same counters for as long as it takes, and the books about
//! it: who added how often to which counter.
//!
//! Every increment is by one, so a counter must be the number of increments that its book has, and what
//! is missing is the number of updates that got lost.

mod team;

use crate::random::Random;
use crate::scenario::Run;
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use svmx::{Device, SharedMemory, SharedSlice};
use team::{Team, play};

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
}
