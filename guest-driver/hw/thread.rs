// SPDX-License-Identifier: GPL-2.0

//! Kernel threads for what may wait for ever, unlike a work item, because they can be killed.

use core::{ffi::c_void, ptr::NonNull};
use kernel::{bindings, error::from_err_ptr, prelude::*, task::Task};

/// A thread. Dropping it kills it and waits for its end.
pub(crate) struct Thread<T: Sync> {
    task: NonNull<bindings::task_struct>,
    /// What the thread was given: it is the thread's until that has ended, even if it never ran.
    _call: KBox<Call<T>>,
}

// SAFETY: A task may be killed and stopped by any thread, and the data is shared with it.
unsafe impl<T: Sync> Send for Thread<T> {}

/// Names a thread that lives, to kill what it does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ThreadId(NonNull<bindings::task_struct>);

// SAFETY: As above; whoever uses the pointer says that the task lives.
unsafe impl Send for ThreadId {}

impl<T: Sync> Thread<T> {
    /// Starts a thread that calls `body` with `data`.
    ///
    /// # Safety
    ///
    /// `data` lives until the thread is dropped.
    pub(crate) unsafe fn start(body: fn(&T), data: &T) -> Result<Self> {
        let call = KBox::new(Call { body, data }, GFP_KERNEL)?;
        // SAFETY: The format has no arguments, and `run::<T>` gets what it expects.
        let task = unsafe {
            bindings::kthread_create_on_node(
                Some(run::<T>),
                core::ptr::from_ref(&*call).cast_mut().cast(),
                bindings::NUMA_NO_NODE,
                c"svmx-waiter".as_ptr().cast(),
            )
        };
        let task = NonNull::new(from_err_ptr(task)?).ok_or(ENOMEM)?;
        // SAFETY: The task lives: it was made a moment ago, and ends when it is told to. The reference is dropped with
        // `Thread`.
        unsafe {
            bindings::get_task_struct(task.as_ptr());
            bindings::wake_up_process(task.as_ptr());
        }
        Ok(Thread { task, _call: call })
    }
}

impl<T: Sync> Drop for Thread<T> {
    fn drop(&mut self) {
        ThreadId(self.task).kill_living();
        // SAFETY: This has a reference, which goes with the call.
        unsafe { bindings::kthread_stop_put(self.task.as_ptr()) };
    }
}

impl ThreadId {
    /// The calling thread.
    pub(crate) fn current() -> Option<Self> {
        NonNull::new(Task::current_raw()).map(ThreadId)
    }

    /// Ends a killable wait of the thread.
    ///
    /// # Safety
    ///
    /// It lives.
    pub(crate) unsafe fn kill(self) {
        self.kill_living();
    }

    fn kill_living(self) {
        // SAFETY: Callers see to it that the task lives.
        unsafe { bindings::send_sig(bindings::SIGKILL as i32, self.0.as_ptr(), 1) };
    }
}

/// Whether the calling thread, one of [`Thread`], is to end.
pub(crate) fn should_stop() -> bool {
    // SAFETY: Called by such a thread.
    unsafe { bindings::kthread_should_stop() }
}

/// Forgets that the calling thread was killed: what was to end has ended.
pub(crate) fn forget_kill() {
    // SAFETY: The current task lives.
    unsafe { bindings::flush_signals(Task::current_raw()) };
}

struct Call<T> {
    body: fn(&T),
    data: *const T,
}

/// # Safety
///
/// `data` is the `Call<T>` of a [`Thread`], which outlives this thread.
unsafe extern "C" fn run<T: Sync>(data: *mut c_void) -> i32 {
    // SAFETY: By the requirement of this function.
    let call = unsafe { &*data.cast::<Call<T>>() };
    // SAFETY: Has no preconditions.
    unsafe { super::super::sys::svmx_allow_kill() };
    // SAFETY: By the requirement of `start` the data lives.
    (call.body)(unsafe { &*call.data });
    0
}
