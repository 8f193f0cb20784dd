// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every kind of memory: what a command can do in it is what the process can do (spec 9.5).

use super::{Bench, is_atomic, operations};
use crate::area::{Area, Backing, PAGE, scalar};
use crate::scenario::{Run, step};
use anyhow::{Result, ensure};
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::abi::status::Status;

const W64: WidthLog2 = WidthLog2::W64;

pub(super) fn kinds(bench: &mut Bench, _: &Run) -> Result<()> {
    for backing in [Backing::SharedAnonymous, Backing::Memfd] {
        step(format!("memory {backing:?}"));
        let area = Area::new(backing, 2 * PAGE)?;
        allowed(bench, &area, 0, true, true, Some(Status::NOT_EXCLUSIVE))?;
        // A page that nobody has touched.
        allowed(bench, &area, PAGE, true, true, Some(Status::NOT_EXCLUSIVE))?;
    }
    step("memory without rights");
    let mut area = Area::new(Backing::Private, 2 * PAGE)?;
    allowed(bench, &area, 8, true, true, None)?;
    area.protect(true, false)?;
    allowed(bench, &area, 8, true, false, Some(Status::PERMISSION))?;
    allowed(bench, &area, PAGE, true, false, Some(Status::PERMISSION))?;
    area.protect(false, false)?;
    allowed(bench, &area, 8, false, false, Some(Status::PERMISSION))?;
    area.protect(true, true)?;
    allowed(bench, &area, 8, true, true, None)?;
    step("unmapped memory");
    area.unmap_from(PAGE)?;
    for opcode in operations() {
        let entry = scalar(opcode, W64, area.address(PAGE + 16), 0);
        bench.expect(&entry, Status::FAULT, 0, Some(entry.addr))?;
    }
    step("a huge page");
    let (area, boundary) = Area::around_2mib(2 << 20)?;
    area.huge()?;
    area.store(boundary, W64, 1);
    for offset in [boundary, boundary + PAGE, boundary + (2 << 20) - 8] {
        allowed(bench, &area, offset, true, true, None)?;
    }
    Ok(())
}

/// Every operation on the word at `offset`. `atomic` is the status of an atomic that is not allowed.
fn allowed(
    bench: &mut Bench,
    area: &Area,
    offset: u64,
    read: bool,
    write: bool,
    atomic: Option<Status>,
) -> Result<()> {
    for opcode in operations() {
        let addr = area.address(offset);
        let entry = scalar(opcode, W64, addr, if opcode == Opcode::READ { 0 } else { 1 });
        let status = match opcode {
            Opcode::READ if !read => Status::PERMISSION,
            Opcode::WRITE if !write => Status::PERMISSION,
            opcode if is_atomic(opcode) => atomic.unwrap_or(Status::SUCCESS),
            _ => Status::SUCCESS,
        };
        let before = read.then(|| area.load(offset, W64));
        if status == Status::SUCCESS {
            let found = bench.succeed(&entry)?;
            ensure!(
                opcode == Opcode::WRITE || Some(found.result) == before,
                "{before:x?} was read as {found:x?}"
            );
        } else {
            bench.expect(&entry, status, 0, Some(addr))?;
            ensure!(
                before == read.then(|| area.load(offset, W64)),
                "a refused {entry:x?} changed the memory"
            );
        }
    }
    Ok(())
}
