// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Entries that are wrong, each with the status it gets (spec 5.9), and that they change nothing. Every form of
//! every command is right first, and then wrong in one thing, or in two, of which the first counts.

use super::reference::Memory;
use super::{ATOMICS, Bench, W8, W32, W64, W128, operations, scalars, widths};
use crate::area::{Area, Backing, PAGE, scalar};
use crate::scenario::Run;
use anyhow::{Result, ensure};
use svmx::abi::pci::VA_END;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::status::Status;

/// A field that some forms use and others don't (spec 5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Addr,
    Operand,
    Compare,
    Count,
    Stride,
    IndexAddr,
    Arg0,
    Arg1,
}
use Field::{Addr, Arg0, Arg1, Compare, Count, IndexAddr, Operand, Stride};
const FIELDS: [Field; 8] = [Addr, Operand, Compare, Count, Stride, IndexAddr, Arg0, Arg1];

/// An entry that is right, and the fields that its form uses.
struct Form {
    entry: Sqe,
    used: Vec<Field>,
}

/// The address of a place for each array of a command.
fn place(memory: &Memory, n: u64) -> u64 {
    memory.address(0, 512 * n)
}

/// Every form of every command.
fn forms(memory: &Memory) -> Vec<Form> {
    let at = |n| place(memory, n);
    let plain = |opcode| Form { entry: Sqe { opcode, ..Sqe::default() }, used: Vec::new() };
    let mut forms = vec![plain(Opcode::NOP), plain(Opcode::FENCE)];
    for (opcode, width) in scalars() {
        let mut used = vec![Addr];
        used.extend((opcode != Opcode::READ).then_some(Operand));
        used.extend((opcode == Opcode::CAS).then_some(Compare));
        used.extend([Arg0, Arg1].into_iter().filter(|_| width == W128));
        forms.push(Form { entry: scalar(opcode, width, at(0), 0), used });
    }
    for width in [W8, W32, W64] {
        let entry = Sqe { count: 3, arg0: at(1), ..scalar(Opcode::COPY, width, at(0), 0) };
        forms.push(Form { entry, used: vec![Addr, Count, Arg0] });
        let entry = Sqe { count: 3, ..scalar(Opcode::FILL, width, at(0), 0) };
        forms.push(Form { entry, used: vec![Addr, Count, Operand] });
    }
    for width in [W32, W64] {
        let entry = scalar(Opcode::WAIT, width, at(0), 0);
        forms.push(Form { entry, used: vec![Addr, Compare, Arg0, Arg1] });
    }
    for opcode in ATOMICS {
        forms.extend(widths(opcode).iter().flat_map(|width| bulk_forms(memory, opcode, *width)));
    }
    forms
}

/// A bulk atomic by stride and by indices of both widths, with operands and old values or without.
fn bulk_forms(memory: &Memory, opcode: Opcode, width: WidthLog2) -> Vec<Form> {
    let at = |n| place(memory, n);
    let mut forms = Vec::new();
    let indexed = SqeFlags::INDEXED;
    for addressing in [SqeFlags::default(), indexed, indexed.with(SqeFlags::INDEX64)] {
        for (operands, old) in [(false, false), (false, true), (true, false), (true, true)] {
            let flags = addressing.with(SqeFlags::BULK);
            let mut entry = Sqe { flags, count: 2, ..scalar(opcode, width, at(0), 0) };
            let mut used = vec![Addr, Count, Operand];
            if flags.contains(indexed) {
                entry.index_addr = at(1);
                used.push(IndexAddr);
            } else {
                entry.stride = 1 << width.0;
                used.push(Stride);
            }
            if operands {
                entry.flags = entry.flags.with(SqeFlags::OPERANDS);
            }
            if operands || width == W128 {
                entry.operand = at(2);
            } else if opcode == Opcode::CAS {
                used.push(Compare);
            }
            if old {
                entry.flags = entry.flags.with(SqeFlags::STORE_OLD);
                entry.arg0 = at(3);
                used.push(Arg0);
            }
            forms.push(Form { entry, used });
        }
    }
    forms
}

fn with(entry: Sqe, field: Field, value: u64) -> Sqe {
    match field {
        Addr => Sqe { addr: value, ..entry },
        Operand => Sqe { operand: value, ..entry },
        Compare => Sqe { compare: value, ..entry },
        Count => Sqe { count: value as u32, ..entry },
        Stride => Sqe { stride: value as i32, ..entry },
        IndexAddr => Sqe { index_addr: value, ..entry },
        Arg0 => Sqe { arg0: value, ..entry },
        Arg1 => Sqe { arg1: value, ..entry },
    }
}

fn zeros() -> Result<Memory> {
    Ok(Memory::of([Area::new(Backing::Private, PAGE)?]))
}

