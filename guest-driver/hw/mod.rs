// SPDX-License-Identifier: GPL-2.0

//! The thin layer over the kernel's PCI, interrupt, I/O, DMA, waiting, workqueue and debugfs interfaces.
//!
//! Knows PCI devices, but not svmx. [`compat`] is where series of kernels differ.

mod bar;
pub(crate) mod compat;
pub(crate) mod debugfs;
mod dma;
mod irq;
mod pci;
mod thread;
mod time;
mod wait;
mod work;

pub(crate) use bar::{MappedBar, TrappedBar};
pub(crate) use dma::DmaBuf;
pub(crate) use irq::{Handler, Vectors};
pub(crate) use pci::{Enabled, PciDevice};
pub(crate) use thread::{forget_kill, should_stop, Thread, ThreadId};
pub(crate) use time::{nap, Stopwatch};
pub(crate) use wait::{Ended, WaitQueue};
pub(crate) use work::{flush, flush_delayed, queue, Workqueue};
