// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A user's side of a submission and completion queue.

use std::sync::atomic::Ordering;

use svmx_abi::control::{CreateQueue, DestroyQueue};
use svmx_abi::doorbell::queue;
use svmx_abi::pci::VECTOR_COMPLETION_FIRST;
use svmx_abi::queue::{Cqe, Opcode, Sqe, SqeFlags, WidthLog2};
use svmx_abi::ring;
use svmx_abi::status::Status;

use super::{Mock, Space, wait_until};

/// A queue as its process has it.
pub struct UserQueue<'m> {
    /// Its driver.
    pub mock: &'m Mock,
    /// Its number.
    pub id: u32,
    log2: u8,
    sq: u64,
    cq: u64,
    /// Free-running tail of the submission queue.
    pub tail: u32,
    /// Free-running head of the completion queue.
    pub head: u32,
}

impl<'m> UserQueue<'m> {
    /// A queue whose rings have 64 entries.
    pub fn new(mock: &'m Mock, space: Space) -> Self {
        Self::sized(mock, space, 6)
    }

    /// A queue whose rings have 2^`log2` entries.
    pub fn sized(mock: &'m Mock, space: Space, log2: u8) -> Self {
        let id = mock.next_queue();
        let (sq, cq) = (mock.pages(64), mock.pages(32));
        let mut queue = UserQueue { mock, id, log2, sq, cq, tail: 0, head: 0 };
        queue.create(space);
        queue
    }

    /// Makes it, once more after it was destroyed or the device was reset: the rings are empty.
    pub fn create(&mut self, space: Space) {
        (self.tail, self.head) = (0, 0);
        for at in (0..32 << self.log2).step_by(8) {
            self.mock.ram64(self.cq + at).store(0, Ordering::Relaxed);
        }
        assert_eq!(self.mock.control(self.description(space)), Status::SUCCESS);
    }

    /// How the driver describes it to the device.
    pub fn description(&self, space: Space) -> CreateQueue {
        CreateQueue {
            queue: self.id,
            asid: space.asid,
            sq_base: self.sq,
            cq_base: self.cq,
            sq_log2: self.log2,
            cq_log2: self.log2,
            vector: VECTOR_COMPLETION_FIRST,
            ..Default::default()
        }
    }

    /// Destroys it.
    pub fn destroy(&self) {
        let destroy = DestroyQueue { queue: self.id, ..Default::default() };
        assert_eq!(self.mock.control(destroy), Status::SUCCESS);
    }

    /// Writes an entry and rings the doorbell.
    pub fn submit(&mut self, sqe: Sqe) {
        self.stage(sqe);
        self.ring();
    }

    /// Writes an entry that the device does not see before the doorbell rings.
    pub fn stage(&mut self, sqe: Sqe) {
        let words: [u64; 8] = zerocopy::transmute!(sqe);
        let slot = self.sq + 64 * u64::from(ring::slot(self.tail, self.log2));
        for (word, at) in words.iter().zip((0..).step_by(8)) {
            self.mock.ram64(slot + at).store(*word, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the device every entry that was written.
    pub fn ring(&self) {
        self.mock.ring(self.id, queue::SQ_TAIL, self.tail);
    }

    /// The next completion, if it is there, left in the ring.
    pub fn peek(&self) -> Option<Cqe> {
        let slot = self.cq + 32 * u64::from(ring::slot(self.head, self.log2));
        let _order = self.mock.ram64(slot).load(Ordering::Acquire);
        let cqe: Cqe = zerocopy::transmute!(self.mock.ram.copy::<4>(slot).unwrap());
        (cqe.head.phase() == ring::phase(self.head, self.log2)).then_some(cqe)
    }

    /// Takes the next completion, if it is there.
    pub fn take(&mut self) -> Option<Cqe> {
        let cqe = self.peek()?;
        self.head = self.head.wrapping_add(1);
        self.mock.ring(self.id, queue::CQ_HEAD, self.head);
        Some(cqe)
    }

    /// Waits for the next completion.
    pub fn wait(&mut self) -> Cqe {
        let mut cqe = None;
        wait_until("a completion", || {
            cqe = self.take();
            cqe.is_some()
        });
        cqe.unwrap()
    }

    /// Submits and waits.
    pub fn run(&mut self, sqe: Sqe) -> Cqe {
        self.submit(sqe);
        self.wait()
    }
}

/// One 64-bit atomic.
pub fn add(addr: u64, operand: u64) -> Sqe {
    Sqe { opcode: Opcode::FETCH_ADD, width: WidthLog2::W64, addr, operand, ..Default::default() }
}

/// The same on `count` elements by stride.
pub fn add_strided(addr: u64, count: u32, stride: i32) -> Sqe {
    Sqe { flags: SqeFlags::BULK, count, stride, ..add(addr, 1) }
}

/// The same on elements named by an array of 32-bit indices.
pub fn add_indexed(addr: u64, count: u32, index_addr: u64) -> Sqe {
    Sqe { flags: SqeFlags::BULK.with(SqeFlags::INDEXED), count, index_addr, ..add(addr, 1) }
}
