// SPDX-License-Identifier: GPL-2.0

//! Granting: one page of the process becomes an entry of the device's page table (spec 11).
//!
//! Whoever wants a page comes here, with a fault or without one, on any thread that may sleep. How often to try, and
//! what to tell the device if it fails, is the caller's.

use super::abi::{
    fault::AccessKind,
    pci,
    pte::{self, Access, Pte},
    status::Status,
    uapi::Policy,
};
use super::context::Context;
use super::faultq::Fault;
use super::hw::{compat, Stopwatch};
use super::mm::{fault_page, Attempt, ExclusivePage, Locked, Mapped, ReadLocked, WAITS};
use super::span::{Shared, Span, SpanNotifier, SPAN};
use super::trace::{self, Reason};
use core::ops::Range;
use kernel::{
    mm::{virt::flags, MmWithUser},
    prelude::*,
    sync::Arc,
};

/// A page that is to be mapped.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Its first address.
    pub(crate) page: u64,
    pub(crate) access: AccessKind,
    /// What is answered with the entry, in the critical section that writes it.
    pub(crate) faults: &'a [Fault],
    /// Nobody has asked for it yet: what is mapped there stays, whatever it allows.
    pub(crate) ahead: bool,
}

/// What became of one attempt.
pub(crate) enum Outcome {
    /// The page is mapped now.
    Granted,
    /// It was mapped before.
    Present,
    /// An invalidation came between: start over.
    Raced,
    /// Somebody else has to bring the page, which may take for ever: [`super::mm::fault_in`].
    Waits,
}

/// Of a span: the CPU maps so many pages by one entry if it has them as one.
const HUGE_ORDER: u32 = pte::INDEX_BITS;
/// Most pages that are obtained under one hold of the process's `mmap_lock`: it takes little time to release and take it,
/// beside that of so many pages, and whoever wants to change a mapping waits for some 100 us, unless pages have
/// to be read in. It is released earlier if somebody waits.
pub(crate) const MAX_HELD: usize = 16;

/// Tries once to map the page, with all that is wanted, and answers the faults that wait for it.
///
/// # Errors
///
/// The status for a command that needs the page. The faults are not answered.
pub(crate) fn grant(context: &Context, mm: &MmWithUser, wanted: &Wanted<'_>) -> Result<Outcome, Status> {
    let watch = Stopwatch::start();
    let span = span_of(context, mm, wanted)?;
    let mut outcome = grant_locked(context, &span, &mut ReadLocked::new(mm), wanted, &watch);
    if matches!(outcome, Ok(Outcome::Waits)) && wanted.access == AccessKind::ATOMIC {
        // It may be there, which can be relied on only if nobody else is at work.
        let mut alone = ReadLocked::alone(mm, wanted.page as usize);
        outcome = grant_locked(context, &span, &mut alone, wanted, &watch);
    }
    if let Ok(Outcome::Granted) = outcome {
        context.stats.grant_ns.record(watch.ns());
    }
    outcome
}

