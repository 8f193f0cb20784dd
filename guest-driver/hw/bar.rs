// SPDX-License-Identifier: GPL-2.0

//! BARs: one whose accesses are trapped, and one that is memory.

use super::super::sys;
use super::pci::{PciDevice, Region};
use core::ptr::NonNull;
use kernel::{bindings, prelude::*, sync::atomic::Atomic};

/// A BAR of registers, mapped uncached. Each access leaves the guest.
pub(crate) struct TrappedBar {
    base: NonNull<u8>,
    size: u64,
    region: Region,
}

// SAFETY: The mapping is not tied to a thread.
unsafe impl Send for TrappedBar {}
// SAFETY: Register accesses need no exclusion.
unsafe impl Sync for TrappedBar {}

impl TrappedBar {
    /// Claims and maps `bar`.
    pub(crate) fn map(device: &PciDevice, bar: u32, size: u64) -> Result<Self> {
        let region = Region::new(device, bar, size)?;
        let base = region.iomap()?;
        Ok(TrappedBar { base, size, region })
    }

    fn at(&self, offset: u64, width: u64) -> *mut u8 {
        assert!(offset.is_multiple_of(width) && offset < self.size);
        // SAFETY: The offset lies in the mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    /// Reads a 32-bit register.
    pub(crate) fn read32(&self, offset: u64) -> u32 {
        // SAFETY: `at` gives a place in the mapping.
        unsafe { bindings::readl(self.at(offset, 4).cast()) }
    }

    /// Writes a 32-bit register.
    pub(crate) fn write32(&self, offset: u64, value: u32) {
        // SAFETY: `at` gives a place in the mapping.
        unsafe { bindings::writel(value, self.at(offset, 4).cast()) }
    }

    /// Reads a 64-bit register.
    pub(crate) fn read64(&self, offset: u64) -> u64 {
        // SAFETY: `at` gives a place in the mapping.
        unsafe { bindings::readq(self.at(offset, 8).cast()) }
    }

    /// Writes a 64-bit register.
    pub(crate) fn write64(&self, offset: u64, value: u64) {
        // SAFETY: `at` gives a place in the mapping.
        unsafe { bindings::writeq(value, self.at(offset, 8).cast()) }
    }
}

impl Drop for TrappedBar {
    fn drop(&mut self) {
        self.region.iounmap(self.base);
    }
}

/// A prefetchable BAR that is ordinary memory of the host, shared with the device's threads.
///
/// It is mapped write-back here and in user space. The protocol on it is that of threads sharing
/// memory (release stores, full barriers, exchanges), which is exactly what cached memory gives and
/// what its other side, a thread of the host on a write-back mapping, uses. x86 keeps one type per
/// physical page: the user's mapping takes it over from this one.
pub(crate) struct MappedBar {
    base: NonNull<u8>,
    phys: u64,
    size: u64,
    _region: Region,
}

// SAFETY: The mapping is not tied to a thread.
unsafe impl Send for MappedBar {}
// SAFETY: All accesses are atomic.
unsafe impl Sync for MappedBar {}

impl MappedBar {
    /// Claims and maps `bar`.
    pub(crate) fn map(device: &PciDevice, bar: u32, size: u64) -> Result<Self> {
        let region = Region::new(device, bar, size)?;
        let (phys, _) = device.resource(bar);
        // SAFETY: The BAR is ours.
        let base = unsafe { sys::svmx_memremap_wb(phys, size as usize) };
        Ok(MappedBar { base: NonNull::new(base.cast()).ok_or(ENOMEM)?, phys, size, _region: region })
    }

    /// Its guest-physical address.
    pub(crate) fn phys(&self) -> u64 {
        self.phys
    }

    /// The 32-bit word at `offset`.
    pub(crate) fn word(&self, offset: u64) -> &Atomic<u32> {
        assert!(offset.is_multiple_of(4) && offset < self.size);
        // SAFETY: The word lies in the mapping, which lives as long as `self`, is aligned, and is
        // only ever accessed atomically.
        unsafe { Atomic::from_ptr(self.base.as_ptr().add(offset as usize).cast()) }
    }
}

impl Drop for MappedBar {
    fn drop(&mut self) {
        // SAFETY: `base` is what memremap() returned.
        unsafe { bindings::memunmap(self.base.as_ptr().cast()) };
    }
}
