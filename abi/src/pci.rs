// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! PCI identity, BARs, interrupt vectors and limits (spec 1, 2).

/// PCI vendor ID: Red Hat's, whose space QEMU's virtual devices use.
pub const VENDOR_ID: u16 = 0x1b36;
/// PCI device ID.
pub const DEVICE_ID: u16 = 0x5356;
/// PCI revision ID.
pub const REVISION_ID: u8 = 1;
/// PCI class code: processing accelerator (base class 0x12, subclass 0, interface 0).
pub const CLASS_CODE: u32 = 0x12_0000;

/// BAR of the control registers, trapped.
pub const BAR_REGS: u32 = 0;
/// Size of [`BAR_REGS`] in bytes.
pub const BAR_REGS_SIZE: u64 = 64 << 10;
/// BAR of the doorbell pages, mapped.
pub const BAR_DOORBELLS: u32 = 2;
/// Size of [`BAR_DOORBELLS`] in bytes: one page for the driver and one for each queue.
pub const BAR_DOORBELLS_SIZE: u64 = (MAX_QUEUES as u64 + 1) * PAGE_SIZE;
/// BAR of the MSI-X table and pending-bit array.
pub const BAR_MSIX: u32 = 4;
/// Size of [`BAR_MSIX`] in bytes.
pub const BAR_MSIX_SIZE: u64 = 8 << 10;
/// Offset of the MSI-X table in [`BAR_MSIX`].
pub const MSIX_TABLE_OFFSET: u64 = 0;
/// Offset of the pending-bit array in [`BAR_MSIX`].
pub const MSIX_PBA_OFFSET: u64 = 4 << 10;

/// Number of MSI-X vectors.
pub const NUM_VECTORS: u16 = 16;
/// Vector of the fault queue (spec 7).
pub const VECTOR_FAULT: u16 = 0;
/// Vector of the control queue and of fatal errors (spec 8, 3.3).
pub const VECTOR_EVENT: u16 = 1;
/// First of the vectors that completion queues are given (spec 5.8).
pub const VECTOR_COMPLETION_FIRST: u16 = 2;

/// Highest queue identifier; 0 is the driver's own page.
pub const MAX_QUEUES: u32 = 511;
/// Highest address-space identifier; 0 is none.
pub const MAX_CONTEXTS: u32 = 1023;
/// Smallest binary logarithm of the entries in any ring.
pub const MIN_RING_LOG2: u8 = 1;
/// Largest binary logarithm of the entries in any ring.
pub const MAX_RING_LOG2: u8 = 12;

/// Binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page: of translation, and of doorbells.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Bits of a virtual address that the device translates.
pub const VA_BITS: u32 = 48;
/// One past the highest virtual address that the device translates.
pub const VA_END: u64 = 1 << VA_BITS;

/// The page that `va` lies in, as its first address.
pub const fn page_base(va: u64) -> u64 {
    va & !(PAGE_SIZE - 1)
}

/// The offset of `va` in its page, in bytes.
pub const fn page_offset(va: u64) -> u64 {
    va & (PAGE_SIZE - 1)
}
