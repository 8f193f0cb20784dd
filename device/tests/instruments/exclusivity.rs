// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The exclusivity checker: three broken drivers and kernels are found, by each of the ways in which they can be;
//! and correct ones that come close are not. (Every other test of the model can run under the checker as well: the
//! mock driver's `SVMX_CHECK_EXCLUSIVE`.)

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use mock_driver::{Mock, RAM, Space, UserQueue, add, add_strided, options};
use svmx_abi::control::{DestroyContext, Replay, Sync, TlbInvalidate};
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Opcode, Sqe, WidthLog2};
use svmx_abi::status::Status;
use svmx_device::instruments::Request;
use svmx_device::model::Options;

use super::{VA, checked};

/// An address space with an exclusive page at `VA`, a queue, and the page's frame.
fn a_page(mock: &Mock) -> (Space, UserQueue<'_>, u64) {
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    (space, UserQueue::new(mock, space), frame)
}

fn invalidate(mock: &Mock, space: Space, len: u64) {
    let entry = TlbInvalidate { asid: space.asid, va: VA, len, ..Default::default() };
    assert_eq!(mock.control(entry), Status::SUCCESS);
}

fn sync(mock: &Mock) {
    assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
}

/// What somebody else does to a word.
fn meddle(mock: &Mock, address: u64) {
    mock.ram64(address).fetch_add(1 << 40, Ordering::Relaxed);
}

#[test]
fn protection_off_is_found_by_the_next_access() {
    let mock = checked();
    mock.lawless();
    let (_, mut queue, frame) = a_page(&mock);
    for (round, sqe) in [
        add(VA, 1),
        Sqe { opcode: Opcode::READ, operand: 0, ..add(VA, 0) },
        Sqe { width: WidthLog2::W32, ..add(VA + 4, 1) },
        Sqe { opcode: Opcode::CAS, width: WidthLog2::W128, ..add(VA, 5) },
        add_strided(VA, 3, 0),
    ]
    .into_iter()
    .enumerate()
    {
        // It knows the page from here on.
        assert_eq!(queue.run(add(VA, 1)).head.status(), Status::SUCCESS);
        meddle(&mock, frame);
        assert_eq!(mock.findings().changed, round as u64);
        assert_eq!(queue.run(sqe).head.status(), Status::SUCCESS);
        assert_eq!(mock.findings().changed, round as u64 + 1, "once, and not again");
    }
}

#[test]
fn a_skipped_invalidation_is_found() {
    // The engine that has the translation, and no other.
    let request = Request { check_exclusive: true, ..Default::default() };
    let mock = Mock::watched(Options { engines: 1, ..options() }, 6, RAM, request);
    mock.lawless();
    let (space, mut queue, frame) = a_page(&mock);
    queue.run(add(VA, 1));
    mock.map(space, VA, Pte::NONE);
    sync(&mock);
    meddle(&mock, frame);
    // The page table would make this a fault.
    assert_eq!(queue.run(add(VA, 1)).head.status(), Status::SUCCESS);
    assert_eq!(mock.findings().changed, 1);
}

#[test]
fn a_mapping_restored_before_the_notifier_returns_is_found() {
    let mock = checked();
    mock.lawless();
    let (space, mut queue, frame) = a_page(&mock);
    for (round, offset) in [0, 8, 0x800, 0xff8].into_iter().enumerate() {
        mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
        queue.run(add(VA, 1));
        mock.map(space, VA, Pte::NONE);
        invalidate(&mock, space, PAGE_SIZE);
        // The CPU is at the page again while the driver has yet to wait.
        meddle(&mock, frame + offset);
        sync(&mock);
        assert_eq!(mock.findings().changed, round as u64 + 1);
        assert_eq!(mock.findings().compared, round as u64 + 1);
    }
}

#[test]
fn a_page_that_a_replay_brought_is_held_too() {
    let mock = checked();
    mock.lawless();
    let (space, frame) = (mock.space(), mock.pages(1));
    let mut queue = UserQueue::new(&mock, space);
    queue.submit(add(VA, 1));
    let fault = mock.next_fault();
    let pte = Pte::leaf(frame, Access::EXCLUSIVE).0;
    mock.control(Replay { queue: queue.id, fault_id: fault.fault_id, pte, ..Default::default() });
    queue.wait();
    invalidate(&mock, space, PAGE_SIZE);
    meddle(&mock, frame + 64);
    sync(&mock);
    assert_eq!(mock.findings().changed, 1);
}

#[test]
fn a_frame_that_is_coherent_elsewhere_is_not_watched() {
    let mock = checked();
    let (space, mut queue, frame) = a_page(&mock);
    let coherent = VA + (1 << 30);
    mock.map(space, coherent, Pte::leaf(frame, Access::COHERENT));
    // Known before the other leads there, and used without a word afterwards.
    for va in [coherent, VA, coherent, VA, coherent] {
        assert_eq!(queue.run(add(va, 1)).head.status(), Status::SUCCESS);
    }
    invalidate(&mock, space, PAGE_SIZE);
    sync(&mock);
    assert_eq!((mock.findings().changed, mock.ram64(frame).load(Ordering::Relaxed)), (0, 5));
}

