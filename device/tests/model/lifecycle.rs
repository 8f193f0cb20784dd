// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Queues and contexts that come and go, resets, bad doorbells, full rings, sleep and waking.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use svmx_abi::control::{ControlEntry, ControlFlags, ControlOpcode, DestroyContext, DestroyQueue, Sync};
use svmx_abi::doorbell::{DRIVER_PAGE, driver, queue as words};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Opcode, Sqe, WAIT_FOREVER, WidthLog2};
use svmx_abi::regs::{self, Control, Counter, FatalError};
use svmx_abi::status::Status;
use svmx_device::device::Region;
use svmx_device::model::Options;

use mock_driver::{Mock, UserQueue, add, add_strided, options, wait_until};

const VA: u64 = 0x7000_0000;

fn fatal(mock: &Mock) -> u64 {
    wait_until("a fatal error", || mock.read(regs::STATUS, 4) == 2);
    mock.read(regs::FATAL_ERROR, 4)
}

#[test]
fn queues_end_whatever_they_do() {
    let mock = Mock::new();
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    let mut queue = UserQueue::new(&mock, space);
    for round in 0..100 {
        // Busy, stalled, idle; asleep or not.
        match round % 3 {
            0 => queue.submit(add_strided(VA, u32::MAX, 0)),
            1 => queue.submit(add(VA + 0x10_0000, 1)),
            _ => {}
        }
        if round % 3 == 0 {
            let seen = mock.ram64(frame).load(Ordering::Relaxed);
            wait_until("work", || mock.ram64(frame).load(Ordering::Relaxed) != seen);
        }
        queue.destroy();
        let seen = mock.ram64(frame).load(Ordering::Relaxed);
        std::thread::yield_now();
        assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), seen, "round {round}");
        assert!(queue.peek().is_none(), "no completion of a queue that is gone");
        (queue.tail, queue.head) = (0, 0);
        assert_eq!(mock.control(queue.description(space)), Status::SUCCESS);
        while mock.fault().is_some() {}
    }
}

#[test]
fn identifiers_and_rings_are_checked() {
    let mock = Mock::new();
    let space = mock.space();
    let queue = UserQueue::new(&mock, space);
    let good = queue.description(space);
    let other = svmx_abi::control::CreateQueue { queue: 99, ..good };
    for (entry, status) in [
        (good.into(), Status::BAD_ID),
        (svmx_abi::control::CreateQueue { queue: 0, ..good }.into(), Status::BAD_ID),
        (svmx_abi::control::CreateQueue { queue: 512, ..good }.into(), Status::BAD_ID),
        (svmx_abi::control::CreateQueue { asid: 77, ..other }.into(), Status::BAD_ID),
        (svmx_abi::control::CreateQueue { sq_log2: 13, ..other }.into(), Status::BAD_RING),
        (svmx_abi::control::CreateQueue { cq_log2: 0, ..other }.into(), Status::BAD_RING),
        (svmx_abi::control::CreateQueue { cq_base: 8, ..other }.into(), Status::BAD_RING),
        (svmx_abi::control::CreateQueue { sq_base: !0xfff, ..other }.into(), Status::BAD_RING),
        (svmx_abi::control::CreateQueue { vector: 1, ..other }.into(), Status::BAD_RING),
        (svmx_abi::control::CreateQueue { vector: 16, ..other }.into(), Status::BAD_RING),
        (DestroyContext { asid: space.asid, ..Default::default() }.into(), Status::BAD_ID),
        (DestroyQueue { queue: 98, ..Default::default() }.into(), Status::BAD_ID),
        (ControlEntry { opcode: ControlOpcode(0xee), ..Default::default() }, Status::BAD_ID),
    ] {
        let entry: ControlEntry = entry;
        assert_eq!(mock.control(entry), status, "{entry:?}");
    }
    queue.destroy();
    assert_eq!(mock.control(DestroyContext { asid: space.asid, ..Default::default() }), Status::SUCCESS);
}

#[test]
fn bad_doorbells_break_their_queue_only() {
    let mock = Mock::new();
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    let mut good = UserQueue::new(&mock, space);
    for (word, value) in
        [(words::SQ_TAIL, 65), (words::SQ_TAIL, u32::MAX), (words::CQ_HEAD, 1), (words::CQ_HEAD, !70)]
    {
        let mut bad = UserQueue::new(&mock, space);
        mock.ring(bad.id, word, value);
        let mut cqe = None;
        wait_until("a completion", || {
            cqe = bad.peek();
            cqe.is_some()
        });
        let cqe = cqe.unwrap();
        assert_eq!((cqe.head.status(), cqe.head.tag()), (Status::BAD_DOORBELL, 0));
        bad.head = 1;
        bad.submit(add(VA, 1000));
        mock.write(regs::KICK, bad.id.into(), 4);
        assert_eq!(good.run(add(VA, 1)).head.status(), Status::SUCCESS);
        assert!(bad.peek().is_none());
        bad.destroy();
    }
    assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), 4);
}

