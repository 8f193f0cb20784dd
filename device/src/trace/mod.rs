// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The trace: what the device did, per command and page, in a file that <https://ui.perfetto.dev> opens.
//!
//! The format is Chrome's trace-event JSON. Perfetto's own protobuf is a third of the size, but needs a generated
//! schema; this one needs nothing, can be read by people, `jq` and a test, and a file whose end is missing is
//! good up to there.
//!
//! Tracks: the *queues*, each with its commands (first to last access, on whichever engine) and inside them the
//! times when they stalled; the engines, with whom they worked for; the control thread, with SYNCs as slices and
//! the other entries as instants; interrupts. Translations are instants of the thread that obtained them,
//! with their page. Single elements are not traced: a bulk command's would be millions.

mod event;
mod writer;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use svmx_abi::control::{ControlEntry, ControlOpcode};
use svmx_abi::fault::AccessKind;
use svmx_abi::pci::MAX_QUEUES;

use crate::command::Command;
use crate::instrument::{Instrument, Thread, Upheaval};
use crate::invalidate::Record;
use crate::memory::{GuestMemory, Page};
use crate::queue::{Completion, Rings};
use crate::work::Access;
use event::{Doing, Event, Span};
use writer::{Buffers, Writer};

/// A turn that was over so soon is not shown: an engine that only looks takes thousands of them.
const SHORT: u64 = 1_000;

/// What all threads of a device share.
#[derive(Debug)]
pub struct Trace {
    began: Instant,
    engines: u16,
    buffers: Arc<Buffers>,
    /// By queue.
    open: Box<[Mutex<Open>]>,
    writer: Mutex<Option<Writer>>,
}

/// What has begun in a queue. One thread at a time has the queue.
#[derive(Debug, Default)]
struct Open {
    command: Option<Begun>,
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    since: u64,
    asid: u32,
    tag: u32,
    doing: Doing,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    since: u64,
    fault_id: u32,
    va: u64,
    kind: AccessKind,
}

/// One thread's part of it.
#[derive(Debug)]
pub struct Tracer {
    trace: Arc<Trace>,
    thread: Thread,
    /// Since when the engine has worked, and for which queue.
    working: Option<(u64, u32)>,
    /// Since when the control thread has executed a SYNC.
    syncing: Option<u64>,
}

