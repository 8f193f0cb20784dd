// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The forms of commands (spec 5.4), one by one: where operands come from and old values go, 128 bits, COPY,
//! FILL and WAIT, and what is left when one of their accesses faults.

use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use svmx_abi::control::{Cancel, Replay};
use svmx_abi::fault::AccessKind;
use svmx_abi::pci::{PAGE_SIZE, VA_END};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Condition, Opcode, Sqe, SqeFlags, WAIT_FOREVER, WidthLog2};
use svmx_abi::status::Status;

use svmx_device::model::Options;

use mock_driver::{Mock, Space, UserQueue, add_strided, options, wait_until};

const VA: u64 = 0x7000_0000;
/// Where indices are.
const ARRAY: u64 = 0x7800_0000;
const OLD: SqeFlags = SqeFlags::BULK.with(SqeFlags::STORE_OLD);
const EACH: SqeFlags = SqeFlags::BULK.with(SqeFlags::OPERANDS);

/// An address space with pages at `VA` on, and where they are.
fn pages(mock: &Mock, accesses: &[Access]) -> (Space, u64) {
    let space = mock.space();
    let frames = mock.pages(accesses.len() as u64);
    for (at, access) in (0..).step_by(PAGE_SIZE as usize).zip(accesses) {
        mock.map(space, VA + at, Pte::leaf(frames + at, *access));
    }
    (space, frames)
}

fn words(mock: &Mock, at: u64, count: u64) -> Vec<u64> {
    (0..count).map(|i| mock.ram64(at + 8 * i).load(Ordering::Relaxed)).collect()
}

fn set(mock: &Mock, at: u64, values: &[u64]) {
    for (i, value) in (0..).zip(values) {
        mock.ram64(at + 8 * i).store(*value, Ordering::Relaxed);
    }
}

#[test]
fn operands_come_from_memory_and_old_values_go_there() {
    let mock = Mock::new();
    for access in [Access::EXCLUSIVE, Access::COHERENT] {
        let (space, frames) = pages(&mock, &[access, Access::READ_WRITE]);
        set(&mock, frames, &[10, 20, 30]);
        set(&mock, frames + PAGE_SIZE, &[1, 2, 3]);
        let mut queue = UserQueue::new(&mock, space);
        let cqe = queue.run(Sqe {
            flags: EACH.with(OLD),
            operand: VA + PAGE_SIZE,
            arg0: VA + PAGE_SIZE + 64,
            ..add_strided(VA, 3, 8)
        });
        assert_eq!((cqe.head.status(), cqe.applied, cqe.result), (Status::SUCCESS, 3, 0));
        assert_eq!(words(&mock, frames, 3), [11, 22, 33]);
        assert_eq!(words(&mock, frames + PAGE_SIZE + 64, 3), [10, 20, 30]);
        // Pairs: the compared value first. The second does not match.
        set(&mock, frames + PAGE_SIZE, &[11, 5, 0, 6, 33, 7]);
        let cas = Sqe { opcode: Opcode::CAS, flags: EACH, operand: VA + PAGE_SIZE, ..add_strided(VA, 3, 8) };
        assert_eq!(queue.run(cas).applied, 3);
        assert_eq!(words(&mock, frames, 3), [5, 22, 7]);
    }
}

#[test]
fn a_cas_of_128_bits_compares_both_halves() {
    let mock = Mock::new();
    for access in [Access::EXCLUSIVE, Access::COHERENT] {
        let (space, frames) = pages(&mock, &[access, Access::READ]);
        let mut queue = UserQueue::new(&mock, space);
        set(&mock, frames + 16, &[1, 2]);
        let cas = Sqe { opcode: Opcode::CAS, width: WidthLog2::W128, addr: VA + 16, ..Default::default() };
        let cqe = queue.run(Sqe { operand: 3, arg0: 4, compare: 1, arg1: 9, ..cas });
        assert_eq!((cqe.head.status(), cqe.applied, cqe.result, cqe.fault_addr), (Status::SUCCESS, 1, 1, 2));
        assert_eq!(words(&mock, frames + 16, 2), [1, 2]);
        queue.run(Sqe { operand: 3, arg0: 4, compare: 1, arg1: 2, ..cas });
        assert_eq!(words(&mock, frames + 16, 2), [3, 4]);
        // In bulk the one pair is in memory.
        set(&mock, frames + PAGE_SIZE + 32, &[3, 4, 5, 6]);
        let bulk = Sqe { flags: SqeFlags::BULK, operand: VA + PAGE_SIZE + 32, count: 2, stride: 16, ..cas };
        assert_eq!(queue.run(bulk).applied, 2);
        assert_eq!(words(&mock, frames + 16, 4), [5, 6, 0, 0]);
        assert_eq!(queue.run(Sqe { addr: VA + 8, ..cas }).head.status(), Status::MISALIGNED);
    }
}

