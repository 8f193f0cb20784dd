// SPDX-License-Identifier: GPL-2.0

//! A span: 2 MiB of a context's address space, with its leaf table and its notifier.
//!
//! The notifier's lock guards the leaf table: an entry is valid only as long as no invalidation of its
//! page has begun. This is where spec 11 is obeyed.

use super::abi::{
    control::{ControlEntry, TlbInvalidate},
    fault::AccessKind,
    pci,
    pte::{self, Access, Pte},
};
use super::control::Ticket;
use super::device::Device;
use super::hw::Stopwatch;
use super::leaves::Leaves;
use super::live::{Kind, Live};
use super::mm::{self, Cause, IntervalNotifier, Mirror};
use super::owing;
use super::stats::Stats;
use super::trace::{self, Reason};
use core::ops::Range;
use kernel::{prelude::*, sync::Arc};

/// Bytes of a span: what a leaf table translates.
pub(crate) const SPAN: u64 = pte::span(1);

/// A span and its notifier.
pub(crate) type SpanNotifier = IntervalNotifier<Span>;

/// What is needed without the lock.
pub(crate) struct Shared {
    pub(crate) device: Arc<Device>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) asid: u32,
}

/// What the lock guards.
pub(crate) struct Span {
    leaves: Leaves,
    base: u64,
    /// The leaf table is detached.
    retired: bool,
    /// A bit for each entry that was mapped before the device asked for it; a huge leaf has the first.
    ahead: [u64; pte::ENTRIES / 64],
    /// Behind the last TLB_INVALIDATE. Until a SYNC behind it is done the device may still use what was
    /// mapped, although the entries are clear: whoever comes later waits for it as well.
    last: Ticket,
    _live: Live,
}

/// What the device has of a part of a span.
pub(crate) struct Held {
    pub(crate) pages: u64,
    /// A bit for each of the span's pages that it has exclusively.
    exclusive: [u64; pte::ENTRIES / 64],
}

impl Held {
    /// Whether the page at `va` is held exclusively, so that the CPU does not map it.
    pub(crate) fn is_exclusive(&self, va: u64) -> bool {
        let index = pte::index(va, 0);
        self.exclusive.get(index / 64).is_some_and(|word| word & 1 << (index % 64) != 0)
    }
}

/// A TLB_INVALIDATE to wait for.
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    ticket: Ticket,
    /// `None` if another event cleared the entries.
    cleared: Option<Cleared>,
}

/// Entries that an event cleared.
#[derive(Clone, Copy)]
struct Cleared {
    since: Stopwatch,
    start: u64,
    end: u64,
    cause: Cause,
}

impl Span {
    /// A span at `base` with nothing mapped, which the device's page table does not lead to yet.
    pub(crate) fn new(leaves: Leaves, base: u64) -> Self {
        Span {
            leaves,
            base,
            retired: false,
            ahead: [0; pte::ENTRIES / 64],
            last: Ticket::default(),
            _live: Live::new(Kind::Span),
        }
    }

    /// The entry for `va`, if it allows `access`.
    pub(crate) fn sufficient(&self, va: u64, access: AccessKind) -> Option<Pte> {
        let entry = self.leaves.get(va);
        let allowed = entry.access();
        let enough = match access {
            AccessKind::READ => allowed.read,
            AccessKind::WRITE => allowed.write,
            AccessKind::ATOMIC => allowed.atomic || allowed.coherent,
            _ => false,
        };
        (entry.valid() && enough).then_some(entry)
    }

    /// Whether an entry of `range` is valid.
    fn is_mapped(&self, range: &Range<u64>) -> bool {
        let mut pages = (pci::page_base(range.start)..range.end).step_by(pci::PAGE_SIZE as usize);
        !self.leaves.is_empty() && pages.any(|va| self.valid(va).is_some())
    }

    /// The entry for `va`, if it allows anything.
    pub(crate) fn valid(&self, va: u64) -> Option<Pte> {
        Some(self.leaves.get(va)).filter(|entry| entry.valid())
    }

    /// Whether the device's page table does not lead here any more: nothing is to be mapped, and the page's span is
    /// another one.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Makes the device's page table lead here.
    pub(crate) fn attach(&mut self) {
        self.leaves.attach();
    }

    /// Whether what the device has of the page at `va` must be gone before it may be mapped for `access`: it would
    /// be one frame that is *atomic*, and not *atomic* but stored to, at the same time (spec 6.3).
    pub(crate) fn clashes(&self, va: u64, access: Access) -> bool {
        self.valid(va).map(Pte::access).is_some_and(|old| {
            let stores = old.write && access.write;
            stores && is_own_rmw(old) != is_own_rmw(access)
        })
    }

