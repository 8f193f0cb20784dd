// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Fault look-ahead (spec 7.3): while a command is stalled, the driver is told of the pages that it will need
//! next. Nothing here changes what a command does.

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
use crate::mmu;
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
    /// taken translations away: those that it looks at are no longer good.
    pub(super) fn look_ahead(&self, model: &Model, state: &mut State) {
        let limit = model.lookahead();
        let State { rings, work: Some((work, tag)), stall: Some(stall), pending, .. } = state else { return };
        let Some(ahead) = Ahead::of(work.command()).filter(|_| limit > 0) else { return };
        let there = |va, kind| translated(&self.tlb, rings, va, kind);
        pending.retain(|page, kind| there(page, kind).is_none());
        pending.insert(stall.access.va, stall.access.kind);
        let fault = Fault::of(rings, *tag, stall);
        let mut runs: [Option<Run>; STREAMS] = [None; STREAMS];
        let mut found = 0;
        let index = |va, width| {
            let page = there(va, AccessKind::READ)?;
            Some(if width == Width::W32 { u32::load(page, va).into() } else { u64::load(page, va) })
        };
        // It breaks when enough was found; what was found is reported in either case.
        let _ = ahead.walk(work.applied, index, |Need { stream, kind, va }| {
            if self.user.behind() || found == limit {
                return ControlFlow::Break(());
            }
            let run = &mut runs[stream];
            let known = run.is_some_and(|run| run.contains(va)) || there(va, kind).is_some();
            if known || !pending.insert(va, kind) {
                return ControlFlow::Continue(());
            }
            found += 1;
            if run.as_mut().is_some_and(|run| run.extend(va)) {
                return ControlFlow::Continue(());
            }
            match run.replace(Run { va, kind, pages: 1 }) {
                Some(complete) => self.report_ahead(model, &fault, pending, &complete),
                None => ControlFlow::Continue(()),
            }
        });
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

/// The page of an address, if there is a translation that suffices, cached or in the table.
fn translated<'t>(tlb: &'t Tlb, rings: &Rings, va: u64, kind: AccessKind) -> Option<Page<'t>> {
    if let Some(page) = tlb.lookup(rings.asid, va).filter(|page| usable(*page, kind)) {
        return Some(page);
    }
    let translation = mmu::walk(tlb.memory(), rings.root, va).ok()?;
    let page = tlb.memory().page(translation.frame, kind != AccessKind::READ)?;
    Some(page.with_access(translation.access)).filter(|page| usable(*page, kind))
}