#[test]
fn an_old_value_without_a_place_is_in_the_completion() {
    let mock = Mock::new();
    let (space, frames) = pages(&mock, &[Access::EXCLUSIVE]);
    let mut queue = UserQueue::new(&mock, space);
    set(&mock, frames, &[7]);
    let missing = VA + PAGE_SIZE;
    let command = Sqe { flags: OLD, arg0: missing, tag: 5, ..add_strided(VA, 4, 0) };
    queue.submit(command);
    let fault = mock.next_fault();
    assert_eq!((fault.va, fault.head.access(), fault.tag), (missing, AccessKind::WRITE, 5));
    assert_eq!(words(&mock, frames, 1), [8], "the element comes before its old value");
    // One grant, one access: the old value of the first element, and nothing more.
    let place = mock.pages(1);
    let (id, pte) = (queue.id, Pte::leaf(place, Access::READ_WRITE).0);
    mock.control(Replay { queue: id, fault_id: fault.fault_id, pte, ..Default::default() });
    assert_eq!(words(&mock, place, 2), [7, 0]);
    let fault = mock.next_fault();
    assert_eq!((fault.va, words(&mock, frames, 1)), (missing + 8, vec![9]));
    let status = Status::PERMISSION;
    mock.control(Cancel { queue: id, fault_id: fault.fault_id, status, ..Default::default() });
    let cqe = queue.wait();
    assert_eq!((cqe.head.status(), cqe.fault_addr), (Status::PERMISSION, missing + 8));
    assert_eq!((cqe.applied, cqe.result), (2, 8));
    let cqe = queue.run(Sqe { arg0: VA_END, ..command });
    assert_eq!((cqe.head.status(), cqe.fault_addr), (Status::ADDRESS_RANGE, VA_END));
    assert_eq!((cqe.applied, cqe.result), (1, 9));
}

#[test]
fn a_copy_moves_memory_in_either_direction() {
    let mock = Mock::new();
    let bytes = |at: u64, count| -> Vec<u8> { (at..at + count).map(|at| mock.ram8(at)).collect() };
    for (width, from, to, count) in [
        (WidthLog2::W8, 3u64, 5u64, 5000u32),
        (WidthLog2::W8, 5, 3, 5000),
        (WidthLog2::W8, 1, 4097, 4095),
        (WidthLog2::W32, 8, 4, 1500),
        (WidthLog2::W32, 4, 12, 1500),
        (WidthLog2::W64, 8, 16, 900),
        (WidthLog2::W64, 16, 8, 900),
        (WidthLog2::W64, 0, 0, 100),
    ] {
        let (space, frames) = pages(&mock, &[Access::EXCLUSIVE, Access::READ_WRITE, Access::COHERENT]);
        for at in 0..3 * PAGE_SIZE / 8 {
            set(&mock, frames + 8 * at, &[at.wrapping_mul(0x9e37_79b9_7f4a_7c15)]);
        }
        let size = u64::from(count) << width.0;
        let mut expected = bytes(frames, 3 * PAGE_SIZE);
        expected.copy_within(from as usize..(from + size) as usize, to as usize);
        let (opcode, addr, arg0) = (Opcode::COPY, VA + to, VA + from);
        let cqe =
            UserQueue::new(&mock, space).run(Sqe { opcode, width, addr, arg0, count, ..Default::default() });
        assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, count));
        assert!(bytes(frames, 3 * PAGE_SIZE) == expected, "{width:?} from {from} to {to}");
    }
}

