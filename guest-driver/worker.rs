// SPDX-License-Identifier: GPL-2.0

//! The fault service: what a context's work item does with its faults. How a page is obtained is in `grant.rs`.

use super::abi::{pci, pte::Pte, status::Status};
use super::ahead::look_ahead;
use super::context::Context;
use super::faultq::Fault;
use super::grant::{grant, Outcome, Wanted};
use super::hw::Stopwatch;
use core::slice;
use kernel::{prelude::*, processor::cpu_relax, sync::Arc, workqueue::WorkItem};

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
    look_ahead(context, &mm, fault);
    let page = pci::page_base(fault.va);
    let wanted = Wanted { page, access: fault.access, faults: slice::from_ref(fault), ahead: false };
    for _ in 0..MAX_ATTEMPTS {
        let watch = Stopwatch::start();
        match grant(context, &mm, &wanted)? {
            Outcome::Granted => {
                context.stats.grant_ns.record(watch.ns());
                return Ok(());
            }
            // Another queue of the context may have had the same fault.
            Outcome::Present => return Ok(()),
            Outcome::Raced => {}
        }
    }
    // The device looks again and faults again, behind whoever else waits.
    context.device.replay(&context.stats, slice::from_ref(fault), Pte::NONE);
    Ok(())
}
