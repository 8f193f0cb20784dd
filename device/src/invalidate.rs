// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Invalidation and quiescence: how a change of translations reaches everyone who uses them.
//!
//! Knows nothing of queues, transports or tables: *users* (engines, the control thread) act on a
//! snapshot `S` and on translations cached from it; *publishers* (control thread, transport thread)
//! append records to a log and can wait until no user acts on what a record took away.
//!
//! The generation is the number of records ever published.
//!
//! - A user, between two elements, loads the generation (relaxed). If it moved, it copies the records that it has
//!   not seen under the log's mutex, applies them, and stores `seen` with release ordering: the number of those that
//!   it has applied.
//! - A publisher appends under the mutex, stores the generation, then waits until each user's `seen`,
//!   loaded with acquire ordering, has reached it. The release/acquire pair puts every access that a
//!   user made before its check before the publisher's return, and the mutex puts the publisher's
//!   earlier writes (and what it read from the guest) before everything the user does afterwards. A
//!   translation walked from tables *while* a record is published is dropped at the user's next check,
//!   which comes before its `seen`.
//! - A user that sleeps is `OFFLINE` and is not waited for. Going online it stores `seen`, *full fence*,
//!   loads the generation; a publisher stores the generation, *full fence*, loads `seen`. So either the
//!   publisher waits for this user, or the user sees the record before its first element.
//! - The log holds the last [`LOG_LEN`] records; a user further behind drops all it has cached.
//!
//! A user never waits for another between two checks, so a publisher's wait is bounded by an access, or the 256 bytes
//! of a COPY or FILL between two checks, and by the records that each user has yet to apply, at most [`LOG_LEN`].
//! Publishers may themselves be users: they don't wait for themselves, and must not be waited for by
//! engines.
//!
//! `model-check/` runs this with the switches between threads, and the stale values, that its bounds allow, and again
//! without the fences, or with relaxed loads or stores: then something goes wrong.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sync::{AtomicU64, Mutex, fence, spin_loop, yield_now};

/// Records that a user may be behind before it must drop everything.
pub const LOG_LEN: usize = 256;

/// Records that a user takes from the log at a time.
const AT_ONCE: usize = 16;

/// `seen` of a user that uses nothing.
const OFFLINE: u64 = u64::MAX;

/// What a user must give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Nothing; it is only made to look up (queue states, run state).
    Attention,
    /// Pages that it owns (see [`crate::ownership`]): each is asked for again before it is used.
    Recall,
    /// Translations of pages that overlap `[va, va + len)`.
    Range {
        /// Address space, or 0 for all.
        asid: u32,
        /// First address.
        va: u64,
        /// Bytes; `u64::MAX` reaches to the end.
        len: u64,
    },
    /// Every translation.
    All,
}

/// A change as a user applies it.
#[derive(Debug)]
pub enum Change<S> {
    /// Drop translations.
    Drop(Record),
    /// Use this snapshot from now on, with no translation from the last.
    Snapshot(Arc<S>),
}

#[derive(Debug)]
struct Log<S> {
    records: [Record; LOG_LEN],
    generation: u64,
    snapshot: Arc<S>,
    snapshot_generation: u64,
}

/// Alone in its cache lines: each is written by one thread and polled by publishers.
#[derive(Debug)]
#[repr(align(128))]
struct Seen(AtomicU64);

/// The log, and how far each user has read it.
#[derive(Debug)]
pub struct Invalidations<S> {
    generation: AtomicU64,
    log: Mutex<Log<S>>,
    seen: Box<[Seen]>,
}

impl<S> Invalidations<S> {
    /// For users numbered 0 to `users` − 1, all offline.
    pub fn new(users: usize, snapshot: Arc<S>) -> Self {
        let log =
            Log { records: [Record::Attention; LOG_LEN], generation: 0, snapshot, snapshot_generation: 0 };
        Invalidations {
            generation: AtomicU64::new(0),
            log: Mutex::new(log),
            seen: (0..users).map(|_| Seen(AtomicU64::new(OFFLINE))).collect(),
        }
    }

    /// Appends a record; what it takes away may be used until [`Self::wait`] returns.
    pub fn publish(&self, record: Record) -> u64 {
        self.append(record, None)
    }