/// Opcodes, widths, flags and fields that are wrong.
pub(super) fn malformed(bench: &mut Bench, _: &Run) -> Result<()> {
    let mut memory = zeros()?;
    let forms = forms(&memory);
    for Form { entry, used } in &forms {
        // What is right is done, or all that follows would show nothing.
        bench.agree(entry, &mut memory)?;
        let mut refuse = |entry: Sqe, status| bench.expect(&entry, status, 0, Some(0)).map(drop);
        for field in FIELDS.into_iter().filter(|field| !used.contains(field)) {
            for value in [1, 8, 1 << 31] {
                refuse(with(*entry, field, value), Status::BAD_FLAGS)?;
            }
        }
        for bit in 5..16 {
            refuse(Sqe { flags: entry.flags.with(SqeFlags(1 << bit)), ..*entry }, Status::BAD_FLAGS)?;
        }
        refuse(Sqe { width: WidthLog2(0x83), tag: 0x1234_5678, ..*entry }, Status::BAD_WIDTH)?;
    }
    unknown(bench, &memory)?;
    flags_and_values(bench, &memory)?;
    two_mistakes(bench, &forms)?;
    memory.compare()
}

/// Every opcode and width that there is not.
fn unknown(bench: &mut Bench, memory: &Memory) -> Result<()> {
    let mut refuse = |entry: Sqe, status| bench.expect(&entry, status, 0, Some(0)).map(drop);
    let good = scalar(Opcode::FETCH_ADD, W64, place(memory, 0), 0);
    let known = |opcode| Opcode::ALL.iter().any(|(_, known)| *known == opcode);
    for opcode in (0..=255).map(Opcode).filter(|opcode| !known(*opcode)) {
        refuse(Sqe { opcode, tag: 0x1234_5678, ..good }, Status::BAD_OPCODE)?;
    }
    for (_, opcode) in Opcode::ALL {
        let right = |width| match widths(opcode) {
            [] => width == WidthLog2(0),
            widths => widths.contains(&width),
        };
        for width in (0..=255).map(WidthLog2).filter(|width| !right(*width)) {
            refuse(Sqe { opcode, width, ..Sqe::default() }, Status::BAD_WIDTH)?;
        }
        if !ATOMICS.contains(&opcode) {
            let width = widths(opcode).last().copied().unwrap_or_default();
            refuse(Sqe { opcode, width, flags: SqeFlags::BULK, ..Sqe::default() }, Status::BAD_OPCODE)?;
        }
    }
    Ok(())
}

/// Flags without those that they go with, values wider than the element, conditions that there are not.
fn flags_and_values(bench: &mut Bench, memory: &Memory) -> Result<()> {
    let mut refuse = |entry: Sqe| bench.expect(&entry, Status::BAD_FLAGS, 0, Some(0)).map(drop);
    let addr = place(memory, 0);
    let alone = [SqeFlags::INDEXED, SqeFlags::INDEX64, SqeFlags::OPERANDS, SqeFlags::STORE_OLD];
    for (_, opcode) in Opcode::ALL {
        for flags in alone {
            let width = widths(opcode).last().copied().unwrap_or_default();
            refuse(Sqe { opcode, width, flags, ..Sqe::default() })?;
        }
    }
    let strided = Sqe { flags: SqeFlags::BULK, count: 1, ..scalar(Opcode::CAS, W32, addr, 0) };
    refuse(Sqe { flags: SqeFlags::BULK.with(SqeFlags::INDEX64), ..strided })?;
    for width in [W8, W32] {
        for bit in [8u32 << width.0, 63] {
            let value = 1 << bit;
            refuse(Sqe { count: 1, ..scalar(Opcode::FILL, width, addr, value) })?;
            if width == W32 {
                for opcode in operations().filter(|opcode| *opcode != Opcode::READ) {
                    refuse(scalar(opcode, width, addr, value))?;
                }
                refuse(Sqe { compare: value, ..scalar(Opcode::CAS, width, addr, 0) })?;
                refuse(Sqe { compare: value, ..scalar(Opcode::WAIT, width, addr, 0) })?;
                refuse(Sqe { compare: value, ..strided })?;
                refuse(Sqe { operand: value, ..strided })?;
            }
        }
    }
    for condition in [10, 11, 255, 256, 1 << 32, u64::MAX] {
        refuse(Sqe { arg1: condition, ..scalar(Opcode::WAIT, W64, addr, 0) })?;
    }
    Ok(())
}

