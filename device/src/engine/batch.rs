// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Many elements at a time: the loops that are fast.
//!
//! They do what [`crate::work`] and [`crate::execute`] say, in the same order, for elements whose translations are
//! all cached, on pages that this engine owns or that are *coherent*. At the first element that wants more they stop,
//! before any access of that element, and the other path does it: there is no fault, no walk and no waiting here.
//! What one batch learns of translations ends with it, and it ends when there is something to catch up with.

use std::sync::atomic::AtomicU8;

use svmx_abi::pci::{PAGE_SIZE, VA_END, page_offset};

use super::{Engine, transfer};
use crate::command::{Addressing, AtomicOp, Bulk, Operand, Operands, Width};
use crate::compute::{Element, Word};
use crate::instrument::Instrument;
use crate::memory::Page;
use crate::queue::Rings;
use crate::tlb::{Hit, Slot, View};
use crate::work::{Batch, Elements, Work};

/// Elements whose cache lines are asked for at a time.
const BLOCK: u32 = 32;
/// Elements that are looked at to see how far they are apart.
const SAMPLES: u32 = 16;
/// Elements that are not further apart are in the cache soon, if they are not yet: asking ahead costs more than the
/// rest of an element.
const NEARBY: u64 = 256 << 10;

/// Elements of a bulk command: as many as lie on one page of each of its arrays.
struct Chunk<'t> {
    count: u32,
    view: View<'t>,
    indices: Option<Array<'t>>,
    operands: Option<Array<'t>>,
    old: Option<Array<'t>>,
    immediate: Operand,
}

/// A part of an array: from an address on, in one page.
#[derive(Clone, Copy)]
struct Array<'t> {
    page: Page<'t>,
    va: u64,
}

impl Array<'_> {
    #[inline(always)]
    fn load<W: Word>(&self, k: u32) -> W {
        W::load(self.page, self.va + u64::from(k) * size_of::<W>() as u64)
    }
    #[inline(always)]
    fn store<W: Word>(&self, k: u32, value: W) {
        value.store(self.page, self.va + u64::from(k) * size_of::<W>() as u64);
    }
}

/// What is known of elements that come soon: addresses, and where their translations are, if they are cached.
struct Block {
    entries: [(u64, Option<Slot>); BLOCK as usize],
}

impl<I: Instrument> Engine<I> {
    /// Does elements of a command, for about `budget`: what it took. Zero: the next element is not for here.
    pub(super) fn batch(&self, rings: &Rings, work: &mut Work, budget: u32) -> u32 {
        let Some(batch) = work.batch() else { return 0 };
        let view = self.tlb.view(rings.asid);
        let Batch { elements, from, left } = batch;
        let watch = self.user.watch();
        let behind = || watch.behind();
        let (done, cost) = match elements {
            Elements::Bulk(bulk) => {
                let done = self.bulk(view, bulk, &batch, budget);
                (done, done)
            }
            Elements::Copy(copy) => by_bytes(transfer::copy(view, copy, from, left, behind), copy.width),
            Elements::Fill(fill) => by_bytes(transfer::fill(view, fill, from, left, behind), fill.width),
        };
        work.advance(done);
        cost.min(budget)
    }

    fn bulk(&self, view: View<'_>, bulk: &Bulk, batch: &Batch<'_>, most: u32) -> u32 {
        let Some(chunk) = chunk(view, bulk, batch, most) else { return 0 };
        match bulk.width {
            Width::W32 => self.width::<u32>(bulk, batch.from, &chunk),
            Width::W64 => self.width::<u64>(bulk, batch.from, &chunk),
            Width::W8 | Width::W128 => 0,
        }
    }

