// SPDX-License-Identifier: GPL-2.0

//! Interval notifiers: told before a process's page table changes in a range.
//!
//! C header: `include/linux/mmu_notifier.h`, `struct mmu_interval_notifier`.

use super::super::sys;
use core::{
    ffi::c_void,
    ops::{Deref, DerefMut, Range},
};
use kernel::{
    bindings, container_of,
    error::to_result,
    mm::MmWithUser,
    new_mutex,
    prelude::*,
    sync::{lock::mutex::MutexBackend, lock::Guard, Mutex},
    task::Task,
    types::Opaque,
};

/// What a device has of a range of a process's memory, and how to take it away.
///
/// Callbacks run before the process's page table changes, on the thread that changes it, with locks
/// of the memory management held: they must not allocate memory that can reclaim, nor wait for
/// anything that may allocate such memory or touch the process's memory.
pub(crate) trait Mirror: Send + Unpin + 'static {
    /// What callbacks need without the notifier's lock.
    type Shared: Send + Sync;
    /// Names something that the device is yet to do.
    type Pending: Copy + Send + Unpin;

    /// Whether [`invalidate`](Self::invalidate) of this range would give something to wait for.
    /// Asked when waiting is not allowed.
    fn must_wait(&self, shared: &Self::Shared, range: &Range<u64>) -> bool;

    /// Starts to take `range` away from the device. `range` lies within the notifier's.
    ///
    /// Runs with the notifier's lock. What it returns is waited for before the page table changes.
    /// It must also return what an *earlier* invalidation of the range started and is not yet
    /// done, because the two callers do not wait for each other.
    fn invalidate(&mut self, shared: &Self::Shared, range: Range<u64>, cause: Cause)
        -> Option<Self::Pending>;

    /// Waits until the device is done. Runs without the notifier's lock and must end in bounded time.
    fn wait(shared: &Self::Shared, pending: Self::Pending);
}

/// Why the page table of a process changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cause(bindings::mmu_notifier_event);

impl Cause {
    /// The kernel's number of it: `enum mmu_notifier_event`.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// Whose exclusive access an event is about: an address that is unique while the owner lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(usize);

impl Owner {
    /// The owner that `object`'s address stands for.
    pub(crate) fn of<T>(object: &T) -> Self {
        Owner(core::ptr::from_ref(object).addr())
    }

    pub(super) fn as_ptr(self) -> *mut c_void {
        core::ptr::without_provenance_mut(self.0)
    }
}

/// A registered notifier and the lock that its callbacks take.
///
/// Events that the owner's own [`ExclusivePage::acquire`](super::ExclusivePage::acquire) causes are
/// ignored, without touching the sequence: else each acquisition would invalidate itself for ever.
///
/// Dropping it unregisters, which waits for running callbacks: it must not be dropped by one, nor
/// with a lock held that one takes.
///
/// # Invariants
///
/// `raw` is registered with `Self::OPS` from the end of initialization to the drop.
#[pin_data(PinnedDrop)]
pub(crate) struct IntervalNotifier<M: Mirror> {
    #[pin]
    raw: Opaque<bindings::mmu_interval_notifier>,
    /// Lent to the kernel between the two passes; free if `State::finishing` is `None`.
    #[pin]
    finish: Opaque<bindings::mmu_interval_notifier_finish>,
    range: Range<u64>,
    owner: Owner,
    shared: M::Shared,
    #[pin]
    state: Mutex<State<M>>,
}

struct State<M: Mirror> {
    mirror: M,
    /// What the second pass will wait for, while `finish` is lent to the kernel.
    finishing: Option<M::Pending>,
    /// The one attempt that is watched.
    watch: Option<Watch>,
}

/// An attempt under way, and whether an event came between.
struct Watch {
    range: Range<u64>,
    /// Events on this thread are part of the look-up.
    thread: *mut bindings::task_struct,
    hit: bool,
}

// SAFETY: `thread` is compared and never dereferenced.
unsafe impl Send for Watch {}

// SAFETY: Registration is not tied to a thread; `shared` is `Send`, `mirror` and `Pending` are too.
unsafe impl<M: Mirror> Send for IntervalNotifier<M> {}
// SAFETY: `raw` is touched by kernel functions that synchronize themselves, `finish` only by whoever
// set `finishing`, under the lock; `shared` is `Sync`, the rest is immutable or behind the mutex.
unsafe impl<M: Mirror> Sync for IntervalNotifier<M> {}

impl<M: Mirror> IntervalNotifier<M> {
    const OPS: bindings::mmu_interval_notifier_ops = bindings::mmu_interval_notifier_ops {
        invalidate: None,
        invalidate_start: Some(Self::invalidate_start),
        invalidate_finish: Some(Self::invalidate_finish),
    };

