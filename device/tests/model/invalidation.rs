// SPDX-License-Identifier: Apache-2.0 OR MIT

//! TLB_INVALIDATE, SYNC and DMA_UNMAP while engines hammer the memory that is taken away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use svmx_abi::control::{Replay, Sync, TlbInvalidate};
use svmx_abi::fault::FaultRecord;
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::status::Status;
use svmx_device::device::Region;
use svmx_device::memory::DmaMap;
use svmx_device::model::Options;

use mock_driver::{Mock, RAM, Stop, UserQueue, add_strided, memfd, options, wait_until};

const VA: u64 = 0x7000_0000;
/// Where a second, smaller memory is.
const MORE: u64 = 1 << 32;

fn invalidate(asid: u32, va: u64, len: u64) -> TlbInvalidate {
    TlbInvalidate { asid, va, len, ..Default::default() }
}

/// Keeps queues busy with bulk commands on the page at `VA` while `body` runs.
fn hammer(queues: Vec<UserQueue<'_>>, body: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for mut queue in queues {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let cqe = queue.run(add_strided(VA, 5000, 0));
                    assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, 5000));
                }
            });
        }
        let _stop = Stop(&stop);
        body();
    });
}

#[test]
fn after_sync_nothing_reaches_the_old_page() {
    let mock = Mock::new();
    let space = mock.space();
    let frames = [mock.pages(1), mock.pages(1)];
    mock.map(space, VA, Pte::leaf(frames[0], Access::EXCLUSIVE));
    let queues = (0..2).map(|_| UserQueue::new(&mock, space)).collect();
    hammer(queues, || {
        for round in 0..400 {
            let (old, new) = (frames[round % 2], frames[(round + 1) % 2]);
            let before = mock.ram64(new).load(Ordering::Relaxed);
            wait_until("work on the old page", || mock.ram64(old).load(Ordering::Relaxed) > 0);
            mock.map(space, VA, Pte::leaf(new, Access::EXCLUSIVE));
            mock.post(invalidate(space.asid, VA, PAGE_SIZE));
            assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
            // Ours alone now: a plain store stays.
            let mark = 1 << 40 | round as u64;
            mock.ram64(old).store(mark, Ordering::Relaxed);
            wait_until("work on the new page", || mock.ram64(new).load(Ordering::Relaxed) > before + 100);
            assert_eq!(mock.ram64(old).load(Ordering::Relaxed), mark, "round {round}");
        }
    });
}

/// An element that has read, and has not written yet, is waited for.
#[test]
fn sync_waits_for_the_element_that_is_under_way() {
    let slow = Options { engines: 2, rmw_delay: Duration::from_micros(500), ..options() };
    let mock = Mock::with(slow, 6);
    let space = mock.space();
    let frames = mock.pages(2);
    let mut queues = [UserQueue::new(&mock, space), UserQueue::new(&mock, space)];
    let word = |at: u64| mock.ram64(frames + at * PAGE_SIZE);
    let grant = || {
        for at in 0..2 {
            word(at).store(0, Ordering::Relaxed);
            let leaf = Pte::leaf(frames + at * PAGE_SIZE, Access::EXCLUSIVE);
            mock.map(space, VA + at * PAGE_SIZE, leaf);
        }
    };
    grant();
    for (queue, at) in queues.iter_mut().zip(0..) {
        queue.submit(add_strided(VA + at * PAGE_SIZE, u32::MAX, 0));
    }
    for round in 1..20u64 {
        wait_until("work", || (0..2).all(|at| word(at).load(Ordering::Relaxed) > 0));
        (0..2).for_each(|at| mock.map(space, VA + at * PAGE_SIZE, Pte::NONE));
        mock.post(invalidate(space.asid, VA, 2 * PAGE_SIZE));
        assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
        let mark = round << 40;
        (0..2).for_each(|at| word(at).store(mark, Ordering::Relaxed));
        // Both have finished what was under way, and want the pages back.
        let stalled = [(); 2].map(|()| mock.next_fault());
        (0..2).for_each(|at| assert_eq!(word(at).load(Ordering::Relaxed), mark, "round {round}, page {at}"));
        grant();
        for FaultRecord { head, fault_id, .. } in stalled {
            mock.post(Replay { queue: head.queue(), fault_id, ..Default::default() });
        }
    }
}