#[test]
fn a_fill_writes_its_elements_only() {
    let mock = Mock::new();
    for (width, value, from, count) in [
        (WidthLog2::W8, 0xabu64, 3u64, 5000u32),
        (WidthLog2::W32, 0x1234_5678, 4, 1500),
        (WidthLog2::W64, u64::MAX / 3, 8, 1000),
    ] {
        let (space, frames) = pages(&mock, &[Access::EXCLUSIVE, Access::READ_WRITE, Access::COHERENT]);
        let (opcode, addr, operand) = (Opcode::FILL, VA + from, value);
        let cqe = UserQueue::new(&mock, space).run(Sqe {
            opcode,
            width,
            addr,
            operand,
            count,
            ..Default::default()
        });
        assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, count));
        let element = 1 << width.0;
        for at in 0..3 * PAGE_SIZE {
            let inside = (from..from + element * u64::from(count)).contains(&at);
            let want = if inside { value.to_le_bytes()[((at - from) % element) as usize] } else { 0 };
            assert_eq!(mock.ram8(frames + at), want, "byte {at} at width {width:?}");
        }
    }
}

#[test]
fn copy_and_fill_stop_where_memory_ends() {
    let mock = Mock::new();
    let (space, frames) = pages(&mock, &[Access::READ_WRITE]);
    set(&mock, frames, &[1, 2, 3, 4]);
    let mut queue = UserQueue::new(&mock, space);
    let width = WidthLog2::W64;
    let fill = Sqe { opcode: Opcode::FILL, width, operand: 9, count: 4, ..Default::default() };
    let copy = Sqe { opcode: Opcode::COPY, operand: 0, arg0: VA, ..fill };
    let read_only = VA + 0x10_0000;
    mock.map(space, read_only, Pte::leaf(mock.pages(1), Access::READ));
    for (sqe, va, kind, applied) in [
        (Sqe { addr: VA + PAGE_SIZE - 16, ..fill }, VA + PAGE_SIZE, AccessKind::WRITE, 2),
        (Sqe { addr: VA + PAGE_SIZE - 8, ..copy }, VA + PAGE_SIZE, AccessKind::WRITE, 1),
        (Sqe { addr: VA + 1024, arg0: VA - 16, ..copy }, VA - 16, AccessKind::READ, 0),
        // Backwards: the last one first.
        (Sqe { addr: VA + 8, arg0: VA - 8, ..copy }, VA - 8, AccessKind::READ, 3),
        (Sqe { addr: read_only, ..copy }, read_only, AccessKind::WRITE, 0),
    ] {
        queue.submit(sqe);
        let fault = mock.next_fault();
        assert_eq!((fault.va, fault.head.access()), (va, kind), "{sqe:?}");
        let (id, status) = (queue.id, Status::FAULT);
        mock.control(Cancel { queue: id, fault_id: fault.fault_id, status, ..Default::default() });
        let cqe = queue.wait();
        assert_eq!((cqe.head.status(), cqe.fault_addr, cqe.applied), (status, va, applied), "{sqe:?}");
    }
    let cqe = queue.run(Sqe { addr: VA_END, ..fill });
    assert_eq!((cqe.head.status(), cqe.fault_addr), (Status::ADDRESS_RANGE, VA_END));
    assert_eq!(queue.run(Sqe { addr: VA_END, count: 0, ..fill }).head.status(), Status::SUCCESS);
}

#[test]
fn a_wait_ends_by_its_condition_or_its_time() {
    let mock = Mock::new();
    let (space, frames) = pages(&mock, &[Access::EXCLUSIVE]);
    let (mut waiter, mut other) = (UserQueue::new(&mock, space), UserQueue::new(&mock, space));
    let wait = |width, condition, compare, time| {
        let arg1 = condition as u64;
        Sqe { opcode: Opcode::WAIT, width, addr: VA + 8, compare, arg0: time, arg1, ..Default::default() }
    };
    set(&mock, frames + 8, &[u64::from(u32::MAX)]);
    let cqe = waiter.run(wait(WidthLog2::W64, Condition::Slt, 0, 0));
    assert_eq!((cqe.head.status(), cqe.applied), (Status::TIMEOUT, 0));
    assert_eq!((cqe.result, cqe.fault_addr), (u32::MAX.into(), 0));
    let cqe = waiter.run(wait(WidthLog2::W32, Condition::Slt, 0, 0));
    assert_eq!((cqe.head.status(), cqe.applied, cqe.result), (Status::SUCCESS, 1, u32::MAX.into()));
    assert_eq!(waiter.run(wait(WidthLog2::W64, Condition::Eq, 0, 1000)).head.status(), Status::TIMEOUT);
    // Another queue goes on meanwhile, and what it does is seen.
    waiter.submit(wait(WidthLog2::W64, Condition::Ugt, 1 << 40, WAIT_FOREVER));
    for _ in 0..100 {
        assert_eq!(other.run(add_strided(VA, 10, 0)).applied, 10);
    }
    assert!(waiter.peek().is_none());
    other.run(Sqe { operand: 1 << 41, ..add_strided(VA + 8, 1, 0) });
    assert_eq!(waiter.wait().head.status(), Status::SUCCESS);
    // One without end ends with its queue.
    waiter.submit(wait(WidthLog2::W64, Condition::Eq, 1, WAIT_FOREVER));
    waiter.destroy();
}

