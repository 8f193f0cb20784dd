// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Invalidation: when [`Invalidations::wait`] has returned nobody uses what was taken away.
//!
//! A page that is taken away is a cell that the publisher writes after its wait; a user reads it through a
//! translation that it may have cached. loom fails the check if any read is not ordered before the write.

#![expect(clippy::arc_with_non_send_sync, reason = "loom's threads take turns on a thread of the host")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicBool;
use loom::thread;
use model_check::invalidate::{Change, Invalidations, LOG_LEN, Record, User};
use model_check::sync::{Weakness, weaken};

use super::{check, check_fails};

/// What loom says of a read that the write does not come after.
const RACE: &str = "Causality violation";

/// A page and the table entry that leads to it.
struct Page {
    valid: AtomicBool,
    content: UnsafeCell<u32>,
}

impl Page {
    fn new() -> Arc<Self> {
        Arc::new(Page { valid: AtomicBool::new(true), content: UnsafeCell::new(0) })
    }

    /// What a driver and SYNC do: clear the entry, publish, wait; then the page is somebody else's.
    fn take_away(&self, shared: &Invalidations<()>, except: Option<usize>) {
        let generation = self.publish(shared);
        self.seize(shared, generation, except);
    }

    fn publish(&self, shared: &Invalidations<()>) -> u64 {
        self.valid.store(false, Ordering::Relaxed);
        shared.publish(RANGE)
    }

    fn seize(&self, shared: &Invalidations<()>, generation: u64, except: Option<usize>) {
        shared.wait(generation, except);
        self.content.with_mut(|_| ());
    }
}

const RANGE: Record = Record::Range { asid: 1, va: 0x1000, len: 0x1000 };

fn invalidations(users: usize) -> Arc<Invalidations<()>> {
    Arc::new(Invalidations::new(users, Arc::new(())))
}

/// A user and the translation that it may have cached.
struct Engine {
    user: User<()>,
    page: Arc<Page>,
    cached: bool,
}

impl Engine {
    fn new(shared: &Arc<Invalidations<()>>, number: usize, page: &Arc<Page>) -> Self {
        Engine { user: User::new(shared.clone(), number), page: page.clone(), cached: false }
    }

    fn apply(cached: &mut bool, change: Change<()>) {
        if let Change::Drop(RANGE | Record::All) = change {
            *cached = false;
        }
    }

    fn enter(&mut self) {
        self.user.enter(|change| Self::apply(&mut self.cached, change));
    }

    fn check(&mut self) {
        if self.user.behind() {
            self.user.catch_up(|change| Self::apply(&mut self.cached, change));
        }
    }

    /// One element: by the cached translation, or by one that is walked.
    fn element(&mut self) {
        self.cached = self.cached || self.page.valid.load(Ordering::Relaxed);
        if self.cached {
            self.page.content.with(|_| ());
        }
    }
}

/// A page goes while a user that is online uses it. The user lacks something until it leaves.
fn online(user: Option<Weakness>, publisher: Option<Weakness>) {
    let (shared, page) = (invalidations(1), Page::new());
    let mut engine = Engine::new(&shared, 0, &page);
    engine.enter();
    let engine = thread::spawn(move || {
        weaken(user);
        engine.element();
        engine.check();
        engine.element();
        engine.check();
        engine.element();
        weaken(None);
        engine.user.leave();
    });
    weaken(publisher);
    page.take_away(&shared, None);
    engine.join().unwrap();
}

#[test]
fn nobody_online_uses_what_was_taken() {
    check(|| online(None, None));
    check_fails(RACE, || online(Some(Weakness::RelaxedStores), None));
    check_fails(RACE, || online(None, Some(Weakness::RelaxedLoads)));
}

/// A page goes while a user, which knows its translation from before, comes online.
fn going_online(user: Option<Weakness>, publisher: Option<Weakness>) {
    let (shared, page) = (invalidations(1), Page::new());
    let mut engine = Engine::new(&shared, 0, &page);
    engine.cached = true;
    let engine = thread::spawn(move || {
        weaken(user);
        engine.enter();
        weaken(None);
        engine.element();
        engine.check();
        engine.element();
    });
    weaken(publisher);
    page.take_away(&shared, None);
    engine.join().unwrap();
}

#[test]
fn whoever_goes_online_is_waited_for_or_sees_the_record() {
    check(|| going_online(None, None));
    check_fails(RACE, || going_online(Some(Weakness::NoFence), None));
    check_fails(RACE, || going_online(None, Some(Weakness::NoFence)));
}

/// A page goes while a user leaves, and comes back with the translation that it had.
fn leaving(user: Option<Weakness>) {
    let (shared, page) = (invalidations(1), Page::new());
    let mut engine = Engine::new(&shared, 0, &page);
    engine.enter();
    let engine = thread::spawn(move || {
        engine.element();
        weaken(user);
        engine.user.leave();
        weaken(None);
        engine.enter();
        engine.element();
    });
    page.take_away(&shared, None);
    engine.join().unwrap();
}

#[test]
fn whoever_leaves_has_done_its_elements_before() {
    check(|| leaving(None));
    check_fails(RACE, || leaving(Some(Weakness::RelaxedStores)));
}

