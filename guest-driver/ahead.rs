// SPDX-License-Identifier: GPL-2.0

//! Look-ahead: pages that a command will need are obtained together with the one that it faulted on.

use super::abi::status::Status;
use super::context::Context;
use super::faultq::Fault;
use super::grant::{grant_all, Wanted, MAX_HELD};
use super::outlook::{Hint, Outlook, MAX_WINDOW};
use kernel::{alloc::flags::GFP_ATOMIC, mm::MmWithUser, prelude::*};
use pin_init::Zeroable;

// SAFETY: It is `FromZeros`.
unsafe impl Zeroable for Outlook {}

/// The outlooks of a context's queues, in the order of the queues' identifiers.
pub(crate) struct Outlooks(KVec<KBox<Outlook>>);

impl Outlooks {
    /// Of no queue.
    pub(crate) fn new() -> Self {
        Outlooks(KVec::new())
    }

    /// Adds the one of a new queue. Does not sleep.
    pub(crate) fn add(&mut self, outlook: KBox<Outlook>) -> Result {
        let index = self.0.partition_point(|other| other.queue < outlook.queue);
        self.0.reserve(1, GFP_ATOMIC)?;
        // There is room, and the index is not beyond the end.
        self.0.insert_within_capacity(index, outlook).map_err(|_| ENOMEM)
    }

    /// Removes that of a queue that is gone, as another may get its identifier.
    pub(crate) fn remove(&mut self, queue: u32) {
        self.0.retain(|outlook| outlook.queue != queue);
    }

    /// That of the queue, if there is such a queue.
    pub(crate) fn of(&mut self, queue: u32) -> Option<&mut Outlook> {
        let index = self.0.binary_search_by_key(&queue, |outlook| outlook.queue).ok()?;
        self.0.get_mut(index).map(|outlook| &mut **outlook)
    }
}

impl Context {
    /// Keeps what a queue will need, until it faults.
    pub(crate) fn push_hint(&self, queue: u32, hint: Hint) {
        if let Some(outlook) = self.outlooks.lock().of(queue) {
            outlook.push(hint);
        }
    }
}

/// Obtains pages that the faults' commands will need next: before their own, whose REPLAYs then set the queues going
/// with all of them. Each is tried once, and whatever is wrong with it is said when it faults itself.
///
/// All of them together are a window at most, and it ends early when another fault comes. So a queue that looks far
/// ahead delays the others of its context by the pages of one hold at most.
pub(crate) fn look_ahead(context: &Context, mm: &MmWithUser, faults: &[Fault]) {
    // The device looks ahead when it has reported a fault, so its records come a little later.
    context.device.drain_faults();
    let share = MAX_WINDOW / faults.len().max(1);
    for fault in faults {
        // A statement of its own: the lock is released at its end.
        let window = context.outlooks.lock().of(fault.queue).map(|outlook| outlook.begin(fault.id, fault.va));
        let most = window.unwrap_or(0).min(share);
        // If it fails, the queue learns why when it comes to the page.
        let _ = obtain(context, mm, fault.queue, most);
    }
}

/// Obtains the queue's next pages, `most` at most.
fn obtain(context: &Context, mm: &MmWithUser, queue: u32, most: usize) -> Result<(), Status> {
    let mut left = most;
    while left > 0 && !context.has_fault() {
        let mut pages = [Wanted::NOTHING; MAX_HELD];
        let mut count = next(context, queue, pages.iter_mut().take(left));
        if count == 0 {
            context.device.drain_faults();
            count = next(context, queue, pages.iter_mut().take(left));
        }
        if count == 0 {
            break;
        }
        left -= count;
        // Whoever polls the queue looks at it (`faultq.rs`).
        context.device.drain_faults();
        grant_all(context, mm, pages.get(..count).unwrap_or(&[]))?;
    }
    Ok(())
}

/// Takes what the queue will need next. Returns how many pages that is.
fn next<'a, 'b: 'a>(context: &Context, queue: u32, pages: impl Iterator<Item = &'a mut Wanted<'b>>) -> usize {
    let mut outlooks = context.outlooks.lock();
    let Some(outlook) = outlooks.of(queue) else { return 0 };
    let next = core::iter::from_fn(|| outlook.next());
    pages
        .zip(next)
        .map(|(slot, (page, access))| *slot = Wanted { page, access, faults: &[], ahead: true })
        .count()
}
