// SPDX-License-Identifier: GPL-2.0

//! Memory that the device and the driver share.

use super::super::sys;
use super::pci::PciDevice;
use core::ptr::NonNull;
use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::Atomic,
    transmute::{AsBytes, FromBytes},
};

/// Zeroed, coherent, physically contiguous whole pages.
///
/// # Invariants
///
/// `cpu` and `dma` are one live allocation of `size` bytes for `device`.
pub(crate) struct DmaBuf {
    device: PciDevice,
    cpu: NonNull<u8>,
    dma: u64,
    size: usize,
}

// SAFETY: The memory is not tied to a thread.
unsafe impl Send for DmaBuf {}
// SAFETY: Shared accesses are atomic, or copies of plain bytes whose users say how they are ordered.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// Allocates `size` bytes, rounded up to pages, for the driver's own use. The driver must be bound to the device.
    pub(crate) fn new(device: &PciDevice, size: usize) -> Result<Self> {
        Self::allocate(device, size, bindings::GFP_KERNEL | bindings::__GFP_NOWARN)
    }

    /// The same, charged to the memory cgroup of the calling process, or of the one that this thread works for.
    pub(crate) fn for_process(device: &PciDevice, size: usize) -> Result<Self> {
        // SAFETY: A constant.
        Self::allocate(device, size, unsafe { sys::svmx_gfp_for_process() })
    }

    fn allocate(device: &PciDevice, size: usize, gfp: bindings::gfp_t) -> Result<Self> {
        let size = size.next_multiple_of(PAGE_SIZE);
        let mut dma = 0;
        // SAFETY: The device is valid and has its DMA mask set.
        let cpu = unsafe { bindings::dma_alloc_attrs(device.as_raw_dev(), size, &mut dma, gfp, 0) };
        let cpu = NonNull::new(cpu.cast()).ok_or(ENOMEM)?;
        Ok(DmaBuf { device: device.clone(), cpu, dma, size })
    }

    /// The device's address of it.
    pub(crate) fn dma(&self) -> u64 {
        self.dma
    }

    /// Bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The page frame of its `page`-th page.
    pub(crate) fn pfn(&self, page: usize) -> usize {
        assert!(page < self.size / PAGE_SIZE);
        // SAFETY: The address lies in the allocation.
        unsafe { sys::svmx_dma_pfn(self.cpu.as_ptr().add(page * PAGE_SIZE).cast()) }
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(align_of::<T>()));
        assert!(offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.size));
        // SAFETY: The place lies in the allocation.
        unsafe { self.cpu.as_ptr().add(offset).cast() }
    }

    /// The aligned 64-bit word at `offset`.
    pub(crate) fn word(&self, offset: usize) -> &Atomic<u64> {
        // SAFETY: The word lies in the allocation, is aligned, and lives as long as `self`. Racing
        // accesses to it are atomic on both sides.
        unsafe { Atomic::from_ptr(self.at(offset)) }
    }

    /// Writes `value` at `offset`. The caller makes it visible to the device by a release store to
    /// something else.
    pub(crate) fn write<T: AsBytes + Copy>(&self, offset: usize, value: T) {
        // SAFETY: The place lies in the allocation and is aligned. By the caller's protocol the
        // device does not look at it now.
        unsafe { self.at::<T>(offset).write_volatile(value) };
    }

    /// Reads a value at `offset`, after an acquire load of something else said that it is there.
    pub(crate) fn read<T: FromBytes + Copy>(&self, offset: usize) -> T {
        // SAFETY: The place lies in the allocation and is aligned; any bytes make a `T`.
        unsafe { self.at::<T>(offset).read_volatile() }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        let cpu = self.cpu.as_ptr().cast();
        // SAFETY: By the type invariant this is the allocation, with the attributes it was made with.
        unsafe { bindings::dma_free_attrs(self.device.as_raw_dev(), self.size, cpu, self.dma, 0) };
    }
}