#[test]
fn a_page_that_was_given_back_is_the_cpu_s() {
    let mock = checked();
    let (space, mut queue, frame) = a_page(&mock);
    for round in 0..100 {
        mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
        assert_eq!(queue.run(add_strided(VA, 50, 8)).applied, 50);
        mock.map(space, VA, Pte::NONE);
        // The page alone, more than that, everything.
        invalidate(&mock, space, [PAGE_SIZE, 16 * PAGE_SIZE, u64::MAX][round % 3]);
        sync(&mock);
        (0..512).for_each(|word| meddle(&mock, frame + 8 * word));
    }
    assert_eq!(mock.findings().compared, 100);
}

#[test]
fn a_queue_or_context_that_ends_gives_its_pages_back() {
    let mock = checked();
    for round in 0..20 {
        let (space, mut queue, frame) = a_page(&mock);
        queue.run(add(VA, 1));
        queue.destroy();
        meddle(&mock, frame);
        if round % 2 == 0 {
            invalidate(&mock, space, u64::MAX);
            sync(&mock);
            meddle(&mock, frame);
        }
        assert_eq!(mock.control(DestroyContext { asid: space.asid, ..Default::default() }), Status::SUCCESS);
        meddle(&mock, frame);
        sync(&mock);
    }
}

#[test]
fn a_device_that_stops_gives_everything_back() {
    let mock = checked();
    let (_, mut queue, frame) = a_page(&mock);
    for _ in 0..20 {
        queue.run(add(VA, 1));
        mock.bus_master(false);
        meddle(&mock, frame);
        mock.bus_master(true);
        // Another map is as good: what is in the page may be anything afterwards.
        mock.device.lock().dma_unmap(1 << 40, PAGE_SIZE).unwrap();
        queue.run(add(VA, 1));
    }
    mock.device.lock().reset();
    meddle(&mock, frame);
    mock.start();
    let (_, mut queue, _) = a_page(&mock);
    queue.run(add(VA, 1));
}

#[test]
fn one_frame_in_two_contexts_is_one_page() {
    let mock = checked();
    let frame = mock.pages(1);
    let spaces = [mock.space(), mock.space()];
    let mut queues = spaces.map(|space| {
        mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
        UserQueue::new(&mock, space)
    });
    for round in 0..50 {
        let width = [WidthLog2::W64, WidthLog2::W32][round % 2];
        for queue in &mut queues {
            queue.submit(Sqe { width, ..add_strided(VA, 20_000, 0) });
        }
        // One of the two lets go meanwhile, and comes back.
        invalidate(&mock, spaces[round % 2], PAGE_SIZE);
        sync(&mock);
        queues.iter_mut().for_each(|queue| assert_eq!(queue.wait().applied, 20_000));
    }
}

#[test]
fn a_frame_that_changes_its_kind_is_not_watched_in_between() {
    let mock = checked();
    let (space, mut queue, frame) = a_page(&mock);
    for access in [Access::COHERENT, Access::READ_WRITE, Access::EXCLUSIVE, Access::READ, Access::COHERENT] {
        queue.run(add(VA, 1));
        // Another address of the same page, which the CPU shares.
        mock.map(space, VA + PAGE_SIZE, Pte::leaf(frame, access));
        let write = Sqe { opcode: Opcode::WRITE, ..add(VA + PAGE_SIZE, 1) };
        if access.write {
            assert_eq!(queue.run(write).head.status(), Status::SUCCESS);
        }
        if access.write && !access.atomic {
            meddle(&mock, frame);
        }
        queue.run(add(VA, 1));
        [VA, VA + PAGE_SIZE].iter().for_each(|&va| mock.map(space, va, Pte::NONE));
        invalidate(&mock, space, 2 * PAGE_SIZE);
        sync(&mock);
        meddle(&mock, frame);
        mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    }
}

/// A log that can be read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_report_says_what_happened_to_the_page() {
    let log = Log::default();
    let writer = log.clone();
    // For all threads: it is an engine that reports.
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let mock = checked();
    mock.lawless();
    let (_, mut queue, frame) = a_page(&mock);
    queue.run(add(VA + 8, 0x77));
    mock.ram64(frame + 8).store(0x1234_5678, Ordering::Relaxed);
    queue.run(add(VA + 8, 1));
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let from = text.find(
        " ERROR svmx_device::check: exclusivity: ASID 1, address 0x70000008: expected 0x77, found 0x12345678",
    );
    let report = &text[from.expect(&text)..];
    for part in [
        "in 8 bytes",
        "seen by engine ",
        &format!("in frame {frame:#x}"),
        "obtained a translation in ASID 1",
        "stored 0x77 at offset 0x8",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
}
