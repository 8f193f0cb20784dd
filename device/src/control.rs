// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control thread: executes the control queue in order (spec 8), reports faults that waited for room,
//! and stops the device on a fatal error.
//!
//! It is a user of invalidations like an engine, because it reads the control ring and, on a REPLAY,
//! does one access itself; and it publishes them. It waits for engines; no engine waits for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use parking_lot::MutexGuard;
use svmx_abi::control::{self, CompletionWord, ControlEntry, ControlOpcode};
use svmx_abi::pci::{
    MAX_CONTEXTS, MAX_RING_LOG2, MIN_RING_LOG2, NUM_VECTORS, PAGE_SIZE, VA_END, VECTOR_COMPLETION_FIRST,
    VECTOR_EVENT, page_offset,
};
use svmx_abi::pte::Pte;
use svmx_abi::regs::{Counter, FatalError};
use svmx_abi::ring;
use svmx_abi::status::Status;

use crate::complain::complain;
use crate::execute::{Watch, needs_hold};
use crate::faults::Reported;
use crate::instrument::Instrument;
use crate::invalidate::{Change, Record, User};
use crate::memory::{GuestMemory, Page};
use crate::mmu;
use crate::model::{Context, Model};
use crate::ownership::{Claimant, Hold};
use crate::queue::{Queue, Rings, State};
use crate::work::Access;

/// The control thread.
#[derive(Debug)]
pub struct Controller<I> {
    model: Arc<Model>,
    number: usize,
    user: User<GuestMemory>,
    memory: Arc<GuestMemory>,
    claimant: Claimant,
    instrument: I,
    /// The instrument forbids to go on.
    silent: bool,
}

/// What a look at the driver's page came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Worked,
    Nothing,
}

impl<I: Instrument> Controller<I> {
    /// The device's only one.
    pub fn new(model: Arc<Model>, instrument: I) -> Self {
        let number = model.control_thread();
        let user = User::new(model.invalidations.clone(), number);
        let memory = model.invalidations.snapshot();
        Controller { model, number, user, memory, claimant: Claimant::new(number), instrument, silent: false }
    }

    /// Runs until the device ends.
    pub fn run(mut self) {
        let model = self.model.clone();
        while !model.exiting() {
            model.take_nudge();
            let memory = &mut self.memory;
            self.user.enter(|change| replace(memory, change));
            if model.running() && !self.silent {
                self.poll();
            }
            self.user.leave();
            model.controller.sleep(|_| !model.is_nudged() && !model.exiting());
        }
    }

    /// Polls the driver's page until it has been quiet for a while, or the device stops.
    fn poll(&mut self) {
        let model = self.model.clone();
        let page = model.doorbells.driver();
        page.need_kick.store(0);
        let mut quiet_since: Option<Instant> = None;
        while self.may_go_on() {
            match self.step() {
                Err(fatal) => return self.stop(fatal),
                Ok(Step::Worked) => quiet_since = None,
                Ok(Step::Nothing) => {
                    let now = Instant::now();
                    if now - *quiet_since.get_or_insert(now) < model.options.poll {
                        // One look in a while is enough: there are engines and guest CPUs to run.
                        thread::yield_now();
                        continue;
                    }
                    match self.rest() {
                        Err(fatal) => return self.stop(fatal),
                        Ok(Step::Nothing) => return,
                        Ok(Step::Worked) => quiet_since = None,
                    }
                }
            }
        }
    }

    /// Nothing is to be done: stops polling, unless a last look finds something (spec 4.3).
    fn rest(&mut self) -> Result<Step, FatalError> {
        let model = self.model.clone();
        let page = model.doorbells.driver();
        page.need_kick.raise();
        let step = self.step()?;
        if step == Step::Worked {
            page.need_kick.store(0);
        }
        Ok(step)
    }

    fn may_go_on(&mut self) -> bool {
        if self.user.behind() {
            let memory = &mut self.memory;
            self.user.catch_up(|change| replace(memory, change));
        }
        self.model.running() && !self.silent
    }

