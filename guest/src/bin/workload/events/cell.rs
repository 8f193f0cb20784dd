// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A cell: brings the pages into a state, lets the event happen, and checks what CPU and device find
//! afterwards, and what became of the device's entries. Runs in a process of its own.
#![expect(unsafe_code, reason = "submits entries that name a cell's memory")]

use super::hammer::{Record, Worker};
use super::scene::{self, Origin, Scene, increment, load, word};
use super::table::{Fate, Memory, Name, State};
use crate::area::{PAGE, RawQueue, scalar};
use crate::random::Random;
use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::abi::status::Status;
use svmx::abi::uapi::Stats;
use svmx::{Completion, Device, QueueSize};

/// A cell in its process.
pub(crate) struct Cell {
    pub(crate) name: Name,
    pub(crate) device: Device,
    queue: RawQueue,
    pub(crate) scene: Scene,
    pub(crate) random: Random,
    hammer: Option<Worker>,
    cpu: Option<Worker>,
    /// The context's numbers before the event, and when it was over.
    before: Option<Box<Stats>>,
    after: Option<Box<Stats>>,
    /// What somebody else saw of the counters.
    seen: Vec<u64>,
    /// What is counted over all cells.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl Cell {
    /// Brings the pages into their state, lets the event happen, and checks everything. Returns what was counted.
    pub(crate) fn run(name: Name, seed: u64) -> Result<BTreeMap<&'static str, u64>> {
        let mut cell = Cell::prepare(name, seed).context("preparing the state")?;
        (name.event.run)(&mut cell).context("in the event")?;
        cell.done()?;
        cell.settle().context("after the event")?;
        cell.check_fate().context("what the device had")?;
        cell.check_memory(name.event.memory(name.state)).context("the memory afterwards")?;
        Ok(cell.counts)
    }

    fn prepare(name: Name, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        if !name.state.is_hammered() {
            stay_on_a_cpu()?;
        }
        let device = Device::open_nth(0)?;
        // SAFETY: its entries name the cell's memory only, which is no Rust object.
        let queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
        let scene = Scene::new(name.shape, &mut random)?;
        (name.event.before)(&scene)?;
        let mut cell = Cell {
            name,
            device,
            queue,
            scene,
            random,
            hammer: None,
            cpu: None,
            before: None,
            after: None,
            seen: Vec::new(),
            counts: BTreeMap::new(),
        };
        for page in 0..cell.scene.pages.len() {
            cell.give(page)?;
        }
        if name.state.is_hammered() {
            cell.start_workers()?;
        }
        cell.begin()?;
        Ok(cell)
    }

    /// What happens from now on is the event's.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.before = Some(self.device.stats()?);
        Ok(())
    }

    /// Lets the device have a page in the way of the state.
    fn give(&mut self, page: usize) -> Result<()> {
        let (addr, counter) = (self.scene.pages[page].addr, self.scene.pages[page].counter(Origin::Own));
        match self.name.state {
            State::Untouched => {}
            State::Readable => self.reads(addr + word::COUNTER, counter)?,
            State::Writable => {
                let value = self.random.next();
                self.writes(addr + word::DEVICE, value)?;
                self.scene.pages[page].device = value;
            }
            State::Held | State::Hammered | State::Contended => self.adds(page, addr, Origin::Own)?,
            State::Coherent => bail!("not there yet"),
        }
        Ok(())
    }

    /// Lets the device have all pages in the way of the state again; those that are at work do it anyhow.
    pub(crate) fn give_again(&mut self) -> Result<()> {
        match &self.hammer {
            Some(hammer) => hammer.progress(),
            None => (0..self.scene.pages.len()).try_for_each(|page| self.give(page)),
        }
    }

    /// What was counted, as it is told to whoever started the process.
    pub(crate) fn passed(counts: &BTreeMap<&'static str, u64>) -> String {
        let counts = counts.iter().map(|(name, count)| format!(" {name}={count}"));
        format!("passed{}", counts.collect::<String>())
    }

    fn start_workers(&mut self) -> Result<()> {
        let contended = self.name.state == State::Contended;
        // madvise_guard_install() takes what comes between its passes, too (MAX_MADVISE_GUARD_RETRIES).
        let afresh = matches!(self.name.event.memory(self.name.state), Memory::Guarded);
        let hammer = Worker::device(&self.device, &self.scene, !contended, afresh)?;
        hammer.progress()?;
        if contended {
            let careful = self.stops().is_some() || self.name.event.between.is_some();
            let cpu = Worker::cpu(&self.scene, careful)?;
            cpu.progress()?;
            self.cpu = Some(cpu);
        }
        hammer.progress()?;
        self.hammer = Some(hammer);
        Ok(())
    }

    /// How commands end that go on after the event, if they do.
    fn stops(&self) -> Option<Status> {
        self.name.event.memory(self.name.state).stops(self.name.shape)
    }

    /// The event is over: what an event's function does after this, such as looking at what it did, counts no more.
    pub(crate) fn done(&mut self) -> Result<()> {
        if self.after.is_some() {
            return Ok(());
        }
        self.after = Some(self.device.stats()?);
        let fate = self.name.event.fate(self.name.shape, self.name.state);
        if matches!(fate, Some(Fate::Stays | Fate::GivenUp)) && !self.name.state.is_hammered() {
            self.check_next_access(fate == Some(Fate::Stays))?;
        }
        Ok(())
    }

    /// One more of something that is counted over all cells.
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// What each page's counter has reached at least.
    pub(crate) fn least(&self) -> Vec<u64> {
        let workers = [&self.hammer, &self.cpu];
        let done: u64 = workers.into_iter().flatten().map(Worker::additions_at_least).sum();
        self.scene.pages.iter().map(|page| page.counter(Origin::Own) + done).collect()
    }

    /// Somebody saw each page's counter so, after it had reached `least`: exact if nobody was at work.
    pub(crate) fn was_at(&mut self, least: Vec<u64>, seen: Vec<u64>) -> Result<()> {
        let good = match self.name.state.is_hammered() {
            true => least.iter().zip(&seen).all(|(least, seen)| least <= seen),
            false => least == seen,
        };
        ensure!(good, "expected {least:x?}, found {seen:x?}");
        self.seen = seen;
        Ok(())
    }

    /// The device uses the pages once more: those that are at work do it anyhow.
    pub(crate) fn goes_on(&mut self) -> Result<()> {
        match &self.hammer {
            Some(hammer) => hammer.progress(),
            None => (0..self.scene.pages.len())
                .try_for_each(|page| self.holds(page, self.scene.pages[page].addr, Origin::Own)),
        }
    }

    /// Waits until the device is seen to go on, or to have been stopped; ends the workers and takes over their books.
    fn settle(&mut self) -> Result<()> {
        let Some(hammer) = self.hammer.take() else { return Ok(()) };
        let stops = self.stops();
        match stops {
            Some(_) => hammer.end()?,
            None => hammer.progress()?,
        }
        if let Some(cpu) = self.cpu.take() {
            cpu.progress()?;
            self.take_over(&cpu.stop().context("the CPU thread")?);
        }
        let record = hammer.stop().context("the device's commands")?;
        match (record.ended, stops) {
            (Some((status, addr)), Some(expected)) if status == expected => self.must_be_inside(addr)?,
            (Some((status, addr)), None) if Some(status) == self.name.event.between => {
                self.count("met_between");
                self.must_be_inside(addr)?;
            }
            (None, None) => {}
            (found, expected) => {
                let found = found.map(|(status, addr)| (status.name(), addr));
                bail!("expected the end {:?}, found {found:x?}", expected.map(|status| status.name()));
            }
        }
        self.take_over(&record);
        let pages = self.scene.pages.iter().zip(&self.seen);
        for (page, seen) in pages {
            let reached = page.counter(Origin::Own);
            ensure!(*seen <= reached, "somebody saw {seen:#x}, but {reached:#x} is all that was reached");
        }
        Ok(())
    }

    fn take_over(&mut self, record: &Record) {
        for (page, additions) in self.scene.pages.iter_mut().zip(&record.additions) {
            page.additions.iter_mut().zip(additions).for_each(|(sum, more)| *sum += more);
        }
    }

    fn must_be_inside(&self, addr: u64) -> Result<()> {
        let inside = self.scene.pages.iter().any(|page| (page.addr..page.addr + PAGE).contains(&addr));
        ensure!(inside, "a command ended at {addr:#x}, which is in none of the pages");
        Ok(())
    }

    /// What became of the device's entries, by the driver's own count.
    fn check_fate(&self) -> Result<()> {
        let (Some(before), Some(after)) = (&self.before, &self.after) else { bail!("nobody counted") };
        let revoked = after.revocations - before.revocations;
        let invalidated = after.invalidations - before.invalidations;
        let pages = self.scene.pages.len() as u64;
        let fate = self.name.event.fate(self.name.shape, self.name.state);
        let tail = self.scene.pages_in_tail();
        let good = match (self.name.state, fate) {
            // The CPU thread takes pages as well.
            (_, Some(Fate::Perhaps)) => true,
            (State::Contended, _) => after.revocations <= after.grants,
            // The device gets each page back, and a second part of the event may take it again.
            (State::Hammered, Some(Fate::Taken)) => revoked >= pages,
            (State::Hammered, Some(Fate::Tail)) => revoked >= tail,
            (State::Hammered, _) => revoked == 0,
            (State::Held, Some(Fate::Taken)) => revoked == pages,
            (State::Held, Some(Fate::Tail)) => revoked == tail,
            (State::Readable | State::Writable | State::Coherent, Some(Fate::Taken)) => {
                revoked == 0 && invalidated > 0
            }
            (State::Readable | State::Writable | State::Coherent, Some(Fate::Tail)) => {
                revoked == 0 && (invalidated > 0) == (tail > 0)
            }
            _ => revoked == 0 && invalidated == 0,
        };
        ensure!(
            good,
            "expected {fate:?} for {pages} pages, found {revoked} revocations and {invalidated} invalidations"
        );
        Ok(())
    }

    /// Further accesses of the same kind need no fault, or one, as the entries are there or not.
    fn check_next_access(&mut self, there: bool) -> Result<()> {
        let before = self.device.stats()?.faults;
        (0..self.scene.pages.len()).try_for_each(|page| self.give(page))?;
        let faults = self.device.stats()?.faults - before;
        ensure!(
            (faults == 0) == there,
            "expected entries: {there}, found {faults} faults at the next access"
        );
        Ok(())
    }

    fn check_memory(&mut self, memory: Memory) -> Result<()> {
        for page in 0..self.scene.pages.len() {
            self.check_page(page, memory).with_context(|| format!("page {page}"))?;
        }
        let (base, len, tail) = (self.scene.base, self.scene.len, self.scene.tail);
        match memory {
            Memory::Gone | Memory::Moved => {
                scene::map(base, len)?;
                self.check_fresh(base)
            }
            Memory::TailGone => {
                self.refuses(tail, Status::FAULT)?;
                scene::map(tail, base + len - tail)?;
                self.check_fresh(tail)
            }
            Memory::Guarded => {
                scene::advise(base, len, scene::MADV_GUARD_REMOVE)?;
                self.check_fresh(base)
            }
            Memory::ReadOnly | Memory::NoAccess => {
                scene::protect(base, len, libc::PROT_READ | libc::PROT_WRITE)?;
                self.check_memory(Memory::Kept).context("accessible again")
            }
            _ => Ok(()),
        }
    }

    fn check_page(&mut self, page: usize, memory: Memory) -> Result<()> {
        let addr = self.scene.pages[page].addr;
        match memory {
            Memory::Kept => self.holds(page, addr, Origin::Own),
            Memory::TailGone if addr < self.scene.tail => self.holds(page, addr, Origin::Own),
            Memory::Zeroed => self.holds(page, addr, Origin::Fresh),
            Memory::Replaced => self.holds(page, addr, Origin::Other),
            Memory::Moved => {
                self.is_gone(addr)?;
                self.holds(page, addr + scene::DISTANCE, Origin::Own)
            }
            Memory::MovedLeavingZeros => {
                self.holds(page, addr, Origin::Fresh).context("the old address")?;
                self.holds(page, addr + scene::DISTANCE, Origin::Own)
            }
            Memory::Gone | Memory::TailGone => self.is_gone(addr),
            Memory::ReadOnly => {
                let expected = self.scene.pages[page].counter(Origin::Own);
                self.reads(addr + word::COUNTER, expected)?;
                self.denies(Opcode::WRITE, addr, Status::PERMISSION)?;
                self.denies(Opcode::FETCH_ADD, addr, Status::PERMISSION)?;
                let found = load(addr + word::COUNTER);
                ensure!(found == expected, "the CPU expected {expected:#x}, found {found:#x}");
                Ok(())
            }
            Memory::NoAccess => self.refuses(addr, Status::PERMISSION),
            Memory::Guarded => self.refuses(addr, Status::FAULT),
            Memory::Ended { .. } => bail!("the process should have ended"),
        }
    }

    fn is_gone(&mut self, addr: u64) -> Result<()> {
        ensure!(!scene::is_mapped(addr), "it is still there");
        self.refuses(addr, Status::FAULT)
    }

    /// What comes next to the addresses from `from` on, perhaps of the very pages that were freed, has its own content.
    fn check_fresh(&mut self, from: u64) -> Result<()> {
        for page in 0..self.scene.pages.len() {
            let addr = self.scene.pages[page].addr;
            if addr >= from {
                self.scene.pages[page].additions[Origin::Fresh as usize] = 0;
                self.holds(page, addr, Origin::Fresh).with_context(|| format!("page {page} afterwards"))?;
            }
        }
        Ok(())
    }

    /// The page at `addr` is that page of that memory, to device and CPU, with every addition; and both can
    /// go on. The device comes first: what it finds by an entry that should be gone would not be found by
    /// the CPU.
    pub(crate) fn holds(&mut self, page: usize, addr: u64, origin: Origin) -> Result<()> {
        let counter = addr + word::COUNTER;
        self.reads(counter, self.scene.pages[page].counter(origin))?;
        self.adds(page, addr, origin)?;
        let expected = self.scene.pages[page].counter(origin);
        let found = load(counter);
        ensure!(found == expected, "the CPU expected {expected:#x}, found {found:#x}");
        let found = load(addr + word::PATTERN);
        let expected = self.scene.pages[page].pattern(origin);
        ensure!(found == expected, "the CPU expected the pattern {expected:#x}, found {found:#x}");
        let found = load(addr + word::DEVICE);
        let expected = if origin == Origin::Own { self.scene.pages[page].device } else { 0 };
        ensure!(found == expected, "the CPU expected the device's {expected:#x}, found {found:#x}");
        let (found, expected) = (increment(counter), self.scene.pages[page].counter(origin));
        ensure!(found == expected, "the CPU's addition expected {expected:#x}, found {found:#x}");
        self.scene.pages[page].additions[origin as usize] += 1;
        self.adds(page, addr, origin)?;
        let value = self.random.next();
        let old = load(addr + word::OTHER);
        self.writes(addr + word::OTHER, value)?;
        let found = load(addr + word::OTHER);
        ensure!(found == value, "the CPU expected the device's {value:#x}, found {found:#x}");
        self.writes(addr + word::OTHER, old)
    }

    /// READ, WRITE and FETCH_ADD at `addr` end so, and do nothing.
    pub(crate) fn refuses(&mut self, addr: u64, expected: Status) -> Result<()> {
        [Opcode::READ, Opcode::WRITE, Opcode::FETCH_ADD]
            .into_iter()
            .try_for_each(|opcode| self.denies(opcode, addr, expected))
    }

    fn denies(&mut self, opcode: Opcode, addr: u64, expected: Status) -> Result<()> {
        let found = self.command(opcode, addr, 0)?;
        let good = found.status.0 == expected && found.applied == 0 && found.fault_addr == addr;
        ensure!(good, "expected {:?} for {opcode:?} at {addr:#x}, found {found:x?}", expected.name());
        Ok(())
    }

    /// The device reads `expected`.
    pub(crate) fn reads(&mut self, addr: u64, expected: u64) -> Result<()> {
        let found = self.command(Opcode::READ, addr, 0)?;
        let good = found.status.is_success() && found.result == expected.into();
        ensure!(good, "the device's READ expected {expected:#x}, found {found:x?}");
        Ok(())
    }

    /// The device writes.
    pub(crate) fn writes(&mut self, addr: u64, value: u64) -> Result<()> {
        let found = self.command(Opcode::WRITE, addr, value)?;
        ensure!(found.status.is_success(), "the device's WRITE found {found:x?}");
        Ok(())
    }

    /// The device adds 1 to the page at `addr`, which is that page of that memory.
    pub(crate) fn adds(&mut self, page: usize, addr: u64, origin: Origin) -> Result<()> {
        let expected = self.scene.pages[page].counter(origin);
        let found = self.command(Opcode::FETCH_ADD, addr + word::COUNTER, 1)?;
        let good = found.status.is_success() && found.result == expected.into() && found.applied == 1;
        ensure!(good, "the device's FETCH_ADD expected {expected:#x}, found {found:x?}");
        self.scene.pages[page].additions[origin as usize] += 1;
        Ok(())
    }

    /// A scalar command on 64 bits.
    pub(crate) fn command(&mut self, opcode: Opcode, addr: u64, operand: u64) -> Result<Completion> {
        self.queue.execute(&scalar(opcode, WidthLog2::W64, addr, operand))
    }
}

/// Keeps to one CPU: what the kernel collects by CPU, such as pages that are new on its lists, is then seen by
/// the next system call.
fn stay_on_a_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("sched_setaffinity")
}
