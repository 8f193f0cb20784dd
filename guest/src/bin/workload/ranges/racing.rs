// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Changes of policy, ACQUIRE and RELEASE while CPU threads and two queues add to the same pages: no addition is lost. And
//! memory that goes meanwhile.

use super::{PAGES, Side, W, check};
use crate::area::{Area, Backing, PAGE, scalar};
use crate::random::Random;
use crate::scenario::Run;
use anyhow::{Result, ensure};
use nix::errno::Errno;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use svmx::abi::queue::Opcode;
use svmx::{Device, Error, Policy};

/// Few, so that everybody meets everybody.
const FEW: u64 = 6;
const COMMANDS: u64 = 400;
/// At least.
const CHANGES: u64 = 300;

/// Returns how many changes there were.
pub(super) fn policies(run: &Run) -> Result<u64> {
    let mut random = Random::part(run.seed, 1);
    contest(run.part(1, 5), |device, area| {
        let range = some(&mut random, area);
        let (_, policy) = *random.pick(&Policy::ALL);
        Ok(device.set_policy(range, policy)?)
    })
}

/// The same with pages acquired and released. Returns how often.
pub(super) fn sweeps(run: &Run) -> Result<u64> {
    let mut random = Random::part(run.seed, 2);
    contest(run.part(1, 5), |device, area| {
        let range = some(&mut random, area);
        if random.one_in(2) {
            return Ok(device.release(range).map(drop)?);
        }
        match device.acquire(range) {
            // A CPU took a page back each time.
            Err(Error::Partial { errno: Errno::EAGAIN, .. }) => Ok(()),
            result => Ok(result?),
        }
    })
}

fn some(random: &mut Random, area: &Area) -> Range<u64> {
    let start = random.below(FEW);
    let end = start + 1 + random.below(FEW - start);
    area.address(start * PAGE)..area.address(end * PAGE)
}

/// Lets a CPU thread and two queues add, and a thread do `act` all the time, until there was enough of both. Returns how
/// often it did.
fn contest(limit: Duration, mut act: impl FnMut(&Device, &Area) -> Result<()> + Send) -> Result<u64> {
    let mut side = Side::new()?;
    let device = side.device.clone();
    let mut other = Side::on(device.clone())?;
    let area = Area::new(Backing::Private, FEW * PAGE)?;
    let (over, acts) = (AtomicBool::new(false), AtomicU64::new(0));
    let (added, turns) = thread::scope(|scope| {
        let actor = scope.spawn(|| {
            while !over.load(Relaxed) {
                act(&device, &area)?;
                acts.fetch_add(1, Relaxed);
            }
            anyhow::Ok(())
        });
        let cpu = scope.spawn(|| {
            let mut turns = 0u64;
            while !over.load(Relaxed) {
                for page in 0..FEW {
                    area.increment(page * PAGE);
                }
                turns += 1;
            }
            turns
        });
        let start = Instant::now();
        let mut added = 0;
        let result = loop {
            let enough = added >= COMMANDS && acts.load(Relaxed) >= CHANGES;
            if enough || actor.is_finished() || start.elapsed() > limit {
                break Ok(());
            }
            if let Err(error) = add_both(&mut side, &mut other, &area) {
                break Err(error);
            }
            added += 2;
        };
        over.store(true, Relaxed);
        let acted = actor.join().map_err(|_| anyhow::anyhow!("the acting thread panicked"));
        let turns = cpu.join().map_err(|_| anyhow::anyhow!("the CPU's thread panicked"))?;
        result?;
        acted??;
        anyhow::Ok((added, turns))
    })?;
    let acts = acts.into_inner();
    ensure!(added >= COMMANDS && acts >= CHANGES, "only {added} commands and {acts} changes in the time");
    check(&area, FEW, added + turns)?;
    Ok(acts)
}

/// Both queues at the same time: each finds what the other was given.
fn add_both(one: &mut Side, other: &mut Side, area: &Area) -> Result<()> {
    one.start_adding(area, FEW)?;
    other.start_adding(area, FEW)?;
    one.added(FEW)?;
    other.added(FEW)
}

/// One queue stores to a word, and finds it again, while another does atomics there that change nothing: no store may
/// come between the load and the store of such an atomic (spec 6.3). Each queue gets the page in its own way, again and
/// again, because a CPU takes it back all the time.
pub(super) fn stores() -> Result<()> {
    const STORES: u64 = 600;
    let mut storing = Side::new()?;
    let mut adding = Side::on(storing.device.clone())?;
    let area = Area::new(Backing::Private, PAGE)?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let adder = scope.spawn(|| {
            while !over.load(Relaxed) {
                let found = adding.queue.execute(&scalar(Opcode::FETCH_ADD, W, area.address(0), 0))?;
                ensure!(found.status.is_success(), "{found:?}");
            }
            Ok(())
        });
        let toucher = scope.spawn(|| {
            while !over.load(Relaxed) {
                area.load(8, W);
                thread::yield_now();
            }
        });
        let stored = (1..=STORES).try_for_each(|value| {
            storing.queue.execute(&scalar(Opcode::WRITE, W, area.address(0), value))?;
            let found = storing.queue.execute(&scalar(Opcode::READ, W, area.address(0), 0))?;
            ensure!(
                found.result == u128::from(value),
                "stored {value}, found {found:?}: the store was undone"
            );
            Ok(())
        });
        over.store(true, Relaxed);
        toucher.join().map_err(|_| anyhow::anyhow!("the CPU's thread panicked"))?;
        adder.join().map_err(|_| anyhow::anyhow!("the adding thread panicked"))??;
        stored
    })
}

/// Memory that is unmapped while it is acquired: the call ends with EFAULT or before, and the device has none of it.
pub(super) fn unmapped(run: &Run) -> Result<()> {
    const ROUNDS: u32 = 30;
    let device = Device::open_nth(0)?;
    let mut random = Random::part(run.seed, 3);
    let mut met = 0;
    for round in 0..ROUNDS {
        let mut area = Area::new(Backing::Private, PAGES * PAGE)?;
        let (range, keep) = (area.range(), random.below(PAGES));
        let before = device.stats()?.grants;
        let target = before + random.below(PAGES / 2);
        let result = thread::scope(|scope| {
            let acquirer = scope.spawn(|| device.acquire(range.clone()));
            while device.stats()?.grants < target && !acquirer.is_finished() {}
            area.unmap_from(keep * PAGE)?;
            acquirer.join().map_err(|_| anyhow::anyhow!("the acquiring thread panicked"))
        })?;
        match result {
            Err(Error::Partial { errno: Errno::EFAULT, done, .. }) => {
                ensure!(done >= keep, "round {round}: EFAULT after {done} pages of {keep} that are there");
                met += 1;
            }
            other => other?,
        }
        // Before the kernel cuts a mapping in two it splits the huge page that may be there: split_huge_pmd_address()
        // tells the notifiers of all its 2 MiB, whether there is one or not.
        let lost = area.address(keep * PAGE) % (2 << 20) / PAGE;
        let left = device.release(range)?;
        let all = keep.saturating_sub(lost)..=keep;
        ensure!(all.contains(&left), "round {round}: the device had {left} pages of {keep}, not {all:?}");
    }
    ensure!(met > 0, "no page was unmapped before it was acquired");
    Ok(())
}
