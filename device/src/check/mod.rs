// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The exclusivity checker: finds drivers and kernels that let somebody else write to a page which the device
//! holds *atomic*.
//!
//! The device keeps a shadow of every such page. A page is *held* from the first translation that leads to it
//! (a TLB fill or a REPLAY); its 4 KiB are copied then. Each access of the device compares what it loaded with the
//! shadow and puts in what it stored. A SYNC compares whole pages whose translations were invalidated before it,
//! and lets them go. A difference is somebody else's store: it is reported with the last events of the page,
//! and the process goes on.
//!
//! # Why a correct driver and kernel cause no report
//!
//! *Exclusive* says: from the moment when the device can reach a page by an *atomic* translation until the SYNC
//! behind the translation's invalidation completes, nobody but the device stores to the page (spec 11). So the
//! checker must compare only inside that time, and must know every store of the device itself.
//!
//! - **Inside the time.** A shadow is made when a translation has been obtained and before it is used. If that
//!   translation is already being taken back, then the thread that obtained it is a user whom the SYNC waits
//!   for: the copy is made before the SYNC completes, and `synced` comes between that wait and the completion.
//!   Whether a shadow goes at a SYNC is decided *there*, so one that was made late is not forgotten.
//! - **Every store of the device** is made by an access that [`Instrument::effect`] tells of, under the page's ownership
//!   ([`crate::execute`]): stores to one frame and their shadow's updates are one critical section, whichever
//!   queues, contexts and engines they come from and however wide they are, and loads are among them when they are
//!   watched. So the shadow is exact for whoever owns the page. A store is not compared, as it loads nothing.
//! - **Copies and whole comparisons** are made without ownership, so there must be nobody on the frame. [`book`] knows
//!   every translation that anybody may still use: one is entered when it is obtained, and struck out only at a SYNC (or
//!   a reset) behind which nobody has it. A frame is copied when its first translation is entered and compared
//!   when its last one is struck out. What was obtained *after* its invalidation was announced may have been
//!   walked before or after the tables changed: it stays in the book, and its frame is not watched until it went quietly.
//! - **Doubt is settled by not watching.** A frame is *abandoned* (its translations stay in the book, its shadow is void)
//!   when the device stops or a DMA map changes, from before the change until after it; when a queue of its
//!   address space is destroyed, as that is as good as a SYNC for the queue's accesses; for as long as the book has
//!   a translation of it that can be written and is not *atomic*, or one of 2 MiB; and when the book is full. Abandoning
//!   is sound at any time: an access that began before reads the flag after it read memory, and what would
//!   make the difference comes after the flag.
//!
//! What a driver must not do for this to hold, beside exclusivity itself: put rings, fault records or
//! completion words into a page that the device holds *atomic*, or map one frame *atomic* by leaves of both
//! sizes. No driver for real processes does; a hostile guest makes its own operator's log wrong, and no more.
//!
//! # What is bounded
//!
//! [`shadow::SLOTS`] pages are watched at a time, in about 290 MiB if all are; [`book::MOST`] translations are known, about
//! 20 MiB. Beyond that pages are held unwatched, which is counted and said at the end: one page at a time where there is
//! no shadow for it; where the book has left a translation out, every page that is obtained until nobody can use what was
//! left out, as its address space has ended or been invalidated whole. Reports in full: [`REPORTS`].

mod book;
mod shadow;

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use svmx_abi::control::{ControlEntry, ControlOpcode};
use svmx_abi::pci::{PAGE_SIZE, page_base, page_offset};

use crate::instrument::{Effect, Instrument, Thread, Upheaval};
use crate::invalidate::Record;
use crate::memory::{GuestMemory, Page};
use crate::queue::Rings;
use book::{Book, Entered, Struck, Translation};
use shadow::{Event, Shadow, Shadows, What};

/// Reports with all their events; later ones are only counted.
const REPORTS: u64 = 16;
/// Stores of one turn at a queue that are said to be at one time.
const AT_ONCE: u32 = 64;

