// SPDX-License-Identifier: GPL-2.0

//! A span: 2 MiB of a context's address space, with its leaf table and its notifier.
//!
//! The notifier's lock guards the leaf table: an entry is valid only as long as no invalidation of its
//! page has begun. This is where spec 11 is obeyed.

use super::abi::{
    control::{ControlEntry, Replay, TlbInvalidate},
    fault::AccessKind,
    pci,
    pte::{self, Access, Pte},
};
use super::control::Ticket;
use super::device::Device;
use super::faultq::Fault;
use super::hw::Stopwatch;
use super::live::{Kind, Live};
use super::mm::{self, IntervalNotifier, Mirror};
use super::pagetable::Table;
use super::stats::Stats;
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
    leaf: Table,
    base: u64,
    /// Valid entries.
    mapped: u32,
    /// SYNC behind the last TLB_INVALIDATE. Until it is done the device may still use what was
    /// mapped, although the entries are clear: whoever comes later waits for it as well.
    last: Ticket,
    _live: Live,
}

/// A SYNC to wait for.
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    ticket: Ticket,
    /// Since the entries were cleared; `None` if another event cleared them.
    cleared: Option<Stopwatch>,
}

impl Span {
    /// A span at `base` with nothing mapped.
    pub(crate) fn new(leaf: Table, base: u64) -> Self {
        Span { leaf, base, mapped: 0, last: Ticket::default(), _live: Live::new(Kind::Span) }
    }

    /// The entry for `va`, if it allows `access`.
    pub(crate) fn sufficient(&self, va: u64, access: AccessKind) -> Option<Pte> {
        let entry = self.leaf.get(pte::index(va, 0));
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
        self.mapped > 0 && pages.any(|va| self.leaf.get(pte::index(va, 0)).valid())
    }

    /// Maps the page of the fault and answers the fault with the same entry. The caller holds the
    /// lock and has checked the sequence.
    ///
    /// The REPLAY goes onto the control queue before the lock is released: the TLB_INVALIDATE of
    /// whoever takes the page away next stands behind it, so that the access is done (spec 8.4).
    pub(crate) fn map(&mut self, shared: &Shared, fault: &Fault, phys: u64, access: Access) {
        let entry = Pte::leaf(phys, access);
        let index = pte::index(fault.va, 0);
        let old = self.leaf.get(index);
        self.leaf.set(index, entry);
        if !old.valid() {
            self.mapped += 1;
        } else if old != entry {
            // The page is the same: any other way to change it clears the entry first. But a store through
            // the old entry is not serialized with atomics through the new one, so the SYNC stands
            // before the REPLAY. The device executes them in order: there is no need to wait here.
            let va = pci::page_base(fault.va);
            let invalidate = invalidate(shared.asid, va..va + pci::PAGE_SIZE);
            // A dead device needs none.
            if let Ok(ticket) = shared.device.submit_sync(&[invalidate]) {
                self.last = ticket;
            }
        }
        self.replay(shared, fault, entry);
    }

    /// Answers a fault with `entry`, which is in the table. The caller holds the lock.
    pub(crate) fn replay(&self, shared: &Shared, fault: &Fault, entry: Pte) {
        let replay = Replay { queue: fault.queue, fault_id: fault.id, pte: entry.0, ..Default::default() };
        // A dead device waits for no answer.
        let _ = shared.device.submit(&[replay.into()]);
        shared.stats.replays.bump();
        shared.stats.replay_ns.record(fault.arrived.ns());
    }

    /// Clears everything, and makes the device forget the leaf table too, which was detached before.
    pub(crate) fn retire(&mut self, shared: &Shared) -> Result<Ticket> {
        let range = self.base..self.base + SPAN;
        self.clear(shared, range.clone());
        let ticket = shared.device.submit_sync(&[invalidate(shared.asid, range)])?;
        // A notifier that finds nothing mapped now has to wait for this.
        self.last = ticket;
        Ok(ticket)
    }

    /// Clears the entries of `range` and marks the pages dirty that the device may have written.
    /// Returns the part of the range that had valid entries. The caller holds the lock.
    fn clear(&mut self, shared: &Shared, range: Range<u64>) -> Option<Range<u64>> {
        let mut cleared: Option<Range<u64>> = None;
        let mut va = pci::page_base(range.start);
        while va < range.end && self.mapped > 0 {
            let index = pte::index(va, 0);
            let entry = self.leaf.get(index);
            if entry.valid() {
                self.leaf.set(index, Pte::NONE);
                self.mapped -= 1;
                if entry.access().write {
                    // Dirty already now, although the device may write until the SYNC: whoever cleans
                    // the page has to unmap or write-protect it first, and waits in the notifier.
                    // SAFETY: The entry was valid: no invalidation of the page has begun until this
                    // one, and whoever frees it waits for the lock that is held.
                    unsafe { mm::mark_dirty(entry.address()) };
                }
                if entry.access().atomic {
                    shared.stats.revocations.bump();
                }
                cleared = Some(cleared.map_or(va, |range| range.start)..va + pci::PAGE_SIZE);
            }
            va += pci::PAGE_SIZE;
        }
        cleared
    }
}

impl Mirror for Span {
    type Shared = Shared;
    type Pending = Pending;

    fn must_wait(&self, shared: &Shared, range: &Range<u64>) -> bool {
        !shared.device.is_dead() && (self.is_mapped(range) || !shared.device.is_synced(self.last))
    }

    fn invalidate(&mut self, shared: &Shared, range: Range<u64>) -> Option<Pending> {
        let Some(range) = self.clear(shared, range) else {
            // Nothing is mapped, perhaps because an event that is still waiting has cleared it.
            return (!shared.device.is_synced(self.last))
                .then_some(Pending { ticket: self.last, cleared: None });
        };
        shared.stats.invalidations.bump();
        let cleared = Some(Stopwatch::start());
        // A dead device does not use the page any more.
        let ticket = shared.device.submit_sync(&[invalidate(shared.asid, range)]).ok()?;
        self.last = ticket;
        Some(Pending { ticket, cleared })
    }

    fn wait(shared: &Shared, pending: Pending) {
        shared.device.wait_synced(pending.ticket);
        if let Some(cleared) = pending.cleared {
            shared.stats.revoke_ns.record(cleared.ns());
        }
    }
}

fn invalidate(asid: u32, range: Range<u64>) -> ControlEntry {
    TlbInvalidate { asid, va: range.start, len: range.end - range.start, ..Default::default() }.into()
}
