// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Fault look-ahead (spec 7.3): what a stalled command will need, told once.

use std::sync::atomic::Ordering;

use svmx_abi::control::{Cancel, Replay};
use svmx_abi::fault::{AccessKind, FaultRecord};
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx_abi::regs::{self, Counter, MAX_LOOKAHEAD};
use svmx_abi::status::Status;

use svmx_device::memory::DmaMap;

use mock_driver::{Mock, RAM, UserQueue, add_indexed, add_strided, memfd, options, wait_until};

const VA: u64 = 0x7000_0000;
const PAGE: i32 = PAGE_SIZE as i32;

/// A driver that wants so many pages ahead.
fn looking_ahead(pages: u32, fault_log2: u8) -> Mock {
    let mock = Mock::with(options(), fault_log2);
    mock.look_ahead(pages);
    mock
}

/// Waits for a fault and `ahead` records that come with it: first page and pages of each.
fn faults(mock: &Mock, ahead: usize) -> (FaultRecord, Vec<(u64, u32)>) {
    let fault = mock.next_fault();
    assert!(!fault.head.is_look_ahead() && fault.pages == 1, "{fault:x?}");
    let records: Vec<_> = (0..ahead).map(|_| mock.next_fault()).collect();
    for record in &records {
        assert!(record.head.is_look_ahead(), "{record:x?}");
        assert_eq!((record.head.queue(), record.asid), (fault.head.queue(), fault.asid));
        assert_eq!((record.fault_id, record.tag), (fault.fault_id, fault.tag));
    }
    (fault, records.iter().map(|record| (record.va, record.pages)).collect())
}

fn replay(mock: &Mock, fault: &FaultRecord, pte: Pte) {
    let (queue, fault_id) = (fault.head.queue(), fault.fault_id);
    mock.control(Replay { queue, fault_id, pte: pte.0, ..Default::default() });
}

/// Ends a stalled command, and makes sure that no record was left.
fn cancel(mock: &Mock, queue: &mut UserQueue<'_>, fault: &FaultRecord) {
    let (id, status) = (queue.id, Status::FAULT);
    mock.control(Cancel { queue: id, fault_id: fault.fault_id, status, ..Default::default() });
    assert_eq!(queue.wait().head.status(), status);
    assert!(mock.fault().is_none());
}

#[test]
fn pages_are_reported_once_and_up_to_the_limit() {
    let mock = looking_ahead(8, 6);
    let space = mock.space();
    let frames = mock.pages(32);
    let mut queue = UserQueue::new(&mock, space);
    queue.submit(Sqe { tag: 7, ..add_strided(VA + 8, 20, PAGE) });
    let (fault, ahead) = faults(&mock, 1);
    assert_eq!((fault.va, ahead), (VA + 8, vec![(VA + 8 + PAGE_SIZE, 8)]));
    // The fault alone is served: what was reported ahead is pending, and is not said again.
    replay(&mock, &fault, Pte::leaf(frames, Access::EXCLUSIVE));
    let (fault, ahead) = faults(&mock, 1);
    assert_eq!((fault.va, ahead), (VA + 8 + PAGE_SIZE, vec![(VA + 8 + 9 * PAGE_SIZE, 8)]));
    // All that was reported is served: no fault before what is beyond.
    for page in 0..17 {
        let pte = Pte::leaf(frames + page * PAGE_SIZE, Access::EXCLUSIVE);
        mock.map(space, VA + page * PAGE_SIZE, pte);
    }
    replay(&mock, &fault, Pte::NONE);
    let (fault, ahead) = faults(&mock, 1);
    assert_eq!((fault.va, ahead), (VA + 8 + 17 * PAGE_SIZE, vec![(VA + 8 + 18 * PAGE_SIZE, 2)]));
    assert_eq!((mock.counter(Counter::Lookahead), mock.counter(Counter::Faults)), (18, 3));
    // The next command begins anew.
    cancel(&mock, &mut queue, &fault);
    queue.submit(add_strided(VA + 18 * PAGE_SIZE, 2, PAGE));
    let (fault, ahead) = faults(&mock, 1);
    assert_eq!(ahead, [(VA + 19 * PAGE_SIZE, 1)]);
    cancel(&mock, &mut queue, &fault);
}

