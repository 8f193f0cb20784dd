// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Advice on memory, and locking it.
#![expect(unsafe_code, reason = "calls mlock")]

use super::cell::Cell;
use super::scene::{MADV_GUARD_INSTALL, advise, load, word};
use super::table::{Event, Fate, Fates, Memory, Shape, State};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

/// Advice on a part of a huge page that is mapped by small entries makes the kernel split it, which is an event.
const SPLITS: Option<Fates> = Some(Fates { held: Fate::Taken, ..Fates::STAYS });

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "dontneed",
        kernel: "zap_page_range_single(): CLEAR",
        memory: Memory::Zeroed,
        run: |cell| advises(cell, libc::MADV_DONTNEED),
        ..Event::ROW
    },
    Event {
        name: "guard",
        kernel: "madvise_guard_install(), zap_page_range_single(): CLEAR",
        memory: Memory::Guarded,
        run: |cell| advises(cell, MADV_GUARD_INSTALL),
        ..Event::ROW
    },
    Event {
        name: "free",
        kernel: "madvise_free_single_vma(): CLEAR; nothing is freed before shrink_folio_list() comes",
        run: |cell| advises(cell, libc::MADV_FREE),
        ..Event::ROW
    },
    Event {
        name: "free-reclaim",
        kernel: "madvise_free_single_vma(): CLEAR, which passes over exclusive pages; try_to_unmap_one(): CLEAR",
        shapes: Shape::SMALL,
        memory: Memory::Zeroed,
        memory_in: &[(State::Held, Memory::Kept)],
        absent: &[
            (State::Hammered, "the device may write in between or not: see free-write-reclaim"),
            (State::Contended, "device and CPU may write in between or not: see free-write-reclaim"),
        ],
        run: frees_and_reclaims,
        ..Event::ROW
    },
    Event {
        name: "free-write-reclaim",
        kernel: "madvise_free_single_vma(): CLEAR; try_to_unmap_one(): CLEAR, then looks whether the page is dirty",
        shapes: Shape::SMALL,
        run: frees_writes_and_reclaims,
        ..Event::ROW
    },
    Event {
        name: "cold",
        kernel: "madvise_cold_or_pageout_pte_range(): no event; split_folio(): CLEAR",
        fates: Fates::STAYS,
        huge: SPLITS,
        run: |cell| advises(cell, libc::MADV_COLD),
        ..Event::ROW
    },
    Event {
        name: "populate-read",
        kernel: "faultin_page_range(), remove_device_exclusive_entry(): CLEAR of the page",
        fates: Fates::TOUCHED,
        run: |cell| advises(cell, libc::MADV_POPULATE_READ),
        ..Event::ROW
    },
    Event {
        name: "populate-write",
        kernel: "faultin_page_range(), remove_device_exclusive_entry(): CLEAR of the page",
        fates: Fates::TOUCHED,
        run: |cell| advises(cell, libc::MADV_POPULATE_WRITE),
        ..Event::ROW
    },
    Event {
        name: "mlock",
        kernel: "populate_vma_page_range(), remove_device_exclusive_entry(): CLEAR of the page",
        fates: Fates::TOUCHED,
        run: |cell| lock(cell, 0),
        ..Event::ROW
    },
    Event {
        name: "mlock-onfault",
        kernel: "mlock_pte_range(): no event",
        fates: Fates::STAYS,
        run: |cell| lock(cell, libc::MLOCK_ONFAULT),
        ..Event::ROW
    },
    Event {
        name: "munlock",
        kernel: "mlock_pte_range(): no event",
        fates: Fates::STAYS,
        before: |scene| {
            // SAFETY: the range is the cell's; nothing is changed but that it stays in memory.
            let result = unsafe { libc::mlock(scene.base as *const _, scene.len as usize) };
            Errno::result(result).map(drop).context("mlock")
        },
        run: unlocks,
        ..Event::ROW
    },
    Event {
        name: "mlockall",
        kernel: "populate_vma_page_range(), remove_device_exclusive_entry(): CLEAR of the page",
        fates: Fates::TOUCHED,
        run: locks_everything,
        ..Event::ROW
    },
];

fn advises(cell: &mut Cell, advice: i32) -> Result<()> {
    advise(cell.scene.base, cell.scene.len, advice)
}

/// Pages that were freed lazily and not written since are dropped. The kernel does not see exclusive pages, so it
/// frees none of them.
fn frees_and_reclaims(cell: &mut Cell) -> Result<()> {
    advises(cell, libc::MADV_FREE)?;
    cell.done()?;
    if cell.name.state == State::Held {
        touch(cell);
    }
    advises(cell, libc::MADV_PAGEOUT)
}

/// What the device writes to a page that was freed lazily is kept, though no CPU's entry says that it is dirty.
fn frees_writes_and_reclaims(cell: &mut Cell) -> Result<()> {
    advises(cell, libc::MADV_FREE)?;
    cell.done()?;
    match cell.name.state {
        State::Hammered | State::Contended => cell.goes_on()?,
        state => {
            for page in 0..cell.scene.pages.len() {
                let (addr, value) = (cell.scene.pages[page].addr, cell.random.next());
                if state == State::Held {
                    cell.adds(page, addr, super::scene::Origin::Own)?;
                } else {
                    cell.writes(addr + word::DEVICE, value)?;
                    cell.scene.pages[page].device = value;
                }
            }
            touch(cell);
        }
    }
    advises(cell, libc::MADV_PAGEOUT)
}

/// The CPU gets the pages back, which it must have for the kernel to look at them. A load makes none dirty.
fn touch(cell: &Cell) {
    for page in &cell.scene.pages {
        let _ = load(page.addr + word::PATTERN);
    }
}

fn lock(cell: &mut Cell, flags: libc::c_uint) -> Result<()> {
    // SAFETY: the range is the cell's; nothing is changed but that it stays in memory.
    let result = unsafe { libc::mlock2(cell.scene.base as *const _, cell.scene.len as usize, flags) };
    Errno::result(result).map(drop).context("mlock2")
}

fn unlocks(cell: &mut Cell) -> Result<()> {
    // SAFETY: the range is the cell's; nothing is changed but that it need not stay in memory.
    let result = unsafe { libc::munlock(cell.scene.base as *const _, cell.scene.len as usize) };
    Errno::result(result).map(drop).context("munlock")
}

fn locks_everything(_: &mut Cell) -> Result<()> {
    // SAFETY: nothing is changed but that memory stays where it is.
    let result = unsafe { libc::mlockall(libc::MCL_CURRENT) };
    Errno::result(result).map(drop).context("mlockall")
}
