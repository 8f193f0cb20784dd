// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `progress`: two CPU threads hammer the very word that the device works on, then the words beside it, and
//! neither side starves. `progress-slow`: with a device that is slower than a CPU is to want the page back, so
//! that it gets one element out of a grant: it goes on by the rule of spec 8.4 and by nothing else.
//!
//! Nothing here is about seconds. The device's floor is an element for each grant, in every command; that of
//! its faults, two attempts for each grant; that of the CPUs an increment for each time that they take the page
//! back, in every [`HANDOVERS`] times. docs/architecture.md argues for them.

use crate::counter::statistics;
use crate::link::metric;
use crate::scenario::{Run, Shown, patience, step};
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use svmx::abi::uapi::Stats;
use svmx::{Command, Device, Queue, QueueSize, SharedSlice};

/// Elements of a command, after which grants are counted: enough for many of them.
const FAST: u64 = 1 << 15;
/// The same with a device that is slow.
const SLOW: u64 = 64;
/// Commands of a slow device with a grant for every other element, without which nothing was shown.
const TIGHT: u64 = 16;
/// Revocations after which the CPUs' increments are looked at. The kernel promises a CPU no access for a
/// fault: the page may be gone again before the thread that faulted runs (`remove_device_exclusive_entry()`
/// holds nothing for it). That does not happen many times in a row.
const HANDOVERS: u64 = 64;
/// Revocations without which nothing was shown.
const LEAST: u64 = 1000;
/// The device's word.
const WORD: usize = 0;

/// Words that the CPU threads hammer, by what it is called in the metrics.
const PARTS: [(&str, [usize; 2]); 2] = [("same", [WORD, WORD]), ("beside", [1, 2])];

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let [same, beside] = PARTS.map(|part| hammered(run, part, FAST, 0));
    let (same, beside) = (same?, beside?);
    let elements = |tally: &Tally| tally.elements / tally.grants.max(1);
    Ok(Shown::Pass(format!(
        "{} and {} elements a grant, {} and {} increments by CPUs a revocation, none lost",
        elements(&same),
        elements(&beside),
        same.cpu_ops / same.revocations.max(1),
        beside.cpu_ops / beside.revocations.max(1),
    )))
}

pub(crate) fn slow(run: &Run) -> Result<Shown> {
    let mut least = f64::INFINITY;
    for part in PARTS {
        let Tally { elements, grants, .. } = hammered(run, part, SLOW, TIGHT)?;
        least = least.min(elements as f64 / grants.max(1) as f64);
    }
    Ok(Shown::Pass(format!("no less than {least:.3} elements a grant, none lost")))
}

/// What was counted from the start of a part up to some moment.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    elements: u64,
    grants: u64,
    revocations: u64,
    cpu_ops: u64,
    /// Commands that had a grant for every other element.
    tight: u64,
}

/// One part: its CPU threads hammer while the device works on commands of `window` elements, of which `tight`
/// must have been so.
fn hammered(run: &Run, (name, words): (&str, [usize; 2]), window: u64, tight: u64) -> Result<Tally> {
    let device = Device::open_nth(0)?;
    let memory = SharedSlice::<u64>::zeroed(512)?;
    let made = [const { AtomicU64::new(0) }; 2];
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let worked = thread::scope(|scope| {
        for (word, made) in words.into_iter().zip(&made) {
            let (word, stop) = (&memory[word], &stop);
            scope.spawn(move || hammer(word, made, stop));
        }
        let worked = Part { run, name, device: &device, made: &made, window, tight }.work(&memory);
        stop.store(true, Relaxed);
        worked
    });
    let elapsed = start.elapsed().as_secs_f64();
    step(format!("{name}: audit"));
    let made = made.each_ref().map(|made| made.load(Relaxed));
    let tally = Tally { cpu_ops: made.iter().sum(), ..worked? };
    report(name, &tally, &made, elapsed, &*device.stats()?);
    audit(&memory, &words, &made, tally.elements)?;
    for ops in made {
        ensure!(ops >= tally.revocations, "{name}: a CPU thread made {ops} increments: {tally:?}");
    }
    Ok(tally)
}

/// What a CPU thread does.
fn hammer(word: &AtomicU64, made: &AtomicU64, stop: &AtomicBool) {
    let mut ops = 0;
    while !stop.load(Relaxed) {
        word.fetch_add(1, Relaxed);
        ops += 1;
        made.store(ops, Relaxed);
    }
}

/// The device's side of a part.
struct Part<'a> {
    run: &'a Run,
    name: &'a str,
    device: &'a Device,
    /// Increments of each CPU thread.
    made: &'a [AtomicU64; 2],
    window: u64,
    tight: u64,
}

