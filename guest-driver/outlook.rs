// SPDX-License-Identifier: GPL-2.0

//! A queue's outlook: the pages that its command will need next (spec 7.3), and how many of them are to be obtained
//! with a fault.
//!
//! The device reports such a page once in a command, so what is not obtained at once is kept. Its records are runs of pages: a
//! command that reads an array and writes another has one of each, and needs both at the same time, so they are taken from in
//! turn. How many pages are tried with one fault is the queue's *window*. It is halved when the
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
    /// The first `count`. Those that are used up have no pages.
    hints: [Hint; MAX_HINTS],
    count: usize,
    /// Which of them is next.
    turn: usize,
    /// Pages to be tried with a fault, its own included, as a binary logarithm.
    window_log2: u32,
    /// The pages that were tried with the last fault.
    tried: [u64; MAX_WINDOW],
    tried_count: usize,
}

impl Outlook {
    /// Keeps a record of the device's.
    pub(crate) fn push(&mut self, hint: Hint) {
        if self.count == MAX_HINTS {
            self.retain(|_| true);
        }
        if let Some(slot) = self.hints.get_mut(self.count) {
            *slot = hint;
            self.count += 1;
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
        let known = self.hints().iter().position(|hint| hint.contains(page));
        match known {
            Some(index) => self.skip(index, page),
            None if lost => {}
            // It is far beyond, or of another command: what came before the fault is of no use.
            None => self.retain(|hint| hint.fault_id == fault_id),
        }
        (1 << self.window_log2) - 1
    }

    /// Goes on with the run that holds `page`, which is obtained by its own fault.
    fn skip(&mut self, index: usize, page: u64) {
        self.turn = index;
        if self.hints().get(index).is_some_and(|hint| pci::page_base(hint.va) == page) {
            self.pop();
        }
    }

    /// Drops what is used up or not to be kept.
    fn retain(&mut self, keep: impl Fn(&Hint) -> bool) {
        let mut kept = 0;
        for index in 0..self.count {
            let Some(hint) = self.hints.get(index).copied().filter(|hint| hint.pages > 0 && keep(hint))
            else {
                continue;
            };
            if let Some(slot) = self.hints.get_mut(kept) {
                *slot = hint;
                kept += 1;
            }
        }
        (self.count, self.turn) = (kept, 0);
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

    /// A page of the run whose turn it is, or of the next one that has any.
    fn pop(&mut self) -> Option<(u64, AccessKind)> {
        let count = self.count;
        let mut order = (self.turn..count).chain(0..self.turn.min(count));
        let index = order.find(|&index| self.hints.get(index).is_some_and(|hint| hint.pages > 0))?;
        self.turn = index + 1;
        let hint = self.hints.get_mut(index)?;
        let next = (pci::page_base(hint.va), hint.access);
        hint.pages -= 1;
        hint.va = next.0.wrapping_add(pci::PAGE_SIZE);
        Some(next)
    }

    fn hints(&self) -> &[Hint] {
        self.hints.get(..self.count).unwrap_or(&[])
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
