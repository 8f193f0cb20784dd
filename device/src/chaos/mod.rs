// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Chaos: a device that obeys the specification and is as unhelpful as that allows, or that stops answering.
//!
//! It wraps the model: what can be decided where a thread passes is an [`Instrument`]; interrupts go through the
//! [`courier`]; the fault queue's length is an option of the model. [`spec`] has the faults. Everything that is
//! random is a decision of a stream ([`decide`]), so the same seed makes the same decisions; in which order
//! threads come to theirs is the scheduler's.

mod courier;
mod decide;
pub mod spec;

use std::sync::{Arc, Weak};
use std::thread;

use svmx_abi::control::ControlEntry;

use crate::instrument::{Instrument, Thread};
use crate::invalidate::{Invalidations, Record};
use crate::memory::GuestMemory;
use crate::model::Model;
pub use courier::Courier;
use decide::{Purpose, Stream};
use spec::Faults;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Which faults.
    pub faults: Faults,
    /// What they are decided by.
    pub seed: u64,
}

/// One thread's faults.
#[derive(Debug)]
pub struct Chaos {
    faults: Faults,
    invalidations: Arc<Invalidations<GuestMemory>>,
    evict: Stream,
    invalidate: Stream,
    slow: Stream,
    sync: Stream,
    /// Control entries so far.
    entries: u32,
}

impl Chaos {
    /// The faults of that thread of `model`.
    pub fn new(settings: Settings, thread: Thread, model: &Model) -> Self {
        let Settings { faults, seed } = settings;
        let stream = |purpose| Stream::new(seed, purpose, thread.number());
        Chaos {
            faults,
            invalidations: model.invalidations.clone(),
            evict: stream(Purpose::Evict),
            invalidate: stream(Purpose::Invalidate),
            slow: stream(Purpose::Slow),
            sync: stream(Purpose::Sync),
            entries: 0,
        }
    }
}

/// Who carries interrupts late; `None` if all are on time.
pub fn interrupts(settings: Settings, model: Weak<Model>) -> std::io::Result<Option<Courier>> {
    Courier::start(&settings.faults, settings.seed, model)
}

impl Instrument for Chaos {
    const ELEMENTS: bool = true;

    fn forget(&mut self) -> bool {
        if self.invalidate.happens(self.faults.spurious_invalidate) {
            // Applied by all engines, this one too, before their next accesses.
            self.invalidations.publish(Record::All);
        }
        if let Some(time) = self.slow.delay(self.faults.slow_engine) {
            thread::sleep(time);
        }
        self.evict.happens(self.faults.tlb_evict)
    }

    fn control(&mut self, _entry: &ControlEntry) -> bool {
        self.entries = self.entries.saturating_add(1);
        let goes_on = self.faults.silent_after.is_none_or(|most| self.entries <= most);
        if self.faults.silent_after.is_some_and(|most| self.entries - 1 == most) {
            tracing::info!("chaos: silent after {} control entries", self.entries - 1);
        }
        goes_on
    }

    fn synced(&mut self, _memory: &GuestMemory) {
        if let Some(time) = self.sync.delay(self.faults.late_sync) {
            thread::sleep(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Options;

    fn chaos(list: &str, seed: u64) -> Chaos {
        let model = Model::new(Options::default()).unwrap();
        Chaos::new(Settings { faults: list.parse().unwrap(), seed }, Thread::Engine(1), &model)
    }

    #[test]
    fn the_same_seed_forgets_the_same() {
        let forgets = |seed| {
            let mut chaos = chaos("tlb-evict=0.5,spurious-invalidate=0.1", seed);
            let decisions: Vec<_> = (0..1000).map(|_| chaos.forget()).collect();
            (decisions, chaos.invalidations.latest())
        };
        assert_eq!(forgets(5), forgets(5));
        assert_ne!(forgets(5), forgets(6));
    }

    #[test]
    fn silence_comes_after_so_many_entries() {
        let mut chaos = chaos("silent-after=3", 0);
        let answers: Vec<_> = (0..5).map(|_| chaos.control(&ControlEntry::default())).collect();
        assert_eq!(answers, [true, true, true, false, false]);
    }
}
