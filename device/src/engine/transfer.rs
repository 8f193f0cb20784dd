// SPDX-License-Identifier: Apache-2.0 OR MIT

//! COPY and FILL, up to a page at a time (spec 5.6), under the conditions of [`super::batch`].
//!
//! Memory is accessed in words of 64 bits where source and destination are aligned alike, else in elements. A
//! translation is looked up once for a page; whether it still holds, before each [`STRETCH`] of it.

use svmx_abi::pci::{PAGE_SIZE, page_offset};

use crate::command::{Fill, Transfer, Width};
use crate::compute::Word;
use crate::memory::Page;
use crate::tlb::View;

const WORD: u64 = size_of::<u64>() as u64;
/// Bytes between two looks at what is to be caught up with: whole elements, and 32 accesses of a word.
const STRETCH: u64 = 256;

/// Fills elements from `from` on, at most `left`, until there is something to catch up with: how many.
pub(super) fn fill(
    view: View<'_>,
    fill: &Fill,
    from: u32,
    left: u32,
    behind: impl Fn() -> bool,
) -> Option<u32> {
    let bytes = fill.width.bytes();
    let va = fill.destination.checked_add(u64::from(from) * bytes)?;
    let page = view.find(va).filter(|hit| hit.stores()).map(|hit| hit.page)?;
    let count = left.min(((PAGE_SIZE - page_offset(va)) / bytes) as u32);
    let end = va + u64::from(count) * bytes;
    let mut at = va;
    while at < end && !behind() {
        let stop = end.min((at / STRETCH + 1) * STRETCH);
        match fill.width {
            Width::W8 => {
                pattern(page, at, stop, fill.value as u8, (fill.value & 0xff) * 0x0101_0101_0101_0101)
            }
            Width::W32 => {
                pattern(page, at, stop, fill.value as u32, (fill.value & 0xffff_ffff) * 0x1_0000_0001);
            }
            Width::W64 | Width::W128 => pattern(page, at, stop, fill.value, fill.value),
        }
        at = stop;
    }
    Some(((at - va) / bytes) as u32)
}

/// Stores elements, and words of elements where there are whole ones.
fn pattern<W: Word>(page: Page<'_>, from: u64, end: u64, element: W, word: u64) {
    let mut va = from;
    while va < end {
        if va.is_multiple_of(WORD) && end - va >= WORD {
            word.store(page, va);
            va += WORD;
        } else {
            element.store(page, va);
            va += size_of::<W>() as u64;
        }
    }
}

/// Copies elements from `from` on, at most `left`, in the command's direction, until there is something to catch
/// up with: how many.
pub(super) fn copy(
    view: View<'_>,
    copy: &Transfer,
    from: u32,
    left: u32,
    behind: impl Fn() -> bool,
) -> Option<u32> {
    let (bytes, backwards) = (copy.width.bytes(), copy.backwards());
    let first = u64::from(if backwards { copy.count - 1 - from } else { from }) * bytes;
    let (source, destination) = (copy.source.checked_add(first)?, copy.destination.checked_add(first)?);
    let room =
        |va| if backwards { page_offset(va) / bytes + 1 } else { (PAGE_SIZE - page_offset(va)) / bytes };
    let count = u64::from(left).min(room(source)).min(room(destination));
    let loads = view.find(source).filter(|hit| hit.page.access().read)?.page;
    let stores = view.find(destination).filter(|hit| hit.stores())?.page;
    let below = if backwards { (count - 1) * bytes } else { 0 };
    let part = Part {
        pages: (loads, stores),
        source: source - below,
        destination: destination - below,
        bytes: count * bytes,
    };
    let done = match copy.width {
        Width::W8 => part.copy::<u8>(backwards, behind),
        Width::W32 => part.copy::<u32>(backwards, behind),
        Width::W64 | Width::W128 => part.copy::<u64>(backwards, behind),
    };
    Some((done / bytes) as u32)
}

/// Part of a COPY between two pages, or in one.
struct Part<'t> {
    pages: (Page<'t>, Page<'t>),
    source: u64,
    destination: u64,
    bytes: u64,
}

