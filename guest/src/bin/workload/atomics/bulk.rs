// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bulk commands: elements by stride and by index, and commands that run into something: exactly the
//! elements that `applied` says have changed.

use super::{Bench, WIDTHS};
use crate::area::{Area, Backing, PAGE};
use crate::random::Random;
use crate::scenario::Run;
use anyhow::{Result, ensure};
use svmx::abi::pci::VA_END;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::status::Status;

const W32: WidthLog2 = WidthLog2::W32;
const W64: WidthLog2 = WidthLog2::W64;
const INDEX32: SqeFlags = SqeFlags::BULK.with(SqeFlags::INDEXED);
const INDEX64: SqeFlags = INDEX32.with(SqeFlags::INDEX64);

fn strided(width: WidthLog2, addr: u64, stride: i32, count: u32) -> Sqe {
    Sqe {
        opcode: Opcode::FETCH_ADD,
        width,
        flags: SqeFlags::BULK,
        addr,
        operand: 3,
        count,
        stride,
        ..Sqe::default()
    }
}

fn indexed(width: WidthLog2, flags: SqeFlags, addr: u64, index_addr: u64, count: u32) -> Sqe {
    Sqe { opcode: Opcode::FETCH_ADD, width, flags, addr, operand: 3, count, index_addr, ..Sqe::default() }
}

/// Commands that apply all their elements.
pub(super) fn complete(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 3);
    let area = Area::new(Backing::Private, 4 * PAGE)?;
    let indices = Area::new(Backing::Private, 4 * PAGE)?;
    for width in WIDTHS {
        let bytes = 1u64 << width.0;
        let elements = area.len() >> width.0;
        let step = bytes as i32;
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
        for (first, stride, count) in shapes {
            let mut model = Model::zero(&area, width);
            let entry = strided(width, area.address(first * bytes), stride * step, count as u32);
            for i in 0..count as i64 {
                model.add((first as i64 + i * i64::from(stride)) as u64);
            }
            bench.expect(&entry, Status::SUCCESS, count as u32, Some(0))?;
            model.compare(&area, &entry)?;
        }
        for (flags, index_width) in [(INDEX32, W32), (INDEX64, W64)] {
            for count in [0, 1, 500, indices.len() >> index_width.0] {
                let mut model = Model::zero(&area, width);
                for i in 0..count {
                    let index = random.below(elements);
                    indices.store(i << index_width.0, index_width, index);
                    model.add(index);
                }
                let entry = indexed(width, flags, area.address(0), indices.address(0), count as u32);
                bench.expect(&entry, Status::SUCCESS, count as u32, Some(0))?;
                model.compare(&area, &entry)?;
            }
        }
    }
    Ok(())
}

/// Commands that end early.
pub(super) fn partial(bench: &mut Bench, _: &Run) -> Result<()> {
    let mut area = Area::new(Backing::Private, 3 * PAGE)?;
    area.unmap_from(2 * PAGE)?;
    let end = area.address(2 * PAGE);
    for width in WIDTHS {
        let bytes = 1u64 << width.0;
        // Forward into the hole, from it at once, and a stride that jumps over it never lands.
        for elements_before in [0, 1, 10, 600] {
            let mut model = Model::zero(&area, width);
            let first = ((2 * PAGE) >> width.0) - elements_before;
            (first..first + elements_before).for_each(|element| model.add(element));
            let entry = strided(width, area.address(first * bytes), bytes as i32, 5000);
            bench.expect(&entry, Status::FAULT, elements_before as u32, Some(end))?;
            model.compare(&area, &entry)?;
        }
        indices_that_end(bench, &area, width)?;
    }
    range(bench, &area)
}

/// An index that leads nowhere, and an index array that ends before its count.
fn indices_that_end(bench: &mut Bench, area: &Area, width: WidthLog2) -> Result<()> {
    let elements = (2 * PAGE) >> width.0;
    for (flags, index_width) in [(INDEX32, W32), (INDEX64, W64)] {
        let mut indices = Area::new(Backing::Private, 2 * PAGE)?;
        indices.unmap_from(PAGE)?;
        let room = PAGE >> index_width.0;
        for i in 0..room {
            indices.store(i << index_width.0, index_width, (i * 7) % elements);
        }
        let mut model = Model::zero(area, width);
        (room - 20..room).for_each(|i| model.add((i * 7) % elements));
        let start = indices.address((room - 20) << index_width.0);
        let entry = indexed(width, flags, area.address(0), start, 50);
        bench.expect(&entry, Status::FAULT, 20, Some(indices.address(PAGE)))?;
        model.compare(area, &entry)?;

        let mut model = Model::zero(area, width);
        indices.store(9 << index_width.0, index_width, elements + 3);
        (0..9).for_each(|i| model.add((i * 7) % elements));
        let entry = indexed(width, flags, area.address(0), indices.address(0), 50);
        let hole = area.address((elements + 3) << width.0);
        bench.expect(&entry, Status::FAULT, 9, Some(hole))?;
        model.compare(area, &entry)?;
    }
    Ok(())
}

/// Addresses that leave the range of translation when their turn comes, and never wrap.
fn range(bench: &mut Bench, area: &Area) -> Result<()> {
    let indices = Area::new(Backing::Private, PAGE)?;
    for beyond in [VA_END >> 3, u64::MAX >> 3, u64::MAX, 1 << 61] {
        let mut model = Model::zero(area, W64);
        [4, 4, 5].iter().for_each(|&element| model.add(element));
        for (i, index) in [4, 4, 5, beyond, 6].into_iter().enumerate() {
            indices.store(8 * i as u64, W64, index);
        }
        let entry = indexed(W64, INDEX64, area.address(0), indices.address(0), 5);
        bench.expect(&entry, Status::ADDRESS_RANGE, 3, None)?;
        model.compare(area, &entry)?;
    }
    // Low memory, and a stride that goes below zero.
    let low = Area::at(16 * PAGE, PAGE)?;
    let mut model = Model::zero(&low, W64);
    model.add(0);
    let entry = strided(W64, low.address(0), -(32 * PAGE as i32), 3);
    bench.expect(&entry, Status::ADDRESS_RANGE, 1, None)?;
    model.compare(&low, &entry)
}

/// What an area should contain: every element a number of additions of 3.
struct Model {
    width: WidthLog2,
    elements: Vec<u64>,
}

impl Model {
    /// Zeroes the two, or four, pages of the area that are mapped.
    fn zero(area: &Area, width: WidthLog2) -> Self {
        let elements = area.live() >> width.0;
        (0..elements).for_each(|element| area.store(element << width.0, width, 0));
        Model { width, elements: vec![0; elements as usize] }
    }

    fn add(&mut self, element: u64) {
        self.elements[element as usize] += 3;
    }

    fn compare(&self, area: &Area, entry: &Sqe) -> Result<()> {
        for (element, expected) in self.elements.iter().enumerate() {
            let found = area.load((element as u64) << self.width.0, self.width);
            ensure!(
                found == *expected,
                "element {element}: expected {expected}, found {found} after {entry:x?}"
            );
        }
        Ok(())
    }
}
