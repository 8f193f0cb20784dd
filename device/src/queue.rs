// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Submission and completion queues: their state, their rings, their doorbell page.
//!
//! A queue's state is behind a mutex that engines try and never wait for. What stands beside the mutex
//! is what others must know without it. Executing commands is [`crate::engine`]'s.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use svmx_abi::pci::MAX_QUEUES;
use svmx_abi::queue::{Cqe, CqeHead, Sqe};
use svmx_abi::ring;
use svmx_abi::status::Status;

use crate::ahead::Pending;
use crate::doorbells::QueuePage;
use crate::faults::write_entry;
use crate::memory::GuestMemory;
use crate::work::{Access, Work};

/// How often engines pass by a queue that is another one's before one of them takes it.
const PASSES: u32 = 2;

/// A place for a queue. Engines at neighbouring queues share no cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Queue {
    /// The queue that is here, if one is.
    pub state: Mutex<Option<State>>,
    /// Somebody waits for the mutex: engines let go at the next element and don't come back until
    /// this is clear.
    attention: AtomicBool,
    /// `fault_id` + 1 of the fault that stalls the queue; 0 if none does. Written under the mutex; so
    /// that a late REPLAY need not take it.
    stalled: AtomicU64,
    /// The engine that served the queue last, plus one; 0 if none did.
    home: AtomicU32,
    /// How often other engines have passed by since.
    passed: AtomicU32,
    /// Goes on from one queue in this place to the next, so that no identifier comes back soon.
    next_fault: AtomicU32,
}

impl Queue {
    /// Whether engines shall leave the queue alone.
    pub fn wanted(&self) -> bool {
        self.attention.load(Ordering::Relaxed)
    }

    /// Asks engines to leave the queue alone, or no longer.
    pub fn want(&self, wanted: bool) {
        self.attention.store(wanted, Ordering::Relaxed);
    }

    /// Whether an engine shall leave the queue to the one that served it last, which has its pages and their
    /// translations: until that one has not come for a while, by how often others did. `elsewhere` says whether an engine
    /// is at another queue: an engine that is `hungry` need not wait for one that is.
    pub fn leave_to_home(&self, engine: usize, hungry: bool, elsewhere: impl Fn(usize) -> bool) -> bool {
        match self.home.load(Ordering::Relaxed).checked_sub(1) {
            None => false,
            Some(home) if home as usize == engine || hungry && elsewhere(home as usize) => false,
            Some(_) => self.passed.fetch_add(1, Ordering::Relaxed) < PASSES,
        }
    }

    /// An engine has come to the queue, and keeps it if it had work.
    pub fn served(&self, engine: usize, worked: bool) {
        let engine = engine as u32 + 1;
        let mut home = self.home.load(Ordering::Relaxed);
        // Others look at these words: they are stored only when they change.
        if worked && home != engine {
            self.home.store(engine, Ordering::Relaxed);
            home = engine;
        }
        if home == engine && self.passed.load(Ordering::Relaxed) != 0 {
            self.passed.store(0, Ordering::Relaxed);
        }
    }

    /// Whether this fault seems to be outstanding.
    pub fn stalled_by(&self, fault_id: u32) -> bool {
        self.stalled.load(Ordering::Acquire) == u64::from(fault_id) + 1
    }

    /// Records that `state` can't go on without this access; the fault's name.
    pub fn stall(&self, state: &mut State, access: Access) -> u32 {
        let fault_id = self.next_fault.fetch_add(1, Ordering::Relaxed);
        state.stall = Some(Stall { fault_id, access, reported: false });
        self.stalled.store(u64::from(fault_id) + 1, Ordering::Release);
        fault_id
    }

    /// Takes the stall away if it is of this fault: the access that faulted.
    pub fn unstall(&self, state: &mut State, fault_id: u32) -> Option<Access> {
        let stall = state.stall.take_if(|stall| stall.fault_id == fault_id)?;
        self.stalled.store(0, Ordering::Release);
        Some(stall.access)
    }