#[test]
fn a_full_completion_queue_waits() {
    let mock = Mock::new();
    let space = mock.space();
    let mut queue = UserQueue::sized(&mock, space, 1);
    for lap in 0..200u32 {
        // Two completions fit; two more commands wait until those are taken.
        for i in 0..2 {
            queue.submit(Sqe { tag: 4 * lap + i, ..Default::default() });
        }
        wait_until("completions", || mock.counter(Counter::Commands) == u64::from(4 * lap + 2));
        for i in 2..4 {
            queue.submit(Sqe { tag: 4 * lap + i, ..Default::default() });
        }
        if lap % 8 == 0 {
            std::thread::sleep(2 * options().poll);
        }
        assert_eq!(mock.counter(Counter::Commands), u64::from(4 * lap + 2));
        for i in 0..4 {
            let cqe = queue.wait();
            assert_eq!((cqe.head.tag(), cqe.sq_head), (4 * lap + i, 4 * lap + i + 1));
        }
    }
}

#[test]
fn the_driver_s_mistakes_are_fatal_until_reset() {
    let mock = Mock::new();
    let cases: [(&dyn Fn(), FatalError); 4] = [
        (&|| mock.ring(DRIVER_PAGE, driver::CTL_TAIL, 66), FatalError::BadControlTail),
        (
            &|| {
                let space = mock.space();
                let mut queue = UserQueue::new(&mock, space);
                mock.ring(DRIVER_PAGE, driver::FAULT_HEAD, 7);
                // Found by an engine while the control thread sleeps.
                let asleep = || mock.doorbell(DRIVER_PAGE, driver::NEED_KICK).load(Ordering::Relaxed) == 1;
                wait_until("sleep", asleep);
                queue.submit(add(VA, 1));
            },
            FatalError::BadFaultHead,
        ),
        (
            &|| {
                // By hand: `post` has its own completion word.
                let entry = ControlEntry {
                    flags: ControlFlags::NOTIFY,
                    notify_addr: 0x1004,
                    ..ControlEntry::from(Sync::default())
                };
                mock.post_raw(entry);
            },
            FatalError::BadNotifyAddress,
        ),
        (
            &|| {
                mock.write(regs::CONTROL, Control::RESET.0.into(), 4);
                mock.write(regs::CTL_LOG2, 60, 4);
                mock.write(regs::CONTROL, Control::ENABLE.0.into(), 4);
            },
            FatalError::BadRing,
        ),
    ];
    for (cause, error) in cases {
        cause();
        assert_eq!(fatal(&mock), error as u64);
        // Only a reset helps.
        mock.write(regs::CONTROL, 0, 4);
        mock.write(regs::CONTROL, Control::ENABLE.0.into(), 4);
        assert_eq!(mock.read(regs::STATUS, 4), 2);
        mock.write(regs::CONTROL, Control::RESET.0.into(), 4);
        assert_eq!((mock.read(regs::STATUS, 4), mock.read(regs::FATAL_ERROR, 4)), (0, 0));
        mock.start();
        assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
    }
}

#[test]
fn every_reset_while_busy_leaves_memory_alone() {
    let mock = Mock::new();
    for round in 0..60 {
        let space = mock.space();
        let frame = mock.pages(1);
        mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
        let mut queues = [UserQueue::sized(&mock, space, 1), UserQueue::sized(&mock, space, 1)];
        queues[0].submit(add_strided(VA, u32::MAX, 0));
        queues[1].submit(add(VA + 0x10_0000, 1));
        wait_until("work", || mock.ram64(frame).load(Ordering::Relaxed) > 0);
        match round % 4 {
            0 => mock.device.lock().reset(),
            1 => mock.device.lock().write(Region::Config, 0x68, &0xa810u16.to_le_bytes()),
            2 => mock.write(regs::CONTROL, Control::RESET.0.into(), 4),
            _ => mock.write(regs::CONTROL, 0, 4),
        }
        let seen = mock.ram64(frame).load(Ordering::Relaxed);
        std::thread::yield_now();
        assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), seen);
        assert_eq!(mock.read(regs::STATUS, 4), 0);
        for page in 0..3 {
            for word in [0, 0x40, 0x80, 0xc0, 0x100] {
                assert_eq!(
                    mock.doorbell(page, word).load(Ordering::Relaxed),
                    0,
                    "page {page} word {word:#x}"
                );
            }
        }
        let kept = mock.read(regs::CTL_BASE, 8) != 0;
        assert_eq!(kept, round % 4 == 3, "CTL_BASE after round {round}");
        mock.rewind();
        mock.start();
    }
}

