// SPDX-License-Identifier: GPL-2.0

//! A PCI function: enabling, bus mastering, DMA.

use super::super::sys;
use core::ptr::NonNull;
use kernel::{bindings, error::to_result, pci, prelude::*, sync::aref::ARef};

/// A counted reference to a PCI function. It outlives the binding of the driver.
#[derive(Clone)]
pub(crate) struct PciDevice(ARef<pci::Device>);

impl PciDevice {
    /// The function that `device` is.
    pub(crate) fn new(device: &pci::Device) -> Self {
        PciDevice(device.into())
    }

    /// For log lines.
    pub(crate) fn as_dev(&self) -> &kernel::device::Device {
        (*self.0).as_ref()
    }

    pub(super) fn as_raw(&self) -> *mut bindings::pci_dev {
        // CAST: `pci::Device` is a transparent wrapper of an `Opaque<pci_dev>`.
        core::ptr::from_ref::<pci::Device>(&self.0).cast_mut().cast()
    }

    pub(super) fn as_raw_dev(&self) -> *mut bindings::device {
        // SAFETY: The device is valid; only the field's address is taken.
        unsafe { &raw mut (*self.as_raw()).dev }
    }

    /// Enables the function's memory and its DMA to all of memory. Fails with EOPNOTSUPP if DMA
    /// addresses are not guest-physical ones (the device's page tables hold such).
    pub(crate) fn enable(&self) -> Result<Enabled> {
        // SAFETY: The device is valid, and the driver is being bound to it.
        to_result(unsafe { bindings::pci_enable_device_mem(self.as_raw()) })?;
        let enabled = Enabled(self.clone());
        // SAFETY: As above.
        unsafe {
            to_result(bindings::dma_set_mask_and_coherent(self.as_raw_dev(), u64::MAX))?;
            to_result(sys::svmx_dma_check_identity(self.as_raw_dev()))?;
        }
        Ok(enabled)
    }

    /// Sets the requester bit of the AtomicOps.
    pub(crate) fn enable_atomics(&self) -> Result {
        // SAFETY: The device is valid.
        to_result(unsafe { sys::svmx_pci_set_atomic_requester(self.as_raw()) })
    }

    /// Lets the function access memory.
    pub(crate) fn set_master(&self) {
        // SAFETY: The device is valid and enabled.
        unsafe { bindings::pci_set_master(self.as_raw()) };
    }

    /// Ends the function's access to memory. May be called in any context, any number of times.
    pub(crate) fn clear_master(&self) {
        // SAFETY: The device is valid. Configuration accesses take spinlocks only.
        unsafe { bindings::pci_clear_master(self.as_raw()) };
    }

    pub(super) fn resource(&self, bar: u32) -> (u64, u64) {
        // SAFETY: The device is valid, and the callers name one of its six BARs.
        unsafe {
            let start = bindings::pci_resource_start(self.as_raw(), bar as i32);
            (start, bindings::pci_resource_len(self.as_raw(), bar as i32))
        }
    }
}

/// The function is enabled until this is dropped.
pub(crate) struct Enabled(PciDevice);

impl Drop for Enabled {
    fn drop(&mut self) {
        // SAFETY: The device was enabled once, and is disabled once.
        unsafe { bindings::pci_disable_device(self.0.as_raw()) };
    }
}

/// A claimed BAR.
pub(super) struct Region {
    device: PciDevice,
    bar: i32,
}

impl Region {
    /// Claims `bar`, which must have at least `size` bytes.
    pub(super) fn new(device: &PciDevice, bar: u32, size: u64) -> Result<Self> {
        if device.resource(bar).1 < size {
            return Err(ENODEV);
        }
        let (device, bar) = (device.clone(), bar as i32);
        // SAFETY: The device is valid; the name is static.
        to_result(unsafe { bindings::pci_request_region(device.as_raw(), bar, c"svmx".as_char_ptr()) })?;
        Ok(Region { device, bar })
    }

    /// Maps all of it uncached.
    pub(super) fn iomap(&self) -> Result<NonNull<u8>> {
        // SAFETY: The device is valid, the BAR is ours.
        NonNull::new(unsafe { bindings::pci_iomap(self.device.as_raw(), self.bar, 0) }.cast()).ok_or(ENOMEM)
    }

    /// Undoes [`iomap`](Self::iomap).
    pub(super) fn iounmap(&self, base: NonNull<u8>) {
        // SAFETY: `base` is what `iomap` returned.
        unsafe { bindings::pci_iounmap(self.device.as_raw(), base.as_ptr().cast()) };
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: The BAR was claimed by `new`.
        unsafe { bindings::pci_release_region(self.device.as_raw(), self.bar) };
    }
}