/// Of two mistakes the first in the order opcode, width, flags, alignment, address is named.
fn two_mistakes(bench: &mut Bench, forms: &[Form]) -> Result<()> {
    type Mistake = (Status, fn(Sqe) -> Sqe);
    const MISTAKES: [Mistake; 5] = [
        (Status::BAD_OPCODE, |entry| Sqe { opcode: Opcode(0x3f), ..entry }),
        (Status::BAD_WIDTH, |entry| Sqe { width: WidthLog2(9), ..entry }),
        (Status::BAD_FLAGS, |entry| Sqe { flags: SqeFlags(entry.flags.0 | 1 << 15), ..entry }),
        (Status::MISALIGNED, |entry| Sqe { addr: entry.addr | 1, ..entry }),
        (Status::ADDRESS_RANGE, |entry| Sqe { addr: VA_END | (entry.addr & 0xfff), ..entry }),
    ];
    for Form { entry, .. } in forms {
        // Without an element there is no address, and a byte is never misaligned.
        let possible = |status| match status {
            Status::MISALIGNED => entry.width.0 > 0,
            Status::ADDRESS_RANGE => entry.addr != 0,
            _ => true,
        };
        for (n, (status, mistake)) in MISTAKES.iter().enumerate().filter(|(_, (status, _))| possible(*status))
        {
            for (_, other) in MISTAKES[n..].iter().filter(|(status, _)| possible(*status)) {
                let wrong = mistake(other(*entry));
                let about_an_address = matches!(*status, Status::MISALIGNED | Status::ADDRESS_RANGE);
                let address = if about_an_address { wrong.addr } else { 0 };
                bench.expect(&wrong, *status, 0, Some(address))?;
            }
        }
    }
    Ok(())
}

/// Every form with every array at every place that is no multiple of what it has to be, alone and with others.
pub(super) fn misaligned(bench: &mut Bench, _: &Run) -> Result<()> {
    let memory = zeros()?;
    for Form { entry, .. } in forms(&memory) {
        // In the order in which they are looked at, with the alignment each needs.
        let arrays = aligned(&entry);
        for (n, &(field, align)) in arrays.iter().enumerate() {
            for offset in 1..align {
                let right = value(&entry, field);
                let mut wrong = with(entry, field, right + offset);
                let named = if field == Stride { 0 } else { right + offset };
                bench.expect(&wrong, Status::MISALIGNED, 0, Some(named))?;
                // Those behind it don't matter.
                for &(field, align) in &arrays[n + 1..] {
                    wrong = with(wrong, field, value(&wrong, field) + align / 2);
                }
                bench.expect(&wrong, Status::MISALIGNED, 0, Some(named))?;
            }
        }
    }
    // Also where it would cross a page, and where there is no memory at all.
    for (opcode, width) in scalars() {
        for addr in [memory.address(0, PAGE - 2), 3] {
            bench.expect(&scalar(opcode, width, addr, 0), Status::MISALIGNED, 0, Some(addr))?;
        }
    }
    memory.compare()
}

/// The addresses of a command that must be multiples of something, in the order of spec 5.9.
fn aligned(entry: &Sqe) -> Vec<(Field, u64)> {
    let width = 1 << entry.width.0;
    let has = |flag| entry.flags.contains(flag);
    let mut arrays = vec![(Addr, width)];
    if has(SqeFlags::BULK) && !has(SqeFlags::INDEXED) {
        arrays.push((Stride, width));
    }
    if has(SqeFlags::INDEXED) {
        arrays.push((IndexAddr, if has(SqeFlags::INDEX64) { 8 } else { 4 }));
    }
    if has(SqeFlags::OPERANDS) || (has(SqeFlags::BULK) && entry.width == W128) {
        arrays.push((Operand, if entry.opcode == Opcode::CAS { 2 * width } else { width }));
    }
    if has(SqeFlags::STORE_OLD) || entry.opcode == Opcode::COPY {
        arrays.push((Arg0, width));
    }
    arrays.retain(|(_, align)| *align > 1 && entry.addr != 0);
    arrays
}

fn value(entry: &Sqe, field: Field) -> u64 {
    match field {
        Addr => entry.addr,
        Operand => entry.operand,
        Compare => entry.compare,
        Count => entry.count.into(),
        Stride => entry.stride as u64,
        IndexAddr => entry.index_addr,
        Arg0 => entry.arg0,
        Arg1 => entry.arg1,
    }
}

/// Addresses beyond translation, and addresses where nothing is, for every element and array.
pub(super) fn addresses(bench: &mut Bench, _: &Run) -> Result<()> {
    // No process has memory there: the first page, and above what user space can have.
    const NOTHING: [u64; 5] = [0, 32, PAGE - 32, VA_END / 2, VA_END - 32];
    const BEYOND: [u64; 4] = [VA_END, VA_END + PAGE, u64::MAX - 31, 0xffff_8000_0000_0000];
    let memory = zeros()?;
    for Form { entry, .. } in forms(&memory) {
        for (field, _) in aligned(&entry).into_iter().filter(|(field, _)| *field != Stride) {
            for address in NOTHING {
                let wrong = with(entry, field, address);
                // An element is applied before its old value has nowhere to go.
                let applied = u32::from(field == Arg0 && entry.opcode != Opcode::COPY);
                bench.expect(&wrong, Status::FAULT, applied, Some(address))?;
            }
            for address in BEYOND {
                let found = bench.ends(&with(entry, field, address), Status::ADDRESS_RANGE)?;
                let unstored = u32::from(field == Arg0 && entry.opcode != Opcode::COPY);
                ensure!(found.applied <= unstored, "{found:x?}");
            }
        }
    }
    // The queue goes on behind all that.
    bench.expect(&Sqe::default(), Status::SUCCESS, 0, Some(0)).map(drop)
}
