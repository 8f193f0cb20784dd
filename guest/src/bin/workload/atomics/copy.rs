// SPDX-License-Identifier: Apache-2.0 OR MIT

//! COPY and FILL: every width, overlap and alignment, over pages of every state and kind, and how they end
//! early (spec 5.6).

use super::reference::Memory;
use super::{Bench, W8, W32, W64};
use crate::area::{Area, Backing, PAGE, scalar};
use crate::random::Random;
use crate::scenario::{Run, step};
use anyhow::Result;
use svmx::abi::queue::{Opcode, Sqe, WidthLog2};

const WIDTHS: [WidthLog2; 3] = [W8, W32, W64];
/// Bytes of a copy: none, one element, odd numbers, more than a page.
const BYTES: [u64; 7] = [0, 1, 40, 255, 1000, PAGE, PAGE + 1000];

fn copy_entry(width: WidthLog2, from: u64, to: u64, count: u64) -> Sqe {
    Sqe { opcode: Opcode::COPY, width, addr: to, arg0: from, count: count as u32, ..Sqe::default() }
}

fn fill_entry(width: WidthLog2, to: u64, value: u64, count: u64) -> Sqe {
    Sqe { opcode: Opcode::FILL, width, addr: to, operand: value, count: count as u32, ..Sqe::default() }
}

/// Elements that `bytes` have room for, at least one if there is a byte.
fn elements(width: WidthLog2, bytes: u64) -> u64 {
    bytes.div_ceil(1 << width.0)
}

/// Writes random bytes to all of area `n`.
fn scramble(memory: &mut Memory, random: &mut Random, n: usize) {
    for offset in (0..memory.area(n).live()).step_by(8) {
        memory.store(n, offset, W64, random.next().into());
    }
}

pub(super) fn copy(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 8);
    overlapping(bench, &mut random)?;
    between(bench, &mut random)?;
    after_atomics(bench, &mut random)
}

/// Source and destination in one area, at every distance that matters.
fn overlapping(bench: &mut Bench, random: &mut Random) -> Result<()> {
    step("copy: overlapping");
    let mut memory = Memory::of([Area::new(Backing::Private, 4 * PAGE)?]);
    scramble(&mut memory, random, 0);
    for width in WIDTHS {
        for bytes in BYTES {
            let count = elements(width, bytes);
            // From the source to the destination, in elements.
            let distances = [0, 1, 3, 7, 8, count / 2, count.saturating_sub(1), count, count + 1];
            for distance in distances {
                for downward in [false, true] {
                    let low = elements(width, PAGE / 2) + random.below(16);
                    let (from, to) = if downward { (low + distance, low) } else { (low, low + distance) };
                    let address = |element: u64| memory.address(0, element << width.0);
                    let entry = copy_entry(width, address(from), address(to), count);
                    bench.agree(&entry, &mut memory)?;
                }
            }
        }
    }
    Ok(())
}

/// From one area to another, of every kind, with pages that nobody has touched on both sides.
fn between(bench: &mut Bench, random: &mut Random) -> Result<()> {
    const KINDS: [Backing; 3] = [Backing::Private, Backing::SharedAnonymous, Backing::Memfd];
    for (from, to) in KINDS.into_iter().flat_map(|from| KINDS.map(|to| (from, to))) {
        step(format!("copy: {from:?} to {to:?}"));
        for width in WIDTHS {
            let mut memory = Memory::untouched([Area::new(from, 3 * PAGE)?, Area::new(to, 3 * PAGE)?]);
            let count = elements(width, PAGE + 500);
            let some = |random: &mut Random| random.below(elements(width, PAGE)) << width.0;
            for round in 0..4 {
                // The first time zeros, which nobody has written, come to where nobody has been.
                if round > 0 {
                    scramble(&mut memory, random, 0);
                }
                let (source, destination) = (some(random), some(random));
                let (source, destination) = (memory.address(0, source), memory.address(1, destination));
                bench.agree(&copy_entry(width, source, destination, count), &mut memory)?;
            }
        }
    }
    step("copy: from what may only be read");
    let mut memory = Memory::of([Area::new(Backing::Private, PAGE)?, Area::new(Backing::Private, PAGE)?]);
    scramble(&mut memory, random, 0);
    memory.protect(0, true, false)?;
    for width in WIDTHS {
        let entry = copy_entry(width, memory.address(0, 0), memory.address(1, 0), elements(width, PAGE));
        bench.agree(&entry, &mut memory)?;
    }
    Ok(())
}

