// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Accesses to guest memory on behalf of commands, as the page they are to demands (spec 6.3): serialized in
//! the device on an *atomic* page, by the host's instructions on a *coherent* one.
//!
//! Which access comes next is [`crate::work`]'s; where it leads was translated before.

use std::time::{Duration, Instant};

use crate::command::{Atomic, AtomicOp, Operand, Width};
use crate::compute::{Element, Word};
use crate::instrument::{Effect, Instrument};
use crate::memory::Page;
use crate::work::{Access, To, Work};

/// How the device gets at memory.
#[derive(Debug)]
pub struct Memory {
    rmw_delay: Duration,
}

/// The address space in which accesses are made, and who watches them.
#[derive(Debug)]
pub struct Watch<'i, I> {
    /// Address space.
    pub asid: u32,
    /// Who is told.
    pub instrument: &'i mut I,
}

impl<I: Instrument> Watch<'_, I> {
    fn tell<W: Word>(&mut self, page: Page<'_>, va: u64, old: Option<W>, new: Option<W>) {
        if I::ELEMENTS {
            let effect = Effect { old: old.map(W::widen), new: new.map(W::widen) };
            self.instrument.effect(self.asid, va, size_of::<W>() as u64, page, effect);
        }
    }
}

impl Memory {
    /// With a time to let pass between the read and the write of an atomic on an *atomic* page.
    pub fn new(rmw_delay: Duration) -> Self {
        Memory { rmw_delay }
    }

    /// Performs `work`'s next access on the page it was translated to, whose permission suffices, and which
    /// the caller holds if [`needs_hold`] says so. Where others change a *coherent* element all the time it may
    /// come to nothing, and the access is still the next.
    pub fn perform<I: Instrument>(
        &self,
        watch: &mut Watch<'_, I>,
        work: &mut Work,
        access: &Access,
        page: Page<'_>,
    ) {
        let loaded = match access.width {
            Width::W8 => Some(plain::<u8, I>(watch, access, page)),
            Width::W32 => self.element::<u32, I>(watch, access, page),
            Width::W64 => self.element::<u64, I>(watch, access, page),
            Width::W128 => self.element::<u128, I>(watch, access, page),
        };
        if let Some(loaded) = loaded {
            work.apply(access, loaded);
        }
    }

    fn element<W: Element, I: Instrument>(
        &self,
        watch: &mut Watch<'_, I>,
        access: &Access,
        page: Page<'_>,
    ) -> Option<Operand> {
        let To::Atomic(Atomic { op, operand }) = access.to else {
            return Some(plain::<W, I>(watch, access, page));
        };
        let (value, compare) = (W::narrow(operand.value), W::narrow(operand.compare));
        let old = if page.exclusive() {
            // What device hardware does: two transactions, serialized in the device only.
            let old = W::load(page, access.va);
            let new = old.compute(op, value, compare);
            self.delay();
            new.store(page, access.va);
            old
        } else {
            W::coherent(page, access.va, op, value, compare)?
        };
        let new = old.compute(op, value, compare);
        let stored = page.exclusive() || op != AtomicOp::Cas || old == compare;
        watch.tell(page, access.va, Some(old), stored.then_some(new));
        Some(Operand { value: old.widen(), compare: 0 })
    }

    fn delay(&self) {
        if !self.rmw_delay.is_zero() {
            let start = Instant::now();
            while start.elapsed() < self.rmw_delay {
                std::hint::spin_loop();
            }
        }
    }
}

/// Whether an access is serialized with those of other engines: by [`crate::ownership`].
#[inline]
pub fn needs_hold<I: Instrument>(access: &Access, page: Page<'_>) -> bool {
    // Whoever is told of loads is told of them in their place among other engines' stores.
    page.exclusive() && (access.writes() || I::ELEMENTS)
}

/// A load or a store; what was loaded. Nothing else comes here.
fn plain<W: Word, I: Instrument>(watch: &mut Watch<'_, I>, access: &Access, page: Page<'_>) -> Operand {
    let mut load = |va| {
        let value = W::load(page, va);
        watch.tell(page, va, Some(value), None);
        value.widen()
    };
    match access.to {
        To::Load | To::Atomic(_) => Operand { value: load(access.va), compare: 0 },
        To::LoadPair => {
            // Both are in one page, because the address is a multiple of the pair's size (spec 5.4).
            let compare = load(access.va);
            Operand { value: load(access.va + access.width.bytes()), compare }
        }
        To::Store(value) => {
            let value = W::narrow(value);
            value.store(page, access.va);
            watch.tell(page, access.va, None, Some(value));
            Operand::default()
        }
    }
}
