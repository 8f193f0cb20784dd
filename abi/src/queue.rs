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
    /// `count` elements from the source address to `addr`, as memmove does.
    pub const COPY: Opcode = Opcode(0x20);
    /// `operand` to `count` elements from `addr` on.
    pub const FILL: Opcode = Opcode(0x21);
    /// Completes when `*addr` compares true with `compare`, or after a time.
    pub const WAIT: Opcode = Opcode(0x28);

    /// Name and value of every opcode.
    pub const ALL: [(&'static str, Opcode); 18] = [
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
        ("COPY", Self::COPY),
        ("FILL", Self::FILL),
        ("WAIT", Self::WAIT),
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
    /// One byte: COPY and FILL.
    pub const W8: WidthLog2 = WidthLog2(0);
    /// Four bytes.
    pub const W32: WidthLog2 = WidthLog2(2);
    /// Eight bytes.
    pub const W64: WidthLog2 = WidthLog2(3);
    /// Sixteen bytes: CAS.
    pub const W128: WidthLog2 = WidthLog2(4);
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
    /// Bulk: element *i* has an operand of its own, in an array at `operand`.
    pub const OPERANDS: SqeFlags = SqeFlags(1 << 3);
    /// Bulk: element *i*'s old value is stored, in an array at `arg0`.
    pub const STORE_OLD: SqeFlags = SqeFlags(1 << 4);

    /// Name and value of every flag.
    pub const ALL: [(&'static str, SqeFlags); 5] = [
        ("BULK", Self::BULK),
        ("INDEXED", Self::INDEXED),
        ("INDEX64", Self::INDEX64),
        ("OPERANDS", Self::OPERANDS),
        ("STORE_OLD", Self::STORE_OLD),
    ];

    const KNOWN: u16 =
        Self::BULK.0 | Self::INDEXED.0 | Self::INDEX64.0 | Self::OPERANDS.0 | Self::STORE_OLD.0;

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
    /// Operand, in the low `width` bytes; the rest is zero. With OPERANDS, and in bulk at 128 bits: the
    /// virtual address where operands are.
    pub operand: u64,
    /// CAS, WAIT: the value that is compared with, in the low `width` bytes.
    pub compare: u64,
    /// Bulk, COPY, FILL: elements, 0 to 2^32 − 1.
    pub count: u32,
    /// Bulk without INDEXED: distance of two elements in bytes, two's complement, a multiple of the width.
    pub stride: i32,
    /// INDEXED: virtual address of the index array.
    pub index_addr: u64,
    /// By the form of the command (spec 5.4): STORE_OLD, virtual address of the array of old values; COPY,
    /// virtual address of the source; CAS at 128 bits, upper half of the operand; WAIT, time in nanoseconds.
    pub arg0: u64,
    /// By the form of the command (spec 5.4): CAS at 128 bits, upper half of the compared value; WAIT, the
    /// [`Condition`].
    pub arg1: u64,
}
const _: () = assert!(size_of::<Sqe>() == 64);

/// When a WAIT completes: `arg1` of its submission (spec 5.7). The element stands on the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Condition {
    /// Equal.
    Eq = 0,
    /// Not equal.
    Ne = 1,
    /// Less, unsigned.
    Ult = 2,
    /// Less or equal, unsigned.
    Ule = 3,
    /// Greater, unsigned.
    Ugt = 4,
    /// Greater or equal, unsigned.
    Uge = 5,
    /// Less, two's complement.
    Slt = 6,
    /// Less or equal, two's complement.
    Sle = 7,
    /// Greater, two's complement.
    Sgt = 8,
    /// Greater or equal, two's complement.
    Sge = 9,
}

impl Condition {
    /// Every condition, by number.
    pub const ALL: [Condition; 10] = [
        Condition::Eq,
        Condition::Ne,
        Condition::Ult,
        Condition::Ule,
        Condition::Ugt,
        Condition::Uge,
        Condition::Slt,
        Condition::Sle,
        Condition::Sgt,
        Condition::Sge,
    ];

    /// The condition of that number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|condition| *condition as u64 == number)
    }
}

/// `arg0` of a WAIT without end.
pub const WAIT_FOREVER: u64 = u64::MAX;

/// Completion queue entry: 32 bytes, aligned to 32. The device writes `head` last, with release
/// ordering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(32))]
pub struct Cqe {
    /// Tag, status and phase.
    pub head: CqeHead,
    /// Scalar READ and atomics: the element's value before the command; WAIT: the value seen last. Else zero,
    /// but see spec 5.5 for an old value that could not be stored.
    pub result: u64,
    /// Elements applied: 0 or 1, or up to `count`.
    pub applied: u32,
    /// Free-running head of the submission queue behind this command.
    pub sq_head: u32,
    /// The address that ended the command, if its status is about one. With SUCCESS of a scalar CAS at 128
    /// bits the upper half of the old value. Else zero.
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
