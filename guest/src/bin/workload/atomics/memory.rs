// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every kind of memory: what a command can do in it is what the process can do (spec 9.5).

use super::reference::Memory;
use super::{Bench, W64, operations};
use crate::area::{Area, Backing, PAGE, scalar};
use crate::scenario::{Run, step};
use anyhow::Result;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags};
use svmx::abi::status::Status;

pub(super) fn kinds(bench: &mut Bench, _: &Run) -> Result<()> {
    for backing in [Backing::SharedAnonymous, Backing::Memfd] {
        step(format!("memory {backing:?}"));
        let mut memory = with_scratch(Area::new(backing, 2 * PAGE)?)?;
        every_command(bench, &mut memory, 0)?;
        // A page that nobody has touched: it was not when the commands before were done on the first.
        every_command(bench, &mut memory, PAGE)?;
    }
    step("memory without rights");
    let mut memory = with_scratch(Area::new(Backing::Private, 2 * PAGE)?)?;
    every_command(bench, &mut memory, 8)?;
    memory.protect(0, true, false)?;
    every_command(bench, &mut memory, 8)?;
    every_command(bench, &mut memory, PAGE)?;
    memory.protect(0, false, false)?;
    every_command(bench, &mut memory, 8)?;
    memory.protect(0, true, true)?;
    every_command(bench, &mut memory, 8)?;
    step("unmapped memory");
    let mut area = Area::new(Backing::Private, 2 * PAGE)?;
    area.unmap_from(PAGE)?;
    for opcode in operations().chain([Opcode::WAIT]) {
        let entry = scalar(opcode, W64, area.address(PAGE + 16), 0);
        bench.expect(&entry, Status::FAULT, 0, Some(entry.addr))?;
    }
    step("a huge page");
    let (area, boundary) = Area::around_2mib(2 << 20)?;
    area.huge()?;
    area.store(boundary, W64, 1);
    let mut memory = with_scratch(area)?;
    for offset in [boundary, boundary + PAGE, boundary + (2 << 20) - 32] {
        every_command(bench, &mut memory, offset)?;
    }
    Ok(())
}

/// The area, and one of good memory for the other side of a command.
fn with_scratch(area: Area) -> Result<Memory> {
    Ok(Memory::of([area, Area::new(Backing::Private, PAGE)?]))
}

/// Every command, with each of its elements and arrays in turn at `offset` of area 0.
fn every_command(bench: &mut Bench, memory: &mut Memory, offset: u64) -> Result<()> {
    let addr = memory.address(0, offset);
    let other = memory.address(1, 64);
    let bulk = |flags: SqeFlags| Sqe {
        flags: flags.with(SqeFlags::BULK),
        count: 1,
        ..scalar(Opcode::FETCH_ADD, W64, other, 1)
    };
    let mut entries: Vec<Sqe> =
        operations().map(|opcode| scalar(opcode, W64, addr, u64::from(opcode != Opcode::READ))).collect();
    entries.extend([
        Sqe { compare: 1, ..scalar(Opcode::WAIT, W64, addr, 0) },
        Sqe { count: 2, ..scalar(Opcode::FILL, W64, addr, 9) },
        Sqe { count: 2, arg0: other, ..scalar(Opcode::COPY, W64, addr, 0) },
        Sqe { count: 2, arg0: addr, ..scalar(Opcode::COPY, W64, other, 0) },
        // An index of zero, or of nine after the FILL.
        Sqe { index_addr: addr, ..bulk(SqeFlags::INDEXED.with(SqeFlags::INDEX64)) },
        Sqe { operand: addr, ..bulk(SqeFlags::OPERANDS) },
        Sqe { arg0: addr, ..bulk(SqeFlags::STORE_OLD) },
        Sqe { addr, ..bulk(SqeFlags::default()) },
    ]);
    for entry in &entries {
        let expected = memory.execute(entry)?;
        bench.queue.submit(entry)?;
        bench.as_expected(entry, expected)?;
    }
    memory.compare()
}
