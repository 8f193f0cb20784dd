// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every command × width against a sequential model.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use svmx_abi::pci::{PAGE_SIZE, VA_END};
use svmx_abi::pte::{Access, Pte, span};
use svmx_abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx_abi::status::Status;

use mock_driver::{Mock, UserQueue, add, add_indexed, add_strided};

const VA: u64 = 0x7000_0000;
/// The first so many of `Opcode::ALL` are on one element of 32 or 64 bits, or on none.
const SCALARS: usize = 15;

/// What the specification says an element becomes (spec 5.2), written as plainly as possible.
fn expected(opcode: Opcode, wide: bool, m: u64, v: u64, compare: u64) -> u64 {
    let signed = |x: u64| if wide { x as i64 } else { i64::from(x as u32 as i32) };
    let new = match opcode {
        Opcode::WRITE | Opcode::SWAP => v,
        Opcode::FETCH_ADD => m.wrapping_add(v),
        Opcode::FETCH_AND => m & v,
        Opcode::FETCH_OR => m | v,
        Opcode::FETCH_XOR => m ^ v,
        Opcode::FETCH_UMIN => m.min(v),
        Opcode::FETCH_UMAX => m.max(v),
        Opcode::FETCH_SMIN if signed(v) < signed(m) => v,
        Opcode::FETCH_SMAX if signed(v) > signed(m) => v,
        Opcode::CAS if m == compare => v,
        Opcode::FETCH_FADD if wide => (f64::from_bits(m) + f64::from_bits(v)).to_bits(),
        Opcode::FETCH_FADD => (f32::from_bits(m as u32) + f32::from_bits(v as u32)).to_bits().into(),
        _ => m,
    };
    if wide { new } else { new & u64::from(u32::MAX) }
}

fn is_nan(wide: bool, bits: u64) -> bool {
    if wide { f64::from_bits(bits).is_nan() } else { f32::from_bits(bits as u32).is_nan() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]
    #[test]
    fn scalars_match_the_model(
        program in prop::collection::vec(
            (0..SCALARS, any::<bool>(), 0..8u64, 0..3u64, any::<u64>(), any::<u64>(), any::<bool>()),
            1..60,
        ),
    ) {
        let mock = Mock::new();
        let space = mock.space();
        // Atomic, coherent, and both kinds of bits.
        let kinds = [Access::EXCLUSIVE, Access::COHERENT, Access { atomic: true, ..Access::COHERENT }];
        let frames = kinds.map(|access| {
            let frame = mock.pages(1);
            mock.map(space, VA + frame, Pte::leaf(frame, access));
            frame
        });
        let mut queue = UserQueue::new(&mock, space);
        for (tag, (op, wide, slot, kind, operand, compare, hit)) in program.into_iter().enumerate() {
            let opcode = Opcode::ALL[op].1;
            let mask = if wide { u64::MAX } else { u64::from(u32::MAX) };
            let frame = frames[kind as usize];
            // The last words of the page too.
            let at = frame + (PAGE_SIZE - 8 * 8) + 8 * slot + if wide { 0 } else { 4 };
            let load = || if wide { mock.ram64(at).load(Ordering::Relaxed) } else { mock.ram32(at).load(Ordering::Relaxed).into() };
            let m = load();
            let neighbours = mock.ram64(at & !7).load(Ordering::Relaxed) & if wide { 0 } else { u64::from(u32::MAX) };
            if matches!(opcode, Opcode::NOP | Opcode::FENCE) {
                let cqe = queue.run(Sqe { opcode, tag: tag as u32, ..Default::default() });
                prop_assert_eq!((cqe.head.status(), cqe.head.tag(), cqe.applied), (Status::SUCCESS, tag as u32, 0));
                prop_assert_eq!((cqe.result, cqe.fault_addr, load()), (0, 0, m));
                continue;
            }
            let operand = if opcode == Opcode::READ { 0 } else { operand & mask };
            let compare = match opcode { Opcode::CAS if hit => m, Opcode::CAS => compare & mask, _ => 0 };
            let width = if wide { WidthLog2::W64 } else { WidthLog2::W32 };
            let cqe = queue.run(Sqe { opcode, width, tag: tag as u32, addr: VA + at, operand, compare, ..Default::default() });
            prop_assert_eq!((cqe.head.status(), cqe.head.tag(), cqe.applied), (Status::SUCCESS, tag as u32, 1));
            prop_assert_eq!(cqe.result, if opcode == Opcode::WRITE { 0 } else { m });
            let new = expected(opcode, wide, m, operand, compare);
            if opcode == Opcode::FETCH_FADD && is_nan(wide, new) {
                prop_assert!(is_nan(wide, load()));
            } else {
                prop_assert_eq!(load(), new, "{:?} wide {}", opcode, wide);
            }
            if !wide {
                prop_assert_eq!(mock.ram64(at & !7).load(Ordering::Relaxed) & u64::from(u32::MAX), neighbours);
            }
        }
    }

    #[test]
    fn bulk_matches_the_model(
        count in 0..400u32,
        stride in -5..=5i32,
        wide in any::<bool>(),
        indexed in any::<bool>(),
        index64 in any::<bool>(),
        indices in prop::collection::vec(0..3000u64, 400),
        operand in any::<u32>(),
    ) {
        let mock = Mock::new();
        let space = mock.space();
        let frames = mock.pages(8);
        let index_frames = mock.pages(1);
        for page in 0..8 {
            let access = if page % 2 == 0 { Access::EXCLUSIVE } else { Access::COHERENT };
            mock.map(space, VA + page * PAGE_SIZE, Pte::leaf(frames + page * PAGE_SIZE, access));
        }
        mock.map(space, VA + 8 * PAGE_SIZE, Pte::leaf(index_frames, Access::READ));
        let size = if wide { 8 } else { 4 };
        let (base, stride) = if indexed { (0, 0) } else { (4 * PAGE_SIZE, stride * size as i32) };
        let mut model = vec![0u64; (8 * PAGE_SIZE / size) as usize];
        for (i, &index) in (0..u64::from(count)).zip(&indices) {
            if indexed && index64 {
                mock.ram64(index_frames + 8 * i).store(index, Ordering::Relaxed);
            } else if indexed {
                mock.ram32(index_frames + 4 * i).store(index as u32, Ordering::Relaxed);
            }
            let strided = (base as i64 + i as i64 * i64::from(stride)) / size as i64;
            let cell = &mut model[if indexed { index } else { strided as u64 } as usize];
            *cell = if wide {
                cell.wrapping_add(operand.into())
            } else {
                u64::from((*cell as u32).wrapping_add(operand))
            };
        }
        let mut flags = SqeFlags::BULK;
        if indexed {
            flags = flags.with(SqeFlags::INDEXED);
            if index64 { flags = flags.with(SqeFlags::INDEX64) }
        }
        let cqe = UserQueue::new(&mock, space).run(Sqe {
            flags,
            width: if wide { WidthLog2::W64 } else { WidthLog2::W32 },
            count,
            stride,
            index_addr: if indexed { VA + 8 * PAGE_SIZE } else { 0 },
            ..add(VA + base, operand.into())
        });
        prop_assert_eq!((cqe.head.status(), cqe.applied, cqe.result), (Status::SUCCESS, count, 0));
        for (i, want) in model.iter().enumerate() {
            let at = frames + size * i as u64;
            let got = if wide { mock.ram64(at).load(Ordering::Relaxed) } else { mock.ram32(at).load(Ordering::Relaxed).into() };
            prop_assert_eq!(got, *want, "element {}", i);
        }
    }
}

