// SPDX-License-Identifier: Apache-2.0 OR MIT

//! svmx for user space: a context on `/dev/svmxN`, queues that submit without system calls, typed
//! commands, and memory that CPU threads and the device change at the same time.
//!
//! ```no_run
//! use std::sync::atomic::Ordering::Relaxed;
//! use svmx::{Command, Device, QueueSize, SharedSlice};
//!
//! # fn main() -> Result<(), svmx::Error> {
//! let device = Device::open_nth(0)?;
//! let mut queue = device.create_queue(QueueSize::default())?;
//! let counters = SharedSlice::<u64>::zeroed(512)?;
//!
//! queue.submit(&Command::fetch_add(counters.at(7), 5))?; // the device adds 5 …
//! counters[7].fetch_add(1, Relaxed); // … while this thread adds 1,
//! let completion = queue.complete(None)?;
//! assert!(completion.status.is_success());
//! assert_eq!(counters[7].load(Relaxed), 6); // and nothing is lost.
//! # Ok(())
//! # }
//! ```
//!
//! [`Command`] has what is done to one element, copies, fills and waits. A command on many elements begins with
//! the elements: see [`bulk`].
//!
//! # Which pages the device has
//!
//! It gets a page when a command needs it, and loses it when a CPU touches it. Who knows better says so:
//!
//! ```no_run
//! use svmx::{Device, Policy, SharedSlice};
//!
//! # fn main() -> Result<(), svmx::Error> {
//! let device = Device::open_nth(0)?;
//! let histogram = SharedSlice::<u64>::zeroed(1 << 20)?;
//! device.acquire(histogram.pages())?; // No command has a fault there now …
//! // … and when the work is done, no thread has:
//! device.release(histogram.pages())?;
//!
//! let flags = SharedSlice::<u32>::zeroed(1024)?;
//! device.set_policy(flags.pages(), Policy::COHERENT)?; // CPUs and device at the same time, and the page is nobody's alone.
//! # Ok(())
//! # }
//! ```
//!
//! # Memory that a device writes
//!
//! Three things make the safe part of this library sound, whatever safe code does:
//!
//! * **Every element is an atomic.** [`SharedSlice`] hands out `&AtomicU32` and the like, and never
//!   a plain reference or a slice of integers. The device's accesses are single accesses of an
//!   element's width (spec 10.1), so to Rust they are what another thread's relaxed atomics would
//!   be; where they are wider (COPY, FILL, CAS at 128 bits) they are what several of those would be.
//!   Slices of different widths never overlap, as mixed-size atomics would not be defined.
//! * **Commands own the memory they name.** A [`Command`] holds reference-counted handles of its
//!   memory: elements, indices, operands, old values. [`Queue::submit`] puts copies of them beside the
//!   queue until the completion is consumed or the queue has been destroyed. So memory is never
//!   unmapped under a running command. No lifetime and no guard is involved, hence nothing to forget:
//!   `mem::forget` of a queue leaks its handles, so its memory stays mapped for ever, which is safe.
//! * **A command's addresses are checked when it is made.** A place, a stride and a count are compared
//!   with the slice, and every array with the count. Indices are read by the device while the command
//!   runs, so they come from an [`IndexArray`]: checked once, then never writable again. Operands are
//!   values, not addresses: they may change at any time.
//!
//! What is left is `unsafe`: [`Queue::submit_raw`] makes the device read and write any address of the
//! process, so its caller vouches for every byte the command can reach.
//!
//! A queue belongs to the address space that opened the device. In a forked child its mappings are
//! absent and every call on the file ends with `EPERM`; `fork` is `unsafe` in Rust, and using a
//! [`Queue`] in the child is among the things its caller must not do.

pub mod bulk;
pub mod command;
pub mod debugfs;
pub mod device;
pub mod element;
pub mod error;
pub mod latency;
mod mapping;
pub mod memory;
pub mod module;
pub mod queue;
pub mod report;
mod ring;

pub use bulk::Elements;
pub use command::Command;
pub use device::Device;
pub use element::{Element, Item, Pair, Swappable, Unit, Word};
pub use error::Error;
pub use memory::{IndexArray, Place, SharedMemory, SharedSlice};
pub use queue::{Completion, Queue, QueueSize};
pub use svmx_abi as abi;
pub use svmx_abi::queue::Condition;
pub use svmx_abi::uapi::Policy;
