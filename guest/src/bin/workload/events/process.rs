// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events in which a process begins or ends.
#![expect(unsafe_code, reason = "submits entries that name a cell's memory")]

use super::cell::Cell;
use super::child::{Child, Line};
use super::scene::{Page, load, store, word};
use super::table::Event;
use crate::area::{RawQueue, scalar};
use anyhow::{Context, Result, ensure};
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::{Device, QueueSize};

pub(crate) const EVENTS: &[Event] = &[Event {
    name: "fork",
    kernel: "copy_page_range(): PROTECTION_PAGE of the mapping; copy_nonpresent_pte() restores exclusive pages",
    run: forks,
    ..Event::ROW
}];

/// The child has what was there at the moment of the fork, whatever the device then does to the parent's
/// memory and the child to its own; and a context of its own finds the same.
fn forks(cell: &mut Cell) -> Result<()> {
    let least = cell.least();
    let mut child = Child::fork(cell, copy_stays)?;
    cell.done()?;
    let seen = child.numbers(cell.scene.pages.len())?;
    cell.was_at(least, seen)?;
    // The device changes what both have still in common.
    cell.goes_on().context("in the parent, with the child alive")?;
    child.go_on()?;
    child.end()
}

/// The child's part: says what it has, and finds the same when the parent has gone on.
fn copy_stays(pages: &[Page], line: &mut Line) -> Result<()> {
    let seen: Vec<u64> = pages.iter().map(|page| load(page.addr + word::COUNTER)).collect();
    line.say(&seen)?;
    line.wait()?;
    let device = Device::open_nth(0).context("a context of its own")?;
    // SAFETY: its entries name the cell's memory only, which is no Rust object.
    let mut queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
    for (page, seen) in pages.iter().zip(seen) {
        let addr = page.addr + word::COUNTER;
        let found = load(addr);
        ensure!(found == seen, "its copy changed from {seen:#x} to {found:#x}");
        let found = queue.execute(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, addr, 1))?;
        let good = found.status.is_success() && found.result == seen.into();
        ensure!(good, "the device expected {seen:#x}, found {found:x?}");
        let found = load(addr);
        ensure!(found == seen + 1, "its CPU expected {:#x}, found {found:#x}", seen + 1);
        let found = load(page.addr + word::PATTERN);
        ensure!(found == page.pattern, "its pattern is {found:#x}, not {:#x}", page.pattern);
        store(page.addr + word::PATTERN, 0);
    }
    Ok(())
}
