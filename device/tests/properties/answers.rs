// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's side of faults: what a record must say, and the ways in which it is answered.

use anyhow::{Result, ensure};
use svmx_abi::control::{Cancel, Replay, TlbInvalidate};
use svmx_abi::fault::{AccessKind, FaultRecord};
use svmx_abi::pci::{PAGE_SIZE, page_base};
use svmx_abi::pte::{self, Pte};
use svmx_abi::queue::{Opcode, WAIT_FOREVER};
use svmx_abi::status::Status;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::program::{Answer, Window};
use crate::reference::{Access, Backing, Form, Run, Verdict};
use crate::world::{Cancelled, HUGE_SIZE, Queue, World, is_removable};

/// Elements of a command whose needs are looked at one by one.
const NEEDS: u32 = 2000;

impl World<'_> {
    /// Takes the next record, if there is one, and checks what can be known about it. Those of pages that
    /// will be needed are done with here.
    pub(crate) fn take_fault(&mut self) -> Result<Option<FaultRecord>> {
        while let Some(record) = self.mock.fault() {
            self.check_record(&record)?;
            if !record.head.is_look_ahead() {
                return Ok(Some(record));
            }
            self.take_hint(&record);
        }
        Ok(None)
    }

    fn check_record(&mut self, record: &FaultRecord) -> Result<()> {
        let at = self.queue_of(record)?;
        let lookahead = self.lookahead;
        let queue = &mut self.queues[at];
        ensure!(record.asid == queue.space.asid, "another ASID: {record:x?}");
        ensure!(record.reserved == [0; 4], "reserved words: {record:x?}");
        if record.head.is_look_ahead() {
            let removed_at = self.removed_at.last().copied().unwrap_or(0);
            return check_hint(queue, lookahead, removed_at, record);
        }
        ensure!(queue.fault_ids.insert(record.fault_id), "a name that was used before: {record:x?}");
        ensure!(record.pages == 1, "pages of a fault: {record:x?}");
        if queue.last_fault.is_none_or(|last| last.tag != record.tag) {
            queue.reported.clear();
        }
        was_reported(queue, record.va, record.head.access());
        (queue.last_fault, queue.ahead) = (Some(*record), 0);
        let command = queue.pending.iter_mut().find(|command| command.sqe.tag == record.tag);
        let Some(command) = command else { anyhow::bail!("a fault of no pending command: {record:x?}") };
        command.faulted = true;
        let page = queue.memory.page(record.va);
        let there = queue.granted.get(&granule(record.va)).is_some_and(|&since| since < command.at);
        ensure!(!there || page.verdict(record.head.access()) == Verdict::Denied, "no reason for {record:x?}");
        Ok(())
    }

    fn queue_of(&self, record: &FaultRecord) -> Result<usize> {
        let found = self.queues.iter().position(|queue| queue.user.id == record.head.queue());
        found.ok_or_else(|| anyhow::anyhow!("a fault of no queue: {record:x?}"))
    }

    /// A driver may act on a hint; this one does on every other.
    fn take_hint(&mut self, record: &FaultRecord) {
        let Ok(at) = self.queue_of(record) else { return };
        for page in (0..u64::from(record.pages)).filter(|page| page % 2 == 0) {
            let va = page_base(record.va) + page * PAGE_SIZE;
            if self.queues[at].memory.page(va).verdict(record.head.access()) == Verdict::Allowed {
                self.grant(at, va);
            }
        }
    }

    /// Answers a fault like this, as far as the page is the driver's to give.
    pub(crate) fn answer(&mut self, record: FaultRecord, how: Answer) -> Result<()> {
        let at = self.queue_of(&record)?;
        let page = self.queues[at].memory.page(record.va);
        let kind = record.head.access();
        let pte = Pte::leaf(page.frame, page.access);
        match how {
            Answer::Cancel(status) => self.cancel(at, &record, status),
            Answer::NothingThere => self.replay(&record, Pte::NONE),
            Answer::Insufficient => self.replay(&record, insufficient(kind, page.frame)),
            Answer::Later => self.waiting.push(record),
            Answer::Stale => {
                let FaultRecord { fault_id, .. } = record;
                self.replay(&FaultRecord { fault_id: fault_id.wrapping_add(1), ..record }, pte);
                self.replay(&FaultRecord { fault_id: fault_id.wrapping_sub(1), ..record }, pte);
                let (queue, status) = (500, Status::FAULT);
                self.mock.post(Cancel { queue, fault_id, status, ..Default::default() });
                self.waiting.push(record);
            }
            _ if self.is_stuck(at) => self.cancel(at, &record, Status::CANCELLED),
            _ if page.verdict(kind) == Verdict::Denied => {
                let status = match page.backing {
                    Backing::Nothing => Status::FAULT,
                    _ if kind == AccessKind::ATOMIC => Status::NOT_EXCLUSIVE,
                    _ => Status::PERMISSION,
                };
                self.cancel(at, &record, status);
            }
            Answer::Replay | Answer::LookUp | Answer::Doubled | Answer::TakenBack => {
                self.grant(at, record.va);
                let look_up = matches!(how, Answer::LookUp);
                self.replay(&record, if look_up { Pte::NONE } else { pte });
                if matches!(how, Answer::Doubled) {
                    self.replay(&record, pte);
                    self.replay(&record, Pte::NONE);
                }
                if matches!(how, Answer::TakenBack) {
                    self.withdraw(at, record.va);
                }
            }
        }
        Ok(())
    }

    /// Whether the oldest command is a WAIT for what never comes true.
    pub(crate) fn is_stuck(&self, at: usize) -> bool {
        let queue = &self.queues[at];
        let Some(command) = queue.pending.front() else { return false };
        if (command.sqe.opcode, command.sqe.arg0) != (Opcode::WAIT, WAIT_FOREVER) {
            return false;
        }
        let Ok(mut run) = Run::new(&command.sqe) else { return false };
        let allowed = |run: &Run<'_>| {
            run.accesses(&queue.memory).iter().all(|it| it.verdict(&queue.memory) == Verdict::Allowed)
        };
        if !allowed(&run) {
            return false;
        }
        run.step(&mut queue.memory.clone());
        run.applied == 0
    }

    /// Puts a page's entry in the page table, with all that the page can be.
    pub(crate) fn grant(&mut self, at: usize, va: u64) {
        let va = granule(va);
        let page = self.queues[at].memory.page(va);
        let huge = Window::Huge.contains(va);
        let pte =
            if huge { Pte::huge_leaf(page.frame, page.access) } else { Pte::leaf(page.frame, page.access) };
        let old = Pte(self.entry(at, va).swap(pte.0, Ordering::AcqRel));
        let queue = &mut self.queues[at];
        queue.granted.entry(va).or_insert(self.now);
        queue.reported.retain(|(reported, _)| granule(*reported) != va);
        if old.valid() && old != pte {
            self.invalidate(at, va);
        }
    }

    /// Takes a page's entry out of the page table and has it invalidated; SYNC is the caller's.
    pub(crate) fn withdraw(&mut self, at: usize, va: u64) {
        self.change(at, va, Pte::NONE);
    }

    /// Whether a page has an entry, of whatever kind.
    pub(crate) fn is_mapped(&self, at: usize, va: u64) -> bool {
        self.entry(at, granule(va)).load(Ordering::Relaxed) != 0
    }

    /// The entry of a page, of a 2 MiB page too.
    fn entry(&self, at: usize, va: u64) -> &AtomicU64 {
        let level = u32::from(Window::Huge.contains(va));
        self.mock.ram64(self.mock.pte_at(self.queues[at].space, va, level))
    }

    /// Replaces a page's entry by a lesser one and has it invalidated.
    pub(crate) fn change(&mut self, at: usize, va: u64, pte: Pte) {
        let va = granule(va);
        self.entry(at, va).store(pte.0, Ordering::Release);
        self.queues[at].granted.remove(&va);
        self.invalidate(at, va);
    }

    fn invalidate(&self, at: usize, va: u64) {
        let len = if Window::Huge.contains(va) { HUGE_SIZE } else { PAGE_SIZE };
        let asid = self.queues[at].space.asid;
        self.mock.post(TlbInvalidate { asid, va, len, ..Default::default() });
    }

    fn replay(&self, record: &FaultRecord, pte: Pte) {
        let (queue, fault_id) = (record.head.queue(), record.fault_id);
        self.mock.post(Replay { queue, fault_id, pte: pte.0, ..Default::default() });
    }

    fn cancel(&mut self, at: usize, record: &FaultRecord, status: Status) {
        let (tag, va, kind) = (record.tag, record.va, record.head.access());
        self.queues[at].cancelled.insert(tag, Cancelled { va, kind, status });
        let (queue, fault_id) = (record.head.queue(), record.fault_id);
        self.mock.post(Cancel { queue, fault_id, status, ..Default::default() });
    }
}

