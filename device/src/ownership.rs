// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who may read, compute and write on an *atomic* page: an engine holds such a page as a cache holds a line,
//! and works on it without a lock for as long as nobody else asks (spec 6.3).
//!
//! A table has a word for each guest-physical frame, modulo its length: two frames that share a word are in
//! each other's way and nothing worse. By frame and not by host address, because two users may know a page by
//! two snapshots while a new one spreads. What is done to a page, and by which command, is not known here.
//!
//! A word is in one of four states. Each transition is a compare-and-swap of the whole word, or a store by the
//! only one who may change it, and raises the version in its upper 48 bits, so a word never comes back.
//!
//! | State | Means | Left by |
//! |---|---|---|
//! | `FREE` | nobody uses the frame | anyone, who then owns it |
//! | `OWNED(u)` | *u* uses it without a lock | anyone, who asks for it; *u* |
//! | `WANTED(u)` | the same, and somebody asks | *u*, who shares or frees it; anyone **after *u* has passed**, who then owns it |
//! | `SHARED` | any user uses it, under the word's lock | whoever holds the lock |
//!
//! *Passed* is a matter of [`crate::invalidate`]: a user holds what it was given until it catches up with the
//! log, and asks again before its next access. Who asks marks the word, publishes a record, and waits for *u*'s
//! `seen` to reach it. Then:
//!
//! - *Nobody but `u` uses a frame that `u` owns.* Others own it only by taking it when *u* has passed. *u*'s
//!   accesses before it passed happen before those of the new owner (release of `seen`, acquire by who asked);
//!   at its next access *u* loads the word anew, and as the mark was made before the record was published, and
//!   the log's mutex is between, *u* sees the mark or what came after it. The version makes sure that the mark
//!   which is there when the word is taken is the one that *u* has passed, and no later one.
//! - *Nobody uses a shared frame but under its lock*, because the word is looked at again under the lock, and only
//!   the lock's holder makes it `OWNED`. A lock's holder has seen whatever was done under it before. Who owned the
//!   frame and shares it, because it came to the word by chance while it was asked, may not have seen the record
//!   yet: it is told ([`Claimant::take_given_up`]), as it may remember the frame for its own.
//! - *Whoever gives up a word* does it with release ordering, whoever finds it so loads with acquire.
//!
//! No user waits in here: it asks, is told "not now", and comes back at a time of its own, having caught up
//! with the log meanwhile. So two users who ask for each other's pages both pass. The lock is held for one
//! access. A thread that only visits (the control thread) frees what it owned at once, so nobody has to wait
//! until it passes.
//!
//! A frame that two users want at the same time is shared: the owner, seeing the mark, does not insist. A frame
//! that one user alone has used some times while it was shared becomes its own again.

use std::sync::atomic::Ordering;

use crate::invalidate::{Invalidations, Record};
use crate::sync::{AtomicU64, Mutex, MutexGuard};

/// Bytes of a frame, as binary logarithm.
const FRAME_SHIFT: u32 = 12;
/// Locks of shared frames.
const LOCKS: usize = 1024;
/// Uses of a shared frame by one user alone before it is that user's.
const RUN: u64 = 32;

const USER_BITS: u32 = 8;
const STATE_SHIFT: u32 = USER_BITS;
const RUN_SHIFT: u32 = STATE_SHIFT + 2;
const VERSION_SHIFT: u32 = 16;
const _: () = assert!(RUN < 1 << (VERSION_SHIFT - RUN_SHIFT));

/// Users that a table can tell apart.
pub const MAX_USERS: usize = 1 << USER_BITS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Owned,
    Wanted,
    Shared,
}

/// A word of the table: user, state, run of uses, version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn user(self) -> usize {
        (self.0 & (MAX_USERS as u64 - 1)) as usize
    }
    fn state(self) -> State {
        [State::Free, State::Owned, State::Wanted, State::Shared][(self.0 >> STATE_SHIFT & 3) as usize]
    }
    fn run(self) -> u64 {
        self.0 >> RUN_SHIFT & ((1 << (VERSION_SHIFT - RUN_SHIFT)) - 1)
    }

    /// What comes after it.
    fn then(self, state: State, user: usize, run: u64) -> Word {
        let version = (self.0 >> VERSION_SHIFT).wrapping_add(1) << VERSION_SHIFT;
        Word(version | run << RUN_SHIFT | (state as u64) << STATE_SHIFT | user as u64)
    }
}

/// The table.
#[derive(Debug)]
pub struct Ownership {
    words: Box<[AtomicU64]>,
    locks: Box<[Lock]>,
}

/// Alone in its cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Lock(Mutex<()>);

/// A frame that may be used.
#[derive(Debug)]
pub enum Hold<'o> {
    /// Until this user catches up with the log.
    Owned,
    /// Until this is dropped.
    Shared(Shared<'o>),
}

/// The lock of a shared frame.
#[derive(Debug)]
pub struct Shared<'o> {
    place: &'o AtomicU64,
    me: usize,
    _lock: MutexGuard<'o, ()>,
}

