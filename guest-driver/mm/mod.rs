// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers of the kernel's interfaces for devices that share a process's memory: interval
//! notifiers, device-exclusive pages, range faults, charging of memory.
//!
//! They know nothing of svmx. A driver uses them together:
//!
//! 1. `attempt = notifier.attempt(page)`;
//! 2. look the page up: [`ExclusivePage::acquire`] or [`fault_page`], with the process's memory [`ReadLocked`];
//! 3. `guard = attempt.commit()`; if there is none, drop everything and start over;
//! 4. give the device the page while the guard is held.
//!
//! For several pages the memory can stay locked, while each goes through all four steps before the next one begins. Locks
//! are taken in this order: `mmap_lock`, a folio's lock, a notifier's. That is also the order of those who come from the
//! other side, as they change mappings with `mmap_lock` or a folio's lock held, and then call notifiers.
//!
//! Then every later change of the process's page table comes to [`Mirror::invalidate`] first.

mod charge;
mod exclusive;
mod give_back;
mod locked;
mod notifier;
mod range_fault;
mod waiting;

pub(crate) use charge::Charge;
pub(crate) use exclusive::ExclusivePage;
pub(crate) use give_back::give_back;
pub(crate) use locked::ReadLocked;
pub(crate) use notifier::{Attempt, Cause, IntervalNotifier, Locked, Mirror, Owner};
pub(crate) use range_fault::{fault_page, Mapped};
pub(crate) use waiting::{fault_in, is_orphaned, WAITS};

/// Marks the folio that holds `phys` dirty.
///
/// # Safety
///
/// The page at `phys` must be memory with a `struct page`, and can't be freed meanwhile: a reference
/// is held, or it is mapped and the caller holds a lock that each notifier takes before unmapping it.
pub(crate) unsafe fn mark_dirty(phys: u64) {
    // SAFETY: By the requirements of this function the page exists and stays.
    unsafe { super::sys::svmx_phys_mark_dirty(phys) };
}