/// What all threads of a device share.
#[derive(Debug)]
pub struct Checker {
    shadows: Shadows,
    book: Mutex<Book>,
    began: Instant,
    changed: AtomicU64,
    compared: AtomicU64,
    unwatched: AtomicU64,
}

/// What was found, for those who ask at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Values that were not the device's.
    pub changed: u64,
    /// Pages that were compared whole.
    pub compared: u64,
    /// How often a page was held that could not be watched, because there was no room for its shadow, or for all
    /// translations that may lead there.
    pub unwatched: u64,
}

/// One thread's part of it.
#[derive(Debug)]
pub struct Check {
    checker: Arc<Checker>,
    thread: Thread,
    /// The control entry under way ends a context.
    ending: bool,
    clock: Clock,
}

/// The time to people's needs: it costs more to ask for it than to compare and note a value.
#[derive(Debug, Default)]
struct Clock {
    /// Nanoseconds since the checker began.
    now: u64,
    /// How often that is good enough yet.
    left: u32,
}

/// A value that is not what the device left.
struct Change {
    asid: u32,
    va: u64,
    bytes: u64,
    frame: u64,
    expected: u128,
    found: u128,
    /// Others of the page, if it was compared whole.
    more: u64,
}

impl Checker {
    /// One that has seen nothing yet.
    ///
    /// # Errors
    ///
    /// If there are no addresses for its shadows.
    pub fn new() -> io::Result<Self> {
        Checker::with_room(shadow::SLOTS, book::MOST)
    }

    fn with_room(shadows: usize, translations: usize) -> io::Result<Self> {
        Ok(Checker {
            shadows: Shadows::new(shadows)?,
            book: Mutex::new(Book::new(translations)),
            began: Instant::now(),
            changed: AtomicU64::new(0),
            compared: AtomicU64::new(0),
            unwatched: AtomicU64::new(0),
        })
    }

    /// What has been found so far.
    pub fn findings(&self) -> Findings {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Findings {
            changed: read(&self.changed),
            compared: read(&self.compared),
            unwatched: read(&self.unwatched),
        }
    }

    /// Says at the end what was found. More than nothing is an error, and less than a look at everything a warning.
    pub fn summarize(&self) {
        let Findings { changed, compared, unwatched } = self.findings();
        tracing::info!(compared, unwatched, "exclusivity: pages compared");
        if unwatched > 0 {
            tracing::warn!("exclusivity: {unwatched} times a page was held unwatched: there was no room");
        }
        if changed > 0 {
            tracing::error!("exclusivity: {changed} values changed in pages that the device held");
        }
    }

    /// The whole device stops, goes on, or forgets.
    pub fn upheaval(&self, upheaval: Upheaval) {
        let mut book = self.book.lock();
        match upheaval {
            Upheaval::Begins => {
                book.close();
                book.frames().for_each(|frame| self.shadows.abandon(frame));
            }
            Upheaval::Ends => book.open(),
            Upheaval::Reset => {
                book.frames().for_each(|frame| self.shadows.release(frame));
                book.clear();
            }
        }
    }

    fn event(&self, thread: Thread, what: What, offset: u64, value: u128) -> Event {
        let time = self.began.elapsed().as_nanos() as u64;
        Event { time, thread, what, offset: offset as u16, value: value as u64, times: 1 }
    }

