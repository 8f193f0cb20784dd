// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events that change or remove a process's mappings where they are.

use super::cell::Cell;
use super::scene::{map_over, protect, unmap};
use super::table::{Event, Fates, Memory};
use anyhow::Result;
use nix::libc::{PROT_NONE, PROT_READ, PROT_WRITE};
use svmx::abi::status::Status;

/// Where a mapping ends within 2 MiB the kernel splits a huge page, which is an event for all of it; also if
/// nothing is left to split.
const SPLIT: Option<Fates> = Some(Fates::TAKEN);

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "munmap",
        kernel: "unmap_vmas(): UNMAP",
        memory: Memory::Gone,
        run: |cell| unmap(cell.scene.base, cell.scene.len),
        ..Event::ROW
    },
    Event {
        name: "munmap-tail",
        kernel: "unmap_vmas(): UNMAP of the tail; split_huge_pmd_address(): CLEAR of 2 MiB",
        memory: Memory::TailGone,
        fates: Fates::TAIL,
        huge: SPLIT,
        run: |cell| unmap(cell.scene.tail, cell.scene.base + cell.scene.len - cell.scene.tail),
        ..Event::ROW
    },
    Event {
        name: "mmap-over",
        kernel: "unmap_vmas(): UNMAP",
        memory: Memory::Zeroed,
        run: |cell| map_over(cell.scene.base, cell.scene.len),
        ..Event::ROW
    },
    Event {
        name: "mprotect-read",
        kernel: "change_protection(): PROTECTION_VMA",
        memory: Memory::ReadOnly,
        run: |cell| protect(cell.scene.base, cell.scene.len, PROT_READ),
        ..Event::ROW
    },
    Event {
        name: "mprotect-none",
        kernel: "change_protection(): PROTECTION_VMA",
        memory: Memory::NoAccess,
        run: |cell| protect(cell.scene.base, cell.scene.len, PROT_NONE),
        ..Event::ROW
    },
    Event {
        name: "mprotect-back",
        kernel: "change_protection(): PROTECTION_VMA, twice",
        between: Some(Status::PERMISSION),
        run: forbids_for_a_moment,
        ..Event::ROW
    },
    Event {
        name: "mprotect-tail",
        kernel: "change_protection(): PROTECTION_VMA of the tail, twice; split_huge_pmd_address(): CLEAR of 2 MiB",
        between: Some(Status::PERMISSION),
        fates: Fates::TAIL,
        huge: SPLIT,
        run: forbids_the_tail_for_a_moment,
        ..Event::ROW
    },
];

fn forbids_for_a_moment(cell: &mut Cell) -> Result<()> {
    protect(cell.scene.base, cell.scene.len, PROT_READ)?;
    protect(cell.scene.base, cell.scene.len, PROT_READ | PROT_WRITE)
}

fn forbids_the_tail_for_a_moment(cell: &mut Cell) -> Result<()> {
    let (tail, len) = (cell.scene.tail, cell.scene.base + cell.scene.len - cell.scene.tail);
    protect(tail, len, PROT_READ)?;
    protect(tail, len, PROT_READ | PROT_WRITE)
}
