// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Fault look-ahead (spec 7.3): while a command is stalled, the driver is told of the pages that it will need
//! next. Nothing here changes what a command does.

use std::cell::Cell;
use std::ops::ControlFlow;

use svmx_abi::fault::AccessKind;
use svmx_abi::pci::{PAGE_SIZE, VECTOR_FAULT, page_base};
use svmx_abi::regs::Counter;

use super::Engine;
use super::turn::usable;
use crate::ahead::{Ahead, Need, Pending, STREAMS};
use crate::command::Width;
use crate::compute::Word;
use crate::faults::{Fault, Reported};
use crate::instrument::Instrument;
use crate::memory::Page;
use crate::mmu::{self, WalkError};
use crate::model::Model;
use crate::queue::{Rings, State};
use crate::tlb::Tlb;

/// Consecutive pages of one stream that have not been reported yet.
#[derive(Clone, Copy)]
struct Run {
    va: u64,
    kind: AccessKind,
    pages: u32,
}

impl Run {
    fn end(&self) -> u64 {
        page_base(self.va) + u64::from(self.pages) * PAGE_SIZE
    }
    fn contains(&self, va: u64) -> bool {
        (page_base(self.va)..self.end()).contains(&va)
    }

    /// Takes in the page on either side of it.
    fn extend(&mut self, va: u64) -> bool {
        let page = page_base(va);
        if page + PAGE_SIZE == page_base(self.va) {
            self.va = va;
        } else if page != self.end() {
            return false;
        }
        self.pages += 1;
        true
    }
}

impl<I: Instrument> Engine<I> {
    /// Reports what the command that has just stalled, and was reported, will need. It stops when somebody has
    /// taken translations away, as those that it looks at are no longer good, and when somebody wants the queue:
    /// the driver may have answered the fault.
    pub(super) fn look_ahead(&self, model: &Model, state: &mut State) {
        let limit = model.lookahead();
        let State { rings, work: Some((work, tag)), stall: Some(stall), pending, .. } = state else { return };
        let (Some(ahead), Some(queue)) = (Ahead::of(work.command()), model.queues.get(rings.queue)) else {
            return;
        };
        if limit == 0 {
            return;
        }
        let over = || self.user.behind() || queue.wanted();
        let scout = Scout { tlb: &self.tlb, rings, walks: Cell::new(0) };
        pending.retain(|page, kind| over() || matches!(scout.find(page, kind), Found::Missing));
        pending.insert(stall.access.va, stall.access.kind);
        let most = scout.walks.get() + 2 * limit + STREAMS as u32;
        let fault = Fault::of(rings, *tag, stall);
        let mut runs: [Option<Run>; STREAMS] = [None; STREAMS];
        let mut found = 0;
        // It breaks when enough was found or looked at; what was found is reported in either case.
        let _ = ahead.walk(
            work.applied,
            |va, width| scout.index(va, width),
            |Need { stream, kind, va }| {
                let run = &mut runs[stream];
                if over() || found == limit || pending.is_full() || scout.walks.get() >= most {
                    return ControlFlow::Break(());
                }
                // A run's pages are pending.
                if pending.contains(va) {
                    return ControlFlow::Continue(());
                }
                match scout.find(va, kind) {
                    Found::Page(_) => return ControlFlow::Continue(()),
                    Found::End => return ControlFlow::Break(()),
                    Found::Missing => pending.insert(va, kind),
                }
                found += 1;
                if run.as_mut().is_some_and(|run| run.extend(va)) {
                    return ControlFlow::Continue(());
                }
                match run.replace(Run { va, kind, pages: 1 }) {
                    Some(complete) => self.report_ahead(model, &fault, pending, &complete),
                    None => ControlFlow::Continue(()),
                }
            },
        );
        model.counters.add(self.number, Counter::Walks, scout.walks.get().into());
        for run in runs.iter().flatten() {
            let _ = self.report_ahead(model, &fault, pending, run);
        }
    }

    /// Writes a record; breaks if there is no room for more.
    fn report_ahead(
        &self,
        model: &Model,
        fault: &Fault,
        pending: &mut Pending,
        run: &Run,
    ) -> ControlFlow<()> {
        let fault = Fault { va: run.va, access: run.kind, ahead: Some(run.pages), ..*fault };
        let written = model.faults.write(self.tlb.memory(), model.doorbells.driver(), &fault);
        let Reported::Written { armed } = written else {
            pending.retain(|page, _| !run.contains(page));
            return ControlFlow::Break(());
        };
        model.counters.add(self.number, Counter::Lookahead, run.pages.into());
        if armed {
            model.interrupt(self.number, VECTOR_FAULT);
        }
        ControlFlow::Continue(())
    }
}

