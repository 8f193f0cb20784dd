// SPDX-License-Identifier: GPL-2.0

//! The fault queue's consumer (spec 7): takes records and hands them to their contexts.

use super::abi::{
    control::{Cancel, ControlEntry, Replay},
    fault::{AccessKind, FaultHead, FaultRecord},
    pci,
    pte::Pte,
    ring,
    status::Status,
};
use super::control::MAX_ENTRIES;
use super::device::{Device, Hw};
use super::hw::Stopwatch;
use super::outlook::Hint;
use super::stats::Stats;
use super::trace;
use core::cmp::Reverse;
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full},
        Arc, SpinLock,
    },
};

/// Entries of the ring, binary logarithm. A queue has one fault outstanding, so that it is never full
/// for long.
pub(crate) const FAULT_LOG2: u8 = 9;

/// State of the consumer.
#[pin_data]
pub(crate) struct FaultQueue {
    /// Free-running. Taken for one record's copy; nothing sleeps under it.
    #[pin]
    head: SpinLock<u32>,
    /// How many poll it: see [`Device::poll_faults`].
    pollers: Atomic<i32>,
}

/// A fault that wants an answer.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) asid: u32,
    pub(crate) queue: u32,
    pub(crate) id: u32,
    pub(crate) va: u64,
    pub(crate) access: AccessKind,
    /// Since the driver has it.
    pub(crate) arrived: Stopwatch,
}

/// Somebody who looks at the fault queue all the time.
pub(crate) struct Polling<'a>(&'a Device);

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        if self.0.fault_queue.pollers.fetch_sub(1, Full) == 1 {
            self.0.arm();
        }
    }
}

impl Fault {
    /// First those of the lowest page, and among them those of the strongest access: what it gets is enough for the others.
    pub(crate) fn order(&self) -> (u64, Reverse<u8>) {
        (pci::page_base(self.va), Reverse(self.access.0))
    }
}

impl FaultQueue {
    /// The state that goes with a reset device and a zeroed ring.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self { head <- new_spinlock!(0, "svmx::fault_head"), pollers: Atomic::new(0) })
    }
}

impl Device {
    /// Hands every record that is there to its context. Any thread that may sleep may call it.
    pub(crate) fn drain_faults(&self) {
        while let Some(record) = self.next_fault() {
            let context = self.context(record.asid).filter(|context| !context.is_ending());
            match (record.head.is_look_ahead(), context) {
                (true, Some(context)) => context.push_hint(record.head.queue(), hint(&record)),
                // Nothing waits for it.
                (true, None) => {}
                (false, Some(context)) => context.push_fault(self.fault(&record)),
                (false, None) => self.cancel(&self.fault(&record), Status::CANCELLED),
            }
        }
    }

    /// The fault interrupt came: drains, and asks for the next one unless somebody polls.
    pub(crate) fn drain_and_arm(&self) {
        self.drain_faults();
        if !self.is_polled() {
            self.arm();
        }
    }

    /// Asks for an interrupt when there is more (spec 4.4).
    fn arm(&self) {
        loop {
            self.with_hw(|hw| hw.doorbells.arm_faults());
            if !self.has_fault() {
                return;
            }
            self.drain_faults();
        }
    }

    /// Begins to poll the fault queue: no interrupt until the last one ends that polls, as with NAPI.
    ///
    /// Everybody who takes the arming away is a poller by then, and the last to end, after all of them, arms and looks
    /// once more. Whoever else arms meanwhile causes an interrupt that was not needed. A poller may be held up, by a page fault
    /// that takes long: so that others' faults don't wait for it, a work item looks as well, with every tick.
    pub(crate) fn poll_faults(self: &Arc<Self>) -> Polling<'_> {
        self.fault_queue.pollers.fetch_add(1, Full);
        self.with_hw(|hw| hw.doorbells.disarm_faults());
        self.look_later();
        Polling(self)
    }

    /// Whether somebody polls, who will arm.
    pub(crate) fn is_polled(&self) -> bool {
        self.fault_queue.pollers.load(Acquire) != 0
    }

    /// Records taken so far, modulo 2^32.
    pub(crate) fn faults_taken(&self) -> u32 {
        *self.fault_queue.head.lock()
    }

    /// Whether a record is there that was not taken.
    pub(crate) fn has_fault(&self) -> bool {
        let head = *self.fault_queue.head.lock();
        self.with_hw(|hw| record_head(hw, head).is_some()).unwrap_or(false)
    }

    /// Answers faults with `entry`. If it is in the table, the caller holds the lock of its span.
    pub(crate) fn replay(&self, stats: &Stats, faults: &[Fault], entry: Pte) {
        if faults.is_empty() {
            return;
        }
        for faults in faults.chunks(MAX_ENTRIES) {
            let mut entries = [ControlEntry::default(); MAX_ENTRIES];
            for (slot, fault) in entries.iter_mut().zip(faults) {
                let (queue, fault_id) = (fault.queue, fault.id);
                *slot = Replay { queue, fault_id, pte: entry.0, ..Default::default() }.into();
            }
            // A dead device waits for no answer.
            let _ = self.submit(entries.get(..faults.len()).unwrap_or(&[]));
        }
        let now = Stopwatch::start();
        stats.replays.add(faults.len() as u64);
        for fault in faults {
            let ns = fault.arrived.ns_until(&now);
            stats.replay_ns.record(ns);
            trace::replay(self.number(), fault, entry, ns);
        }
    }

    /// Ends the stalled command of a fault.
    pub(crate) fn cancel(&self, fault: &Fault, status: Status) {
        trace::cancel(self.number(), fault, status);
        let cancel = Cancel { queue: fault.queue, fault_id: fault.id, status, ..Default::default() };
        // A device that is dead has no queue that waits.
        let _ = self.submit(&[cancel.into()]);
    }

    fn fault(&self, record: &FaultRecord) -> Fault {
        trace::fault(self.number(), record);
        Fault {
            asid: record.asid,
            queue: record.head.queue(),
            id: record.fault_id,
            va: record.va,
            access: record.head.access(),
            arrived: Stopwatch::start(),
        }
    }

    /// Takes one record. The lock is released before anything is done with it.
    fn next_fault(&self) -> Option<FaultRecord> {
        self.with_hw(|hw| {
            let mut head = self.fault_queue.head.lock();
            record_head(hw, *head)?;
            let record = hw.faults.read(offset(*head));
            *head = head.wrapping_add(1);
            hw.doorbells.store_fault_head(*head);
            drop(head);
            hw.doorbells.kick_if_needed(&hw.regs);
            Some(record)
        })
        .flatten()
    }
}

fn hint(record: &FaultRecord) -> Hint {
    Hint {
        fault_id: record.fault_id,
        pages: record.pages.try_into().unwrap_or(u16::MAX),
        va: record.va,
        access: record.head.access(),
    }
}

/// The first word of the record at `head`, if it is written. The acquire load's partner is the
/// device's release store of this word, which comes after the rest of the record (spec 4.2).
fn record_head(hw: &Hw, head: u32) -> Option<FaultHead> {
    let word = FaultHead(hw.faults.word(offset(head)).load(Acquire));
    (word.phase() == ring::phase(head, FAULT_LOG2)).then_some(word)
}

fn offset(index: u32) -> usize {
    ring::slot(index, FAULT_LOG2) as usize * size_of::<FaultRecord>()
}
