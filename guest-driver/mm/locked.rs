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
    /// None: it is held for writing.
    guard: Option<MmapReadGuard<'a>>,
}

impl<'a> ReadLocked<'a> {
    /// Takes the lock. This thread must not hold it already, nor a lock that a notifier takes.
    pub(crate) fn new(mm: &'a MmWithUser) -> Self {
        ReadLocked { mm, guard: Some(mm.mmap_read_lock()) }
    }

    /// Takes the lock for writing, and that of the mapping at `addr`, as [`new`](Self::new) otherwise. So nobody faults,
    /// protects or removes pages of that mapping meanwhile but reclaim, after which a page comes back without anybody's help.
    pub(crate) fn alone(mm: &'a MmWithUser, addr: usize) -> Self {
        // SAFETY: `mm` has a user. The lock is released by `drop`. The mapping exists as long as it is held.
        unsafe {
            sys::svmx_mmap_write_lock(mm.as_raw());
            let vma = bindings::vma_lookup(mm.as_raw(), addr);
            if !vma.is_null() {
                sys::svmx_vma_start_write(vma);
            }
        }
        ReadLocked { mm, guard: None }
    }

    /// Whether it is held for writing.
    pub(super) fn is_alone(&self) -> bool {
        self.guard.is_none()
    }

    /// Whether somebody waits for the lock.
    pub(crate) fn is_contended(&self) -> bool {
        // SAFETY: The object exists.
        unsafe { sys::svmx_mmap_lock_is_contended(self.as_raw()) }
    }

    /// The mapping that holds `addr`.
    pub(crate) fn vma(&self, addr: usize) -> Option<&VmaRef> {
        if let Some(guard) = &self.guard {
            return guard.vma_lookup(addr);
        }
        // SAFETY: The lock is held, for as long as there is a reference to this.
        unsafe {
            let vma = bindings::vma_lookup(self.mm.as_raw(), addr);
            (!vma.is_null()).then(|| VmaRef::from_raw(vma))
        }
    }

    /// The object, which has a user, and whose lock is held for reading.
    pub(super) fn as_raw(&self) -> *mut bindings::mm_struct {
        self.mm.as_raw()
    }
}

impl Drop for ReadLocked<'_> {
    fn drop(&mut self) {
        if self.is_alone() {
            // SAFETY: This thread holds it.
            unsafe { sys::svmx_mmap_write_unlock(self.mm.as_raw()) };
        }
    }
}