/// A page reported ahead of a fault (spec 7.3): one that the command needs and may lack, not said before.
fn check_hint(queue: &mut Queue<'_>, lookahead: u32, removed_at: u64, record: &FaultRecord) -> Result<()> {
    let fault = queue.last_fault.filter(|fault| fault.fault_id == record.fault_id);
    ensure!(fault.is_some_and(|fault| fault.tag == record.tag), "ahead of no fault: {record:x?}");
    queue.ahead += record.pages;
    ensure!(record.pages > 0 && queue.ahead <= lookahead, "more than LOOKAHEAD: {record:x?}");
    // The command may be over by now, if the fault was answered before this was looked at.
    let Some(command) = queue.pending.iter().find(|command| command.sqe.tag == record.tag).cloned() else {
        return Ok(());
    };
    ensure!(Form(&command.sqe).has_count(), "ahead of a single element: {record:x?}");
    let kind = record.head.access();
    let run = Run::new(&command.sqe).ok().filter(|run| run.count() <= NEEDS);
    let needs = run.map(|run| run.needs(&queue.memory));
    for va in (0..u64::from(record.pages)).map(|page| page_base(record.va) + page * PAGE_SIZE) {
        let again = was_reported(queue, va, kind);
        ensure!(!again, "page {va:#x} is reported again: {record:x?}");
        // Of one whose access would end the command the device may say that it is not there.
        let there = queue.granted.get(&granule(va)).is_some_and(|&since| since < command.at);
        let page = queue.memory.page(va);
        let removed = is_removable(page.frame) && removed_at >= command.at;
        let useless = there && !removed && page.verdict(kind) == Verdict::Allowed;
        ensure!(!useless, "{va:#x} is there: {record:x?}");
        let needed = |access: &Access| page_base(access.va()) == va && access.kind() == kind;
        ensure!(needs.as_ref().is_none_or(|all| all.iter().any(needed)), "nobody needs {va:#x}: {record:x?}");
    }
    let first = |access: &Access| access.va() == record.va && access.kind() == kind;
    ensure!(needs.is_none_or(|all| all.iter().any(first)), "an address that nobody needs: {record:x?}");
    Ok(())
}

/// Notes that a page was reported; whether it was before, and nothing has been granted since. Of a page that is
/// granted by now nothing is known: the device may have found it, and may lose it again.
fn was_reported(queue: &mut Queue<'_>, va: u64, kind: AccessKind) -> bool {
    let page = (page_base(va), kind.0);
    let before = queue.reported.contains(&page);
    if !queue.granted.contains_key(&granule(va)) {
        queue.reported.insert(page);
    }
    before
}

/// The first address of a page, of a 2 MiB page too.
pub(crate) fn granule(va: u64) -> u64 {
    if Window::Huge.contains(va) { Window::Huge.base() } else { page_base(va) }
}

/// An entry that does not suffice for the access.
fn insufficient(kind: AccessKind, frame: u64) -> Pte {
    let access = if kind == AccessKind::ATOMIC { pte::Access::READ_WRITE } else { pte::Access::default() };
    Pte::leaf(frame, access)
}
