// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The producer of the fault queue (spec 7), and the queues whose fault waits for room in it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use svmx_abi::fault::{AccessKind, FaultHead, FaultRecord};
use svmx_abi::pci::MAX_QUEUES;
use svmx_abi::ring;

use crate::doorbells::DriverPage;
use crate::memory::GuestMemory;
use crate::queue::{Rings, Stall};

/// A fault to be reported.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Stalled queue.
    pub queue: u32,
    /// Its address space.
    pub asid: u32,
    /// Its command's tag.
    pub tag: u32,
    /// Names the fault.
    pub fault_id: u32,
    /// Address of the access.
    pub va: u64,
    /// What is wanted there.
    pub access: AccessKind,
    /// Set if nothing waits for it (spec 7.3): consecutive pages that will be needed.
    pub ahead: Option<u32>,
}

impl Fault {
    /// The fault that stalls a queue in a command of that tag.
    pub fn of(rings: &Rings, tag: u32, stall: &Stall) -> Self {
        let Stall { fault_id, access, .. } = stall;
        Fault {
            queue: rings.queue,
            asid: rings.asid,
            tag,
            fault_id: *fault_id,
            va: access.va,
            access: access.kind,
            ahead: None,
        }
    }
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// The record is written; interrupt if `armed`.
    Written {
        /// Whether the driver's arming was taken.
        armed: bool,
    },
    /// No room now.
    Full,
    /// `FAULT_HEAD` is out of range: fatal.
    BadHead,
    /// The ring's memory is gone: fatal.
    Lost,
}

/// The fault queue's device side.
#[derive(Debug)]
pub struct FaultQueue {
    ring: Mutex<Ring>,
    /// Each queue is here once at most.
    waiting: Mutex<VecDeque<u32>>,
    /// Entries that are used at a time.
    most: u32,
}

#[derive(Debug, Default)]
struct Ring {
    base: u64,
    log2: u8,
    tail: u32,
}

impl FaultQueue {
    /// No ring yet. Of one that comes no more than `most` entries are used, and one at least.
    pub fn new(most: u32) -> Self {
        let waiting = Mutex::new(VecDeque::with_capacity(MAX_QUEUES as usize));
        FaultQueue { ring: Mutex::default(), waiting, most: most.max(1) }
    }

    /// Starts at the ring's beginning, with nothing waiting. The ring was found to be in guest memory.
    pub fn start(&self, base: u64, log2: u8) {
        *self.ring.lock() = Ring { base, log2, tail: 0 };
        self.waiting.lock().clear();
    }

    /// Writes a record if there is room (spec 4.2, 4.4): of what is reported ahead, in half of the ring.
    pub fn write(&self, memory: &GuestMemory, page: DriverPage<'_>, fault: &Fault) -> Reported {
        let mut ring = self.ring.lock();
        let entries = ring::entries(ring.log2).min(self.most);
        let room = if fault.ahead.is_some() { entries / 2 } else { entries };
        match ring::pending(page.fault_head.load(), ring.tail, ring.log2) {
            None => return Reported::BadHead,
            Some(pending) if pending >= room => return Reported::Full,
            Some(_) => {}
        }
        let head = FaultHead::new(ring::phase(ring.tail, ring.log2), fault.access, fault.queue);
        let record = FaultRecord {
            head: if fault.ahead.is_some() { head.look_ahead() } else { head },
            asid: fault.asid,
            fault_id: fault.fault_id,
            va: fault.va,
            tag: fault.tag,
            pages: fault.ahead.unwrap_or(1),
            ..Default::default()
        };
        let words: [u64; 8] = zerocopy::transmute!(record);
        let slot = ring.base + 64 * u64::from(ring::slot(ring.tail, ring.log2));
        if write_entry(memory, slot, &words).is_none() {
            return Reported::Lost;
        }
        ring.tail = ring.tail.wrapping_add(1);
        Reported::Written { armed: page.fault_arm.take() }
    }

    /// Whether a fault waits for room: those that come later wait behind it.
    pub fn crowded(&self) -> bool {
        !self.waiting.lock().is_empty()
    }

    /// Lets a queue's fault wait.
    pub fn wait_for_room(&self, queue: u32) {
        let mut waiting = self.waiting.lock();
        if !waiting.contains(&queue) {
            waiting.push_back(queue);
        }
    }

    /// Takes the queue that waits longest.
    pub fn next_waiting(&self) -> Option<u32> {
        self.waiting.lock().pop_front()
    }

    /// Puts it back: there was no room yet.
    pub fn put_back(&self, queue: u32) {
        self.waiting.lock().push_front(queue);
    }
}

/// Writes an entry whose first word holds the phase: that word last, with release ordering. Entries are in
/// one page, as rings begin at one and entries' sizes are powers of two.
pub fn write_entry<const N: usize>(memory: &GuestMemory, address: u64, words: &[u64; N]) -> Option<()> {
    let places: [_; N] = memory.words(address, true)?;
    for (place, word) in places.iter().zip(words).skip(1) {
        place.store(*word, Ordering::Relaxed);
    }
    places.first()?.store(*words.first()?, Ordering::Release);
    Some(())
}