/// Tries once to map each of the pages, in this order, up to the first error. Cheaper than one by one if they are neighbours.
///
/// # Errors
///
/// As [`grant`].
pub(crate) fn grant_all(context: &Context, mm: &MmWithUser, wanted: &[Wanted<'_>]) -> Result<(), Status> {
    let same_span = |a: &Wanted<'_>, b: &Wanted<'_>| a.page / SPAN == b.page / SPAN;
    let mut held = wanted.chunk_by(same_span).flat_map(|near| near.chunks(MAX_HELD));
    held.try_for_each(|wanted| grant_near(context, mm, wanted))
}

/// As [`grant_all`], for pages of one span and one hold of the lock.
fn grant_near(context: &Context, mm: &MmWithUser, wanted: &[Wanted<'_>]) -> Result<(), Status> {
    let Some(first) = wanted.first() else { return Ok(()) };
    let watch = Stopwatch::start();
    let span = span_of(context, mm, first)?;
    let mut granted = 0;
    let mut lock = ReadLocked::new(mm);
    for wanted in wanted {
        if lock.is_contended() {
            // Not by an assignment alone, which would take it twice.
            drop(lock);
            lock = ReadLocked::new(mm);
        }
        if let Outcome::Granted = grant_locked(context, &span, &mut lock, wanted, &watch)? {
            granted += 1;
        }
    }
    drop(lock);
    context.stats.grant_ns.record_each(watch.ns(), granted);
    Ok(())
}

/// Tries once to map a page of the span. It is the only one whose folio this thread holds. `watch` was started with the
/// first of those that are obtained together.
fn grant_locked(
    context: &Context,
    span: &SpanNotifier,
    mm: &mut ReadLocked<'_>,
    wanted: &Wanted<'_>,
    watch: &Stopwatch,
) -> Result<Outcome, Status> {
    if context.is_ending() {
        return Err(Status::CANCELLED);
    }
    let locked = span.lock();
    if locked.is_retired() {
        return Ok(Outcome::Raced);
    }
    if let Some(entry) = wanted.present(&locked) {
        wanted.answer(span.shared(), entry);
        return Ok(Outcome::Present);
    }
    drop(locked);
    match try_grant(context, span, mm, wanted, watch) {
        Ok(true) => Ok(Outcome::Granted),
        Ok(false) => {
            context.stats.retries.bump();
            trace::grant(context, wanted, Err(EAGAIN), watch);
            Ok(Outcome::Raced)
        }
        Err(error) if error == WAITS => Ok(Outcome::Waits),
        Err(error) => {
            trace::grant(context, wanted, Err(error), watch);
            Err(status_of(error, context, mm, wanted))
        }
    }
}

impl Wanted<'_> {
    /// No page at all.
    pub(crate) const NOTHING: Self =
        Wanted { page: pci::VA_END, access: AccessKind::READ, faults: &[], ahead: true };

    /// The entry that is there, if it is enough.
    fn present(&self, span: &Span) -> Option<Pte> {
        match self.ahead {
            // To change it takes a SYNC, and perhaps the page will not be needed.
            true => span.valid(self.page),
            false => span.sufficient(self.page, self.access),
        }
    }

    /// Maps the page at `phys`. The span's lock is held, and no invalidation came between.
    fn map(&self, span: &mut Span, shared: &Shared, phys: u64, access: Access) {
        let entry = Pte::leaf(phys, access);
        match self.ahead {
            true => span.map_ahead(shared, self.page, entry),
            false => span.map(shared, self.page, entry),
        }
        self.answer(shared, entry);
    }

    /// Maps all of the span, whose 2 MiB the page at `phys` is one of. As [`map`](Self::map) otherwise.
    fn map_huge(&self, span: &mut Span, shared: &Shared, phys: u64, access: Access) {
        span.map_huge(shared, phys - phys % SPAN, access, self.ahead);
        self.answer(shared, Pte::leaf(phys, access));
    }

    /// Answers the faults with `entry`, which is in the table. The span's lock is held: the TLB_INVALIDATE of whoever
    /// takes the page away next stands behind the REPLAYs, so that the accesses are done before (spec 8.4).
    fn answer(&self, shared: &Shared, entry: Pte) {
        shared.device.replay(&shared.stats, self.faults, entry);
    }
}

/// The span of the page, which is made for memory only that the process may access.
fn span_of(context: &Context, mm: &MmWithUser, wanted: &Wanted<'_>) -> Result<Arc<SpanNotifier>, Status> {
    if wanted.page >= pci::VA_END {
        return Err(Status::FAULT);
    }
    let mut space = context.space.lock();
    let space = (*space).as_mut().ok_or(Status::CANCELLED)?;
    match space.find(wanted.page) {
        Some(span) => Ok(span),
        None => {
            allowed(context, &ReadLocked::new(mm), wanted)?;
            space.make(mm, context.owner(), wanted.page).map_err(|_| Status::NO_RESOURCES)
        }
    }
}

/// Obtains the page and maps it. `Ok(false)`: an invalidation came between.
fn try_grant(
    context: &Context,
    span: &SpanNotifier,
    mm: &mut ReadLocked<'_>,
    wanted: &Wanted<'_>,
    watch: &Stopwatch,
) -> Result<bool> {
    match wanted.access {
        AccessKind::ATOMIC => grant_atomic(context, span, mm, wanted, watch),
        AccessKind::WRITE => grant_shared(context, span, mm, wanted, Access::READ_WRITE, watch),
        _ => grant_shared(context, span, mm, wanted, Access::READ, watch),
    }
}

/// As the page's policy says (spec 9.6).
fn grant_atomic(
    context: &Context,
    span: &SpanNotifier,
    mm: &mut ReadLocked<'_>,
    wanted: &Wanted<'_>,
    watch: &Stopwatch,
) -> Result<bool> {
    match context.policies.of(wanted.page) {
        Policy::COHERENT => grant_shared(context, span, mm, wanted, Access::COHERENT, watch),
        _ if super::protection_off() => grant_shared(context, span, mm, wanted, Access::EXCLUSIVE, watch),
        policy => match grant_exclusive(context, span, mm, wanted, watch) {
            Err(error) if error == compat::eopnotsupp() && policy == Policy::AUTO => {
                grant_shared(context, span, mm, wanted, Access::COHERENT, watch)
            }
            result => result,
        },
    }
}

/// Exclusive access: the protocol of spec 11.
fn grant_exclusive(
    context: &Context,
    span: &SpanNotifier,
    mm: &mut ReadLocked<'_>,
    wanted: &Wanted<'_>,
    watch: &Stopwatch,
) -> Result<bool> {
    let attempt = begin(span, wanted.page..wanted.page + pci::PAGE_SIZE, wanted, Access::EXCLUSIVE);
    // From here until `exclusive` is dropped no CPU can get the page back: it waits for the folio.
    let exclusive = match ExclusivePage::acquire(mm, wanted.page as usize, context.owner()) {
        Err(error) if is_transient(error) => return Ok(false),
        result => result?,
    };
    let Some(mut locked) = commit(context, attempt, wanted, Access::EXCLUSIVE) else { return Ok(false) };
    // Before the device can use the page, and so before it can lose it again, or a command can be seen to have used it.
    trace::grant(context, wanted, Ok(()), watch);
    context.stats.grants.bump();
    wanted.map(&mut locked, span.shared(), exclusive.phys(), Access::EXCLUSIVE);
    drop(locked);
    drop(exclusive);
    Ok(true)
}

/// Shared access: the CPU keeps the page.
fn grant_shared(
    context: &Context,
    span: &SpanNotifier,
    mm: &mut ReadLocked<'_>,
    wanted: &Wanted<'_>,
    access: Access,
    watch: &Stopwatch,
) -> Result<bool> {
    let page = wanted.page..wanted.page + pci::PAGE_SIZE;
    let Some((mut attempt, mut mapped)) = find(span, page, mm, wanted, access)? else { return Ok(false) };
    // For atomics there are policies, page by page.
    let huge = mapped.order >= HUGE_ORDER && !access.atomic && !access.coherent;
    if huge {
        // The CPU has all of the span in one piece. Once more, as it matters now what becomes of any of it; one attempt at a
        // time is watched, so the first ends before.
        drop(attempt);
        let base = wanted.page - wanted.page % SPAN;
        let Some(found) = find(span, base..base + SPAN, mm, wanted, access)? else { return Ok(false) };
        (attempt, mapped) = found;
    }
    let Some(mut locked) = commit(context, attempt, wanted, access) else { return Ok(false) };
    // As above.
    trace::grant(context, wanted, Ok(()), watch);
    context.stats.shared_grants.bump();
    match huge && mapped.order >= HUGE_ORDER {
        true => wanted.map_huge(&mut locked, span.shared(), mapped.phys, access),
        false => wanted.map(&mut locked, span.shared(), mapped.phys, access),
    }
    Ok(true)
}

/// Looks the page up that is wanted, in an attempt for `range`. `None`: an invalidation came between.
fn find<'a>(
    span: &'a SpanNotifier,
    range: Range<u64>,
    mm: &mut ReadLocked<'_>,
    wanted: &Wanted<'_>,
    access: Access,
) -> Result<Option<(Attempt<'a, Span>, Mapped)>> {
    let attempt = begin(span, range, wanted, access);
    match fault_page(&attempt, mm, wanted.page as usize, access.write) {
        Err(error) if is_transient(error) => Ok(None),
        result => result.map(|mapped| Some((attempt, mapped))),
    }
}

