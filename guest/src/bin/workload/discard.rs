// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `discard`: memory is discarded at the very moment at which the device is given it. Whatever is left of
//! such a race, later additions of the device must reach the pages that the process has then: an entry of
//! the device's page table that outlived its page would send them to memory that is somebody else's.
#![expect(unsafe_code, reason = "submits entries that name an area")]

use crate::area::{Area, Backing, PAGE, RawQueue};
use crate::link::metric;
use crate::random::Random;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::{Device, QueueSize};

/// Few, so that a round is short and a discard meets a grant.
const PAGES: u64 = 4;
const ROUNDS: u32 = 1000;
/// Grants that the driver had to start over because an event came between: the race that is wanted.
const RACES: u64 = 20;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let device = Device::open_nth(0)?;
    let area = Area::new(Backing::Private, PAGES * PAGE)?;
    // SAFETY: it names `area`, which nothing but atomics reaches.
    let mut queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
    let turn = Turn::default();
    let rounds = thread::scope(|scope| {
        let discarder = scope.spawn(|| discard(&area, &turn, Random::part(run.seed, 1)));
        let rounds = race(run.part(4, 5), &device, &mut queue, &area, &turn);
        turn.end();
        discarder.join().map_err(|_| anyhow::anyhow!("the discarding thread panicked"))??;
        rounds
    })?;
    let stats = device.stats()?;
    metric("rounds", rounds);
    metric("races", stats.retries);
    metric("exclusive_grants", stats.grants);
    metric("revocations", stats.revocations);
    Ok(Shown::Pass(format!(
        "{rounds} discards, {} of them during a grant, and no addition went astray",
        stats.retries
    )))
}

/// Rounds until enough discards have met a grant. Returns their number.
fn race(limit: Duration, device: &Device, queue: &mut RawQueue, area: &Area, turn: &Turn) -> Result<u32> {
    let start = Instant::now();
    let mut rounds = 0;
    loop {
        step(format!("round {rounds}"));
        let sweep = Instant::now();
        turn.start();
        add(queue, area)?;
        turn.wait(sweep.elapsed());
        check(queue, area).with_context(|| format!("round {rounds}"))?;
        rounds += 1;
        if rounds % 64 == 0 {
            let races = device.stats()?.retries;
            if rounds >= ROUNDS && races >= RACES {
                return Ok(rounds);
            }
            if start.elapsed() > limit {
                bail!("after {rounds} rounds only {races} of {RACES} discards met a grant");
            }
        }
    }
}

/// The process's pages, whichever they are now, get each addition once.
fn check(queue: &mut RawQueue, area: &Area) -> Result<()> {
    for page in 0..PAGES {
        area.store(page * PAGE, WidthLog2::W64, 0);
    }
    add(queue, area)?;
    for page in 0..PAGES {
        let found = area.load(page * PAGE, WidthLog2::W64);
        ensure!(found == 1, "page {page}: expected the device's 1, found {found}: it wrote to another page");
    }
    Ok(())
}

/// The device adds 1 to the first word of every page.
fn add(queue: &mut RawQueue, area: &Area) -> Result<()> {
    let found = queue.execute(&Sqe {
        opcode: Opcode::FETCH_ADD,
        width: WidthLog2::W64,
        flags: SqeFlags::BULK,
        addr: area.address(0),
        operand: 1,
        count: PAGES as u32,
        stride: PAGE as i32,
        ..Sqe::default()
    })?;
    ensure!(found.status.is_success(), "{found:?}");
    Ok(())
}

/// Discards the area once in every round, at some moment of the device's sweep.
fn discard(area: &Area, turn: &Turn, mut random: Random) -> Result<()> {
    while turn.wait_for_start() {
        let start = Instant::now();
        let delay = Duration::from_nanos(random.below(u64::from(turn.sweep_ns.load(Ordering::Relaxed))));
        while start.elapsed() < delay {
            std::hint::spin_loop();
        }
        let discarded = area.discard();
        turn.state.store(IDLE, Ordering::Release);
        discarded?;
    }
    Ok(())
}

const IDLE: u32 = 0;
const STARTED: u32 = 1;
const OVER: u32 = 2;

/// Whose turn it is: the scenario's thread stores STARTED and OVER, the other one IDLE.
struct Turn {
    state: AtomicU32,
    /// How long a sweep takes, to hit all of it. Written by the scenario's thread between rounds.
    sweep_ns: AtomicU32,
}

impl Default for Turn {
    fn default() -> Self {
        Turn { state: AtomicU32::new(IDLE), sweep_ns: AtomicU32::new(100_000) }
    }
}

impl Turn {
    fn start(&self) {
        self.state.store(STARTED, Ordering::Release);
    }

    /// Waits for the discard, and learns how long the sweep took.
    fn wait(&self, sweep: Duration) {
        while self.state.load(Ordering::Acquire) == STARTED {
            thread::yield_now();
        }
        let old = self.sweep_ns.load(Ordering::Relaxed);
        let new = u32::try_from(sweep.as_nanos()).unwrap_or(u32::MAX);
        self.sweep_ns.store((old / 8 * 7 + new / 8).max(1), Ordering::Relaxed);
    }

    fn end(&self) {
        self.state.store(OVER, Ordering::Release);
    }

    /// False if there is no further round.
    fn wait_for_start(&self) -> bool {
        loop {
            match self.state.load(Ordering::Acquire) {
                IDLE => thread::yield_now(),
                state => return state == STARTED,
            }
        }
    }
}
