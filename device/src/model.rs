// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the device's threads share, and the states in which they may run (spec 1.1, 1.2, 3.2, 3.3).
//!
//! Nothing here executes commands ([`crate::engine`], [`crate::control`]) or answers accesses from the
//! guest ([`crate::device`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use svmx_abi::pci::{MAX_CONTEXTS, VECTOR_FAULT};
use svmx_abi::regs::{Counter, FatalError};
use zerocopy::FromZeros;

use crate::counters::Counters;
use crate::doorbells::Doorbells;
use crate::execute;
use crate::faults::{Fault, FaultQueue, Reported};
use crate::instrument::{Hook, Upheaval};
use crate::invalidate::{Invalidations, Record};
use crate::irq::Interrupts;
use crate::memory::GuestMemory;
use crate::ownership::Ownership;
use crate::queue::{Queues, State};
use crate::sleep::Sleepers;

/// Frames that are told apart: 8 GiB. Zeroed memory that is not touched costs nothing.
const OWNERSHIP_WORDS: usize = 1 << 21;

/// What can be chosen when a device is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Engines, at least one.
    pub engines: usize,
    /// How long an idle thread polls before it sleeps.
    pub poll: Duration,
    /// Time between the read and the write of an atomic on an *atomic* page.
    pub rmw_delay: Duration,
    /// Entries of the fault queue that are used, if it has more.
    pub fault_queue: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            engines: 2,
            poll: Duration::from_micros(20),
            rmw_delay: Duration::ZERO,
            fault_queue: u32::MAX,
        }
    }
}

/// Everything that the threads share.
#[derive(Debug)]
pub struct Model {
    /// What was chosen.
    pub options: Options,
    /// BAR2.
    pub doorbells: Doorbells,
    /// MSI-X.
    pub interrupts: Interrupts,
    /// Statistics; engines are threads 0 and up, then the control thread, then the transport's.
    pub counters: Counters,
    /// All queues.
    pub queues: Queues,
    /// All address spaces.
    pub contexts: Mutex<Contexts>,
    /// The control queue.
    pub control_ring: Mutex<ControlRing>,
    /// The fault queue.
    pub faults: FaultQueue,
    /// Pages that a fault may report ahead (`LOOKAHEAD`).
    lookahead: AtomicU32,
    /// How elements are done.
    pub execute: execute::Memory,
    /// Who works on which *atomic* page.
    pub ownership: Ownership,
    /// Users are the engines, then the control thread.
    pub invalidations: Arc<Invalidations<GuestMemory>>,
    /// Who is told of what happens to the device as a whole.
    pub upheaval: Hook<Upheaval, ()>,
    /// Engines that sleep.
    pub engines: Sleepers,
    /// The control thread when it sleeps.
    pub controller: Sleepers,
    /// Something for the control thread to look at.
    nudged: AtomicBool,
    conditions: Mutex<Conditions>,
    /// What `conditions` come to.
    running: AtomicBool,
    exiting: AtomicBool,
}

/// The control queue's device side.
#[derive(Clone, Copy, Debug, Default)]
pub struct ControlRing {
    /// Guest-physical address.
    pub base: u64,
    /// Binary logarithm of its entries.
    pub log2: u8,
    /// Free-running head.
    pub head: u32,
}

/// Address spaces by ASID.
#[derive(Debug)]
pub struct Contexts(Box<[Option<Context>]>);

/// An address space.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Guest-physical address of its root table.
    pub root: u64,
    /// Queues that belong to it.
    pub queues: u32,
}

impl Default for Contexts {
    fn default() -> Self {
        Contexts(vec![None; MAX_CONTEXTS as usize + 1].into())
    }
}

impl Contexts {
    /// The place of an address space, if the number is one.
    pub fn place(&mut self, asid: u32) -> Option<&mut Option<Context>> {
        self.0.get_mut(asid as usize).filter(|_| asid != 0)
    }
    /// An address space that is in use.
    pub fn get(&mut self, asid: u32) -> Option<&mut Context> {
        self.place(asid)?.as_mut()
    }
}

/// Why the device may or may not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// `CONTROL.ENABLE`, accepted.
    pub enabled: bool,
    /// COMMAND.BME, in D0.
    pub bus_master: bool,
    /// `FATAL_ERROR`.
    pub fatal: FatalError,
}

impl Conditions {
    fn may_run(self) -> bool {
        self.enabled && self.bus_master && self.fatal == FatalError::None
    }
}

impl Model {
    /// A device in its reset state.
    pub fn new(options: Options) -> std::io::Result<Self> {
        let engines = options.engines.max(1);
        let conditions = Conditions { enabled: false, bus_master: false, fatal: FatalError::None };
        let words = FromZeros::new_box_zeroed_with_elems(OWNERSHIP_WORDS);
        let words = words.map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        Ok(Model {
            options: Options { engines, ..options },
            doorbells: Doorbells::new()?,
            interrupts: Interrupts::default(),
            counters: Counters::new(engines + 2),
            queues: Queues::new(engines),
            contexts: Mutex::default(),
            control_ring: Mutex::default(),
            faults: FaultQueue::new(options.fault_queue),
            lookahead: AtomicU32::new(0),
            execute: execute::Memory::new(options.rmw_delay),
            ownership: Ownership::new(words),
            invalidations: Arc::new(Invalidations::new(engines + 1, Arc::default())),
            upheaval: Hook::default(),
            engines: Sleepers::new(engines as u32),
            controller: Sleepers::new(1),
            nudged: AtomicBool::new(false),
            conditions: Mutex::new(conditions),
            running: AtomicBool::new(false),
            exiting: AtomicBool::new(false),
        })
    }

