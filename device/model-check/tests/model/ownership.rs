// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ownership of *atomic* pages: no two users use a frame at the same time, and each use comes after the one
//! before. A frame is a cell that every use writes; loom fails the check if two writes are not ordered.

#![expect(clippy::arc_with_non_send_sync, reason = "loom's threads take turns on a thread of the host")]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use model_check::invalidate::{Invalidations, User};
use model_check::ownership::{Claimant, Hold, Ownership};
use model_check::sync::{AtomicU64, Weakness, weaken, yield_now};

use super::{check, check_fails};

/// What loom says of two writes that are not ordered.
const RACE: &str = "Causality violation";
/// Uses of a shared frame by one user after which it is its own.
const RUN: u32 = 32;

/// Two frames, and what their users share.
struct Frames {
    ownership: Ownership,
    log: Arc<Invalidations<()>>,
    contents: [UnsafeCell<u32>; 2],
}

impl Frames {
    fn new(users: usize) -> Arc<Self> {
        let ownership = Ownership::new(Box::new([(); 2].map(|()| AtomicU64::new(0))));
        let log = Arc::new(Invalidations::new(users, Arc::new(())));
        Arc::new(Frames { ownership, log, contents: [(); 2].map(|()| UnsafeCell::new(0)) })
    }
}

/// A user, as an engine is one: it remembers the frames that it owns until it is told otherwise.
struct Engine {
    frames: Arc<Frames>,
    user: User<()>,
    claimant: Claimant,
    number: usize,
    owned: [bool; 2],
}

impl Engine {
    /// One that is online.
    fn new(frames: &Arc<Frames>, number: usize) -> Self {
        let mut user = User::new(frames.log.clone(), number);
        user.enter(|_| ());
        Engine { frames: frames.clone(), user, claimant: Claimant::new(number), number, owned: [false; 2] }
    }

    /// An access to the first frame, if it is to be had.
    fn access(&mut self) -> bool {
        self.access_to(0)
    }

    /// A check, the claim unless the frame is known to be its own, and the use.
    fn access_to(&mut self, frame: usize) -> bool {
        self.check();
        if self.claimant.take_given_up() {
            self.owned = [false; 2];
        }
        if self.owned[frame] {
            self.frames.contents[frame].with_mut(|_| ());
            return true;
        }
        self.claim_and_use(frame)
    }

    fn enter(&mut self) {
        self.user.enter(|_| self.owned = [false; 2]);
    }

    fn check(&mut self) {
        if self.user.behind() {
            self.user.catch_up(|_| self.owned = [false; 2]);
        }
    }

    fn claim_and_use(&mut self, frame: usize) -> bool {
        let Engine { frames, claimant, owned, .. } = self;
        let Some(hold) = claimant.hold(&frames.ownership, &frames.log, (frame as u64) << 12) else {
            return false;
        };
        frames.contents[frame].with_mut(|_| ());
        owned[frame] |= matches!(hold, Hold::Owned);
        drop(hold);
        true
    }

    /// Accesses until one was had.
    fn insist_on(&mut self, frame: usize) {
        while !self.access_to(frame) {
            yield_now();
        }
    }

    /// What the control thread does: one access, without a check, and nothing is left behind.
    fn visit(&mut self, frame: usize) {
        while !self.claim_and_use(frame) {
            yield_now();
        }
        self.owned[frame] = false;
        self.frames.ownership.release(self.number, (frame as u64) << 12);
    }
}

/// One owns the frame and goes on using it; another wants it.
fn owned(owner: Option<Weakness>, other: Option<Weakness>) {
    let frames = Frames::new(2);
    let (mut engine, mut wanting) = (Engine::new(&frames, 0), Engine::new(&frames, 1));
    assert!(engine.access());
    let owner = thread::spawn(move || {
        weaken(owner);
        engine.access();
        engine.access();
        weaken(None);
    });
    weaken(other);
    wanting.insist_on(0);
    weaken(None);
    drop(wanting);
    owner.join().unwrap();
}

#[test]
fn an_owned_frame_is_taken_when_its_owner_has_passed() {
    check(|| owned(None, None));
    check_fails(RACE, || owned(Some(Weakness::RelaxedStores), None));
    check_fails(RACE, || owned(None, Some(Weakness::RelaxedLoads)));
}