    /// Executes one control entry, and reports faults that waited.
    fn step(&mut self) -> Result<Step, FatalError> {
        let reported = self.report_waiting()?;
        let Some(entry) = self.next_entry()? else { return Ok(reported) };
        if !self.instrument.control(&entry) {
            self.silent = true;
            return Ok(Step::Worked);
        }
        let status = self.execute(&entry);
        if entry.flags.notify() {
            let word = self.memory.word64(entry.notify_addr, true).ok_or(FatalError::BadNotifyAddress)?;
            // spec 8.1: behind everything that the command did.
            word.store(CompletionWord::new(entry.notify_value, status).0, Ordering::Release);
        }
        if entry.flags.interrupt() {
            self.model.interrupt(self.number, VECTOR_EVENT);
        }
        Ok(Step::Worked)
    }

    /// Copies the next entry, once.
    fn next_entry(&self) -> Result<Option<ControlEntry>, FatalError> {
        let page = self.model.doorbells.driver();
        let mut control = self.model.control_ring.lock();
        match ring::pending(control.head, page.ctl_tail.load(), control.log2) {
            None => return Err(FatalError::BadControlTail),
            Some(0) => return Ok(None),
            Some(_) => {}
        }
        let slot = control.base + 64 * u64::from(ring::slot(control.head, control.log2));
        let words: [u64; 8] = self.memory.copy(slot).ok_or(FatalError::RingLost)?;
        control.head = control.head.wrapping_add(1);
        page.ctl_head.store(control.head);
        Ok(Some(zerocopy::transmute!(words)))
    }

    /// Reports faults that found the fault queue full, oldest first.
    fn report_waiting(&self) -> Result<Step, FatalError> {
        let mut step = Step::Nothing;
        while let Some(number) = self.model.faults.next_waiting() {
            let Some(queue) = self.model.queues.get(number) else { continue };
            let mut guard = take(queue);
            let Some(state) = guard.as_mut() else { continue };
            if state.stall.is_none_or(|stall| stall.reported) {
                continue;
            }
            match self.model.report(self.number, &self.memory, state) {
                Reported::Written { .. } => step = Step::Worked,
                Reported::Full => {
                    self.model.faults.put_back(number);
                    return Ok(step);
                }
                Reported::BadHead => return Err(FatalError::BadFaultHead),
                Reported::Lost => return Err(FatalError::RingLost),
            }
        }
        Ok(step)
    }

    /// spec 3.3.
    fn stop(&mut self, fatal: FatalError) {
        complain!("the driver broke a rule: {fatal:?}; stopped until reset");
        self.model.change(Some(self.number), |conditions| conditions.fatal = fatal);
        // Whoever resets the device or takes bus mastering away waits until this thread is offline.
        self.model.interrupt(self.number, VECTOR_EVENT);
    }

    fn execute(&mut self, entry: &ControlEntry) -> Status {
        let body = entry.body;
        let done = match entry.opcode {
            ControlOpcode::CREATE_CONTEXT => self.create_context(body.into()),
            ControlOpcode::DESTROY_CONTEXT => self.destroy_context(body.into()),
            ControlOpcode::CREATE_QUEUE => self.create_queue(body.into()),
            ControlOpcode::DESTROY_QUEUE => self.destroy_queue(body.into()),
            ControlOpcode::REPLAY => self.replay(body.into()),
            ControlOpcode::CANCEL => self.cancel(body.into()),
            ControlOpcode::TLB_INVALIDATE => self.invalidate(body.into()),
            ControlOpcode::SYNC => self.sync(),
            _ => Err(Status::BAD_ID),
        };
        match done {
            Ok(()) => Status::SUCCESS,
            Err(status) => {
                complain!("control entry {:#x} refused: {:?}", entry.opcode.0, status.name());
                status
            }
        }
    }

    fn create_context(&self, body: control::CreateContext) -> Result<(), Status> {
        let mut contexts = self.model.contexts.lock();
        let place = contexts.place(body.asid).ok_or(Status::BAD_ID)?;
        if place.is_some() {
            return Err(Status::BAD_ID);
        }
        self.check_range(body.root, PAGE_SIZE, false)?;
        *place = Some(Context { root: body.root, queues: 0 });
        Ok(())
    }

    fn destroy_context(&mut self, body: control::DestroyContext) -> Result<(), Status> {
        let mut contexts = self.model.contexts.lock();
        let place = contexts.place(body.asid).ok_or(Status::BAD_ID)?;
        if place.is_none_or(|context| context.queues > 0) {
            return Err(Status::BAD_ID);
        }
        *place = None;
        drop(contexts);
        self.publish(Record::Range { asid: body.asid, va: 0, len: u64::MAX });
        Ok(())
    }

