// SPDX-License-Identifier: GPL-2.0

//! Giving pages that were exclusive back to the CPU, before one touches them.
//!
//! C header: `include/linux/mm.h`, `get_user_pages_unlocked()`.

use super::super::sys;
use core::ops::Range;
use kernel::{error::to_result, page::PAGE_SIZE, prelude::*};

/// Makes the pages of `range` (page-aligned) present in the memory of the calling thread's process, as if it had read
/// each, in order and under one hold of its lock where no page has to be waited for.
///
/// A page that was [exclusive](super::ExclusivePage) comes back as it was before, and writable: the notifiers hear of each. No lock that
/// a notifier takes may be held.
///
/// This and not `hmm_range_fault()`, which starts over when a notifier hears of the range: with each page that comes back.
///
/// # Errors
///
/// EFAULT, and others, for the first page that can't be read; those before it are present. EINTR: a fatal signal came.
pub(crate) fn give_back(range: Range<usize>) -> Result {
    let pages = (range.end - range.start) / PAGE_SIZE;
    // SAFETY: Any range will do: what is no memory of the process is an error.
    to_result(unsafe { sys::svmx_give_back(range.start, pages) })
}
