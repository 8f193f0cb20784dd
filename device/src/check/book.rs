// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every translation that a thread of the device may still use to store, and which of them a SYNC strikes out.
//!
//! Knows neither memory nor shadows. What is entered may be used by any thread until it is struck out; what
//! is struck out is used by nobody. The book errs on one side only: an engine that evicts a translation does
//! not tell.

use std::collections::BTreeMap;

use svmx_abi::pci::VA_END;

/// Translations that the book has room for: what 1 GiB has in pages.
pub(super) const MOST: usize = 1 << 18;
/// Ranges that may be announced before a SYNC.
const MOST_ANNOUNCED: usize = 4096;

/// A page of an address space and the frame that it leads to. One page may lead to two frames while its
/// invalidation is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Translation {
    pub(super) asid: u32,
    pub(super) va: u64,
    pub(super) frame: u64,
}

/// What entering a translation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// Nobody could reach the frame before.
    First,
    /// Others can, or the same again.
    Again,
    /// Nothing is worth watching just now.
    Closed,
    /// There is no room for it, or was none for one that may lead to the same frame.
    Lost,
}

/// A translation that a SYNC is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Struck {
    pub(super) translation: Translation,
    /// No other leads to its frame.
    pub(super) last: bool,
    /// It is struck out. If not, it was obtained after its invalidation was announced and may be in use.
    pub(super) quiet: bool,
}

/// A range whose invalidation was announced: translations obtained before `serial` go.
#[derive(Clone, Copy, Debug)]
struct Announced {
    asid: u32,
    first: u64,
    last: u64,
    serial: u64,
}

/// See the top.
#[derive(Debug)]
pub(super) struct Book {
    /// Translations that it has room for.
    most: usize,
    /// With the serial at which each was last obtained.
    translations: BTreeMap<Translation, u64>,
    /// How many lead to each frame.
    frames: BTreeMap<u64, u32>,
    announced: Vec<Announced>,
    /// Counts announcements.
    serial: u64,
    /// Upheavals under way.
    closed: u32,
    /// Address spaces of which somebody may use what is not here, as there was no room, with the serial at which one of
    /// their translations was last left out.
    lost: BTreeMap<u32, u64>,
    overflown: bool,
}

impl Book {
    /// An empty one.
    pub(super) fn new(most: usize) -> Self {
        let (translations, frames, announced) = Default::default();
        let (serial, closed, lost, overflown) = Default::default();
        Book { most, translations, frames, announced, serial, closed, lost, overflown }
    }

    /// Somebody has obtained a translation.
    pub(super) fn enter(&mut self, translation: Translation) -> Entered {
        if let Some(serial) = self.translations.get_mut(&translation) {
            *serial = self.serial;
            return Entered::Again;
        }
        if self.translations.len() >= self.most {
            self.lost.insert(translation.asid, self.serial);
            return Entered::Lost;
        }
        self.translations.insert(translation, self.serial);
        let count = self.frames.entry(translation.frame).or_insert(0);
        *count += 1;
        match *count {
            1 if !self.lost.is_empty() => Entered::Lost,
            1 if self.closed > 0 => Entered::Closed,
            1 => Entered::First,
            _ => Entered::Again,
        }
    }

    /// A range is about to be invalidated: the frames that it is about.
    pub(super) fn invalidating(&mut self, asid: u32, va: u64, len: u64) -> Vec<u64> {
        self.serial += 1;
        if len == 0 {
            return Vec::new();
        }
        let last = va.saturating_add(len - 1).min(VA_END - 1);
        self.overflown = self.announced.len() >= MOST_ANNOUNCED;
        if self.overflown {
            // What is in the book stays there until it is announced again.
            self.announced.clear();
        } else {
            self.announced.push(Announced { asid, first: va, last, serial: self.serial });
        }
        self.covered(asid, va, last).into_iter().map(|(translation, _)| translation.frame).collect()
    }

    /// Whether announcements have just been forgotten, so that frames may lose their owner unnoticed.
    pub(super) fn overflown(&self) -> bool {
        self.overflown
    }