    /// Empties the place.
    pub fn forget(&self, state: &mut Option<State>) {
        *state = None;
        self.home.store(0, Ordering::Relaxed);
        self.stalled.store(0, Ordering::Release);
    }
}

/// Where a queue's rings are, and what it belongs to. Validated when the queue is made.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// Its number.
    pub queue: u32,
    /// Address space of its commands.
    pub asid: u32,
    /// Root of that address space.
    pub root: u64,
    /// Guest-physical address of the submission queue.
    pub sq_base: u64,
    /// Binary logarithm of its entries.
    pub sq_log2: u8,
    /// Guest-physical address of the completion queue.
    pub cq_base: u64,
    /// Binary logarithm of its entries.
    pub cq_log2: u8,
    /// Vector of its completions.
    pub vector: u16,
}

/// A queue.
#[derive(Debug)]
pub struct State {
    /// What it is made of.
    pub rings: Rings,
    sq_head: u32,
    cq_tail: u32,
    /// The command in progress and its tag. Its completion has room.
    pub work: Option<(Work, u32)>,
    /// Set while a fault is outstanding.
    pub stall: Option<Stall>,
    /// What was reported for the command in progress.
    pub pending: Pending,
    /// Ignored until it is destroyed (spec 4.5).
    pub broken: bool,
    /// Whether `NEED_KICK` is 0.
    pub polled: bool,
    /// Since when nothing has happened.
    pub quiet_since: Option<Instant>,
}

/// A fault that is outstanding.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    /// Its name.
    pub fault_id: u32,
    /// What could not be done.
    pub access: Access,
    /// Whether its record is written.
    pub reported: bool,
}

/// What a look at the rings found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// A command, and room for its completion.
    Ready,
    /// Nothing that could be begun.
    Idle,
    /// A doorbell that can't be right (spec 4.5).
    BadDoorbell,
}

/// A ring's memory is no longer mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ring is not in guest memory")]
pub struct RingLost;

impl State {
    /// A new queue: nobody polls it until it is kicked.
    pub fn new(rings: Rings) -> Self {
        State {
            rings,
            sq_head: 0,
            cq_tail: 0,
            work: None,
            stall: None,
            pending: Pending::default(),
            broken: false,
            polled: false,
            quiet_since: None,
        }
    }

    /// Looks at the doorbells.
    pub fn look(&self, page: QueuePage<'_>) -> Look {
        let submitted = ring::pending(self.sq_head, page.sq_tail.load(), self.rings.sq_log2);
        let unread = ring::pending(page.cq_head.load(), self.cq_tail, self.rings.cq_log2);
        match (submitted, unread) {
            (None, _) | (_, None) => Look::BadDoorbell,
            (Some(0), _) => Look::Idle,
            (_, Some(unread)) if unread == ring::entries(self.rings.cq_log2) => Look::Idle,
            _ => Look::Ready,
        }
    }

    /// Copies the next submission, once.
    pub fn fetch(&mut self, memory: &GuestMemory) -> Result<Sqe, RingLost> {
        let slot = u64::from(ring::slot(self.sq_head, self.rings.sq_log2));
        let words: [u64; 8] = memory.copy(self.rings.sq_base + 64 * slot).ok_or(RingLost)?;
        self.sq_head = self.sq_head.wrapping_add(1);
        Ok(zerocopy::transmute!(words))
    }

    /// Posts a completion; whether an arming was taken, so that an interrupt is due (spec 4.4).
    pub fn complete(
        &mut self,
        memory: &GuestMemory,
        page: QueuePage<'_>,
        completion: Completion,
    ) -> Result<bool, RingLost> {
        let Completion { status, tag, result, applied, fault_addr } = completion;
        let phase = ring::phase(self.cq_tail, self.rings.cq_log2);
        let head = CqeHead::new(phase, status, tag);
        let cqe = Cqe { head, result, applied, sq_head: self.sq_head, fault_addr };
        let words: [u64; 4] = zerocopy::transmute!(cqe);
        let slot = u64::from(ring::slot(self.cq_tail, self.rings.cq_log2));
        write_entry(memory, self.rings.cq_base + 32 * slot, &words).ok_or(RingLost)?;
        self.cq_tail = self.cq_tail.wrapping_add(1);
        Ok(page.cq_arm.take())
    }
}