/// The device goes from atomics to copies on the same page and back, without a CPU between.
fn after_atomics(bench: &mut Bench, random: &mut Random) -> Result<()> {
    step("copy: after atomics");
    let mut memory = Memory::of([Area::new(Backing::Private, 2 * PAGE)?]);
    for _ in 0..50 {
        let word = |random: &mut Random| 8 * random.below(PAGE / 8);
        let entries = [
            scalar(Opcode::FETCH_ADD, W64, memory.address(0, word(random)), random.next()),
            copy_entry(W64, memory.address(0, word(random)), memory.address(0, PAGE), 100),
            scalar(Opcode::FETCH_XOR, W64, memory.address(0, PAGE + 8 * random.below(100)), random.next()),
            fill_entry(W8, memory.address(0, word(random)), random.below(256), 333),
            scalar(Opcode::SWAP, W32, memory.address(0, word(random)), random.below(1 << 32)),
            copy_entry(W8, memory.address(0, PAGE + 1), memory.address(0, word(random)), 200),
        ];
        for entry in &entries {
            bench.queue.submit(entry)?;
        }
        for entry in &entries {
            let expected = memory.execute(entry)?;
            bench.as_expected(entry, expected)?;
        }
        memory.compare()?;
    }
    Ok(())
}

/// FILL: every width, length and beginning.
pub(super) fn fill(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 9);
    for backing in [Backing::Private, Backing::Memfd] {
        let mut memory = Memory::untouched([Area::new(backing, 4 * PAGE)?]);
        for width in WIDTHS {
            for bytes in BYTES {
                for first in [0, 1, 7, elements(width, PAGE) - 1, random.below(elements(width, 2 * PAGE))] {
                    let value = random.next() & (u64::MAX >> (64 - (8 << width.0)));
                    let to = memory.address(0, first << width.0);
                    bench.agree(&fill_entry(width, to, value, elements(width, bytes)), &mut memory)?;
                }
            }
        }
    }
    Ok(())
}

/// Copies and fills that run into a hole, or into memory without the right, from both sides.
pub(super) fn early(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 10);
    // Far from where the kernel would map anything. Between two good pages is one that is not.
    const FAR: u64 = 0x2100_0000_0000;
    let good = |at: u64| Area::at(FAR + at * PAGE, PAGE);
    for hole in [true, false] {
        step(format!("copy into {}", if hole { "a hole" } else { "memory without rights" }));
        let mut areas = vec![good(0)?, good(2)?, good(8)?, good(9)?, good(10)?];
        if !hole {
            areas.push(good(1)?);
        }
        let mut memory = Memory::of(areas);
        (0..5).for_each(|n| scramble(&mut memory, &mut random, n));
        if !hole {
            memory.protect(5, false, false)?;
        }
        for width in WIDTHS {
            for before in [0, 1, 5, 8, 300] {
                let element = 1 << width.0;
                // Upward into it from the page below; the other side is good memory throughout.
                let bad = FAR + PAGE - before * element;
                let other = memory.address(2, random.below(64) * element);
                let count = before + 20;
                bench.agree(&copy_entry(width, bad, other, count), &mut memory)?;
                bench.agree(&copy_entry(width, other, bad, count), &mut memory)?;
                bench.agree(&fill_entry(width, bad, random.below(256), count), &mut memory)?;
                // Downward into it from the page above, because source and destination overlap.
                let (source, destination) = (FAR + 2 * PAGE - 20 * element, FAR + 2 * PAGE - 10 * element);
                bench.agree(&copy_entry(width, source, destination, 20 + before), &mut memory)?;
            }
        }
    }
    Ok(())
}
