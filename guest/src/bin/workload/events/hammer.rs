// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Work on a cell's pages while its event happens: bulk additions of the device, all the time, and a CPU
//! thread that adds to the same words. Both keep books, by page and memory.
#![expect(unsafe_code, reason = "submits entries that name a cell's memory")]

use super::scene::{AUXILIARY, Additions, Origin, Scene, increment, increment_if_mapped, load, map, word};
use crate::area::{PAGE, RawQueue};
use crate::scenario::patience;
use anyhow::{Context, Result, anyhow, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::status::Status;
use svmx::{Completion, Device, QueueSize};

/// Additions of a command, over all pages in turn.
const COUNT: usize = 48;
/// Commands on the queue, so that the device is never without one.
const DEPTH: usize = 2;
/// Rounds that show that somebody is at work.
const PROGRESS: u64 = 3;

/// A thread at work.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    /// Additions to each page in a round, at least.
    each: u64,
    thread: JoinHandle<Result<Record>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Rounds that are done.
    rounds: AtomicU64,
    /// The thread has ended.
    over: AtomicBool,
}

/// What a worker did.
#[derive(Debug)]
pub(crate) struct Record {
    /// By page.
    pub(crate) additions: Vec<Additions>,
    /// How its first command ended that was no success, and where.
    pub(crate) ended: Option<(Status, u64)>,
}

impl Worker {
    /// Lets the device add to every page. `alone`: nobody else does. `afresh`: memory that came fresh may be taken away again.
    pub(crate) fn device(device: &Device, scene: &Scene, alone: bool, afresh: bool) -> Result<Self> {
        let mut hammer = Hammer::new(device, scene, alone, afresh)?;
        let pages = scene.pages.len();
        Self::start(pages, (COUNT / pages) as u64, move |shared, record| hammer.run(shared, record))
    }

    /// Lets a CPU thread add to every page. `careful`: the memory may be taken away.
    pub(crate) fn cpu(scene: &Scene, careful: bool) -> Result<Self> {
        let words: Vec<u64> = scene.pages.iter().map(|page| page.addr + word::COUNTER).collect();
        Self::start(words.len(), u64::from(!careful), move |shared, record| {
            while !shared.stop.load(Relaxed) {
                for (addr, additions) in words.iter().zip(&mut record.additions) {
                    if careful {
                        additions[Origin::Own as usize] += u64::from(increment_if_mapped(*addr));
                        continue;
                    }
                    let old = increment(*addr);
                    let origin = Origin::of(old).with_context(|| format!("the CPU met {old:#x}"))?;
                    additions[origin as usize] += 1;
                }
                shared.rounds.fetch_add(1, Relaxed);
            }
            Ok(())
        })
    }

    fn start(
        pages: usize,
        each: u64,
        work: impl FnOnce(&Shared, &mut Record) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = thread::Builder::new().spawn(move || {
            let mut record = Record { additions: vec![[0; 3]; pages], ended: None };
            let result = work(&theirs, &mut record);
            theirs.over.store(true, Relaxed);
            result.map(|()| record)
        })?;
        Ok(Worker { shared, each, thread })
    }

    /// Waits until it has done some more, or has ended.
    pub(crate) fn progress(&self) -> Result<()> {
        let goal = self.shared.rounds.load(Relaxed) + PROGRESS;
        self.wait(|shared| shared.rounds.load(Relaxed) >= goal || shared.over.load(Relaxed))
            .context("a worker makes no progress")
    }

    /// Additions to each page that are done for sure.
    pub(crate) fn additions_at_least(&self) -> u64 {
        self.shared.rounds.load(Relaxed) * self.each
    }

    /// Waits until it has ended by itself.
    pub(crate) fn end(&self) -> Result<()> {
        self.wait(|shared| shared.over.load(Relaxed)).context("commands go on that should have ended")
    }

