// SPDX-License-Identifier: GPL-2.0

//! Memory whose page faults wait for somebody else: for a process that serves them itself (userfaultfd), or for a file
//! system, which may be a process too.
//!
//! `make_device_exclusive()` and `hmm_range_fault()` fault with `mmap_lock` held throughout, without
//! `FAULT_FLAG_ALLOW_RETRY`. `handle_userfault()` refuses that, and with `CONFIG_DEBUG_VM` says so in the log; a file
//! system would be waited for with the lock. So pages of such memory are given only if they are there already, and else the
//! error is [`WAITS`]: whoever gets it calls [`fault_in`], on a thread that may wait, and tries again.

use super::super::sys;
use super::ReadLocked;
use core::ptr::null_mut;
use kernel::{bindings, error::to_result, mm::MmWithUser, mm::virt::VmaRef, prelude::*};

/// The page would have to be waited for. No function of the memory management returns it.
pub(crate) const WAITS: Error = EIOCBQUEUED;

/// Whether page faults in this mapping may wait for somebody.
pub(super) fn faults_wait(vma: &VmaRef) -> bool {
    // SAFETY: The mapping exists, and the lock of its `mm` is held, as long as there is a reference.
    unsafe { sys::svmx_vma_faults_wait(vma.as_ptr()) }
}

/// Faults the page at `addr` in, writable if `write`, and waits for as long as that takes, or until the calling thread is
/// killed. No lock is held meanwhile. It may have gone again when this returns.
///
/// # Errors
///
/// EINTR: the thread was killed. EFAULT: no such memory, or it does not allow that. ENOMEM.
pub(crate) fn fault_in(mm: &MmWithUser, addr: usize, write: bool) -> Result {
    let flags = if write { bindings::FOLL_WRITE } else { 0 };
    let mut locked = 1;
    // SAFETY: `mm` has a user. The lock is released below, unless that was done on the way, as `locked` tells.
    let count = unsafe {
        to_result(sys::svmx_mmap_read_lock_killable(mm.as_raw()))?;
        let count =
            bindings::get_user_pages_remote(mm.as_raw(), addr, 1, flags, null_mut(), &mut locked);
        if locked != 0 {
            sys::svmx_mmap_read_unlock(mm.as_raw());
        }
        count
    };
    match count {
        1 => Ok(()),
        // It can't be said why: whoever looks again will see.
        0 => Ok(()),
        error => to_result(error as i32),
    }
}

/// Whether no task has the memory any more, so that nobody wants what is waited for.
pub(crate) fn is_orphaned(mm: &kernel::mm::Mm) -> bool {
    // SAFETY: The object exists.
    unsafe { sys::svmx_mm_is_orphaned(mm.as_raw()) }
}

/// Whether the page at `addr` is there, writable, and will be as long as the lock is held: the lock must be held for
/// writing, else nothing is known.
pub(super) fn is_there(mm: &ReadLocked<'_>, addr: usize) -> bool {
    if !mm.is_alone() {
        return false;
    }
    let mut page = null_mut();
    let flags = bindings::FOLL_GET | bindings::FOLL_WRITE | bindings::FOLL_NOFAULT;
    // SAFETY: The memory has a user, and its lock is held. There is room for one page, whose reference is dropped.
    unsafe {
        let count = bindings::get_user_pages_remote(mm.as_raw(), addr, 1, flags, &mut page, null_mut());
        if count == 1 {
            sys::svmx_put_page(page);
        }
        count == 1
    }
}