    /// Everybody has given up what was announced: what that strikes out, or should have.
    pub(super) fn synced(&mut self) -> Vec<Struck> {
        let mut struck = Vec::new();
        // The latest first: it decides about a translation that several are about.
        for Announced { asid, first, last, serial } in std::mem::take(&mut self.announced).into_iter().rev() {
            if (first, last) == (0, VA_END - 1) {
                // Nobody knows which translations of a space were left out, so only what takes all of them does.
                self.lost.retain(|&space, obtained| (asid != 0 && asid != space) || *obtained >= serial);
            }
            for (translation, obtained) in self.covered(asid, first, last) {
                if obtained < serial {
                    self.strike(translation, &mut struck);
                } else {
                    struck.push(Struck { translation, last: false, quiet: false });
                }
            }
        }
        struck
    }

    /// An address space has ended, and nobody uses it.
    pub(super) fn strike_space(&mut self, asid: u32) -> Vec<Struck> {
        let mut struck = Vec::new();
        for (translation, _) in self.covered(asid, 0, VA_END - 1) {
            self.strike(translation, &mut struck);
        }
        self.lost.remove(&asid);
        struck
    }

    /// The frames in the book.
    pub(super) fn frames(&self) -> impl Iterator<Item = u64> {
        self.frames.keys().copied()
    }

    /// Those of an address space.
    pub(super) fn frames_of(&self, asid: u32) -> impl Iterator<Item = u64> {
        self.covered(asid, 0, VA_END - 1).into_iter().map(|(translation, _)| translation.frame)
    }

    /// From now on nothing is worth watching.
    pub(super) fn close(&mut self) {
        self.closed += 1;
    }

    /// What is obtained from now on is worth watching, if nobody closed it as well.
    pub(super) fn open(&mut self) {
        self.closed = self.closed.saturating_sub(1);
    }

    /// Nobody has any translation.
    pub(super) fn clear(&mut self) {
        *self = Book { closed: self.closed, serial: self.serial, ..Book::new(self.most) };
    }

    /// The translations of a range, in one address space or (0) in all, with their serials.
    fn covered(&self, asid: u32, first: u64, last: u64) -> Vec<(Translation, u64)> {
        let translation = |asid, va, frame| Translation { asid, va, frame };
        let all = |(translation, obtained): (&Translation, &u64)| (*translation, *obtained);
        if asid == 0 {
            let inside = |translation: &Translation| (first..=last).contains(&translation.va);
            return self.translations.iter().map(all).filter(|(each, _)| inside(each)).collect();
        }
        let range = translation(asid, first, 0)..=translation(asid, last, u64::MAX);
        self.translations.range(range).map(all).collect()
    }

    fn strike(&mut self, translation: Translation, struck: &mut Vec<Struck>) {
        self.translations.remove(&translation);
        let left = self.frames.get_mut(&translation.frame).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            self.frames.remove(&translation.frame);
        }
        struck.push(Struck { translation, last: left == 0, quiet: true });
    }
}

#[cfg(test)]
mod tests {
    use super::{Book, Entered, MOST_ANNOUNCED, Struck, Translation};
    use svmx_abi::pci::VA_END;

    const PAGE: u64 = 0x1000;
    const MOST: usize = 100;

    fn at(asid: u32, va: u64, frame: u64) -> Translation {
        Translation { asid, va, frame }
    }

    fn outcome(struck: &[Struck]) -> Vec<(u64, bool, bool)> {
        struck.iter().map(|struck| (struck.translation.frame, struck.last, struck.quiet)).collect()
    }

    #[test]
    fn a_sync_strikes_out_what_was_announced() {
        let mut book = Book::new(MOST);
        assert_eq!(book.enter(at(1, 0x5000, 0x9000)), Entered::First);
        assert_eq!(book.enter(at(1, 0x5000, 0x9000)), Entered::Again);
        assert_eq!(book.enter(at(1, 0x6000, 0xa000)), Entered::First);
        assert_eq!(book.enter(at(2, 0x5000, 0xb000)), Entered::First);
        assert_eq!(book.invalidating(1, 0x5000, PAGE), [0x9000]);
        assert_eq!(outcome(&book.synced()), [(0x9000, true, true)]);
        assert_eq!(outcome(&book.synced()), []);
        assert_eq!(book.enter(at(1, 0x5000, 0x9000)), Entered::First);
        book.invalidating(0, 0, u64::MAX);
        assert_eq!(book.synced().len(), 3);
        assert_eq!(book.frames().count(), 0);
    }

