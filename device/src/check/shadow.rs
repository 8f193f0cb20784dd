// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shadows of pages: what the device last left there, and what happened to them. When a page has one, and
//! when it is compared, is not decided here but in [`super`].
//!
//! An access finds its page's shadow by the frame, in one load. A shadow belongs to one frame from
//! [`Shadows::watch`] to [`Shadows::release`], which are called under the book's mutex, the second when nobody uses
//! the frame. In between, whoever owns the page keeps it up to date.
//!
//! Words and events are atomics because they are shared memory to the compiler, not to each other's order:
//! ownership of the page orders the words. Events of one page are recorded by several threads at the same time
//! now and then; one may then be mixed up of two. They are for people.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use svmx_abi::pci::{PAGE_SHIFT, PAGE_SIZE};
use zerocopy::FromZeros;

use crate::instrument::Thread;
use crate::memory::Page;
use crate::zeroed::Zeroed;

/// Pages that have a shadow at a time: 256 MiB of them.
pub(super) const SLOTS: usize = 1 << 16;
/// Places in the index: what 4 GiB have in pages. Frames that are so far apart share a place, and one of them
/// goes unwatched.
const PLACES: usize = 1 << 20;
/// Events that a page remembers besides the last one.
const OLDER: usize = 15;
/// Bits of an event that say where, who and what; above them is how often.
const TIMES_SHIFT: u32 = 34;
const WORDS: usize = PAGE_SIZE as usize / 8;
/// Bits of a place that hold a slot's number plus one; the frame's number is above them.
const SLOT_BITS: u32 = 24;
const _: () = assert!(SLOTS < 1 << SLOT_BITS);

/// What happened to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A thread obtained a translation that leads there.
    Translated,
    /// A value was stored.
    Stored,
    /// A translation is about to be invalidated.
    Invalidated,
    /// A SYNC found that everybody has given it up.
    Synced,
}

/// When, by whom, where in the page, and which value or (translated, invalidated) address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Nanoseconds since the checker began.
    pub(super) time: u64,
    pub(super) thread: Thread,
    pub(super) what: What,
    pub(super) offset: u16,
    pub(super) value: u64,
    /// Events like this one that it stands for, itself included.
    pub(super) times: u32,
}

/// One page's. All zero: of no page. An access needs the first cache line and that of its word, and no more.
#[derive(Debug, FromZeros)]
#[repr(C, align(64))]
pub(super) struct Shadow {
    watched: AtomicBool,
    recorded: AtomicU32,
    last: Cell,
    older: [Cell; OLDER],
    words: [AtomicU64; WORDS],
}

/// An event: time, what and who and where, value.
#[derive(Debug, FromZeros)]
#[repr(transparent)]
struct Cell([AtomicU64; 3]);

/// All of them. The memory is the host's when it is first used.
#[derive(Debug)]
pub(super) struct Shadows {
    /// By frame: its number and its slot's, or zero.
    index: Zeroed<[AtomicU64; PLACES]>,
    slots: Zeroed<[Shadow; SLOTS]>,
    /// How many of them may be used.
    most: usize,
    free: Mutex<Free>,
}

/// Slots without a page. The last one that was given back is the first to be used again, so no more are touched
/// than were ever used at a time.
#[derive(Debug, Default)]
struct Free {
    back: Vec<u32>,
    fresh: u32,
}

impl Shadows {
    /// For that many pages, at most [`SLOTS`].
    pub(super) fn new(most: usize) -> io::Result<Self> {
        let (index, slots) = (Zeroed::new()?, Zeroed::new()?);
        Ok(Shadows { index, slots, most: most.min(SLOTS), free: Mutex::default() })
    }

    /// The shadow of a frame, if it has one.
    #[inline]
    pub(super) fn find(&self, frame: u64) -> Option<&Shadow> {
        let number = frame >> PAGE_SHIFT;
        // Partner: `watch`'s release. Whoever uses the frame has been there or in the book since.
        let place = self.index[number as usize % PLACES].load(Ordering::Acquire);
        let slot = (place & ((1 << SLOT_BITS) - 1)) as usize;
        if place >> SLOT_BITS != number { None } else { self.slots.get(slot.checked_sub(1)?) }
    }

    /// Gives a page a shadow, equal to what is there now; false if there is no room. Nobody else uses the page.
    pub(super) fn watch(&self, page: Page<'_>) -> bool {
        let number = page.frame() >> PAGE_SHIFT;
        let place = &self.index[number as usize % PLACES];
        if place.load(Ordering::Relaxed) != 0 {
            return false;
        }
        let Some(slot) = self.free.lock().take(self.most) else { return false };
        let shadow = &self.slots[slot as usize];
        for (word, at) in shadow.words.iter().zip((0..).step_by(8)) {
            word.store(page.word64(at).load(Ordering::Acquire), Ordering::Relaxed);
        }
        shadow.recorded.store(0, Ordering::Relaxed);
        shadow.watched.store(true, Ordering::Relaxed);
        place.store(number << SLOT_BITS | u64::from(slot + 1), Ordering::Release);
        true
    }

