// SPDX-License-Identifier: GPL-2.0

//! What a process asks of ranges of its memory (spec 9.6, 9.7): policies, pages ahead of use, pages back.
//!
//! A grant looks the policy up before it begins and once more under the span's lock, where its entry becomes visible
//! (`grant.rs`). A change stores the new policy first and then takes what the device has of the range away, under the
//! same lock. So when it is done nothing is left of the old policy, and nothing comes after.
//!
//! All of it runs in the caller's thread, beside the fault service. The caller is inside the device
//! ([`Device::enter`](super::device::Device::enter)), so everything here ends soon when the device goes.

use super::abi::{
    fault::AccessKind,
    pci::PAGE_SIZE,
    status::Status,
    uapi::{Policy, MAX_POLICIES},
};
use super::context::Context;
use super::grant::{grant, Outcome, Wanted};
use super::hw::compat;
use super::mm;
use super::policy::{self, Piece};
use super::span::{Held, SpanNotifier};
use super::trace::Reason;
use core::ops::Range;
use kernel::{
    alloc::flags::GFP_ATOMIC,
    mm::MmWithUser,
    new_mutex, new_spinlock,
    prelude::*,
    sync::{Arc, Mutex, SpinLock},
};

/// How often the grant of one page is started over.
const MAX_ATTEMPTS: u32 = 16;
/// Pages that the CPU gets back under one hold of the process's lock.
const RESTORED_TOGETHER: u64 = 64;

/// The policies of a context's ranges.
#[pin_data]
pub(crate) struct Policies {
    /// One change at a time. Taken first; memory is allocated under it.
    #[pin]
    change: Mutex<()>,
    /// In order. Innermost lock, for a look-up or a copy.
    #[pin]
    pieces: SpinLock<KVec<Piece>>,
}

impl Policies {
    /// The default everywhere.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            change <- new_mutex!((), "svmx::policy_change"),
            pieces <- new_spinlock!(KVec::new(), "svmx::policies"),
        })
    }

    /// How atomics on the page at `va` are served.
    pub(crate) fn of(&self, va: u64) -> Policy {
        policy::find(&self.pieces.lock(), va)
    }

    /// Gives `range`, whole pages and not empty, a policy. Changes nothing if it fails: ENOSPC, ENOMEM.
    fn set(&self, range: Range<u64>, policy: Policy) -> Result {
        let _change = self.change.lock();
        // Nobody else makes it longer, and a change by two at most.
        let room = self.pieces.lock().len() + 2;
        let mut new = KVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?;
        let mut pieces = self.pieces.lock();
        for piece in policy::with(&pieces, range, policy) {
            // There is room: this allocates nothing.
            new.push(piece, GFP_ATOMIC)?;
        }
        if new.len() > MAX_POLICIES {
            return Err(ENOSPC);
        }
        core::mem::swap(&mut *pieces, &mut new);
        drop(pieces);
        Ok(())
    }
}

/// Sets the policy of `range`. What the device had of it is gone when this returns.
pub(crate) fn set_policy(context: &Context, range: Range<u64>, policy: Policy) -> Result {
    if context.device.is_gone() {
        return Err(ENODEV);
    }
    context.policies.set(range.clone(), policy)?;
    let (mut rest, mut last) = (range, None);
    while let Some((part, span)) = next(context, &mut rest) {
        let ticket = span.lock().give_up(span.shared(), part, Reason::Policy);
        last = ticket.or(last);
    }
    // They are done in the order in which they were submitted: one wait for all.
    if let Some(ticket) = last {
        context.device.wait_synced(ticket);
    }
    Ok(())
}

/// Gets the device the pages of `range`, in order, and counts them.
pub(crate) fn acquire(context: &Context, range: Range<u64>, done: &mut u64) -> Result {
    let mm = context.mm.mmget_not_zero().ok_or(EFAULT)?;
    for page in range.step_by(PAGE_SIZE as usize) {
        check(context)?;
        acquire_page(context, &mm, page)?;
        *done += 1;
    }
    Ok(())
}

fn acquire_page(context: &Context, mm: &MmWithUser, page: u64) -> Result {
    let wanted = Wanted { page, access: AccessKind::ATOMIC, faults: &[], ahead: false };
    for _ in 0..MAX_ATTEMPTS {
        match grant(context, mm, &wanted) {
            Ok(Outcome::Granted | Outcome::Present) => return Ok(()),
            Ok(Outcome::Raced) => {}
            // As a touch by the caller itself would, which a signal that kills ends.
            Ok(Outcome::Waits) => mm::fault_in(mm, page as usize, true)?,
            Err(Status::PERMISSION) => return Err(EACCES),
            Err(Status::NOT_EXCLUSIVE) => return Err(compat::eopnotsupp()),
            Err(Status::NO_RESOURCES) => return Err(ENOMEM),
            Err(Status::CANCELLED) => return Err(ENODEV),
            Err(_) => return Err(EFAULT),
        }
    }
    Err(EAGAIN)
}

/// Takes `range` from the device and counts its pages; then the CPU has them again.
pub(crate) fn release(context: &Context, range: Range<u64>, done: &mut u64) -> Result {
    let mut rest = range;
    loop {
        check(context)?;
        let Some((part, span)) = next(context, &mut rest) else { return Ok(()) };
        let mut locked = span.lock();
        let held = locked.held(part.clone());
        let ticket = locked.give_up(span.shared(), part.clone(), Reason::Released);
        drop(locked);
        *done += held.pages;
        if let Some(ticket) = ticket {
            context.device.wait_synced(ticket);
        }
        restore(part, &held)?;
    }
}

/// Gives the CPU the pages of `range` back that the device had exclusively, those that are neighbours together. It is a
/// favour: where it fails, perhaps because the memory is gone, whoever touches the page gets it, or learns why not.
fn restore(range: Range<u64>, held: &Held) -> Result {
    let mut va = range.start;
    while va < range.end {
        let start = va;
        while va < range.end && va - start < RESTORED_TOGETHER * PAGE_SIZE && held.is_exclusive(va) {
            va += PAGE_SIZE;
        }
        if va == start {
            va += PAGE_SIZE;
            continue;
        }
        interrupted()?;
        let _ = mm::give_back(start as usize..va as usize);
    }
    Ok(())
}

/// The next span that meets `rest`, and which part of it does; `rest` is what is behind.
fn next(context: &Context, rest: &mut Range<u64>) -> Option<(Range<u64>, Arc<SpanNotifier>)> {
    let (part, span) = context.space.lock().as_ref()?.next(rest)?;
    rest.start = part.end;
    Some((part, span))
}

/// Whether to go on.
fn check(context: &Context) -> Result {
    match context.device.is_gone() {
        true => Err(ENODEV),
        false => interrupted(),
    }
}

fn interrupted() -> Result {
    match kernel::current!().signal_pending() {
        true => Err(EINTR),
        false => Ok(()),
    }
}
