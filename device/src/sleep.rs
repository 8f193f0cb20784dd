// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sleeping without missing a wake-up: how idle threads cost nothing.
//!
//! A waker makes its reason visible (a bit in a set, a flag), then calls `wake_*`. A sleeper counts
//! itself, *full fence*, looks for reasons under the lock, and only then waits. The waker has a fence of
//! its own between its reason and its look at the count: either it sees the sleeper, or the sleeper
//! sees the reason. While nobody sleeps a wake-up is one fence and one load.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sync::{AtomicU32, Condvar, Mutex, fence};

/// Threads of one kind that sleep when they have nothing to do.
#[derive(Debug)]
pub struct Sleepers {
    /// Threads that sleep or are about to.
    count: AtomicU32,
    /// Threads that don't sleep.
    awake: Mutex<u32>,
    condition: Condvar,
}

impl Sleepers {
    /// For `threads` threads, all awake.
    pub fn new(threads: u32) -> Self {
        Sleepers { count: AtomicU32::new(0), awake: Mutex::new(threads), condition: Condvar::new() }
    }

    /// Sleeps until woken, unless `may_sleep` says no. It is told how many *other* threads are awake; those
    /// come here, one after another, before they sleep. Returns whether it slept.
    pub fn sleep(&self, may_sleep: impl FnOnce(u32) -> bool) -> bool {
        let mut awake = self.awake.lock();
        self.count.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let sleeps = may_sleep(*awake - 1);
        if sleeps {
            *awake -= 1;
            self.condition.wait(&mut awake);
            *awake += 1;
        }
        self.count.fetch_sub(1, Ordering::SeqCst);
        sleeps
    }

    /// Sleeps for a time or until woken, unless `may_sleep` says no. The thread still counts as awake: it
    /// looks around again by itself, so that others need not.
    pub fn nap(&self, time: Duration, may_sleep: impl FnOnce() -> bool) {
        let mut awake = self.awake.lock();
        self.count.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if may_sleep() {
            self.condition.wait_for(&mut awake, time);
        }
        self.count.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether any thread sleeps, for those to whom a wrong answer does no harm.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Wakes one thread, if one sleeps.
    pub fn wake_one(&self) {
        fence(Ordering::SeqCst);
        if self.any() {
            let _awake = self.awake.lock();
            self.condition.notify_one();
        }
    }

    /// Wakes every thread that sleeps.
    pub fn wake_all(&self) {
        fence(Ordering::SeqCst);
        if self.any() {
            let _awake = self.awake.lock();
            self.condition.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn no_wake_up_is_lost() {
        const ROUNDS: u64 = 2_000;
        let shared = Arc::new((Sleepers::new(1), AtomicU64::new(0), AtomicU64::new(0)));
        let sleeper = std::thread::spawn({
            let shared = shared.clone();
            move || {
                let (sleepers, work, done) = &*shared;
                while done.load(Ordering::SeqCst) < ROUNDS {
                    sleepers.sleep(|_| work.load(Ordering::SeqCst) == done.load(Ordering::SeqCst));
                    done.store(work.load(Ordering::SeqCst), Ordering::SeqCst);
                }
            }
        });
        let (sleepers, work, done) = &*shared;
        for round in 1..=ROUNDS {
            work.store(round, Ordering::SeqCst);
            sleepers.wake_one();
            while done.load(Ordering::SeqCst) != round {
                std::thread::yield_now();
            }
        }
        sleeper.join().unwrap();
    }
}