    /// What the shadow says does not count any more.
    pub(super) fn abandon(&self, frame: u64) {
        if let Some(shadow) = self.find(frame) {
            shadow.watched.store(false, Ordering::Release);
        }
    }

    /// The frame has no shadow any more. Nobody uses the page.
    pub(super) fn release(&self, frame: u64) {
        let number = frame >> PAGE_SHIFT;
        let place = &self.index[number as usize % PLACES];
        let value = place.load(Ordering::Relaxed);
        if value != 0 && value >> SLOT_BITS == number {
            place.store(0, Ordering::Relaxed);
            self.free.lock().back.push((value & ((1 << SLOT_BITS) - 1)) as u32 - 1);
        }
    }
}

impl Free {
    fn take(&mut self, most: usize) -> Option<u32> {
        self.back.pop().or_else(|| {
            let slot = Some(self.fresh).filter(|&slot| (slot as usize) < most)?;
            self.fresh += 1;
            Some(slot)
        })
    }
}

impl Shadow {
    /// Whether what it says counts. Asked behind the access that it is about.
    pub(super) fn watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    /// What the device left there. The access is aligned, and the caller owns the page.
    #[inline]
    pub(super) fn value(&self, offset: u64, bytes: u64) -> u128 {
        let word = |offset| self.word(offset).load(Ordering::Relaxed);
        match bytes {
            8 => word(offset).into(),
            16 => u128::from(word(offset + 8)) << 64 | u128::from(word(offset)),
            _ => {
                let (shift, mask) = bits(offset, bytes);
                (word(offset) >> shift & mask).into()
            }
        }
    }

    /// Puts in what is there now; what the device left there before. The access is aligned, and the caller owns the page.
    #[inline]
    pub(super) fn exchange(&self, offset: u64, bytes: u64, new: u128) -> u128 {
        let old = self.value(offset, bytes);
        let put = |offset, value| self.word(offset).store(value, Ordering::Relaxed);
        match bytes {
            8 => put(offset, new as u64),
            16 => {
                put(offset, new as u64);
                put(offset + 8, (new >> 64) as u64);
            }
            _ => {
                let (shift, mask) = bits(offset, bytes);
                let others = self.word(offset).load(Ordering::Relaxed) & !(mask << shift);
                put(offset, others | (new as u64 & mask) << shift);
            }
        }
        old
    }

    /// The word that holds an offset.
    #[inline]
    fn word(&self, offset: u64) -> &AtomicU64 {
        &self.words[offset as usize / 8 % WORDS]
    }

    /// Offset, expected and found value of each word that differs from the page. Nobody uses the page.
    pub(super) fn differences<'a>(&'a self, page: Page<'a>) -> impl Iterator<Item = (u64, u64, u64)> + 'a {
        self.words.iter().zip((0..).step_by(8)).filter_map(move |(word, at)| {
            let (expected, found) = (word.load(Ordering::Relaxed), page.word64(at).load(Ordering::Acquire));
            (expected != found).then_some((at, expected, found))
        })
    }

    /// Remembers an event, instead of the oldest. One that differs from the last only in time and value takes its
    /// place, or a bulk command on one word would leave nothing else.
    #[inline]
    pub(super) fn record(&self, event: Event) {
        let Event { time, thread, what, offset, value, times } = event;
        let kind = u64::from(offset) | u64::from(thread.number()) << 16 | (what as u64) << (TIMES_SHIFT - 2);
        let number = self.recorded.load(Ordering::Relaxed);
        let last = self.last.load();
        let packed = if number > 0 && last[1] & ((1 << TIMES_SHIFT) - 1) == kind {
            last[1].saturating_add(1 << TIMES_SHIFT)
        } else {
            // The zeroth is no event, and is not looked at.
            self.older[number as usize % OLDER].store(last);
            self.recorded.store(number.wrapping_add(1), Ordering::Relaxed);
            kind | u64::from(times) << TIMES_SHIFT
        };
        self.last.store([time, packed, value]);
    }

    /// What it remembers, the oldest first.
    pub(super) fn events(&self) -> Vec<Event> {
        let end = self.recorded.load(Ordering::Relaxed);
        let first = end.saturating_sub(OLDER as u32).max(1);
        let older = (first..end).map(|number| &self.older[number as usize % OLDER]);
        older.chain((end > 0).then_some(&self.last)).map(Cell::event).collect()
    }
}

