// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An engine's turn at a queue that it has locked: commands begin, go on, stall and complete.

use std::thread;

use svmx_abi::fault::AccessKind;
use svmx_abi::pte::{self, HUGE_LEVEL};
use svmx_abi::regs::Counter;
use svmx_abi::status::Status;

use super::{Engine, Turn};
use crate::command::Command;
use crate::complain::complain;
use crate::doorbells::QueuePage;
use crate::execute::{Watch, needs_hold};
use crate::faults::Reported;
use crate::instrument::Instrument;
use crate::memory::Page;
use crate::mmu::{self, WalkError};
use crate::model::Model;
use crate::ownership::Hold;
use crate::queue::{Look, Queue, RingLost, Rings, State};
use crate::tlb::Tlb;
use crate::work::{Access, Next, Work};

/// How often an engine looks again at a page that another one works on, before it goes to another queue.
const PATIENCE: u32 = 10_000;

/// Why an access can't be done now.
enum Miss {
    /// The driver must be asked.
    Fault,
    /// The command is over.
    End(Status),
    /// Another engine works on the page, and has been asked for it.
    Owned,
}

/// How an engine comes to leave a command.
enum Left {
    /// It is completed.
    Completed,
    /// It can't do this access.
    Stalled(Access),
    /// Later: its turn is over, or somebody wants the queue.
    InProgress,
    /// Later: it is a WAIT that has looked in vain, or another engine does not come to its next access.
    Waiting,
}

impl<I: Instrument> Engine<I> {
    /// Executes commands until there are none, the queue stalls, or its turn is over.
    pub(super) fn work(
        &mut self,
        model: &Model,
        queue: &Queue,
        state: &mut State,
        page: QueuePage<'_>,
    ) -> Result<Turn, RingLost> {
        let mut turn = Turn::Nothing;
        let mut budget = self.budget;
        while budget > 0 {
            if state.work.is_none() {
                match state.look(page) {
                    Look::Idle => break,
                    Look::BadDoorbell => {
                        self.break_queue(model, state, page)?;
                        return Ok(Turn::Worked);
                    }
                    Look::Ready => self.begin(state)?,
                }
            }
            let Some((work, _)) = state.work.as_mut() else { break };
            let before = work.applied;
            let left = self.execute(model, queue, &state.rings, work, &mut budget);
            model.counters.add(self.number, Counter::Elements, u64::from(work.applied - before));
            if turn == Turn::Nothing && matches!(left, Left::Waiting) {
                return Ok(Turn::Waiting);
            }
            turn = Turn::Worked;
            match left {
                Left::Completed => self.complete(model, state, page)?,
                Left::Stalled(access) => {
                    self.stall(model, queue, state, access);
                    break;
                }
                Left::InProgress | Left::Waiting => break,
            }
        }
        Ok(turn)
    }

    fn begin(&mut self, state: &mut State) -> Result<(), RingLost> {
        let sqe = state.fetch(self.tlb.memory())?;
        let work = match Command::parse(&sqe) {
            Ok(command) => {
                self.instrument.begin(&state.rings, sqe.tag, &command);
                Work::new(command)
            }
            Err(refusal) => Work::refused(refusal.status, refusal.va),
        };
        state.work = Some((work, sqe.tag));
        Ok(())
    }

    /// Goes on with one command.
    fn execute(
        &mut self,
        model: &Model,
        queue: &Queue,
        rings: &Rings,
        work: &mut Work,
        budget: &mut u32,
    ) -> Left {
        let mut patience = PATIENCE;
        loop {
            if self.user.behind() {
                self.catch_up();
                if queue.wanted() || !model.running() {
                    return Left::InProgress;
                }
            }
            let Next::Access(access) = work.next() else {
                *budget = budget.saturating_sub(1);
                return Left::Completed;
            };
            if *budget == 0 {
                return Left::InProgress;
            }
            if self.batches {
                if self.claimant.take_given_up() {
                    self.tlb.give_up();
                }
                let done = self.batch(rings, work, *budget);
                if done > 0 {
                    *budget -= done;
                    continue;
                }
            }
            match self.access(model, rings, work, &access) {
                Ok(()) if work.waits() => return Left::Waiting,
                Ok(()) => *budget -= 1,
                Err(Miss::End(status)) => work.end(status, access.va),
                Err(Miss::Fault) => return Left::Stalled(access),
                Err(Miss::Owned) if patience == 0 => return Left::Waiting,
                Err(Miss::Owned) => {
                    patience -= 1;
                    if patience.is_multiple_of(64) { thread::yield_now() } else { std::hint::spin_loop() }
                }
            }
        }
    }

