// SPDX-License-Identifier: GPL-2.0

//! Measuring time and passing it.

use kernel::{
    bindings,
    time::{Instant, Monotonic},
};

/// Nanoseconds since it was made.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch(Instant<Monotonic>);

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Stopwatch(Instant::now())
    }

    /// Nanoseconds from this one's start to that of `later`.
    pub(crate) fn ns_until(&self, later: &Stopwatch) -> u64 {
        (later.0 - self.0).as_nanos().max(0) as u64
    }

    /// Nanoseconds so far.
    pub(crate) fn ns(&self) -> u64 {
        self.0.elapsed().as_nanos().max(0) as u64
    }
}

/// Sleeps for about `us` microseconds, at most twice that. Can't be interrupted.
pub(crate) fn nap(us: usize) {
    // SAFETY: Callers may sleep.
    unsafe { bindings::usleep_range_state(us, 2 * us, bindings::TASK_UNINTERRUPTIBLE) };
}
