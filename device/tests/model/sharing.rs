// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Several engines and host threads on the same words: what *atomic* and *coherent* pages promise (spec
//! 6.3), and what they don't.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use svmx_abi::control::{Replay, Sync, TlbInvalidate};
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Opcode, Sqe, WidthLog2};
use svmx_abi::status::Status;
use svmx_device::model::Options;

use mock_driver::{Mock, Stop, UserQueue, add_strided, options, wait_until};

const VA: u64 = 0x7000_0000;
const COUNT: u32 = 300_000;

#[test]
fn two_engines_on_one_atomic_page_lose_nothing() {
    let mock = Mock::new();
    // Two contexts: the device serializes by guest-physical page.
    let frame = mock.pages(1);
    let mut queues = [0, 1].map(|at: u64| {
        let space = mock.space();
        mock.map(space, VA + at * 0x5000, Pte::leaf(frame, Access::EXCLUSIVE));
        UserQueue::new(&mock, space)
    });
    for (at, queue) in queues.iter_mut().enumerate() {
        queue.submit(add_strided(VA + at as u64 * 0x5000, COUNT, 0));
    }
    for queue in &mut queues {
        let cqe = queue.wait();
        assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, COUNT));
    }
    assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), 2 * u64::from(COUNT));
}

/// Commands of one element between bulk ones: an engine comes to a page that it owns by both ways, while another one
/// asks for it at any moment.
#[test]
fn single_commands_between_bulk_ones_lose_nothing() {
    const ROUNDS: u32 = 3_000;
    let mock = Mock::new();
    let frame = mock.pages(1);
    let space = mock.space();
    (0..2).for_each(|at| mock.map(space, VA + at * PAGE_SIZE, Pte::leaf(frame, Access::EXCLUSIVE)));
    let add = |va| Sqe {
        opcode: Opcode::FETCH_ADD,
        width: WidthLog2::W64,
        operand: 1,
        addr: va,
        ..Default::default()
    };
    thread::scope(|scope| {
        for at in 0..2u32 {
            let mut queue = UserQueue::new(&mock, space);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    // By the other name of the page, too: its own translation is not remembered to be owned.
                    let commands =
                        [add_strided(VA, 40, 0), add(VA + PAGE_SIZE), add_strided(VA, 1 + at + round % 7, 0)];
                    commands.iter().for_each(|command| queue.submit(*command));
                    commands.iter().for_each(|_| assert_eq!(queue.wait().head.status(), Status::SUCCESS));
                }
            });
        }
    });
    let each = |at: u32| (0..ROUNDS).map(|round| u64::from(40 + 1 + 1 + at + round % 7)).sum::<u64>();
    assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), each(0) + each(1));
}

