// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bulk commands that run into something: exactly the elements that `applied` says have changed, and exactly
//! their old values were stored (spec 5.5).

use super::bulk::{Addressing, ELEMENTS, Form, INDICES, OLD, OPERANDS};
use super::reference::Memory;
use super::{Bench, W32, W64, bulk};
use crate::area::{Area, Backing, PAGE};
use crate::random::Random;
use crate::scenario::{Run, step};
use anyhow::Result;
use svmx::abi::pci::VA_END;
use svmx::abi::queue::Opcode;

/// What is behind, and before, the two good pages of an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beyond {
    Hole,
    NoAccess,
    ReadOnly,
    /// Memory that can't be had exclusively.
    Shared,
}
const BEYOND: [Beyond; 4] = [Beyond::Hole, Beyond::NoAccess, Beyond::ReadOnly, Beyond::Shared];

/// Where the areas are: far from where the kernel would map anything, so that holes stay holes.
const FAR: u64 = 0x2000_0000_0000;
/// From one area to the next.
const APART: u64 = 16 * PAGE;

/// Every array in turn is cut off by every kind of memory.
pub(super) fn arrays(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 5);
    let forms = Form::all();
    for (name, cut) in [("elements", ELEMENTS), ("indices", INDICES), ("operands", OPERANDS), ("old", OLD)] {
        for beyond in BEYOND {
            step(format!("bulk: {name} cut off by {beyond:?}"));
            let mut memory = cut_off(cut, beyond)?;
            let forms: Vec<&Form> = forms.iter().filter(|form| uses(form, cut)).collect();
            for _ in 0..12 {
                let form = **random.pick(&forms);
                ends(bench, &mut memory, &mut random, cut, form)?;
            }
        }
    }
    Ok(())
}

/// Four areas of two good pages each, and at both ends of `cut` what is `beyond` it.
fn cut_off(cut: usize, beyond: Beyond) -> Result<Memory> {
    let base = |n: usize| FAR + n as u64 * APART;
    let mut areas = Vec::new();
    for n in 0..4 {
        areas.push(Area::at(base(n), 2 * PAGE)?);
    }
    let backing = if beyond == Beyond::Shared { Backing::Memfd } else { Backing::Private };
    if beyond != Beyond::Hole {
        areas.push(Area::at_of(backing, base(cut) - PAGE, PAGE)?);
        areas.push(Area::at_of(backing, base(cut) + 2 * PAGE, PAGE)?);
    }
    let mut memory = Memory::of(areas);
    if matches!(beyond, Beyond::NoAccess | Beyond::ReadOnly) {
        memory.protect(4, beyond == Beyond::ReadOnly, false)?;
        memory.protect(5, beyond == Beyond::ReadOnly, false)?;
    }
    Ok(memory)
}

/// Whether a command of that form can run over the end of the array.
fn uses(form: &Form, cut: usize) -> bool {
    match cut {
        ELEMENTS => form.addressing != Addressing::Stride(0),
        INDICES => matches!(form.addressing, Addressing::Index(_)),
        OPERANDS => form.operands,
        _ => form.store_old,
    }
}

/// A command whose element `good` is the first that has something beyond the array's end.
fn ends(bench: &mut Bench, memory: &mut Memory, random: &mut Random, cut: usize, form: Form) -> Result<()> {
    let good = random.below(30);
    let count = good + 1 + random.below(20);
    let elements = (2 * PAGE) >> form.width.0;
    let mut skip = [0; 4].map(|_: u64| random.below(8));
    if cut != ELEMENTS {
        skip[cut] = ((2 * PAGE) >> form.log2(cut)) - good;
    }
    let mut entry = form.set_up(memory, random, (elements / 2, elements), count as u32, skip)?;
    if cut == ELEMENTS {
        match form.addressing {
            Addressing::Stride(step) if step < 0 => {
                let first = memory.address(ELEMENTS, 0) + (good << form.width.0);
                entry.addr = first - (1 << form.width.0);
            }
            Addressing::Stride(step) => {
                let before = good * u64::from(step.unsigned_abs());
                entry.addr = memory.address(ELEMENTS, (elements - before) << form.width.0);
            }
            Addressing::Index(index) => {
                let beyond = elements + random.below(PAGE >> form.width.0);
                memory.store(INDICES, (skip[INDICES] + good) << index.0, index, beyond.into());
            }
        }
    }
    bench.agree(&entry, memory)
}

/// Addresses that leave the range of translation when their turn comes, and never wrap.
pub(super) fn range(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 6);
    let mut memory = bulk::four(1)?;
    let form = |width, addressing| Form {
        opcode: Opcode::FETCH_ADD,
        width,
        addressing,
        operands: false,
        store_old: true,
    };
    for beyond in [VA_END >> 3, u64::MAX >> 3, u64::MAX, 1 << 61] {
        let entry = form(W64, Addressing::Index(W64)).set_up(&mut memory, &mut random, (0, 8), 5, [0; 4])?;
        memory.store(INDICES, 3 * 8, W64, beyond.into());
        bench.agree(&entry, &mut memory)?;
    }
    // Low memory, and a stride that goes below zero.
    let other = || Area::new(Backing::Private, PAGE);
    let mut low = Memory::of([Area::at(16 * PAGE, PAGE)?, other()?, other()?, other()?]);
    for width in [W32, W64] {
        let form = Form { store_old: false, ..form(width, Addressing::Stride(0)) };
        let mut entry = form.set_up(&mut low, &mut random, (0, 1), 3, [0; 4])?;
        entry.stride = -(32 * PAGE as i32);
        bench.agree(&entry, &mut low)?;
    }
    Ok(())
}
