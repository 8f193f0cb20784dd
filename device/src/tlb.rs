// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An engine's translation cache, together with the memory snapshot that its pages are in.
//!
//! Both are in one struct and are replaced together, so a cached host pointer can't outlive the
//! mapping it points into. What is *still valid* to use is decided by [`crate::invalidate`].
//!
//! Entries of 4 KiB pages are found in one look at sixteen bytes, enough of them for 1 GiB; memory of entries that
//! were never used costs nothing. Four of them are in each cache line, and a page can be in any of a line's; but it has a
//! favourite there, which is free unless regions that are used together happen to fall on the same lines: then
//! the others are looked at too. A leaf of 2 MiB is kept in a small table of its own, and is split into
//! entries of the first kind where it is used. Every entry carries the *generation* of its address space: raising that
//! drops a whole space at once.
//!
//! An entry also remembers that this engine owns its page ([`crate::ownership`]), in the current *recall*: what
//! the engine owns is to be asked for again after each [`Record::Recall`].

#![expect(unsafe_code, reason = "ties cached host pages to the snapshot kept beside them")]

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use svmx_abi::pci::{MAX_CONTEXTS, PAGE_SHIFT, PAGE_SIZE, VA_BITS, VA_END, page_base};
use svmx_abi::pte::{self, Access, HUGE_LEVEL};
use zerocopy::FromZeros;

use crate::invalidate::{Change, Record};
use crate::memory::{self, GuestMemory, HostPage, Page};
use crate::mmu::Translation;
use crate::zeroed::Zeroed;

/// Entries of a set, which is a cache line.
const WAYS: usize = 4;
/// Sets for 4 KiB pages.
const SETS: usize = 1 << 16;
/// Sets for 2 MiB pages.
const HUGE_SETS: usize = 128;
/// Pages of a range, at least, with which the whole address space is dropped: what is lost is cheaper than to look
/// for each of them.
const MANY: u64 = 1 << 14;
const HUGE_SHIFT: u32 = PAGE_SHIFT + pte::INDEX_BITS * HUGE_LEVEL;
/// Bits of an ASID in a tag.
const ASID_BITS: u32 = 10;
const ASIDS: usize = 1 << ASID_BITS;
const _: () = assert!(MAX_CONTEXTS < ASIDS as u32);
/// Bits of a page number in a tag.
const NUMBER_BITS: u32 = VA_BITS - PAGE_SHIFT;
const GENERATION_SHIFT: u32 = NUMBER_BITS + ASID_BITS;
/// Generations of a space; the last one is followed by the first when no entry is left.
const GENERATIONS: u64 = 1 << (63 - GENERATION_SHIFT);
const VALID: u64 = 1 << 63;
/// 2^64 divided by the golden ratio: multiples of it are far apart in their upper bits.
const FIBONACCI: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a page's number is combined with to be a tag: address space and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Space(u64);

impl Space {
    #[inline(always)]
    fn tag(self, va: u64, shift: u32) -> u64 {
        self.0 | va >> shift
    }
    /// Where a page is, if it is at its favourite place: set and way. Neighbouring pages are in neighbouring sets, and
    /// pages in a row meet themselves in no way until the table is full. Regions as large as a way are spread, and so are
    /// address spaces: programs like to have their arrays at round distances.
    #[inline(always)]
    fn favourite(self, va: u64, shift: u32, sets: usize) -> (usize, usize) {
        let number = va >> shift;
        // The address space, and the region in it.
        let key = (self.0 & !(u64::MAX << GENERATION_SHIFT) | number) / sets as u64;
        let spread = key.wrapping_mul(FIBONACCI) >> 40;
        ((number + spread) as usize & (sets - 1), key as usize % WAYS)
    }
}

/// A translation: which, and where it leads.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
#[repr(C, align(16))]
struct Entry {
    tag: u64,
    place: Place,
}

/// A host page, aligned and below 2^48, with what is allowed there in its low bits and the recall in which it was
/// owned in its upper ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
#[repr(transparent)]
struct Place(u64);

