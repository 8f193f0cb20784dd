// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a program's steps do: to the device, and for the pages that are taken from it, to memory as a CPU
//! that has a page back.

use std::sync::atomic::Ordering;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use mock_driver::Mock;
use svmx_abi::control::{Sync, TlbInvalidate};
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::Sqe;
use svmx_abi::regs::{self, Control};
use svmx_abi::status::Status;

use crate::ledger::has_room;
use crate::program::{Answer, Program, Reset, Scope, Step, Window};
use crate::reference::Backing;
use crate::world::{HUGE_SIZE, POISON, Submitted, World, is_removable, options};

/// Runs a program from beginning to end on a device of its own.
pub(crate) fn run(program: &Program, calm: bool, patience: Duration) -> Result<()> {
    let mock = Mock::with(options(&program.layout), program.layout.fault_log2);
    mock.look_ahead(program.layout.lookahead);
    let mut world = World::new(&mock, &program.layout, patience);
    for step in &program.steps {
        world.now += 1;
        world.take(step)?;
        if calm {
            world.settle()?;
            world.check_memory()?;
        }
        world.take_completions()?;
    }
    world.now += 1;
    world.settle()?;
    world.check_memory()?;
    world.check_retired()?;
    for at in 0..world.queues.len() {
        world.queues[at].user.destroy();
    }
    Ok(())
}