impl Trace {
    /// Begins to trace a device with that many engines into a file.
    pub fn start(file: File, engines: u16) -> io::Result<Self> {
        // The last buffer is for whoever is none of the device's threads.
        let buffers = Arc::new(Buffers::new(usize::from(engines) + 2));
        let writer = Writer::start(file, engines, buffers.clone())?;
        Ok(Trace {
            began: Instant::now(),
            engines,
            buffers,
            open: (0..=MAX_QUEUES).map(|_| Mutex::default()).collect(),
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Writes all that is there and ends the file. What comes later is dropped.
    pub fn finish(&self) {
        let Some(writer) = self.writer.lock().take() else { return };
        self.end_all();
        match writer.finish(&self.buffers) {
            Err(error) => tracing::error!("trace: {error}"),
            Ok(()) => match self.buffers.dropped() {
                0 => tracing::info!("trace: complete"),
                dropped => tracing::info!("trace: {dropped} events did not fit"),
            },
        }
    }

    /// A vector is raised, by any thread.
    pub fn interrupt(&self, vector: u16) {
        self.push(None, Event::Interrupt { time: self.now(), vector });
    }

    /// The device stops, goes on, or forgets.
    pub fn upheaval(&self, upheaval: Upheaval) {
        if upheaval == Upheaval::Reset {
            self.end_all();
        }
    }

    fn end_all(&self) {
        (0..=MAX_QUEUES).for_each(|queue| self.end_queue(queue));
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn push(&self, thread: Option<Thread>, event: Event) {
        let buffer = match thread {
            Some(Thread::Engine(number)) => usize::from(number),
            Some(Thread::Control) => usize::from(self.engines),
            None => usize::from(self.engines) + 1,
        };
        self.buffers.push(buffer, event);
    }

    /// Changes what has begun in a queue.
    fn open<R>(&self, queue: u32, change: impl FnOnce(&mut Open) -> R) -> Option<R> {
        Some(change(&mut self.open.get(queue as usize)?.lock()))
    }

    /// Whatever has begun in a queue ends with it.
    fn end_queue(&self, queue: u32) {
        let Some(Open { command, fault }) = self.open(queue, std::mem::take) else { return };
        let now = self.now();
        if let Some(fault) = fault {
            self.push(None, fault.ended(queue, now, None));
        }
        if let Some(Begun { since, asid, tag, doing }) = command {
            let span = Span(since, now);
            self.push(None, Event::Command { span, queue, asid, tag, doing, end: None });
        }
    }
}

impl Fault {
    fn ended(self, queue: u32, now: u64, replayed: Option<bool>) -> Event {
        let Fault { since, fault_id, va, kind } = self;
        Event::Fault { span: Span(since, now), queue, fault_id, va, kind, replayed }
    }
}

impl Tracer {
    /// The part of that thread.
    pub fn new(trace: Arc<Trace>, thread: Thread) -> Self {
        Tracer { trace, thread, working: None, syncing: None }
    }

    fn push(&self, event: Event) {
        self.trace.push(Some(self.thread), event);
    }

    /// The engine does not work for a queue any more.
    fn rest(&mut self, now: u64, shortest: u64) {
        let Some((since, queue)) = self.working.take() else { return };
        if let (true, Thread::Engine(engine)) = (now - since >= shortest, self.thread) {
            self.push(Event::Work { span: Span(since, now), engine, queue });
        }
    }
}

impl Instrument for Tracer {
    const ELEMENTS: bool = false;

    fn turn(&mut self, queue: u32) {
        let now = self.trace.now();
        self.rest(now, SHORT);
        let goes_on = self.trace.open(queue, |open| open.command.is_some() && open.fault.is_none());
        if goes_on == Some(true) {
            self.working = Some((now, queue));
        }
    }

    fn begin(&mut self, rings: &Rings, tag: u32, command: &Command) {
        let now = self.trace.now();
        self.rest(now, 0);
        let begun = Begun { since: now, asid: rings.asid, tag, doing: Doing::new(command) };
        self.trace.open(rings.queue, |open| open.command = Some(begun));
        self.working = Some((now, rings.queue));
    }

    fn end(&mut self, rings: &Rings, completion: &Completion) {
        let now = self.trace.now();
        let &Completion { status, tag, applied, .. } = completion;
        let (queue, asid) = (rings.queue, rings.asid);
        let begun = self.trace.open(queue, |open| open.command.take()).flatten();
        let begun = begun.unwrap_or(Begun { since: now, asid, tag, doing: Doing::REFUSED });
        let (span, doing, end) = (Span(begun.since, now), begun.doing, Some((status, applied)));
        self.push(Event::Command { span, queue, asid, tag, doing, end });
        self.rest(now, 0);
    }

    fn fault(&mut self, rings: &Rings, _tag: u32, fault_id: u32, access: &Access) {
        let now = self.trace.now();
        let fault = Fault { since: now, fault_id, va: access.va, kind: access.kind };
        self.trace.open(rings.queue, |open| open.fault = Some(fault));
        self.rest(now, 0);
    }

    fn translated(&mut self, asid: u32, va: u64, span: u64, page: Page<'_>) {
        let (time, thread) = (self.trace.now(), self.thread);
        let (frame, access) = (page.frame(), page.access());
        self.push(Event::Translated { time, thread, asid, va, span, frame, access });
    }

    fn control(&mut self, entry: &ControlEntry) -> bool {
        let time = self.trace.now();
        if entry.opcode == ControlOpcode::SYNC {
            self.syncing = Some(time);
        } else {
            self.push(Event::Control { time, opcode: entry.opcode });
        }
        true
    }

    fn invalidating(&mut self, record: Record) {
        self.push(Event::Invalidating { time: self.trace.now(), record });
    }

    fn synced(&mut self, _memory: &GuestMemory) {
        if let Some(since) = self.syncing.take() {
            self.push(Event::Sync { span: Span(since, self.trace.now()) });
        }
    }

    fn destroyed(&mut self, rings: &Rings) {
        self.trace.end_queue(rings.queue);
    }

    fn resumed(&mut self, queue: u32, _fault_id: u32, replayed: bool) {
        if let Some(Some(fault)) = self.trace.open(queue, |open| open.fault.take()) {
            self.push(fault.ended(queue, self.trace.now(), Some(replayed)));
        }
    }
}
