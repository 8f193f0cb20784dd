// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Files of /proc that look at a process's pages, or change what the kernel notes of them.

use super::cell::Cell;
use super::scene::word;
use super::table::{Event, Fates, Shape, State};
use crate::area::PAGE;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use svmx::abi::queue::Opcode;

const QUIET: Event = Event { fates: Fates::STAYS, ..Event::ROW };

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "soft-dirty",
        kernel: "clear_refs_write(): SOFT_DIRTY of everything",
        run: forgets_writes,
        ..Event::ROW
    },
    Event {
        name: "clear-refs",
        kernel: "clear_refs_pte_range(): no event",
        run: |_| clear_refs("1"),
        ..QUIET
    },
    Event {
        name: "pagemap",
        kernel: "pte_to_pagemap_entry(): no event; an exclusive page is a swap entry with its frame",
        run: pagemap_shows,
        ..QUIET
    },
    Event {
        name: "smaps",
        kernel: "smaps_pte_entry(): no event; an exclusive page is resident",
        run: smaps_shows,
        ..QUIET
    },
    Event {
        name: "numa-maps",
        kernel: "gather_pte_stats(): no event; an exclusive page is not counted",
        run: numa_maps_shows,
        ..QUIET
    },
    Event {
        name: "mincore",
        kernel: "mincore_pte_range(): no event; an exclusive page is in memory",
        run: mincore_shows,
        ..QUIET
    },
];

/// Bits of an entry of pagemap.
const PRESENT: u64 = 1 << 63;
const SWAP: u64 = 1 << 62;
const FILE: u64 = 1 << 61;
const SOFT_DIRTY: u64 = 1 << 55;
/// A bit of an entry of kpageflags.
const ANONYMOUS: u64 = 1 << 12;
/// A swap entry's type is below its offset, in so many bits.
const SWAP_TYPE_BITS: u32 = 5;

fn pagemap(addr: u64) -> Result<u64> {
    word_of("/proc/self/pagemap", addr / PAGE)
}

/// The 64-bit word at an index of a file.
fn word_of(path: &str, index: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    File::open(path).and_then(|file| file.read_exact_at(&mut bytes, index * 8)).context(path.to_owned())?;
    Ok(u64::from_le_bytes(bytes))
}

fn clear_refs(what: &str) -> Result<()> {
    std::fs::write("/proc/self/clear_refs", what).context("clear_refs")
}

/// The kernel write-protects all pages to learn of further writes: it learns of the device's as well.
fn forgets_writes(cell: &mut Cell) -> Result<()> {
    clear_refs("4")?;
    cell.done()?;
    let hammered = cell.name.state.is_hammered();
    if hammered {
        cell.goes_on()?;
    } else {
        is_soft_dirty(cell, false).context("after it was cleared")?;
        for page in 0..cell.scene.pages.len() {
            let addr = cell.scene.pages[page].addr + word::PATTERN;
            cell.reads(addr, cell.scene.pages[page].pattern)?;
        }
        is_soft_dirty(cell, false).context("after the device read")?;
        for page in 0..cell.scene.pages.len() {
            let addr = cell.scene.pages[page].addr + word::OTHER;
            // An addition of nothing is a write all the same.
            let found = cell.command(Opcode::FETCH_ADD, addr, 0)?;
            ensure!(found.status.is_success(), "{found:x?}");
        }
    }
    is_soft_dirty(cell, true).context("after the device wrote")
}

fn is_soft_dirty(cell: &Cell, expected: bool) -> Result<()> {
    for (index, page) in cell.scene.pages.iter().enumerate() {
        let found = pagemap(page.addr)?;
        ensure!((found & SOFT_DIRTY != 0) == expected, "page {index}: pagemap has {found:#x}");
    }
    Ok(())
}

/// An exclusive page looks swapped, to an entry with its frame.
fn pagemap_shows(cell: &mut Cell) -> Result<()> {
    for page in &cell.scene.pages {
        let entry = pagemap(page.addr)?;
        let exclusive = entry & SWAP != 0;
        let good = match cell.name.state {
            State::Held => exclusive,
            State::Hammered | State::Contended => true,
            _ => !exclusive,
        };
        ensure!(good && (entry & PRESENT != 0) != exclusive && entry & FILE == 0, "pagemap has {entry:#x}");
        let flags = page_flags(frame(entry))?;
        ensure!(flags & ANONYMOUS != 0, "pagemap has {entry:#x}, a frame with flags {flags:#x}");
    }
    Ok(())
}

/// The page frame number of an entry.
fn frame(entry: u64) -> u64 {
    let field = entry & ((1 << 55) - 1);
    if entry & PRESENT != 0 { field } else { field >> SWAP_TYPE_BITS }
}

/// What the kernel says of a frame.
fn page_flags(frame: u64) -> Result<u64> {
    word_of("/proc/kpageflags", frame)
}

/// Pages that the CPU has written.
fn resident(cell: &Cell) -> u64 {
    match cell.name.shape {
        Shape::Huge => 512,
        _ => cell.scene.pages.len() as u64,
    }
}

fn smaps_shows(cell: &mut Cell) -> Result<()> {
    let text = std::fs::read_to_string("/proc/self/smaps").context("smaps")?;
    let start = format!("{:x}-", cell.scene.base);
    let lines = text.lines().skip_while(|line| !line.starts_with(&start));
    let number = |key: &str| -> Result<u64> {
        let line = lines.clone().find_map(|line| line.strip_prefix(key)).context("not in smaps")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let (rss, swap) = (number("Rss:")?, number("Swap:")?);
    let expected = resident(cell) * PAGE / 1024;
    ensure!(rss == expected && swap == 0, "expected {expected} kB and 0 kB, found {rss} and {swap}");
    Ok(())
}

fn numa_maps_shows(cell: &mut Cell) -> Result<()> {
    let text = std::fs::read_to_string("/proc/self/numa_maps").context("numa_maps")?;
    let start = format!("{:x} ", cell.scene.base);
    let line = text.lines().find(|line| line.starts_with(&start)).context("not in numa_maps")?;
    let anon =
        line.split(' ').find_map(|word| word.strip_prefix("anon=")).map_or(Ok(0), str::parse::<u64>)?;
    let (all, exclusive) = (resident(cell), cell.scene.pages.len() as u64);
    let good = match cell.name.state {
        State::Held => anon == all - exclusive,
        State::Hammered | State::Contended => (all - exclusive..=all).contains(&anon),
        _ => anon == all,
    };
    ensure!(good, "{anon} of {all} pages, {exclusive} of them the device's: {line}");
    Ok(())
}

fn mincore_shows(cell: &mut Cell) -> Result<()> {
    for page in &cell.scene.pages {
        let found = super::scene::is_in_memory(page.addr)?;
        ensure!(found, "a page is not in memory");
    }
    Ok(())
}
