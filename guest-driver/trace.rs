// SPDX-License-Identifier: GPL-2.0

//! Trace events: what happens to single pages, for ftrace and perf. svmx_trace.h defines them,
//! docs/debugging.md says how to use them. Counters are in `stats.rs`.
//!
//! An event that nobody listens to costs the test of a static key.

use super::abi::{
    fault::FaultRecord,
    pci,
    pte::{Access, Pte},
    status::Status,
};
use super::context::Context;
use super::faultq::Fault;
use super::grant::Wanted;
use super::hw::Stopwatch;
use super::mm::Cause;
use super::span::Shared;
use super::sys;
use core::ops::Range;
use kernel::prelude::*;

/// Why the device loses a page.
#[derive(Clone, Copy)]
pub(crate) enum Reason {
    /// The process's page table changes.
    Event(Cause),
    /// The driver wants the span's memory back.
    Evicted,
    /// The context ends.
    Ended,
    /// The process released it.
    Released,
    /// The process changed its policy.
    Policy,
    /// It was shared for stores and becomes exclusive.
    Upgrade,
}

impl Reason {
    fn number(self) -> u32 {
        match self {
            Reason::Event(cause) => cause.number(),
            Reason::Evicted => sys::SVMX_REASON_EVICT,
            Reason::Ended => sys::SVMX_REASON_END,
            Reason::Released => sys::SVMX_REASON_RELEASE,
            Reason::Policy => sys::SVMX_REASON_POLICY,
            Reason::Upgrade => sys::SVMX_REASON_UPGRADE,
        }
    }
}

/// A record was taken from the fault queue of `device`.
pub(crate) fn fault(device: u32, record: &FaultRecord) {
    raw::svmx_fault(|| (device, record.asid, record.head.queue(), record.va, record.head.access().0.into()));
}

/// An attempt that began at `since` ended. EAGAIN: an event came between.
pub(crate) fn grant(context: &Context, wanted: &Wanted<'_>, result: Result, since: &Stopwatch) {
    raw::svmx_grant(|| {
        let Wanted { page, access, ahead, .. } = *wanted;
        let result = result.map_or_else(|error| error.to_errno().unsigned_abs(), |()| 0);
        (context.device.number(), context.asid, page, access.0.into(), ahead.into(), result, since.ns())
    });
}

/// A fault was answered with REPLAY of `entry`, `ns` after it came.
pub(crate) fn replay(device: u32, fault: &Fault, entry: Pte, ns: u64) {
    raw::svmx_replay(|| {
        let access = if entry.valid() { number(entry.access()) } else { 0 };
        (device, fault.asid, fault.queue, pci::page_base(fault.va), access, ns)
    });
}

/// A fault was answered with CANCEL.
pub(crate) fn cancel(device: u32, fault: &Fault, status: Status) {
    raw::svmx_cancel(|| {
        let page = pci::page_base(fault.va);
        (device, fault.asid, fault.queue, page, status.0.into(), fault.arrived.ns())
    });
}

/// The entry of `page`, which allowed `access`, was cleared.
pub(crate) fn revoke(shared: &Shared, page: u64, access: Access, reason: Reason) {
    raw::svmx_revoke(|| (shared.device.number(), shared.asid, page, number(access), reason.number()));
}

/// The device is done with what an event cleared in `range`, `ns` ago.
pub(crate) fn invalidated(shared: &Shared, range: &Range<u64>, reason: Reason, ns: u64) {
    raw::svmx_invalidate(|| {
        (shared.device.number(), shared.asid, range.start, range.end, reason.number(), ns)
    });
}

/// `device` was declared dead.
pub(crate) fn dead(device: u32) {
    raw::svmx_dead(|| (device,));
}

/// As svmx_show_access() has it.
fn number(access: Access) -> u32 {
    match access {
        Access { atomic: true, .. } => 3,
        Access { coherent: true, .. } => 4,
        Access { write: true, .. } => 2,
        Access { read: true, .. } => 1,
        _ => 0,
    }
}

/// The events as they are in C. The kernel's own `declare_trace!` reaches events of the kernel only, and makes the
/// arguments whether anybody listens or not.
mod raw {
    use super::sys;

    macro_rules! declare {
        ($($name:ident($($argument:ident: $type:ty),*);)*) => {kernel::macros::paste! {$(
            #[inline(always)]
            pub(super) fn $name(arguments: impl FnOnce() -> ($($type,)*)) {
                #[cfg(CONFIG_TRACEPOINTS)]
                {
                    // SAFETY: A tracepoint that C has defined, with its own key.
                    let enabled = unsafe {
                        kernel::jump_label::static_branch_unlikely!(
                            sys::[<__tracepoint_ $name>],
                            kernel::bindings::tracepoint,
                            key
                        )
                    };
                    if enabled {
                        let ($($argument,)*) = arguments();
                        // SAFETY: Integers only; may be called in any context.
                        unsafe { sys::[<rust_do_trace_ $name>]($($argument),*) };
                    }
                }
                #[cfg(not(CONFIG_TRACEPOINTS))]
                let _ = arguments;
            }
        )*}};
    }

    declare! {
        svmx_fault(device: u32, asid: u32, queue: u32, va: u64, kind: u32);
        svmx_grant(device: u32, asid: u32, page: u64, kind: u32, ahead: u32, result: u32, ns: u64);
        svmx_replay(device: u32, asid: u32, queue: u32, page: u64, access: u32, ns: u64);
        svmx_cancel(device: u32, asid: u32, queue: u32, page: u64, status: u32, ns: u64);
        svmx_revoke(device: u32, asid: u32, page: u64, access: u32, reason: u32);
        svmx_invalidate(device: u32, asid: u32, start: u64, end: u64, reason: u32, ns: u64);
        svmx_dead(device: u32);
    }
}
