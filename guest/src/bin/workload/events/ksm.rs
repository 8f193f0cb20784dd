// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Identical pages that become one, and that become two again when somebody writes, or at once.

use super::cell::Cell;
use super::scene::{ELSEWHERE, Origin, map, store, word};
use super::table::{Event, Fates, Shape, State};
use crate::scenario::patience;
use crate::system::ksm::{Ksm, mergeable, unmergeable};
use crate::system::pagemap::{Page, page};
use anyhow::{Result, ensure};

/// A page is merged when it has been seen with the same content for a while.
const SCANS: u64 = 4;

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "ksm-merge",
        kernel: "get_mergeable_page(), which finds no page in an exclusive entry; write_protect_page(), replace_page(): CLEAR of \
                 the page",
        shapes: Shape::SMALL,
        fates: Fates::PRESENT,
        run: merges,
        ..Event::ROW
    },
    Event {
        name: "ksm-unmerge",
        kernel: "break_ksm(), wp_page_copy(): CLEAR of the page",
        shapes: Shape::SMALL,
        fates: Fates::PRESENT,
        run: merges_and_unmerges,
        ..Event::ROW
    },
];

fn merges(cell: &mut Cell) -> Result<()> {
    merge(cell)
}

fn merges_and_unmerges(cell: &mut Cell) -> Result<()> {
    merge(cell)?;
    if cell.name.state == State::Readable {
        // From the one page that is left.
        for index in 0..cell.scene.pages.len() {
            let page = &cell.scene.pages[index];
            cell.reads(page.addr + word::COUNTER, page.counter(Origin::Own))?;
        }
    }
    unmergeable(cell.scene.base, cell.scene.len)?;
    for at in &cell.scene.pages {
        let (one, other) = (page(at.addr)?, page(twin(cell, at.addr))?);
        ensure!(one != other || one == Page::None, "a page is merged still: {one:?}");
    }
    Ok(())
}

fn twin(cell: &Cell, addr: u64) -> u64 {
    addr - cell.scene.base + ELSEWHERE
}

/// Merges each page with a copy of it, which is made of what must be in it: nobody touches the page.
fn merge(cell: &mut Cell) -> Result<()> {
    map(ELSEWHERE, cell.scene.len)?;
    for page in &cell.scene.pages {
        let at = twin(cell, page.addr);
        store(at + word::COUNTER, page.counter(Origin::Own));
        store(at + word::PATTERN, page.pattern(Origin::Own));
        store(at + word::DEVICE, page.device);
    }
    mergeable(cell.scene.base, cell.scene.len)?;
    mergeable(ELSEWHERE, cell.scene.len)?;
    let ksm = Ksm::start()?;
    ksm.scans(SCANS, patience())?;
    drop(ksm);
    for at in &cell.scene.pages {
        let (one, other) = (page(at.addr)?, page(twin(cell, at.addr))?);
        match cell.name.state {
            State::Held | State::Hammered => {
                ensure!(matches!(one, Page::Exclusive(_)), "expected the device's page, found {one:?}");
            }
            State::Contended => {}
            _ => ensure!(one == other, "expected one page, found {one:?} and {other:?}"),
        }
    }
    Ok(())
}
