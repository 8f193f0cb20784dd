// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Chaos: commands stay exact whatever a device does that the specification allows; and one that is silent is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mock_driver::{Mock, Space, Stop, UserQueue, add, add_strided, wait_until};
use svmx_abi::control::{CompletionWord, Replay, Sync, TlbInvalidate};
use svmx_abi::fault::FaultRecord;
use svmx_abi::pci::{NUM_VECTORS, PAGE_SIZE, page_base};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::regs::{self, Counter};
use svmx_abi::status::Status;

use super::{VA, chaotic};

const PAGES: u64 = 8;
const QUEUES: usize = 6;
const COMMANDS: u32 = 20;
const COUNT: u32 = 700;

/// A driver that grants pages when they are asked for, and takes every third grant back after a while.
struct Driver<'m> {
    mock: &'m Mock,
    space: Space,
    frames: u64,
}

impl Driver<'_> {
    fn entry(&self, va: u64) -> Pte {
        Pte::leaf(self.frames + (page_base(va) - VA), Access::EXCLUSIVE)
    }

    fn grant(&self, fault: FaultRecord) {
        let entry = self.entry(fault.va);
        self.mock.map(self.space, page_base(fault.va), entry);
        let (queue, fault_id) = (fault.head.queue(), fault.fault_id);
        self.mock.post(Replay { queue, fault_id, pte: entry.0, ..Default::default() });
    }

    /// The CPU wants the page: it is its own when this returns, and so is what it adds.
    fn revoke(&self, page: u64) -> u64 {
        let va = VA + page * PAGE_SIZE;
        self.mock.map(self.space, va, Pte::NONE);
        self.mock.post(TlbInvalidate { asid: self.space.asid, va, len: PAGE_SIZE, ..Default::default() });
        assert_eq!(self.mock.control(Sync::default()), Status::SUCCESS);
        let word = self.mock.ram64(self.frames + page * PAGE_SIZE);
        // Not an atomic: whoever comes between loses an update.
        word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        1
    }

    /// Grants and revokes until the users have come to their end; what the CPU has added.
    fn serve(&self, stop: &AtomicBool) -> u64 {
        let (mut added, mut grants) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            while let Some(fault) = self.mock.fault() {
                self.grant(fault);
                grants += 1;
                if grants % 3 == 0 {
                    added += self.revoke(grants / 3 % PAGES);
                }
            }
            thread::yield_now();
        }
        added
    }
}

/// Queues that add to the first words of pages, the CPU as well; nothing is lost and nothing is twice.
fn stays_exact(faults: &str, seed: u64) -> Mock {
    let mock = chaotic(faults, seed);
    let space = mock.space();
    let driver = Driver { mock: &mock, space, frames: mock.pages(PAGES) };
    let done = AtomicBool::new(false);
    let by_cpu = thread::scope(|scope| {
        let serving = scope.spawn(|| driver.serve(&done));
        let _done = Stop(&done);
        let users: Vec<_> = (0..QUEUES)
            .map(|_| {
                let mut queue = UserQueue::new(&mock, space);
                scope.spawn(move || {
                    for _ in 0..COMMANDS {
                        // Over all pages again and again.
                        let sqe = add_strided(VA, COUNT, 0);
                        let rounds = (0..PAGES).map(|page| VA + page * PAGE_SIZE);
                        for addr in rounds {
                            let cqe = queue.run(svmx_abi::queue::Sqe { addr, ..sqe });
                            assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, COUNT));
                        }
                    }
                })
            })
            .collect();
        users.into_iter().for_each(|user| user.join().unwrap());
        drop(_done);
        serving.join().unwrap()
    });
    let sum: u64 =
        (0..PAGES).map(|page| mock.ram64(driver.frames + page * PAGE_SIZE).load(Ordering::Relaxed)).sum();
    let by_device = QUEUES as u64 * u64::from(COMMANDS * COUNT) * PAGES;
    assert_eq!(sum, by_device + by_cpu, "{faults} seed {seed}");
    assert!(by_cpu > 0);
    mock
}

#[test]
fn turns_of_device_and_cpu_are_told_apart() {
    // How often a page goes quietly depends on who is faster.
    let compared = (1..=3).map(|seed| stays_exact("tlb-evict=0", seed).findings().compared);
    assert!(compared.sum::<u64>() > 3);
}

#[test]
fn nothing_is_lost_under_chaos() {
    for seed in 1..=3 {
        let mock = stays_exact("light", seed);
        assert!(mock.findings().compared > 0);
    }
}

#[test]
fn nothing_is_lost_under_all_of_it() {
    for seed in 1..=3 {
        stays_exact("all,slow-engine=20us:0.0005", seed);
    }
}

#[test]
fn a_full_fault_queue_loses_no_fault() {
    let mock = stays_exact("fault-queue=1,tlb-evict=0.05", 9);
    assert!(mock.counter(Counter::Faults) > QUEUES as u64);
}

#[test]
fn a_fault_queue_has_no_more_entries_than_are_left() {
    let mock = chaotic("fault-queue=2", 1);
    let space = mock.space();
    let frames = mock.pages(1);
    let mut queues: Vec<_> = (0..4).map(|_| UserQueue::new(&mock, space)).collect();
    queues.iter_mut().for_each(|queue| queue.submit(add(VA, 1)));
    wait_until("two faults", || mock.counter(Counter::Faults) == 2);
    // The control thread has nothing to report before this is done.
    (0..20).for_each(|_| assert_eq!(mock.control(Sync::default()), Status::SUCCESS));
    assert_eq!(mock.counter(Counter::Faults), 2);
    let driver = Driver { mock: &mock, space, frames };
    (0..4).for_each(|_| driver.grant(mock.next_fault()));
    queues.iter_mut().for_each(|queue| assert_eq!(queue.wait().head.status(), Status::SUCCESS));
}

#[test]
fn a_silent_device_answers_no_more_and_comes_back_by_nothing() {
    let mock = chaotic("silent-after=4", 1);
    let space = mock.space();
    let mut queue = UserQueue::new(&mock, space);
    mock.map(space, VA, Pte::leaf(mock.pages(1), Access::EXCLUSIVE));
    // Two entries were needed so far.
    assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
    assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
    let notify = mock.pages(1);
    let entry = svmx_abi::control::ControlEntry {
        flags: svmx_abi::control::ControlFlags::NOTIFY,
        notify_addr: notify,
        notify_value: 7,
        ..Sync::default().into()
    };
    (0..3).for_each(|_| mock.post_raw(entry));
    // Engines don't know.
    (0..100).for_each(|_| assert_eq!(queue.run(add(VA, 1)).applied, 1));
    assert_eq!(CompletionWord(mock.ram64(notify).load(Ordering::Acquire)).value(), 0);
}

#[test]
fn an_interrupt_that_is_late_does_not_outlive_a_reset() {
    let mock = chaotic("irq-coalesce=60s", 1);
    let model = mock.device.lock().model().clone();
    let vector = NUM_VECTORS - 1;
    // It has no event, so what is delivered is pending.
    let delivered = || model.interrupts.pending() >> vector & 1 == 1;
    model.interrupts.raise(vector);
    assert!(delivered(), "the first one is not late");
    model.interrupts.raise(vector);
    mock.write(regs::CONTROL, 0, 4);
    assert!(!delivered());
    mock.start();
    model.interrupts.raise(vector);
    assert!(delivered(), "it is the first one again");
}