impl Place {
    const READ: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const ATOMIC: u64 = 1 << 2;
    const COHERENT: u64 = 1 << 3;
    /// The DMA map lets the device write.
    const WRITABLE: u64 = 1 << 4;
    const RECALL_SHIFT: u32 = 48;
    const HOST: u64 = (1 << Self::RECALL_SHIFT) - PAGE_SIZE;

    /// `None` if the host's address does not fit: such a page is not cached.
    fn new(page: Page<'_>) -> Option<Self> {
        let Access { read, write, atomic, coherent } = page.access();
        let flag = |set: bool, flag| if set { flag } else { 0 };
        let host = page.host().expose_provenance() as u64;
        (host & !Self::HOST == 0).then_some(Place(
            host | flag(read, Self::READ)
                | flag(write, Self::WRITE)
                | flag(atomic, Self::ATOMIC)
                | flag(coherent, Self::COHERENT)
                | flag(page.writable(), Self::WRITABLE),
        ))
    }
    #[inline(always)]
    fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }
    fn access(self) -> Access {
        let [read, write, atomic, coherent] =
            [Self::READ, Self::WRITE, Self::ATOMIC, Self::COHERENT].map(|flag| self.has(flag));
        Access { read, write, atomic, coherent }
    }
    #[inline(always)]
    fn host(self) -> Option<NonNull<u8>> {
        NonNull::new(ptr::with_exposed_provenance_mut((self.0 & Self::HOST) as usize))
    }
    #[inline(always)]
    fn recall(self) -> u64 {
        self.0 >> Self::RECALL_SHIFT
    }
    fn owned_in(self, recall: u64) -> Self {
        Place(self.0 & !(u64::MAX << Self::RECALL_SHIFT) | recall << Self::RECALL_SHIFT)
    }
}

/// Entries that share a cache line.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C, align(64))]
struct Set([Entry; WAYS]);

/// Entries of one page size.
#[derive(Debug)]
struct Table<const SETS: usize, const SHIFT: u32> {
    sets: Zeroed<[Set; SETS]>,
    /// Guest-physical addresses of their pages, which are not needed at each element.
    frames: Zeroed<[[u64; WAYS]; SETS]>,
    /// Whether any entry may be there.
    used: bool,
}

impl<const SETS: usize, const SHIFT: u32> Table<SETS, SHIFT> {
    fn new() -> io::Result<Self> {
        Ok(Table { sets: Zeroed::new()?, frames: Zeroed::new()?, used: false })
    }

    /// Set and way of a page that is there.
    fn find(&self, space: Space, va: u64) -> Option<(usize, usize)> {
        let (set, _) = space.favourite(va, SHIFT, SETS);
        Some((set, self.sets[set].way_of(space.tag(va, SHIFT))?))
    }

    /// Enters a page, in place of one that is of no use any more, or of the one at its favourite place.
    fn insert(&mut self, space: Space, va: u64, page: Page<'_>, is_stale: impl Fn(u64) -> bool) {
        let Some(place) = Place::new(page) else { return };
        let tag = space.tag(va, SHIFT);
        let (set, favourite) = space.favourite(va, SHIFT, SETS);
        let entries = &mut self.sets[set];
        let mut ways = (0..WAYS).map(|step| (favourite + step) % WAYS);
        let way = entries.way_of(tag);
        let way = way.or_else(|| ways.find(|&way| is_stale(entries.0[way].tag))).unwrap_or(favourite);
        entries.0[way] = Entry { tag, place };
        self.frames[set][way] = page.frame();
        self.used = true;
    }

    /// Entries that were never used are not touched, so that they go on costing nothing.
    fn clear(&mut self) {
        if self.used {
            let entries = self.sets.iter_mut().flat_map(|set| &mut set.0);
            entries.filter(|entry| entry.tag != 0).for_each(|entry| *entry = Entry::default());
            self.used = false;
        }
    }

