// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bulk commands that apply all their elements: every atomic in every form, and long ones.

use super::reference::Memory;
use super::{ATOMICS, Bench, W32, W64, model, values, widths};
use crate::area::{Area, Backing, PAGE};
use crate::random::Random;
use crate::scenario::Run;
use anyhow::Result;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};

/// What the areas of a bulk command are for, in their order.
pub(super) const ELEMENTS: usize = 0;
pub(super) const INDICES: usize = 1;
pub(super) const OPERANDS: usize = 2;
pub(super) const OLD: usize = 3;

/// Where elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addressing {
    /// Elements from one to the next.
    Stride(i32),
    /// By indices of that width.
    Index(WidthLog2),
}

/// The form of a bulk command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) opcode: Opcode,
    pub(super) width: WidthLog2,
    pub(super) addressing: Addressing,
    /// An operand for each element.
    pub(super) operands: bool,
    pub(super) store_old: bool,
}

impl Form {
    /// Every atomic with every width, addressing, kind of operand, with old values and without.
    pub(super) fn all() -> Vec<Form> {
        let addressings = [1, -1, 3, 0].map(Addressing::Stride).into_iter();
        let addressings = addressings.chain([W32, W64].map(Addressing::Index));
        let mut forms = Vec::new();
        for opcode in ATOMICS {
            for &width in widths(opcode) {
                for addressing in addressings.clone() {
                    for (operands, store_old) in [(false, false), (true, false), (false, true), (true, true)]
                    {
                        forms.push(Form { opcode, width, addressing, operands, store_old });
                    }
                }
            }
        }
        forms
    }

    /// Whether its operands are in memory.
    pub(super) fn reads_operands(self) -> bool {
        self.operands || self.width == WidthLog2::W128
    }

    /// Size of an entry in area `n`, binary logarithm: an operand of CAS is a pair.
    pub(super) fn log2(self, n: usize) -> u8 {
        match (n, self.addressing) {
            (INDICES, Addressing::Index(width)) => width.0,
            (INDICES, Addressing::Stride(_)) => 0,
            (OPERANDS, _) => self.width.0 + u8::from(self.opcode == Opcode::CAS),
            _ => self.width.0,
        }
    }

    /// Random values in all arrays that it uses, as far as their areas go, and the entry: `count` elements that
    /// begin with element `first`, or are named by indices below `end`. The array in area `n` begins at its
    /// entry `skip[n]`.
    pub(super) fn set_up(
        self,
        memory: &mut Memory,
        random: &mut Random,
        (first, end): (u64, u64),
        count: u32,
        skip: [u64; 4],
    ) -> Result<Sqe> {
        let Form { opcode, width, .. } = self;
        let mut entry = Sqe {
            opcode,
            width,
            flags: SqeFlags::BULK,
            addr: memory.address(ELEMENTS, first << width.0),
            count,
            ..Sqe::default()
        };
        self.scatter(memory, random, count)?;
        let index_width = WidthLog2(self.log2(INDICES));
        for i in 0..u64::from(count) {
            let place = |n: usize| {
                let (start, end) = ((skip[n] + i) << self.log2(n), (skip[n] + i + 1) << self.log2(n));
                (end <= memory.area(n).live()).then_some(start)
            };
            let (index, operand) = (place(INDICES), place(OPERANDS));
            if let (Addressing::Index(_), Some(at)) = (self.addressing, index) {
                memory.store(INDICES, at, index_width, random.below(end).into());
            }
            if let (true, Some(at)) = (self.reads_operands(), operand) {
                for part in 0..1 << (self.log2(OPERANDS) - width.0) {
                    let value = self.value(random);
                    memory.store(OPERANDS, at + (part << width.0), width, value);
                }
            }
        }
        let array = |n: usize| memory.address(n, skip[n] << self.log2(n));
        match self.addressing {
            Addressing::Stride(step) => entry.stride = step << width.0,
            Addressing::Index(index) => {
                let wide = if index == W64 { SqeFlags::INDEX64 } else { SqeFlags::default() };
                entry.flags = entry.flags.with(SqeFlags::INDEXED).with(wide);
                entry.addr = memory.address(ELEMENTS, 0);
                entry.index_addr = array(INDICES);
            }
        }
        if self.reads_operands() {
            entry.operand = array(OPERANDS);
        } else {
            entry.operand = self.value(random) as u64;
            entry.compare = if opcode == Opcode::CAS { self.value(random) as u64 } else { 0 };
        }
        if self.operands {
            entry.flags = entry.flags.with(SqeFlags::OPERANDS);
        }
        if self.store_old {
            entry.flags = entry.flags.with(SqeFlags::STORE_OLD);
            entry.arg0 = array(OLD);
        }
        Ok(entry)
    }

