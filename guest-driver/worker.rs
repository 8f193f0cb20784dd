// SPDX-License-Identifier: GPL-2.0

//! The fault service: what a context's work item does with its faults. How a page is obtained is in `grant.rs`.
//!
//! It takes all faults that wait at a time. Those of one page are one grant, and their REPLAYs one submission. As long as it
//! runs it polls the fault queue, as NAPI does: between holds of the process's lock, and for a while when it has nothing to do.

use super::abi::{pci, pte::Pte, status::Status};
use super::ahead::look_ahead;
use super::context::Context;
use super::faultq::Fault;
use super::grant::{grant, Outcome, Wanted};
use super::hw::Stopwatch;
use kernel::{mm::MmWithUser, prelude::*, processor::cpu_relax, sync::Arc, workqueue::WorkItem};

/// How often a grant is started over before the device is told to try again by itself, which gives
/// other faults their turn.
const MAX_ATTEMPTS: u32 = 16;
/// After this many faults the work item ends and is queued again, behind those of others.
const MAX_RUN: usize = 256;
/// After the last fault the ring is polled this long: the next access of the same command often
/// faults at once, and an interrupt costs more than a grant.
const POLL_NS: u64 = 30_000;
/// Looks at the ring between two looks at the clock, which may be slow.
const LOOKS: u32 = 16;

impl WorkItem for Context {
    type Pointer = Arc<Context>;

    fn run(this: Arc<Context>) {
        let _polling = this.device.poll_faults();
        // Changes places with the context's list, so that neither is allocated anew in each round.
        let mut faults = KVec::new();
        let mut served = 0;
        while served < MAX_RUN {
            this.swap_faults(&mut faults);
            if faults.is_empty() {
                match poll(&this) {
                    true => continue,
                    false => return,
                }
            }
            served += faults.len();
            serve(&this, &faults);
            faults.clear();
        }
        this.queue_work();
    }
}

/// Polls the fault queue for a while. Returns whether this context has a fault to serve.
fn poll(context: &Context) -> bool {
    let watch = Stopwatch::start();
    while !context.is_ending() && watch.ns() < POLL_NS {
        for _ in 0..LOOKS {
            if context.device.has_fault() {
                context.device.drain_faults();
            }
            if context.has_fault() {
                return true;
            }
            cpu_relax();
        }
    }
    context.has_fault()
}

/// Answers each fault: with a REPLAY, or with a CANCEL that says why not.
fn serve(context: &Arc<Context>, faults: &[Fault]) {
    let Some(mm) = context.mm.mmget_not_zero().filter(|_| !context.is_ending()) else {
        return faults.iter().for_each(|fault| context.cancel(fault, Status::CANCELLED));
    };
    look_ahead(context, &mm, faults);
    for faults in faults.chunk_by(|a, b| a.order() == b.order()) {
        if let Err(status) = serve_page(context, &mm, faults) {
            faults.iter().for_each(|fault| context.cancel(fault, status));
        }
    }
}

/// Answers faults that are the same but for their queues.
fn serve_page(context: &Arc<Context>, mm: &MmWithUser, faults: &[Fault]) -> Result<(), Status> {
    let Some(fault) = faults.first() else { return Ok(()) };
    let wanted = Wanted { page: pci::page_base(fault.va), access: fault.access, faults, ahead: false };
    for _ in 0..MAX_ATTEMPTS {
        match grant(context, mm, &wanted)? {
            // Another thread may have mapped it.
            Outcome::Granted | Outcome::Present => return Ok(()),
            Outcome::Raced => {}
            Outcome::Waits => return faults.iter().try_for_each(|fault| context.waiters.wait(context, fault)),
        }
    }
    // The device looks again and faults again, behind whoever else waits.
    context.device.replay(&context.stats, faults, Pte::NONE);
    Ok(())
}
