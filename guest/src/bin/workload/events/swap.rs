// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events that take pages out of memory, to swap space. They come back with what the device wrote.

use super::cell::Cell;
use super::system::GROUP;
use super::table::{Event, Fates, Shape, State};
use crate::area::PAGE;
use crate::scenario::patience;
use crate::system::memcg::Group;
use crate::system::pagemap::{Page, page};
use crate::system::swap::page_out;
use crate::system::vmstat;
use anyhow::{Result, ensure};
use std::time::Instant;

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "page-out",
        kernel: "madvise_cold_or_pageout_pte_range(), which passes over exclusive pages; try_to_unmap(): CLEAR of the page",
        shapes: Shape::SMALL,
        fates: Fates::PRESENT,
        run: pages_out,
        ..Event::ROW
    },
    Event {
        name: "reclaim",
        kernel: "shrink_folio_list(), try_to_unmap(): CLEAR of the page",
        shapes: Shape::SMALL,
        run: reclaims,
        ..Event::ROW
    },
];

fn pages_out(cell: &mut Cell) -> Result<()> {
    let start = Instant::now();
    loop {
        page_out(cell.scene.base, cell.scene.len)?;
        match cell.name.state {
            State::Untouched | State::Readable | State::Writable | State::Coherent if !are_swapped(cell)? => {
                ensure!(start.elapsed() < patience(), "MADV_PAGEOUT leaves pages");
            }
            _ => return Ok(()),
        }
    }
}

fn reclaims(cell: &mut Cell) -> Result<()> {
    let bytes = cell.scene.pages.len() as u64 * PAGE;
    let (start, before) = (Instant::now(), vmstat("pswpout")?);
    let revoked = cell.device.stats()?.revocations;
    loop {
        // False if there was less: then the rest is on its way, or in use again.
        Group::reclaim_of(GROUP, bytes);
        let written = vmstat("pswpout")? - before >= cell.scene.pages.len() as u64;
        let over = match cell.name.state {
            State::Hammered => cell.device.stats()?.revocations - revoked >= cell.scene.pages.len() as u64,
            State::Contended => written,
            _ => are_swapped(cell)?,
        };
        if over {
            return Ok(());
        }
        ensure!(start.elapsed() < patience(), "memory.reclaim leaves pages");
    }
}

fn are_swapped(cell: &Cell) -> Result<bool> {
    for at in &cell.scene.pages {
        if page(at.addr)? != Page::Swapped {
            return Ok(false);
        }
    }
    Ok(true)
}