    /// A thread may use a translation that is *atomic* from now on.
    fn hold(&self, thread: Thread, asid: u32, va: u64, page: Page<'_>) {
        let frame = page.frame();
        let translation = Translation { asid, va: page_base(va), frame };
        let mut book = self.book.lock();
        match book.enter(translation) {
            Entered::First if !self.shadows.watch(page) => {
                self.unwatched.fetch_add(1, Ordering::Relaxed);
            }
            Entered::First | Entered::Again => {}
            Entered::Closed => self.shadows.abandon(frame),
            Entered::Lost => {
                self.shadows.abandon(frame);
                self.unwatched.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(shadow) = self.shadows.find(frame) {
            shadow.record(self.event(thread, What::Translated, 0, asid.into()));
        }
    }

    /// A thread may store to the pages of a leaf from now on, and not as their owner: nobody knows when. So their
    /// frames are not watched until this is in the book no longer.
    fn share(&self, asid: u32, va: u64, first: u64, bytes: u64) {
        let mut book = self.book.lock();
        for at in (0..bytes).step_by(PAGE_SIZE as usize) {
            let translation = Translation { asid, va: va + at, frame: first + at };
            book.enter(translation);
            self.shadows.abandon(translation.frame);
        }
    }

    /// A page that was given up is compared and let go. The book is locked, so nobody obtains it meanwhile.
    fn release(&self, thread: Thread, struck: Struck, memory: &GuestMemory) {
        let Struck { translation: Translation { asid, va, frame }, last, quiet } = struck;
        if let Some(shadow) = self.shadows.find(frame) {
            shadow.record(self.event(thread, What::Synced, 0, 0));
            let page = memory.page(frame, false).filter(|_| last && quiet && shadow.watched());
            if let Some(page) = page {
                self.compared.fetch_add(1, Ordering::Relaxed);
                let mut differences = shadow.differences(page);
                if let Some((offset, expected, found)) = differences.next() {
                    let (expected, found) = (expected.into(), found.into());
                    let more = differences.count() as u64;
                    let change = Change { asid, va: va + offset, bytes: 8, frame, expected, found, more };
                    self.report(thread, shadow, &change);
                }
            }
        }
        if !quiet {
            self.shadows.abandon(frame);
        } else if last {
            self.shadows.release(frame);
        }
    }

    #[cold]
    fn report(&self, thread: Thread, shadow: &Shadow, change: &Change) {
        let &Change { asid, va, bytes, frame, expected, found, more } = change;
        let before = self.changed.fetch_add(1 + more, Ordering::Relaxed);
        if before >= REPORTS {
            return;
        }
        let mut text = String::new();
        for event in shadow.events() {
            let _ = write!(text, "\n    {event}");
        }
        let more = if more > 0 { format!(", and {more} more words of the page") } else { String::new() };
        let seconds = self.began.elapsed().as_secs_f64();
        tracing::error!(
            "exclusivity: ASID {asid}, address {va:#x}: expected {expected:#x}, found {found:#x} in {bytes} bytes{more}; \
             seen by {thread} in frame {frame:#x} after {seconds:.9} s; the page's last events:{text}",
        );
    }
}

impl Clock {
    /// The time, or what it was within the last stores of this turn.
    #[inline]
    fn recent(&mut self, began: Instant) -> u64 {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => *self = Clock { now: began.elapsed().as_nanos() as u64, left: AT_ONCE - 1 },
        }
        self.now
    }

    fn forget(&mut self) {
        self.left = 0;
    }
}

impl Check {
    /// The part of that thread.
    pub fn new(checker: Arc<Checker>, thread: Thread) -> Self {
        Check { checker, thread, ending: false, clock: Clock::default() }
    }

    /// An access loaded what the device did not leave there.
    #[cold]
    fn changed(&self, shadow: &Shadow, change: &Change, loaded: bool) {
        if loaded {
            // What was found is expected from now on: a change is reported once.
            shadow.exchange(page_offset(change.va), change.bytes, change.found);
        }
        // Behind the access is whether it counts: see the top.
        if shadow.watched() {
            self.checker.report(self.thread, shadow, change);
        }
    }
}

impl Instrument for Check {
    const ELEMENTS: bool = true;

    fn translated(&mut self, asid: u32, va: u64, span: u64, page: Page<'_>) {
        let access = page.access();
        if page.exclusive() && span == PAGE_SIZE {
            self.checker.hold(self.thread, asid, va, page);
        } else if access.write || access.atomic || access.coherent {
            let inside = !(span - 1);
            self.checker.share(asid, va & inside, page.frame() & inside, span);
        }
    }