/// What a completion says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// How the command ended.
    pub status: Status,
    /// Its tag.
    pub tag: u32,
    /// The old value.
    pub result: u64,
    /// Elements applied.
    pub applied: u32,
    /// The address that ended it.
    pub fault_addr: u64,
}

/// Places for all queues, and which of them engines poll.
#[derive(Debug)]
pub struct Queues {
    places: Box<[Queue]>,
    /// A bit for each queue; cleared under its mutex only.
    active: [AtomicU64; WORDS],
    /// Of each engine.
    positions: Box<[Position]>,
}

/// The queue that an engine works on; 0 if none. Written by the engine; others read it as a hint. Alone in its
/// cache lines: it is written twice a turn.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Position(AtomicU32);

const WORDS: usize = (MAX_QUEUES as usize + 64) / 64;

impl Queues {
    /// No queue, for so many engines.
    pub fn new(engines: usize) -> Self {
        Queues {
            places: (0..=MAX_QUEUES).map(|_| Queue::default()).collect(),
            active: Default::default(),
            positions: (0..engines).map(|_| Position::default()).collect(),
        }
    }

    /// An engine comes to a queue, or leaves the one that it was at.
    pub fn move_to(&self, engine: usize, queue: Option<u32>) {
        self.positions[engine].0.store(queue.unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether an engine seems to be at another queue than this.
    pub fn is_at_other(&self, engine: usize, queue: u32) -> bool {
        let position = self.positions[engine].0.load(Ordering::Relaxed);
        position != 0 && position != queue
    }

    /// The place of a queue, if the number is one.
    pub fn get(&self, queue: u32) -> Option<&Queue> {
        self.places.get(queue as usize).filter(|_| queue != 0)
    }

    /// All places with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Queue)> {
        (0..).zip(&self.places).skip(1)
    }

    /// Engines shall poll the queue.
    pub fn activate(&self, queue: u32) {
        if let Some(word) = self.active.get(queue as usize / 64) {
            word.fetch_or(1 << (queue % 64), Ordering::SeqCst);
        }
    }

    /// Engines need not poll the queue; under its mutex.
    pub fn deactivate(&self, queue: u32) {
        if let Some(word) = self.active.get(queue as usize / 64) {
            word.fetch_and(!(1 << (queue % 64)), Ordering::SeqCst);
        }
    }

    /// Whether any queue is polled.
    pub fn any_active(&self) -> bool {
        self.active.iter().any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// The first active queue after `queue`, going round: itself if it is the only one.
    pub fn next_active(&self, queue: u32) -> Option<u32> {
        let start = queue as usize + 1;
        // The starting word comes twice: its upper part first, the whole of it last.
        for step in 0..=WORDS {
            let index = (start / 64 + step) % WORDS;
            let mut bits = self.active[index].load(Ordering::Relaxed);
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            }
            if bits != 0 {
                return Some(64 * index as u32 + bits.trailing_zeros());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_queues_are_visited_in_turn() {
        let queues = Queues::new(1);
        assert_eq!(queues.next_active(0), None);
        for queue in [1, 63, 64, 511] {
            queues.activate(queue);
        }
        let mut order = vec![];
        let mut at = 0;
        for _ in 0..5 {
            at = queues.next_active(at).unwrap();
            order.push(at);
        }
        assert_eq!(order, [1, 63, 64, 511, 1]);
        [1, 63, 511].iter().for_each(|&queue| queues.deactivate(queue));
        assert_eq!(queues.next_active(64), Some(64));
        queues.deactivate(64);
        assert!(!queues.any_active());
    }
}