impl Cell {
    #[inline]
    fn load(&self) -> [u64; 3] {
        self.0.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn store(&self, values: [u64; 3]) {
        self.0.iter().zip(values).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
    }

    fn event(&self) -> Event {
        let [time, packed, value] = self.load();
        let what =
            [What::Translated, What::Stored, What::Invalidated, What::Synced][(packed >> 32) as usize % 4];
        let thread = Thread::from_number((packed >> 16) as u16);
        Event { time, thread, what, offset: packed as u16, value, times: (packed >> TIMES_SHIFT) as u32 }
    }
}

/// Where an access of up to eight bytes is in its word: by how much it is shifted, and the bits that it has then.
#[inline]
fn bits(offset: u64, bytes: u64) -> (u64, u64) {
    (8 * (offset % 8), u64::MAX >> (64 - 8 * bytes.clamp(1, 8)))
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { time, thread, what, offset, value, times } = self;
        let (seconds, rest) = (time / 1_000_000_000, time % 1_000_000_000);
        write!(f, "{seconds}.{rest:09} s  {thread}: ")?;
        match what {
            What::Translated => write!(f, "obtained a translation in ASID {value}"),
            What::Stored => write!(f, "stored {value:#x} at offset {offset:#x}"),
            What::Invalidated => write!(f, "invalidates a translation in ASID {value}"),
            What::Synced => write!(f, "SYNC: nobody uses it any more"),
        }?;
        if *times > 1 { write!(f, ", the last of {times} times") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, PAGE_SIZE, SLOTS, Shadows, What};
    use crate::instrument::Thread;
    use crate::memory::{DmaMap, GuestMemory};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::resource::{UsageWho, getrusage};
    use std::sync::atomic::Ordering;

    const MOST: usize = 8;

    fn memory(pages: u64) -> GuestMemory {
        let file = std::fs::File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        let size = pages * PAGE_SIZE;
        file.set_len(size).unwrap();
        GuestMemory::default().with_map(DmaMap { address: 0, size, file, offset: 0, writable: true }).unwrap()
    }

    #[test]
    fn nothing_is_taken_from_the_host_before_it_is_needed() {
        let faults = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults();
        let before = faults();
        let shadows = Shadows::new(SLOTS).unwrap();
        let memory = memory(1);
        assert!(shadows.watch(memory.page(0, true).unwrap()));
        let taken = faults() - before;
        assert!(taken < 100, "{taken} pages");
    }

    #[test]
    fn every_width_has_its_place() {
        let memory = memory(1);
        memory.word64(0x10, true).unwrap().store(0x1122_3344_5566_7788, Ordering::Relaxed);
        let shadows = Shadows::new(MOST).unwrap();
        assert!(shadows.watch(memory.page(0, true).unwrap()));
        let shadow = shadows.find(0).unwrap();
        assert_eq!(shadow.exchange(0x13, 1, 0xaa), 0x55);
        assert_eq!(shadow.exchange(0x14, 4, 0xdead_beef), 0x1122_3344);
        assert_eq!(shadow.exchange(0x10, 8, 1), 0xdead_beef_aa66_7788);
        assert_eq!(shadow.exchange(0x10, 16, 7 << 64 | 5), 1);
        assert_eq!(shadow.exchange(0x10, 16, 0), 7 << 64 | 5);
        assert_eq!(shadow.exchange(0xff8, 8, 9), 0);
    }

    #[test]
    fn a_difference_is_found_where_it_is() {
        let memory = memory(2);
        let shadows = Shadows::new(MOST).unwrap();
        let page = memory.page(0x1000, true).unwrap();
        assert!(shadows.watch(page) && !shadows.watch(page));
        assert!(shadows.find(0).is_none());
        let shadow = shadows.find(0x1000).unwrap();
        assert_eq!(shadow.differences(page).count(), 0);
        memory.word64(0x1ff8, true).unwrap().store(3, Ordering::Relaxed);
        assert_eq!(shadow.differences(page).collect::<Vec<_>>(), [(0xff8, 0, 3)]);
        shadows.abandon(0x1000);
        assert!(!shadow.watched());
        shadows.release(0x1000);
        assert!(shadows.find(0x1000).is_none());
        assert!(shadows.watch(page) && shadows.find(0x1000).unwrap().watched());
    }

    #[test]
    fn slots_are_used_again_and_end() {
        let memory = memory(MOST as u64 + 1);
        let shadows = Shadows::new(MOST).unwrap();
        let page = |number: usize| memory.page(number as u64 * PAGE_SIZE, true).unwrap();
        assert!((0..MOST).all(|number| shadows.watch(page(number))));
        assert!(!shadows.watch(page(MOST)));
        shadows.release(7 * PAGE_SIZE);
        assert!(shadows.watch(page(MOST)));
    }

    #[test]
    fn the_last_events_are_kept() {
        let shadows = Shadows::new(MOST).unwrap();
        let shadow = &shadows.slots[0];
        let thread = Thread::Engine(3);
        let stored = |time, offset| Event { time, thread, what: What::Stored, offset, value: 1, times: 1 };
        (0..20).for_each(|time| shadow.record(stored(time, 8 * time as u16)));
        assert_eq!(shadow.events(), (4..20).map(|time| stored(time, 8 * time as u16)).collect::<Vec<_>>());
        assert_eq!(stored(5, 8).to_string(), "0.000000005 s  engine 3: stored 0x1 at offset 0x8");
        (20..30).for_each(|time| shadow.record(stored(time, 0)));
        let events = shadow.events();
        assert_eq!(
            (events.len(), events[14].time, events[15]),
            (16, 19, Event { times: 10, ..stored(29, 0) })
        );
        assert!(events[15].to_string().ends_with(", the last of 10 times"));
        assert_eq!(Thread::from_number(Thread::Control.number()), Thread::Control);
    }
}
