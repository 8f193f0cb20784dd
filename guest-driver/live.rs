// SPDX-License-Identifier: GPL-2.0

//! Counts of the driver's live objects, so that a leak is noticed when the module goes.

use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

/// A kind of object that is counted.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Device,
    Context,
    Queue,
    Span,
    Table,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Device, "devices"),
    (Kind::Context, "contexts"),
    (Kind::Queue, "queues"),
    (Kind::Span, "spans"),
    (Kind::Table, "page tables"),
];

static COUNTS: [Atomic<i64>; KINDS.len()] = [const { Atomic::new(0) }; KINDS.len()];

/// Part of an object that is counted as long as it lives.
pub(crate) struct Live(Kind);

impl Live {
    /// One more object of `kind`.
    pub(crate) fn new(kind: Kind) -> Self {
        COUNTS[kind as usize].add(1, Relaxed);
        Live(kind)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        COUNTS[self.0 as usize].add(-1, Relaxed);
    }
}

/// Reports what is left when it is dropped: the last object of the module.
pub(crate) struct LeakCheck;

impl Drop for LeakCheck {
    fn drop(&mut self) {
        for (kind, name) in KINDS {
            let count = COUNTS[kind as usize].load(Relaxed);
            if count != 0 {
                pr_err!("leaked {} {}\n", count, name);
            }
        }
    }
}
