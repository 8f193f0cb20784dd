// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A queue's rings and doorbell page, as the process sees them (spec 4): indices, phases, fences. It
//! makes no system call: it says when one is due.
//!
//! | memory | this side | the device |
//! |---|---|---|
//! | submission queue | writes an entry, then stores `SQ_TAIL` with release | copies entries before the tail, once |
//! | completion queue, mapped read-only | reads `head` of an entry, acquires, reads the rest | writes the rest, then `head` with release |
//! | `SQ_TAIL`, `CQ_HEAD` | stores, full fence, reads `NEED_KICK` | polls |
//! | `NEED_KICK` | reads | stores 1, full fence, reads the words once more |

use crate::error::Error;
use crate::mapping::Mapping;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use svmx_abi::doorbell::queue as doorbell;
use svmx_abi::queue::{Cqe, CqeHead, Sqe};
use svmx_abi::ring;

/// The doorbell said that the device does not look: a kick is due (spec 4.3).
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeedKick(pub(crate) bool);

/// A submission queue, its completion queue, and their doorbell page.
#[derive(Debug)]
pub(crate) struct Rings {
    sq: Mapping,
    cq: Mapping,
    doorbell: Mapping,
    sq_log2: u8,
    cq_log2: u8,
    /// Free-running index of the next submission.
    tail: u32,
    /// Free-running index of the next completion.
    head: u32,
}

impl Rings {
    /// Rings of a new queue, both empty.
    ///
    /// # Errors
    /// [`Error::BadAnswer`] if a mapping is too small.
    pub(crate) fn new(
        (sq, sq_log2): (Mapping, u8),
        (cq, cq_log2): (Mapping, u8),
        doorbell: Mapping,
    ) -> Result<Self, Error> {
        let room =
            |mapping: &Mapping, log2: u8, entry: usize| mapping.len() >= ring::entries(log2) as usize * entry;
        if !room(&sq, sq_log2, size_of::<Sqe>()) || !room(&cq, cq_log2, size_of::<Cqe>()) {
            return Err(Error::BadAnswer("a ring's mapping is too small"));
        }
        if doorbell.len() < svmx_abi::pci::PAGE_SIZE as usize {
            return Err(Error::BadAnswer("the doorbell's mapping is too small"));
        }
        Ok(Rings { sq, cq, doorbell, sq_log2, cq_log2, tail: 0, head: 0 })
    }