    fn wait(&self, condition: impl Fn(&Shared) -> bool) -> Result<()> {
        let start = Instant::now();
        while !condition(&self.shared) {
            ensure!(start.elapsed() < patience(), "not within {:?}", patience());
            thread::yield_now();
        }
        Ok(())
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Result<Record> {
        self.shared.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow!("a worker panicked"))?
    }
}

/// The device's side: a queue, and where its old values go.
struct Hammer {
    queue: RawQueue,
    /// The lowest page, by which elements are named.
    base: u64,
    pages: usize,
    /// Whether old values must follow one another without a gap.
    alone: bool,
    /// Whether they may begin anew in fresh memory.
    afresh: bool,
    /// The old value that comes next, by page and memory.
    next: Vec<Additions>,
}

impl Hammer {
    fn new(device: &Device, scene: &Scene, alone: bool, afresh: bool) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let bytes = (1 + DEPTH as u64) * PAGE;
        ensure!(NEXT.fetch_add(1, Relaxed) == 0, "a cell has one hammer");
        map(AUXILIARY, bytes)?;
        let base = scene.pages.iter().map(|page| page.addr).min().context("no pages")?;
        for i in 0..COUNT {
            let page = &scene.pages[i % scene.pages.len()];
            super::scene::store(AUXILIARY + 8 * i as u64, (page.addr + word::COUNTER - base) / 8);
        }
        // SAFETY: its entries name the cell's memory only, which is no Rust object.
        let queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
        let pages = scene.pages.len();
        Ok(Hammer { queue, base, pages, alone, afresh, next: vec![[0; 3]; pages] })
    }

    fn run(&mut self, shared: &Shared, record: &mut Record) -> Result<()> {
        let mut slots = (0..DEPTH).cycle();
        for slot in 0..DEPTH {
            self.submit(slot)?;
        }
        let mut in_flight = DEPTH;
        while in_flight > 0 {
            let found = self.queue.complete()?;
            in_flight -= 1;
            let slot = slots.next().unwrap_or(0);
            self.book(&found, slot, record)?;
            shared.rounds.fetch_add(1, Relaxed);
            if record.ended.is_none() && !shared.stop.load(Relaxed) {
                self.submit(slot)?;
                in_flight += 1;
            }
        }
        Ok(())
    }

    fn submit(&mut self, slot: usize) -> Result<()> {
        self.queue.submit(&Sqe {
            opcode: Opcode::FETCH_ADD,
            width: WidthLog2::W64,
            flags: SqeFlags::BULK.with(SqeFlags::INDEXED).with(SqeFlags::INDEX64).with(SqeFlags::STORE_OLD),
            addr: self.base,
            operand: 1,
            count: COUNT as u32,
            index_addr: AUXILIARY,
            arg0: old_values(slot),
            ..Sqe::default()
        })
    }

    /// Takes a completion into the books: each old value says which memory it was, and is the next one there.
    fn book(&mut self, found: &Completion, slot: usize, record: &mut Record) -> Result<()> {
        for i in 0..found.applied as usize {
            let old = load(old_values(slot) + 8 * i as u64);
            let origin = Origin::of(old).with_context(|| format!("the device met {old:#x}"))?;
            let page = i % self.pages;
            let next = &mut self.next[page][origin as usize];
            // The cell's own additions came before the first of these.
            let good = if self.alone { *next == 0 || old == *next } else { old >= *next };
            let anew = self.afresh && origin == Origin::Fresh && old == Origin::Fresh.first();
            ensure!(good || anew, "page {page}: the device expected {:#x}, found {old:#x}", *next);
            *next = old + 1;
            record.additions[page][origin as usize] += 1;
        }
        if !found.status.is_success() && record.ended.is_none() {
            record.ended = Some((found.status.0, found.fault_addr));
        }
        Ok(())
    }
}

fn old_values(slot: usize) -> u64 {
    AUXILIARY + (1 + slot as u64) * PAGE
}