    /// Maps the page at `va`. The caller holds the lock, has checked that no invalidation came between and that nothing
    /// [clashes](Self::clashes), and replays what waits for the page before it releases the lock.
    pub(crate) fn map(&mut self, shared: &Shared, va: u64, entry: Pte) {
        let page = pci::page_base(va)..pci::page_base(va) + pci::PAGE_SIZE;
        let small = self.drop_huge(shared);
        let old = self.leaves.set(va, entry);
        shared.stats.hold(entry);
        shared.stats.let_go(old);
        self.set_ahead(pte::index(va, 0), false);
        // If an entry is changed the page is the same: any other way to change it clears the entry first. Engines that have
        // the old entry cached do less with it than they may; they forget it so that they don't fault again.
        match old.valid() && old != entry {
            _ if small.is_some() => self.changed(shared, self.range()),
            true => self.changed(shared, page),
            false => {}
        }
    }

    /// Maps a page that the device has not asked for yet, unless something is mapped there. The caller holds the lock
    /// and has checked that no invalidation came between.
    pub(crate) fn map_ahead(&mut self, shared: &Shared, va: u64, entry: Pte) {
        if self.valid(va).is_none() {
            self.leaves.set(va, entry);
            shared.stats.hold(entry);
            self.set_ahead(pte::index(va, 0), true);
            shared.stats.ahead.bump();
        }
    }

    /// Maps the whole span to 2 MiB at `address`. The caller holds the lock, has checked that no invalidation of any part
    /// came between, and replays what waits before it releases the lock.
    pub(crate) fn map_huge(&mut self, shared: &Shared, address: u64, access: Access, ahead: bool) {
        self.drop_huge(shared);
        for va in self.range().step_by(pci::PAGE_SIZE as usize) {
            if self.leaves.is_empty() {
                break;
            }
            // These are pages of the same 2 MiB, as no invalidation came between.
            self.take(shared, va);
        }
        self.leaves.set_huge(address, access);
        shared.stats.hold(Pte::huge_leaf(address, access));
        self.set_ahead(0, ahead);
        shared.stats.huge_grants.bump();
        if ahead {
            shared.stats.ahead.bump();
        }
        // The entry that led to the leaf table is changed, whether that was empty or not (spec 6.1).
        self.changed(shared, self.range());
    }

    /// An entry of `range` was changed, and not for one that leads elsewhere. The SYNC stands before the REPLAY that
    /// follows: the device executes them in order, so there is no need to wait here.
    fn changed(&mut self, shared: &Shared, range: Range<u64>) {
        // A dead device needs none.
        if let Ok(ticket) = shared.device.submit_sync(&[invalidate(shared.asid, range)]) {
            self.last = ticket;
        }
    }

    fn range(&self) -> Range<u64> {
        self.base..self.base + SPAN
    }

    /// Notes whether the entry at `index` was mapped ahead; returns whether the one before was.
    fn set_ahead(&mut self, index: usize, ahead: bool) -> bool {
        let Some(word) = self.ahead.get_mut(index / 64) else { return false };
        let bit = 1 << (index % 64);
        let before = *word & bit != 0;
        *word = if ahead { *word | bit } else { *word & !bit };
        before
    }

    /// What the device has of `range`.
    pub(crate) fn held(&self, range: Range<u64>) -> Held {
        let mut held = Held { pages: 0, exclusive: [0; pte::ENTRIES / 64] };
        let mapped = if self.leaves.is_empty() { 0..0 } else { range };
        for va in mapped.step_by(pci::PAGE_SIZE as usize) {
            let Some(entry) = self.valid(va) else { continue };
            held.pages += 1;
            let index = pte::index(va, 0);
            if let Some(word) = held.exclusive.get_mut(index / 64).filter(|_| entry.access().atomic) {
                *word |= 1 << (index % 64);
            }
        }
        held
    }

    /// Takes the pages of `range` from the device, as far as it has them, and all of a huge leaf that has one of them. The
    /// caller waits.
    pub(crate) fn give_up(&mut self, shared: &Shared, range: Range<u64>, reason: Reason) -> Option<Ticket> {
        let range = self.clear(shared, range, reason)?;
        // A dead device does not use the pages any more.
        let ticket = shared.device.submit(&[invalidate(shared.asid, range)]).ok()?;
        self.last = ticket;
        Some(ticket)
    }

    /// Clears everything for good, and makes the device forget the leaf table too. `detach` takes the tables above out that
    /// are empty then. The caller waits.
    pub(crate) fn retire<R>(
        &mut self,
        shared: &Shared,
        reason: Reason,
        detach: impl FnOnce() -> R,
    ) -> (R, Result<Ticket>) {
        self.abandon(shared, reason);
        let detached = detach();
        let ticket = shared.device.submit(&[invalidate(shared.asid, self.range())]);
        if let Ok(ticket) = ticket {
            // A notifier that finds nothing mapped now has to wait for this.
            self.last = ticket;
        }
        (detached, ticket)
    }

