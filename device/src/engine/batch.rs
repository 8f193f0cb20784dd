// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Many elements at a time: the loops that are fast.
//!
//! They do what [`crate::work`] and [`crate::execute`] say, in the same order, for elements whose translations are
//! all cached, on pages that this engine owns or that are *coherent*. At the first element that wants more they stop,
//! before any access of that element, and the other path does it: there is no fault, no walk and no waiting here.
//! What one batch learns of translations ends with it, and it ends when there is something to catch up with.

use svmx_abi::pci::{PAGE_SIZE, VA_END, page_offset};

use super::{Engine, transfer};
use crate::command::{Addressing, AtomicOp, Bulk, Operand, Operands, Width};
use crate::compute::{Element, Word};
use crate::instrument::Instrument;
use crate::memory::Page;
use crate::queue::Rings;
use crate::tlb::View;
use crate::work::{Batch, Elements, Work};

/// How many elements ahead an element's cache line is asked for.
const NEAR: u32 = 24;
/// And the entry of its translation, before that.
const FAR: u32 = 48;

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

impl<I: Instrument> Engine<I> {
    /// Does elements of a command, for about `budget`: what it took. Zero: the next element is not for here.
    pub(super) fn batch(&self, rings: &Rings, work: &mut Work, budget: u32) -> u32 {
        let Some(batch) = work.batch() else { return 0 };
        let view = self.tlb.view(rings.asid);
        let Batch { elements, from, left } = batch;
        let (done, cost) = match elements {
            Elements::Bulk(bulk) => {
                let done = self.bulk(view, bulk, &batch, budget);
                (done, done)
            }
            Elements::Copy(copy) => by_bytes(transfer::copy(view, copy, from, left), copy.width),
            Elements::Fill(fill) => by_bytes(transfer::fill(view, fill, from, left), fill.width),
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
        let (base, bytes) = (bulk.base, size_of::<W>() as u64);
        match (bulk.addressing, chunk.indices) {
            (Addressing::Stride(stride), _) => {
                let stride = i64::from(stride) as u64;
                let first = base.wrapping_add(stride.wrapping_mul(from.into()));
                self.op::<W>(bulk.op, chunk, move |k| first.wrapping_add(stride.wrapping_mul(k.into())))
            }
            (Addressing::Indexed { index: Width::W32, .. }, Some(indices)) => {
                self.op::<W>(bulk.op, chunk, move |k| base + u64::from(indices.load::<u32>(k)) * bytes)
            }
            (Addressing::Indexed { .. }, Some(indices)) => self.op::<W>(bulk.op, chunk, move |k| {
                let index = indices.load::<u64>(k);
                if index < VA_END { base + index * bytes } else { VA_END }
            }),
            _ => 0,
        }
    }

    /// A loop for each operation.
    #[inline(always)]
    fn op<W: Element>(&self, op: AtomicOp, chunk: &Chunk<'_>, at: impl Fn(u32) -> u64 + Copy) -> u32 {
        match op {
            AtomicOp::Add => self.elements::<W>(AtomicOp::Add, chunk, at),
            AtomicOp::And => self.elements::<W>(AtomicOp::And, chunk, at),
            AtomicOp::Or => self.elements::<W>(AtomicOp::Or, chunk, at),
            AtomicOp::Xor => self.elements::<W>(AtomicOp::Xor, chunk, at),
            AtomicOp::Umin => self.elements::<W>(AtomicOp::Umin, chunk, at),
            AtomicOp::Umax => self.elements::<W>(AtomicOp::Umax, chunk, at),
            AtomicOp::Smin => self.elements::<W>(AtomicOp::Smin, chunk, at),
            AtomicOp::Smax => self.elements::<W>(AtomicOp::Smax, chunk, at),
            AtomicOp::Swap => self.elements::<W>(AtomicOp::Swap, chunk, at),
            AtomicOp::Cas => self.elements::<W>(AtomicOp::Cas, chunk, at),
            AtomicOp::Fadd => self.elements::<W>(AtomicOp::Fadd, chunk, at),
        }
    }

    /// Elements at `at(0)` on, which may be nowhere.
    #[inline(always)]
    fn elements<W: Element>(&self, op: AtomicOp, chunk: &Chunk<'_>, at: impl Fn(u32) -> u64 + Copy) -> u32 {
        let (view, count, watch) = (chunk.view, chunk.count, self.user.watch());
        (0..count.min(FAR)).for_each(|k| view.prefetch(at(k)));
        (0..count.min(NEAR)).for_each(|k| prefetch(view, at(k)));
        for k in 0..count {
            if watch.behind() {
                return k;
            }
            if k + FAR < count {
                view.prefetch(at(k + FAR));
            }
            if k + NEAR < count {
                prefetch(view, at(k + NEAR));
            }
            let va = at(k);
            let Some(hit) = view.find(va) else { return k };
            let (value, compare) = chunk.operand::<W>(op, k);
            let old = if hit.owned {
                let old = W::load(hit.page, va);
                old.compute(op, value, compare).store(hit.page, va);
                old
            } else if hit.page.access().coherent && hit.page.writable() {
                W::coherent(hit.page, va, op, value, compare)
            } else {
                return k;
            };
            if let Some(array) = &chunk.old {
                array.store(k, old);
            }
        }
        count
    }
}

impl Chunk<'_> {
    #[inline(always)]
    fn operand<W: Element>(&self, op: AtomicOp, k: u32) -> (W, W) {
        match &self.operands {
            None => (W::narrow(self.immediate.value), W::narrow(self.immediate.compare)),
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

/// Asks for the cache line of an element.
#[inline(always)]
fn prefetch(view: View<'_>, va: u64) {
    if let Some(hit) = view.find(va) {
        crate::memory::prefetch(hit.page.word8(va));
    }
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