    fn turn(&mut self, _queue: u32) {
        self.clock.forget();
    }

    #[inline]
    fn effect(&mut self, asid: u32, va: u64, bytes: u64, page: Page<'_>, effect: Effect) {
        let Some(shadow) = self.checker.shadows.find(page.frame()) else { return };
        let offset = page_offset(va);
        let expected = match effect.new {
            Some(new) => shadow.exchange(offset, bytes, new),
            None => shadow.value(offset, bytes),
        };
        if let Some(found) = effect.old.filter(|&old| old != expected) {
            let change = Change { asid, va, bytes, frame: page.frame(), expected, found, more: 0 };
            self.changed(shadow, &change, effect.new.is_none());
        }
        if let Some(new) = effect.new {
            let time = self.clock.recent(self.checker.began);
            let (thread, what, value) = (self.thread, What::Stored, new as u64);
            shadow.record(Event { time, thread, what, offset: offset as u16, value, times: 1 });
        }
    }

    fn control(&mut self, entry: &ControlEntry) -> bool {
        self.clock.forget();
        self.ending = entry.opcode == ControlOpcode::DESTROY_CONTEXT;
        true
    }

    fn invalidating(&mut self, record: Record) {
        let Record::Range { asid, va, len } = record else { return };
        let mut book = self.checker.book.lock();
        if self.ending {
            // No queue is left that could use them, and the driver needs no SYNC for that.
            for struck in book.strike_space(asid).iter().filter(|struck| struck.last) {
                self.checker.shadows.release(struck.translation.frame);
            }
            return;
        }
        let event = self.checker.event(self.thread, What::Invalidated, 0, asid.into());
        for frame in book.invalidating(asid, va, len) {
            if let Some(shadow) = self.checker.shadows.find(frame) {
                shadow.record(event);
            }
        }
        if book.overflown() {
            book.frames().for_each(|frame| self.checker.shadows.abandon(frame));
        }
    }

    fn synced(&mut self, memory: &GuestMemory) {
        let mut book = self.checker.book.lock();
        book.synced().into_iter().for_each(|struck| self.checker.release(self.thread, struck, memory));
    }

