// SPDX-License-Identifier: GPL-2.0

//! The fault service: what a context's work item does with its faults.

use super::abi::{
    fault::AccessKind,
    pci,
    pte::{Access, Pte},
    status::Status,
};
use super::context::Context;
use super::faultq::Fault;
use super::hw::Stopwatch;
use super::mm::{fault_page, ExclusivePage};
use super::span::SpanNotifier;
use kernel::{
    mm::{virt::flags, MmWithUser},
    prelude::*,
    processor::cpu_relax,
    sync::Arc,
    workqueue::WorkItem,
};

/// How often a grant is started over before the device is told to try again by itself, which gives
/// other faults their turn.
const MAX_ATTEMPTS: u32 = 16;
/// Faults served in one run of the work item.
const MAX_RUN: u32 = 256;
/// After the last fault the ring is polled this long: the next access of the same command often
/// faults at once, and an interrupt costs more than a grant.
const POLL_NS: u64 = 30_000;

impl WorkItem for Context {
    type Pointer = Arc<Context>;

    fn run(this: Arc<Context>) {
        for _ in 0..MAX_RUN {
            match this.pop_fault() {
                Some(fault) => serve(&this, &fault),
                None if poll(&this) => {}
                None => return,
            }
        }
        this.queue_work();
    }
}

/// Polls the fault queue for a while. Returns whether this context has a fault to serve.
fn poll(context: &Context) -> bool {
    let watch = Stopwatch::start();
    while !context.is_ending() && watch.ns() < POLL_NS {
        if context.device.has_fault() {
            context.device.drain_faults();
        }
        if context.has_fault() {
            return true;
        }
        cpu_relax();
    }
    context.has_fault()
}

/// Answers one fault: with a REPLAY, or with a CANCEL that says why not.
fn serve(context: &Context, fault: &Fault) {
    if let Err(status) = try_serve(context, fault) {
        context.cancel(fault, status);
    }
}

fn try_serve(context: &Context, fault: &Fault) -> Result<(), Status> {
    if context.is_ending() {
        return Err(Status::CANCELLED);
    }
    let mm = context.mm.mmget_not_zero().ok_or(Status::CANCELLED)?;
    let page = pci::page_base(fault.va);
    if page >= pci::VA_END {
        return Err(Status::FAULT);
    }
    let span = span_of(context, &mm, fault, page)?;
    // Another queue of the context may have had the same fault.
    let locked = span.lock();
    if let Some(entry) = locked.sufficient(page, fault.access) {
        locked.replay(span.shared(), fault, entry);
        return Ok(());
    }
    drop(locked);
    for _ in 0..MAX_ATTEMPTS {
        let watch = Stopwatch::start();
        match grant(context, &span, &mm, fault, page) {
            Ok(true) => {
                context.stats.grant_ns.record(watch.ns());
                return Ok(());
            }
            Ok(false) => context.stats.retries.bump(),
            Err(error) => return Err(status_of(error, &mm, page, fault.access)),
        }
    }
    // The device looks again and faults again, behind whoever else waits.
    span.lock().replay(span.shared(), fault, Pte::NONE);
    Ok(())
}

/// The span of the page, which is made for memory only that the process may access.
fn span_of(
    context: &Context,
    mm: &MmWithUser,
    fault: &Fault,
    page: u64,
) -> Result<Arc<SpanNotifier>, Status> {
    let mut space = context.space.lock();
    let space = (*space).as_mut().ok_or(Status::CANCELLED)?;
    match space.find(page) {
        Some(span) => Ok(span),
        None => {
            allowed(mm, page, fault.access)?;
            space.make(mm, context.owner(), page).map_err(|_| Status::NO_RESOURCES)
        }
    }
}

/// Obtains the page and maps it. `Ok(false)`: an invalidation came between, start over.
fn grant(context: &Context, span: &SpanNotifier, mm: &MmWithUser, fault: &Fault, page: u64) -> Result<bool> {
    match fault.access {
        AccessKind::ATOMIC if !super::protection_off() => grant_exclusive(context, span, mm, fault, page),
        AccessKind::ATOMIC => grant_shared(context, span, mm, fault, page, Access::EXCLUSIVE),
        AccessKind::WRITE => grant_shared(context, span, mm, fault, page, Access::READ_WRITE),
        _ => grant_shared(context, span, mm, fault, page, Access::READ),
    }
}

/// Exclusive access: the protocol of spec 11.
fn grant_exclusive(
    context: &Context,
    span: &SpanNotifier,
    mm: &MmWithUser,
    fault: &Fault,
    page: u64,
) -> Result<bool> {
    let attempt = span.attempt(page..page + pci::PAGE_SIZE);
    // From here until `exclusive` is dropped no CPU can get the page back: it waits for the folio.
    let exclusive = match ExclusivePage::acquire(mm, page as usize, context.owner()) {
        Err(error) if is_transient(error) => return Ok(false),
        result => result?,
    };
    let Some(mut locked) = attempt.commit() else { return Ok(false) };
    locked.map(span.shared(), fault, exclusive.phys(), Access::EXCLUSIVE);
    context.stats.grants.bump();
    drop(locked);
    drop(exclusive);
    Ok(true)
}

/// Shared access: the CPU keeps the page.
fn grant_shared(
    context: &Context,
    span: &SpanNotifier,
    mm: &MmWithUser,
    fault: &Fault,
    page: u64,
    access: Access,
) -> Result<bool> {
    let attempt = span.attempt(page..page + pci::PAGE_SIZE);
    let phys = match fault_page(&attempt, mm, page as usize, access.write) {
        Err(error) if is_transient(error) => return Ok(false),
        result => result?,
    };
    let Some(mut locked) = attempt.commit() else { return Ok(false) };
    locked.map(span.shared(), fault, phys, access);
    context.stats.shared_grants.bump();
    Ok(true)
}

fn is_transient(error: Error) -> bool {
    error == EBUSY || error == EAGAIN
}

/// Whether the process itself may do this, by its mappings.
fn allowed(mm: &MmWithUser, page: u64, access: AccessKind) -> Result<(), Status> {
    let guard = mm.mmap_read_lock();
    let vma = guard.vma_lookup(page as usize).ok_or(Status::FAULT)?;
    let needed = match access {
        AccessKind::READ => flags::READ,
        AccessKind::WRITE | AccessKind::ATOMIC => flags::READ | flags::WRITE,
        _ => return Err(Status::CANCELLED),
    };
    // A shadow stack is writable memory to the kernel, but not to the process.
    // SAFETY: A constant.
    let shadow_stack = vma.flags() & unsafe { super::sys::svmx_vm_shadow_stack() } != 0;
    if vma.flags() & needed != needed || (shadow_stack && access != AccessKind::READ) {
        return Err(Status::PERMISSION);
    }
    let never_exclusive = flags::SHARED | flags::HUGETLB | flags::IO | flags::PFNMAP | flags::MIXEDMAP;
    if access == AccessKind::ATOMIC && vma.flags() & never_exclusive != 0 {
        return Err(Status::NOT_EXCLUSIVE);
    }
    Ok(())
}

/// What an error of the memory management means for the command.
fn status_of(error: Error, mm: &MmWithUser, page: u64, access: AccessKind) -> Status {
    match error {
        EOPNOTSUPP => Status::NOT_EXCLUSIVE,
        ENOMEM => Status::NO_RESOURCES,
        EPERM => Status::PERMISSION,
        // The mapping may have changed since it was looked at.
        _ => allowed(mm, page, access).err().unwrap_or(Status::FAULT),
    }
}
