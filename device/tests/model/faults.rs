// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults, REPLAY and CANCEL; the fault queue when it is full.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use svmx_abi::control::{Cancel, DestroyQueue, Replay, Sync, TlbInvalidate};
use svmx_abi::fault::AccessKind;
use svmx_abi::pci::{PAGE_SIZE, page_base};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Opcode, Sqe};
use svmx_abi::regs::Counter;
use svmx_abi::status::Status;

use mock_driver::{Mock, UserQueue, add, add_indexed, options, wait_until};

const VA: u64 = 0x7000_0000;

fn replay(queue: u32, fault_id: u32, pte: Pte) -> Replay {
    Replay { queue, fault_id, pte: pte.0, ..Default::default() }
}

#[test]
fn a_record_says_what_is_missing_and_replay_does_it() {
    let mock = Mock::new();
    let space = mock.space();
    let frame = mock.pages(1);
    let mut queue = UserQueue::new(&mock, space);
    for (opcode, kind) in [
        (Opcode::FETCH_ADD, AccessKind::ATOMIC),
        (Opcode::WRITE, AccessKind::WRITE),
        (Opcode::READ, AccessKind::READ),
    ] {
        let operand = u64::from(opcode != Opcode::READ);
        queue.submit(Sqe { opcode, tag: 9, ..add(VA + 0x18, operand) });
        let fault = mock.next_fault();
        assert_eq!((fault.va, fault.tag, fault.asid), (VA + 0x18, 9, space.asid));
        assert_eq!((fault.head.access(), fault.head.queue()), (kind, queue.id));
        // Not this fault: nothing happens.
        assert_eq!(mock.control(replay(queue.id, fault.fault_id + 1, Pte::NONE)), Status::SUCCESS);
        assert_eq!(mock.control(replay(queue.id + 1, fault.fault_id, Pte::NONE)), Status::SUCCESS);
        assert!(queue.peek().is_none() && mock.fault().is_none());
        // The page table says nothing; the entry's translation is enough.
        let good = Pte::leaf(frame, Access::EXCLUSIVE);
        assert_eq!(mock.control(replay(queue.id, fault.fault_id, good)), Status::SUCCESS);
        assert_eq!(queue.wait().head.status(), Status::SUCCESS);
    }
    assert_eq!(mock.ram64(frame + 0x18).load(Ordering::Relaxed), 1);
    assert_eq!(mock.counter(Counter::Replays), 3);
}

#[test]
fn a_replay_that_does_not_suffice_faults_again_under_a_new_name() {
    let mock = Mock::new();
    let space = mock.space();
    let frame = mock.pages(1);
    let mut queue = UserQueue::new(&mock, space);
    queue.submit(add(VA, 1));
    let mut names = vec![];
    for pte in [
        Pte::NONE,
        Pte::leaf(frame, Access::READ_WRITE),
        Pte(Pte::leaf(frame, Access::EXCLUSIVE).0 | 1 << 60),
        Pte::leaf(1 << 45, Access::EXCLUSIVE),
        Pte::huge_leaf(0, Access::EXCLUSIVE),
    ] {
        let fault = mock.next_fault();
        assert!(!names.contains(&fault.fault_id));
        names.push(fault.fault_id);
        mock.control(replay(queue.id, fault.fault_id, pte));
    }
    let fault = mock.next_fault();
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    mock.control(replay(queue.id, fault.fault_id, Pte::NONE));
    assert_eq!(queue.wait().head.status(), Status::SUCCESS);
    assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), 1);
}

