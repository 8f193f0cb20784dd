// SPDX-License-Identifier: GPL-2.0

//! A page taken out of its process's page table for a device's exclusive use.
//!
//! C header: `include/linux/rmap.h`, `make_device_exclusive()`.

use super::super::sys;
use super::{waiting, Owner, ReadLocked, WAITS};
use core::{
    marker::PhantomData,
    ptr::{null_mut, NonNull},
};
use kernel::{bindings, error::from_err_ptr, prelude::*, types::NotThreadSafe};

/// A page that no CPU maps, with its folio locked and referenced.
///
/// While it lives no CPU can get the page back: whoever touches it waits for the folio lock. Program
/// the device meanwhile, in a critical section of an [`IntervalNotifier`](super::IntervalNotifier);
/// once this is dropped, a touch revokes the access by way of the notifier.
///
/// It borrows the locked memory, so that a thread has one of them at a time: two folio locks could deadlock.
///
/// # Invariants
///
/// `folio` is locked by this thread and holds one reference that belongs to this object; `page` is
/// one of its pages.
pub(crate) struct ExclusivePage<'a> {
    page: NonNull<bindings::page>,
    folio: NonNull<bindings::folio>,
    _alone: PhantomData<&'a mut ()>,
    _not_send: NotThreadSafe,
}

impl<'a> ExclusivePage<'a> {
    /// Makes the page at `addr` exclusive. Only anonymous memory that is not hugetlb, in
    /// a mapping that allows writing, can be.
    ///
    /// Notifiers are told with `owner`, so that the caller's own can ignore it. They may also hear
    /// of other events, for example if the page was exclusive already: the caller must not hold any
    /// lock that a notifier takes, nor another folio's lock.
    ///
    /// # Errors
    ///
    /// EFAULT: no such memory, or not writable. EOPNOTSUPP: memory of another kind. ENOMEM.
    /// [`WAITS`]: it would have to be waited for. Others mean that the page moved and the caller may try again.
    pub(crate) fn acquire(mm: &'a mut ReadLocked<'_>, addr: usize, owner: Owner) -> Result<Self> {
        if mm.vma(addr).is_some_and(waiting::faults_wait) && !waiting::is_there(mm, addr) {
            return Err(WAITS);
        }
        let mut folio: *mut bindings::folio = null_mut();
        // SAFETY: The memory has a user, and its lock is held for reading. The owner is compared
        // and never dereferenced. `folio` is valid for writes.
        let page = unsafe { sys::make_device_exclusive(mm.as_raw(), addr, owner.as_ptr(), &mut folio) };
        let page = NonNull::new(from_err_ptr(page)?).ok_or(EFAULT)?;
        let folio = NonNull::new(folio).ok_or(EFAULT)?;
        // INVARIANT: On success make_device_exclusive() returns the folio locked and referenced.
        Ok(ExclusivePage { page, folio, _alone: PhantomData, _not_send: NotThreadSafe })
    }

    /// The page's physical address.
    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: By the type invariant the page exists.
        unsafe { sys::svmx_page_to_phys(self.page.as_ptr()) }
    }
}

impl Drop for ExclusivePage<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this thread holds the folio's lock and a reference.
        unsafe {
            bindings::folio_unlock(self.folio.as_ptr());
            sys::svmx_folio_put(self.folio.as_ptr());
        }
    }
}
