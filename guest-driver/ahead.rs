// SPDX-License-Identifier: GPL-2.0

//! Look-ahead: pages that a command will need are obtained together with the one that it faulted on.

use super::context::Context;
use super::faultq::Fault;
use super::grant::{grant, Outcome, Wanted};
use super::outlook::{Hint, Outlook};
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

/// Obtains pages that the fault's command will need next: before its own, whose REPLAY then sets the queue going
/// with all of them. Each is tried once, and whatever is wrong with it is said when it faults itself.
pub(crate) fn look_ahead(context: &Context, mm: &MmWithUser, fault: &Fault) {
    // The device looks ahead when it has reported the fault, so its records come a little later.
    context.device.drain_faults();
    let mut left = match context.outlooks.lock().of(fault.queue) {
        Some(outlook) => outlook.begin(fault.id, fault.va),
        None => return,
    };
    while left > 0 && !context.is_ending() {
        left -= 1;
        // A statement of its own: the lock is released at its end.
        let next = context.outlooks.lock().of(fault.queue).and_then(Outlook::next);
        let Some((page, access)) = next else { return };
        match grant(context, mm, &Wanted { page, access, faults: &[], ahead: true }) {
            Ok(Outcome::Granted) => {
                if let Some(outlook) = context.outlooks.lock().of(fault.queue) {
                    outlook.note_obtained(page);
                }
            }
            Ok(Outcome::Present | Outcome::Raced) => {}
            Err(_) => return,
        }
    }
}