impl Part<'_> {
    /// Lets the device work until the time is over and enough was seen, and checks every window.
    fn work(&self, memory: &SharedSlice<u64>) -> Result<Tally> {
        let mut queue = self.device.create_queue(QueueSize::default())?;
        // The CPUs belong to the threads that hammer.
        queue.set_spin(Duration::ZERO);
        let command = memory.strided(WORD, 0, self.window as u32)?.fetch_add(1);
        let length = self.run.duration.unwrap_or(Duration::from_secs(20)) / PARTS.len() as u32;
        let limit = length + self.run.part(1, 3);
        let (start, mut last, mut handover) = (Instant::now(), Tally::default(), Tally::default());
        while start.elapsed() < length || last.revocations < LEAST || last.tight < self.tight {
            step(format!("{}: {last:?}", self.name));
            ensure!(start.elapsed() < limit, "{} in {limit:?}: only {last:?}", self.name);
            let now = self.window(&mut queue, &command, &last)?;
            if now.revocations - handover.revocations >= HANDOVERS {
                check_handovers(&handover, &now)?;
                handover = now;
            }
            last = now;
        }
        Ok(last)
    }

    /// One command, and what it took.
    fn window(&self, queue: &mut Queue, command: &Command, last: &Tally) -> Result<Tally> {
        queue.submit(command)?;
        let completion = queue.complete(Some(patience())).with_context(|| format!("{last:?}"))?;
        let whole = completion.status.is_success() && u64::from(completion.applied) == self.window;
        ensure!(whole, "{completion:?} after {last:?}");
        let stats = self.device.stats()?;
        let now = Tally {
            elements: last.elements + self.window,
            grants: stats.grants,
            revocations: stats.revocations,
            cpu_ops: self.made.iter().map(|made| made.load(Relaxed)).sum(),
            tight: last.tight + u64::from((stats.grants - last.grants) * 2 >= self.window),
        };
        check_window(last, &now, stats.retries)?;
        Ok(now)
    }
}

/// Spec 8.4: each grant has yielded an element.
fn check_window(last: &Tally, now: &Tally, retries: u64) -> Result<()> {
    ensure!(now.grants <= now.elements, "grants without an element: {now:?}");
    // A grant is counted behind its REPLAY, and so perhaps behind the command's end.
    let (grants, elements) = (now.grants - last.grants, now.elements - last.elements);
    ensure!(grants <= elements + 1, "{grants} grants for {elements} elements: from {last:?} to {now:?}");
    // What hits an attempt is a CPU thread that waited for the folio while the other one got the page back: it
    // tells the notifiers before it looks whether there is anything left to do. One of two threads, once.
    ensure!(retries <= now.grants, "{retries} attempts were started over: {now:?}");
    Ok(())
}

/// The CPUs have got something out of having the page back.
fn check_handovers(last: &Tally, now: &Tally) -> Result<()> {
    let (ops, revocations) = (now.cpu_ops - last.cpu_ops, now.revocations - last.revocations);
    ensure!(ops >= revocations, "{ops} increments by CPUs in {revocations} revocations: {last:?} to {now:?}");
    Ok(())
}

/// Every word is what was added to it.
fn audit(memory: &SharedSlice<u64>, words: &[usize; 2], made: &[u64; 2], elements: u64) -> Result<()> {
    for (at, word) in memory.iter().enumerate() {
        let by_cpus: u64 =
            words.iter().zip(made).filter(|(word, _)| **word == at).map(|(_, made)| made).sum();
        let expected = by_cpus + if at == WORD { elements } else { 0 };
        let observed = word.load(Relaxed);
        ensure!(observed == expected, "word {at}: expected {expected}, found {observed}");
    }
    Ok(())
}

fn report(name: &str, tally: &Tally, made: &[u64; 2], elapsed: f64, stats: &Stats) {
    let number = |what: &str, value: u64| metric(&format!("{what}_{name}"), value);
    number("device_ops", tally.elements);
    number("tight_commands", tally.tight);
    number("device_ops_per_s", (tally.elements as f64 / elapsed) as u64);
    number("cpu_ops", tally.cpu_ops);
    number("cpu_ops_per_s", (tally.cpu_ops as f64 / elapsed) as u64);
    number("cpu_ops_of_first", made[0]);
    number("cpu_ops_of_second", made[1]);
    metric(&format!("elapsed_s_{name}"), elapsed);
    metric(&format!("elements_per_grant_{name}"), tally.elements as f64 / tally.grants.max(1) as f64);
    let cpu_ops = tally.cpu_ops as f64 / tally.revocations.max(1) as f64;
    metric(&format!("cpu_ops_per_revocation_{name}"), cpu_ops);
    statistics(stats, &format!("_{name}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_without_an_element_is_found() {
        let (last, good) = (Tally::default(), Tally { elements: 64, grants: 64, ..Tally::default() });
        assert!(check_window(&last, &good, 64).is_ok());
        assert!(check_window(&last, &good, 65).is_err());
        assert!(check_window(&last, &Tally { grants: 65, ..good }, 0).is_err());
        // Also where earlier windows had elements to spare.
        let (last, now) = (Tally { elements: 640, ..last }, Tally { elements: 704, grants: 66, ..good });
        assert!(check_window(&last, &now, 0).is_err());
        assert!(check_window(&last, &Tally { grants: 65, ..now }, 0).is_ok());
    }

    #[test]
    fn cpus_that_starve_are_found() {
        let last = Tally { cpu_ops: 1000, revocations: 1000, ..Tally::default() };
        assert!(check_handovers(&last, &Tally { cpu_ops: 1064, revocations: 1064, ..last }).is_ok());
        assert!(check_handovers(&last, &Tally { cpu_ops: 1063, revocations: 1064, ..last }).is_err());
    }

    #[test]
    fn an_audit_knows_who_added_where() {
        let memory = SharedSlice::<u64>::zeroed(512).unwrap();
        memory[0].store(12, Relaxed);
        assert!(audit(&memory, &[0, 0], &[3, 4], 5).is_ok());
        assert!(audit(&memory, &[0, 0], &[3, 4], 6).is_err());
        memory[1].store(3, Relaxed);
        assert!(audit(&memory, &[1, 2], &[3, 0], 12).is_ok());
        assert!(audit(&memory, &[1, 2], &[3, 1], 12).is_err());
    }
}
