// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bulk commands over pages that a CPU thread keeps taking back: every element is applied exactly once all the
//! same, and what the CPU adds next to them stays too.

use super::bulk::{self, Addressing, ELEMENTS, Form, INDICES, OLD, OPERANDS};
use super::reference::Memory;
use super::{Bench, W64};
use crate::area::PAGE;
use crate::random::Random;
use crate::scenario::Run;
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use svmx::abi::queue::Sqe;

const ROUNDS: u32 = 40;
/// The first and the last word of each area are the CPU's. All that the device works on is between.
const CPU_WORDS: [u64; 2] = [0, 2 * PAGE - 8];
const AREAS: [usize; 4] = [ELEMENTS, INDICES, OPERANDS, OLD];

pub(super) fn contended(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 7);
    let forms = Form::all();
    let mut memory = bulk::four(2)?;
    for round in 0..ROUNDS {
        let form = *random.pick(&forms);
        let entry = set_up(&mut memory, &mut random, form)?;
        let expected = memory.execute(&entry)?;
        let increments = meanwhile(&memory, || {
            bench.queue.submit(&entry)?;
            bench.as_expected(&entry, expected)
        })?;
        for n in AREAS {
            CPU_WORDS.into_iter().for_each(|at| memory.add(n, at, increments));
        }
        memory.compare().with_context(|| format!("round {round}: after {entry:x?}"))?;
    }
    Ok(())
}

/// A command whose elements and operands are to both sides of a page's end.
fn set_up(memory: &mut Memory, random: &mut Random, form: Form) -> Result<Sqe> {
    let middle = (PAGE / 2) >> form.width.0;
    let count = 20 + random.below(60);
    let first = if form.addressing == Addressing::Stride(-1) { 3 * middle - 1 } else { middle };
    let skip = AREAS.map(|n| (PAGE >> form.log2(n)) - count / 2);
    let mut entry = form.set_up(memory, random, (first, 2 * middle), count as u32, skip)?;
    if let Addressing::Index(_) = form.addressing {
        entry.addr = memory.address(ELEMENTS, PAGE / 2);
    }
    Ok(entry)
}

/// Does something while a CPU thread works on the same pages. Returns how often that one added to each
/// of its words.
fn meanwhile(memory: &Memory, act: impl FnOnce() -> Result<()>) -> Result<u64> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let cpu = scope.spawn(|| -> Result<u64> {
            let mut increments = 0;
            while !stop.load(Relaxed) {
                for (n, at) in AREAS.into_iter().flat_map(|n| CPU_WORDS.map(|at| (n, at))) {
                    memory.area(n).increment(at);
                }
                increments += 1;
                // Pages that are only read are not the CPU's to take, so they go another way.
                memory.area(INDICES).flicker()?;
                memory.area(OPERANDS).flicker()?;
            }
            Ok(increments)
        });
        let result = act();
        stop.store(true, Relaxed);
        let increments = cpu.join().map_err(|_| anyhow::anyhow!("the CPU thread panicked"))??;
        result.map(|()| increments)
    })
}

impl Memory {
    /// Adds to a 64-bit word of the copy: a CPU has added to the area's.
    fn add(&mut self, n: usize, offset: u64, value: u64) {
        let sum = self.copy_of(n, offset, W64).wrapping_add(value.into());
        self.note(n, offset, W64, sum);
    }
}
