// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random commands: good ones of every form, and some with one thing wrong. What they work on is laid out in
//! [`crate::program`].
//!
//! Commands never read arrays of theirs that they write themselves, as the specification leaves open what
//! they see then (spec 5.5), and do nothing to a sum that is not a number but add to it.

use proptest::prelude::*;
use proptest::sample::select;
use svmx_abi::pci::{PAGE_SIZE, VA_END};
use svmx_abi::queue::{Condition, Opcode, Sqe, SqeFlags, WAIT_FOREVER, WidthLog2};

use crate::program::Window;

/// A command, with no tag yet.
pub(crate) fn sqe() -> BoxedStrategy<Sqe> {
    prop_oneof![
        6 => scalar(),
        12 => bulk(),
        2 => wide_cas(),
        3 => float(),
        4 => copy(),
        2 => fill(),
        2 => wait(),
        4 => shared(),
        1 => select(&[Opcode::NOP, Opcode::FENCE][..]).prop_map(|opcode| Sqe { opcode, ..Default::default() }),
        2 => refused(),
    ].boxed()
}

/// Where the elements of a command are.
fn target_address(bytes: u64) -> impl Strategy<Value = u64> {
    let huge = select(&[0, PAGE_SIZE, 511 * PAGE_SIZE][..]);
    prop_oneof![
        6 => address(Window::Targets, bytes),
        1 => address(Window::Alias, bytes),
        1 => (huge, 0..PAGE_SIZE / bytes).prop_map(move |(page, i)| Window::Huge.base() + page + i * bytes),
    ]
}

fn address(window: Window, bytes: u64) -> impl Strategy<Value = u64> {
    (0..window.pages() * PAGE_SIZE / bytes).prop_map(move |i| window.base() + i * bytes)
}

/// Small numbers, the largest ones, and any.
fn value(width: WidthLog2) -> impl Strategy<Value = u64> {
    let mask = u64::MAX >> (64 - (8 << width.0.min(3)));
    prop_oneof![0..4u64, (0..4u64).prop_map(|less| u64::MAX - less), any::<u64>()]
        .prop_map(move |value| value & mask)
}

fn width() -> impl Strategy<Value = WidthLog2> {
    select(&[WidthLog2::W64, WidthLog2::W32][..])
}

const INTEGER_ATOMICS: [Opcode; 10] = [
    Opcode::FETCH_ADD,
    Opcode::FETCH_AND,
    Opcode::FETCH_OR,
    Opcode::FETCH_XOR,
    Opcode::FETCH_UMIN,
    Opcode::FETCH_UMAX,
    Opcode::FETCH_SMIN,
    Opcode::FETCH_SMAX,
    Opcode::SWAP,
    Opcode::CAS,
];

fn scalar() -> BoxedStrategy<Sqe> {
    let mut opcodes = INTEGER_ATOMICS.to_vec();
    opcodes.extend([Opcode::READ, Opcode::WRITE]);
    (select(opcodes), width())
        .prop_flat_map(|(opcode, width)| {
            (target_address(1 << width.0), value(width), value(width)).prop_map(
                move |(addr, operand, compare)| Sqe {
                    opcode,
                    width,
                    addr,
                    operand: if opcode == Opcode::READ { 0 } else { operand },
                    compare: if opcode == Opcode::CAS { compare } else { 0 },
                    ..Default::default()
                },
            )
        })
        .boxed()
}

fn wide_cas() -> BoxedStrategy<Sqe> {
    let half = || prop_oneof![0..3u64, any::<u64>()];
    (target_address(16), half(), half(), half(), half())
        .prop_map(|(addr, operand, arg0, compare, arg1)| Sqe {
            opcode: Opcode::CAS,
            width: WidthLog2::W128,
            addr,
            operand,
            compare,
            arg0,
            arg1,
            ..Default::default()
        })
        .boxed()
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0..40u32, 10 => 0..600u32, 1 => 0..20_000u32]
}

/// Every bulk form of integer atomics.
fn bulk() -> BoxedStrategy<Sqe> {
    let widths = select(&[WidthLog2::W64, WidthLog2::W32, WidthLog2::W128][..]);
    (select(&INTEGER_ATOMICS[..]), widths, any::<[bool; 4]>())
        .prop_flat_map(|(opcode, width, flags)| {
            let opcode = if width == WidthLog2::W128 { Opcode::CAS } else { opcode };
            bulk_form(opcode, width, flags, target_address(1 << width.0).boxed())
        })
        .boxed()
}