/// One owns the frame and remembers it, but comes to it by a way on which it asks, as accesses by another translation
/// of the frame do; another wants it.
fn detour(other: Option<Weakness>) {
    let frames = Frames::new(2);
    let (mut engine, mut wanting) = (Engine::new(&frames, 0), Engine::new(&frames, 1));
    assert!(engine.access());
    let owner = thread::spawn(move || {
        engine.check();
        engine.claim_and_use(0);
        engine.access();
    });
    weaken(other);
    wanting.insist_on(0);
    weaken(None);
    drop(wanting);
    owner.join().unwrap();
}

#[test]
fn an_owner_that_shares_by_chance_does_not_go_on_as_one() {
    check(|| detour(None));
    check_fails(RACE, || detour(Some(Weakness::RelaxedLoads)));
}

/// One owns the frame and sleeps; it comes back while another takes it.
fn asleep(owner: Option<Weakness>, other: Option<Weakness>) {
    let frames = Frames::new(2);
    let (mut engine, mut wanting) = (Engine::new(&frames, 0), Engine::new(&frames, 1));
    assert!(engine.access());
    engine.user.leave();
    let owner = thread::spawn(move || {
        weaken(owner);
        engine.enter();
        weaken(None);
        engine.claim_and_use(0);
        engine.access();
    });
    weaken(other);
    wanting.access();
    wanting.access();
    weaken(None);
    owner.join().unwrap();
}

#[test]
fn an_owner_that_sleeps_does_not_come_back_unnoticed() {
    check(|| asleep(None, None));
    check_fails(RACE, || asleep(Some(Weakness::NoFence), None));
    check_fails(RACE, || asleep(None, Some(Weakness::NoFence)));
}

/// Both use a frame that they share, and one of them has nearly had it long enough for it to be its own.
fn shared() {
    let frames = Frames::new(2);
    let (mut engine, mut wanting) = (Engine::new(&frames, 0), Engine::new(&frames, 1));
    assert!(engine.access() && !wanting.access());
    (0..RUN - 2).for_each(|_| assert!(engine.access()));
    let thread = thread::spawn(move || {
        (0..3).for_each(|_| _ = engine.access());
    });
    wanting.access();
    wanting.access();
    thread.join().unwrap();
}

#[test]
fn a_shared_frame_is_used_under_its_lock_until_it_is_owned() {
    check(shared);
}

/// The control thread visits a frame of which an engine is fond, which gets it though that thread does not
/// pass.
fn visited(visitor: Option<Weakness>, engine: Option<Weakness>) {
    let frames = Frames::new(2);
    let (mut fond, mut control) = (Engine::new(&frames, 0), Engine::new(&frames, 1));
    let thread = thread::spawn(move || {
        weaken(engine);
        fond.insist_on(0);
        fond.insist_on(0);
        weaken(None);
    });
    weaken(visitor);
    control.visit(0);
    weaken(None);
    thread.join().unwrap();
}

#[test]
fn a_visitor_frees_what_it_used() {
    check(|| visited(None, None));
    check_fails(RACE, || visited(Some(Weakness::RelaxedExchanges), None));
    check_fails(RACE, || visited(None, Some(Weakness::RelaxedExchanges)));
}

/// Each owns what the other wants.
fn crossed() {
    let frames = Frames::new(2);
    let (mut one, mut two) = (Engine::new(&frames, 0), Engine::new(&frames, 1));
    assert!(one.access_to(0) && two.access_to(1));
    let thread = thread::spawn(move || one.insist_on(1));
    two.insist_on(0);
    drop(two);
    thread.join().unwrap();
}

#[test]
fn two_that_want_each_others_frames_both_get_them() {
    check(crossed);
}

/// One was asked, passed, and owns the frame again; then a third asks, while the first to ask comes back.
fn asked_before() {
    let frames = Frames::new(3);
    let [mut engine, mut early, mut late] = [0, 1, 2].map(|number| Engine::new(&frames, number));
    assert!(engine.access() && !early.access());
    (0..RUN).for_each(|_| assert!(engine.access()));
    let early = thread::spawn(move || early.access());
    let late = thread::spawn(move || late.access());
    engine.access();
    engine.access();
    drop(engine);
    early.join().unwrap();
    late.join().unwrap();
}

#[test]
fn a_mark_that_came_later_is_not_the_one_that_was_passed() {
    check(asked_before);
}