    /// Submissions whose completions have not been taken.
    pub(crate) fn in_flight(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    /// Free-running index of the completion that is taken next.
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// Submits an entry. Completion *i* belongs to submission *i* (spec 5.1), so an entry's slot is free
    /// when its completion has been taken.
    pub(crate) fn push(&mut self, sqe: &Sqe) -> Result<NeedKick, Error> {
        if self.in_flight() >= ring::entries(self.sq_log2) {
            return Err(Error::Full);
        }
        let slot = ring::slot(self.tail, self.sq_log2) as usize;
        let words: [u64; 8] = zerocopy::transmute!(*sqe);
        for (word, value) in self.sq.words64(slot * size_of::<Sqe>(), 8).iter().zip(words) {
            word.store(value, Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        // The device acquires the tail before it copies the entry (spec 4.2).
        Ok(self.ring(doorbell::SQ_TAIL, self.tail))
    }

    /// Takes the next completion, if it is there.
    pub(crate) fn pop(&mut self) -> Option<(Cqe, NeedKick)> {
        let offset = ring::slot(self.head, self.cq_log2) as usize * size_of::<Cqe>();
        // Relaxed and a fence, not an acquiring load: the memory is read-only here.
        let head = CqeHead(self.cq.word64(offset).load(Relaxed));
        if head.phase() != ring::phase(self.head, self.cq_log2) {
            return None;
        }
        // Partner: the device's releasing store of `head` (spec 4.2).
        fence(Acquire);
        let [_, result, counts, fault_addr] =
            [0, 8, 16, 24].map(|at| self.cq.word64(offset + at).load(Relaxed));
        let cqe: Cqe = zerocopy::transmute!([head.0, result, counts, fault_addr]);
        self.head = self.head.wrapping_add(1);
        // Release: the device may overwrite the entry when it sees this, so it must be read by then.
        Some((cqe, self.ring(doorbell::CQ_HEAD, self.head)))
    }

    /// Whether the next completion is there.
    pub(crate) fn ready(&self) -> bool {
        self.posted(self.head)
    }

    /// Submissions whose completions are not there yet.
    pub(crate) fn running(&self) -> u32 {
        // Beyond a lap from the head there is no room for a completion.
        let lap = self.in_flight().min(ring::entries(self.cq_log2));
        let posted = (0..lap).take_while(|&i| self.posted(self.head.wrapping_add(i))).count();
        self.in_flight() - posted as u32
    }

    /// Whether the completion with that free-running index, less than a lap from the head, is there.
    fn posted(&self, index: u32) -> bool {
        let offset = ring::slot(index, self.cq_log2) as usize * size_of::<Cqe>();
        CqeHead(self.cq.word64(offset).load(Relaxed)).phase() == ring::phase(index, self.cq_log2)
    }

    fn ring(&self, word: u64, value: u32) -> NeedKick {
        self.doorbell.word32(word as usize).store(value, Release);
        // Partner: the fence between the device's store of NEED_KICK and its last look (spec 4.3).
        fence(SeqCst);
        NeedKick(self.doorbell.word32(doorbell::NEED_KICK as usize).load(Relaxed) != 0)
    }
}

#[cfg(test)]
impl Rings {
    /// Both indices at `index`, as after a long run.
    pub(crate) fn start_at(&mut self, index: u32) {
        (self.tail, self.head) = (index, index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use svmx_abi::queue::Opcode;
    use svmx_abi::status::Status;

    /// The device's side of a queue, in the same memory.
    struct FakeDevice {
        rings: Rings,
        sq_head: u32,
        cq_tail: u32,
    }

    impl FakeDevice {
        fn new(sq_log2: u8, cq_log2: u8, start: u32) -> Self {
            let page = || Mapping::anonymous(4096).unwrap();
            let mut rings = Rings::new((page(), sq_log2), (page(), cq_log2), page()).unwrap();
            rings.start_at(start);
            // As if the laps before had left their phases.
            for slot in 0..ring::entries(cq_log2) {
                let before = start.wrapping_sub(ring::entries(cq_log2)).wrapping_add(
                    slot.wrapping_sub(ring::slot(start, cq_log2)) & (ring::entries(cq_log2) - 1),
                );
                let head = CqeHead::new(ring::phase(before, cq_log2), Status::SUCCESS, 0);
                rings.cq.word64(ring::slot(before, cq_log2) as usize * 32).store(head.0, Relaxed);
            }
            FakeDevice { rings, sq_head: start, cq_tail: start }
        }

        fn tail(&self) -> u32 {
            self.rings.doorbell.word32(doorbell::SQ_TAIL as usize).load(Acquire)
        }

        fn need_kick(&self, value: u32) {
            self.rings.doorbell.word32(doorbell::NEED_KICK as usize).store(value, Relaxed);
        }

        /// Completes the oldest submission, with its operand as the result.
        fn step(&mut self) {
            assert_ne!(self.tail(), self.sq_head, "nothing to do");
            let slot = ring::slot(self.sq_head, self.rings.sq_log2) as usize;
            let words: Vec<u64> =
                self.rings.sq.words64(slot * 64, 8).iter().map(|word| word.load(Relaxed)).collect();
            let sqe: Sqe = zerocopy::transmute!(<[u64; 8]>::try_from(words).unwrap());
            self.sq_head = self.sq_head.wrapping_add(1);
            let at = ring::slot(self.cq_tail, self.rings.cq_log2) as usize * 32;
            self.rings.cq.word64(at + 8).store(sqe.operand, Relaxed);
            self.rings.cq.word64(at + 16).store(1 | (u64::from(self.sq_head) << 32), Relaxed);
            let phase = ring::phase(self.cq_tail, self.rings.cq_log2);
            let head = CqeHead::new(phase, Status::SUCCESS, sqe.tag);
            self.rings.cq.word64(at).store(head.0, Release);
            self.cq_tail = self.cq_tail.wrapping_add(1);
        }
    }

    fn entry(tag: u32) -> Sqe {
        Sqe { opcode: Opcode::NOP, tag, operand: u64::from(tag) << 33, ..Sqe::default() }
    }

    #[test]
    fn completions_come_back_over_many_laps_and_the_end_of_u32() {
        for start in [0, u32::MAX - 20] {
            let mut device = FakeDevice::new(2, 3, start);
            for tag in 0..100 {
                assert!(device.rings.pop().is_none(), "a completion of an earlier lap was taken for new");
                let _ = device.rings.push(&entry(tag)).unwrap();
                device.step();
                assert!(device.rings.ready());
                let (cqe, _) = device.rings.pop().unwrap();
                assert_eq!((cqe.head.tag(), cqe.result), (tag, u64::from(tag) << 33));
                assert_eq!(cqe.sq_head, device.rings.head());
            }
        }
    }

    #[test]
    fn what_runs_is_what_has_no_completion() {
        for start in [0, u32::MAX - 2] {
            let mut device = FakeDevice::new(3, 1, start);
            for tag in 0..5 {
                let _ = device.rings.push(&entry(tag)).unwrap();
            }
            assert_eq!(device.rings.running(), 5);
            device.step();
            device.step();
            assert_eq!((device.rings.running(), device.rings.in_flight()), (3, 5));
            let _ = device.rings.pop().unwrap();
            assert_eq!((device.rings.running(), device.rings.in_flight()), (3, 4));
        }
    }

    #[test]
    fn a_full_ring_refuses_until_a_completion_is_taken() {
        let mut device = FakeDevice::new(2, 2, u32::MAX - 1);
        for tag in 0..4 {
            let _ = device.rings.push(&entry(tag)).unwrap();
        }
        assert!(matches!(device.rings.push(&entry(4)), Err(Error::Full)));
        device.step();
        assert!(matches!(device.rings.push(&entry(4)), Err(Error::Full)), "the completion is not taken");
        device.rings.pop().unwrap().1.0.then(|| panic!("kicked a device that polls"));
        let _ = device.rings.push(&entry(4)).unwrap();
        assert_eq!(device.rings.in_flight(), 4);
        for tag in 1..5 {
            device.step();
            assert_eq!(device.rings.pop().unwrap().0.head.tag(), tag);
        }
        assert_eq!(device.rings.in_flight(), 0);
    }

    #[test]
    fn both_doorbells_see_need_kick() {
        let mut device = FakeDevice::new(2, 2, 0);
        assert_eq!(device.rings.push(&entry(0)).unwrap(), NeedKick(false));
        device.need_kick(1);
        assert_eq!(device.rings.push(&entry(1)).unwrap(), NeedKick(true));
        device.step();
        assert_eq!(device.rings.pop().unwrap().1, NeedKick(true));
    }

    #[test]
    fn small_mappings_are_refused() {
        let page = || Mapping::anonymous(4096).unwrap();
        assert!(Rings::new((page(), 7), (page(), 2), page()).is_err());
        assert!(Rings::new((page(), 6), (page(), 8), page()).is_err());
        assert!(Rings::new((page(), 6), (page(), 7), page()).is_ok());
    }

    /// The submitter's half of spec 4.3 raced against the device's: a submitter that reads NEED_KICK before
    /// its store can be seen is not heard now and then.
    #[test]
    fn whoever_sees_no_need_to_kick_was_seen() {
        use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::AcqRel};
        const ROUNDS: u32 = 200_000;
        let device = FakeDevice::new(2, 2, 0);
        let arrived = [const { AtomicU32::new(0) }; 2];
        let meet = |me: usize| {
            let mine = arrived[me].fetch_add(1, AcqRel) + 1;
            let mut spins = 0u32;
            while arrived[1 - me].load(Acquire) < mine {
                spins += 1;
                if spins.is_multiple_of(256) { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        };
        let seen = AtomicBool::new(false);
        let need_kick = device.rings.doorbell.word32(doorbell::NEED_KICK as usize);
        let tail = device.rings.doorbell.word32(doorbell::SQ_TAIL as usize);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    need_kick.store(0, Relaxed);
                    meet(0);
                    (0..round % 256).for_each(|turn| _ = std::hint::black_box(turn));
                    need_kick.store(1, Relaxed);
                    fence(SeqCst);
                    seen.store(tail.load(Acquire) == round, Relaxed);
                    meet(0);
                }
            });
            let mut lost = 0;
            for round in 1..=ROUNDS {
                meet(1);
                let NeedKick(kick) = device.rings.ring(doorbell::SQ_TAIL, round);
                meet(1);
                lost += u32::from(!kick && !seen.load(Relaxed));
            }
            assert_eq!(lost, 0, "of {ROUNDS} doorbells nobody heard");
        });
    }
}
