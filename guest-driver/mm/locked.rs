// SPDX-License-Identifier: GPL-2.0

//! A process's memory, locked for looking at it.
//!
//! C header: `include/linux/mmap_lock.h`.

use super::super::sys;
use kernel::{
    bindings,
    mm::{virt::VmaRef, MmWithUser, MmapReadGuard},
};

/// A process's memory with its `mmap_lock` held for reading: mappings do not change. Whoever wants to change one waits,
/// so it is held for a bounded number of pages.
pub(crate) struct ReadLocked<'a> {
    mm: &'a MmWithUser,
    guard: MmapReadGuard<'a>,
}

impl<'a> ReadLocked<'a> {
    /// Takes the lock. This thread must not hold it already, nor a lock that a notifier takes.
    pub(crate) fn new(mm: &'a MmWithUser) -> Self {
        ReadLocked { mm, guard: mm.mmap_read_lock() }
    }

    /// Whether somebody waits for the lock.
    pub(crate) fn is_contended(&self) -> bool {
        // SAFETY: The object exists.
        unsafe { sys::svmx_mmap_lock_is_contended(self.as_raw()) }
    }

    /// The mapping that holds `addr`.
    pub(crate) fn vma(&self, addr: usize) -> Option<&VmaRef> {
        self.guard.vma_lookup(addr)
    }

    /// The object, which has a user, and whose lock is held for reading.
    pub(super) fn as_raw(&self) -> *mut bindings::mm_struct {
        self.mm.as_raw()
    }
}