    /// Clears everything for good. The device is made to forget it, or no queue is left.
    pub(crate) fn abandon(&mut self, shared: &Shared, reason: Reason) {
        self.retired = true;
        self.clear(shared, self.range(), reason);
        self.leaves.detach();
    }

    /// Clears the entries of `range` and marks the pages dirty that the device may have written.
    /// Returns the range that had valid entries: that of a huge leaf is the whole span. The caller holds the lock.
    fn clear(&mut self, shared: &Shared, range: Range<u64>, reason: Reason) -> Option<Range<u64>> {
        if let Some(huge) = (!range.is_empty()).then(|| self.drop_huge(shared)).flatten() {
            if self.set_ahead(0, false) {
                shared.stats.ahead_lost.bump();
            }
            trace::revoke(shared, self.base, huge.access(), reason);
            return Some(self.range());
        }
        let mut cleared: Option<Range<u64>> = None;
        let mut va = pci::page_base(range.start);
        while va < range.end && !self.leaves.is_empty() {
            if let Some((entry, ahead)) = self.take(shared, va) {
                if ahead {
                    shared.stats.ahead_lost.bump();
                }
                if entry.access().atomic {
                    shared.stats.revocations.bump();
                }
                trace::revoke(shared, va, entry.access(), reason);
                cleared = Some(cleared.map_or(va, |range| range.start)..va + pci::PAGE_SIZE);
            }
            va += pci::PAGE_SIZE;
        }
        cleared
    }

    /// Clears the entry of one page, and says whether it was mapped ahead. There is no huge leaf.
    fn take(&mut self, shared: &Shared, va: u64) -> Option<(Pte, bool)> {
        // Most of a big range is often empty: no store to what is clear.
        self.valid(va)?;
        let entry = self.leaves.set(va, Pte::NONE);
        shared.stats.let_go(entry);
        mark_dirty(entry);
        Some((entry, self.set_ahead(pte::index(va, 0), false)))
    }

    /// Puts the leaf table in the place of a huge leaf, if there is one. Its pages are one folio, as the CPU maps them by
    /// one entry.
    fn drop_huge(&mut self, shared: &Shared) -> Option<Pte> {
        self.leaves.take_huge().inspect(|huge| {
            shared.stats.let_go(*huge);
            mark_dirty(*huge);
        })
    }
}

/// Marks the folio dirty to which an entry leads that was cleared just now, if the device may have written to it.
///
/// Dirty already now, although the device may write until the SYNC: whoever cleans
/// the page has to unmap or write-protect it first, and waits in the notifier.
fn mark_dirty(entry: Pte) {
    if entry.access().write {
        // SAFETY: The entry was valid: no invalidation of the page has begun until this one, and whoever
        // frees it waits for the lock that is held.
        unsafe { mm::mark_dirty(entry.address()) };
    }
}

/// Whether atomics by a translation are the device's own read and write, and not single instructions of the host.
fn is_own_rmw(access: Access) -> bool {
    access.atomic && !access.coherent
}

impl Mirror for Span {
    type Shared = Shared;
    type Pending = Pending;

    fn must_wait(&self, shared: &Shared, range: &Range<u64>) -> bool {
        !shared.device.is_dead() && (self.is_mapped(range) || !shared.device.is_synced(self.last))
    }

    fn invalidate(&mut self, shared: &Shared, range: Range<u64>, cause: Cause) -> Option<Pending> {
        let Some(range) = self.clear(shared, range, Reason::Event(cause)) else {
            // Nothing is mapped, perhaps because an event that is still waiting has cleared it.
            return (!shared.device.is_synced(self.last))
                .then_some(Pending { ticket: self.last, cleared: None });
        };
        shared.stats.invalidations.bump();
        let cleared = Cleared { since: Stopwatch::start(), start: range.start, end: range.end, cause };
        // A dead device does not use the page any more.
        let ticket = shared.device.submit(&[invalidate(shared.asid, range)]).ok()?;
        self.last = ticket;
        owing::owes(&shared.device);
        Some(Pending { ticket, cleared: Some(cleared) })
    }

    fn wait(shared: &Shared, pending: Pending) {
        // The first of an event's waits: all its entries are on the queues by now.
        owing::ask_all();
        shared.device.wait_synced(pending.ticket);
        if let Some(cleared) = pending.cleared {
            let ns = cleared.since.ns();
            shared.stats.revoke_ns.record(ns);
            trace::invalidated(shared, &(cleared.start..cleared.end), Reason::Event(cleared.cause), ns);
        }
    }
}

/// Makes the device forget what it knows of a range.
pub(crate) fn invalidate(asid: u32, range: Range<u64>) -> ControlEntry {
    TlbInvalidate { asid, va: range.start, len: range.end - range.start, ..Default::default() }.into()
}
