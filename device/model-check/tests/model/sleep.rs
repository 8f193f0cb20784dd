// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sleeping: no wake-up is lost. One that is lost leaves a thread asleep for ever, which loom calls a deadlock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loom::sync::atomic::AtomicU32;
use loom::thread;
use model_check::sleep::Sleepers;
use model_check::sync::{Weakness, weaken};

use super::{check, check_fails};

/// What loom says when nobody can go on.
const ASLEEP: &str = "deadlock";

/// Work that is waited for, and those who wait.
struct Office {
    sleepers: Sleepers,
    work: AtomicU32,
}

impl Office {
    fn new(threads: u32) -> Arc<Self> {
        Arc::new(Office { sleepers: Sleepers::new(threads), work: AtomicU32::new(0) })
    }

    fn bring_work(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one piece of work, and sleeps while there is none.
    fn work(&self) {
        let take = |work: u32| work.checked_sub(1);
        while self.work.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            self.sleepers.sleep(|_| self.work.load(Ordering::Relaxed) == 0);
        }
    }
}

/// One sleeps, one wakes.
fn one(sleeper: Option<Weakness>, waker: Option<Weakness>) {
    let office = Office::new(1);
    let worker = thread::spawn({
        let office = office.clone();
        move || {
            weaken(sleeper);
            office.work();
        }
    });
    weaken(waker);
    office.bring_work();
    office.sleepers.wake_one();
    worker.join().unwrap();
}

#[test]
fn no_wake_up_is_lost() {
    check(|| one(None, None));
    check_fails(ASLEEP, || one(Some(Weakness::NoFence), None));
    check_fails(ASLEEP, || one(None, Some(Weakness::NoFence)));
}

/// Two sleep, and each piece of work wakes one.
fn two(all: bool) {
    let office = Office::new(2);
    let workers = [(); 2].map(|()| {
        let office = office.clone();
        thread::spawn(move || office.work())
    });
    office.bring_work();
    if !all {
        office.sleepers.wake_one();
    }
    office.bring_work();
    if all {
        office.sleepers.wake_all()
    } else {
        office.sleepers.wake_one()
    }
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

#[test]
fn each_wake_up_wakes_one_more() {
    check(|| two(false));
}

#[test]
fn waking_all_leaves_nobody() {
    check(|| two(true));
}

/// Both would sleep while the other is awake, as engines do that only keep each other company.
fn company(last_sleeps: bool) {
    let office = Office::new(2);
    let stay = move |office: &Office| {
        let mut alone = false;
        office.sleepers.sleep(|others_awake| {
            alone = others_awake == 0;
            last_sleeps || !alone
        });
        if alone {
            office.sleepers.wake_all();
        }
    };
    let other = thread::spawn({
        let office = office.clone();
        move || stay(&office)
    });
    stay(&office);
    other.join().unwrap();
}

#[test]
fn the_last_one_awake_knows_it() {
    check(|| company(false));
    check_fails(ASLEEP, || company(true));
}

/// One naps while there is no work, one wakes. In the model no time passes, so a nap ends only if it is woken.
fn napping(sleeper: Option<Weakness>, waker: Option<Weakness>) {
    let office = Office::new(1);
    let worker = thread::spawn({
        let office = office.clone();
        move || {
            weaken(sleeper);
            while office.work.load(Ordering::Relaxed) == 0 {
                office.sleepers.nap(Duration::from_millis(1), || office.work.load(Ordering::Relaxed) == 0);
            }
        }
    });
    weaken(waker);
    office.bring_work();
    office.sleepers.wake_one();
    worker.join().unwrap();
}

#[test]
fn a_nap_ends_when_there_is_work() {
    check(|| napping(None, None));
    check_fails(ASLEEP, || napping(Some(Weakness::NoFence), None));
    check_fails(ASLEEP, || napping(None, Some(Weakness::NoFence)));
}

/// One naps and looks around by itself; the other may rely on that.
fn guarded() {
    let office = Office::new(2);
    let guard = thread::spawn({
        let office = office.clone();
        move || office.sleepers.nap(Duration::from_millis(1), || office.work.load(Ordering::Relaxed) == 0)
    });
    assert!(!office.sleepers.sleep(|others_awake| others_awake == 0), "who naps is awake");
    office.bring_work();
    office.sleepers.wake_all();
    guard.join().unwrap();
}

#[test]
fn who_naps_counts_as_awake() {
    check(guarded);
}