#[test]
fn indices_lead_ahead_as_far_as_they_can_be_read() {
    let mock = looking_ahead(16, 6);
    let space = mock.space();
    let indices = mock.pages(1);
    let index_va = VA + (1 << 30);
    mock.map(space, index_va, Pte::leaf(indices, Access::READ));
    // Pages 5, 5, 2, 3, 9 and then indices on a page that is missing.
    for (i, page) in [5u32, 5, 2, 3, 9].into_iter().enumerate() {
        let at = indices + PAGE_SIZE - 20 + 4 * i as u64;
        mock.ram32(at).store(page * 512, Ordering::Relaxed);
    }
    let mut queue = UserQueue::new(&mock, space);
    queue.submit(add_indexed(VA, 50, index_va + PAGE_SIZE - 20));
    let (fault, mut ahead) = faults(&mock, 3);
    assert_eq!((fault.va, fault.head.access()), (VA + 5 * PAGE_SIZE, AccessKind::ATOMIC));
    ahead.sort_unstable();
    let page = |page| VA + page * PAGE_SIZE;
    assert_eq!(ahead, [(page(2), 2), (page(9), 1), (index_va + PAGE_SIZE, 1)]);
    cancel(&mock, &mut queue, &fault);
}

#[test]
fn every_array_is_looked_at() {
    let mock = looking_ahead(MAX_LOOKAHEAD, 6);
    let space = mock.space();
    let mut queue = UserQueue::new(&mock, space);
    let flags = SqeFlags::BULK.with(SqeFlags::OPERANDS).with(SqeFlags::STORE_OLD);
    let (operand, arg0) = (VA + (1 << 30), VA + (2 << 30));
    queue.submit(Sqe { flags, operand, arg0, ..add_strided(VA, 1024, 8) });
    let (fault, ahead) = faults(&mock, 3);
    assert_eq!((fault.va, fault.head.access()), (operand, AccessKind::READ));
    assert_eq!(ahead, [(operand + PAGE_SIZE, 1), (VA, 2), (arg0, 2)]);
    cancel(&mock, &mut queue, &fault);
    let (opcode, width) = (Opcode::COPY, WidthLog2::W64);
    let backwards = Sqe { opcode, width, addr: VA + PAGE_SIZE, arg0: VA, count: 1024, ..Default::default() };
    mock.map(space, VA + PAGE_SIZE, Pte::leaf(mock.pages(1), Access::READ));
    queue.submit(backwards);
    let (fault, ahead) = faults(&mock, 2);
    let last = VA + 3 * PAGE_SIZE - 8;
    assert_eq!((fault.va, fault.head.access()), (last, AccessKind::WRITE));
    assert_eq!(ahead, [(VA + PAGE_SIZE - 8, 1), (VA + 2 * PAGE_SIZE - 8, 1)]);
    cancel(&mock, &mut queue, &fault);
}

#[test]
fn a_fault_queue_that_is_half_full_takes_faults_only() {
    let mock = looking_ahead(16, 2);
    let space = mock.space();
    let mut queues: Vec<_> = (0..4).map(|_| UserQueue::sized(&mock, space, 2)).collect();
    let scattered = |queue: &mut UserQueue<'_>| queue.submit(add_strided(VA, 4, 2 * PAGE));
    scattered(&mut queues[0]);
    wait_until("the fault and one page", || mock.counter(Counter::Lookahead) == 1);
    for queue in &mut queues[1..3] {
        scattered(queue);
    }
    wait_until("the other faults", || mock.counter(Counter::Faults) == 3);
    assert_eq!(mock.counter(Counter::Lookahead), 1);
    let kinds = [(); 4].map(|()| mock.next_fault().head.is_look_ahead());
    assert_eq!(kinds, [false, true, false, false]);
}

