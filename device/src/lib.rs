// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The svmx accelerator: a PCIe device model that runs in a process of its own. docs/spec.md says what it
//! does; section numbers in the code are its.
//!
//! From the outside in: [`vfio`] (the transport) calls [`device`] (configuration space, BARs, DMA maps,
//! reset), which shares a [`model`] with the threads that work: [`engine`]s execute commands, the
//! [`control`] thread executes the driver's control queue. [`invalidate`] is how changes reach them all.
//! Around it: what the [`host`] gives, and the [`sandbox`] that the process locks itself into.

pub mod ahead;
pub mod chaos;
pub mod check;
pub mod command;
mod complain;
mod compute;
pub mod config;
pub mod control;
pub mod counters;
pub mod device;
pub mod doorbells;
pub mod engine;
pub mod execute;
pub mod faults;
pub mod host;
pub mod instrument;
pub mod instruments;
pub mod invalidate;
pub mod irq;
pub mod memory;
pub mod mmu;
pub mod model;
pub mod ownership;
pub mod parse;
pub mod queue;
pub mod regs;
pub mod sandbox;
pub mod sleep;
mod sync;
pub mod tlb;
pub mod trace;
pub mod vfio;
pub mod vfio_user;
pub mod work;
pub mod zeroed;
