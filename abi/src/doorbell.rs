// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! The doorbell pages in BAR2 (spec 4): offsets of their 32-bit words.
//!
//! Each word stands in a cache line of its own, so that two writers never share one.

/// The driver's own page: control and fault queue.
pub const DRIVER_PAGE: u32 = 0;

/// Words of a queue's page, `queue * PAGE_SIZE` into the BAR.
pub mod queue {
    /// Written by the submitter: free-running tail of the submission queue.
    pub const SQ_TAIL: u64 = 0x000;
    /// Written by the consumer: free-running head of the completion queue.
    pub const CQ_HEAD: u64 = 0x040;
    /// Written by the device: 1 while it does not poll this page.
    pub const NEED_KICK: u64 = 0x080;
    /// Set to 1 by the consumer, taken (set to 0) by the device when it interrupts.
    pub const CQ_ARM: u64 = 0x0c0;
}

/// Words of the driver's page.
pub mod driver {
    /// Written by the driver: free-running tail of the control queue.
    pub const CTL_TAIL: u64 = 0x000;
    /// Written by the driver: free-running head of the fault queue.
    pub const FAULT_HEAD: u64 = 0x040;
    /// Written by the device: 1 while it does not poll this page.
    pub const NEED_KICK: u64 = 0x080;
    /// Set to 1 by the driver, taken (set to 0) by the device when it interrupts.
    pub const FAULT_ARM: u64 = 0x0c0;
    /// Written by the device: free-running head of the control queue, entries it has copied.
    pub const CTL_HEAD: u64 = 0x100;
}