    fn create_queue(&self, body: control::CreateQueue) -> Result<(), Status> {
        let queue = self.model.queues.get(body.queue).ok_or(Status::BAD_ID)?;
        let mut contexts = self.model.contexts.lock();
        let context = contexts.get(body.asid).ok_or(Status::BAD_ID)?;
        let mut state = queue.state.lock();
        if state.is_some() {
            return Err(Status::BAD_ID);
        }
        let sizes = MIN_RING_LOG2..=MAX_RING_LOG2;
        let vectors = VECTOR_COMPLETION_FIRST..NUM_VECTORS;
        if !sizes.contains(&body.sq_log2) || !sizes.contains(&body.cq_log2) || !vectors.contains(&body.vector)
        {
            return Err(Status::BAD_RING);
        }
        self.check_range(body.sq_base, 64 * u64::from(ring::entries(body.sq_log2)), false)?;
        self.check_range(body.cq_base, 32 * u64::from(ring::entries(body.cq_log2)), true)?;
        self.model.doorbells.clear_page(body.queue);
        self.model.doorbells.queue(body.queue).need_kick.raise();
        context.queues += 1;
        *state = Some(State::new(Rings {
            queue: body.queue,
            asid: body.asid,
            root: context.root,
            sq_base: body.sq_base,
            sq_log2: body.sq_log2,
            cq_base: body.cq_base,
            cq_log2: body.cq_log2,
            vector: body.vector,
        }));
        Ok(())
    }

    fn destroy_queue(&mut self, body: control::DestroyQueue) -> Result<(), Status> {
        let queue = self.model.queues.get(body.queue).ok_or(Status::BAD_ID)?;
        // An engine that works on it lets go at its next element.
        queue.want(true);
        self.model.invalidations.publish(Record::Attention);
        let mut state = queue.state.lock();
        queue.want(false);
        let rings = state.as_ref().ok_or(Status::BAD_ID)?.rings;
        queue.forget(&mut state);
        self.instrument.destroyed(&rings);
        self.model.queues.deactivate(body.queue);
        drop(state);
        if let Some(context) = self.model.contexts.lock().get(rings.asid) {
            context.queues -= 1;
        }
        Ok(())
    }

    /// spec 8.4: the access that faulted is done here and now, with the translation that the entry names.
    fn replay(&mut self, body: control::Replay) -> Result<(), Status> {
        self.unstall(body.queue, body.fault_id, Counter::Replays, |controller, state, access| {
            let Controller { model, memory, claimant, instrument, number, .. } = controller;
            let asid = state.rings.asid;
            let page = body.translation().and_then(|pte| translation(memory, pte, access));
            if let (Some(page), Some((work, _))) = (page, state.work.as_mut()) {
                instrument.translated(asid, access.va, PAGE_SIZE, page);
                let before = work.applied;
                let hold = needs_hold::<I>(access, page).then(|| visit(claimant, model, page.frame()));
                model.execute.perform(&mut Watch { asid, instrument }, work, access, page);
                drop(hold);
                // At once, so that engines need not wait for a thread that waits for them.
                model.ownership.release(*number, page.frame());
                model.counters.add(*number, Counter::Elements, u64::from(work.applied - before));
            }
        });
        Ok(())
    }

    fn cancel(&mut self, body: control::Cancel) -> Result<(), Status> {
        if !body.status.may_cancel() {
            return Err(Status::BAD_RING);
        }
        self.unstall(body.queue, body.fault_id, Counter::Cancels, |_, state, access| {
            if let Some((work, _)) = state.work.as_mut() {
                work.end(body.status, access.va);
            }
        });
        Ok(())
    }

    /// Lets a stalled queue go on, after `how`. A fault that is not outstanding is none of our business.
    fn unstall(
        &mut self,
        number: u32,
        fault_id: u32,
        counter: Counter,
        how: impl FnOnce(&mut Self, &mut State, &Access),
    ) {
        let model = self.model.clone();
        let Some(queue) = model.queues.get(number).filter(|queue| queue.stalled_by(fault_id)) else {
            return;
        };
        let mut guard = take(queue);
        let Some(state) = guard.as_mut() else { return };
        let Some(access) = queue.unstall(state, fault_id) else { return };
        how(self, state, &access);
        model.counters.add(self.number, counter, 1);
        state.quiet_since = None;
        self.instrument.resumed(number, fault_id, counter == Counter::Replays);
        drop(guard);
        model.activate(number);
    }