    /// Does one access.
    fn access(&mut self, model: &Model, rings: &Rings, work: &mut Work, access: &Access) -> Result<(), Miss> {
        let Engine { tlb, claimant, instrument, number, .. } = self;
        let page = translate(tlb, instrument, model, *number, rings, access)?;
        let mut watch = Watch { asid: rings.asid, instrument };
        if !needs_hold::<I>(access, page) {
            model.execute.perform(&mut watch, work, access, page);
            return Ok(());
        }
        match claimant.hold(&model.ownership, &model.invalidations, page.frame()).ok_or(Miss::Owned)? {
            Hold::Owned => {
                model.execute.perform(&mut watch, work, access, page);
                tlb.own(rings.asid, access.va);
            }
            Hold::Shared(shared) => {
                model.execute.perform(&mut watch, work, access, page);
                drop(shared);
            }
        }
        Ok(())
    }

    /// The queue can't go on without this access: reports why (spec 7.1).
    fn stall(&mut self, model: &Model, queue: &Queue, state: &mut State, access: Access) {
        let fault_id = queue.stall(state, access);
        let tag = state.work.map_or(0, |(_, tag)| tag);
        self.instrument.fault(&state.rings, tag, fault_id, &access);
        model.queues.deactivate(state.rings.queue);
        let room = !model.faults.crowded();
        let memory = self.tlb.memory();
        let reported = room && matches!(model.report(self.number, memory, state), Reported::Written { .. });
        if reported {
            self.look_ahead(model, state);
        } else {
            // The control thread reports it when there is room, or finds out what is wrong. It looks
            // at FAULT_HEAD after this, so no move of the head is missed.
            model.faults.wait_for_room(state.rings.queue);
            model.nudge();
        }
    }

    /// Posts the completion of the work in `state`.
    fn complete(&mut self, model: &Model, state: &mut State, page: QueuePage<'_>) -> Result<(), RingLost> {
        let Some((work, tag)) = state.work.take() else { return Ok(()) };
        let Some(completion) = work.completion(tag) else { return Ok(()) };
        state.pending.clear();
        self.instrument.end(&state.rings, &completion);
        let armed = state.complete(self.tlb.memory(), page, completion)?;
        model.counters.add(self.number, Counter::Commands, 1);
        if armed {
            model.interrupt(self.number, state.rings.vector);
        }
        Ok(())
    }

    /// spec 4.5.
    fn break_queue(&mut self, model: &Model, state: &mut State, page: QueuePage<'_>) -> Result<(), RingLost> {
        complain!("queue {}: bad doorbell; ignored from now on", state.rings.queue);
        state.broken = true;
        state.work = Some((Work::refused(Status::BAD_DOORBELL, 0), 0));
        self.complete(model, state, page)
    }
}

/// The page of an access, from the TLB or the page table.
#[inline]
fn translate<'t, I: Instrument>(
    tlb: &'t mut Tlb,
    instrument: &mut I,
    model: &Model,
    thread: usize,
    rings: &Rings,
    access: &Access,
) -> Result<Page<'t>, Miss> {
    if instrument.forget() {
        tlb.forget(rings.asid, access.va);
    }
    tlb.split(rings.asid, access.va);
    // Looked up twice because a page that is returned borrows the TLB.
    if tlb.lookup(rings.asid, access.va).is_some_and(|page| usable(page, access.kind)) {
        return tlb.lookup(rings.asid, access.va).ok_or(Miss::Fault);
    }
    model.counters.add(thread, Counter::Walks, 1);
    let (page, span) = walk(tlb, rings, access)?;
    instrument.translated(rings.asid, access.va, span, page);
    Ok(page)
}

/// The page, and the bytes of the leaf that leads there.
#[cold]
fn walk<'t>(tlb: &'t mut Tlb, rings: &Rings, access: &Access) -> Result<(Page<'t>, u64), Miss> {
    let translation = mmu::walk(tlb.memory(), rings.root, access.va).map_err(|error| match error {
        WalkError::NotMapped => Miss::Fault,
        WalkError::BadMemory => Miss::End(Status::BAD_MEMORY),
        WalkError::Malformed => Miss::End(Status::BAD_PAGE_TABLE),
    })?;
    if !mmu::allows(translation.access, access.kind) {
        return Err(Miss::Fault);
    }
    let page = tlb.fill(rings.asid, access.va, translation).ok_or(Miss::End(Status::BAD_MEMORY))?;
    let span = pte::span(if translation.huge { HUGE_LEVEL } else { 0 });
    if usable(page, access.kind) { Ok((page, span)) } else { Err(Miss::End(Status::BAD_MEMORY)) }
}

/// Whether a translation suffices for an access: the permissions of the page table, and those of the
/// DMA map.
#[inline]
pub(super) fn usable(page: Page<'_>, kind: AccessKind) -> bool {
    mmu::allows(page.access(), kind) && (page.writable() || kind == AccessKind::READ)
}