fn bulk_form(
    opcode: Opcode,
    width: WidthLog2,
    [indexed, index64, operands, old]: [bool; 4],
    target: BoxedStrategy<u64>,
) -> impl Strategy<Value = Sqe> {
    let bytes = 1u64 << width.0;
    let cas = opcode == Opcode::CAS;
    let in_memory = operands || width == WidthLog2::W128;
    let index_base = Window::Indices.base() + if index64 { PAGE_SIZE } else { 0 };
    let index = (0..PAGE_SIZE / 8).prop_map(move |i| index_base + i * if index64 { 8 } else { 4 });
    let operand_bytes = if cas { 2 * bytes } else { bytes };
    let operand =
        if in_memory { address(Window::Operands, operand_bytes).boxed() } else { value(width).boxed() };
    let strides = prop_oneof![Just(1i32), Just(0), -9..=9i32, 100..300i32];
    let stride = strides.prop_map(move |stride| stride * bytes as i32);
    let ons: Vec<SqeFlags> = [
        (true, SqeFlags::BULK),
        (indexed, SqeFlags::INDEXED),
        (indexed && index64, SqeFlags::INDEX64),
        (operands, SqeFlags::OPERANDS),
        (old, SqeFlags::STORE_OLD),
    ]
    .into_iter()
    .filter_map(|(on, flag)| on.then_some(flag))
    .collect();
    let flags = ons.into_iter().reduce(SqeFlags::with).unwrap_or_default();
    (target, count(), stride, index, operand, value(width), address(Window::OldValues, bytes)).prop_map(
        move |(addr, count, stride, index_addr, operand, compare, arg0)| Sqe {
            opcode,
            width,
            flags,
            addr,
            operand,
            compare: if cas && !in_memory { compare } else { 0 },
            count,
            stride: if indexed { 0 } else { stride },
            index_addr: if indexed { index_addr } else { 0 },
            arg0: if old { arg0 } else { 0 },
            ..Default::default()
        },
    )
}

fn float() -> BoxedStrategy<Sqe> {
    let opcode = prop_oneof![
        3 => Just(Opcode::FETCH_FADD),
        1 => select(&[Opcode::SWAP, Opcode::READ, Opcode::WRITE][..]),
    ];
    (opcode, width(), any::<[bool; 5]>())
        .prop_flat_map(|(opcode, width, [bulk, flags @ ..])| {
            let single = width == WidthLog2::W32;
            let window = if single { Window::Floats32 } else { Window::Floats64 };
            let target = address(window, 1 << width.0).boxed();
            let floats = [0.5f64, 1.0, -0.0, 1e30, -1e30, 1e-310, f64::INFINITY, f64::NAN];
            let bits =
                floats.map(|float| if single { (float as f32).to_bits().into() } else { float.to_bits() });
            let number = prop_oneof![select(bits.to_vec()), value(width)].boxed();
            let in_memory = bulk && opcode == Opcode::FETCH_FADD && flags[2];
            let form = if bulk && opcode == Opcode::FETCH_FADD {
                bulk_form(opcode, width, flags, target).boxed()
            } else {
                target.prop_map(move |addr| Sqe { opcode, width, addr, ..Default::default() }).boxed()
            };
            (form, number).prop_map(move |(sqe, number)| match opcode {
                Opcode::READ => sqe,
                _ if in_memory => sqe,
                _ => Sqe { operand: number, ..sqe },
            })
        })
        .boxed()
}

fn element_width() -> impl Strategy<Value = WidthLog2> {
    select(&[WidthLog2::W64, WidthLog2::W32, WidthLog2::W8][..])
}

fn copy() -> BoxedStrategy<Sqe> {
    element_width()
        .prop_flat_map(|width| {
            let bytes = 1 << width.0;
            let to = prop_oneof![
                4 => address(Window::Targets, bytes),
                1 => address(Window::Operands, bytes),
                1 => address(Window::OldValues, bytes),
            ];
            let from = prop_oneof![
                4 => address(Window::Targets, bytes),
                1 => address(Window::Operands, bytes),
                1 => address(Window::Indices, bytes),
            ];
            // Near each other, too, so that they overlap either way.
            let near = (address(Window::Targets, bytes), -20..20i64)
                .prop_map(move |(to, by)| (to, to.wrapping_add_signed(by * bytes as i64)));
            (prop_oneof![(to, from), near], count()).prop_map(move |((addr, arg0), count)| Sqe {
                opcode: Opcode::COPY,
                width,
                addr,
                arg0,
                count,
                ..Default::default()
            })
        })
        .boxed()
}