impl Part<'_> {
    /// Copies in whole stretches: how many bytes.
    fn copy<W: Word>(&self, backwards: bool, behind: impl Fn() -> bool) -> u64 {
        let mut done = 0;
        while done < self.bytes && !behind() {
            let stop = self.bytes.min(done + STRETCH);
            self.stretch::<W>(backwards, done, stop);
            done = stop;
        }
        done
    }

    /// Copies what comes behind `done` bytes, up to `stop` of them.
    fn stretch<W: Word>(&self, backwards: bool, mut done: u64, stop: u64) {
        let alike = (self.source ^ self.destination).is_multiple_of(WORD);
        let whole = |at: u64| alike && (self.source + at).is_multiple_of(WORD);
        let element = size_of::<W>() as u64;
        while done < stop {
            let edge = if backwards { self.bytes - done } else { done };
            let size = if whole(edge) && stop - done >= WORD { WORD } else { element };
            let at = if backwards { edge - size } else { edge };
            if size == WORD {
                self.one::<u64>(at)
            } else {
                self.one::<W>(at)
            }
            done += size;
        }
    }

    #[inline(always)]
    fn one<W: Word>(&self, at: u64) {
        W::load(self.pages.0, self.source + at).store(self.pages.1, self.destination + at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{DmaMap, GuestMemory};
    use crate::mmu::Translation;
    use crate::tlb::Tlb;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::cell::Cell;
    use std::sync::Arc;
    use svmx_abi::pte::Access;

    /// Two pages that are cached, each where it is.
    fn tlb() -> Tlb {
        let file = std::fs::File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(2 * PAGE_SIZE).unwrap();
        let map = DmaMap { address: 0, size: 2 * PAGE_SIZE, file, offset: 0, writable: true };
        let mut tlb = Tlb::new(Arc::new(GuestMemory::default().with_map(map).unwrap())).unwrap();
        for frame in [0, PAGE_SIZE] {
            let access = Access { read: true, write: true, ..Default::default() };
            tlb.fill(1, frame, Translation { frame, access, huge: false }).unwrap();
        }
        tlb
    }

    /// Sees nothing so many times.
    fn behind_after(looks: u32) -> impl Fn() -> bool {
        let left = Cell::new(looks);
        move || left.replace(left.get().saturating_sub(1)) == 0
    }

    fn byte(tlb: &Tlb, at: u64) -> u8 {
        u8::load(tlb.memory().page(at, false).unwrap(), at)
    }

    #[test]
    fn a_fill_stops_inside_a_page() {
        let tlb = tlb();
        let fill_until = |width, destination, count, looks| {
            let all = Fill { width, count, destination, value: 0x0101_0101_0101_0101 };
            fill(tlb.view(1), &all, 0, count, behind_after(looks)).unwrap()
        };
        assert_eq!(fill_until(Width::W8, 3, 4000, 0), 0);
        assert_eq!(fill_until(Width::W8, 3, 4000, 2), 2 * 256 - 3);
        assert_eq!((byte(&tlb, 2), byte(&tlb, 3), byte(&tlb, 511), byte(&tlb, 512)), (0, 1, 1, 0));
        assert_eq!(fill_until(Width::W64, 0, 600, u32::MAX), 512, "a page");
        assert_eq!(fill_until(Width::W32, 4, 10, 1), 10);
    }

    #[test]
    fn a_copy_stops_inside_a_page_in_its_direction() {
        let tlb = tlb();
        for at in 0..2 * PAGE_SIZE {
            (at as u8).store(tlb.memory().page(at, true).unwrap(), at);
        }
        let copy_until = |source, destination, looks| {
            let all = Transfer { width: Width::W32, count: 500, source, destination };
            copy(tlb.view(1), &all, 0, 500, behind_after(looks)).unwrap()
        };
        assert_eq!(copy_until(8, PAGE_SIZE + 4, 0), 0);
        assert_eq!(copy_until(8, PAGE_SIZE + 4, 3), 3 * 64);
        let last = PAGE_SIZE + 4 + 3 * 256;
        assert_eq!((byte(&tlb, last - 1), byte(&tlb, last)), (3 * 256u64 as u8 + 7, last as u8));
        // Upwards inside itself, so from its end.
        assert_eq!(copy_until(0, 4, 1), 64);
        let first = 4 + 2000 - 256;
        assert_eq!((byte(&tlb, first), byte(&tlb, first - 1)), ((first - 4) as u8, (first - 1) as u8));
        assert_eq!(copy_until(8, PAGE_SIZE + 8, u32::MAX), 500);
    }
}
