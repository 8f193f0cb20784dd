// SPDX-License-Identifier: GPL-2.0

//! Faulting a page into a process's page table on behalf of a device that shares it.
//!
//! C header: `include/linux/hmm.h`, `hmm_range_fault()`.

use super::super::sys;
use super::{Attempt, Mirror};
use core::ptr::null_mut;
use kernel::{error::to_result, mm::MmWithUser, page::PAGE_SIZE, prelude::*};

/// Makes sure that the page at `addr` (page-aligned) is present in `mm`, writable if `write`, and
/// returns its physical address.
///
/// The address means something only once the attempt is [committed](Attempt::commit). No lock that a
/// notifier takes may be held during the call.
///
/// # Errors
///
/// EBUSY: an invalidation came between, start over. EFAULT: no such memory. EPERM: not writable.
/// ENOMEM.
pub(crate) fn fault_page<M: Mirror>(
    attempt: &Attempt<'_, M>,
    mm: &MmWithUser,
    addr: usize,
    write: bool,
) -> Result<u64> {
    let mut pfn = 0;
    let mut range = sys::hmm_range {
        notifier: attempt.notifier().as_raw(),
        notifier_seq: attempt.seq(),
        start: addr,
        end: addr.checked_add(PAGE_SIZE).ok_or(EFAULT)?,
        hmm_pfns: &mut pfn,
        // SAFETY: A function of its argument alone.
        default_flags: unsafe { sys::svmx_hmm_pfn_req(write) },
        pfn_flags_mask: 0,
        dev_private_owner: null_mut(),
    };
    let guard = mm.mmap_read_lock();
    // SAFETY: `range` is complete: one page, with room for one result; the notifier is registered on
    // `mm`, whose lock is held for reading by `guard`.
    let result = to_result(unsafe { sys::hmm_range_fault(&mut range) });
    drop(guard);
    result?;
    // SAFETY: A function of its argument alone. REQ_FAULT makes success mean that the entry is valid.
    Ok(unsafe { sys::svmx_hmm_pfn_to_phys(pfn) })
}