#[test]
fn ranges_and_spaces_that_are_not_there_are_refused() {
    let mock = Mock::new();
    let space = mock.space();
    for (entry, status) in [
        (invalidate(0, 0, u64::MAX), Status::SUCCESS),
        (invalidate(space.asid, 0, 0), Status::SUCCESS),
        (invalidate(space.asid + 1, 0, PAGE_SIZE), Status::BAD_ID),
        (invalidate(5000, 0, PAGE_SIZE), Status::BAD_ID),
        (invalidate(space.asid, 8, PAGE_SIZE), Status::BAD_RING),
        (invalidate(space.asid, PAGE_SIZE, 8), Status::BAD_RING),
        (invalidate(space.asid, 1 << 48, PAGE_SIZE), Status::BAD_RING),
        (invalidate(space.asid, PAGE_SIZE, 1 << 48), Status::BAD_RING),
    ] {
        assert_eq!(mock.control(entry), status, "{entry:?}");
    }
}

#[test]
fn unmapped_memory_is_not_written_any_more() {
    let mock = Mock::new();
    let file = memfd(PAGE_SIZE);
    let view =
        DmaMap { address: 0, size: PAGE_SIZE, file: file.try_clone().unwrap(), offset: 0, writable: true };
    let view = svmx_device::memory::GuestMemory::default().with_map(view).unwrap();
    let word = view.word64(0, true).unwrap();
    let space = mock.space();
    mock.map(space, VA, Pte::leaf(MORE, Access::EXCLUSIVE));
    let mut queue = UserQueue::new(&mock, space);
    for round in 0..100 {
        let file = file.try_clone().unwrap();
        let map = DmaMap { address: MORE, size: PAGE_SIZE, file, offset: 0, writable: true };
        mock.device.lock().dma_map(map).unwrap();
        word.store(0, Ordering::Relaxed);
        queue.submit(add_strided(VA, u32::MAX, 0));
        wait_until("work", || word.load(Ordering::Relaxed) > 0);
        mock.device.lock().dma_unmap(MORE, PAGE_SIZE).unwrap();
        let applied = word.load(Ordering::Relaxed);
        word.store(1 << 50, Ordering::Relaxed);
        let cqe = queue.wait();
        assert_eq!((cqe.head.status(), cqe.fault_addr), (Status::BAD_MEMORY, VA), "round {round}");
        assert_eq!((u64::from(cqe.applied), word.load(Ordering::Relaxed)), (applied, 1 << 50));
    }
}

#[test]
fn a_read_only_map_is_only_read() {
    let mock = Mock::new();
    let file = memfd(PAGE_SIZE);
    let map = DmaMap { address: MORE, size: PAGE_SIZE, file, offset: 0, writable: false };
    mock.device.lock().dma_map(map).unwrap();
    let space = mock.space();
    mock.map(space, VA, Pte::leaf(MORE, Access::EXCLUSIVE));
    let mut queue = UserQueue::new(&mock, space);
    let read = svmx_abi::queue::Opcode::READ;
    for (sqe, status) in [
        (svmx_abi::queue::Sqe { opcode: read, operand: 0, ..mock_driver::add(VA, 0) }, Status::SUCCESS),
        (mock_driver::add(VA, 1), Status::BAD_MEMORY),
    ] {
        assert_eq!(queue.run(sqe).head.status(), status);
    }
}

#[test]
fn bus_mastering_off_stops_elements_and_on_goes_on() {
    let mock = Mock::with(options(), 6);
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    let mut queue = UserQueue::new(&mock, space);
    const COUNT: u32 = 2_000_000;
    queue.submit(add_strided(VA, COUNT, 0));
    for _ in 0..50 {
        mock.bus_master(false);
        let seen = mock.ram64(frame).load(Ordering::Relaxed);
        for _ in 0..200 {
            thread::yield_now();
            assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), seen);
        }
        mock.bus_master(true);
        let more = |now: u64| now > seen || now == u64::from(COUNT);
        wait_until("more work", || more(mock.ram64(frame).load(Ordering::Relaxed)));
    }
    assert_eq!(queue.wait().applied, COUNT);
    assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), u64::from(COUNT));
}

#[test]
fn the_driver_s_rings_unmapped_is_fatal() {
    let mock = Mock::new();
    mock.device.lock().dma_unmap(0, RAM).unwrap();
    assert_eq!((mock.read(svmx_abi::regs::STATUS, 4), mock.read(svmx_abi::regs::FATAL_ERROR, 4)), (2, 4));
    mock.device.lock().reset();
    mock.map_ram();
    mock.start();
    let mut command = [0; 2];
    mock.device.lock().read(Region::Config, 4, &mut command);
    assert_eq!(command, [6, 0]);
}