    /// The control thread's number, as a user of invalidations and in the counters.
    pub fn control_thread(&self) -> usize {
        self.options.engines
    }

    /// The transport thread's number in the counters.
    pub fn transport_thread(&self) -> usize {
        self.options.engines + 1
    }

    /// Why the device runs or not.
    pub fn conditions(&self) -> Conditions {
        *self.conditions.lock()
    }

    /// Whether guest memory may be accessed and interrupts raised. A thread that relies on it is an
    /// online user of `invalidations`.
    #[inline]
    pub fn running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Pages that a fault may report ahead (spec 7.3).
    pub fn lookahead(&self) -> u32 {
        self.lookahead.load(Ordering::Relaxed)
    }

    /// Sets that, while the device does not run.
    pub fn set_lookahead(&self, pages: u32) {
        self.lookahead.store(pages, Ordering::Relaxed);
    }

    /// Whether threads shall end.
    pub fn exiting(&self) -> bool {
        self.exiting.load(Ordering::Relaxed)
    }

    /// Changes the conditions. When this returns and they forbid to run, no thread but `except` uses
    /// guest memory or raises an interrupt; if they allow it, all threads look for work.
    pub fn change(&self, except: Option<usize>, change: impl FnOnce(&mut Conditions)) {
        self.upheaval.call(Upheaval::Begins);
        let running = {
            let mut conditions = self.conditions.lock();
            change(&mut conditions);
            self.interrupts.permit(conditions.bus_master);
            let running = conditions.may_run();
            self.running.store(running, Ordering::Relaxed);
            running
        };
        let generation = self.invalidations.publish(Record::Attention);
        if running {
            self.wake_all();
        } else {
            self.invalidations.wait(generation, except);
        }
        self.upheaval.call(Upheaval::Ends);
    }

    /// Replaces guest memory; when this returns nobody uses what is not in `memory`.
    pub fn replace_memory(&self, memory: GuestMemory) {
        self.upheaval.call(Upheaval::Begins);
        let generation = self.invalidations.replace(Arc::new(memory));
        // Sleepers use nothing but hold the old mappings: they shall let go of them.
        self.wake_all();
        self.invalidations.wait(generation, None);
        self.upheaval.call(Upheaval::Ends);
    }

    /// Back to the state before any control entry (spec 1.1). The device does not run.
    pub fn forget_all(&self) {
        self.invalidations.publish(Record::All);
        for (number, queue) in self.queues.iter() {
            let mut state = queue.state.lock();
            queue.forget(&mut state);
            self.queues.deactivate(number);
        }
        *self.contexts.lock() = Contexts::default();
        self.faults.start(0, 0);
        // Before what it may still deliver is forgotten.
        self.upheaval.call(Upheaval::Reset);
        self.interrupts.reset();
        self.doorbells.clear();
    }

    /// Ends all threads; the device does not run again.
    pub fn exit(&self) {
        self.exiting.store(true, Ordering::Relaxed);
        self.change(None, |conditions| conditions.enabled = false);
        self.wake_all();
    }

    /// Engines shall look at a queue, even if they sleep.
    pub fn activate(&self, queue: u32) {
        self.queues.activate(queue);
        self.engines.wake_one();
    }

    /// The control thread shall look around, even if it sleeps.
    pub fn nudge(&self) {
        self.nudged.store(true, Ordering::SeqCst);
        self.controller.wake_one();
    }

    /// Whether the control thread has been nudged.
    pub fn is_nudged(&self) -> bool {
        self.nudged.load(Ordering::SeqCst)
    }

    /// Takes the nudges: what they announced is to be looked at after this.
    pub fn take_nudge(&self) {
        self.nudged.swap(false, Ordering::SeqCst);
    }

    fn wake_all(&self) {
        self.nudge();
        self.engines.wake_all();
    }

    /// Raises a vector; the device runs.
    pub fn interrupt(&self, thread: usize, vector: u16) {
        self.counters.add(thread, Counter::Interrupts, 1);
        self.interrupts.raise(vector);
    }

    /// Reports a queue's fault, if there is room; the queue's state is locked.
    pub fn report(&self, thread: usize, memory: &GuestMemory, state: &mut State) -> Reported {
        let Some(stall) = state.stall.as_mut() else { return Reported::Written { armed: false } };
        let tag = state.work.map_or(0, |(_, tag)| tag);
        let fault = Fault::of(&state.rings, tag, stall);
        let reported = self.faults.write(memory, self.doorbells.driver(), &fault);
        if let Reported::Written { armed } = reported {
            stall.reported = true;
            self.counters.add(thread, Counter::Faults, 1);
            if armed {
                self.interrupt(thread, VECTOR_FAULT);
            }
        }
        reported
    }
}