/// Two engines on the same pages at random, the control thread on them too, for a queue that is never given more
/// than one access at a time, and translations that come and go: no addition is lost.
#[test]
fn engines_and_replays_on_the_same_pages_lose_nothing() {
    const PAGES: u64 = 3;
    const REPLAYS: u32 = 200;
    // With a window between read and write that others can fall into.
    let mock = Mock::with(Options { rmw_delay: Duration::from_micros(1), ..options() }, 6);
    let (space, other) = (mock.space(), mock.space());
    let frames = mock.pages(PAGES);
    let pte = |page: u64| Pte::leaf(frames + page % PAGES * PAGE_SIZE, Access::EXCLUSIVE);
    // Sixteen views of the pages, so that what is shared by two engines is not what both always use.
    (0..16).for_each(|page| mock.map(space, VA + page * PAGE_SIZE, pte(page)));
    let mut replayed = UserQueue::new(&mock, other);
    replayed.submit(add_strided(VA, REPLAYS, 0));
    let stop = AtomicBool::new(false);
    let added = thread::scope(|scope| {
        let busy = [0, 1].map(|at: u64| {
            let (mock, stop) = (&mock, &stop);
            scope.spawn(move || {
                let mut queue = UserQueue::new(mock, space);
                let mut added = 0;
                while !stop.load(Ordering::Relaxed) {
                    // A page of one's own for a while, then a word that is everybody's, then many pages.
                    let (own, all) = (VA + (at + 1) * PAGE_SIZE, VA);
                    for command in
                        [add_strided(own, 100, 0), add_strided(all, 300, 0), add_strided(VA + 8, 200, 256)]
                    {
                        let cqe = queue.run(command);
                        assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, command.count));
                        added += u64::from(command.count);
                    }
                }
                added
            })
        });
        let stopped = Stop(&stop);
        for element in 0..u64::from(REPLAYS) {
            let fault = mock.next_fault();
            assert_eq!(fault.va, VA);
            let replay =
                Replay { queue: replayed.id, fault_id: fault.fault_id, pte: pte(0).0, ..Default::default() };
            mock.post(replay);
            let (asid, va) = (space.asid, VA + element % 16 * PAGE_SIZE);
            mock.post(TlbInvalidate { asid, va, len: PAGE_SIZE, ..Default::default() });
            assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
        }
        drop(stopped);
        busy.map(|thread| thread.join().unwrap()).iter().sum::<u64>()
    });
    assert_eq!(replayed.wait().applied, REPLAYS);
    let words = (0..PAGES * PAGE_SIZE).step_by(8);
    let found: u64 = words.map(|at| mock.ram64(frames + at).load(Ordering::Relaxed)).sum();
    assert_eq!(found, added + u64::from(REPLAYS));
}

/// Adds from a host thread while the device adds `count`; how much is missing in the end.
fn lost(mock: &Mock, access: Access, count: u32) -> u64 {
    let frame = mock.pages(1);
    let space = mock.space();
    mock.map(space, VA, Pte::leaf(frame, access));
    let mut queue = UserQueue::new(mock, space);
    let done = AtomicBool::new(false);
    let word = mock.ram64(frame);
    let added = thread::scope(|scope| {
        let host = scope.spawn(|| {
            let mut added = 0;
            while !done.load(Ordering::Relaxed) {
                word.fetch_add(1, Ordering::Relaxed);
                added += 1;
            }
            added
        });
        let stop = Stop(&done);
        assert_eq!(queue.run(add_strided(VA, count, 0)).applied, count);
        drop(stop);
        host.join().unwrap()
    });
    added + u64::from(count) - word.load(Ordering::Relaxed)
}

#[test]
fn a_coherent_page_shared_with_the_host_loses_nothing() {
    let mock = Mock::new();
    assert_eq!(lost(&mock, Access::COHERENT, COUNT), 0);
    assert_eq!(lost(&mock, Access { atomic: true, ..Access::COHERENT }, COUNT), 0);
}

/// The negative control: without exclusive access updates are lost.
#[test]
fn an_atomic_page_shared_with_the_host_loses_updates() {
    let mock = Mock::with(Options { rmw_delay: Duration::from_micros(2), ..options() }, 6);
    mock.lawless();
    assert!(lost(&mock, Access::EXCLUSIVE, COUNT) > 0);
}

#[test]
fn a_write_is_not_lost_between_another_queue_s_read_and_write() {
    let mock = Mock::with(Options { rmw_delay: Duration::from_micros(4), ..options() }, 6);
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    let (mut adder, mut writer) = (UserQueue::new(&mock, space), UserQueue::new(&mock, space));
    let low = || mock.ram64(frame).load(Ordering::Relaxed) as u32;
    for round in 1..60u64 {
        let before = low();
        adder.submit(add_strided(VA, 500, 0));
        wait_until("the adder", || low() != before);
        let (opcode, width, operand) = (Opcode::WRITE, WidthLog2::W64, round << 32);
        writer.run(Sqe { opcode, width, operand, addr: VA, ..Default::default() });
        assert_eq!(mock.ram64(frame).load(Ordering::Relaxed) >> 32, round);
        adder.wait();
        assert_eq!(mock.ram64(frame).load(Ordering::Relaxed) >> 32, round);
    }
}