/// The record of a page is overwritten in the log while a user has yet to see it.
fn overrun(later: usize) {
    let (shared, page) = (invalidations(1), Page::new());
    let mut engine = Engine::new(&shared, 0, &page);
    engine.enter();
    engine.element();
    page.valid.store(false, Ordering::Relaxed);
    let generation = shared.publish(RANGE);
    (0..LOG_LEN - 2).for_each(|_| _ = shared.publish(Record::Attention));
    let engine = thread::spawn(move || {
        engine.element();
        engine.check();
        engine.element();
    });
    (0..later).for_each(|_| _ = shared.publish(Record::Attention));
    shared.wait(generation, None);
    page.content.with_mut(|_| ());
    engine.join().unwrap();
}

#[test]
fn a_record_that_the_log_has_lost_still_counts() {
    check(|| overrun(2));
}

/// A user's snapshot of memory; what is unmapped is written.
struct Holder {
    user: User<Memory>,
    memory: Arc<Memory>,
}

#[derive(Debug)]
struct Memory(UnsafeCell<u32>);

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Memory(UnsafeCell::new(0)))
    }
}

impl Holder {
    fn replace(memory: &mut Arc<Memory>, change: Change<Memory>) {
        if let Change::Snapshot(snapshot) = change {
            *memory = snapshot;
        }
    }

    fn enter(&mut self) {
        self.user.enter(|change| Self::replace(&mut self.memory, change));
    }

    fn elements(&mut self) {
        self.memory.0.with(|_| ());
        if self.user.behind() {
            self.user.catch_up(|change| Self::replace(&mut self.memory, change));
        }
        self.memory.0.with(|_| ());
    }
}

/// Memory is replaced while a user has it, or comes online with what it had; later it lacks something when
/// it comes back.
fn replaced(online: bool, user: Option<Weakness>) {
    let old = Memory::new();
    let shared = Arc::new(Invalidations::new(1, old.clone()));
    let mut holder = Holder { user: User::new(shared.clone(), 0), memory: shared.snapshot() };
    if online {
        holder.enter();
    }
    let holder = thread::spawn(move || {
        if !online {
            holder.enter();
        }
        holder.elements();
        holder.user.leave();
        weaken(user);
        holder.enter();
        weaken(None);
        holder.elements();
    });
    shared.wait(shared.replace(Memory::new()), None);
    old.0.with_mut(|_| ());
    holder.join().unwrap();
}

#[test]
fn nobody_uses_memory_that_was_replaced() {
    check(|| replaced(true, None));
    check(|| replaced(false, None));
    check_fails(RACE, || replaced(true, Some(Weakness::RelaxedStores)));
}

/// A user publishes and waits too, as the control thread does, while another thread takes away what it
/// uses itself. That one begins its wait late: loom lets two threads that spin starve a third.
fn publishing_user() {
    let (shared, ours, theirs) = (invalidations(2), Page::new(), Page::new());
    let mut engine = Engine::new(&shared, 0, &ours);
    let mut control = Engine::new(&shared, 1, &theirs);
    engine.enter();
    control.enter();
    let engine = thread::spawn(move || {
        engine.element();
        engine.check();
        engine.element();
    });
    let control = thread::spawn({
        let shared = shared.clone();
        move || {
            control.element();
            ours.take_away(&shared, Some(1));
            control.check();
            control.element();
        }
    });
    let generation = theirs.publish(&shared);
    engine.join().unwrap();
    theirs.seize(&shared, generation, None);
    control.join().unwrap();
}

#[test]
fn a_user_may_publish_and_wait() {
    check(publishing_user);
}

/// Two publishers at a time, each of a page that the user may have.
fn two_publishers() {
    let (shared, one, two) = (invalidations(1), Page::new(), Page::new());
    let mut engine = Engine::new(&shared, 0, &one);
    engine.enter();
    let engine = thread::spawn({
        let two = two.clone();
        move || {
            engine.element();
            engine.check();
            engine.page = two;
            engine.cached = false;
            engine.element();
            engine.check();
            engine.element();
        }
    });
    let publisher = thread::spawn({
        let (shared, two) = (shared.clone(), two.clone());
        move || two.publish(&shared)
    });
    one.take_away(&shared, None);
    let generation = publisher.join().unwrap();
    two.seize(&shared, generation, None);
    engine.join().unwrap();
}

#[test]
fn each_publisher_may_rely_on_its_own_wait() {
    check(two_publishers);
}

/// Who sees a generation sees what its publisher did before.
fn latest(publisher: Option<Weakness>, reader: Option<Weakness>) {
    let (shared, page) = (invalidations(0), Page::new());
    let publisher = thread::spawn({
        let (shared, page) = (shared.clone(), page.clone());
        move || {
            weaken(publisher);
            page.take_away(&shared, None);
            shared.publish(Record::Attention);
        }
    });
    weaken(reader);
    if shared.latest() == 2 {
        page.content.with(|_| ());
    }
    publisher.join().unwrap();
}

#[test]
fn the_latest_generation_comes_with_what_was_done_before() {
    check(|| latest(None, None));
    check_fails(RACE, || latest(Some(Weakness::RelaxedStores), None));
    check_fails(RACE, || latest(None, Some(Weakness::RelaxedLoads)));
}
