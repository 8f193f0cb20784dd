// SPDX-License-Identifier: GPL-2.0

//! The module's workqueue.

use super::super::sys;
use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*,
    sync::SetOnce,
    workqueue::{DelayedWork, Queue, Work},
};

static QUEUE: SetOnce<Raw> = SetOnce::new();

#[derive(Clone, Copy)]
struct Raw(NonNull<bindings::workqueue_struct>);

// SAFETY: Workqueues are used from any thread.
unsafe impl Send for Raw {}
// SAFETY: They synchronize themselves.
unsafe impl Sync for Raw {}

/// Owns the workqueue: unbound, so that one slow item holds up nobody, and of high priority, because
/// a queue of the device stands still until its fault is served.
pub(crate) struct Workqueue(Raw);

impl Workqueue {
    /// Makes it. To be called once, when the module is loaded.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Has no preconditions.
        let raw = Raw(NonNull::new(unsafe { sys::svmx_alloc_workqueue() }).ok_or(ENOMEM)?);
        QUEUE.populate(raw);
        Ok(Workqueue(raw))
    }
}

impl Drop for Workqueue {
    fn drop(&mut self) {
        // SAFETY: Dropped when the module is unloaded, when nothing can queue work any more.
        unsafe { bindings::destroy_workqueue(self.0 .0.as_ptr()) };
    }
}

/// The workqueue, while the module is loaded.
pub(crate) fn queue() -> Option<&'static Queue> {
    // SAFETY: The queue lives as long as anything of the module runs.
    QUEUE.as_ref().map(|raw| unsafe { Queue::from_raw(raw.0.as_ptr()) })
}

/// Waits until a work item that was queued before is done.
pub(crate) fn flush<T, const ID: u64>(work: &Work<T, ID>) {
    // SAFETY: The item is initialized and lives.
    unsafe { bindings::flush_work(Work::raw_get(work)) };
}

/// Runs a delayed work item now, if it is queued, and waits until it is done.
pub(crate) fn flush_delayed<T, const ID: u64>(work: &DelayedWork<T, ID>) {
    // CAST: `DelayedWork` is a transparent wrapper of an `Opaque<delayed_work>`.
    // SAFETY: The item is initialized and lives.
    unsafe { bindings::flush_delayed_work(core::ptr::from_ref(work).cast_mut().cast()) };
}
