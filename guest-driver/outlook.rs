// SPDX-License-Identifier: GPL-2.0

//! A queue's outlook: the pages that its command will need next (spec 7.3), and how many of them are to be obtained
//! with a fault.
//!
//! The device reports such a page once in a command, so what is not obtained at once is kept, in the order in
//! which the command comes there. How many pages are tried with one fault is the queue's *window*. It is halved when the
//! queue faults on a page of its last window, which was taken back before the command came there, and doubles when the
//! queue faults on another one, having used them all. So a command that is alone with its memory soon has few
//! faults, and one that shares each page with busy CPUs takes only what it is about to use.
//!
//! Nothing here needs the kernel: `guest/tests/outlook.rs` tests this file. Pages are obtained by `ahead.rs`.

use super::abi::{fault::AccessKind, pci};
use zerocopy_derive::FromZeros;

/// Most pages that are tried with one fault, its own included; and what the device is told to report.
pub(crate) const MAX_WINDOW: usize = 1 << MAX_WINDOW_LOG2;
const MAX_WINDOW_LOG2: u32 = 8;
/// Most records that are kept: those of one fault at least. The pages of those beyond fault, one by one.
const MAX_HINTS: usize = MAX_WINDOW;

/// Pages in a row that a queue will need.
#[derive(Clone, Copy, FromZeros)]
#[repr(C)]
pub(crate) struct Hint {
    /// Of the fault that it came with.
    pub(crate) fault_id: u32,
    pub(crate) pages: u16,
    pub(crate) access: AccessKind,
    /// On the first of them.
    pub(crate) va: u64,
}
const _: () = assert!(size_of::<Hint>() == 16);

/// What is known of a queue's next pages. All zeroes: nothing, of queue 0.
#[derive(FromZeros)]
#[repr(C)]
pub(crate) struct Outlook {
    pub(crate) queue: u32,
    hints: [Hint; MAX_HINTS],
    /// Those that are not used up: `start..end`.
    start: usize,
    end: usize,
    /// Pages to be tried with a fault, its own included, as a binary logarithm.
    window_log2: u32,
    /// The pages that were tried with the last fault.
    tried: [u64; MAX_WINDOW],
    tried_count: usize,
}

impl Outlook {
    /// Keeps a record of the device's.
    pub(crate) fn push(&mut self, hint: Hint) {
        if self.end == MAX_HINTS {
            self.hints.copy_within(self.start.., 0);
            self.end -= self.start;
            self.start = 0;
        }
        if let Some(slot) = self.hints.get_mut(self.end) {
            *slot = hint;
            self.end += 1;
        }
    }

    /// A fault at `va` is to be served: how many further pages to try with it.
    pub(crate) fn begin(&mut self, fault_id: u32, va: u64) -> usize {
        let page = pci::page_base(va);
        let lost = self.tried().contains(&page);
        if lost {
            self.window_log2 = self.window_log2.saturating_sub(1);
        } else if self.tried_count + 1 >= 1 << self.window_log2 {
            self.window_log2 = (self.window_log2 + 1).min(MAX_WINDOW_LOG2);
        }
        self.tried_count = 0;
        self.forget_before(fault_id, page, lost);
        (1 << self.window_log2) - 1
    }

    /// Drops what the command has passed. A page that nobody knows of is far beyond, or of another command.
    fn forget_before(&mut self, fault_id: u32, page: u64, lost: bool) {
        let known = self.hints().iter().position(|hint| hint.contains(page));
        let new = self.hints().iter().position(|hint| hint.fault_id == fault_id);
        self.start += match known {
            Some(index) => index,
            None if lost => 0,
            None => new.unwrap_or(self.end - self.start),
        };
        // It is obtained by its own fault.
        if self.hints().first().is_some_and(|hint| pci::page_base(hint.va) == page) {
            self.pop();
        }
    }

    /// The next page, and what is wanted there. It belongs to the window now.
    pub(crate) fn next(&mut self) -> Option<(u64, AccessKind)> {
        let (page, access) = self.pop()?;
        if let Some(slot) = self.tried.get_mut(self.tried_count) {
            *slot = page;
            self.tried_count += 1;
        }
        Some((page, access))
    }

    fn pop(&mut self) -> Option<(u64, AccessKind)> {
        let hint = self.hints.get_mut(self.start..self.end)?.first_mut()?;
        let next = (pci::page_base(hint.va), hint.access);
        if hint.pages > 1 {
            hint.pages -= 1;
            hint.va = next.0.wrapping_add(pci::PAGE_SIZE);
        } else {
            self.start += 1;
        }
        Some(next)
    }

    fn hints(&self) -> &[Hint] {
        self.hints.get(self.start..self.end).unwrap_or(&[])
    }

    fn tried(&self) -> &[u64] {
        self.tried.get(..self.tried_count).unwrap_or(&[])
    }
}

impl Hint {
    fn contains(&self, page: u64) -> bool {
        let first = pci::page_base(self.va);
        (first..first.saturating_add(u64::from(self.pages) * pci::PAGE_SIZE)).contains(&page)
    }
}
