// SPDX-License-Identifier: GPL-2.0

//! The doorbell pages in BAR2 (spec 4): who writes which word, and with what ordering.

use super::abi::{
    doorbell::{driver, queue, DRIVER_PAGE},
    pci,
};
use super::hw::{compat::full_barrier, MappedBar, PciDevice};
use super::regs::Regs;
use kernel::{
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release},
};

/// The doorbell BAR.
pub(crate) struct Doorbells(MappedBar);

impl Doorbells {
    /// Maps the BAR.
    pub(crate) fn map(device: &PciDevice) -> Result<Self> {
        Ok(Doorbells(MappedBar::map(device, pci::BAR_DOORBELLS, pci::BAR_DOORBELLS_SIZE)?))
    }

    /// Guest-physical address of page `page`.
    pub(crate) fn phys(&self, page: u32) -> u64 {
        self.0.phys() + u64::from(page) * pci::PAGE_SIZE
    }

    fn driver_word(&self, offset: u64) -> &Atomic<u32> {
        self.0.word(u64::from(DRIVER_PAGE) * pci::PAGE_SIZE + offset)
    }

    fn queue_word(&self, queue: u32, offset: u64) -> &Atomic<u32> {
        self.0.word(u64::from(queue) * pci::PAGE_SIZE + offset)
    }

    /// Publishes the control queue's entries before `tail`. The release store's partner is the
    /// device's acquire load of the tail. [`kick_if_needed`](Self::kick_if_needed) must follow.
    pub(crate) fn store_control_tail(&self, tail: u32) {
        self.driver_word(driver::CTL_TAIL).store(tail, Release);
    }

    /// The control queue's head: entries before it may be overwritten. The acquire load's partner is
    /// the device's release store, which comes after it copied them.
    pub(crate) fn control_head(&self) -> u32 {
        self.driver_word(driver::CTL_HEAD).load(Acquire)
    }

    /// Gives the fault records before `head` back to the device, after they were read.
    /// [`kick_if_needed`](Self::kick_if_needed) must follow.
    pub(crate) fn store_fault_head(&self, head: u32) {
        self.driver_word(driver::FAULT_HEAD).store(head, Release);
    }

    /// Second half of a store to the driver's page (spec 4.3).
    pub(crate) fn kick_if_needed(&self, regs: &Regs) {
        // Partner: the device's full barrier between its store of NEED_KICK = 1 and its last look
        // at the page. A real barrier even on one CPU: the other side is a thread of the host.
        full_barrier();
        if self.driver_word(driver::NEED_KICK).load(Relaxed) != 0 {
            regs.kick(DRIVER_PAGE);
        }
    }

    /// Asks for one interrupt when a fault record comes. The caller must look at the ring once more.
    pub(crate) fn arm_faults(&self) {
        self.driver_word(driver::FAULT_ARM).store(1, Relaxed);
        // Partner: the device's full barrier between writing a record and taking the arm word (4.4).
        full_barrier();
    }

    /// Takes the asking back. The device may have taken it just before: an interrupt may come all the same.
    pub(crate) fn disarm_faults(&self) {
        self.driver_word(driver::FAULT_ARM).store(0, Relaxed);
    }

    /// Asks for one interrupt when a completion comes. The caller must look at the ring once more.
    pub(crate) fn arm_completions(&self, queue: u32) {
        self.queue_word(queue, queue::CQ_ARM).store(1, Relaxed);
        // Partner: the device's full barrier between writing a completion and taking the arm word.
        full_barrier();
    }

    /// The completion queue's head, as the process says: any value.
    pub(crate) fn completion_head(&self, queue: u32) -> u32 {
        self.queue_word(queue, queue::CQ_HEAD).load(Relaxed)
    }
}