    /// Drops the pages that overlap `va` to `last`, one by one; or says that it would be more work than to drop
    /// the whole space.
    fn drop_range(&mut self, space: Space, va: u64, last: u64) -> bool {
        let (first, last) = (va >> SHIFT, last >> SHIFT);
        if !self.used {
            return true;
        }
        if last - first >= MANY.min((SETS * WAYS) as u64) {
            return false;
        }
        for number in first..=last {
            if let Some((set, way)) = self.find(space, number << SHIFT) {
                self.sets[set].0[way] = Entry::default();
            }
        }
        true
    }
}

impl Set {
    fn way_of(&self, tag: u64) -> Option<usize> {
        self.0.iter().position(|entry| entry.tag == tag)
    }
}

fn zeroed<T: FromZeros, const N: usize>() -> Box<[T; N]> {
    <[T; N]>::new_box_zeroed().expect("memory for a TLB")
}

/// Translations of one engine, all from one snapshot of guest memory.
#[derive(Debug)]
pub struct Tlb {
    memory: Arc<GuestMemory>,
    small: Table<SETS, PAGE_SHIFT>,
    huge: Table<HUGE_SETS, HUGE_SHIFT>,
    /// Of each address space.
    generations: Box<[u64; ASIDS]>,
    /// What there may be of each address space.
    contents: Box<[Contents; ASIDS]>,
    /// Never zero, which is what entries carry that are not owned.
    recall: u64,
}

/// Whether there may be entries of an address space, and any of them part of a leaf of 2 MiB.
#[derive(Clone, Copy, Debug, Default)]
struct Contents {
    pages: bool,
    leaves: bool,
}

/// A page in the cache.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'t> {
    /// The page.
    pub page: Page<'t>,
    /// Whether this engine owns it, so that it need not ask.
    pub owned: bool,
}

impl Hit<'_> {
    /// Whether stores may go there without a word to anybody.
    #[inline(always)]
    pub fn stores(&self) -> bool {
        let page = self.page;
        page.access().write && page.writable() && (self.owned || !page.exclusive())
    }
}

/// Where an entry is, for those who look again soon. It means something as long as the view in which it was found.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    set: u32,
    way: u32,
}

/// The translations of one address space, found without a detour.
#[derive(Clone, Copy, Debug)]
pub struct View<'t> {
    memory: &'t GuestMemory,
    sets: &'t [Set; SETS],
    frames: &'t [[u64; WAYS]; SETS],
    space: Space,
    recall: u64,
}

impl<'t> View<'t> {
    /// The page of `va` if its translation is cached.
    #[inline(always)]
    pub fn find(&self, va: u64) -> Option<Hit<'t>> {
        self.at(self.slot(va)?)
    }

    /// The entry of `va` if its translation is cached.
    #[inline(always)]
    pub fn slot(&self, va: u64) -> Option<Slot> {
        if va >= VA_END {
            return None;
        }
        let (set, mut way) = self.space.favourite(va, PAGE_SHIFT, SETS);
        let (entries, tag) = (&self.sets[set], self.space.tag(va, PAGE_SHIFT));
        if entries.0[way].tag != tag {
            way = elsewhere(entries, tag)?;
        }
        Some(Slot { set: set as u32, way: way as u32 })
    }

    /// The page of an entry that was found in this view.
    #[inline(always)]
    pub fn at(&self, slot: Slot) -> Option<Hit<'t>> {
        let (set, way) = (slot.set as usize % SETS, slot.way as usize % WAYS);
        let place = self.sets[set].0[way].place;
        let page = HostPage::new(place.host()?, self.frames[set][way], place.has(Place::WRITABLE));
        // SAFETY: entries are filled from this snapshot, and when the TLB replaces it none is left.
        let page = unsafe { page.bind(self.memory) }.with_access(place.access());
        Some(Hit { page, owned: place.recall() == self.recall })
    }

    /// Loads what [`Self::find`] will look at.
    #[inline(always)]
    pub fn prefetch(&self, va: u64) {
        let (set, _) = self.space.favourite(va, PAGE_SHIFT, SETS);
        memory::prefetch(&self.sets[set]);
    }
}

