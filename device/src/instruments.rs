// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The instruments together: a device with those that were asked for, each thread with its parts of them.
//!
//! A device without any is one of [`crate::instrument::Plain`]. Otherwise there are two kinds: one whose elements
//! are watched or disturbed one by one, and one that is only traced and may do many at a time.

use std::fs::File;
use std::sync::Arc;

use svmx_abi::control::ControlEntry;

use crate::chaos::{self, Chaos};
use crate::check::{Check, Checker};
use crate::command::Command;
use crate::device::{Device, DeviceError};
use crate::instrument::{Effect, Instrument, Upheaval};
use crate::invalidate::Record;
use crate::memory::{GuestMemory, Page};
use crate::model::{Model, Options};
use crate::queue::{Completion, Rings};
use crate::trace::{Trace, Tracer};
use crate::work::Access;

/// What is asked for.
#[derive(Debug, Default)]
pub struct Request {
    /// The exclusivity checker.
    pub check_exclusive: bool,
    /// Chaos.
    pub chaos: Option<chaos::Settings>,
    /// A trace, into this file.
    pub trace: Option<File>,
}

/// What must be asked at the end.
#[derive(Debug, Default)]
pub struct Watchers {
    /// The exclusivity checker.
    pub checker: Option<Arc<Checker>>,
    /// The trace.
    pub trace: Option<Arc<Trace>>,
}

/// One thread's parts. With `ELEMENTS` it is told of single accesses.
#[derive(Debug)]
struct Instruments<const ELEMENTS: bool> {
    chaos: Option<Chaos>,
    check: Option<Check>,
    trace: Option<Tracer>,
}

impl Request {
    /// A device with the instruments, and those to ask at its end.
    pub fn device(self, mut options: Options) -> Result<(Device, Arc<Watchers>), DeviceError> {
        let Request { check_exclusive, chaos, trace } = self;
        let start = |file| Trace::start(file, options.engines.max(1) as u16);
        let trace = trace.map(start).transpose().map_err(DeviceError::Trace)?.map(Arc::new);
        let checker =
            check_exclusive.then(Checker::new).transpose().map_err(DeviceError::Checker)?.map(Arc::new);
        let watchers = Arc::new(Watchers { checker, trace });
        if let Some(entries) = chaos.and_then(|settings| settings.faults.fault_queue) {
            options.fault_queue = entries;
        }
        let device = match (&*watchers, chaos) {
            (Watchers { checker: None, trace: None }, None) => Device::new(options)?,
            (Watchers { checker: None, .. }, None) => watched::<false>(options, &watchers, chaos)?,
            _ => watched::<true>(options, &watchers, chaos)?,
        };
        attach(device.model(), &watchers, chaos)?;
        Ok((device, watchers))
    }
}

impl Watchers {
    /// Says what was found, and completes what was written. The device has ended.
    pub fn finish(&self) {
        if let Some(checker) = &self.checker {
            checker.summarize();
        }
        if let Some(trace) = &self.trace {
            trace.finish();
        }
    }
}

/// A device whose threads have their parts.
fn watched<const ELEMENTS: bool>(
    options: Options,
    watchers: &Watchers,
    chaos: Option<chaos::Settings>,
) -> Result<Device, DeviceError> {
    Device::watched(options, |model, thread| Instruments::<ELEMENTS> {
        chaos: chaos.map(|settings| Chaos::new(settings, thread, model)),
        check: watchers.checker.as_ref().map(|checker| Check::new(checker.clone(), thread)),
        trace: watchers.trace.as_ref().map(|trace| Tracer::new(trace.clone(), thread)),
    })
}

/// Puts what belongs to no thread into the model. Nothing has happened yet.
fn attach(
    model: &Arc<Model>,
    watchers: &Arc<Watchers>,
    chaos: Option<chaos::Settings>,
) -> Result<(), DeviceError> {
    let weak = Arc::downgrade(model);
    let courier = chaos.map(|settings| chaos::interrupts(settings, weak)).transpose();
    let courier = courier.map_err(DeviceError::Thread)?.flatten().map(Arc::new);
    if watchers.checker.is_some() || watchers.trace.is_some() || courier.is_some() {
        let (watchers, courier) = (watchers.clone(), courier.clone());
        model.upheaval.set(move |upheaval| {
            watchers.upheaval(upheaval);
            if let (Upheaval::Reset, Some(courier)) = (upheaval, &courier) {
                courier.empty();
            }
        });
    }
    let trace = watchers.trace.clone();
    if courier.is_some() || trace.is_some() {
        model.interrupts.detour.set(move |vector| {
            trace.iter().for_each(|trace| trace.interrupt(vector));
            courier.as_ref().is_some_and(|courier| courier.take(vector))
        });
    }
    Ok(())
}

impl Watchers {
    fn upheaval(&self, upheaval: Upheaval) {
        if let Some(checker) = &self.checker {
            checker.upheaval(upheaval);
        }
        if let Some(trace) = &self.trace {
            trace.upheaval(upheaval);
        }
    }
}

/// Tells every part. The checker comes behind chaos: what happens while a SYNC is late is seen too.
macro_rules! each {
    ($self:ident, $call:ident($($argument:expr),*)) => {
        if let Some(chaos) = &mut $self.chaos {
            chaos.$call($($argument),*);
        }
        if let Some(check) = &mut $self.check {
            check.$call($($argument),*);
        }
        if let Some(trace) = &mut $self.trace {
            trace.$call($($argument),*);
        }
    };
}

impl<const ELEMENTS: bool> Instrument for Instruments<ELEMENTS> {
    const ELEMENTS: bool = ELEMENTS;

    fn turn(&mut self, queue: u32) {
        each!(self, turn(queue));
    }

    fn begin(&mut self, rings: &Rings, tag: u32, command: &Command) {
        each!(self, begin(rings, tag, command));
    }

    fn end(&mut self, rings: &Rings, completion: &Completion) {
        each!(self, end(rings, completion));
    }

    fn fault(&mut self, rings: &Rings, tag: u32, fault_id: u32, access: &Access) {
        each!(self, fault(rings, tag, fault_id, access));
    }

    #[inline]
    fn forget(&mut self) -> bool {
        self.chaos.as_mut().is_some_and(Chaos::forget)
    }

    fn translated(&mut self, asid: u32, va: u64, span: u64, page: Page<'_>) {
        each!(self, translated(asid, va, span, page));
    }

    #[inline]
    fn effect(&mut self, asid: u32, va: u64, bytes: u64, page: Page<'_>, effect: Effect) {
        if let Some(check) = &mut self.check {
            check.effect(asid, va, bytes, page, effect);
        }
    }

    fn control(&mut self, entry: &ControlEntry) -> bool {
        let goes_on = self.chaos.as_mut().is_none_or(|chaos| chaos.control(entry));
        if goes_on {
            self.check.as_mut().map(|check| check.control(entry));
            self.trace.as_mut().map(|trace| trace.control(entry));
        }
        goes_on
    }

    fn invalidating(&mut self, record: Record) {
        each!(self, invalidating(record));
    }

    fn synced(&mut self, memory: &GuestMemory) {
        each!(self, synced(memory));
    }

    fn destroyed(&mut self, rings: &Rings) {
        each!(self, destroyed(rings));
    }

    fn resumed(&mut self, queue: u32, fault_id: u32, replayed: bool) {
        each!(self, resumed(queue, fault_id, replayed));
    }
}