    /// Replaces the snapshot; the old one may be used until [`Self::wait`] returns.
    pub fn replace(&self, snapshot: Arc<S>) -> u64 {
        self.append(Record::All, Some(snapshot))
    }

    /// The generation: everything published so far.
    pub fn latest(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The current snapshot, for those who begin.
    pub fn snapshot(&self) -> Arc<S> {
        self.log.lock().snapshot.clone()
    }

    /// Waits until every user but `except` is offline or has applied everything up to `generation`.
    pub fn wait(&self, generation: u64, except: Option<usize>) {
        // Partner: the fence in `User::enter`.
        fence(Ordering::SeqCst);
        for (user, seen) in self.seen.iter().enumerate() {
            let mut spins = 0u32;
            // OFFLINE is the greatest value.
            while Some(user) != except && seen.0.load(Ordering::Acquire) < generation {
                spins += 1;
                if spins.is_multiple_of(64) { yield_now() } else { spin_loop() }
            }
        }
    }

    /// Whether a user is offline or has applied everything up to `generation`: what [`Self::wait`] waits for.
    pub fn passed(&self, user: usize, generation: u64) -> bool {
        // Partner: the fence in `User::enter`.
        fence(Ordering::SeqCst);
        self.seen[user].0.load(Ordering::Acquire) >= generation
    }

    fn append(&self, record: Record, snapshot: Option<Arc<S>>) -> u64 {
        let mut log = self.log.lock();
        let slot = (log.generation % LOG_LEN as u64) as usize;
        log.records[slot] = record;
        log.generation += 1;
        let generation = log.generation;
        let old = snapshot.map(|snapshot| {
            log.snapshot_generation = generation;
            std::mem::replace(&mut log.snapshot, snapshot)
        });
        self.generation.store(generation, Ordering::Release);
        drop(log);
        // Perhaps the last reference: unmapped outside the lock.
        drop(old);
        generation
    }
}

/// One user's side: belongs to the thread that uses.
#[derive(Debug)]
pub struct User<S> {
    shared: Arc<Invalidations<S>>,
    index: usize,
    seen: u64,
}

/// What a user has seen, next to what there is.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'s> {
    generation: &'s AtomicU64,
    seen: u64,
}

impl Watch<'_> {
    /// Whether there is something to catch up with: one relaxed load.
    #[inline(always)]
    pub fn behind(&self) -> bool {
        self.generation.load(Ordering::Relaxed) != self.seen
    }
}

impl<S> User<S> {
    /// The user of that number. There must be one `User` for each number.
    pub fn new(shared: Arc<Invalidations<S>>, index: usize) -> Self {
        User { shared, index, seen: 0 }
    }

    /// Whether there is something to catch up with: one relaxed load.
    #[inline]
    pub fn behind(&self) -> bool {
        self.watch().behind()
    }

    /// The same for those who ask very often, until they catch up.
    #[inline]
    pub fn watch(&self) -> Watch<'_> {
        Watch { generation: &self.shared.generation, seen: self.seen }
    }

    /// Applies what was published since the last time, then says so. Called between two elements:
    /// no access is under way, and no translation obtained before this is used afterwards but through
    /// what `apply` keeps up to date.
    #[cold]
    pub fn catch_up(&mut self, mut apply: impl FnMut(Change<S>)) {
        // What is published meanwhile is for the next time.
        let latest = self.shared.generation.load(Ordering::Relaxed);
        while self.seen < latest {
            self.advance(&mut apply);
            self.shared.seen[self.index].0.store(self.seen, Ordering::Release);
        }
    }

    /// Applies a few records. Copied under the mutex and applied outside of it, so that nobody waits for another's
    /// applying.
    fn advance(&mut self, apply: &mut impl FnMut(Change<S>)) {
        let mut records = [Record::Attention; AT_ONCE];
        let log = self.shared.log.lock();
        let snapshot = (log.snapshot_generation > self.seen).then(|| log.snapshot.clone());
        let behind = log.generation - self.seen;
        let count = if behind > LOG_LEN as u64 {
            records[0] = Record::All;
            self.seen = log.generation;
            1
        } else {
            let count = behind.min(AT_ONCE as u64);
            for (record, generation) in records.iter_mut().zip(self.seen..self.seen + count) {
                *record = log.records[(generation % LOG_LEN as u64) as usize];
            }
            self.seen += count;
            count as usize
        };
        drop(log);
        if let Some(snapshot) = snapshot {
            apply(Change::Snapshot(snapshot));
        }
        records[..count].iter().for_each(|&record| apply(Change::Drop(record)));
    }

    /// Goes online. The first element may follow when this has returned.
    pub fn enter(&mut self, apply: impl FnMut(Change<S>)) {
        // Release, as in `catch_up`: whoever reads this value relies on what was done before it was reached,
        // and perhaps never saw the store that said so first.
        self.shared.seen[self.index].0.store(self.seen, Ordering::Release);
        // Partner: the fence in `Invalidations::wait`.
        fence(Ordering::SeqCst);
        if self.behind() {
            self.catch_up(apply);
        }
    }

    /// Goes offline: uses nothing until it enters again.
    pub fn leave(&mut self) {
        self.shared.seen[self.index].0.store(OFFLINE, Ordering::Release);
    }
}