/// Out of the way of those that find a page where they look first.
#[inline(never)]
fn elsewhere(set: &Set, tag: u64) -> Option<usize> {
    set.way_of(tag)
}

impl Tlb {
    /// An empty cache over a snapshot.
    ///
    /// # Errors
    ///
    /// The host has no memory for it.
    pub fn new(memory: Arc<GuestMemory>) -> io::Result<Self> {
        let (small, huge) = (Table::new()?, Table::new()?);
        Ok(Tlb {
            memory,
            small,
            huge,
            generations: zeroed(),
            contents: [Contents::default(); ASIDS].into(),
            recall: 1,
        })
    }

    /// The snapshot.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn space(&self, asid: u32) -> Space {
        let asid = asid as usize & (ASIDS - 1);
        Space(VALID | self.generations[asid] << GENERATION_SHIFT | (asid as u64) << NUMBER_BITS)
    }

    /// The translations of an address space.
    #[inline]
    pub fn view(&self, asid: u32) -> View<'_> {
        let Tlb { memory, small: Table { sets, frames, .. }, recall, .. } = self;
        View { memory, sets, frames, space: self.space(asid), recall: *recall }
    }

    /// The page of `va` if its translation is cached.
    pub fn lookup(&self, asid: u32, va: u64) -> Option<Page<'_>> {
        self.view(asid).find(va).map(|hit| hit.page)
    }

    /// This engine owns the page of `va`, until it is recalled.
    pub fn own(&mut self, asid: u32, va: u64) {
        if let Some((set, way)) = self.small.find(self.space(asid), va) {
            let place = &mut self.small.sets[set].0[way].place;
            *place = place.owned_in(self.recall);
        }
    }

    /// Makes [`Self::find`] find the page of `va` if it is part of a cached leaf of 2 MiB.
    pub fn split(&mut self, asid: u32, va: u64) {
        let space = self.space(asid);
        if !self.contents[asid as usize & (ASIDS - 1)].leaves || self.small.find(space, va).is_some() {
            return;
        }
        if let Some((set, way)) = self.huge.find(space, va) {
            let frame = self.huge.frames[set][way] + page_base(va & (pte::span(HUGE_LEVEL) - 1));
            let access = self.huge.sets[set].0[way].place.access();
            if let Some(page) = self.memory.page(frame, false) {
                let Tlb { small, generations, .. } = self;
                small.insert(space, va, page.with_access(access), |tag| is_stale(generations, tag));
            }
        }
    }

    /// Caches a translation; `None` if it leads outside guest memory.
    pub fn fill(&mut self, asid: u32, va: u64, translation: Translation) -> Option<Page<'_>> {
        let Translation { frame, access, huge } = translation;
        let space = self.space(asid);
        let Tlb { memory, small, huge: leaves, generations, .. } = self;
        let page = memory.page(frame, false)?.with_access(access);
        let base = frame & !(pte::span(HUGE_LEVEL) - 1);
        if huge && memory.contiguous(base, pte::span(HUGE_LEVEL)) {
            let leaf = memory.page(base, false)?.with_access(access);
            leaves.insert(space, va, leaf, |tag| is_stale(generations, tag));
        }
        small.insert(space, va, page, |tag| is_stale(generations, tag));
        let contents = &mut self.contents[asid as usize & (ASIDS - 1)];
        // What is split off a leaf goes with all of it, also if the leaf itself is in no piece.
        *contents = Contents { pages: true, leaves: contents.leaves | huge };
        Some(page)
    }

    /// Drops the translation of `va`, if one is cached.
    pub fn forget(&mut self, asid: u32, va: u64) {
        self.drop_range(asid, va, va);
    }

    /// Applies a change that was published.
    pub fn apply(&mut self, change: Change<GuestMemory>) {
        match change {
            Change::Drop(Record::Attention) => {}
            Change::Drop(Record::Recall) => self.give_up(),
            Change::Drop(Record::All) => self.drop_all(),
            Change::Drop(Record::Range { asid, va, len }) => {
                let last = va.saturating_add(len.saturating_sub(1)).min(VA_END - 1);
                if len > 0 && va <= last {
                    match asid {
                        0 => self.drop_all(),
                        asid => self.drop_range(asid, va, last),
                    }
                }
            }
            Change::Snapshot(memory) => {
                self.clear();
                self.memory = memory;
            }
        }
    }

    /// What is owned is asked for again.
    pub fn give_up(&mut self) {
        self.recall += 1;
        if self.recall >= 1 << (u64::BITS - Place::RECALL_SHIFT) {
            self.small.clear();
            self.recall = 1;
        }
    }

    fn drop_range(&mut self, asid: u32, mut va: u64, mut last: u64) {
        let space = self.space(asid);
        let contents = self.contents[asid as usize & (ASIDS - 1)];
        if !contents.pages {
            return;
        }
        if contents.leaves {
            // A leaf of 2 MiB is dropped whole, with what was split off.
            va &= !(pte::span(HUGE_LEVEL) - 1);
            last |= pte::span(HUGE_LEVEL) - 1;
        }
        if !self.small.drop_range(space, va, last) || !self.huge.drop_range(space, va, last) {
            self.drop_space(asid);
        }
    }

    fn drop_space(&mut self, asid: u32) {
        let asid = asid as usize & (ASIDS - 1);
        if !std::mem::take(&mut self.contents[asid]).pages {
            return;
        }
        let generation = &mut self.generations[asid];
        *generation += 1;
        if *generation == GENERATIONS {
            *generation = 0;
            self.clear();
        }
    }

    fn drop_all(&mut self) {
        (0..=MAX_CONTEXTS).for_each(|asid| self.drop_space(asid));
    }

    fn clear(&mut self) {
        self.small.clear();
        self.huge.clear();
        self.contents.fill(Contents::default());
    }
}