    fn width<W: Element>(&self, bulk: &Bulk, from: u32, chunk: &Chunk<'_>) -> u32 {
        let base = bulk.base;
        match (bulk.addressing, chunk.indices) {
            (Addressing::Stride(stride), _) => {
                let stride = i64::from(stride) as u64;
                let first = base.wrapping_add(stride.wrapping_mul(from.into()));
                self.op::<W>(bulk.op, chunk, move |k| first.wrapping_add(stride.wrapping_mul(k.into())))
            }
            (Addressing::Indexed { index: Width::W32, .. }, Some(indices)) => {
                self.op::<W>(bulk.op, chunk, move |k| {
                    base + u64::from(indices.load::<u32>(k)) * const { size_of::<W>() as u64 }
                })
            }
            (Addressing::Indexed { .. }, Some(indices)) => self.op::<W>(bulk.op, chunk, move |k| {
                let index = indices.load::<u64>(k);
                if index < VA_END { base + index * const { size_of::<W>() as u64 } } else { VA_END }
            }),
            _ => 0,
        }
    }

    /// A loop for each operation, and for each of them one without arrays.
    #[inline(always)]
    fn op<W: Element>(&self, op: AtomicOp, chunk: &Chunk<'_>, at: impl Fn(u32) -> u64 + Copy) -> u32 {
        macro_rules! loops {
            ($($op:ident)*) => {
                match (op, chunk.operands.is_none() && chunk.old.is_none()) {
                    $((AtomicOp::$op, true) => self.elements::<W, { AtomicOp::$op as u8 }, false>(chunk, at),
                    (AtomicOp::$op, false) => self.elements::<W, { AtomicOp::$op as u8 }, true>(chunk, at),)*
                }
            };
        }
        loops!(Add And Or Xor Umin Umax Smin Smax Swap Cas Fadd)
    }

    /// Elements at `at(0)` on, which may be nowhere. A function for each combination, so that what it needs stays in
    /// registers.
    #[inline(never)]
    fn elements<W: Element, const OP: u8, const ARRAYS: bool>(
        &self,
        chunk: &Chunk<'_>,
        at: impl Fn(u32) -> u64 + Copy,
    ) -> u32 {
        let (view, count, watch) = (chunk.view, chunk.count, self.user.watch());
        if scattered(count, at) {
            return self.blocks::<W, OP, ARRAYS>(chunk, at);
        }
        let immediate = chunk.immediate::<W>();
        for k in 0..count {
            let va = at(k);
            if watch.behind() || !chunk.element::<W, OP, ARRAYS>(immediate, k, va, view.find(va)) {
                return k;
            }
        }
        count
    }

    /// The same for elements that are all over memory.
    ///
    /// What takes the time is that the host translates an address: a prefetch, too, leaves the processor's
    /// reorder buffer only when that is done. The loop that prefetches is as short as it can be, for as many of those as
    /// possible to be under way: so translations of a block are looked up first, then its lines are asked for, and while
    /// they come the block before it is done.
    #[inline(never)]
    fn blocks<W: Element, const OP: u8, const ARRAYS: bool>(
        &self,
        chunk: &Chunk<'_>,
        at: impl Fn(u32) -> u64 + Copy,
    ) -> u32 {
        let (view, count, watch) = (chunk.view, chunk.count, self.user.watch());
        let immediate = chunk.immediate::<W>();
        let block = |number: u32| (number * BLOCK).min(count)..((number + 1) * BLOCK).min(count);
        let (mut now, mut next) = (Block::default(), Block::default());
        block(0).chain(block(1)).for_each(|k| view.prefetch(at(k)));
        now.look_up(view, block(0).map(at));
        for number in 0..count.div_ceil(BLOCK) {
            block(number + 2).for_each(|k| view.prefetch(at(k)));
            next.look_up(view, block(number + 1).map(at));
            for (k, &(known, slot)) in block(number).zip(&now.entries) {
                // An index is what it is now, not what it was when its block was looked up.
                let va = at(k);
                let hit = match slot {
                    Some(slot) if va == known => view.at(slot),
                    _ => view.find(va),
                };
                if watch.behind() || !chunk.element::<W, OP, ARRAYS>(immediate, k, va, hit) {
                    return k;
                }
            }
            std::mem::swap(&mut now, &mut next);
        }
        count
    }
}

impl Default for Block {
    fn default() -> Self {
        Block { entries: [(0, None); BLOCK as usize] }
    }
}

