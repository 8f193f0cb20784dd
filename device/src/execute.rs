// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Accesses to guest memory on behalf of commands, as the page they are to demands (spec 6.3): serialized in
//! the device on an *atomic* page, by the host's instructions on a *coherent* one.
//!
//! Which access comes next is [`crate::work`]'s; where it leads was translated before.

use std::time::{Duration, Instant};

use crate::command::{Atomic, Operand, Width};
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
    /// What others may change at the same time is not told.
    #[inline(always)]
    fn tell<W: Word>(&mut self, page: Page<'_>, va: u64, old: Option<W>, new: Option<W>) {
        if I::ELEMENTS && page.exclusive() {
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
            // Computed once: which NaN a sum of NaNs is may be another one the second time.
            let new = old.compute(op, value, compare);
            self.delay();
            new.store(page, access.va);
            watch.tell(page, access.va, Some(old), Some(new));
            old
        } else {
            W::coherent(page, access.va, op, value, compare)?
        };
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
    // By an *atomic* translation alone: that there is no other that stores is the driver's duty (spec 6.3).
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{AtomicOp, Command, Target};
    use crate::memory::{DmaMap, GuestMemory};
    use crate::work::Next;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::cell::Cell;
    use std::sync::atomic::Ordering;
    use svmx_abi::pci::PAGE_SIZE;
    use svmx_abi::pte::Access as Permission;

    /// The last effect that was told.
    #[derive(Debug)]
    struct Last(Option<Effect>);

    impl Instrument for Last {
        const ELEMENTS: bool = true;

        fn effect(&mut self, _: u32, _: u64, _: u64, _: Page<'_>, effect: Effect) {
            self.0 = Some(effect);
        }
    }

    /// A word that becomes something else each time it is asked, as a sum of NaNs may.
    #[derive(Clone, Copy, PartialEq)]
    struct Fickle(u64);

    impl Word for Fickle {
        fn widen(self) -> u128 {
            self.0.into()
        }
        fn narrow(value: u128) -> Self {
            Fickle(value as u64)
        }
        fn load(page: Page<'_>, va: u64) -> Self {
            Fickle(u64::load(page, va))
        }
        fn store(self, page: Page<'_>, va: u64) {
            self.0.store(page, va);
        }
    }

    impl Element for Fickle {
        fn compute(self, _: AtomicOp, _: Self, _: Self) -> Self {
            thread_local!(static TIMES: Cell<u64> = const { Cell::new(0) });
            TIMES.set(TIMES.get() + 1);
            Fickle(TIMES.get())
        }
        fn coherent(_: Page<'_>, _: u64, _: AtomicOp, _: Self, _: Self) -> Option<Self> {
            None
        }
    }

    fn memory() -> GuestMemory {
        let file = std::fs::File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(PAGE_SIZE).unwrap();
        let map = DmaMap { address: 0, size: PAGE_SIZE, file, offset: 0, writable: true };
        GuestMemory::default().with_map(map).unwrap()
    }

    /// Does a FETCH_FADD; what is there then, and what was told.
    fn fadd<W: Element>(memory: &GuestMemory, width: Width, old: u64, operand: u64) -> (u64, Option<Effect>) {
        let page = memory.page(0, true).unwrap().with_access(Permission::EXCLUSIVE);
        page.word64(0).store(old, Ordering::Relaxed);
        let operand = Operand { value: operand.into(), compare: 0 };
        let atomic = Atomic { op: AtomicOp::Fadd, operand };
        let work = Work::new(Command::Atomic(Target { va: 0, width }, atomic));
        let Next::Access(access) = work.next() else { panic!("{:?}", work.next()) };
        let mut last = Last(None);
        Memory::new(Duration::ZERO).element::<W, _>(
            &mut Watch { asid: 1, instrument: &mut last },
            &access,
            page,
        );
        (page.word64(0).load(Ordering::Relaxed), last.0)
    }

    #[test]
    fn what_is_told_is_what_was_stored() {
        let memory = memory();
        for _ in 0..3 {
            let (stored, told) = fadd::<Fickle>(&memory, Width::W64, 7, 7);
            assert_eq!(told, Some(Effect { old: Some(7), new: Some(stored.into()) }));
        }
    }

    #[test]
    fn nans_of_all_kinds_are_told_as_they_were_stored() {
        // Quiet and signalling, of both signs, with different payloads; and what makes one of two numbers.
        let wide = [0x7ff8 << 48, 0x7ff0_0000_0000_0001, 0x7ff8_dead_beef_0001, 0x7ff4_0000_1234_0000];
        let narrow = [0x7fc0_0000, 0x7f80_0001, 0x7fc0_beef, 0x7fa1_0000];
        let rest = |infinity: u64, sign: u64| [infinity, infinity | sign, 0, sign];
        let all = |nans: [u64; 4], infinity, sign| {
            nans.into_iter().flat_map(move |nan| [nan, nan | sign]).chain(rest(infinity, sign)).collect()
        };
        let (wide, narrow): (Vec<u64>, Vec<u64>) =
            (all(wide, 0x7ff0 << 48, 1 << 63), all(narrow, 0x7f80_0000, 1 << 31));
        let memory = memory();
        let told_as_stored = |(stored, told): (u64, Option<Effect>), old: u64| {
            assert_eq!(told, Some(Effect { old: Some(old.into()), new: Some(stored.into()) }));
        };
        for (&old, &operand) in wide.iter().flat_map(|old| wide.iter().map(move |operand| (old, operand))) {
            told_as_stored(fadd::<u64>(&memory, Width::W64, old, operand), old);
        }
        for (&old, &operand) in narrow.iter().flat_map(|old| narrow.iter().map(move |operand| (old, operand)))
        {
            told_as_stored(fadd::<u32>(&memory, Width::W32, old, operand), old);
        }
    }
}
