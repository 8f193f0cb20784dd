// SPDX-License-Identifier: GPL-2.0

//! The registers in BAR0 (spec 3): typed, one function for each thing that is done with them.

use super::abi::{
    pci,
    regs::{self, Control, DeviceStatus, Version},
};
use super::hw::{PciDevice, TrappedBar};
use super::outlook::MAX_WINDOW;
use kernel::prelude::*;

/// The register BAR.
pub(crate) struct Regs(TrappedBar);

/// What the device says about itself; read once.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) version: Version,
    pub(crate) opcodes: u64,
    pub(crate) bulk_opcodes: u64,
    pub(crate) max_contexts: u32,
    pub(crate) max_queues: u32,
    pub(crate) max_ring_log2: u8,
    pub(crate) num_engines: u32,
}

/// What a look at the device found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    Good,
    /// `MAGIC` does not read as it should: the device is gone.
    Gone,
    /// It stopped, with the value of `FATAL_ERROR`.
    Fatal(u32),
}

impl Regs {
    /// Maps the BAR.
    pub(crate) fn map(device: &PciDevice) -> Result<Self> {
        Ok(Regs(TrappedBar::map(device, pci::BAR_REGS, pci::BAR_REGS_SIZE)?))
    }

    /// Checks that this is a device that the driver understands, and reads what it can do. Limits
    /// beyond those of the specification are cut to them.
    pub(crate) fn identify(&self) -> Result<Identity> {
        let magic = self.0.read32(regs::MAGIC);
        if magic != regs::MAGIC_VALUE {
            pr_err!("not a svmx device: magic {:#x}\n", magic);
            return Err(ENODEV);
        }
        let version = Version(self.0.read32(regs::VERSION));
        if version.major() != Version::CURRENT.major() {
            pr_err!("device of version {}.{} is not supported\n", version.major(), version.minor());
            return Err(ENODEV);
        }
        Ok(Identity {
            version,
            opcodes: self.0.read64(regs::OPCODES),
            bulk_opcodes: self.0.read64(regs::BULK_OPCODES),
            max_contexts: self.0.read32(regs::MAX_CONTEXTS).min(pci::MAX_CONTEXTS),
            max_queues: self.0.read32(regs::MAX_QUEUES).min(pci::MAX_QUEUES),
            max_ring_log2: self.0.read32(regs::MAX_RING_LOG2).min(pci::MAX_RING_LOG2.into()) as u8,
            num_engines: self.0.read32(regs::NUM_ENGINES),
        })
    }

    /// Resets the device. When this returns it makes no access to memory any more (spec 1.1).
    pub(crate) fn reset(&self) {
        self.0.write32(regs::CONTROL, Control::RESET.0);
    }

    /// Starts the device with its control and fault queue (spec 3.2). It must be reset.
    pub(crate) fn start(&self, ctl: (u64, u8), faults: (u64, u8)) -> Result {
        self.0.write64(regs::CTL_BASE, ctl.0);
        self.0.write32(regs::CTL_LOG2, ctl.1.into());
        self.0.write64(regs::FAULT_BASE, faults.0);
        self.0.write32(regs::FAULT_LOG2, faults.1.into());
        self.0.write32(regs::LOOKAHEAD, MAX_WINDOW as u32);
        self.0.write32(regs::CONTROL, Control::ENABLE.0);
        let status = DeviceStatus(self.0.read32(regs::STATUS));
        if !status.ready() || status.fatal() {
            pr_err!("device does not start: fatal error {}\n", self.0.read32(regs::FATAL_ERROR));
            return Err(EIO);
        }
        Ok(())
    }

    /// Looks whether the device is there and works. One or two trapped reads.
    pub(crate) fn health(&self) -> Health {
        if self.0.read32(regs::MAGIC) != regs::MAGIC_VALUE {
            return Health::Gone;
        }
        match DeviceStatus(self.0.read32(regs::STATUS)).fatal() {
            true => Health::Fatal(self.0.read32(regs::FATAL_ERROR)),
            false => Health::Good,
        }
    }

    /// Makes the device poll doorbell page `page` again (spec 4.3).
    pub(crate) fn kick(&self, page: u32) {
        self.0.write32(regs::KICK, page);
    }
}