impl<S> Drop for User<S> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn setup() -> (Arc<Invalidations<u32>>, User<u32>) {
        let shared = Arc::new(Invalidations::new(2, Arc::new(1)));
        let user = User::new(shared.clone(), 0);
        (shared, user)
    }

    #[test]
    fn records_arrive_once_and_in_order() {
        let (shared, mut user) = setup();
        let range = Record::Range { asid: 1, va: 0x1000, len: 0x1000 };
        shared.publish(range);
        shared.publish(Record::Attention);
        let mut got = Vec::new();
        user.enter(|change| got.push(format!("{change:?}")));
        assert_eq!(got, [format!("Drop({range:?})"), "Drop(Attention)".into()]);
        assert!(!user.behind());
    }

    #[test]
    fn whoever_is_far_behind_drops_all() {
        let (shared, mut user) = setup();
        for _ in 0..=LOG_LEN {
            shared.publish(Record::Attention);
        }
        let mut dropped = Vec::new();
        user.catch_up(|change| dropped.push(matches!(change, Change::Drop(Record::All))));
        assert_eq!(dropped, [true]);
    }

    #[test]
    fn a_snapshot_arrives_once() {
        let (shared, mut user) = setup();
        shared.replace(Arc::new(2));
        let mut snapshots = 0;
        let mut count = |change| snapshots += u32::from(matches!(change, Change::Snapshot(s) if *s == 2));
        user.catch_up(&mut count);
        shared.publish(Record::All);
        user.catch_up(&mut count);
        assert_eq!(snapshots, 1);
    }

    #[test]
    fn waiting_ignores_the_offline_and_the_caller() {
        let (shared, mut user) = setup();
        shared.wait(shared.publish(Record::All), None);
        user.enter(|_| ());
        shared.wait(shared.publish(Record::All), Some(0));
        user.leave();
        shared.wait(shared.publish(Record::All), None);
    }

    #[test]
    fn nothing_is_used_after_the_wait() {
        let (shared, mut user) = setup();
        // The "page table", whether what it leads to is gone, whether it was ever used, and the end.
        let words = Arc::new([const { AtomicBool::new(false) }; 4]);
        let using = {
            let words = words.clone();
            move || {
                let [valid, gone, begun, stop] = &*words;
                let (mut cached, mut used) = (false, 0u64);
                user.enter(|_| ());
                while !stop.load(Ordering::Relaxed) {
                    if user.behind() {
                        user.catch_up(|_| cached = false);
                    }
                    cached = cached || valid.load(Ordering::Acquire);
                    if cached {
                        used += 1;
                        begun.store(true, Ordering::Relaxed);
                        assert!(!gone.load(Ordering::Relaxed), "used after the wait");
                        if used.is_multiple_of(1000) {
                            user.leave();
                            user.enter(|_| cached = false);
                        }
                    }
                }
            }
        };
        let thread = std::thread::spawn(using);
        let [valid, gone, begun, stop] = &*words;
        valid.store(true, Ordering::Release);
        while !begun.load(Ordering::Relaxed) {
            yield_now();
        }
        for _ in 0..2_000 {
            gone.store(false, Ordering::Release);
            valid.store(true, Ordering::Release);
            yield_now();
            valid.store(false, Ordering::Release);
            shared.wait(shared.publish(Record::All), None);
            gone.store(true, Ordering::Release);
        }
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
    }
}
