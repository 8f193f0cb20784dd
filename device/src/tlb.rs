// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An engine's translation cache, together with the memory snapshot that its pages are in.
//!
//! Both are in one struct and are replaced together, so a cached host pointer can't outlive the
//! mapping it points into. What is *still valid* to use is decided by [`crate::invalidate`].

#![expect(unsafe_code, reason = "ties cached host pages to the snapshot kept beside them")]

use std::sync::Arc;

use svmx_abi::pci::{MAX_CONTEXTS, PAGE_SHIFT, VA_END, page_base};
use svmx_abi::pte::{self, Access, HUGE_LEVEL};

use crate::invalidate::{Change, Record};
use crate::memory::{GuestMemory, HostPage, Page};
use crate::mmu::Translation;

/// Entries for 4 KiB pages; direct-mapped.
const SMALL_ENTRIES: usize = 8192;
/// Entries for 2 MiB pages; direct-mapped.
const HUGE_ENTRIES: usize = 512;
const HUGE_SHIFT: u32 = PAGE_SHIFT + pte::INDEX_BITS * HUGE_LEVEL;
/// Bits of an ASID in a key.
const ASID_BITS: u32 = 10;
const _: () = assert!(MAX_CONTEXTS < 1 << ASID_BITS);

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: Key,
    page: HostPage,
    access: Access,
}

/// Page number and ASID in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key(u64);

impl Key {
    fn new(asid: u32, number: u64) -> Self {
        Key((number << ASID_BITS) | u64::from(asid))
    }
    fn asid(self) -> u32 {
        (self.0 & ((1 << ASID_BITS) - 1)) as u32
    }
    fn number(self) -> u64 {
        self.0 >> ASID_BITS
    }
    /// Neighbouring pages get neighbouring sets; address spaces are spread.
    fn set(self, entries: usize) -> usize {
        let spread = u64::from(self.asid()).wrapping_mul(0x9e37_79b1);
        (self.number().wrapping_add(spread) % entries as u64) as usize
    }
}

/// Entries of one page size.
#[derive(Debug)]
struct Table {
    entries: Box<[Option<Entry>]>,
    shift: u32,
    /// Whether any entry may be there.
    used: bool,
}

impl Table {
    fn new(entries: usize, shift: u32) -> Self {
        Table { entries: vec![None; entries].into(), shift, used: false }
    }

    #[inline]
    fn find(&self, asid: u32, va: u64) -> Option<&Entry> {
        let key = Key::new(asid, va >> self.shift);
        self.entries[key.set(self.entries.len())].as_ref().filter(|entry| entry.key == key)
    }

    fn insert(&mut self, asid: u32, va: u64, page: HostPage, access: Access) {
        let key = Key::new(asid, va >> self.shift);
        self.used = true;
        self.entries[key.set(self.entries.len())] = Some(Entry { key, page, access });
    }

    fn clear(&mut self) {
        if self.used {
            self.entries.fill(None);
            self.used = false;
        }
    }

    /// Drops pages that overlap `va` to `last`: by probing each, or by looking at every entry if that
    /// is less work or the address space is not named.
    fn drop_range(&mut self, asid: u32, va: u64, last: u64) {
        if !self.used {
            return;
        }
        let (first, last) = (va >> self.shift, last >> self.shift);
        if asid != 0 && last - first < self.entries.len() as u64 {
            for number in first..=last {
                let key = Key::new(asid, number);
                let set = key.set(self.entries.len());
                self.entries[set].take_if(|entry| entry.key == key);
            }
        } else {
            let hit = |key: Key| (asid == 0 || key.asid() == asid) && (first..=last).contains(&key.number());
            for slot in &mut self.entries {
                slot.take_if(|entry| hit(entry.key));
            }
        }
    }
}

/// Translations of one engine, all from one snapshot of guest memory.
#[derive(Debug)]
pub struct Tlb {
    memory: Arc<GuestMemory>,
    small: Table,
    huge: Table,
}

