// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the device's threads tell those who watch or disturb them: the exclusivity checker, chaos, the trace.
//!
//! An engine and the control thread are generic over an [`Instrument`] of their own. With [`Plain`] every
//! call here is empty and compiled away; so a device that is not watched pays nothing, and the model
//! does not branch on who watches.

use std::fmt::{self, Debug};
use std::sync::OnceLock;

use svmx_abi::control::ControlEntry;

use crate::command::Command;
use crate::invalidate::Record;
use crate::memory::{GuestMemory, Page};
use crate::queue::{Completion, Rings};
use crate::work::Access;

/// What an access did to its element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The value that was loaded, zero-extended; `None` for a store.
    pub old: Option<u128>,
    /// The value that was stored, zero-extended; `None` if nothing was.
    pub new: Option<u128>,
}

/// What one thread of the device passes, in the order in which it happens. The thread does nothing else
/// meanwhile, so what is slow here makes the device slow.
pub trait Instrument: Debug + Send + 'static {
    /// Whether [`Self::effect`] is called. If not, elements may be done many at a time.
    const ELEMENTS: bool;

    /// An engine begins a turn at a queue.
    fn turn(&mut self, _queue: u32) {}

    /// An engine begins a command. One that is refused only ends.
    fn begin(&mut self, _rings: &Rings, _tag: u32, _command: &Command) {}

    /// An engine is about to post a command's completion.
    fn end(&mut self, _rings: &Rings, _completion: &Completion) {}

    /// An engine could not do an access: the queue stalls.
    fn fault(&mut self, _rings: &Rings, _tag: u32, _fault_id: u32, _access: &Access) {}

    /// An engine is about to look up a translation: whether to forget what is cached for it.
    fn forget(&mut self) -> bool {
        false
    }

    /// A thread has obtained a translation, from the page table or a REPLAY, and has not used it yet. Its leaf
    /// has `span` bytes, of which `page` holds the address.
    fn translated(&mut self, _asid: u32, _va: u64, _span: u64, _page: Page<'_>) {}

    /// An access was done on an *atomic* page, by an engine or on a REPLAY. Nobody else of this device has touched
    /// its element since. The two halves of a CAS's operand come as two.
    fn effect(&mut self, _asid: u32, _va: u64, _bytes: u64, _page: Page<'_>, _effect: Effect) {}

    /// The control thread begins an entry: whether it goes on, or does nothing more for good.
    fn control(&mut self, _entry: &ControlEntry) -> bool {
        true
    }

    /// The control thread is about to publish an invalidation.
    fn invalidating(&mut self, _record: Record) {}

    /// Every user has given up what was invalidated before this SYNC; its completion is not stored yet.
    fn synced(&mut self, _memory: &GuestMemory) {}

    /// The control thread has ended a queue: none of its accesses is under way, and none comes any more.
    fn destroyed(&mut self, _rings: &Rings) {}

    /// The control thread let a stalled queue go on, by REPLAY if `replayed`, else by CANCEL.
    fn resumed(&mut self, _queue: u32, _fault_id: u32, _replayed: bool) {}
}

/// A thread that an instrument belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The engine of that number.
    Engine(u16),
    /// The control thread.
    Control,
}

impl Thread {
    /// Engines by their numbers, then the control thread.
    pub fn number(self) -> u16 {
        match self {
            Thread::Engine(number) => number,
            Thread::Control => u16::MAX,
        }
    }

    /// The reverse.
    pub fn from_number(number: u16) -> Self {
        if number == u16::MAX { Thread::Control } else { Thread::Engine(number) }
    }
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thread::Engine(number) => write!(f, "engine {number}"),
            Thread::Control => write!(f, "control thread"),
        }
    }
}

/// What happens to the device as a whole, told by the thread that makes it happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upheaval {
    /// The device is about to stop, to go on, or to have other memory. Until it has, memory may change.
    Begins,
    /// It has.
    Ends,
    /// Contexts, queues and translations are forgotten (spec 1.1). No thread works.
    Reset,
}

/// A place in the model where a function may be put, once and before anything happens.
pub struct Hook<A, R>(OnceLock<Box<dyn Fn(A) -> R + Send + Sync>>);

impl<A, R> Hook<A, R> {
    /// Puts it there. A second one is dropped.
    pub fn set(&self, function: impl Fn(A) -> R + Send + Sync + 'static) {
        let _ = self.0.set(Box::new(function));
    }

    /// What the function says, if there is one.
    #[inline]
    pub fn call(&self, argument: A) -> Option<R> {
        self.0.get().map(|function| function(argument))
    }
}

impl<A, R> Default for Hook<A, R> {
    fn default() -> Self {
        Hook(OnceLock::new())
    }
}

impl<A, R> Debug for Hook<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hook").field(&self.0.get().is_some()).finish()
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Instrument for Plain {
    const ELEMENTS: bool = false;
}
