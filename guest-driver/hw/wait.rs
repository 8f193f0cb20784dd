// SPDX-License-Identifier: GPL-2.0

//! Wait queues that interrupts wake.

use super::super::sys;
use core::ffi::c_void;
use kernel::{bindings, fs::File, prelude::*, types::Opaque};

/// A wait queue. Conditions are checked after the waiter is on it, so no wake-up is lost that comes
/// after the condition became true.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: Wait queues are made for use from any thread.
unsafe impl Send for WaitQueue {}
// SAFETY: They synchronize themselves.
unsafe impl Sync for WaitQueue {}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Timeout,
    Signal,
}

impl WaitQueue {
    /// An empty one. It must outlive whoever waits: see [`poll`](Self::poll).
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The slot is valid and pinned.
            head <- Opaque::ffi_init(|slot| unsafe { sys::svmx_init_waitqueue_head(slot) }),
        })
    }

    /// Sleeps until `done` says so, a signal comes, or `timeout_ns` have passed (negative: never).
    /// `done` runs on the wait queue: it must not sleep.
    pub(crate) fn wait<F: FnMut() -> bool>(&self, timeout_ns: i64, mut done: F) -> Result<(), Ended> {
        let data = (&raw mut done).cast();
        // SAFETY: The queue is initialized, and `call::<F>` gets the `F` that it expects.
        let result = unsafe { sys::svmx_wait_event(self.head.get(), Some(call::<F>), data, timeout_ns) };
        match result {
            0 => Ok(()),
            error if error == -(bindings::ETIME as isize) => Err(Ended::Timeout),
            _ => Err(Ended::Signal),
        }
    }

    /// Sleeps until `done` says so, which must be in bounded time. As [`wait`](Self::wait) otherwise.
    pub(crate) fn wait_uninterruptible<F: FnMut() -> bool>(&self, mut done: F) {
        let data = (&raw mut done).cast();
        // SAFETY: The queue is initialized, and `call::<F>` gets the `F` that it expects.
        unsafe { sys::svmx_wait_event_uninterruptible(self.head.get(), Some(call::<F>), data) }
    }

    /// Wakes everybody. May be called in interrupts.
    pub(crate) fn wake_all(&self) {
        // SAFETY: The queue is initialized.
        unsafe { sys::svmx_wake_up_all(self.head.get()) };
    }

    /// Puts a poller on the queue.
    ///
    /// # Safety
    ///
    /// `table` is what `poll` was called with for `file`, and the queue lives until `file` is released.
    pub(crate) unsafe fn poll(&self, file: &File, table: *mut bindings::poll_table_struct) {
        // SAFETY: By the requirements of this function.
        unsafe { bindings::poll_wait(file.as_ptr(), self.head.get(), table) };
    }
}

/// # Safety
///
/// `data` points to an `F` that nobody else uses.
unsafe extern "C" fn call<F: FnMut() -> bool>(data: *mut c_void) -> bool {
    // SAFETY: By the requirement of this function.
    (unsafe { &mut *data.cast::<F>() })()
}