/// Whether an entry with this tag was never made, or has been dropped with its address space.
fn is_stale(generations: &[u64; ASIDS], tag: u64) -> bool {
    let asid = (tag >> NUMBER_BITS) as usize & (ASIDS - 1);
    tag & VALID == 0 || (tag & !VALID) >> GENERATION_SHIFT != generations[asid]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::DmaMap;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    const HUGE: u64 = 2 << 20;

    fn memory(sizes: &[u64]) -> Arc<GuestMemory> {
        let mut memory = GuestMemory::default();
        let mut address = 0;
        for &size in sizes {
            let file = std::fs::File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(size).unwrap();
            memory = memory.with_map(DmaMap { address, size, file, offset: 0, writable: true }).unwrap();
            address += size;
        }
        Arc::new(memory)
    }

    fn tlb(sizes: &[u64]) -> Tlb {
        Tlb::new(memory(sizes)).unwrap()
    }

    fn leaf(frame: u64, huge: bool) -> Translation {
        Translation { frame, access: Access::READ, huge }
    }

    fn range(asid: u32, va: u64, len: u64) -> Change<GuestMemory> {
        Change::Drop(Record::Range { asid, va, len })
    }

    #[test]
    fn a_range_takes_its_pages_and_no_other() {
        let mut tlb = tlb(&[HUGE]);
        for page in 0..8 {
            tlb.fill(1, page << 12, leaf(page << 12, false)).unwrap();
            tlb.fill(2, page << 12, leaf(page << 12, false)).unwrap();
        }
        tlb.apply(range(1, 0x2000, 0x2000));
        let left: Vec<_> = (0..8).filter(|page| tlb.lookup(1, page << 12).is_some()).collect();
        assert_eq!(left, [0, 1, 4, 5, 6, 7]);
        assert!(tlb.lookup(2, 0x2000).is_some());
        tlb.apply(range(2, 0, u64::MAX));
        assert!(tlb.lookup(2, 0x1000).is_none() && tlb.lookup(1, 0x1000).is_some());
        tlb.apply(range(0, 0x2000, 0x1000));
        assert!(tlb.lookup(1, 0x2000).is_none());
    }

    #[test]
    fn part_of_a_huge_page_takes_it_whole() {
        let mut tlb = tlb(&[2 * HUGE]);
        tlb.fill(1, HUGE + 0x5000, leaf(HUGE + 0x5000, true)).unwrap();
        assert!(tlb.lookup(1, HUGE + 0x7008).is_none());
        tlb.split(1, HUGE + 0x7008);
        assert_eq!(tlb.lookup(1, HUGE + 0x7008).unwrap().frame(), HUGE + 0x7000);
        tlb.apply(range(1, HUGE + 0x1000, 0x1000));
        tlb.split(1, HUGE + 0x6000);
        assert!([5, 6, 7].iter().all(|page| tlb.lookup(1, HUGE + page * 0x1000).is_none()));
    }

    #[test]
    fn a_huge_leaf_over_two_maps_is_cached_by_page() {
        let mut tlb = tlb(&[HUGE / 2, HUGE / 2]);
        let page = tlb.fill(1, HUGE - 0x1000, leaf(HUGE - 0x1000, true)).unwrap();
        assert_eq!(page.frame(), HUGE - 0x1000);
        assert!(tlb.lookup(1, 0).is_none() && tlb.lookup(1, HUGE - 0x1000).is_some());
        assert!(tlb.fill(1, 0, leaf(16 * HUGE, false)).is_none());
    }

    #[test]
    fn part_of_a_huge_page_over_two_maps_takes_it_whole() {
        let mut tlb = tlb(&[HUGE / 2, HUGE / 2]);
        for page in [5, 6] {
            tlb.fill(1, page << 12, leaf(page << 12, true)).unwrap();
        }
        tlb.apply(range(1, 0x5000, 0x1000));
        assert!([5, 6].iter().all(|page| tlb.lookup(1, page << 12).is_none()));
    }

    #[test]
    fn pages_in_a_row_fill_the_table() {
        let mut tlb = tlb(&[HUGE]);
        let pages = (SETS * WAYS) as u64;
        (0..pages).for_each(|page| assert!(tlb.fill(3, page << 12, leaf(0, false)).is_some()));
        assert!((0..pages).all(|page| tlb.lookup(3, page << 12).is_some()));
        tlb.fill(3, pages << 12, leaf(0, false)).unwrap();
        let left = (0..pages).filter(|page| tlb.lookup(3, page << 12).is_some()).count();
        assert_eq!(left as u64, pages - 1, "one gave way");
        // What was dropped with its space gives way before what was not.
        tlb.fill(1, 0, leaf(0, false)).unwrap();
        tlb.apply(range(3, 0, u64::MAX));
        (0..pages).step_by(5).for_each(|page| assert!(tlb.fill(2, page << 12, leaf(0, false)).is_some()));
        assert!(tlb.lookup(1, 0).is_some() && tlb.lookup(3, 0).is_none());
    }

    #[test]
    fn arrays_at_round_distances_are_not_in_each_other_s_way() {
        const PAGES: u64 = 1 << 14;
        for shift in 30..=44 {
            let mut tlb = tlb(&[HUGE]);
            let pages = || (0..4).flat_map(|at| (0..PAGES).map(move |page| (at << shift) + (page << 12)));
            pages().for_each(|va| assert!(tlb.fill(1, va, leaf(0, false)).is_some()));
            assert!(pages().all(|va| tlb.lookup(1, va).is_some()), "at a distance of 2^{shift}");
        }
    }

    #[test]
    fn a_new_snapshot_forgets_the_old() {
        let mut tlb = tlb(&[HUGE]);
        tlb.fill(1, 0, leaf(0, false)).unwrap();
        tlb.apply(Change::Snapshot(memory(&[])));
        assert!(tlb.lookup(1, 0).is_none() && tlb.memory().word32(0, false).is_none());
    }
}
