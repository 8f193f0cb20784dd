// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! The fault queue's record (spec 7), device to driver.

use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One fault: 64 bytes, aligned to 64. The device writes `head` last, with release ordering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct FaultRecord {
    /// Phase, access kind and queue.
    pub head: FaultHead,
    /// Address space of the access.
    pub asid: u32,
    /// Names this fault of its queue; a REPLAY or CANCEL repeats it. Look-ahead: of the fault that it comes
    /// with.
    pub fault_id: u32,
    /// The address that was to be accessed, in bytes, not rounded.
    pub va: u64,
    /// The command's tag.
    pub tag: u32,
    /// Look-ahead: pages that will be needed, this address's and those behind it; else 1.
    pub pages: u32,
    /// Zero.
    pub reserved: [u64; 4],
}
const _: () = assert!(size_of::<FaultRecord>() == 64);

/// The first eight bytes of a [`FaultRecord`]: bit 0 phase, bit 1 look-ahead, bits 8–15 access, bits
/// 32–63 queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FaultHead(pub u64);

impl FaultHead {
    /// Packs the fields.
    pub const fn new(phase: bool, access: AccessKind, queue: u32) -> Self {
        FaultHead(phase as u64 | ((access.0 as u64) << 8) | ((queue as u64) << 32))
    }
    /// The same for a page that will be needed: nothing waits for it (spec 7.3).
    pub const fn look_ahead(self) -> Self {
        FaultHead(self.0 | 2)
    }
    /// The phase bit (spec 4.2).
    pub const fn phase(self) -> bool {
        self.0 & 1 != 0
    }
    /// Whether nothing waits for it (spec 7.3).
    pub const fn is_look_ahead(self) -> bool {
        self.0 & 2 != 0
    }
    /// What was to be done.
    pub const fn access(self) -> AccessKind {
        AccessKind((self.0 >> 8) as u8)
    }
    /// The queue that is stalled.
    pub const fn queue(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The kind of access that faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct AccessKind(pub u8);

impl AccessKind {
    /// A load: needs READ.
    pub const READ: AccessKind = AccessKind(1);
    /// A store: needs WRITE.
    pub const WRITE: AccessKind = AccessKind(2);
    /// A read-modify-write: needs ATOMIC or COHERENT.
    pub const ATOMIC: AccessKind = AccessKind(3);
}