impl World<'_> {
    fn take(&mut self, step: &Step) -> Result<()> {
        let of = |queue: usize, world: &Self| queue % world.queues.len();
        match *step {
            Step::Submit { queue, sqe } => self.submit(of(queue, self), sqe),
            Step::Answer(how) => self.answer_next(how),
            Step::Grant { queue, page } => {
                let (at, va) = self.choose(queue, page);
                self.grant(at, va);
                Ok(())
            }
            Step::Revoke { queue, page } => {
                let (at, va) = self.choose_granted(queue, page);
                self.revoke(at, va)
            }
            Step::Restrict { queue, page } => {
                let (at, va) = self.choose_granted(queue, page);
                self.restrict(at, va)
            }
            Step::Invalidate { queue, page, scope } => {
                let (at, va) = self.choose(queue, page);
                self.invalidate_for_nothing(at, va, scope);
                Ok(())
            }
            Step::UnmapMemory => self.unmap_memory(),
            Step::BusMasterOff => self.bus_master_off(),
            Step::CpuAdd(value) => {
                self.cpu_add(value);
                Ok(())
            }
            Step::Pause(turns) => {
                (0..turns).for_each(|_| yield_now());
                Ok(())
            }
            Step::Settle => {
                self.settle().and_then(|()| self.check_memory()).and_then(|()| self.check_retired())
            }
            Step::Destroy { queue } => {
                let at = of(queue, self);
                self.destroy(at)
            }
            Step::Reset(how) => self.reset(how),
        }
    }

    /// A page that the device may be using.
    fn choose_granted(&self, queue: usize, page: usize) -> (usize, u64) {
        let at = queue % self.queues.len();
        let granted = &self.queues[at].granted;
        match granted.keys().nth(page % granted.len().max(1)) {
            Some(&va) => (at, va),
            None => self.choose(queue, page),
        }
    }

    fn choose(&self, queue: usize, page: usize) -> (usize, u64) {
        let at = queue % self.queues.len();
        let pages = &self.queues[at].pages;
        (at, pages[page % pages.len()])
    }

    fn submit(&mut self, at: usize, sqe: Sqe) -> Result<()> {
        self.until("room for a command", |world| Ok(has_room(world.queues[at].pending.len())))?;
        self.tags += 1;
        let sqe = Sqe { tag: self.tags, ..sqe };
        self.queues[at].pending.push_back(Submitted { sqe, at: self.now, faulted: false });
        self.queues[at].user.submit(sqe);
        Ok(())
    }

    fn answer_next(&mut self, how: Answer) -> Result<()> {
        for _ in 0..20 {
            if let Some(record) = self.take_fault()? {
                return self.answer(record, how);
            }
            yield_now();
        }
        match self.waiting.pop() {
            Some(record) => self.answer(record, how),
            None => Ok(()),
        }
    }

    /// Everything is answered and completed.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.until("all completions", |world| Ok(world.queues.iter().all(|queue| queue.pending.is_empty())))
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        loop {
            self.take_completions()?;
            if done(self)? {
                return Ok(());
            }
            while let Some(record) = self.waiting.pop() {
                self.answer(record, Answer::Replay)?;
            }
            while let Some(record) = self.take_fault()? {
                self.answer(record, Answer::Replay)?;
            }
            for at in 0..self.queues.len() {
                let addr = self.queues[at].pending.front().map_or(0, |command| command.sqe.addr);
                if self.is_stuck(at) && self.is_mapped(at, addr) {
                    self.withdraw(at, addr);
                }
            }
            let waits = self.queues.iter().filter_map(|queue| queue.pending.front()).collect::<Vec<_>>();
            ensure!(start.elapsed() < self.patience, "hang: waiting for {what}; {waits:x?}");
            yield_now();
        }
    }

    fn sync(&self) -> Result<()> {
        let status = self.mock.control(Sync::default());
        ensure!(status == Status::SUCCESS, "SYNC ended with {status:?}");
        Ok(())
    }

    /// Takes a page, and all others of the same frame, as a notifier does; uses it as a CPU does, alone. If it
    /// can it moves the page, so that whoever goes on with the old one is found out.
    fn revoke(&mut self, at: usize, va: u64) -> Result<()> {
        let page = self.queues[at].memory.page(va);
        for queue in 0..self.queues.len() {
            for page in self.queues[queue].memory.pages_of(page.frame).collect::<Vec<_>>() {
                if matches!(self.queues[queue].memory.page(page).backing, Backing::Ram | Backing::ReadOnly) {
                    self.withdraw(queue, page);
                }
            }
        }
        self.sync()?;
        if let Some(shared) = self.shared.iter_mut().position(|shared| shared.frame == page.frame) {
            for at in 0..PAGE_SIZE / 8 {
                let word = self.frame(page.frame).word64(8 * at);
                word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            self.shared[shared].cpu.iter_mut().for_each(|cpu| *cpu += 1);
        }
        if page.backing == Backing::Ram && !Window::Huge.contains(va) && !is_removable(page.frame) {
            self.migrate(page.frame);
            return Ok(());
        }
        self.scribble(&[page.frame])
    }

    fn migrate(&mut self, from: u64) {
        let to = self.mock.pages(1);
        self.put(to, &self.get(from));
        self.put(from, &[POISON; PAGE_SIZE as usize]);
        self.retired.push(from);
        self.queues.iter_mut().for_each(|queue| queue.memory.migrate(from, to));
        self.shared.iter_mut().filter(|shared| shared.frame == from).for_each(|shared| shared.frame = to);
    }

    /// Nobody has written to pages that were taken.
    fn check_retired(&self) -> Result<()> {
        for &frame in &self.retired {
            let found = self.get(frame).iter().position(|byte| *byte != POISON);
            ensure!(
                found.is_none(),
                "the device wrote to {frame:#x}, which was taken from it, at {found:x?}"
            );
        }
        Ok(())
    }

    /// Frames that nobody else may reach: whatever is written there stays.
    fn scribble(&self, frames: &[u64]) -> Result<()> {
        let before: Vec<_> = frames.iter().map(|&frame| self.get(frame)).collect();
        let rubbish: Vec<Vec<u8>> =
            before.iter().map(|bytes| bytes.iter().map(|byte| byte ^ 0xa5).collect()).collect();
        frames.iter().zip(&rubbish).for_each(|(&frame, bytes)| self.put(frame, bytes));
        (0..5).for_each(|_| yield_now());
        for (&frame, bytes) in frames.iter().zip(&rubbish) {
            ensure!(self.get(frame) == *bytes, "the device wrote to {frame:#x}, which was taken from it");
        }
        frames.iter().zip(&before).for_each(|(&frame, bytes)| self.put(frame, bytes));
        Ok(())
    }

    /// Only reading is left: the frame does not change any more.
    fn restrict(&mut self, at: usize, va: u64) -> Result<()> {
        let page = self.queues[at].memory.page(va);
        let mine = self.queues[at].memory.pages_of(page.frame).count() == 1;
        if page.backing != Backing::Ram || !page.access.read || Window::Huge.contains(va) || !mine {
            return Ok(());
        }
        self.change(at, va, Pte::leaf(page.frame, Access::READ));
        self.sync()?;
        if self.shared.iter().any(|shared| shared.frame == page.frame) {
            return Ok(());
        }
        let before = self.get(page.frame);
        (0..5).for_each(|_| yield_now());
        ensure!(self.get(page.frame) == before, "the device wrote to {va:#x}, which it may only read");
        Ok(())
    }

    fn invalidate_for_nothing(&self, at: usize, va: u64, scope: Scope) {
        let of_queue = self.queues[at].space.asid;
        let (asid, va, len) = match scope {
            Scope::Page => (of_queue, va, PAGE_SIZE),
            Scope::Window => (of_queue, va & !(HUGE_SIZE - 1), HUGE_SIZE),
            Scope::Space => (of_queue, 0, u64::MAX),
            Scope::Everything => (0, 0, u64::MAX),
        };
        self.mock.post(TlbInvalidate { asid, va, len, ..Default::default() });
    }

    /// The host takes memory away, uses it, and gives it back.
    fn unmap_memory(&mut self) -> Result<()> {
        self.removed_at.push(self.now);
        self.map_removable(false);
        let mut frames: Vec<u64> = vec![];
        for queue in &self.queues {
            let pages = queue.pages.iter().map(|&va| queue.memory.page(va).frame);
            frames.extend(pages.filter(|&frame| is_removable(frame)));
        }
        frames.sort_unstable();
        frames.dedup();
        let checked = self.scribble(&frames);
        self.map_removable(true);
        checked
    }

    /// While the device is no bus master it writes nothing.
    fn bus_master_off(&mut self) -> Result<()> {
        self.mock.bus_master(false);
        let everything = |world: &Self| -> Vec<Vec<u8>> {
            let frames = world
                .queues
                .iter()
                .flat_map(|queue| queue.pages.iter().map(|&va| queue.memory.page(va).frame));
            frames.map(|frame| world.get(frame)).collect()
        };
        let before = everything(self);
        (0..5).for_each(|_| yield_now());
        let after = everything(self);
        self.mock.bus_master(true);
        ensure!(before == after, "the device wrote without bus mastering");
        Ok(())
    }

    /// Adds to the coherent page while the device may do so.
    fn cpu_add(&mut self, value: u64) {
        for at in 0..PAGE_SIZE / 8 {
            self.frame(self.shared[1].frame).word64(8 * at).fetch_add(value, Ordering::Relaxed);
        }
        self.shared[1].cpu.iter_mut().for_each(|cpu| *cpu += value);
    }

    fn destroy(&mut self, at: usize) -> Result<()> {
        self.queues[at].user.destroy();
        // Nothing comes after these records that belongs to the old queue.
        let mut others = vec![];
        while let Some(record) = self.take_fault()? {
            others.push(record);
        }
        self.waiting.extend(others);
        self.bury(at)?;
        let space = self.queues[at].space;
        self.queues[at].user.create(space);
        Ok(())
    }

    fn reset(&mut self, how: Reset) -> Result<()> {
        let mock = self.mock;
        match how {
            Reset::Conventional => mock.device.lock().reset(),
            Reset::Register => mock.write(regs::CONTROL, Control::RESET.0.into(), 4),
            Reset::Disable => mock.write(regs::CONTROL, 0, 4),
        }
        if mock.read(regs::STATUS, 4) != 0 {
            bail!("STATUS after a reset");
        }
        for at in 0..self.queues.len() {
            self.bury(at)?;
            (self.queues[at].last_fault, self.queues[at].ahead) = (None, 0);
            self.queues[at].fault_ids.clear();
        }
        mock.start();
        self.set_up_again();
        Ok(())
    }
}
