// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What `device/src/sync.rs` offers, made of loom's atomics and locks; and a way to weaken it, so that a
//! check can prove that it would have noticed.
//!
//! loom knows C11's model with two differences that matter here. Its SeqCst *fences* also synchronize with
//! each other, which is slightly too strong; its SeqCst *accesses* are no more than acquire and release,
//! which is too weak. So a check that passes needs no SeqCst access, and each fence is removed in turn to
//! see that it is needed.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::thread::panicking;
use std::time::Duration;

pub use loom::hint::spin_loop;
pub use loom::thread::yield_now;

/// What a thread may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// Its fences do nothing.
    NoFence,
    /// Its stores are relaxed.
    RelaxedStores,
    /// Its loads are relaxed.
    RelaxedLoads,
    /// Its compare-and-swaps are relaxed.
    RelaxedExchanges,
    /// Its stores are relaxed while it holds a lock.
    RelaxedStoresUnderLock,
    /// Its loads are relaxed while it holds a lock.
    RelaxedLoadsUnderLock,
}

loom::thread_local! {
    static WEAKNESS: Cell<Option<Weakness>> = Cell::new(None);
    /// Locks that the thread holds.
    static LOCKS: Cell<u32> = Cell::new(0);
}

/// Weakens what the calling thread does from here on.
pub fn weaken(weakness: Option<Weakness>) {
    WEAKNESS.with(|cell| cell.set(weakness));
}

fn weak(weakness: Weakness) -> bool {
    WEAKNESS.with(|cell| cell.get() == Some(weakness))
}

fn locked() -> bool {
    LOCKS.with(|locks| locks.get() > 0)
}

fn weak_stores() -> bool {
    weak(Weakness::RelaxedStores) || weak(Weakness::RelaxedStoresUnderLock) && locked()
}

fn weak_loads() -> bool {
    weak(Weakness::RelaxedLoads) || weak(Weakness::RelaxedLoadsUnderLock) && locked()
}

/// As `std::sync::atomic::fence`.
pub fn fence(ordering: Ordering) {
    if !weak(Weakness::NoFence) {
        loom::sync::atomic::fence(ordering);
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        #[doc = concat!("As std's `", stringify!($name), "`.")]
        #[derive(Debug)]
        pub struct $name(loom::sync::atomic::$name);

        impl $name {
            /// A new one.
            pub fn new(value: $value) -> Self {
                $name(loom::sync::atomic::$name::new(value))
            }
            /// Loads it.
            pub fn load(&self, ordering: Ordering) -> $value {
                self.0.load(if weak_loads() { Ordering::Relaxed } else { ordering })
            }
            /// Stores it. Values that are dropped when a check has failed are outside the model.
            pub fn store(&self, value: $value, ordering: Ordering) {
                if !panicking() {
                    self.0.store(value, if weak_stores() { Ordering::Relaxed } else { ordering });
                }
            }
            /// Exchanges it if it is as expected.
            pub fn compare_exchange(
                &self,
                expected: $value,
                value: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let weak = weak(Weakness::RelaxedExchanges);
                let (success, failure) =
                    if weak { (Ordering::Relaxed, Ordering::Relaxed) } else { (success, failure) };
                self.0.compare_exchange(expected, value, success, failure)
            }
            /// Adds to it.
            pub fn fetch_add(&self, value: $value, ordering: Ordering) -> $value {
                self.0.fetch_add(value, ordering)
            }
            /// Subtracts from it.
            pub fn fetch_sub(&self, value: $value, ordering: Ordering) -> $value {
                self.0.fetch_sub(value, ordering)
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

/// As `parking_lot::Mutex`.
#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A new one.
    pub fn new(value: T) -> Self {
        Mutex(loom::sync::Mutex::new(value))
    }
    /// Locks it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.0.lock().ok();
        LOCKS.with(|locks| locks.set(locks.get() + 1));
        MutexGuard(guard)
    }
}

/// As `parking_lot::MutexGuard`: there but while its owner waits for a [`Condvar`].
#[derive(Debug)]
pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_ref().expect("locked")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("locked")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if !panicking() {
            LOCKS.with(|locks| locks.set(locks.get() - 1));
        }
    }
}

/// As `parking_lot::Condvar`.
#[derive(Debug)]
pub struct Condvar(loom::sync::Condvar);

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl Condvar {
    /// A new one.
    pub fn new() -> Self {
        Condvar(loom::sync::Condvar::new())
    }
    /// Waits as [`Self::wait`]: time does not pass in the model.
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _time: Duration) {
        self.wait(guard);
    }
    /// Waits, with the mutex unlocked.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        guard.0 = guard.0.take().and_then(|locked| self.0.wait(locked).ok());
    }
    /// Wakes one that waits.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }
    /// Wakes all that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
