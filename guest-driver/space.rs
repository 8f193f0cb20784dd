// SPDX-License-Identifier: GPL-2.0

//! A context's address space on the device: its page table and its spans, made on demand.

use super::device::Device;
use super::leaves::Leaves;
use super::mm::{Charge, Owner};
use super::pagetable::{PageTable, Table};
use super::span::{invalidate, Shared, Span, SpanNotifier, SPAN};
use super::stats::Stats;
use super::trace::Reason;
use core::ops::Range;
use kernel::{mm::MmWithUser, prelude::*, rbtree::RBTree, sync::Arc};

/// Most spans of a context unless the module's parameter `max_spans` says otherwise: 16 GiB in use at the same time.
/// More evict others, so that a process can't make the driver keep more than some 40 MiB for it, wherever it maps and
/// unmaps memory.
pub(crate) const MAX_SPANS: u32 = 8192;
/// Most spans that are evicted at a time: one SYNC serves them all.
const EVICTED: usize = 8;

/// Page table and spans. Used by whoever grants pages and, when that has ended, by the context's end.
pub(crate) struct Space {
    device: Arc<Device>,
    stats: Arc<Stats>,
    asid: u32,
    table: PageTable,
    spans: RBTree<u64, Arc<SpanNotifier>>,
    count: usize,
    /// Eviction goes round the address space; this is where it goes on.
    hand: u64,
}

impl Space {
    /// An empty one.
    pub(crate) fn new(device: Arc<Device>, stats: Arc<Stats>, asid: u32) -> Result<Self> {
        let table = PageTable::new(device.pci())?;
        Ok(Space { device, stats, asid, table, spans: RBTree::new(), count: 0, hand: 0 })
    }

    /// The root's guest-physical address.
    pub(crate) fn root(&self) -> u64 {
        self.table.root()
    }

    /// How many spans there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The span of `va`, if it is there.
    pub(crate) fn find(&self, va: u64) -> Option<Arc<SpanNotifier>> {
        self.spans.get(&base(va)).cloned()
    }

    /// The first span that meets `range`, and their intersection.
    pub(crate) fn next(&self, range: &Range<u64>) -> Option<(Range<u64>, Arc<SpanNotifier>)> {
        let cursor = self.spans.cursor_lower_bound(&base(range.start))?;
        let (&base, span) = cursor.current();
        let part = range.start.max(base)..range.end.min(base + SPAN);
        (!part.is_empty()).then(|| (part, span.clone()))
    }

    /// Makes the span of `va`, which is not there. Sleeps.
    pub(crate) fn make(&mut self, mm: &MmWithUser, owner: Owner, va: u64) -> Result<Arc<SpanNotifier>> {
        let max = super::max_spans();
        if self.count >= max {
            self.evict((max / EVICTED).clamp(1, EVICTED));
        }
        let _charge = Charge::to(mm);
        let base = base(va);
        let leaves = Leaves::new(base, self.table.prepare(base)?, Table::new(self.device.pci())?);
        let shared = Shared { device: self.device.clone(), stats: self.stats.clone(), asid: self.asid };
        let notifier = SpanNotifier::new(mm, base..base + SPAN, owner, shared, Span::new(leaves, base));
        let span = Arc::pin_init(notifier, GFP_KERNEL_ACCOUNT)?;
        self.spans.try_create_and_insert(base, span.clone(), GFP_KERNEL_ACCOUNT)?;
        // Last, so that nothing leads to the leaf table of a span that could not be made.
        self.table.attach(base);
        span.lock().attach();
        self.count += 1;
        Ok(span)
    }

    /// Takes `count` spans, at most `EVICTED`, away from the device and frees them. Their pages fault again.
    fn evict(&mut self, count: usize) {
        let mut evicted = [const { None }; EVICTED];
        let mut last = None;
        for slot in evicted.iter_mut().take(count) {
            let Some((base, span)) = self.take_next() else { break };
            let detach = || self.table.detach(base);
            let (retired, ticket) = span.lock().retire(span.shared(), Reason::Evicted, detach);
            // A dead device uses none of it.
            last = ticket.ok().or(last);
            *slot = Some((span, retired));
            self.stats.evictions.bump();
        }
        if let Some(ticket) = last {
            self.device.wait_synced(ticket);
        }
        // Only now is the device done with the tables, which go with the spans.
        drop(evicted);
    }

    /// Takes the span out that is next to be evicted.
    fn take_next(&mut self) -> Option<(u64, Arc<SpanNotifier>)> {
        let next = self.spans.cursor_lower_bound(&self.hand).map(|cursor| *cursor.current().0);
        let base = next.or_else(|| self.spans.keys().next().copied())?;
        self.hand = base + SPAN;
        self.count -= 1;
        Some((base, self.spans.remove(&base)?))
    }

    /// Gives up all spans. No queue of the context is left, so the device looks nothing up in the page table any more; the
    /// context is still there and is to be destroyed before this is dropped.
    pub(crate) fn clear(&mut self) {
        // Nothing of it is cached behind this, and nothing comes anew.
        let everything = invalidate(self.asid, 0..u64::MAX);
        if let Ok(ticket) = self.device.submit(&[everything]) {
            self.device.wait_synced(ticket);
        }
        let mut cursor = self.spans.cursor_front_mut();
        while let Some(current) = cursor {
            let (rest, node) = current.remove_current();
            let (_, span) = node.to_key_value();
            // Pages get dirty that the device wrote, while the notifier still keeps them mapped.
            span.lock().abandon(span.shared(), Reason::Ended);
            drop(span);
            cursor = rest;
        }
        self.count = 0;
    }
}

/// The first address of the span of `va`.
fn base(va: u64) -> u64 {
    va - va % SPAN
}
