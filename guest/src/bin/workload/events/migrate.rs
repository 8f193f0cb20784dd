// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events that move pages to other frames.

use super::cell::Cell;
use super::scene::{ELSEWHERE, Scene, load, map, remap, store};
use super::system::{AWAY, HOME};
use super::table::{Event, Fates, Shape, State};
use crate::area::PAGE;
use crate::scenario::patience;
use crate::system::blocks::Block;
use crate::system::pagemap::frame;
use crate::system::{compact, numa};
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use std::time::Instant;

/// Pages that are used up, and that one of a scene is tried with.
const MOST_ASIDE: u64 = 256 << 20;
const MOST_TRIES: u64 = 1000;

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "move-pages",
        kernel: "add_folio_for_migration(), which finds no page in an exclusive entry; try_to_migrate(): CLEAR of the page",
        shapes: Shape::SMALL,
        fates: Fates::PRESENT,
        run: moves,
        ..Event::ROW
    },
    Event {
        name: "migrate-pages",
        kernel: "queue_folios_pte_range(), which passes over exclusive pages; try_to_migrate(): CLEAR of the page",
        shapes: Shape::SMALL,
        fates: Fates::PRESENT,
        run: migrates,
        ..Event::ROW
    },
    Event {
        name: "mbind",
        kernel: "queue_folios_pte_range(), which passes over exclusive pages; try_to_migrate(): CLEAR of the page",
        shapes: Shape::SMALL,
        fates: Fates::PRESENT,
        run: binds,
        ..Event::ROW
    },
    Event {
        name: "offline",
        kernel: "offline_pages(), do_migrate_range(), try_to_migrate(): CLEAR of the page",
        shapes: Shape::SMALL,
        before: be_in_movable_blocks,
        run: goes_offline,
        ..Event::ROW
    },
    Event {
        name: "compact",
        kernel: "compact_zone(), which chooses itself; try_to_migrate(): CLEAR of the page",
        fates: Fates::PERHAPS,
        run: compacts,
        ..Event::ROW
    },
];

/// What becomes of pages that are told to go AWAY.
fn must_have_gone(cell: &Cell, found: &[i32]) -> Result<()> {
    let expected = match cell.name.state {
        State::Held | State::Hammered => -(Errno::ENOENT as i32),
        // The CPU has it one moment, the device the next.
        State::Contended => return Ok(()),
        _ => AWAY.cast_signed(),
    };
    ensure!(
        found.iter().all(|found| *found == expected),
        "expected {expected} for each page, found {found:?}"
    );
    Ok(())
}

fn moves(cell: &mut Cell) -> Result<()> {
    let mut found = Vec::new();
    for page in &cell.scene.pages {
        found.extend(numa::move_pages(page.addr, 1, AWAY)?);
    }
    must_have_gone(cell, &found)
}

fn migrates(cell: &mut Cell) -> Result<()> {
    numa::migrate_pages(HOME, AWAY)?;
    are_away(cell)
}

fn binds(cell: &mut Cell) -> Result<()> {
    numa::bind(cell.scene.base, cell.scene.len, AWAY)?;
    are_away(cell)
}

fn are_away(cell: &Cell) -> Result<()> {
    let mut found = Vec::new();
    for page in &cell.scene.pages {
        found.extend(numa::nodes_of(page.addr, 1)?);
    }
    must_have_gone(cell, &found)
}

/// Lets the scene have its pages where all can go offline: in other blocks is what the kernel can't move.
fn be_in_movable_blocks(scene: &Scene) -> Result<()> {
    let blocks = Block::movable()?;
    let in_one = |addr| Ok::<_, anyhow::Error>(blocks.contains(&Block::of_frame(frame(addr)?)?));
    // What other blocks have is used up first. It is not given back before the cell ends.
    let aside = ELSEWHERE..ELSEWHERE + MOST_ASIDE;
    map(aside.start, MOST_ASIDE)?;
    for addr in aside.step_by(PAGE as usize) {
        store(addr, 1);
        // To look at each takes longer than to use it up.
        if addr.is_multiple_of(64 * PAGE) && in_one(addr)? {
            break;
        }
    }
    for (n, page) in scene.pages.iter().enumerate() {
        let mut others = (0..MOST_TRIES).map(|tried| 2 * ELSEWHERE + (n as u64 * MOST_TRIES + tried) * PAGE);
        while !in_one(page.addr)? {
            let other = others.next().context("no block is movable")?;
            remap(page.addr, PAGE, PAGE, Some(other), libc::MREMAP_DONTUNMAP)?;
            (0..PAGE).step_by(8).for_each(|at| store(page.addr + at, load(other + at)));
        }
    }
    Ok(())
}

fn goes_offline(cell: &mut Cell) -> Result<()> {
    let mut blocks = Vec::new();
    for page in &cell.scene.pages {
        let block = Block::of_frame(frame(page.addr)?)?;
        if !blocks.contains(&block) {
            blocks.push(block);
        }
    }
    for block in blocks {
        let offline = block.offline()?;
        // Exclusive or not, nobody has a page of it.
        for page in &cell.scene.pages {
            let now = Block::of_frame(frame(page.addr)?)?;
            ensure!(now != block, "a page is in {block:?}, which is offline");
        }
        offline.online().with_context(|| format!("{block:?}"))?;
    }
    Ok(())
}

/// Two rounds over all zones. Whether pages of the cell move is up to the kernel.
fn compacts(cell: &mut Cell) -> Result<()> {
    let start = Instant::now();
    for _ in 0..2 {
        compact()?;
        // The device would have what it has not touched, afterwards.
        if cell.name.state != State::Untouched {
            cell.goes_on()?;
        }
    }
    ensure!(start.elapsed() < patience(), "compaction takes {:?}", start.elapsed());
    Ok(())
}
