// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where a command will go: the addresses that its coming elements need (spec 7.3), without doing anything.
//!
//! What a command needs for element *i* comes from a few *streams* of addresses. All are arithmetic in *i*, so
//! a page of theirs is passed in one step, but for the elements of an indexed command, whose indices have to be
//! read. Who has which translation is for [`crate::engine`].

use std::ops::ControlFlow;

use svmx_abi::fault::AccessKind;
use svmx_abi::pci::{PAGE_SIZE, VA_END, page_base};
use svmx_abi::regs::MAX_LOOKAHEAD;

use crate::command::{Addressing, Bulk, Command, Operands, Transfer, Width};

/// Streams of a command: indices, operands, elements, old values; or source and destination.
pub const STREAMS: usize = 4;
/// The stream of elements.
const ELEMENTS: usize = 2;
/// Elements whose pages are looked for at most.
const STEPS: u32 = 1024;

/// The address of element `i` is `first + i * step`.
#[derive(Clone, Copy, Debug)]
struct Stream {
    kind: AccessKind,
    first: i128,
    step: i128,
}

impl Stream {
    fn new(kind: AccessKind, first: u64, step: u64) -> Option<Self> {
        Some(Stream { kind, first: first.into(), step: step.into() })
    }

    fn at(&self, i: u32) -> Option<u64> {
        below_end(self.first + i128::from(i) * self.step)
    }

    /// How many elements from `i` on, which is at `va`, are on the same page.
    fn stays(&self, va: u64) -> u32 {
        let inside = i128::from(va - page_base(va));
        let elements = match self.step {
            0 => i128::MAX,
            step if step > 0 => (i128::from(PAGE_SIZE) - inside + step - 1) / step,
            step => inside / -step + 1,
        };
        u32::try_from(elements).unwrap_or(u32::MAX)
    }
}

/// The elements of an indexed command.
#[derive(Clone, Copy, Debug)]
struct Scattered {
    base: u64,
    width: Width,
    index: Width,
}

/// What a command will need.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    count: u32,
    streams: [Option<Stream>; STREAMS],
    scattered: Option<Scattered>,
}

/// One address that will be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The stream that it belongs to.
    pub stream: usize,
    /// The access.
    pub kind: AccessKind,
    /// Virtual address, below 2^48.
    pub va: u64,
}

/// Pages that a queue has reported for its command, and that the device has found no translation for since.
#[derive(Debug, Default)]
pub struct Pending(Vec<(u64, AccessKind)>);

impl Pending {
    /// The fault's own page, and what was reported ahead for it and those before.
    const MOST: usize = MAX_LOOKAHEAD as usize + 1;

    /// Forgets everything: the command is over.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets what `keep` does not want of pages and what is wanted there.
    pub fn retain(&mut self, mut keep: impl FnMut(u64, AccessKind) -> bool) {
        self.0.retain(|(page, kind)| keep(*page, *kind));
    }

    /// Whether there is no room for another page.
    pub fn is_full(&self) -> bool {
        self.0.len() >= Self::MOST
    }

    /// Whether the page of `va` is here.
    pub fn contains(&self, va: u64) -> bool {
        let page = page_base(va);
        self.0.iter().any(|(there, _)| *there == page)
    }

    /// Remembers the page of `va`, unless it is here or there is no room.
    pub fn insert(&mut self, va: u64, kind: AccessKind) {
        if !self.is_full() && !self.contains(va) {
            self.0.push((page_base(va), kind));
        }
    }
}

impl Ahead {
    /// For a command of several elements.
    pub fn of(command: &Command) -> Option<Self> {
        match command {
            Command::Bulk(bulk) => Some(Self::of_bulk(bulk)),
            Command::Copy(copy) => Some(Self::of_copy(copy)),
            Command::Fill(fill) => {
                let store = Stream::new(AccessKind::WRITE, fill.destination, fill.width.bytes());
                let streams = [None, None, store, None];
                Some(Ahead { count: fill.count, streams, scattered: None })
            }
            _ => None,
        }
    }

    fn of_bulk(bulk: &Bulk) -> Self {
        let bytes = bulk.op.operand_bytes(bulk.width);
        let operands = match bulk.operands {
            Operands::Immediate(_) => None,
            Operands::One(va) => Stream::new(AccessKind::READ, va, 0),
            Operands::Each(va) => Stream::new(AccessKind::READ, va, bytes),
        };
        let old = bulk.old.and_then(|va| Stream::new(AccessKind::WRITE, va, bulk.width.bytes()));
        let (indices, elements, scattered) = match bulk.addressing {
            Addressing::Stride(stride) => {
                let (first, step) = (bulk.base.into(), stride.into());
                (None, Some(Stream { kind: AccessKind::ATOMIC, first, step }), None)
            }
            Addressing::Indexed { array, index } => {
                let scattered = Scattered { base: bulk.base, width: bulk.width, index };
                (Stream::new(AccessKind::READ, array, index.bytes()), None, Some(scattered))
            }
        };
        Ahead { count: bulk.count, streams: [indices, operands, elements, old], scattered }
    }

    fn of_copy(copy: &Transfer) -> Self {
        let bytes = i128::from(copy.width.bytes());
        let last = i128::from(copy.count) - 1;
        let stream = |kind, base: u64| {
            let (first, step) = (i128::from(base), bytes);
            Some(if copy.backwards() {
                Stream { kind, first: first + last * bytes, step: -step }
            } else {
                Stream { kind, first, step }
            })
        };
        let source = stream(AccessKind::READ, copy.source);
        let destination = stream(AccessKind::WRITE, copy.destination);
        Ahead { count: copy.count, streams: [source, None, destination, None], scattered: None }
    }

