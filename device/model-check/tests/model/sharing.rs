// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the word of a *shared* frame is loaded and stored with, under the frame's lock: one user makes the frame its own
//! and shares it again, while another comes to it by what it saw before. Frames that are owned are `ownership`'s.

#![expect(clippy::arc_with_non_send_sync, reason = "loom's threads take turns on a thread of the host")]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use model_check::invalidate::{Invalidations, User};
use model_check::ownership::{Claimant, Ownership};
use model_check::sync::{AtomicU64, Weakness, weaken};

use super::{check, check_fails};

/// What loom says of two writes that are not ordered.
const RACE: &str = "Causality violation";
/// Uses of a shared frame by one user after which it is its own.
const RUN: u32 = 32;

/// One frame, which every use writes.
struct Frame {
    ownership: Ownership,
    log: Arc<Invalidations<()>>,
    content: UnsafeCell<u32>,
}

impl Frame {
    fn new(users: usize) -> Arc<Self> {
        let ownership = Ownership::new(Box::new([AtomicU64::new(0)]));
        let log = Arc::new(Invalidations::new(users, Arc::new(())));
        Arc::new(Frame { ownership, log, content: UnsafeCell::new(0) })
    }

    fn user(&self, number: usize) -> User<()> {
        let mut user = User::new(self.log.clone(), number);
        user.enter(|_| ());
        user
    }

    /// A use, if the frame is to be had.
    fn access(&self, claimant: &mut Claimant) -> bool {
        let hold = claimant.hold(&self.ownership, &self.log, 0);
        if hold.is_some() {
            self.content.with_mut(|_| ());
        }
        hold.is_some()
    }
}

/// The frame is shared. One uses it until it is its own, then without a lock, and shares it with a third who asks; another
/// has seen it shared at first, takes the lock when it is shared again, and lacks something.
fn again(first: Option<Weakness>, other: Option<Weakness>) {
    let frame = Frame::new(3);
    let [mut one, mut two, mut three] = [0, 1, 2].map(Claimant::new);
    let online = frame.user(0);
    assert!(frame.access(&mut one) && !frame.access(&mut two));
    (1..RUN).for_each(|_| assert!(frame.access(&mut one)));
    let thread = thread::spawn({
        let frame = frame.clone();
        move || {
            weaken(other);
            frame.access(&mut two);
            weaken(None);
        }
    });
    weaken(first);
    frame.access(&mut one);
    frame.access(&mut one);
    frame.access(&mut three);
    frame.access(&mut one);
    weaken(None);
    drop(online);
    thread.join().unwrap();
}

#[test]
fn a_frame_that_is_shared_again_comes_with_what_was_done_to_it() {
    check(|| again(None, None));
    check_fails(RACE, || again(None, Some(Weakness::RelaxedLoadsUnderLock)));
}

#[test]
fn what_is_stored_under_the_lock_needs_no_order_of_its_own() {
    let weak = Some(Weakness::RelaxedStoresUnderLock);
    check(move || again(weak, weak));
}