/// Begins an attempt for `range`, which has the page that is wanted for `access`, when nothing is left of what would clash.
fn begin<'a>(
    span: &'a SpanNotifier,
    range: Range<u64>,
    wanted: &Wanted<'_>,
    access: Access,
) -> Attempt<'a, Span> {
    let page = wanted.page..wanted.page + pci::PAGE_SIZE;
    let mut locked = span.lock();
    let clash =
        locked.clashes(wanted.page, access).then(|| locked.give_up(span.shared(), page, Reason::Upgrade));
    drop(locked);
    if let Some(ticket) = clash.flatten() {
        span.shared().device.wait_synced(ticket);
    }
    span.attempt(range)
}

/// Takes the span's lock to map what was looked up, unless that has changed, or the page's policy, or somebody else has
/// mapped the page meanwhile.
fn commit<'a>(
    context: &Context,
    attempt: Attempt<'a, Span>,
    wanted: &Wanted<'_>,
    access: Access,
) -> Option<Locked<'a, Span>> {
    let locked = attempt.commit()?;
    let by_policy = match context.policies.of(wanted.page) {
        Policy::COHERENT => !access.atomic,
        Policy::EXCLUSIVE => !access.coherent,
        _ => true,
    };
    let in_the_way = locked.is_retired() || locked.clashes(wanted.page, access);
    (by_policy && !in_the_way && wanted.present(&locked).is_none()).then_some(locked)
}

