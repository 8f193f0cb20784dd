// SPDX-License-Identifier: GPL-2.0

//! Faults on pages that somebody else has to bring: the process itself (userfaultfd), or a file system. That may take for
//! ever, and a work item can't be killed, so each of them is waited for by a thread. When the page is there, the fault
//! goes back to the fault service.
//!
//! A queue has one fault outstanding, which bounds the faults. A thread that has just handed its fault back may not be idle yet when
//! the next one comes, and another is started for that; they stay until the context ends.

use super::abi::{fault::AccessKind, pci, status::Status};
use super::context::Context;
use super::faultq::Fault;
use super::grant::{status_of, Wanted};
use super::hw::{forget_kill, should_stop, Thread, ThreadId, WaitQueue};
use super::mm::{fault_in, ReadLocked};
use kernel::{
    alloc::flags::GFP_ATOMIC,
    new_mutex, new_spinlock,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex, SpinLock},
};

/// A context's waiters.
#[pin_data]
pub(crate) struct Waiters {
    /// Innermost but for the lock of a thread's signals; for a few instructions.
    #[pin]
    state: SpinLock<State>,
    /// Threads sleep here while they have no fault.
    #[pin]
    idle: WaitQueue,
    /// `None` when the context ends. Taken by the work item and by the end; memory is allocated under it.
    #[pin]
    threads: Mutex<Option<KVec<Thread<Context>>>>,
}

struct State {
    /// Faults that no thread has yet.
    faults: KVec<Fault>,
    /// Threads that have none.
    idle: usize,
    /// Threads that have one, with its queue.
    busy: KVec<(u32, ThreadId)>,
}

impl Waiters {
    /// Nobody.
    pub(crate) fn new() -> impl PinInit<Self> {
        let state = State { faults: KVec::new(), idle: 0, busy: KVec::new() };
        pin_init!(Self {
            state <- new_spinlock!(state, "svmx::waiters"),
            idle <- WaitQueue::new(),
            threads <- new_mutex!(Some(KVec::new()), "svmx::threads"),
        })
    }

    /// Gives a fault to a thread.
    pub(crate) fn wait(&self, context: &Arc<Context>, fault: &Fault) -> Result<(), Status> {
        let mut threads = self.threads.lock();
        let threads = (*threads).as_mut().ok_or(Status::CANCELLED)?;
        let enough = {
            let mut state = self.state.lock();
            state.busy.reserve(threads.len() + 1, GFP_ATOMIC).map_err(|_| Status::NO_RESOURCES)?;
            state.faults.push(*fault, GFP_ATOMIC).map_err(|_| Status::NO_RESOURCES)?;
            state.faults.len() <= state.idle
        };
        if !enough && start(context, threads).is_err() && threads.is_empty() {
            self.state.lock().faults.clear();
            return Err(Status::NO_RESOURCES);
        }
        self.idle.wake_all();
        Ok(())
    }

    /// Ends the wait of a queue's command, or of all.
    pub(crate) fn give_up(&self, queue: Option<u32>) {
        let mut state = self.state.lock();
        let wanted = |other: u32| queue.is_none_or(|queue| queue == other);
        state.faults.retain(|fault| !wanted(fault.queue));
        for (other, thread) in &state.busy {
            if wanted(*other) {
                // SAFETY: It is in the list, from which it removes itself under the lock.
                unsafe { thread.kill() };
            }
        }
    }

    /// Ends all threads, and lets no other start.
    pub(crate) fn end(&self) {
        let threads = self.threads.lock().take();
        // Without the lock: it kills each and waits for it.
        drop(threads);
    }

    /// The next fault for the calling thread; `None` if it is to end.
    fn next(&self) -> Option<Fault> {
        let thread = ThreadId::current()?;
        loop {
            let mut found = None;
            self.state.lock().idle += 1;
            // Interrupted: what was to end has ended by itself.
            let _ = self.idle.wait(-1, || {
                found = self.take(thread);
                found.is_some() || should_stop()
            });
            if found.is_some() {
                return found;
            }
            self.state.lock().idle -= 1;
            if should_stop() {
                return None;
            }
            forget_kill();
        }
    }

    fn take(&self, thread: ThreadId) -> Option<Fault> {
        let mut state = self.state.lock();
        let fault = *state.faults.first()?;
        // There is room for every thread.
        state.busy.push_within_capacity((fault.queue, thread)).ok()?;
        // In the same critical section, so that whoever counts on it gets it.
        state.idle -= 1;
        state.faults.remove(0).ok()
    }

    /// The calling thread has nothing to wait for any more.
    fn done(&self) {
        let thread = ThreadId::current();
        self.state.lock().busy.retain(|(_, other)| Some(*other) != thread);
        forget_kill();
    }
}

fn start(context: &Arc<Context>, threads: &mut KVec<Thread<Context>>) -> Result {
    threads.reserve(1, GFP_KERNEL)?;
    // SAFETY: The context lives until `Waiters::end` has ended the thread: that is a part of the context's end, which
    // comes before its drop.
    let thread = unsafe { Thread::start(work, context)? };
    Ok(threads.push(thread, GFP_KERNEL)?)
}

/// What a thread does.
fn work(context: &Context) {
    while let Some(fault) = context.waiters.next() {
        let result = wait(context, &fault);
        context.waiters.done();
        match result {
            Ok(()) => {
                // SAFETY: Contexts are made in an `Arc` only, and this one lives.
                let context = unsafe { ArcBorrow::from_raw(core::ptr::from_ref(context)) };
                Arc::from(context).serve_fault(fault);
            }
            Err(status) => context.cancel(&fault, status),
        }
    }
}

fn wait(context: &Context, fault: &Fault) -> Result<(), Status> {
    let mm = context.mm.mmget_not_zero().ok_or(Status::CANCELLED)?;
    let page = pci::page_base(fault.va);
    match fault_in(&mm, page as usize, fault.access != AccessKind::READ) {
        Ok(()) => Ok(()),
        Err(EINTR) => Err(Status::CANCELLED),
        Err(error) => {
            let wanted = Wanted { page, access: fault.access, faults: &[], ahead: false };
            Err(status_of(error, context, &ReadLocked::new(&mm), &wanted))
        }
    }
}
