// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Both halves of spec 4.3 raced: the submitter's, as the mock driver has it, and the words that the device raises and
//! looks at. The device does so on a doorbell page of no queue, so that the test says when. Around them, when the
//! engine goes to sleep is raced in `device/src/engine.rs`; the library's half in `guest/src/ring.rs`.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use svmx_abi::doorbell::queue as words;
use svmx_abi::regs::Counter;
use svmx_device::queue::{Look, Rings, State};

use mock_driver::{Meeting, Mock};

const ROUNDS: u32 = 200_000;
/// A page whose queue nobody makes.
const PAGE: u32 = 400;

/// A queue for that page; nothing but its doorbells is looked at.
fn nobodys() -> State {
    let (sq_log2, cq_log2, vector) = (4, 4, 2);
    State::new(Rings { queue: PAGE, asid: 1, root: 0, sq_base: 0, sq_log2, cq_base: 0, cq_log2, vector })
}

#[test]
fn a_submitter_that_sees_no_need_to_kick_was_seen() {
    let mock = Mock::new();
    let model = mock.device.lock().model().clone();
    let (meeting, seen) = (Meeting::default(), AtomicBool::new(false));
    let lost = thread::scope(|scope| {
        scope.spawn(|| {
            let (page, state) = (model.doorbells.queue(PAGE), nobodys());
            for round in 0..ROUNDS {
                page.need_kick.store(0);
                meeting.meet(0);
                (0..round % 256).for_each(|turn| _ = black_box(turn));
                page.need_kick.raise();
                seen.store(state.look(page) == Look::Ready, Ordering::Relaxed);
                meeting.meet(0);
            }
        });
        let mut lost = 0;
        for _ in 0..ROUNDS {
            let kicks = mock.counter(Counter::Kicks);
            mock.doorbell(PAGE, words::SQ_TAIL).store(0, Ordering::Relaxed);
            meeting.meet(1);
            mock.ring(PAGE, words::SQ_TAIL, 1);
            meeting.meet(1);
            let kicked = mock.counter(Counter::Kicks) > kicks;
            lost += u32::from(!kicked && !seen.load(Ordering::Relaxed));
        }
        lost
    });
    assert_eq!(lost, 0, "of {ROUNDS} doorbells nobody heard");
}
