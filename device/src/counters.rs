// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device's statistics (spec 3.4), counted by each thread on its own.

use std::sync::atomic::{AtomicU64, Ordering};

use svmx_abi::regs::Counter;

const COUNTERS: usize = Counter::ALL.len();

/// One thread's numbers, alone in their cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot([AtomicU64; COUNTERS]);

/// All numbers.
#[derive(Debug)]
pub struct Counters {
    slots: Box<[Slot]>,
    /// What the registers no longer show: counts before the last reset.
    before: Slot,
}

impl Counters {
    /// For threads numbered 0 to `threads` − 1.
    pub fn new(threads: usize) -> Self {
        Counters { slots: (0..threads).map(|_| Slot::default()).collect(), before: Slot::default() }
    }

    /// Counts; `thread` is the caller's own number.
    #[inline]
    pub fn add(&self, thread: usize, counter: Counter, amount: u64) {
        if let Some(slot) = self.slots.get(thread) {
            // Only this thread writes here, so no read-modify-write is needed.
            let cell = &slot.0[counter as usize];
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        }
    }

    /// Since the last reset.
    pub fn read(&self, counter: Counter) -> u64 {
        self.total(counter).wrapping_sub(self.before.0[counter as usize].load(Ordering::Relaxed))
    }

    /// Since the process began.
    pub fn total(&self, counter: Counter) -> u64 {
        let count = |slot: &Slot| slot.0[counter as usize].load(Ordering::Relaxed);
        self.slots.iter().map(count).fold(0, u64::wrapping_add)
    }

    /// The registers begin at zero again.
    pub fn reset(&self) {
        for counter in Counter::ALL {
            self.before.0[counter as usize].store(self.total(counter), Ordering::Relaxed);
        }
    }
}
