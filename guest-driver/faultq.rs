// SPDX-License-Identifier: GPL-2.0

//! The fault queue's consumer (spec 7): takes records and hands them to their contexts.

use super::abi::{
    control::{Cancel, Replay},
    fault::{AccessKind, FaultHead, FaultRecord},
    pte::Pte,
    ring,
    status::Status,
};
use super::device::{Device, Hw};
use super::hw::Stopwatch;
use super::outlook::Hint;
use super::stats::Stats;
use super::trace;
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{atomic::Acquire, SpinLock},
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

impl FaultQueue {
    /// The state that goes with a reset device and a zeroed ring.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self { head <- new_spinlock!(0, "svmx::fault_head") })
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

    /// Drains, and asks for an interrupt when there is more (spec 4.4).
    pub(crate) fn drain_and_arm(&self) {
        loop {
            self.drain_faults();
            self.with_hw(|hw| hw.doorbells.arm_faults());
            if !self.has_fault() {
                return;
            }
        }
    }

    /// Whether a record is there that was not taken.
    pub(crate) fn has_fault(&self) -> bool {
        let head = *self.fault_queue.head.lock();
        self.with_hw(|hw| record_head(hw, head).is_some()).unwrap_or(false)
    }

    /// Answers faults with `entry`. If it is in the table, the caller holds the lock of its span.
    pub(crate) fn replay(&self, stats: &Stats, faults: &[Fault], entry: Pte) {
        for fault in faults {
            let replay =
                Replay { queue: fault.queue, fault_id: fault.id, pte: entry.0, ..Default::default() };
            // A dead device waits for no answer.
            let _ = self.submit(&[replay.into()]);
            stats.replays.bump();
            let ns = fault.arrived.ns();
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
    Hint { fault_id: record.fault_id, pages: record.pages, va: record.va, access: record.head.access() }
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