    fn destroyed(&mut self, rings: &Rings) {
        let book = self.checker.book.lock();
        book.frames_of(rings.asid).for_each(|frame| self.checker.shadows.abandon(frame));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::DmaMap;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use svmx_abi::pte::Access;

    const ROOM: usize = 4;

    fn memory(pages: u64) -> GuestMemory {
        let file = std::fs::File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        let size = pages * PAGE_SIZE;
        file.set_len(size).unwrap();
        GuestMemory::default().with_map(DmaMap { address: 0, size, file, offset: 0, writable: true }).unwrap()
    }

    fn checker(slots: usize, translations: usize) -> Arc<Checker> {
        Arc::new(Checker::with_room(slots, translations).unwrap())
    }

    /// Obtains that page, in an address space, where it is.
    fn obtain(check: &mut Check, memory: &GuestMemory, asid: u32, number: u64) {
        let page = memory.page(number * PAGE_SIZE, true).unwrap().with_access(Access::EXCLUSIVE);
        check.translated(asid, number * PAGE_SIZE, PAGE_SIZE, page);
    }

    fn give_back(check: &mut Check, memory: &GuestMemory, asid: u32) {
        check.invalidating(Record::Range { asid, va: 0, len: u64::MAX });
        check.synced(memory);
    }

    #[test]
    fn the_time_is_asked_for_now_and_then() {
        let second = std::time::Duration::from_secs(1);
        let began = Instant::now().checked_sub(second).unwrap();
        let mut clock = Clock { now: 7, left: 2 };
        assert_eq!([clock.recent(began), clock.recent(began)], [7, 7]);
        assert!(clock.recent(began) >= second.as_nanos() as u64);
        assert_eq!(clock.left, AT_ONCE - 1);
        clock.now = 7;
        clock.forget();
        assert!(clock.recent(began) >= second.as_nanos() as u64);
    }

    #[test]
    fn an_access_is_compared_and_a_difference_reported_once() {
        let (checker, memory) = (checker(1, ROOM), memory(1));
        let mut check = Check::new(checker.clone(), Thread::Engine(0));
        obtain(&mut check, &memory, 1, 0);
        let page = memory.page(0, true).unwrap().with_access(Access::EXCLUSIVE);
        let mut found = |va, bytes, old, new| {
            check.effect(1, va, bytes, page, Effect { old, new });
            checker.findings().changed
        };
        assert_eq!(found(8, 8, Some(0), Some(5)), 0);
        assert_eq!(found(8, 8, Some(5), None), 0);
        assert_eq!(found(12, 4, None, Some(1)), 0, "nothing was loaded");
        assert_eq!(found(8, 8, Some(1 << 32 | 5), None), 0);
        assert_eq!(found(8, 4, Some(6), None), 1);
        assert_eq!(found(8, 4, Some(6), None), 1, "it is expected now");
        assert_eq!(found(0, 16, Some(7), Some(8)), 2);
        assert_eq!(found(0, 16, Some(8), None), 2);
        checker.upheaval(Upheaval::Begins);
        assert_eq!(found(0, 16, Some(9), Some(9)), 2, "nobody watches");
    }

    #[test]
    fn a_page_without_room_for_its_shadow_is_counted() {
        let (checker, memory) = (checker(ROOM, book::MOST), memory(ROOM as u64 + 1));
        let mut check = Check::new(checker.clone(), Thread::Engine(0));
        (0..=ROOM as u64).for_each(|number| obtain(&mut check, &memory, 1, number));
        assert_eq!(checker.findings().unwatched, 1);
    }

    /// What is said at the end.
    fn summary(checker: &Checker) -> String {
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = log.clone();
        let writer = move || Writer(writer.clone());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || checker.summarize());
        String::from_utf8(std::mem::take(&mut log.lock())).unwrap()
    }

    struct Writer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_end_says_what_was_missed() {
        let (checker, memory) = (checker(1, book::MOST), memory(2));
        let mut check = Check::new(checker.clone(), Thread::Engine(0));
        obtain(&mut check, &memory, 1, 0);
        assert!(!summary(&checker).contains("WARN"));
        obtain(&mut check, &memory, 1, 1);
        let said = summary(&checker);
        let line =
            " WARN svmx_device::check: exclusivity: 1 times a page was held unwatched: there was no room";
        assert!(said.contains(line), "{said}");
    }

    #[test]
    fn what_is_missed_when_the_book_was_full_is_counted_and_it_sees_again() {
        let (checker, memory) = (checker(100, ROOM), memory(ROOM as u64 + 2));
        let mut check = Check::new(checker.clone(), Thread::Engine(0));
        (0..ROOM as u64).for_each(|number| obtain(&mut check, &memory, 1, number));
        assert_eq!(checker.findings().unwatched, 0);
        obtain(&mut check, &memory, 2, ROOM as u64);
        assert_eq!(checker.findings().unwatched, 1);
        // There is room again, but a translation that is not in the book may lead to any frame.
        give_back(&mut check, &memory, 1);
        assert_eq!(checker.findings().compared, ROOM as u64);
        obtain(&mut check, &memory, 1, 0);
        assert_eq!(checker.findings().unwatched, 2);
        give_back(&mut check, &memory, 0);
        assert_eq!(checker.findings(), Findings { changed: 0, compared: ROOM as u64, unwatched: 2 });
        // Now nobody has any.
        obtain(&mut check, &memory, 2, ROOM as u64);
        memory.word64(ROOM as u64 * PAGE_SIZE, true).unwrap().store(1, Ordering::Relaxed);
        give_back(&mut check, &memory, 2);
        assert_eq!(checker.findings(), Findings { changed: 1, compared: ROOM as u64 + 1, unwatched: 2 });
    }
}
