// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! Submission and completion queue entries (spec 5).

use super::status::Status;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Opcode of a submission queue entry (spec 5.2). All are below 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Opcode(pub u8);

impl Opcode {
    /// Completes.
    pub const NOP: Opcode = Opcode(0x00);
    /// Completes when every effect of the queue's earlier commands is visible in memory.
    pub const FENCE: Opcode = Opcode(0x01);
    /// `result = *addr`.
    pub const READ: Opcode = Opcode(0x02);
    /// `*addr = operand`.
    pub const WRITE: Opcode = Opcode(0x03);
    /// `*addr += operand`, wrapping.
    pub const FETCH_ADD: Opcode = Opcode(0x10);
    /// `*addr &= operand`.
    pub const FETCH_AND: Opcode = Opcode(0x11);
    /// `*addr |= operand`.
    pub const FETCH_OR: Opcode = Opcode(0x12);
    /// `*addr ^= operand`.
    pub const FETCH_XOR: Opcode = Opcode(0x13);
    /// `*addr = min(*addr, operand)`, unsigned.
    pub const FETCH_UMIN: Opcode = Opcode(0x14);
    /// `*addr = max(*addr, operand)`, unsigned.
    pub const FETCH_UMAX: Opcode = Opcode(0x15);
    /// `*addr = min(*addr, operand)`, two's complement.
    pub const FETCH_SMIN: Opcode = Opcode(0x16);
    /// `*addr = max(*addr, operand)`, two's complement.
    pub const FETCH_SMAX: Opcode = Opcode(0x17);
    /// `*addr = operand`, returning what was there.
    pub const SWAP: Opcode = Opcode(0x18);
    /// `if *addr == compare { *addr = operand }`.
    pub const CAS: Opcode = Opcode(0x19);
    /// `*addr += operand` on IEEE 754 binary32 or binary64, round to nearest even.
    pub const FETCH_FADD: Opcode = Opcode(0x1a);

    /// Name and value of every opcode.
    pub const ALL: [(&'static str, Opcode); 15] = [
        ("NOP", Self::NOP),
        ("FENCE", Self::FENCE),
        ("READ", Self::READ),
        ("WRITE", Self::WRITE),
        ("FETCH_ADD", Self::FETCH_ADD),
        ("FETCH_AND", Self::FETCH_AND),
        ("FETCH_OR", Self::FETCH_OR),
        ("FETCH_XOR", Self::FETCH_XOR),
        ("FETCH_UMIN", Self::FETCH_UMIN),
        ("FETCH_UMAX", Self::FETCH_UMAX),
        ("FETCH_SMIN", Self::FETCH_SMIN),
        ("FETCH_SMAX", Self::FETCH_SMAX),
        ("SWAP", Self::SWAP),
        ("CAS", Self::CAS),
        ("FETCH_FADD", Self::FETCH_FADD),
    ];

    /// The opcode's bit in the `OPCODES` and `BULK_OPCODES` registers; zero for what has none.
    pub const fn bit(self) -> u64 {
        if self.0 < 64 {
            1 << self.0
        } else {
            0
        }
    }
}

/// Width of an element, as the binary logarithm of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct WidthLog2(pub u8);

impl WidthLog2 {
    /// Four bytes.
    pub const W32: WidthLog2 = WidthLog2(2);
    /// Eight bytes.
    pub const W64: WidthLog2 = WidthLog2(3);
}

/// Flags of a submission queue entry (spec 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SqeFlags(pub u16);

impl SqeFlags {
    /// `count` elements instead of one.
    pub const BULK: SqeFlags = SqeFlags(1 << 0);
    /// Bulk: element *i* is at `addr + index[i] * width`, else at `addr + i * stride`.
    pub const INDEXED: SqeFlags = SqeFlags(1 << 1);
    /// Indexed: the index array has 64-bit elements, else 32-bit ones.
    pub const INDEX64: SqeFlags = SqeFlags(1 << 2);

    const KNOWN: u16 = Self::BULK.0 | Self::INDEXED.0 | Self::INDEX64.0;

    /// Both sets together.
    pub const fn with(self, other: SqeFlags) -> SqeFlags {
        SqeFlags(self.0 | other.0)
    }
    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: SqeFlags) -> bool {
        self.0 & other.0 == other.0
    }
    /// Whether no flag is set that this source does not know.
    pub const fn known(self) -> bool {
        self.0 & !Self::KNOWN == 0
    }
}

/// Submission queue entry: 64 bytes, aligned to 64. Fields that a command does not use are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Sqe {
    /// What to do.
    pub opcode: Opcode,
    /// Width of an element.
    pub width: WidthLog2,
    /// How to do it.
    pub flags: SqeFlags,
    /// Returned in the completion.
    pub tag: u32,
    /// Virtual address of the element, or of the first.
    pub addr: u64,
    /// Operand, in the low `width` bytes; the rest is zero.
    pub operand: u64,
    /// CAS: the value that is compared with, as `operand`.
    pub compare: u64,
    /// Bulk: elements, 0 to 2^32 − 1.
    pub count: u32,
    /// Bulk without INDEXED: distance of two elements in bytes, two's complement, a multiple of the width.
    pub stride: i32,
    /// INDEXED: virtual address of the index array.
    pub index_addr: u64,
    /// Zero.
    pub reserved: [u64; 2],
}
const _: () = assert!(size_of::<Sqe>() == 64);

/// Completion queue entry: 32 bytes, aligned to 32. The device writes `head` last, with release
/// ordering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(32))]
pub struct Cqe {
    /// Tag, status and phase.
    pub head: CqeHead,
    /// READ and atomics: the element's value before the command; bulk: zero.
    pub result: u64,
    /// Elements applied: 0 or 1, or up to `count` for bulk.
    pub applied: u32,
    /// Free-running head of the submission queue behind this command.
    pub sq_head: u32,
    /// The address that ended the command, if its status is about one; else zero.
    pub fault_addr: u64,
}
const _: () = assert!(size_of::<Cqe>() == 32);

/// The first eight bytes of a [`Cqe`]: bits 0–31 tag, 32–47 status, 48 phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct CqeHead(pub u64);

impl CqeHead {
    /// Packs the fields.
    pub const fn new(phase: bool, status: Status, tag: u32) -> Self {
        CqeHead(tag as u64 | ((status.0 as u64) << 32) | ((phase as u64) << 48))
    }
    /// The command's tag.
    pub const fn tag(self) -> u32 {
        self.0 as u32
    }
    /// How it ended.
    pub const fn status(self) -> Status {
        Status((self.0 >> 32) as u16)
    }
    /// The phase bit (spec 4.2).
    pub const fn phase(self) -> bool {
        self.0 & (1 << 48) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cqe_head_keeps_its_fields() {
        let head = CqeHead::new(true, Status::BAD_WIDTH, 0xdead_beef);
        assert_eq!((head.phase(), head.status(), head.tag()), (true, Status::BAD_WIDTH, 0xdead_beef));
        assert!(!CqeHead::new(false, Status(0xffff), u32::MAX).phase());
    }
}
