// SPDX-License-Identifier: GPL-2.0

//! Faulting a page into a process's page table on behalf of a device that shares it.
//!
//! C header: `include/linux/hmm.h`, `hmm_range_fault()`.

use super::super::sys;
use super::{waiting, Attempt, Mirror, ReadLocked, WAITS};
use core::ptr::null_mut;
use kernel::{error::to_result, page::PAGE_SIZE, prelude::*};

/// A page that the process maps.
pub(crate) struct Mapped {
    /// Its physical address.
    pub(crate) phys: u64,
    /// The CPU maps it by an entry for this many pages, as a binary logarithm: it is one of them, and so many neighbours,
    /// aligned to their number, are mapped alike.
    pub(crate) order: u32,
}

/// Makes sure that the page at `addr` (page-aligned) of the notifier's process is present, writable if `write`, and
/// returns where it is.
///
/// The result means something only once the attempt is [committed](Attempt::commit). No lock that a
/// notifier takes may be held during the call.
///
/// # Errors
///
/// EBUSY: an invalidation came between, start over. EFAULT: no such memory. EPERM: not writable.
/// ENOMEM. [`WAITS`]: it would have to be waited for.
pub(crate) fn fault_page<M: Mirror>(
    attempt: &Attempt<'_, M>,
    mm: &mut ReadLocked<'_>,
    addr: usize,
    write: bool,
) -> Result<Mapped> {
    let mut pfn = 0;
    let mut range = sys::hmm_range {
        notifier: attempt.notifier().as_raw(),
        notifier_seq: attempt.seq(),
        start: addr,
        end: addr.checked_add(PAGE_SIZE).ok_or(EFAULT)?,
        hmm_pfns: &mut pfn,
        default_flags: 0,
        pfn_flags_mask: 0,
        dev_private_owner: null_mut(),
    };
    let waits = mm.vma(addr).is_some_and(waiting::faults_wait);
    if !waits {
        // SAFETY: A function of its argument alone.
        range.default_flags = unsafe { sys::svmx_hmm_pfn_req(write) };
    }
    // SAFETY: `range` is complete: one page, with room for one result; the notifier is registered on
    // the memory that is locked for reading.
    to_result(unsafe { sys::hmm_range_fault(&mut range) })?;
    // SAFETY: A function of its argument alone.
    let needed = unsafe { sys::svmx_hmm_pfn_flags(write) };
    if waits && pfn & needed != needed {
        return Err(WAITS);
    }
    // SAFETY: Functions of their arguments alone. The entry is valid: REQ_FAULT makes success mean that, or it was looked at.
    Ok(unsafe { Mapped { phys: sys::svmx_hmm_pfn_to_phys(pfn), order: sys::svmx_hmm_pfn_to_map_order(pfn) } })
}
