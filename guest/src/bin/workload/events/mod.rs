// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `events`: what the memory management can do to memory while a device holds it. Each cell of a matrix
//! *event × shape of the memory × what the device holds* is a process of its own with an exact result;
//! docs/events.md shows the matrix.

mod access;
mod advice;
mod cell;
mod child;
#[cfg(test)]
mod document;
mod hammer;
mod huge;
mod ksm;
mod mapping;
mod migrate;
mod mremap;
mod proc_files;
mod process;
pub(crate) mod scene;
mod served;
mod swap;
mod system;
mod table;
mod touch;

use crate::link::metric;
use crate::process::{Process, tell};
use crate::random::Random;
use crate::scenario::{Run, Shown, patience, step};
use anyhow::{Context, Result, bail, ensure};
use cell::Cell;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use table::{CELLS, Memory, Name};

pub(crate) use access::peer;
pub(crate) use process::after_exec;

/// A machine on which this many cells fail is not worth more time.
const MAX_FAILURES: usize = 12;

pub(crate) use system::run as system;

/// `events`: all rows but those of the other scenarios.
pub(crate) fn run(run: &Run) -> Result<Shown> {
    keep_pages_as_they_are()?;
    some(run, table::cells(), CELLS, |name| !name.event.pins)
}

/// `events-pinned`: rows in which the kernel stores to a page that the device may have back already.
pub(crate) fn pinned(run: &Run) -> Result<Shown> {
    keep_pages_as_they_are()?;
    some(run, table::cells(), CELLS, |name| name.event.pins)
}

/// Those of `cells`, of which there are `expected`, that are wanted.
fn some(
    run: &Run,
    cells: impl Iterator<Item = Name>,
    expected: usize,
    wanted: impl Fn(&Name) -> bool,
) -> Result<Shown> {
    let all: Vec<(usize, Name)> = cells.enumerate().collect();
    ensure!(all.len() == expected, "the matrix has {} cells, not {expected}", all.len());
    let chosen = |name: &Name| wanted(name) && name.to_string().contains(&run.only);
    let chosen: Vec<_> = all.iter().filter(|(_, name)| chosen(name)).collect();
    ensure!(!chosen.is_empty(), "no cell's name contains {:?}", run.only);
    let mut tally = Tally::default();
    for (number, name) in &chosen {
        step(name.to_string());
        let seed = Random::part(run.seed, *number as u64).next();
        if let Err(error) = one(*name, seed).map(|ended| tally.take(ended)) {
            let text = format!("{name} (seed {seed}; {}): {error:#}", name.event.kernel);
            println!("events: {text}");
            tally.failures.push(text);
        }
        if tally.failures.len() == MAX_FAILURES {
            break;
        }
    }
    tally.judge(chosen.len())
}

/// Nobody but an event makes huge pages of small ones.
fn keep_pages_as_they_are() -> Result<()> {
    const SLEEP: &str = "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs";
    std::fs::write(SLEEP, u32::MAX.to_string()).context(SLEEP)
}

/// How the cells ended.
#[derive(Default)]
struct Tally {
    passed: usize,
    absent: usize,
    missing: usize,
    failures: Vec<String>,
    counts: BTreeMap<String, u64>,
}

/// How a cell ended that has not failed.
enum Ended {
    /// It passed, and counted this.
    Passed(Vec<(String, u64)>),
    /// There is nothing to try.
    Absent,
    /// What it needs is not there yet.
    Missing,
}

impl Tally {
    fn take(&mut self, ended: Ended) {
        match ended {
            Ended::Passed(counts) => {
                self.passed += 1;
                counts.into_iter().for_each(|(name, count)| *self.counts.entry(name).or_default() += count);
            }
            Ended::Absent => self.absent += 1,
            Ended::Missing => self.missing += 1,
        }
    }

    fn judge(self, cells: usize) -> Result<Shown> {
        let Tally { passed, absent, missing, failures, counts } = self;
        metric("cells", cells);
        metric("passed", passed);
        metric("absent", absent);
        metric("missing", missing);
        metric("failed", failures.len());
        counts.into_iter().for_each(|(name, count)| metric(&name, count));
        if let Some(first) = failures.first() {
            bail!("{} of {cells} cells failed, {passed} passed; {first}", failures.len());
        }
        ensure!(passed + absent + missing == cells, "{cells} cells were begun, and some have no result");
        ensure!(passed > 0, "none of {cells} cells could be tried");
        let absent = if absent > 0 { format!(", {absent} can't be") } else { String::new() };
        let missing = if missing > 0 { format!(", {missing} are missing") } else { String::new() };
        Ok(Shown::Pass(format!("{passed} of {cells} cells are as they should be{absent}{missing}")))
    }
}

/// A cell, in a process of its own.
fn one(name: Name, seed: u64) -> Result<Ended> {
    if name.event.absent(name.state).is_some() {
        return Ok(Ended::Absent);
    }
    if scene::missing(name.state).is_some() {
        return Ok(Ended::Missing);
    }
    let mut process = Process::start("events", &[name.to_string(), seed.to_string()])?;
    let line = process.line(patience())?;
    let counts = line.strip_prefix("passed").with_context(|| line.clone())?;
    let status = process.wait(patience())?;
    let good = match name.event.memory(name.state) {
        Memory::Ended { signal: Some(signal) } => status.signal() == Some(signal),
        _ => status.success(),
    };
    ensure!(good, "it passed, but ended with {status}");
    let pairs = counts.split_whitespace().map(|pair| {
        let (name, count) = pair.split_once('=').context("no count")?;
        Ok((name.to_owned(), count.parse()?))
    });
    Ok(Ended::Passed(pairs.collect::<Result<_>>()?))
}

/// `workload child events CELL SEED`: one cell.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let [name, seed] = arguments else { bail!("needs a cell and a seed") };
    let mut cells = table::cells().chain(table::system_cells());
    let cell = cells.find(|cell| cell.to_string() == *name).context("no such cell")?;
    if table::system_cells().any(|other| other.to_string() == *name) {
        system::enter()?;
    }
    match Cell::run(cell, seed.parse()?) {
        Ok(counts) => tell(&Cell::passed(&counts)),
        // Said in one line to whoever started it.
        Err(error) => tell(&format!("{error:#}").replace('\n', " ")).and(Err(error)),
    }
}