impl Drop for Shared<'_> {
    /// Counts the use; the frame may become the user's own.
    fn drop(&mut self) {
        // Nobody else changes the word of a shared frame: the lock is still held.
        let word = Word(self.place.load(Ordering::Relaxed));
        let run = if word.user() == self.me { word.run() + 1 } else { 0 };
        let next = if run >= RUN {
            word.then(State::Owned, self.me, 0)
        } else {
            word.then(State::Shared, self.me, run)
        };
        self.place.store(next.0, Ordering::Release);
    }
}

/// What became of a claim.
enum Claim<'o> {
    Held(Hold<'o>),
    /// The word as it is: marked, its owner asked.
    Asked(Word),
}

impl Ownership {
    /// For frames that use words, a power of two of them and all zero, in turn.
    pub fn new(words: Box<[AtomicU64]>) -> Self {
        assert!(words.len().is_power_of_two());
        Ownership { words, locks: (0..LOCKS).map(|_| Lock(Mutex::new(()))).collect() }
    }

    /// The user gives up a frame that it owns. If it does not own it nothing happens.
    pub fn release(&self, me: usize, frame: u64) {
        let place = self.place(frame);
        let mut word = Word(place.load(Ordering::Relaxed));
        while matches!(word.state(), State::Owned | State::Wanted) && word.user() == me {
            match exchange(place, word, word.then(State::Free, 0, 0)) {
                Ok(()) => return,
                Err(now) => word = now,
            }
        }
    }

    fn index(&self, frame: u64) -> usize {
        (frame >> FRAME_SHIFT) as usize & (self.words.len() - 1)
    }

    fn place(&self, frame: u64) -> &AtomicU64 {
        &self.words[self.index(frame)]
    }

    /// Sets `given_up` if a frame that was the user's own is shared from here on.
    fn claim(&self, me: usize, frame: u64, given_up: &mut bool) -> Claim<'_> {
        let place = self.place(frame);
        let mut word = Word(place.load(Ordering::Acquire));
        loop {
            let mine = word.user() == me;
            let (next, claim) = match word.state() {
                State::Owned if mine => return Claim::Held(Hold::Owned),
                State::Free => (word.then(State::Owned, me, 0), Some(Claim::Held(Hold::Owned))),
                State::Wanted if mine => (word.then(State::Shared, me, 0), None),
                State::Wanted => return Claim::Asked(word),
                State::Owned => {
                    let marked = word.then(State::Wanted, word.user(), 0);
                    (marked, Some(Claim::Asked(marked)))
                }
                State::Shared => match self.share(me, frame) {
                    Ok(shared) => return Claim::Held(Hold::Shared(shared)),
                    Err(now) => {
                        word = now;
                        continue;
                    }
                },
            };
            match (exchange(place, word, next), claim) {
                (Ok(()), Some(claim)) => return claim,
                (Ok(()), None) => {
                    *given_up = true;
                    word = next;
                }
                (Err(now), _) => word = now,
            }
        }
    }

    /// Takes the lock of a shared frame, unless it turns out that the frame is no longer shared.
    fn share(&self, me: usize, frame: u64) -> Result<Shared<'_>, Word> {
        let place = self.place(frame);
        let lock = self.locks[self.index(frame) % LOCKS].0.lock();
        let word = Word(place.load(Ordering::Acquire));
        if word.state() == State::Shared { Ok(Shared { place, me, _lock: lock }) } else { Err(word) }
    }

    /// Takes a frame whose owner has passed since the word became what it was.
    fn take(&self, me: usize, frame: u64, marked: Word) -> bool {
        exchange(self.place(frame), marked, marked.then(State::Owned, me, 0)).is_ok()
    }
}

fn exchange(place: &AtomicU64, old: Word, new: Word) -> Result<(), Word> {
    let done = place.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire);
    done.map(drop).map_err(Word)
}

/// A user's side: what it has asked for.
#[derive(Debug)]
pub struct Claimant {
    me: usize,
    asked: Option<Asked>,
    given_up: bool,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    frame: u64,
    marked: Word,
    /// The record that the owner has to have seen.
    generation: u64,
}

impl Claimant {
    /// For the user of that number, below [`MAX_USERS`], of a log.
    pub fn new(me: usize) -> Self {
        assert!(me < MAX_USERS);
        Claimant { me, asked: None, given_up: false }
    }