    /// Tells `need` what elements from `from` on need, roughly in that order, page by page, until it breaks, a
    /// good many elements have been looked at, or one is nowhere. An element whose index can't be read is
    /// passed over.
    pub fn walk(
        &self,
        from: u32,
        mut index: impl FnMut(u64, Width) -> Option<u64>,
        mut need: impl FnMut(Need) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut i = from;
        for _ in 0..STEPS {
            if i >= self.count {
                break;
            }
            let mut stays = if self.scattered.is_some() { 1 } else { u32::MAX };
            for (number, stream) in self.streams.iter().enumerate() {
                if let Some(stream) = stream {
                    let Some(va) = stream.at(i) else { return ControlFlow::Break(()) };
                    need(Need { stream: number, kind: stream.kind, va })?;
                    stays = stays.min(stream.stays(va));
                } else if number == ELEMENTS
                    && let Some(va) = self.scattered_at(i, &mut index)
                {
                    need(Need { stream: number, kind: AccessKind::ATOMIC, va })?;
                }
            }
            i = i.saturating_add(stays);
        }
        ControlFlow::Continue(())
    }

    fn scattered_at(&self, i: u32, index: impl FnOnce(u64, Width) -> Option<u64>) -> Option<u64> {
        let ([Some(indices), ..], Some(scattered)) = (&self.streams, self.scattered) else { return None };
        let index = index(indices.at(i)?, scattered.index)?;
        below_end(i128::from(scattered.base) + i128::from(index) * i128::from(scattered.width.bytes()))
    }
}

fn below_end(va: i128) -> Option<u64> {
    u64::try_from(va).ok().filter(|va| *va < VA_END)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{AtomicOp, Fill, Operand};

    /// Every need of a walk, with each page of a stream once.
    fn pages(command: Command, from: u32, index: impl Fn(u64) -> Option<u64>) -> Vec<(usize, u64)> {
        let mut found = vec![];
        let _ = Ahead::of(&command).unwrap().walk(
            from,
            |va, _| index(va),
            |need| {
                if !found.contains(&(need.stream, page_base(need.va))) {
                    found.push((need.stream, page_base(need.va)));
                }
                ControlFlow::Continue(())
            },
        );
        found
    }

    fn bulk(addressing: Addressing, count: u32) -> Bulk {
        let operands = Operands::Immediate(Operand::default());
        let (op, width, base) = (AtomicOp::Add, Width::W64, 0x10_0000);
        Bulk { op, width, base, count, addressing, operands, old: None }
    }

    #[test]
    fn strides_pass_whole_pages() {
        let up = Command::Bulk(bulk(Addressing::Stride(8), 1500));
        assert_eq!(pages(up, 0, |_| None), [(2, 0x10_0000), (2, 0x10_1000), (2, 0x10_2000)]);
        assert_eq!(pages(up, 1024, |_| None), [(2, 0x10_2000)]);
        let down = Command::Bulk(bulk(Addressing::Stride(-4096), 3));
        assert_eq!(pages(down, 0, |_| None), [(2, 0x10_0000), (2, 0xf_f000), (2, 0xf_e000)]);
        let wide = Command::Bulk(bulk(Addressing::Stride(6000), 3));
        assert_eq!(pages(wide, 0, |_| None), [(2, 0x10_0000), (2, 0x10_1000), (2, 0x10_2000)]);
        let same = Command::Bulk(bulk(Addressing::Stride(0), u32::MAX));
        assert_eq!(pages(same, 0, |_| None), [(2, 0x10_0000)]);
    }

    #[test]
    fn arrays_are_needed_too() {
        let old = Some(0x20_0ff8);
        let each = Operands::Each(0x30_0ff0);
        let command = Bulk { old, operands: each, ..bulk(Addressing::Stride(0), 3) };
        let expected = [(1, 0x30_0000), (2, 0x10_0000), (3, 0x20_0000), (3, 0x20_1000), (1, 0x30_1000)];
        assert_eq!(pages(Command::Bulk(command), 0, |_| None), expected);
    }

    #[test]
    fn indices_are_read_where_they_can_be() {
        let addressing = Addressing::Indexed { array: 0x40_0ff8, index: Width::W32 };
        let command = Command::Bulk(bulk(addressing, 4));
        let index = |va| (va < 0x40_1000).then_some((va - 0x40_0ff8) * 512);
        let expected = [(0, 0x40_0000), (2, 0x10_0000), (2, 0x10_4000), (0, 0x40_1000)];
        assert_eq!(pages(command, 0, index), expected);
    }

    #[test]
    fn a_copy_goes_as_it_will_be_done() {
        let copy = |source, destination| {
            Command::Copy(Transfer { width: Width::W64, count: 513, source, destination })
        };
        let forwards = [(0, 0x8000), (2, 0x2000), (0, 0x9000), (2, 0x3000)];
        assert_eq!(pages(copy(0x8000, 0x2000), 0, |_| None), forwards);
        let backwards = [(0, 0x9000), (2, 0x9000), (0, 0x8000), (2, 0x8000)];
        assert_eq!(pages(copy(0x8000, 0x8008), 0, |_| None), backwards);
    }

    #[test]
    fn nothing_is_looked_for_where_nothing_can_be() {
        let fill = Fill { width: Width::W8, count: u32::MAX, destination: VA_END - 4096, value: 0 };
        assert_eq!(pages(Command::Fill(fill), 0, |_| None), [(2, VA_END - 4096)]);
        let endless = Fill { destination: 0, ..fill };
        assert!(pages(Command::Fill(endless), 0, |_| None).len() <= STEPS as usize);
    }
}