#[test]
fn whoever_sleeps_wakes_every_time() {
    let mock = Mock::with(Options { poll: Duration::ZERO, ..options() }, 6);
    let space = mock.space();
    let mut queues = [UserQueue::new(&mock, space), UserQueue::new(&mock, space)];
    for round in 0..5000u32 {
        let queue = &mut queues[round as usize % 2];
        let cqe = queue.run(Sqe { tag: round, ..Default::default() });
        assert_eq!(cqe.head.tag(), round);
        if round % 16 == 0 {
            assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
        }
    }
    assert!(mock.counter(Counter::Kicks) > 0);
}

#[test]
fn an_armed_consumer_is_interrupted_once() {
    let mock = Mock::new();
    let space = mock.space();
    let mut queue = UserQueue::new(&mock, space);
    let raised = || mock.counter(Counter::Interrupts);
    queue.run(Sqe::default());
    assert_eq!(raised(), 0);
    mock.doorbell(queue.id, words::CQ_ARM).store(1, Ordering::SeqCst);
    queue.run(Sqe::default());
    wait_until("an interrupt", || raised() == 1);
    queue.run(Sqe::default());
    assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
    assert_eq!((raised(), mock.doorbell(queue.id, words::CQ_ARM).load(Ordering::SeqCst)), (1, 0));
    // No event is set, so it is pending.
    let mut pending = [0; 8];
    mock.device.lock().read(Region::Msix, 0x1000, &mut pending);
    assert_eq!(pending, [1 << 2, 0, 0, 0, 0, 0, 0, 0]);
}

/// Whether this process runs nothing but that test; if not, another one does, and has succeeded.
fn alone(test: &str) -> bool {
    if std::env::var_os("SVMX_TEST_ALONE").is_some() {
        return true;
    }
    let test = format!("lifecycle::{test}");
    let me = std::env::current_exe().unwrap();
    let status = std::process::Command::new(me).args(["--exact", &test]).env("SVMX_TEST_ALONE", "1").status();
    assert!(status.unwrap().success());
    false
}

/// Microseconds of CPU that this process uses in a second.
fn cpu_in_a_second() -> i64 {
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
    };
    std::thread::sleep(Duration::from_millis(50));
    let before = used();
    std::thread::sleep(Duration::from_secs(1));
    used() - before
}

#[test]
fn an_idle_device_uses_no_cpu() {
    if !alone("an_idle_device_uses_no_cpu") {
        return;
    }
    let mock = Mock::new();
    let space = mock.space();
    let mut queues: Vec<_> = (0..8).map(|_| UserQueue::sized(&mock, space, 1)).collect();
    queues.iter_mut().for_each(|queue| assert_eq!(queue.run(Sqe::default()).head.status(), Status::SUCCESS));
    let all_disarmed =
        || (0..=8).all(|page| mock.doorbell(page, words::NEED_KICK).load(Ordering::Relaxed) == 1);
    wait_until("sleep", all_disarmed);
    let spent = cpu_in_a_second();
    assert!(spent < 10_000, "{spent} µs of CPU in an idle second");
}

#[test]
fn a_wait_does_not_keep_a_cpu_busy() {
    if !alone("a_wait_does_not_keep_a_cpu_busy") {
        return;
    }
    let mock = Mock::new();
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    let mut waiters: Vec<_> = (0..3).map(|_| UserQueue::new(&mock, space)).collect();
    let (opcode, width) = (Opcode::WAIT, WidthLog2::W64);
    let wait = Sqe { opcode, width, addr: VA, compare: 1, arg0: WAIT_FOREVER, ..Default::default() };
    waiters.iter_mut().for_each(|queue| queue.submit(wait));
    let spent = cpu_in_a_second();
    assert!(spent < 200_000, "{spent} µs of CPU in a second of waiting");
    // Another queue is served at once, and what it does is seen.
    UserQueue::new(&mock, space).run(add(VA, 1));
    waiters.iter_mut().for_each(|queue| assert_eq!(queue.wait().head.status(), Status::SUCCESS));
}

#[test]
fn a_busy_queue_starves_no_other() {
    let mock = Mock::with(Options { engines: 1, ..options() }, 6);
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    let mut queues: Vec<_> = (0..3).map(|_| UserQueue::new(&mock, space)).collect();
    // On both sides of the one that waits.
    queues[0].submit(add_strided(VA, u32::MAX, 0));
    queues[2].submit(add_strided(VA, u32::MAX, 0));
    for _ in 0..20 {
        assert_eq!(queues[1].run(add(VA, 1)).head.status(), Status::SUCCESS);
    }
    assert!(queues[0].peek().is_none() && queues[2].peek().is_none(), "still busy");
}