/// What is at an address for an access.
enum Found<'t> {
    /// A page, and a translation that suffices.
    Page(Page<'t>),
    /// Nothing that suffices: the driver can change that.
    Missing,
    /// What the driver can't change: this access will end the command.
    End,
}

/// Looks translations up, cached or in the table, and counts walks.
struct Scout<'t> {
    tlb: &'t Tlb,
    rings: &'t Rings,
    walks: Cell<u32>,
}

impl<'t> Scout<'t> {
    fn find(&self, va: u64, kind: AccessKind) -> Found<'t> {
        let (tlb, rings) = (self.tlb, self.rings);
        if let Some(page) = tlb.lookup(rings.asid, va).filter(|page| usable(*page, kind)) {
            return Found::Page(page);
        }
        self.walks.set(self.walks.get() + 1);
        match mmu::walk(tlb.memory(), rings.root, va) {
            Err(WalkError::NotMapped) => Found::Missing,
            Err(WalkError::BadMemory | WalkError::Malformed) => Found::End,
            Ok(translation) if !mmu::allows(translation.access, kind) => Found::Missing,
            Ok(translation) => match tlb.memory().page(translation.frame, kind != AccessKind::READ) {
                Some(page) => Found::Page(page.with_access(translation.access)),
                None => Found::End,
            },
        }
    }

    fn index(&self, va: u64, width: Width) -> Option<u64> {
        let Found::Page(page) = self.find(va, AccessKind::READ) else { return None };
        Some(if width == Width::W32 { u32::load(page, va).into() } else { u64::load(page, va) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Addressing, AtomicOp, Bulk, Command, Operand, Operands};
    use crate::instrument::Plain;
    use crate::memory::{DmaMap, GuestMemory};
    use crate::model::Options;
    use crate::work::{Next, Work};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::sync::Arc;

    const ROOT: u64 = PAGE_SIZE;

    /// An engine over a fault queue and an empty page table, and a queue that has stalled in a bulk command.
    fn stalled() -> (Arc<Model>, Engine<Plain>, State) {
        let model = Arc::new(Model::new(Options { engines: 1, ..Default::default() }).unwrap());
        let file = std::fs::File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(2 * PAGE_SIZE).unwrap();
        let map = DmaMap { address: 0, size: 2 * PAGE_SIZE, file, offset: 0, writable: true };
        model.invalidations.replace(Arc::new(GuestMemory::default().with_map(map).unwrap()));
        model.faults.start(0, 6);
        model.set_lookahead(8);
        let mut engine = Engine::new(model.clone(), 0, Plain).unwrap();
        engine.user.enter(|change| engine.tlb.apply(change));
        let (sq_log2, cq_log2, vector) = (4, 4, 2);
        let rings = Rings { queue: 1, asid: 1, root: ROOT, sq_base: 0, sq_log2, cq_base: 0, cq_log2, vector };
        let mut state = State::new(rings);
        let addressing = Addressing::Stride(PAGE_SIZE as i32);
        let operands = Operands::Immediate(Operand::default());
        let (op, width, base, count) = (AtomicOp::Add, Width::W64, 0, 100);
        let work = Work::new(Command::Bulk(Bulk { op, width, base, count, addressing, operands, old: None }));
        let Next::Access(access) = work.next() else { panic!("it has elements") };
        state.work = Some((work, 0));
        model.queues.get(1).unwrap().stall(&mut state, access);
        (model, engine, state)
    }

    fn reported(model: &Model) -> u64 {
        model.counters.total(Counter::Lookahead)
    }

    #[test]
    fn whoever_wants_the_queue_need_not_wait() {
        let (model, engine, mut state) = stalled();
        model.queues.get(1).unwrap().want(true);
        engine.look_ahead(&model, &mut state);
        assert_eq!(reported(&model), 0);
        model.queues.get(1).unwrap().want(false);
        engine.look_ahead(&model, &mut state);
        assert_eq!(reported(&model), 8);
    }
}