    fn invalidate(&mut self, body: control::TlbInvalidate) -> Result<(), Status> {
        let control::TlbInvalidate { asid, va, len, .. } = body;
        if asid > MAX_CONTEXTS || (asid != 0 && self.model.contexts.lock().get(asid).is_none()) {
            return Err(Status::BAD_ID);
        }
        let whole_pages = page_offset(va) == 0 && (len == u64::MAX || page_offset(len) == 0);
        let in_range = va < VA_END && (len == u64::MAX || len <= VA_END - va);
        if !whole_pages || !in_range {
            return Err(Status::BAD_RING);
        }
        self.publish(Record::Range { asid, va, len });
        self.model.counters.add(self.number, Counter::Invalidations, 1);
        Ok(())
    }

    fn publish(&mut self, record: Record) {
        self.instrument.invalidating(record);
        self.model.invalidations.publish(record);
    }

    /// spec 8.3.
    fn sync(&mut self) -> Result<(), Status> {
        let invalidations = &self.model.invalidations;
        invalidations.wait(invalidations.latest(), Some(self.number));
        self.instrument.synced(&self.memory);
        self.model.counters.add(self.number, Counter::Syncs, 1);
        Ok(())
    }

    /// Page-aligned and in guest memory.
    fn check_range(&self, base: u64, size: u64, write: bool) -> Result<(), Status> {
        let good = page_offset(base) == 0 && self.memory.contains(base, size, write);
        if good { Ok(()) } else { Err(Status::BAD_RING) }
    }
}

/// The state of a queue that is stalled, or was a moment ago. An engine that has it may be looking ahead for it,
/// and lets go at the next page.
fn take(queue: &Queue) -> MutexGuard<'_, Option<State>> {
    queue.want(true);
    let guard = queue.state.lock();
    queue.want(false);
    guard
}

/// Waits until a frame can be used for one access: an engine that owns it goes on to its next element first.
fn visit<'m>(claimant: &mut Claimant, model: &'m Model, frame: u64) -> Hold<'m> {
    loop {
        match claimant.hold(&model.ownership, &model.invalidations, frame) {
            Some(hold) => return hold,
            None => thread::yield_now(),
        }
    }
}

/// The page that a replayed entry leads to, if it suffices.
fn translation<'m>(memory: &'m GuestMemory, pte: Pte, access: &Access) -> Option<Page<'m>> {
    let suffices = pte.valid() && pte.well_formed(0) && mmu::allows(pte.access(), access.kind);
    let page = memory.page(pte.address(), access.writes()).filter(|_| suffices)?;
    Some(page.with_access(pte.access()))
}

/// The control thread has no translations, only the snapshot.
fn replace(memory: &mut Arc<GuestMemory>, change: Change<GuestMemory>) {
    if let Change::Snapshot(snapshot) = change {
        *memory = snapshot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instrument::Plain;
    use crate::memory::DmaMap;
    use crate::model::{ControlRing, Options};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::unix::fs::FileExt;
    use std::time::Duration;
    use svmx_abi::doorbell::driver;

    #[test]
    fn a_tail_stored_before_need_kick_is_not_missed() {
        let options = Options { engines: 1, poll: Duration::ZERO, ..Default::default() };
        let model = Arc::new(Model::new(options).unwrap());
        let file = std::fs::File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(PAGE_SIZE).unwrap();
        let map = DmaMap { address: 0, size: PAGE_SIZE, file, offset: 0, writable: true };
        model.invalidations.replace(Arc::new(GuestMemory::default().with_map(map).unwrap()));
        *model.control_ring.lock() = ControlRing { base: 0, log2: 4, head: 0 };
        let mut controller = Controller::new(model.clone(), Plain);
        let word = |offset| {
            let mut bytes = [0; 4];
            model.doorbells.file().read_exact_at(&mut bytes, offset).unwrap();
            u32::from_le_bytes(bytes)
        };
        // The driver saw NEED_KICK = 0 when it stored this, and does not kick.
        model.doorbells.file().write_all_at(&1u32.to_le_bytes(), driver::CTL_TAIL).unwrap();
        assert!(matches!(controller.rest(), Ok(Step::Worked)));
        assert_eq!((word(driver::CTL_HEAD), word(driver::NEED_KICK)), (1, 0));
        assert!(matches!(controller.rest(), Ok(Step::Nothing)));
        assert_eq!(word(driver::NEED_KICK), 1);
    }
}