#[test]
fn a_huge_page_is_used_whole() {
    let mock = Mock::new();
    let space = mock.space();
    let huge = span(1);
    let va = 0x4000_0000;
    mock.ram64(mock.pte_at(space, va, 1))
        .store(Pte::huge_leaf(16 << 20, Access::EXCLUSIVE).0, Ordering::Release);
    let mut queue = UserQueue::new(&mock, space);
    let cqe = queue.run(add_strided(va, 512, 4096));
    assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, 512));
    assert_eq!(queue.run(add(va + huge - 8, 5)).head.status(), Status::SUCCESS);
    assert_eq!(mock.ram64((16 << 20) + huge - 8).load(Ordering::Relaxed), 5);
    assert_eq!(mock.ram64((16 << 20) + huge - 4096).load(Ordering::Relaxed), 1);
}

#[test]
fn what_is_wrong_ends_the_command_and_nothing_else() {
    let mock = Mock::new();
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    mock.map(space, VA + 0x1000, Pte::leaf(1 << 40, Access::EXCLUSIVE));
    mock.map(space, VA + 0x2000, Pte(u64::MAX));
    let mut queue = UserQueue::new(&mock, space);
    for (sqe, status, va, applied) in [
        (add(VA + 4, 1), Status::MISALIGNED, VA + 4, 0),
        (add(VA_END, 1), Status::ADDRESS_RANGE, VA_END, 0),
        (add(VA + 0x1000, 1), Status::BAD_MEMORY, VA + 0x1000, 0),
        (add(VA + 0x2008, 1), Status::BAD_PAGE_TABLE, VA + 0x2008, 0),
        (Sqe { opcode: Opcode(0xff), ..add(VA, 1) }, Status::BAD_OPCODE, 0, 0),
        (add_strided(VA + 0xff8, 3, 8), Status::BAD_MEMORY, VA + 0x1000, 1),
        (add_strided(VA, 0, 8), Status::SUCCESS, 0, 0),
        (add_indexed(VA, 1, VA_END - 4 + 4), Status::ADDRESS_RANGE, VA_END, 0),
        (add(VA, 1), Status::SUCCESS, 0, 1),
    ] {
        let cqe = queue.run(sqe);
        assert_eq!((cqe.head.status(), cqe.fault_addr, cqe.applied), (status, va, applied), "{sqe:?}");
    }
    assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), 1);
}
