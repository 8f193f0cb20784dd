// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where two threads wait for each other before they race.

use std::sync::atomic::{AtomicU32, Ordering};
use std::{hint, thread};

/// Two threads that wait for each other, and go on together.
#[derive(Debug, Default)]
pub struct Meeting([AtomicU32; 2]);

impl Meeting {
    /// The thread of that number, 0 or 1, has come: returns when the other one has, too.
    pub fn meet(&self, me: usize) {
        let mine = self.0[me].fetch_add(1, Ordering::AcqRel) + 1;
        let mut spins = 0u32;
        while self.0[1 - me].load(Ordering::Acquire) < mine {
            spins += 1;
            if spins.is_multiple_of(256) { thread::yield_now() } else { hint::spin_loop() }
        }
    }
}