fn is_transient(error: Error) -> bool {
    error == EBUSY || error == EAGAIN
}

/// Whether the process itself may do this, by its mappings.
fn allowed(context: &Context, mm: &ReadLocked<'_>, wanted: &Wanted<'_>) -> Result<(), Status> {
    let vma = mm.vma(wanted.page as usize).ok_or(Status::FAULT)?;
    let needed = match wanted.access {
        AccessKind::READ => flags::READ,
        AccessKind::WRITE | AccessKind::ATOMIC => flags::READ | flags::WRITE,
        _ => return Err(Status::CANCELLED),
    };
    // A shadow stack is writable memory to the kernel, but not to the process.
    // SAFETY: A constant.
    let shadow_stack = vma.flags() & unsafe { super::sys::svmx_vm_shadow_stack() } != 0;
    if vma.flags() & needed != needed || (shadow_stack && wanted.access != AccessKind::READ) {
        return Err(Status::PERMISSION);
    }
    let never_exclusive = flags::SHARED | flags::HUGETLB | flags::IO | flags::PFNMAP | flags::MIXEDMAP;
    let must_be_exclusive =
        wanted.access == AccessKind::ATOMIC && context.policies.of(wanted.page) == Policy::EXCLUSIVE;
    if must_be_exclusive && vma.flags() & never_exclusive != 0 {
        return Err(Status::NOT_EXCLUSIVE);
    }
    Ok(())
}

/// What an error of the memory management means for the command.
pub(crate) fn status_of(error: Error, context: &Context, mm: &ReadLocked<'_>, wanted: &Wanted<'_>) -> Status {
    match error {
        error if error == compat::eopnotsupp() => Status::NOT_EXCLUSIVE,
        ENOMEM => Status::NO_RESOURCES,
        EPERM => Status::PERMISSION,
        // The mapping may have changed since it was looked at.
        _ => allowed(context, mm, wanted).err().unwrap_or(Status::FAULT),
    }
}
