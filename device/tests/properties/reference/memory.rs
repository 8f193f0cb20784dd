// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a queue's commands see: pages by virtual address, and the bytes of their frames. Not: how the device
//! gets there (page tables, caches, faults).

use std::collections::BTreeMap;

use svmx_abi::fault::AccessKind;
use svmx_abi::pci::{PAGE_SIZE, page_base, page_offset};
use svmx_abi::pte::Access;
use svmx_abi::status::Status;

use super::element::Value;

/// What is behind a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Guest memory.
    Ram,
    /// Guest memory that is read-only to the device.
    ReadOnly,
    /// Nothing: its entry is never valid.
    Nothing,
    /// A malformed entry.
    Malformed,
    /// An entry that leads outside guest memory.
    Outside,
}

/// A page that the driver would map at most like this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) access: Access,
    pub(crate) backing: Backing,
    /// Guest-physical.
    pub(crate) frame: u64,
}

/// What comes of an access to a page in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// It faults, and the driver has nothing better to give.
    Denied,
    /// It ends the command by itself.
    Ends(Status),
}

impl Page {
    /// spec 6.2, 6.3, 5.9.
    pub(crate) fn verdict(&self, kind: AccessKind) -> Verdict {
        let Access { read, write, atomic, coherent } = self.access;
        match self.backing {
            Backing::Nothing => Verdict::Denied,
            Backing::Malformed => Verdict::Ends(Status::BAD_PAGE_TABLE),
            Backing::Outside => Verdict::Ends(Status::BAD_MEMORY),
            Backing::ReadOnly if kind != AccessKind::READ => Verdict::Ends(Status::BAD_MEMORY),
            Backing::Ram | Backing::ReadOnly => match kind {
                AccessKind::READ if read => Verdict::Allowed,
                AccessKind::WRITE if write => Verdict::Allowed,
                AccessKind::ATOMIC if atomic || coherent => Verdict::Allowed,
                _ => Verdict::Denied,
            },
        }
    }
}

/// The bytes of a frame, and which of them the specification leaves open.
#[derive(Clone)]
struct Frame {
    bytes: Box<[u8; PAGE_SIZE as usize]>,
    open: Box<[bool; PAGE_SIZE as usize]>,
    /// What they are compared with, if they are.
    found: Option<Vec<u8>>,
}

impl Default for Frame {
    fn default() -> Self {
        Frame { bytes: Box::new([0; _]), open: Box::new([false; _]), found: None }
    }
}

impl Frame {
    fn differing(&self, from: usize, bytes: usize) -> usize {
        let Some(found) = &self.found else { return 0 };
        if self.bytes[from..from + bytes] == found[from..from + bytes] {
            return 0;
        }
        (from..from + bytes).filter(|&at| !self.open[at] && self.bytes[at] != found[at]).count()
    }
}

/// A queue's memory.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    pages: BTreeMap<u64, Page>,
    frames: BTreeMap<u64, Frame>,
    /// Bytes that differ from those found.
    differing: usize,
}

impl Memory {
    pub(crate) fn map(&mut self, va: u64, page: Page) {
        self.pages.insert(page_base(va), page);
    }

    /// A frame's bytes are in another one from now on, and its pages lead there.
    pub(crate) fn migrate(&mut self, from: u64, to: u64) {
        let pages = self.pages.values_mut().filter(|page| page.frame == from);
        pages.for_each(|page| page.frame = to);
        if let Some(frame) = self.frames.remove(&from) {
            self.frames.insert(to, frame);
        }
    }

    /// The page of an address; what was never mapped is backed by nothing.
    pub(crate) fn page(&self, va: u64) -> Page {
        let nothing = Page { access: Access::default(), backing: Backing::Nothing, frame: 0 };
        *self.pages.get(&page_base(va)).unwrap_or(&nothing)
    }

    /// Every virtual page of a frame.
    pub(crate) fn pages_of(&self, frame: u64) -> impl Iterator<Item = u64> {
        self.pages.iter().filter(move |(_, page)| page.frame == frame).map(|(va, _)| *va)
    }

    /// The value at an address, if there is memory.
    pub(crate) fn load(&self, va: u64, bytes: u32) -> Option<Value> {
        let page = self.page(va);
        if !matches!(page.backing, Backing::Ram | Backing::ReadOnly) {
            return None;
        }
        let Some(frame) = self.frames.get(&page.frame) else { return Some(Value::default()) };
        let from = page_offset(va) as usize;
        let range = from..from + bytes as usize;
        let mut value = [0; 16];
        value[..bytes as usize].copy_from_slice(&frame.bytes[range.clone()]);
        Some(Value { bits: u128::from_le_bytes(value), unspecified: frame.open[range].contains(&true) })
    }

    /// Stores a value at an address where there is memory.
    pub(crate) fn store(&mut self, va: u64, bytes: u32, value: Value) {
        let (from, bytes) = (page_offset(va) as usize, bytes as usize);
        let frame = self.frames.entry(self.page(va).frame).or_default();
        let before = frame.differing(from, bytes);
        frame.bytes[from..from + bytes].copy_from_slice(&value.bits.to_le_bytes()[..bytes]);
        frame.open[from..from + bytes].fill(value.unspecified);
        self.differing = self.differing + frame.differing(from, bytes) - before;
    }

    /// Sets what is in a frame.
    pub(crate) fn fill(&mut self, frame: u64, bytes: &[u8]) {
        self.frames.entry(frame).or_default().bytes.copy_from_slice(bytes);
    }

    /// The bytes of a frame.
    pub(crate) fn bytes(&self, frame: u64) -> &[u8] {
        self.frames.get(&frame).map_or(&[0; PAGE_SIZE as usize], |frame| &frame.bytes[..])
    }

    /// From now on, counts what differs from what was found in frames; bytes that the specification leaves
    /// open never do.
    pub(crate) fn compare(&mut self, found: impl Fn(u64) -> Option<Vec<u8>>) {
        self.differing = 0;
        for (&at, frame) in &mut self.frames {
            frame.found = found(at);
            self.differing += frame.differing(0, PAGE_SIZE as usize);
        }
    }

    /// Makes frames that the other has, so that they are compared.
    pub(crate) fn touch_as(&mut self, other: &Memory) {
        for frame in other.frames.keys() {
            self.frames.entry(*frame).or_default();
        }
    }

    /// Whether nothing differs from what was found.
    pub(crate) fn same(&self) -> bool {
        self.differing == 0
    }

    /// The first word that differs: its guest-physical address, what it should be, what was found.
    pub(crate) fn difference(&self) -> Option<(u64, u64, u64)> {
        let word = |bytes: &[u8], at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        self.frames.iter().find_map(|(&address, frame)| {
            let found = frame.found.as_ref()?;
            let at = (0..PAGE_SIZE as usize).step_by(8).find(|&at| frame.differing(at, 8) > 0)?;
            Some((address + at as u64, word(&frame.bytes[..], at), word(found, at)))
        })
    }
}
