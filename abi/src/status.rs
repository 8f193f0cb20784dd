// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! Status codes in completions (spec 5.9).

use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How a command ended. Unknown values are passed on as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Status(pub u16);

impl Status {
    /// All elements were applied.
    pub const SUCCESS: Status = Status(0);
    /// The device does not know this opcode, or not in this form.
    pub const BAD_OPCODE: Status = Status(1);
    /// The opcode does not take this width.
    pub const BAD_WIDTH: Status = Status(2);
    /// A flag that this command does not take, or a reserved field that is not zero.
    pub const BAD_FLAGS: Status = Status(3);
    /// An address, stride or array that is not a multiple of its element's width.
    pub const MISALIGNED: Status = Status(4);
    /// An address that is not below `VA_END`, or an address computation that leaves that range.
    pub const ADDRESS_RANGE: Status = Status(5);
    /// No memory at this address in the process.
    pub const FAULT: Status = Status(6);
    /// Memory that does not allow this kind of access.
    pub const PERMISSION: Status = Status(7);
    /// Memory that can't be had exclusively: file-backed, shared or hugetlb.
    pub const NOT_EXCLUSIVE: Status = Status(8);
    /// The translation leads outside guest memory, or to memory that is read-only to the device.
    pub const BAD_MEMORY: Status = Status(9);
    /// A page-table entry has a reserved bit set.
    pub const BAD_PAGE_TABLE: Status = Status(10);
    /// The process or its memory is gone, or the driver gave up the queue.
    pub const CANCELLED: Status = Status(11);
    /// The driver could not find the memory to serve the fault.
    pub const NO_RESOURCES: Status = Status(12);
    /// `sq_tail` or `cq_head` is out of range; the queue is broken until it is destroyed.
    pub const BAD_DOORBELL: Status = Status(13);
    /// Control queue: an identifier is out of range, in use, not in use, or still referred to.
    pub const BAD_ID: Status = Status(14);
    /// Control queue: a ring or root that is misaligned, out of range, or not in guest memory.
    pub const BAD_RING: Status = Status(15);

    /// WAIT: the condition did not come true in its time.
    pub const TIMEOUT: Status = Status(16);

    /// Name, value and whether a CANCEL may carry it, for every status.
    pub const ALL: [(&'static str, Status, bool); 17] = [
        ("SUCCESS", Self::SUCCESS, false),
        ("BAD_OPCODE", Self::BAD_OPCODE, false),
        ("BAD_WIDTH", Self::BAD_WIDTH, false),
        ("BAD_FLAGS", Self::BAD_FLAGS, false),
        ("MISALIGNED", Self::MISALIGNED, false),
        ("ADDRESS_RANGE", Self::ADDRESS_RANGE, false),
        ("FAULT", Self::FAULT, true),
        ("PERMISSION", Self::PERMISSION, true),
        ("NOT_EXCLUSIVE", Self::NOT_EXCLUSIVE, true),
        ("BAD_MEMORY", Self::BAD_MEMORY, false),
        ("BAD_PAGE_TABLE", Self::BAD_PAGE_TABLE, false),
        ("CANCELLED", Self::CANCELLED, true),
        ("NO_RESOURCES", Self::NO_RESOURCES, true),
        ("BAD_DOORBELL", Self::BAD_DOORBELL, false),
        ("BAD_ID", Self::BAD_ID, false),
        ("BAD_RING", Self::BAD_RING, false),
        ("TIMEOUT", Self::TIMEOUT, false),
    ];

    /// The name that docs/spec.md gives this status, if it has one.
    pub fn name(self) -> Option<&'static str> {
        Self::ALL.iter().find(|(_, status, _)| *status == self).map(|(name, _, _)| *name)
    }

    /// Whether a CANCEL may end a command with this status.
    pub fn may_cancel(self) -> bool {
        Self::ALL.iter().any(|&(_, status, cancel)| status == self && cancel)
    }
}
