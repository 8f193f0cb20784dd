// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands as the device executes them. They come from [`crate::parse`], so whatever can be known of one
//! before its first access has been checked; what they do, access by access, is [`crate::work`]'s.

use portable_atomic::AtomicU128;
use svmx_abi::queue::{Condition, Opcode, WidthLog2};

/// A command that can be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Completes.
    Nop,
    /// Completes when everything before it is visible.
    Fence,
    /// One load.
    Read(Target),
    /// One store of the value.
    Write(Target, u64),
    /// One atomic.
    Atomic(Target, Atomic),
    /// An atomic on several elements.
    Bulk(Bulk),
    /// Elements from one place to another.
    Copy(Transfer),
    /// One value to several elements.
    Fill(Fill),
    /// Looks until a condition is true.
    Wait(Wait),
}

impl Command {
    /// Bits of the `OPCODES` register.
    pub fn opcodes() -> u64 {
        Opcode::ALL.iter().fold(0, |bits, (_, opcode)| bits | opcode.bit())
    }

    /// Bits of the `BULK_OPCODES` register: all atomics.
    pub fn bulk_opcodes() -> u64 {
        let atomics = Opcode::ALL.iter().filter(|(_, opcode)| AtomicOp::from_opcode(*opcode).is_some());
        atomics.fold(0, |bits, (_, opcode)| bits | opcode.bit())
    }
}

/// An element's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    W8,
    /// Four bytes.
    W32,
    /// Eight bytes.
    W64,
    /// Sixteen bytes.
    W128,
}

impl Width {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Width::W8 => 1,
            Width::W32 => 4,
            Width::W64 => 8,
            Width::W128 => 16,
        }
    }

    /// The width of that number, if this host has it: one of 128 bits needs an instruction that compares and
    /// swaps as much.
    pub fn from_log2(width: WidthLog2) -> Option<Self> {
        match width {
            WidthLog2::W8 => Some(Width::W8),
            WidthLog2::W32 => Some(Width::W32),
            WidthLog2::W64 => Some(Width::W64),
            WidthLog2::W128 => AtomicU128::is_lock_free().then_some(Width::W128),
            _ => None,
        }
    }

    /// Whether a value fits.
    pub const fn holds(self, value: u64) -> bool {
        match self {
            Width::W8 => value <= u8::MAX as u64,
            Width::W32 => value <= u32::MAX as u64,
            Width::W64 | Width::W128 => true,
        }
    }
}

/// An aligned element below 2^48.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Virtual address.
    pub va: u64,
    /// Bytes there.
    pub width: Width,
}

/// What an atomic does with an element (spec 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atomic {
    /// The operation.
    pub op: AtomicOp,
    /// With what.
    pub operand: Operand,
}

/// Operand of an atomic, zero-extended from the element's width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operand {
    /// The operand.
    pub value: u128,
    /// CAS: the compared value.
    pub compare: u128,
}

/// Operation of an atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "spec 5.2 says what each does, under the same names")]
pub enum AtomicOp {
    Add,
    And,
    Or,
    Xor,
    Umin,
    Umax,
    Smin,
    Smax,
    Swap,
    Cas,
    Fadd,
}

impl AtomicOp {
    /// Every operation, by number.
    pub const ALL: [AtomicOp; 11] = [
        AtomicOp::Add,
        AtomicOp::And,
        AtomicOp::Or,
        AtomicOp::Xor,
        AtomicOp::Umin,
        AtomicOp::Umax,
        AtomicOp::Smin,
        AtomicOp::Smax,
        AtomicOp::Swap,
        AtomicOp::Cas,
        AtomicOp::Fadd,
    ];

    /// The operation of an opcode, if it is an atomic's.
    pub const fn from_opcode(opcode: Opcode) -> Option<Self> {
        Some(match opcode {
            Opcode::FETCH_ADD => AtomicOp::Add,
            Opcode::FETCH_AND => AtomicOp::And,
            Opcode::FETCH_OR => AtomicOp::Or,
            Opcode::FETCH_XOR => AtomicOp::Xor,
            Opcode::FETCH_UMIN => AtomicOp::Umin,
            Opcode::FETCH_UMAX => AtomicOp::Umax,
            Opcode::FETCH_SMIN => AtomicOp::Smin,
            Opcode::FETCH_SMAX => AtomicOp::Smax,
            Opcode::SWAP => AtomicOp::Swap,
            Opcode::CAS => AtomicOp::Cas,
            Opcode::FETCH_FADD => AtomicOp::Fadd,
            _ => return None,
        })
    }

    /// Bytes of an operand in memory: a CAS has two values (spec 5.4).
    pub const fn operand_bytes(self, width: Width) -> u64 {
        if matches!(self, AtomicOp::Cas) { 2 * width.bytes() } else { width.bytes() }
    }
}

/// An atomic on `count` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bulk {
    /// What is done to each.
    pub op: AtomicOp,
    /// Width of each.
    pub width: Width,
    /// `addr`: a multiple of the width.
    pub base: u64,
    /// Elements.
    pub count: u32,
    /// Where they are.
    pub addressing: Addressing,
    /// What they are combined with.
    pub operands: Operands,
    /// Where their old values go, if they are stored: aligned to the width.
    pub old: Option<u64>,
}

/// Where bulk elements are (spec 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// Element *i* at `base + i * stride`.
    Stride(i32),
    /// Element *i* at `base + index[i] * width`.
    Indexed {
        /// Virtual address of the index array, aligned to its elements.
        array: u64,
        /// Width of an index.
        index: Width,
    },
}

/// Where the operands of bulk elements are (spec 5.4). Addresses are aligned to an operand's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// The same for all.
    Immediate(Operand),
    /// The same for all, at this virtual address.
    One(u64),
    /// One for each, in an array at this virtual address.
    Each(u64),
}

/// A COPY (spec 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Width of an element.
    pub width: Width,
    /// Elements.
    pub count: u32,
    /// Virtual address of the first to be read, aligned.
    pub source: u64,
    /// Virtual address of the first to be written, aligned.
    pub destination: u64,
}

impl Transfer {
    /// Whether the last element goes first, as the destination begins inside the source.
    pub fn backwards(&self) -> bool {
        let bytes = u64::from(self.count) * self.width.bytes();
        self.source < self.destination && self.destination - self.source < bytes
    }
}

/// A FILL (spec 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Width of an element.
    pub width: Width,
    /// Elements.
    pub count: u32,
    /// Virtual address of the first, aligned.
    pub destination: u64,
    /// What they become.
    pub value: u64,
}

/// A WAIT (spec 5.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The element that is looked at.
    pub target: Target,
    /// What must be true of it.
    pub condition: Condition,
    /// What it is compared with.
    pub compare: u64,
    /// Nanoseconds after which it is over, or [`svmx_abi::queue::WAIT_FOREVER`].
    pub time: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_backwards_only_into_itself() {
        let copy = |source, destination, count| Transfer { width: Width::W64, count, source, destination };
        assert!(copy(0x1000, 0x1008, 2).backwards());
        assert!(!copy(0x1000, 0x1010, 2).backwards() && !copy(0x1000, 0x1000, 2).backwards());
        assert!(!copy(0x1008, 0x1000, 2).backwards());
        assert!(copy(u64::MAX - 15, u64::MAX - 7, u32::MAX).backwards());
    }

    #[test]
    fn every_atomic_has_a_bulk_form() {
        assert_eq!(Command::bulk_opcodes(), 0x7ff << Opcode::FETCH_ADD.0);
    }
}