#[test]
fn what_the_driver_can_t_change_is_not_reported() {
    let mock = looking_ahead(8, 6);
    let space = mock.space();
    let file = memfd(PAGE_SIZE);
    let read_only = DmaMap { address: RAM, size: PAGE_SIZE, file, offset: 0, writable: false };
    mock.device.lock().dma_map(read_only).unwrap();
    let mut queue = UserQueue::new(&mock, space);
    // Memory that is read-only to the device, no memory, and an entry that is malformed.
    let [nowhere, reserved] =
        [Pte::leaf(2 * RAM, Access::EXCLUSIVE), Pte(Pte::leaf(0, Access::EXCLUSIVE).0 | 1 << 62)];
    for last in [Pte::leaf(RAM, Access::EXCLUSIVE), nowhere, reserved] {
        mock.map(space, VA + 3 * PAGE_SIZE, last);
        queue.submit(add_strided(VA, 6, PAGE));
        let (fault, ahead) = faults(&mock, 1);
        // The command ends at the fourth page: it needs none behind it either.
        assert_eq!(ahead, [(VA + PAGE_SIZE, 2)], "{last:?}");
        cancel(&mock, &mut queue, &fault);
    }
}

#[test]
fn it_looks_at_a_few_pages_only() {
    let mock = looking_ahead(4, 6);
    let space = mock.space();
    let frame = mock.pages(1);
    let mut queue = UserQueue::new(&mock, space);
    // Twice the limit, and a few.
    (1..40).for_each(|page| mock.map(space, VA + page * PAGE_SIZE, Pte::leaf(frame, Access::EXCLUSIVE)));
    queue.submit(add_strided(VA, 50, PAGE));
    let (fault, _) = faults(&mock, 0);
    cancel(&mock, &mut queue, &fault);
    let walks = mock.counter(Counter::Walks);
    assert!((9..=16).contains(&walks), "{walks}");
}

#[test]
fn a_command_that_can_report_no_more_does_not_look() {
    let most = u64::from(MAX_LOOKAHEAD);
    let mock = looking_ahead(MAX_LOOKAHEAD, 6);
    let space = mock.space();
    let mut queue = UserQueue::new(&mock, space);
    queue.submit(add_strided(VA, 4 * MAX_LOOKAHEAD, PAGE));
    let (fault, ahead) = faults(&mock, 1);
    assert_eq!(ahead, [(VA + PAGE_SIZE, MAX_LOOKAHEAD)]);
    let before = mock.counter(Counter::Walks);
    replay(&mock, &fault, Pte::leaf(mock.pages(1), Access::EXCLUSIVE));
    let (fault, _) = faults(&mock, 0);
    cancel(&mock, &mut queue, &fault);
    // The fault's own, and one for each page that is pending.
    let walks = mock.counter(Counter::Walks) - before;
    assert!(walks <= most + 2, "{walks}");
}

#[test]
fn nobody_is_told_who_did_not_ask() {
    let mock = looking_ahead(0, 6);
    let space = mock.space();
    let mut queue = UserQueue::new(&mock, space);
    queue.submit(add_strided(VA, 20, PAGE));
    let (fault, _) = faults(&mock, 0);
    cancel(&mock, &mut queue, &fault);
    // While enabled the register stays; a great value becomes the greatest.
    mock.write(regs::LOOKAHEAD, 5, 4);
    assert_eq!(mock.read(regs::LOOKAHEAD, 4), 0);
    mock.write(regs::CONTROL, 0, 4);
    mock.write(regs::LOOKAHEAD, u32::MAX.into(), 4);
    assert_eq!(mock.read(regs::LOOKAHEAD, 4), u64::from(MAX_LOOKAHEAD));
    mock.write(regs::CONTROL, 2, 4);
    assert_eq!(mock.read(regs::LOOKAHEAD, 4), 0);
}