    #[test]
    fn a_frame_goes_with_its_last_translation() {
        let mut book = Book::new(MOST);
        assert_eq!(book.enter(at(1, 0x5000, 0x9000)), Entered::First);
        assert_eq!(book.enter(at(2, 0x7000, 0x9000)), Entered::Again);
        book.invalidating(1, 0x5000, PAGE);
        assert_eq!(outcome(&book.synced()), [(0x9000, false, true)]);
        book.invalidating(2, 0x7000, u64::MAX);
        assert_eq!(outcome(&book.synced()), [(0x9000, true, true)]);
    }

    #[test]
    fn what_was_obtained_late_stays_until_the_next_time() {
        let mut book = Book::new(MOST);
        book.enter(at(1, 0x5000, 0x9000));
        book.invalidating(1, 0x5000, PAGE);
        // By an engine that has applied the invalidation, or by one that has not: nobody knows.
        assert_eq!(book.enter(at(1, 0x5000, 0x9000)), Entered::Again);
        assert_eq!(outcome(&book.synced()), [(0x9000, false, false)]);
        book.invalidating(1, 0x5000, PAGE);
        assert_eq!(outcome(&book.synced()), [(0x9000, true, true)]);
        // The later of two announcements decides.
        book.invalidating(1, 0, u64::MAX);
        book.enter(at(1, 0x5000, 0x9000));
        book.invalidating(1, 0x5000, PAGE);
        assert_eq!(outcome(&book.synced()), [(0x9000, true, true)]);
    }

    #[test]
    fn a_closed_book_has_nothing_worth_watching() {
        let mut book = Book::new(MOST);
        book.close();
        assert_eq!(book.enter(at(1, 0, 0)), Entered::Closed);
        book.open();
        assert_eq!(book.enter(at(1, 0, 0)), Entered::Again);
        for page in 1..MOST as u64 {
            assert_eq!(book.enter(at(1, page * PAGE, page * PAGE)), Entered::First);
        }
    }

    /// A book with no room, in one address space.
    fn full() -> Book {
        let mut book = Book::new(MOST);
        for page in 0..MOST as u64 {
            assert_eq!(book.enter(at(1, page * PAGE, page * PAGE)), Entered::First);
        }
        book
    }

    #[test]
    fn what_had_no_room_makes_others_doubtful_until_it_is_gone() {
        let end: [fn(&mut Book); 4] = [
            |book| drop(book.strike_space(2)),
            |book| drop((book.invalidating(2, 0, u64::MAX), book.synced())),
            |book| drop((book.invalidating(0, 0, u64::MAX), book.synced())),
            Book::clear,
        ];
        for end in end {
            let mut book = full();
            let one_more = at(2, 0, MOST as u64 * PAGE);
            assert_eq!(book.enter(one_more), Entered::Lost);
            assert_eq!(book.strike_space(1).len(), MOST);
            // Somebody may use that frame and is not in the book.
            assert_eq!(book.enter(Translation { asid: 3, ..one_more }), Entered::Lost);
            book.strike_space(3);
            end(&mut book);
            assert_eq!(book.enter(one_more), Entered::First);
        }
    }

    #[test]
    fn what_had_no_room_may_be_used_behind_a_smaller_or_earlier_invalidation() {
        let mut book = full();
        let one_more = at(2, 0, MOST as u64 * PAGE);
        book.invalidating(0, 0, u64::MAX);
        assert_eq!(book.enter(one_more), Entered::Lost);
        book.synced();
        book.invalidating(2, 0, VA_END - PAGE);
        book.synced();
        book.invalidating(1, 0, u64::MAX);
        book.synced();
        assert_eq!(book.enter(at(3, 0, one_more.frame)), Entered::Lost);
        // All but what is obtained while it is under way.
        book.invalidating(0, 0, u64::MAX);
        book.synced();
        assert_eq!(book.enter(one_more), Entered::First);
    }

    #[test]
    fn too_many_announcements_are_as_good_as_none() {
        let mut book = Book::new(MOST);
        book.enter(at(1, 0, 0));
        for _ in 0..MOST_ANNOUNCED {
            book.invalidating(1, 0x8000, PAGE);
            assert!(!book.overflown());
        }
        book.invalidating(1, 0, PAGE);
        assert!(book.overflown());
        assert_eq!(outcome(&book.synced()), []);
        assert_eq!(book.frames().collect::<Vec<_>>(), [0]);
    }
}