/// A command that may be done many elements at a time, on pages of every kind, two of which are missing.
fn many() -> impl Strategy<Value = Sqe> {
    let opcodes = prop_oneof![0x10..0x1bu8, 0x20..0x22u8];
    let places = (0..500u64, 0..500u64, 0..700u32, -9..9i32);
    (opcodes, any::<bool>(), 0..0x20u16, places, any::<u32>()).prop_map(
        |(opcode, wide, flags, (to, from, count, stride), operand)| {
            let (opcode, bytes) = (Opcode(opcode), if wide { 8 } else { 4 });
            let width = if wide { WidthLog2::W64 } else { WidthLog2::W32 };
            let addr = VA + to * bytes;
            if opcode == Opcode::COPY {
                return Sqe { opcode, width, addr, arg0: VA + from * bytes, count, ..Default::default() };
            }
            if opcode == Opcode::FILL {
                return Sqe { opcode, width, addr, operand: operand.into(), count, ..Default::default() };
            }
            let mut flags = SqeFlags(flags | SqeFlags::BULK.0);
            let has = |flag| flags.contains(flag);
            let (each, indexed) = (has(SqeFlags::OPERANDS), has(SqeFlags::INDEXED));
            if !indexed {
                flags = SqeFlags(flags.0 & !SqeFlags::INDEX64.0);
            }
            Sqe {
                opcode,
                width,
                flags,
                addr,
                operand: if each { VA + from * 16 } else { operand.into() },
                compare: if opcode == Opcode::CAS && !each { u64::from(operand) & 3 } else { 0 },
                count,
                stride: if indexed { 0 } else { stride * bytes as i32 },
                index_addr: if indexed { ARRAY } else { 0 },
                arg0: if flags.contains(SqeFlags::STORE_OLD) { VA + 64 + from * bytes } else { 0 },
                ..Default::default()
            }
        },
    )
}

/// Status, elements applied, result and address of a completion.
type End = (Status, u32, u64, u64);

/// How the commands of a program end, and the memory that it leaves.
fn outcome(mock: &Mock, program: &[Sqe]) -> (Vec<End>, Vec<u64>) {
    let plain = Access { atomic: false, ..Access::EXCLUSIVE };
    let kinds = [Access::EXCLUSIVE, Access::COHERENT, Access::EXCLUSIVE, plain];
    let (space, frames) = pages(mock, &kinds);
    let indices = mock.pages(2);
    for page in 0..2 {
        let at = page * PAGE_SIZE;
        mock.map(space, ARRAY + at, Pte::leaf(indices + at, Access::READ));
        set(mock, indices + at, &(0..512u64).map(|i| i * 7919 % 1100 % 800).collect::<Vec<_>>());
    }
    set(mock, frames, &(0..2048u64).map(|i| i % 5).collect::<Vec<_>>());
    let mut queue = UserQueue::new(mock, space);
    let mut completions = vec![];
    for sqe in program {
        queue.submit(*sqe);
        let mut cqe = None;
        wait_until("a completion or a fault", || {
            if let Some(fault) = mock.fault() {
                let (queue, fault_id, status) = (queue.id, fault.fault_id, Status::FAULT);
                mock.post(Cancel { queue, fault_id, status, ..Default::default() });
            }
            cqe = queue.take();
            cqe.is_some()
        });
        let cqe = cqe.unwrap();
        completions.push((cqe.head.status(), cqe.applied, cqe.result, cqe.fault_addr));
    }
    (completions, words(mock, frames, 4 * PAGE_SIZE / 8))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]
    /// Many elements at a time or one by one, which a delay between read and write makes them: it is the same.
    #[test]
    fn both_ways_of_doing_elements_do_the_same(program in prop::collection::vec(many(), 1..12)) {
        let slow = Options { rmw_delay: Duration::from_nanos(1), ..options() };
        let (fast, slow) = (Mock::new(), Mock::with(slow, 6));
        prop_assert_eq!(outcome(&fast, &program), outcome(&slow, &program));
    }
}