    /// Elements that are not all zero; or are, because nobody has touched their pages.
    fn scatter(self, memory: &mut Memory, random: &mut Random, count: u32) -> Result<()> {
        // What other commands left may be no number.
        if self.opcode == Opcode::FETCH_FADD || random.one_in(3) {
            memory.discard(ELEMENTS)?;
            memory.discard(OLD)?;
        }
        if random.one_in(3) {
            return Ok(());
        }
        let elements = memory.area(ELEMENTS).live() >> self.width.0;
        for _ in 0..count.min(1000) {
            let value = self.value(random);
            memory.store(ELEMENTS, random.below(elements) << self.width.0, self.width, value);
        }
        Ok(())
    }

    /// An element or operand that makes a difference: few values for CAS, so that many are equal; no
    /// infinities, whose sum is no number.
    pub(super) fn value(self, random: &mut Random) -> u128 {
        match (self.opcode, self.width) {
            (Opcode::CAS, _) => u128::from(random.below(3)) * (model::greatest(self.width) / 2),
            (Opcode::FETCH_FADD, W32) => u128::from((random.below(2000) as f32 / 8.0 - 100.0).to_bits()),
            (Opcode::FETCH_FADD, _) => u128::from((random.below(2000) as f64 / 8.0 - 100.0).to_bits()),
            (_, width) => {
                let values = values::integers(width, random);
                *random.pick(&values)
            }
        }
    }
}

/// Every form, with pages that the CPU has and pages that nobody has touched.
pub(super) fn forms(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 3);
    // Elements on four pages, to both sides of a page's end for every array.
    let mut memory = four(4)?;
    for form in Form::all() {
        let elements = memory.area(ELEMENTS).len() >> form.width.0;
        let count = 1 + random.below(60);
        let first = match form.addressing {
            Addressing::Stride(step) if step < 0 => count + random.below(elements - count),
            Addressing::Stride(step) => {
                let span = count * u64::from(step.unsigned_abs());
                random.below(elements - span)
            }
            Addressing::Index(_) => 0,
        };
        let skip = std::array::from_fn(|n| match random.below(3) {
            // Across a page's end.
            0 => (PAGE >> form.log2(n)) - 1 - random.below(count),
            _ => random.below(20),
        });
        let entry = form.set_up(&mut memory, &mut random, (first, elements), count as u32, skip)?;
        bench.agree(&entry, &mut memory)?;
    }
    Ok(())
}

/// Four areas of `pages` pages.
pub(super) fn four(pages: u64) -> Result<Memory> {
    let areas: Result<Vec<Area>> = (0..4).map(|_| Area::new(Backing::Private, pages * PAGE)).collect();
    Ok(Memory::of(areas?))
}

/// Whole areas, strides over pages, no element at all, and one element very often.
pub(super) fn long(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 4);
    let mut memory = four(4)?;
    let bytes = memory.area(ELEMENTS).len();
    for width in [W32, W64] {
        let elements = bytes >> width.0;
        let form = |addressing| Form {
            opcode: Opcode::FETCH_ADD,
            width,
            addressing,
            operands: false,
            store_old: false,
        };
        // First element, stride in elements, count.
        let shapes = [
            (0, 1, elements),
            (elements - 1, -1, elements),
            (elements / 2, 0, 1000),
            (5, 512, elements / 512),
            (elements - 1, -700, elements / 700),
            (7, 1, 1),
            (7, 1, 0),
            (0, 0, 100_000),
        ];
        for (first, step, count) in shapes {
            let form = form(Addressing::Stride(step));
            let entry = form.set_up(&mut memory, &mut random, (first, elements), count as u32, [0; 4])?;
            bench.agree(&entry, &mut memory)?;
        }
        for index in [W32, W64] {
            for count in [0, 1, 500, bytes >> index.0] {
                let form = form(Addressing::Index(index));
                let entry = form.set_up(&mut memory, &mut random, (0, elements), count as u32, [0; 4])?;
                bench.agree(&entry, &mut memory)?;
            }
        }
    }
    Ok(())
}