impl Tlb {
    /// An empty cache over a snapshot.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        let small = Table::new(SMALL_ENTRIES, PAGE_SHIFT);
        Tlb { memory, small, huge: Table::new(HUGE_ENTRIES, HUGE_SHIFT) }
    }

    /// The snapshot.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The page of `va`, if its translation is cached.
    #[inline]
    pub fn lookup(&self, asid: u32, va: u64) -> Option<Page<'_>> {
        if let Some(entry) = self.small.find(asid, va) {
            // SAFETY: entries are filled from self.memory, and dropped when that is replaced.
            return Some(unsafe { entry.page.bind(&self.memory) }.with_access(entry.access));
        }
        if !self.huge.used {
            return None;
        }
        let entry = self.huge.find(asid, va)?;
        let pages = (va & (pte::span(HUGE_LEVEL) - 1)) >> PAGE_SHIFT;
        // SAFETY: only leaves whose 2 MiB are contiguous are entered, and `pages` is below 512.
        let page = unsafe { entry.page.offset(pages) };
        // SAFETY: as above.
        Some(unsafe { page.bind(&self.memory) }.with_access(entry.access))
    }

    /// Caches a translation; `None` if it leads outside guest memory.
    pub fn fill(&mut self, asid: u32, va: u64, translation: Translation) -> Option<Page<'_>> {
        let Translation { frame, access, huge } = translation;
        let page = self.memory.host_page(frame)?;
        let span = pte::span(HUGE_LEVEL);
        let base = frame & !(span - 1);
        if huge && self.memory.contiguous(base, span) {
            self.huge.insert(asid, va, self.memory.host_page(base)?, access);
        } else {
            self.small.insert(asid, page_base(va), page, access);
        }
        // SAFETY: the page was just found in self.memory.
        Some(unsafe { page.bind(&self.memory) }.with_access(access))
    }

    /// Drops the translation of `va`, if one is cached.
    pub fn forget(&mut self, asid: u32, va: u64) {
        self.small.drop_range(asid, va, va);
        self.huge.drop_range(asid, va, va);
    }

    /// Applies a change that was published.
    pub fn apply(&mut self, change: Change<GuestMemory>) {
        match change {
            Change::Drop(Record::Attention | Record::Recall) => {}
            Change::Drop(Record::All) => self.clear(),
            Change::Drop(Record::Range { asid, va, len }) => {
                let last = va.saturating_add(len.saturating_sub(1)).min(VA_END - 1);
                if len > 0 && va <= last {
                    self.small.drop_range(asid, va, last);
                    self.huge.drop_range(asid, va, last);
                }
            }
            Change::Snapshot(memory) => {
                self.clear();
                self.memory = memory;
            }
        }
    }

    fn clear(&mut self) {
        self.small.clear();
        self.huge.clear();
    }
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

    fn leaf(frame: u64, huge: bool) -> Translation {
        Translation { frame, access: Access::READ, huge }
    }

    fn range(asid: u32, va: u64, len: u64) -> Change<GuestMemory> {
        Change::Drop(Record::Range { asid, va, len })
    }

    #[test]
    fn a_range_takes_its_pages_and_no_other() {
        let mut tlb = Tlb::new(memory(&[HUGE]));
        for page in 0..8 {
            tlb.fill(1, page << 12, leaf(page << 12, false)).unwrap();
            tlb.fill(2, page << 12, leaf(page << 12, false)).unwrap();
        }
        tlb.apply(range(1, 0x2000, 0x2000));
        let left: Vec<_> = (0..8).filter(|page| tlb.lookup(1, page << 12).is_some()).collect();
        assert_eq!(left, [0, 1, 4, 5, 6, 7]);
        assert!(tlb.lookup(2, 0x2000).is_some());
        tlb.apply(range(0, 0x2000, u64::MAX));
        assert!(tlb.lookup(2, 0x2000).is_none() && tlb.lookup(2, 0x1000).is_some());
        tlb.apply(range(2, 0, u64::MAX));
        assert!(tlb.lookup(2, 0x1000).is_none() && tlb.lookup(1, 0x1000).is_some());
    }

    #[test]
    fn part_of_a_huge_page_takes_it_whole() {
        let mut tlb = Tlb::new(memory(&[2 * HUGE]));
        tlb.fill(1, HUGE + 0x5000, leaf(HUGE + 0x5000, true)).unwrap();
        assert_eq!(tlb.lookup(1, HUGE + 0x7008).unwrap().frame(), HUGE + 0x7000);
        tlb.apply(range(1, HUGE + 0x1000, 0x1000));
        assert!(tlb.lookup(1, HUGE + 0x7000).is_none());
    }

    #[test]
    fn a_huge_leaf_over_two_maps_is_cached_by_page() {
        let mut tlb = Tlb::new(memory(&[HUGE / 2, HUGE / 2]));
        let page = tlb.fill(1, HUGE - 0x1000, leaf(HUGE - 0x1000, true)).unwrap();
        assert_eq!(page.frame(), HUGE - 0x1000);
        assert!(tlb.lookup(1, 0).is_none() && tlb.lookup(1, HUGE - 0x1000).is_some());
        assert!(tlb.fill(1, 0, leaf(16 * HUGE, false)).is_none());
    }

    #[test]
    fn a_new_snapshot_forgets_the_old() {
        let mut tlb = Tlb::new(memory(&[HUGE]));
        tlb.fill(1, 0, leaf(0, false)).unwrap();
        tlb.apply(Change::Snapshot(memory(&[])));
        assert!(tlb.lookup(1, 0).is_none() && tlb.memory().word32(0, false).is_none());
    }
}