impl Block {
    /// Looks up addresses, and asks for their cache lines.
    #[inline(always)]
    fn look_up(&mut self, view: View<'_>, addresses: impl Iterator<Item = u64>) {
        let nowhere = AtomicU8::new(0);
        let mut lines = [&nowhere; BLOCK as usize];
        let places = self.entries.iter_mut().zip(&mut lines);
        for ((entry, line), va) in places.zip(addresses) {
            let slot = view.slot(va);
            *entry = (va, slot);
            if let Some(hit) = slot.and_then(|slot| view.at(slot)) {
                *line = hit.page.word8(va);
            }
        }
        lines.into_iter().for_each(crate::memory::prefetch_to_write);
    }
}

impl Chunk<'_> {
    /// Does element `k`, unless that is not for here.
    #[inline(always)]
    fn element<W: Element, const OP: u8, const ARRAYS: bool>(
        &self,
        immediate: (W, W),
        k: u32,
        va: u64,
        hit: Option<Hit<'_>>,
    ) -> bool {
        let op = const { AtomicOp::ALL[OP as usize] };
        let Some(Hit { page, owned }) = hit else { return false };
        let (value, compare) = if ARRAYS { self.operand::<W>(op, k) } else { immediate };
        let old = if owned {
            let old = W::load(page, va);
            old.compute(op, value, compare).store(page, va);
            old
        } else if page.access().coherent && page.writable() {
            let Some(old) = W::coherent(page, va, op, value, compare) else { return false };
            old
        } else {
            return false;
        };
        if let (true, Some(array)) = (ARRAYS, &self.old) {
            array.store(k, old);
        }
        true
    }

    /// The operand that all elements have, if they have one.
    #[inline(always)]
    fn immediate<W: Word>(&self) -> (W, W) {
        (W::narrow(self.immediate.value), W::narrow(self.immediate.compare))
    }

    #[inline(always)]
    fn operand<W: Element>(&self, op: AtomicOp, k: u32) -> (W, W) {
        match &self.operands {
            None => self.immediate(),
            // The compared value comes first (spec 5.4).
            Some(pairs) if op == AtomicOp::Cas => (pairs.load(2 * k + 1), pairs.load(2 * k)),
            Some(array) => (array.load(k), W::narrow(0)),
        }
    }
}

/// Elements, and what they took: words of 64 bits.
fn by_bytes(done: Option<u32>, width: Width) -> (u32, u32) {
    let done = done.unwrap_or(0);
    (done, (u64::from(done) * width.bytes()).div_ceil(8) as u32)
}

/// Whether elements are far apart, by a few of them.
#[inline(always)]
fn scattered(count: u32, at: impl Fn(u32) -> u64) -> bool {
    let samples = || (0..count).step_by((count / SAMPLES).max(1) as usize).map(&at);
    let (first, last) = (samples().min().unwrap_or(0), samples().max().unwrap_or(0));
    last - first > NEARBY
}

/// What can be done at once from the batch's first element on, if its arrays can be used.
fn chunk<'t>(view: View<'t>, bulk: &Bulk, batch: &Batch<'_>, most: u32) -> Option<Chunk<'t>> {
    let mut count = batch.left.min(most);
    let mut array = |first: u64, bytes: u64, write: bool| {
        let va = first.checked_add(u64::from(batch.from) * bytes)?;
        let hit = view.find(va)?;
        count = count.min(((PAGE_SIZE - page_offset(va)) / bytes) as u32);
        (if write { hit.stores() } else { hit.page.access().read }).then_some(Array { page: hit.page, va })
    };
    let indices = match bulk.addressing {
        Addressing::Indexed { array: first, index } => Some(array(first, index.bytes(), false)?),
        Addressing::Stride(_) => None,
    };
    let (operands, immediate) = match bulk.operands {
        Operands::Immediate(operand) => (None, operand),
        Operands::Each(first) => {
            (Some(array(first, bulk.op.operand_bytes(bulk.width), false)?), Operand::default())
        }
        Operands::One(_) => return None,
    };
    let old = match bulk.old {
        Some(first) => Some(array(first, bulk.width.bytes(), true)?),
        None => None,
    };
    // What an index leads to must not wrap.
    (bulk.base < VA_END || indices.is_none()).then_some(())?;
    Some(Chunk { count, view, indices, operands, old, immediate })
}
