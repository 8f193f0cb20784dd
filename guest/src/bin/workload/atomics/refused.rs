// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Entries that are wrong, each with the status it gets (spec 5.9), and that they change nothing.

use super::{Bench, WIDTHS, operations};
use crate::area::{Area, Backing, PAGE, scalar};
use crate::scenario::Run;
use anyhow::{Result, ensure};
use svmx::abi::pci::VA_END;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::status::Status;

const W32: WidthLog2 = WidthLog2::W32;
const W64: WidthLog2 = WidthLog2::W64;

/// Every operation × width × offset that is no multiple of the width.
pub(super) fn misaligned(bench: &mut Bench, _: &Run) -> Result<()> {
    let area = pattern()?;
    for width in WIDTHS {
        for opcode in operations() {
            for offset in 1..1 << width.0 {
                let entry = scalar(opcode, width, area.address(offset), 0);
                bench.expect(&entry, Status::MISALIGNED, 0, Some(entry.addr))?;
            }
        }
        // Also where it would cross a page, and where there is no memory at all.
        for addr in [area.address(PAGE - 2), 3] {
            bench.expect(&scalar(Opcode::FETCH_ADD, width, addr, 1), Status::MISALIGNED, 0, Some(addr))?;
        }
    }
    unchanged(&area)
}

/// Unknown opcodes, widths, flags; fields that should be zero; and which of two mistakes is named.
pub(super) fn malformed(bench: &mut Bench, _: &Run) -> Result<()> {
    let area = pattern()?;
    let good = scalar(Opcode::FETCH_ADD, W64, area.address(0), 1);
    let mut refuse = |entry: Sqe, status: Status| bench.expect(&entry, status, 0, Some(0)).map(drop);
    let known = |opcode| Opcode::ALL.iter().any(|(_, known)| *known == opcode);
    for opcode in (0..=255).map(Opcode).filter(|opcode| !known(*opcode)) {
        refuse(Sqe { opcode, tag: 0x1234_5678, ..good }, Status::BAD_OPCODE)?;
    }
    for (_, opcode) in Opcode::ALL {
        let taken = |width| match opcode {
            Opcode::NOP | Opcode::FENCE => width == WidthLog2(0),
            Opcode::COPY | Opcode::FILL => matches!(width, WidthLog2::W8 | W32 | W64),
            Opcode::CAS => matches!(width, W32 | W64 | WidthLog2::W128),
            _ => matches!(width, W32 | W64),
        };
        for width in (0..=255).map(WidthLog2).filter(|width| !taken(*width)) {
            refuse(Sqe { opcode, width, ..Sqe::default() }, Status::BAD_WIDTH)?;
        }
        if !(Opcode::FETCH_ADD.0..=Opcode::FETCH_FADD.0).contains(&opcode.0) {
            refuse(Sqe { opcode, width: W64, flags: SqeFlags::BULK, ..Sqe::default() }, Status::BAD_OPCODE)?;
        }
    }
    // From the third on: unknown, or of the bulk form only.
    for bit in 3..16 {
        refuse(Sqe { flags: SqeFlags(1 << bit), ..good }, Status::BAD_FLAGS)?;
    }
    let strided = Sqe { flags: SqeFlags::BULK, count: 1, stride: 8, ..good };
    let indexed =
        Sqe { flags: SqeFlags::BULK.with(SqeFlags::INDEXED), count: 1, index_addr: area.address(64), ..good };
    let wrong = [
        Sqe { flags: SqeFlags::INDEXED, ..good },
        Sqe { flags: SqeFlags::INDEX64, ..good },
        Sqe { flags: SqeFlags::BULK.with(SqeFlags::INDEX64), ..strided },
        Sqe { arg0: 1, ..good },
        Sqe { arg1: 1 << 63, ..good },
        Sqe { width: W32, operand: 1 << 32, ..good },
        Sqe { opcode: Opcode::CAS, width: W32, compare: 1 << 32, ..good },
        Sqe { compare: 1, ..good },
        Sqe { count: 1, ..good },
        Sqe { stride: 8, ..good },
        Sqe { index_addr: 8, ..good },
        Sqe { opcode: Opcode::READ, ..good },
        Sqe { index_addr: 8, ..strided },
        Sqe { stride: 8, ..indexed },
        Sqe { addr: 8, ..Sqe::default() },
        Sqe { operand: 8, opcode: Opcode::FENCE, ..Sqe::default() },
    ];
    for entry in wrong {
        refuse(entry, Status::BAD_FLAGS)?;
    }
    // The first mistake in the order opcode, width, flags, alignment, address counts.
    refuse(Sqe { opcode: Opcode(0x3f), width: WidthLog2(9), ..good }, Status::BAD_OPCODE)?;
    refuse(Sqe { width: WidthLog2(9), flags: SqeFlags(1 << 15), ..good }, Status::BAD_WIDTH)?;
    refuse(Sqe { flags: SqeFlags(1 << 15), addr: 1, ..good }, Status::BAD_FLAGS)?;
    bench.expect(&Sqe { addr: VA_END + 1, ..good }, Status::MISALIGNED, 0, Some(VA_END + 1))?;
    bench.expect(&Sqe { stride: 4, ..strided }, Status::MISALIGNED, 0, None)?;
    bench.expect(&Sqe { index_addr: 66, ..indexed }, Status::MISALIGNED, 0, None)?;
    unchanged(&area)
}

/// Addresses beyond translation, and addresses where nothing is.
pub(super) fn addresses(bench: &mut Bench, _: &Run) -> Result<()> {
    for opcode in operations() {
        for addr in [VA_END, VA_END + PAGE, u64::MAX - 7, 0xffff_8000_0000_0000] {
            bench.expect(&scalar(opcode, W64, addr, 0), Status::ADDRESS_RANGE, 0, Some(addr))?;
        }
        // No process has memory there: the first page, and above what user space can have.
        for addr in [0, 8, PAGE - 8, VA_END / 2, VA_END - 8] {
            bench.expect(&scalar(opcode, W64, addr, 0), Status::FAULT, 0, Some(addr))?;
        }
    }
    // The queue goes on behind all that.
    bench.expect(&Sqe::default(), Status::SUCCESS, 0, Some(0)).map(drop)
}

fn pattern() -> Result<Area> {
    let area = Area::new(Backing::Private, PAGE)?;
    for offset in (0..PAGE).step_by(8) {
        area.store(offset, W64, offset * 0x0101_0101_0101);
    }
    Ok(area)
}

fn unchanged(area: &Area) -> Result<()> {
    for offset in (0..PAGE).step_by(8) {
        let found = area.load(offset, W64);
        ensure!(
            found == offset * 0x0101_0101_0101,
            "a refused command changed offset {offset} to {found:#x}"
        );
    }
    Ok(())
}
