// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events in which a CPU does no more than touch the memory.

use super::cell::Cell;
use super::scene::{load, store, word};
use super::table::{Event, Fates};
use anyhow::{Result, ensure};

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