    /// Registers a notifier for `range` of `mm`. The lock of `mm` must not be held.
    pub(crate) fn new<'a>(
        mm: &'a MmWithUser,
        range: Range<u64>,
        owner: Owner,
        shared: M::Shared,
        mirror: M,
    ) -> impl PinInit<Self, Error> + use<'a, M> {
        let (start, len) = (range.start as usize, (range.end - range.start) as usize);
        try_pin_init!(&this in Self {
            raw: Opaque::zeroed(),
            finish: Opaque::zeroed(),
            range,
            owner,
            shared,
            state <- new_mutex!(State { mirror, finishing: None, watch: None }, "IntervalNotifier::state"),
            _: {
                // SAFETY: `mm` has a user. The object is pinned and complete but for this
                // registration, so callbacks may come at once; `drop` unregisters it.
                to_result(unsafe {
                    bindings::mmu_interval_notifier_insert(
                        Opaque::cast_into(&raw const (*this.as_ptr()).raw),
                        mm.as_raw(),
                        start,
                        len,
                        &Self::OPS,
                    )
                })?;
            },
        })
    }

    pub(super) fn as_raw(&self) -> *mut bindings::mmu_interval_notifier {
        self.raw.get()
    }

    /// What callbacks have without the lock.
    pub(crate) fn shared(&self) -> &M::Shared {
        &self.shared
    }

    /// Begins to look up `range`, within the notifier's: waits until no invalidation is under way, and
    /// watches for further ones. The notifier's lock must not be held.
    pub(crate) fn attempt(&self, range: Range<u64>) -> Attempt<'_, M> {
        let watch = Watch { range, thread: Task::current_raw(), hit: false };
        let mut state = self.state.lock();
        let watched = state.watch.is_none();
        if watched {
            state.watch = Some(watch);
        }
        drop(state);
        // After the watch is set: an event before it is over when this returns.
        // SAFETY: By the type invariant the notifier is registered.
        let seq = unsafe { bindings::mmu_interval_read_begin(self.as_raw()) };
        Attempt { notifier: self, seq, watched }
    }

    /// Takes the notifier's lock. No callback runs its first pass while it is held.
    pub(crate) fn lock(&self) -> Locked<'_, M> {
        Locked(self.state.lock())
    }

    /// First pass. Fails if it would have to wait and must not.
    fn start(&self, event: &bindings::mmu_notifier_range, seq: usize) -> Result<Outcome<M>, WouldBlock> {
        if event.event == bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE
            && event.owner == self.owner.as_ptr()
        {
            return Ok(Outcome::Done);
        }
        // The event's end is exclusive, or all-ones for everything.
        let range = self.range.start.max(event.start as u64)..self.range.end.min(event.end as u64);
        // SAFETY: `event` is a valid range.
        let blockable = unsafe { sys::svmx_mmu_notifier_range_blockable(event) };
        let mut state = match blockable {
            true => self.state.lock(),
            false => {
                let state = self.state.try_lock().ok_or(WouldBlock)?;
                if state.mirror.must_wait(&self.shared, &range) {
                    return Err(WouldBlock);
                }
                state
            }
        };
        // SAFETY: The notifier is registered, `seq` came with this callback, and the lock is held
        // under which `commit` compares.
        unsafe { sys::svmx_mmu_interval_set_seq(self.as_raw(), seq) };
        if let Some(watch) = &mut state.watch {
            watch.hit |= watch.is_hit_by(&range);
        }
        let Some(pending) = state.mirror.invalidate(&self.shared, range, Cause(event.event)) else {
            return Ok(Outcome::Done);
        };
        if state.finishing.is_some() {
            return Ok(Outcome::Wait(pending));
        }
        state.finishing = Some(pending);
        Ok(Outcome::Finish)
    }

    /// Second pass, while `finish` is lent to the kernel.
    fn finish(&self) {
        let pending = self.state.lock().finishing;
        if let Some(pending) = pending {
            M::wait(&self.shared, pending);
        }
        // Only now may another event lend `finish` again: the kernel is done with it.
        self.state.lock().finishing = None;
    }

    /// # Safety
    ///
    /// Called by the kernel for a registered notifier of this type, with a valid range and a valid
    /// place for `finish`.
    unsafe extern "C" fn invalidate_start(
        raw: *mut bindings::mmu_interval_notifier,
        event: *const bindings::mmu_notifier_range,
        seq: usize,
        finish: *mut *mut bindings::mmu_interval_notifier_finish,
    ) -> bool {
        let raw = raw.cast::<Opaque<bindings::mmu_interval_notifier>>();
        // SAFETY: `raw` is embedded in a `Self`, which lives while it is registered. `event` is valid.
        let (this, event): (&Self, _) = unsafe { (&*container_of!(raw, Self, raw), &*event) };
        match this.start(event, seq) {
            Err(WouldBlock) => return false,
            Ok(Outcome::Done) => {}
            // Its place for a second pass is taken by an event that runs at the same time.
            Ok(Outcome::Wait(pending)) => M::wait(&this.shared, pending),
            // SAFETY: The caller provides the place.
            Ok(Outcome::Finish) => unsafe { *finish = this.finish.get() },
        }
        true
    }

    /// # Safety
    ///
    /// Called by the kernel with what `invalidate_start` stored.
    unsafe extern "C" fn invalidate_finish(finish: *mut bindings::mmu_interval_notifier_finish) {
        let finish = finish.cast::<Opaque<bindings::mmu_interval_notifier_finish>>();
        // SAFETY: `finish` is embedded in a `Self`, whose unregistration waits for this callback.
        let this: &Self = unsafe { &*container_of!(finish, Self, finish) };
        this.finish();
    }
}

