// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A user's ring as a program has it that cares for speed: every word at hand, doorbells rung once for all
//! entries that were written.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use mock_driver::{Mock, Space, UserQueue};
use svmx_abi::doorbell::queue;
use svmx_abi::queue::{CqeHead, Sqe};
use svmx_abi::regs;
use svmx_abi::ring;
use svmx_abi::status::Status;

/// A queue and its words.
pub(crate) struct Ring<'m> {
    /// The queue's number.
    pub(crate) id: u32,
    mock: &'m Mock,
    log2: u8,
    submissions: Vec<[&'m AtomicU64; 8]>,
    /// First word of each completion.
    completions: Vec<&'m AtomicU64>,
    sq_tail: &'m AtomicU32,
    cq_head: &'m AtomicU32,
    need_kick: &'m AtomicU32,
    tail: u32,
    head: u32,
}

impl<'m> Ring<'m> {
    /// A new queue with 2^`log2` entries.
    pub(crate) fn new(mock: &'m Mock, space: Space, log2: u8) -> Self {
        let queue = UserQueue::sized(mock, space, log2);
        let (id, rings) = (queue.id, queue.description(space));
        let slots = 0..u64::from(ring::entries(log2));
        let words =
            |slot: u64| [0, 8, 16, 24, 32, 40, 48, 56].map(|at| mock.ram64(rings.sq_base + 64 * slot + at));
        Ring {
            id,
            mock,
            log2,
            submissions: slots.clone().map(words).collect(),
            completions: slots.map(|slot| mock.ram64(rings.cq_base + 32 * slot)).collect(),
            sq_tail: mock.doorbell(id, queue::SQ_TAIL),
            cq_head: mock.doorbell(id, queue::CQ_HEAD),
            need_kick: mock.doorbell(id, queue::NEED_KICK),
            tail: 0,
            head: 0,
        }
    }

    /// Writes an entry, if there is room; the device does not know of it yet.
    #[inline]
    pub(crate) fn put(&mut self, sqe: Sqe) -> bool {
        if self.tail.wrapping_sub(self.head) == ring::entries(self.log2) {
            return false;
        }
        let words: [u64; 8] = zerocopy::transmute!(sqe);
        let slot = &self.submissions[ring::slot(self.tail, self.log2) as usize];
        for (place, word) in slot.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        true
    }

    /// Tells the device of what was written (spec 4.3).
    #[inline]
    pub(crate) fn ring(&self) {
        self.sq_tail.store(self.tail, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.need_kick.load(Ordering::Relaxed) == 1 {
            self.mock.write(regs::KICK, self.id.into(), 4);
        }
    }

    /// Takes completions that are there, which must be successes.
    #[inline]
    pub(crate) fn take(&mut self) -> u32 {
        let first = self.head;
        loop {
            let word = self.completions[ring::slot(self.head, self.log2) as usize];
            let head = CqeHead(word.load(Ordering::Acquire));
            if head.phase() != ring::phase(self.head, self.log2) {
                break;
            }
            assert_eq!(head.status(), Status::SUCCESS);
            self.head = self.head.wrapping_add(1);
        }
        if self.head != first {
            self.cq_head.store(self.head, Ordering::Release);
        }
        self.head.wrapping_sub(first)
    }
}
