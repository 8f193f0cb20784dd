// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every operation on edge values, and at every place in a page and around a 2 MiB boundary.

use super::{Bench, model, operations, scalars};
use crate::area::{Area, Backing, PAGE};
use crate::random::Random;
use crate::scenario::Run;
use anyhow::{Result, ensure};
use svmx::abi::queue::{Opcode, Sqe, WidthLog2};
use svmx::abi::status::Status;

/// An element, a command on it, and what is next to it.
struct Case {
    entry: Sqe,
    offset: u64,
    old: u128,
}

/// Integers and bit patterns worth a try, zero-extended.
pub(super) fn integers(width: WidthLog2, random: &mut Random) -> Vec<u128> {
    let max = model::greatest(width);
    let sign = max ^ (max >> 1);
    let alternating = (u128::MAX / 3) & max;
    let mut values = vec![0, 1, 2, max, max - 1, sign, sign - 1, sign + 1, alternating, random.wide() & max];
    if width == WidthLog2::W128 {
        // One half alone.
        values.extend([1 << 64, u64::MAX.into()]);
    }
    values
}

/// Numbers worth a try: zeros, denormals, ties of rounding, the largest, infinity.
fn floats(width: WidthLog2) -> Vec<u128> {
    match width {
        WidthLog2::W32 => {
            let largest = f32::MAX;
            let numbers = [0.0, -0.0, 1.0, -1.5, 0.1, 16_777_216.0, 3.0, largest, -largest, f32::INFINITY];
            let tiny = [1, 0x8000_0001, 0x007f_ffff, f32::MIN_POSITIVE.to_bits()];
            numbers.iter().map(|number| number.to_bits()).chain(tiny).map(u128::from).collect()
        }
        _ => {
            let largest = f64::MAX;
            let numbers =
                [0.0, -0.0, 1.0, -1.5, 0.1, 9_007_199_254_740_992.0, 3.0, largest, -largest, f64::INFINITY];
            let tiny = [1, (1 << 63) + 1, (1 << 52) - 1, f64::MIN_POSITIVE.to_bits()];
            numbers.iter().map(|number: &f64| number.to_bits()).chain(tiny).map(u128::from).collect()
        }
    }
}

/// Every operation × width × pair of edge values.
pub(super) fn values(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 1);
    let area = Area::new(Backing::Private, PAGE)?;
    for (opcode, width) in scalars() {
        let values = match opcode {
            Opcode::FETCH_FADD => floats(width),
            _ => integers(width, &mut random),
        };
        let mut cases = Vec::new();
        for &old in &values {
            for &operand in &values {
                for compare in if opcode == Opcode::CAS { vec![old, operand, !old] } else { vec![0] } {
                    let compare = compare & model::greatest(width);
                    cases.push(case(opcode, width, old, operand, compare));
                }
            }
        }
        cases.retain(|case| opcode != Opcode::FETCH_FADD || !model::is_nan(width, after(case)));
        // Side by side, so that a store that is too wide is seen.
        for group in cases.chunks_mut(32) {
            for (slot, case) in group.iter_mut().enumerate() {
                case.offset = (slot as u64) << width.0;
                case.entry.addr = area.address(case.offset);
            }
            compare_all(bench, &area, group)?;
        }
    }
    Ok(())
}

/// Every operation × width at the ends of pages, across a 2 MiB boundary, and in memory nobody touched.
pub(super) fn places(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 2);
    let (area, boundary) = Area::around_2mib(4 * PAGE)?;
    for (opcode, width) in scalars() {
        let bytes = 1 << width.0;
        let places = [
            0,
            bytes,
            PAGE - bytes,
            PAGE,
            boundary - bytes,
            boundary,
            boundary + PAGE - bytes,
            area.len() - bytes,
        ];
        let mut cases: Vec<Case> = Vec::new();
        for offset in places {
            let values = integers(width, &mut random);
            let (old, operand) = (*random.pick(&values), *random.pick(&values));
            let mut case = match opcode {
                Opcode::FETCH_FADD => case(opcode, width, 0, *random.pick(&floats(width)), 0),
                Opcode::CAS => case(opcode, width, old, operand, old),
                _ => case(opcode, width, old, operand, 0),
            };
            case.offset = offset;
            case.entry.addr = area.address(offset);
            cases.push(case);
        }
        compare_all(bench, &area, &cases)?;
    }
    untouched(bench)
}

/// The device comes first to a page: what is not there yet is zero.
fn untouched(bench: &mut Bench) -> Result<()> {
    for opcode in operations() {
        let area = Area::new(Backing::Private, PAGE)?;
        let mut case = case(opcode, WidthLog2::W64, 0, 0x4010_0000_0000_0000, 0);
        case.entry.addr = area.address(8);
        let found = bench.succeed(&case.entry)?;
        ensure!(found.result == 0, "untouched memory was {:#x}", found.result);
        let found = area.load_wide(8, WidthLog2::W64);
        ensure!(
            found == after(&case),
            "expected {:#x}, found {found:#x} after {:x?}",
            after(&case),
            case.entry
        );
    }
    Ok(())
}

fn case(opcode: Opcode, width: WidthLog2, old: u128, operand: u128, compare: u128) -> Case {
    let operand = if opcode == Opcode::READ { 0 } else { operand };
    let entry = Sqe {
        opcode,
        width,
        operand: operand as u64,
        arg0: (operand >> 64) as u64,
        compare: compare as u64,
        arg1: (compare >> 64) as u64,
        ..Sqe::default()
    };
    Case { entry, offset: 0, old }
}

/// What the element should become.
fn after(case: &Case) -> u128 {
    let Sqe { opcode, width, operand, compare, arg0, arg1, .. } = case.entry;
    let whole = |low: u64, high: u64| u128::from(low) | u128::from(high) << 64;
    model::apply(opcode, width, case.old, whole(operand, arg0), whole(compare, arg1))
}

/// Sets all elements up, does all commands, and compares results and memory.
fn compare_all(bench: &mut Bench, area: &Area, cases: &[Case]) -> Result<()> {
    for case in cases {
        area.store_wide(case.offset, case.entry.width, case.old);
    }
    for case in cases {
        bench.queue.submit(&case.entry)?;
    }
    for case in cases {
        let found = bench.queue.complete()?;
        let old = model::result(case.entry.opcode, case.old);
        ensure!(
            found.status.0 == Status::SUCCESS
                && found.result == old
                && found.applied == 1
                && found.fault_addr == 0,
            "expected result {old:#x}, found {found:x?} for {:x?}",
            case.entry
        );
        bench.checks += 1;
    }
    for case in cases {
        let (expected, found) = (after(case), area.load_wide(case.offset, case.entry.width));
        ensure!(
            found == expected,
            "{:#x} became {found:#x}, not {expected:#x}, by {:x?}",
            case.old,
            case.entry
        );
    }
    Ok(())
}
