// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events in which mappings move, grow and shrink.

use super::cell::Cell;
use super::scene::{DISTANCE, Origin, Scene, load, map, remap, word};
use super::table::{Event, Fates, Memory, State};
use crate::area::PAGE;
use anyhow::{Context, Result, ensure};
use nix::libc::MREMAP_DONTUNMAP;
use svmx::abi::queue::Opcode;
use svmx::abi::status::Status;

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "mremap-move",
        kernel: "move_page_tables(): UNMAP of the old range; exclusive entries move with the others",
        memory: Memory::Moved,
        run: |cell| moves(cell, cell.scene.len, 0),
        ..Event::ROW
    },
    Event {
        name: "mremap-dontunmap",
        kernel: "move_page_tables(): UNMAP of the old range, which stays and is empty",
        memory: Memory::MovedLeavingZeros,
        run: |cell| moves(cell, cell.scene.len, MREMAP_DONTUNMAP),
        ..Event::ROW
    },
    Event {
        name: "mremap-grow",
        kernel: "expand_vma_in_place(): no event",
        fates: Fates::STAYS,
        run: grows,
        ..Event::ROW
    },
    Event {
        name: "mremap-grow-move",
        kernel: "move_page_tables(): UNMAP of the old range",
        memory: Memory::Moved,
        run: |cell| moves(cell, cell.scene.len + PAGE, 0),
        ..Event::ROW
    },
    Event {
        name: "mremap-shrink",
        kernel: "unmap_vmas(): UNMAP of the tail; split_huge_pmd_address(): CLEAR of 2 MiB",
        memory: Memory::TailGone,
        fates: Fates::TAIL,
        huge: Some(Fates::TAKEN),
        run: |cell| remap(cell.scene.base, cell.scene.len, cell.scene.tail - cell.scene.base, None, 0),
        ..Event::ROW
    },
    Event {
        name: "mremap-over",
        kernel: "unmap_vmas(): UNMAP of the target; move_page_tables(): UNMAP of the old range",
        memory: Memory::Moved,
        before: elsewhere,
        run: moves_over,
        ..Event::ROW
    },
    Event {
        name: "mremap-under",
        kernel: "unmap_vmas(): UNMAP of the target; move_page_tables(): UNMAP of the old range",
        memory: Memory::Replaced,
        before: elsewhere,
        run: is_moved_over,
        ..Event::ROW
    },
];

fn moves(cell: &mut Cell, new_len: u64, flags: i32) -> Result<()> {
    let Scene { base, len, .. } = cell.scene;
    remap(base, len, new_len, Some(base + DISTANCE), flags)
}

fn grows(cell: &mut Cell) -> Result<()> {
    let Scene { base, len, .. } = cell.scene;
    remap(base, len, len + PAGE, None, 0)?;
    cell.done()?;
    let found = cell.command(Opcode::FETCH_ADD, base + len, 1)?;
    let good = found.status.is_success() && found.result == 0 && load(base + len) == 1;
    ensure!(good, "expected zeros where it has grown, found {found:x?}");
    Ok(())
}

/// Other memory, at the place to which the cell's is moved.
fn elsewhere(scene: &Scene) -> Result<()> {
    map(scene.base + DISTANCE, scene.len)?;
    scene.fill(DISTANCE, Origin::Other);
    Ok(())
}

/// Lets the device have the other memory as well, by entries that would show if they outlived the event.
fn share_elsewhere(cell: &mut Cell) -> Result<()> {
    if cell.name.state == State::Untouched {
        return Ok(());
    }
    for page in 0..cell.scene.pages.len() {
        let addr = cell.scene.pages[page].addr + DISTANCE;
        cell.writes(addr + word::OTHER, 0)?;
        cell.reads(addr + word::COUNTER, Origin::Other.first())?;
    }
    cell.begin()
}

fn moves_over(cell: &mut Cell) -> Result<()> {
    share_elsewhere(cell)?;
    moves(cell, cell.scene.len, 0)
}

fn is_moved_over(cell: &mut Cell) -> Result<()> {
    share_elsewhere(cell)?;
    let Scene { base, len, .. } = cell.scene;
    remap(base + DISTANCE, len, len, Some(base), 0)?;
    cell.done()?;
    cell.refuses(base + DISTANCE, Status::FAULT).context("where it came from")
}