    /// Asks for a frame. `None`: not now; its owner has been told, and this user has to catch up with the log
    /// before it asks again.
    pub fn hold<'o, S>(
        &mut self,
        ownership: &'o Ownership,
        invalidations: &Invalidations<S>,
        frame: u64,
    ) -> Option<Hold<'o>> {
        let marked = match ownership.claim(self.me, frame, &mut self.given_up) {
            Claim::Held(hold) => return Some(hold),
            Claim::Asked(marked) => marked,
        };
        let asked = match self.asked.filter(|asked| (asked.frame, asked.marked) == (frame, marked)) {
            Some(asked) => asked,
            // The mark was made before this record, by whomever.
            None => Asked { frame, marked, generation: invalidations.publish(Record::Recall) },
        };
        self.asked = Some(asked);
        let passed = invalidations.passed(marked.user(), asked.generation);
        (passed && ownership.take(self.me, frame, marked)).then_some(Hold::Owned)
    }

    /// Whether the user has, since the last time, shared a frame that was its own: what it remembers of frames
    /// that it owns is void, before it relies on that again. The record of who asked may come later.
    pub fn take_given_up(&mut self) -> bool {
        std::mem::take(&mut self.given_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invalidate::User;
    use std::sync::Arc;

    const FRAME: u64 = 5 << FRAME_SHIFT;

    struct Bench {
        ownership: Ownership,
        log: Arc<Invalidations<()>>,
    }

    impl Bench {
        fn new() -> Self {
            let words = (0..8).map(|_| AtomicU64::new(0)).collect();
            Bench { ownership: Ownership::new(words), log: Arc::new(Invalidations::new(3, Arc::new(()))) }
        }
        fn hold(&self, claimant: &mut Claimant) -> Option<Hold<'_>> {
            claimant.hold(&self.ownership, &self.log, FRAME)
        }
        fn owns(&self, claimant: &mut Claimant) -> bool {
            matches!(self.hold(claimant), Some(Hold::Owned))
        }
        fn shares(&self, claimant: &mut Claimant) -> bool {
            matches!(self.hold(claimant), Some(Hold::Shared(_)))
        }
    }

    #[test]
    fn whoever_comes_first_owns() {
        let bench = Bench::new();
        let [mut a, mut b] = [0, 1].map(Claimant::new);
        assert!(bench.owns(&mut a) && bench.owns(&mut a));
        // An alias of the frame is the same word; another frame is not.
        let mut hold = |frame| matches!(b.hold(&bench.ownership, &bench.log, frame), Some(Hold::Owned));
        assert!(hold(6 << FRAME_SHIFT));
        let mut online = User::new(bench.log.clone(), 0);
        online.enter(|_| ());
        assert!(!hold(FRAME + (8 << FRAME_SHIFT)));
    }

    #[test]
    fn an_owner_is_waited_for_until_it_has_passed() {
        let bench = Bench::new();
        let [mut a, mut b] = [0, 1].map(Claimant::new);
        let mut online = User::new(bench.log.clone(), 0);
        online.enter(|_| ());
        assert!(bench.owns(&mut a));
        assert!(bench.hold(&mut b).is_none() && bench.hold(&mut b).is_none());
        assert_eq!(bench.log.latest(), 1, "it is told once");
        online.catch_up(|_| ());
        assert!(bench.owns(&mut b) && bench.owns(&mut b));
        assert!(bench.hold(&mut a).is_some(), "nobody is online as b: it is not waited for");
    }

    #[test]
    fn an_owner_that_comes_back_first_shares() {
        let bench = Bench::new();
        let [mut a, mut b] = [0, 1].map(Claimant::new);
        let mut online = [0, 1].map(|user| User::new(bench.log.clone(), user));
        online.iter_mut().for_each(|user| user.enter(|_| ()));
        assert!(bench.owns(&mut a) && bench.hold(&mut b).is_none());
        assert!(bench.shares(&mut a));
        online[0].catch_up(|_| ());
        assert!(bench.shares(&mut b), "what was asked for is another word now");
        // Taking turns it stays shared; alone a user owns it again.
        for _ in 0..2 * RUN {
            assert!(bench.shares(&mut a) && bench.shares(&mut b));
        }
        for _ in 0..RUN {
            assert!(bench.shares(&mut b));
        }
        assert!(bench.owns(&mut b) && bench.hold(&mut a).is_none());
    }

    #[test]
    fn a_mark_that_came_later_is_not_the_one_that_was_passed() {
        let bench = Bench::new();
        let [mut a, mut b, mut c] = [0, 1, 2].map(Claimant::new);
        let mut online = [0, 1].map(|user| User::new(bench.log.clone(), user));
        online.iter_mut().for_each(|user| user.enter(|_| ()));
        assert!(bench.owns(&mut a) && bench.hold(&mut b).is_none());
        online[0].catch_up(|_| ());
        // It shares, owns again, and is asked by a third: the word looks as it did.
        (0..RUN).for_each(|_| assert!(bench.shares(&mut a)));
        assert!(bench.owns(&mut a) && bench.hold(&mut c).is_none());
        assert!(bench.hold(&mut b).is_none(), "the owner has not passed since");
        online[0].catch_up(|_| ());
        assert!(bench.owns(&mut b) && bench.hold(&mut c).is_none());
    }

    #[test]
    fn a_visitor_leaves_nothing_behind() {
        let bench = Bench::new();
        let [mut a, mut visitor] = [0, 2].map(Claimant::new);
        let mut online = User::new(bench.log.clone(), 2);
        online.enter(|_| ());
        assert!(bench.owns(&mut visitor));
        assert!(bench.hold(&mut a).is_none());
        bench.ownership.release(2, FRAME);
        assert!(bench.owns(&mut a));
        bench.ownership.release(2, FRAME);
        assert!(bench.owns(&mut a), "what another owns is not released");
    }
}