fn fill() -> BoxedStrategy<Sqe> {
    element_width()
        .prop_flat_map(|width| {
            let bytes = 1 << width.0;
            let to = prop_oneof![4 => target_address(bytes), 1 => address(Window::Operands, bytes)];
            (to, value(width), count()).prop_map(move |(addr, operand, count)| Sqe {
                opcode: Opcode::FILL,
                width,
                addr,
                operand,
                count,
                ..Default::default()
            })
        })
        .boxed()
}

fn wait() -> BoxedStrategy<Sqe> {
    let time = prop_oneof![8 => Just(0), 2 => 1..2_000u64, 1 => 1..1_000_000u64, 1 => Just(WAIT_FOREVER)];
    width()
        .prop_flat_map(move |width| {
            let condition =
                (0..10u64).prop_map(|number| Condition::from_number(number).map_or(0, |it| it as u64));
            (target_address(1 << width.0), value(width), time.clone(), condition).prop_map(
                move |(addr, compare, arg0, arg1)| Sqe {
                    opcode: Opcode::WAIT,
                    width,
                    addr,
                    compare,
                    arg0,
                    arg1,
                    ..Default::default()
                },
            )
        })
        .boxed()
}

/// What commutes, on pages that every queue has.
fn shared() -> BoxedStrategy<Sqe> {
    let flags = (any::<bool>(), any::<[bool; 2]>());
    flags
        .prop_flat_map(|(bulk, [indexed, index64])| {
            let target = address(Window::Shared, 8).boxed();
            let flags = [indexed, index64, false, false];
            let form = if bulk {
                bulk_form(Opcode::FETCH_ADD, WidthLog2::W64, flags, target).boxed()
            } else {
                let scalar = |addr| Sqe {
                    opcode: Opcode::FETCH_ADD,
                    width: WidthLog2::W64,
                    addr,
                    ..Default::default()
                };
                target.prop_map(scalar).boxed()
            };
            (form, 1..4u64).prop_map(|(sqe, operand)| Sqe { operand, ..sqe })
        })
        .boxed()
}

/// A command with something wrong.
fn refused() -> BoxedStrategy<Sqe> {
    let good = prop_oneof![scalar(), bulk(), wide_cas(), copy(), fill(), wait(), shared()];
    let unknown = select(&[0x04, 0x0f, 0x1b, 0x22, 0x29, 0x3f, 0x40, 0xff][..]);
    (good, 0..14u8, unknown, any::<u64>())
        .prop_map(|(good, what, unknown, bits)| {
            let small = bits % 16;
            match what {
                0 => Sqe { opcode: Opcode(unknown), ..good },
                // What all queues reach is only added to.
                1 if Window::Shared.contains(good.addr) => Sqe { width: WidthLog2(small as u8), ..good },
                1 => Sqe { width: WidthLog2(small as u8), opcode: Opcode::FETCH_XOR, ..good },
                // Its old values are nobody's to know.
                2 if Window::Shared.contains(good.addr) => {
                    Sqe { flags: SqeFlags(good.flags.0 | 32 << (small % 11)), ..good }
                }
                2 => Sqe { flags: SqeFlags(good.flags.0 ^ (1 << small)), ..good },
                3 => Sqe { addr: good.addr + small, ..good },
                4 => Sqe { addr: bits & !31, ..good },
                // Where the address space ends, and where it begins.
                5 if bits & 64 == 0 => Sqe { addr: VA_END - 64, ..good },
                5 => Sqe { addr: 32, ..good },
                6 => Sqe { operand: good.operand ^ (1 << (bits % 64)), opcode: Opcode::READ, ..good },
                7 => Sqe { compare: bits, ..good },
                8 => Sqe { stride: good.stride.wrapping_add(small as i32), ..good },
                9 => Sqe { index_addr: good.index_addr + small, ..good },
                10 => Sqe { arg0: good.arg0.wrapping_add(small), ..good },
                11 => Sqe { arg1: good.arg1.wrapping_add(small), ..good },
                12 => Sqe { count: small as u32, ..good },
                _ => Sqe { index_addr: if good.index_addr == 0 { 0 } else { VA_END - 8 * small }, ..good },
            }
        })
        .boxed()
}
