// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events that change a process's mappings.

use super::cell::Cell;
use super::scene::{protect, unmap};
use super::table::{Event, Memory};
use anyhow::Result;
use nix::libc;

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "munmap",
        kernel: "unmap_vmas(): UNMAP of the range",
        memory: Memory::Gone,
        run: unmaps,
        ..Event::ROW
    },
    Event {
        name: "mprotect-none",
        kernel: "change_protection(): PROTECTION_VMA of the range",
        memory: Memory::NoAccess,
        run: forbids,
        ..Event::ROW
    },
];

fn unmaps(cell: &mut Cell) -> Result<()> {
    unmap(cell.scene.base, cell.scene.len)
}

fn forbids(cell: &mut Cell) -> Result<()> {
    protect(cell.scene.base, cell.scene.len, libc::PROT_NONE)
}
