// SPDX-License-Identifier: Apache-2.0 OR MIT

//! COPY and FILL, up to a page at a time (spec 5.6), under the conditions of [`super::batch`].
//!
//! Memory is accessed in words of 64 bits where source and destination are aligned alike, else in elements.

use svmx_abi::pci::{PAGE_SIZE, page_offset};

use crate::command::{Fill, Transfer, Width};
use crate::compute::Word;
use crate::memory::Page;
use crate::tlb::View;

const WORD: u64 = size_of::<u64>() as u64;

/// Fills elements from `from` on, at most `left`: how many.
pub(super) fn fill(view: View<'_>, fill: &Fill, from: u32, left: u32) -> Option<u32> {
    let bytes = fill.width.bytes();
    let va = fill.destination.checked_add(u64::from(from) * bytes)?;
    let page = view.find(va).filter(|hit| hit.stores()).map(|hit| hit.page)?;
    let count = left.min(((PAGE_SIZE - page_offset(va)) / bytes) as u32);
    let end = va + u64::from(count) * bytes;
    match fill.width {
        Width::W8 => pattern(page, va, end, fill.value as u8, (fill.value & 0xff) * 0x0101_0101_0101_0101),
        Width::W32 => {
            pattern(page, va, end, fill.value as u32, (fill.value & 0xffff_ffff) * 0x1_0000_0001);
        }
        Width::W64 | Width::W128 => pattern(page, va, end, fill.value, fill.value),
    }
    Some(count)
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

/// Copies elements from `from` on, at most `left`, in the command's direction: how many.
pub(super) fn copy(view: View<'_>, copy: &Transfer, from: u32, left: u32) -> Option<u32> {
    let (bytes, backwards) = (copy.width.bytes(), copy.backwards());
    let first = u64::from(if backwards { copy.count - 1 - from } else { from }) * bytes;
    let (source, destination) = (copy.source.checked_add(first)?, copy.destination.checked_add(first)?);
    let room =
        |va| if backwards { page_offset(va) / bytes + 1 } else { (PAGE_SIZE - page_offset(va)) / bytes };
    let count = u64::from(left).min(room(source)).min(room(destination));
    let loads = view.find(source).filter(|hit| hit.page.access().read)?.page;
    let stores = view.find(destination).filter(|hit| hit.stores())?.page;
    let behind = if backwards { (count - 1) * bytes } else { 0 };
    let part = Part {
        pages: (loads, stores),
        source: source - behind,
        destination: destination - behind,
        bytes: count * bytes,
    };
    match copy.width {
        Width::W8 => part.copy::<u8>(backwards),
        Width::W32 => part.copy::<u32>(backwards),
        Width::W64 | Width::W128 => part.copy::<u64>(backwards),
    }
    Some(count as u32)
}

/// Part of a COPY between two pages, or in one.
struct Part<'t> {
    pages: (Page<'t>, Page<'t>),
    source: u64,
    destination: u64,
    bytes: u64,
}

impl Part<'_> {
    fn copy<W: Word>(&self, backwards: bool) {
        let alike = (self.source ^ self.destination).is_multiple_of(WORD);
        let whole = |at: u64| alike && (self.source + at).is_multiple_of(WORD);
        let element = size_of::<W>() as u64;
        let mut done = 0;
        while done < self.bytes {
            let left = self.bytes - done;
            let edge = if backwards { left } else { done };
            let size = if whole(edge) && left >= WORD { WORD } else { element };
            let at = if backwards { left - size } else { done };
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
