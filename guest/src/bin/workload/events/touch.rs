// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events in which somebody does no more than touch the memory: a CPU, or another context of the process.
#![expect(unsafe_code, reason = "submits entries that name a cell's memory")]

use super::cell::Cell;
use super::scene::{load, store, word};
use super::table::{Event, Fates};
use crate::area::{RawQueue, scalar};
use anyhow::{Context, Result, ensure};
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::{Device, QueueSize};

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "load",
        kernel: "do_swap_page(), remove_device_exclusive_entry(): CLEAR of the page",
        fates: Fates::TOUCHED,
        run: loads,
        ..Event::ROW
    },
    Event {
        name: "store",
        kernel: "do_swap_page(), remove_device_exclusive_entry(): CLEAR of the page",
        fates: Fates::TOUCHED,
        run: stores,
        ..Event::ROW
    },
    Event {
        name: "other-context",
        kernel: "make_device_exclusive() with another owner: EXCLUSIVE, or CLEAR of a page that is exclusive",
        run: another_context,
        ..Event::ROW
    },
];

fn loads(cell: &mut Cell) -> Result<()> {
    for page in &cell.scene.pages {
        let found = load(page.addr + word::PATTERN);
        ensure!(found == page.pattern, "expected {:#x}, found {found:#x}", page.pattern);
    }
    Ok(())
}

fn stores(cell: &mut Cell) -> Result<()> {
    for page in &mut cell.scene.pages {
        page.pattern = !page.pattern;
        store(page.addr + word::PATTERN, page.pattern);
    }
    Ok(())
}

/// A context of the same process takes the pages for itself. It uses a word of its own, so that what it finds is exact
/// whoever else is at work.
fn another_context(cell: &mut Cell) -> Result<()> {
    let device = Device::open_nth(0).context("another context")?;
    // SAFETY: its entries name the cell's memory only, which is no Rust object.
    let mut queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
    for page in &mut cell.scene.pages {
        let entry = scalar(Opcode::FETCH_ADD, WidthLog2::W64, page.addr + word::PATTERN, 1);
        let found = queue.execute(&entry)?;
        let good = found.status.is_success() && found.result == page.pattern.into();
        ensure!(good, "expected {:#x}, found {found:x?}", page.pattern);
        page.pattern = page.pattern.wrapping_add(1);
    }
    Ok(())
}