#[pinned_drop]
impl<M: Mirror> PinnedDrop for IntervalNotifier<M> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the notifier is registered.
        unsafe { bindings::mmu_interval_notifier_remove(self.as_raw()) };
    }
}

struct WouldBlock;

enum Outcome<M: Mirror> {
    Done,
    Wait(M::Pending),
    Finish,
}

impl Watch {
    fn is_hit_by(&self, event: &Range<u64>) -> bool {
        let meets = event.start < self.range.end && self.range.start < event.end;
        meets && self.thread != Task::current_raw()
    }
}

/// A look-up between its begin and its [`commit`](Self::commit).
///
/// It fails if an event for its range came between. A notifier covers a lot, and the kernel's own
/// sequence knows only that *some* event came to it: with CPUs at work on pages nearby, few
/// attempts would succeed. So one attempt at a time is watched by range; others use the sequence.
///
/// Events on the attempt's own thread are part of the look-up and precede its result. They matter:
/// the second attempt for a page that the first has made exclusive takes it back from itself,
/// which is an ordinary event for that page.
pub(crate) struct Attempt<'a, M: Mirror> {
    notifier: &'a IntervalNotifier<M>,
    seq: usize,
    watched: bool,
}

impl<'a, M: Mirror> Attempt<'a, M> {
    pub(super) fn notifier(&self) -> &'a IntervalNotifier<M> {
        self.notifier
    }

    pub(super) fn seq(&self) -> usize {
        self.seq
    }

    /// Takes the notifier's lock, if what was looked up is still so. As long as the lock is held it
    /// will be; afterwards whoever changes it calls [`Mirror::invalidate`] first.
    pub(crate) fn commit(mut self) -> Option<Locked<'a, M>> {
        let notifier = self.notifier;
        let mut state = notifier.state.lock();
        let failed = match core::mem::take(&mut self.watched) {
            true => state.watch.take().is_none_or(|watch| watch.hit),
            // SAFETY: The notifier is registered, and its lock is held, under which callbacks set the
            // sequence.
            false => unsafe { sys::svmx_mmu_interval_read_retry(notifier.as_raw(), self.seq) },
        };
        (!failed).then_some(Locked(state))
    }
}

impl<M: Mirror> Drop for Attempt<'_, M> {
    fn drop(&mut self) {
        if self.watched {
            self.notifier.state.lock().watch = None;
        }
    }
}

/// The notifier's lock, held. Gives access to the mirror.
pub(crate) struct Locked<'a, M: Mirror>(Guard<'a, State<M>, MutexBackend>);

impl<M: Mirror> Deref for Locked<'_, M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0.mirror
    }
}

impl<M: Mirror> DerefMut for Locked<'_, M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.0.mirror
    }
}
