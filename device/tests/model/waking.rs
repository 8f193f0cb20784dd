// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The submitter's half of spec 4.3, as the mock driver has it, raced against the device's: on a doorbell page
//! of no queue, so that the test can be the device there. What it must not do is read NEED_KICK before its
//! store can be seen. The device's half is raced in `device/src/engine.rs`, the library's in
//! `guest/src/ring.rs`.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::thread;

use svmx_abi::doorbell::queue as words;
use svmx_abi::regs::Counter;

use mock_driver::Mock;

const ROUNDS: u32 = 200_000;
/// A page whose queue nobody makes.
const PAGE: u32 = 400;

/// Two threads that wait for each other, and go on together.
#[derive(Default)]
struct Meeting([AtomicU32; 2]);

impl Meeting {
    fn meet(&self, me: usize) {
        let mine = self.0[me].fetch_add(1, Ordering::AcqRel) + 1;
        let mut spins = 0u32;
        while self.0[1 - me].load(Ordering::Acquire) < mine {
            spins += 1;
            if spins.is_multiple_of(256) { thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

#[test]
fn a_submitter_that_sees_no_need_to_kick_was_seen() {
    let mock = Mock::new();
    let (meeting, seen) = (Meeting::default(), AtomicBool::new(false));
    let (need_kick, tail) = (mock.doorbell(PAGE, words::NEED_KICK), mock.doorbell(PAGE, words::SQ_TAIL));
    let lost = thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                need_kick.store(0, Ordering::Relaxed);
                meeting.meet(0);
                (0..round % 256).for_each(|turn| _ = std::hint::black_box(turn));
                need_kick.store(1, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                seen.store(tail.load(Ordering::Acquire) == round, Ordering::Relaxed);
                meeting.meet(0);
            }
        });
        let mut lost = 0;
        for round in 1..=ROUNDS {
            let kicks = mock.counter(Counter::Kicks);
            meeting.meet(1);
            mock.ring(PAGE, words::SQ_TAIL, round);
            meeting.meet(1);
            let kicked = mock.counter(Counter::Kicks) > kicks;
            lost += u32::from(!kicked && !seen.load(Ordering::Relaxed));
        }
        lost
    });
    assert_eq!(lost, 0, "of {ROUNDS} doorbells nobody heard");
}