#[test]
fn cancel_ends_the_command_with_its_status() {
    let mock = Mock::new();
    let space = mock.space();
    let mut queue = UserQueue::new(&mock, space);
    for (_, status, may) in Status::ALL {
        queue.submit(add(VA + 8, 1));
        let fault = mock.next_fault();
        let cancel =
            |status| Cancel { queue: queue.id, fault_id: fault.fault_id, status, ..Default::default() };
        let answer = mock.control(cancel(status));
        assert_eq!(answer, if may { Status::SUCCESS } else { Status::BAD_RING });
        if !may {
            mock.control(cancel(Status::CANCELLED));
        }
        let cqe = queue.wait();
        let status = if may { status } else { Status::CANCELLED };
        assert_eq!((cqe.head.status(), cqe.fault_addr, cqe.applied), (status, VA + 8, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..Default::default() })]
    /// Pages come and go at random while an indexed bulk command runs, each grant good for one element at
    /// least: every element is applied once, and there is progress even if every page is taken at once.
    #[test]
    fn every_element_exactly_once(
        indices in prop::collection::vec(0..2048u32, 1..200),
        answers in prop::collection::vec(0..4u8, 1..50),
    ) {
        let mock = Mock::new();
        let space = mock.space();
        let (frames, index_frame) = (mock.pages(4), mock.pages(1));
        let index_va = VA + 16 * PAGE_SIZE;
        let mut model = vec![0u64; 2048];
        for (i, index) in indices.iter().enumerate() {
            mock.ram32(index_frame + 4 * i as u64).store(*index, Ordering::Relaxed);
            model[*index as usize] += 1;
        }
        let mut queue = UserQueue::new(&mock, space);
        let count = indices.len() as u32;
        queue.submit(add_indexed(VA, count, index_va));
        let mut answers = answers.iter().cycle();
        let mut faults = 0;
        let mut done = None;
        wait_until("the bulk command", || {
            done = queue.take();
            if let Some(fault) = mock.fault() {
                faults += 1;
                let page = page_base(fault.va);
                let pte = if page == index_va {
                    Pte::leaf(index_frame, Access::READ)
                } else {
                    Pte::leaf(frames + (page - VA), Access::EXCLUSIVE)
                };
                let asid = space.asid;
                let gone = TlbInvalidate { asid, va: page, len: PAGE_SIZE, ..Default::default() };
                match *answers.next().unwrap() {
                    // Stays.
                    0 => {
                        mock.map(space, page, pte);
                        mock.post(replay(queue.id, fault.fault_id, pte));
                    }
                    // In the table only.
                    1 => {
                        mock.map(space, page, pte);
                        mock.post(replay(queue.id, fault.fault_id, Pte::NONE));
                    }
                    // In the entry only: one access.
                    2 => {
                        mock.post(replay(queue.id, fault.fault_id, pte));
                    }
                    // Taken away at once.
                    _ => {
                        mock.map(space, page, pte);
                        mock.post(replay(queue.id, fault.fault_id, pte));
                        mock.map(space, page, Pte::NONE);
                        mock.post(gone);
                        mock.done(mock.post(Sync::default()));
                    }
                }
                // Late and doubled replays do nothing.
                mock.post(replay(queue.id, fault.fault_id, pte));
            }
            done.is_some()
        });
        let cqe = done.unwrap();
        prop_assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, count));
        for (i, want) in model.iter().enumerate() {
            prop_assert_eq!(mock.ram64(frames + 8 * i as u64).load(Ordering::Relaxed), *want, "element {}", i);
        }
        prop_assert!(faults >= 2, "{} faults", faults);
        prop_assert_eq!(mock.counter(Counter::Elements), u64::from(count));
    }
}

#[test]
fn progress_when_every_grant_is_taken_back_at_once() {
    let mock = Mock::new();
    let space = mock.space();
    let frame = mock.pages(1);
    let pte = Pte::leaf(frame, Access::EXCLUSIVE);
    let mut queue = UserQueue::new(&mock, space);
    queue.submit(mock_driver::add_strided(VA, 300, 8));
    for element in 0..300 {
        let fault = mock.next_fault();
        assert_eq!(fault.va, VA + 8 * element, "one element for each grant");
        // Never in the table: only the replay can use it.
        assert_eq!(mock.control(replay(queue.id, fault.fault_id, pte)), Status::SUCCESS);
        assert_eq!(mock.ram64(frame + 8 * element).load(Ordering::Relaxed), 1, "done when REPLAY is");
    }
    assert_eq!(queue.wait().applied, 300);
}

#[test]
fn a_full_fault_queue_loses_nothing() {
    let mock = Mock::with(options(), 1);
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA + PAGE_SIZE, Pte::leaf(frame, Access::EXCLUSIVE));
    let mut queues: Vec<_> = (0..12).map(|_| UserQueue::sized(&mock, space, 2)).collect();
    for queue in &mut queues {
        queue.submit(add(VA, 1));
        queue.submit(add(VA + PAGE_SIZE, 1));
    }
    // Two records at a time, the others wait for room; some queues are destroyed while they wait.
    wait_until("two records", || mock.counter(Counter::Faults) == 2);
    let destroy = |queue| DestroyQueue { queue, ..Default::default() };
    let gone: Vec<u32> = queues.drain(8..).map(|queue| queue.id).collect();
    for queue in &gone {
        assert_eq!(mock.control(destroy(*queue)), Status::SUCCESS);
    }
    let mut answered = 0;
    while answered < 8 {
        let fault = mock.next_fault();
        let queue = fault.head.queue();
        answered += u32::from(!gone.contains(&queue));
        mock.control(replay(queue, fault.fault_id, Pte::leaf(frame, Access::EXCLUSIVE)));
    }
    for queue in &mut queues {
        assert_eq!(queue.wait().head.status(), Status::SUCCESS);
        assert_eq!(queue.wait().head.status(), Status::SUCCESS);
    }
    assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), 16);
}
