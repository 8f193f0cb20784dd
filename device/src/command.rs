// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Submission entries, parsed: raw bytes become a validated [`Command`] once (spec 5.9).
//!
//! What is checked here is never checked again. What can only be known when an element's turn comes
//! (the address of a bulk element) is left to [`crate::execute`].

use svmx_abi::pci::VA_END;
use svmx_abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx_abi::status::Status;

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
}

/// An element's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Four bytes.
    W32,
    /// Eight bytes.
    W64,
}

impl Width {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Width::W32 => 4,
            Width::W64 => 8,
        }
    }
    fn parse(width: WidthLog2) -> Option<Self> {
        match width {
            WidthLog2::W32 => Some(Width::W32),
            WidthLog2::W64 => Some(Width::W64),
            _ => None,
        }
    }
    fn holds(self, value: u64) -> bool {
        self == Width::W64 || value <= u64::from(u32::MAX)
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
    /// Its operand, in the low `width` bytes.
    pub operand: u64,
    /// CAS: the compared value.
    pub compare: u64,
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

/// An atomic on `count` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bulk {
    /// What is done to each.
    pub atomic: Atomic,
    /// Width of each.
    pub width: Width,
    /// `addr`: a multiple of the width.
    pub base: u64,
    /// Elements.
    pub count: u32,
    /// Where they are.
    pub addressing: Addressing,
}

/// Where bulk elements are (spec 5.5).
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

/// Why an entry is refused: its completion's status and `fault_addr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused with status {status:?}")]
pub struct Refusal {
    /// Status.
    pub status: Status,
    /// The address that it is about, or zero.
    pub va: u64,
}

impl Refusal {
    const fn new(status: Status, va: u64) -> Self {
        Refusal { status, va }
    }
}

impl Command {
    /// Bits of the `OPCODES` register.
    pub fn opcodes() -> u64 {
        Opcode::ALL.iter().fold(0, |bits, (_, opcode)| bits | opcode.bit())
    }
    /// Bits of the `BULK_OPCODES` register.
    pub fn bulk_opcodes() -> u64 {
        Opcode::FETCH_ADD.bit()
    }

    /// Validates an entry, in the order of spec 5.9.
    pub fn parse(sqe: &Sqe) -> Result<Self, Refusal> {
        let bulk = sqe.flags.contains(SqeFlags::BULK);
        let kind = Kind::parse(sqe.opcode).ok_or(Refusal::new(Status::BAD_OPCODE, 0))?;
        if bulk && sqe.opcode.bit() & Self::bulk_opcodes() == 0 {
            return Err(Refusal::new(Status::BAD_OPCODE, 0));
        }
        if let Kind::Plain(command) = kind {
            if sqe.width != WidthLog2(0) {
                return Err(Refusal::new(Status::BAD_WIDTH, 0));
            }
            check_fields(sqe, kind, Width::W64)?;
            return Ok(command);
        }
        let width = Width::parse(sqe.width).ok_or(Refusal::new(Status::BAD_WIDTH, 0))?;
        check_fields(sqe, kind, width)?;
        check_alignment(sqe, width)?;
        if !bulk && sqe.addr >= VA_END {
            return Err(Refusal::new(Status::ADDRESS_RANGE, sqe.addr));
        }
        let target = Target { va: sqe.addr, width };
        Ok(match kind {
            Kind::Plain(command) => command,
            Kind::Read => Command::Read(target),
            Kind::Write => Command::Write(target, sqe.operand),
            Kind::Atomic(op) => {
                let atomic = Atomic { op, operand: sqe.operand, compare: sqe.compare };
                if bulk {
                    Command::Bulk(parse_bulk(sqe, atomic, width))
                } else {
                    Command::Atomic(target, atomic)
                }
            }
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No width, no fields.
    Plain(Command),
    Read,
    Write,
    Atomic(AtomicOp),
}

impl Kind {
    fn parse(opcode: Opcode) -> Option<Self> {
        Some(match opcode {
            Opcode::NOP => Kind::Plain(Command::Nop),
            Opcode::FENCE => Kind::Plain(Command::Fence),
            Opcode::READ => Kind::Read,
            Opcode::WRITE => Kind::Write,
            Opcode::FETCH_ADD => Kind::Atomic(AtomicOp::Add),
            Opcode::FETCH_AND => Kind::Atomic(AtomicOp::And),
            Opcode::FETCH_OR => Kind::Atomic(AtomicOp::Or),
            Opcode::FETCH_XOR => Kind::Atomic(AtomicOp::Xor),
            Opcode::FETCH_UMIN => Kind::Atomic(AtomicOp::Umin),
            Opcode::FETCH_UMAX => Kind::Atomic(AtomicOp::Umax),
            Opcode::FETCH_SMIN => Kind::Atomic(AtomicOp::Smin),
            Opcode::FETCH_SMAX => Kind::Atomic(AtomicOp::Smax),
            Opcode::SWAP => Kind::Atomic(AtomicOp::Swap),
            Opcode::CAS => Kind::Atomic(AtomicOp::Cas),
            Opcode::FETCH_FADD => Kind::Atomic(AtomicOp::Fadd),
            _ => return None,
        })
    }
}

/// Flags belong together, and fields that the form does not use are zero (spec 5.4).
fn check_fields(sqe: &Sqe, kind: Kind, width: Width) -> Result<(), Refusal> {
    let bulk = sqe.flags.contains(SqeFlags::BULK);
    let indexed = sqe.flags.contains(SqeFlags::INDEXED);
    let flags_ok = sqe.flags.known()
        && (bulk || !indexed)
        && (indexed || !sqe.flags.contains(SqeFlags::INDEX64))
        && sqe.arg0 == 0
        && sqe.arg1 == 0;
    let operands_ok = match kind {
        Kind::Plain(_) => sqe.addr == 0 && sqe.operand == 0 && sqe.compare == 0,
        Kind::Read => sqe.operand == 0 && sqe.compare == 0,
        Kind::Atomic(AtomicOp::Cas) => width.holds(sqe.operand) && width.holds(sqe.compare),
        Kind::Write | Kind::Atomic(_) => width.holds(sqe.operand) && sqe.compare == 0,
    };
    let bulk_ok = (bulk || sqe.count == 0)
        && ((bulk && !indexed) || sqe.stride == 0)
        && (indexed || sqe.index_addr == 0);
    if flags_ok && operands_ok && bulk_ok { Ok(()) } else { Err(Refusal::new(Status::BAD_FLAGS, 0)) }
}

fn check_alignment(sqe: &Sqe, width: Width) -> Result<(), Refusal> {
    let misaligned = |va| Err(Refusal::new(Status::MISALIGNED, va));
    if !sqe.addr.is_multiple_of(width.bytes()) {
        return misaligned(sqe.addr);
    }
    if !u64::from(sqe.stride.unsigned_abs()).is_multiple_of(width.bytes()) {
        return misaligned(0);
    }
    if !sqe.index_addr.is_multiple_of(index_width(sqe).bytes()) {
        return misaligned(sqe.index_addr);
    }
    Ok(())
}

fn index_width(sqe: &Sqe) -> Width {
    if sqe.flags.contains(SqeFlags::INDEX64) { Width::W64 } else { Width::W32 }
}

fn parse_bulk(sqe: &Sqe, atomic: Atomic, width: Width) -> Bulk {
    let addressing = if sqe.flags.contains(SqeFlags::INDEXED) {
        Addressing::Indexed { array: sqe.index_addr, index: index_width(sqe) }
    } else {
        Addressing::Stride(sqe.stride)
    };
    Bulk { atomic, width, base: sqe.addr, count: sqe.count, addressing }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: Sqe = Sqe {
        opcode: Opcode::FETCH_ADD,
        width: WidthLog2::W64,
        flags: SqeFlags(0),
        tag: 1,
        addr: 0x1000,
        operand: 1,
        compare: 0,
        count: 0,
        stride: 0,
        index_addr: 0,
        arg0: 0,
        arg1: 0,
    };
    const BULK: Sqe = Sqe { flags: SqeFlags::BULK, count: 3, stride: -8, ..ADD };
    const INDEXED: Sqe =
        Sqe { flags: SqeFlags::BULK.with(SqeFlags::INDEXED), stride: 0, index_addr: 0x2004, ..BULK };

    fn refused(sqe: Sqe) -> (Status, u64) {
        let refusal = Command::parse(&sqe).unwrap_err();
        (refusal.status, refusal.va)
    }

    #[test]
    fn good_entries_are_taken() {
        let target = Target { va: 0x1000, width: Width::W64 };
        let add = Atomic { op: AtomicOp::Add, operand: 1, compare: 0 };
        assert_eq!(Command::parse(&ADD), Ok(Command::Atomic(target, add)));
        let Ok(Command::Bulk(bulk)) = Command::parse(&BULK) else { panic!() };
        assert_eq!((bulk.count, bulk.addressing), (3, Addressing::Stride(-8)));
        let Ok(Command::Bulk(bulk)) = Command::parse(&INDEXED) else { panic!() };
        assert_eq!(bulk.addressing, Addressing::Indexed { array: 0x2004, index: Width::W32 });
        assert_eq!(Command::parse(&Sqe::default()), Ok(Command::Nop));
        assert_eq!(Command::parse(&Sqe { opcode: Opcode::FENCE, ..Default::default() }), Ok(Command::Fence));
    }

    #[test]
    fn every_opcode_of_the_spec_is_taken_and_no_other() {
        for value in 0..=u8::MAX {
            let known = Opcode::ALL.iter().any(|(_, opcode)| opcode.0 == value);
            let opcode = Opcode(value);
            let parsed = Command::parse(&Sqe { opcode, ..Default::default() });
            assert_eq!(parsed != Err(Refusal::new(Status::BAD_OPCODE, 0)), known, "{value:#x}");
        }
    }

    #[test]
    fn checks_come_in_the_order_of_the_spec() {
        let (opcode, width, flags) = (Opcode(0x3f), WidthLog2(9), SqeFlags(0x8000));
        let mut worst = Sqe { opcode, width, flags, addr: VA_END + 1, ..ADD };
        assert_eq!(refused(worst), (Status::BAD_OPCODE, 0));
        worst.opcode = Opcode::FETCH_AND;
        assert_eq!(refused(worst), (Status::BAD_WIDTH, 0));
        worst.width = WidthLog2::W64;
        assert_eq!(refused(worst), (Status::BAD_FLAGS, 0));
        worst.flags = SqeFlags(0);
        assert_eq!(refused(worst), (Status::MISALIGNED, VA_END + 1));
        worst.addr = VA_END;
        assert_eq!(refused(worst), (Status::ADDRESS_RANGE, VA_END));
        worst.addr = VA_END - 8;
        assert!(Command::parse(&worst).is_ok());
    }

    #[test]
    fn only_bulk_opcodes_go_in_bulk() {
        assert_eq!(refused(Sqe { opcode: Opcode::SWAP, ..BULK }), (Status::BAD_OPCODE, 0));
        assert_eq!(refused(Sqe { opcode: Opcode::READ, operand: 0, ..BULK }), (Status::BAD_OPCODE, 0));
    }

    #[test]
    fn unused_fields_are_zero() {
        for sqe in [
            Sqe { compare: 1, ..ADD },
            Sqe { count: 1, ..ADD },
            Sqe { stride: 8, ..ADD },
            Sqe { index_addr: 8, ..ADD },
            Sqe { arg1: 1, ..ADD },
            Sqe { flags: SqeFlags::INDEXED, ..ADD },
            Sqe { flags: SqeFlags::INDEX64.with(SqeFlags::BULK), ..BULK },
            Sqe { index_addr: 8, ..BULK },
            Sqe { stride: 8, ..INDEXED },
            Sqe { width: WidthLog2::W32, operand: 1 << 32, ..ADD },
            Sqe { opcode: Opcode::READ, operand: 1, ..ADD },
            Sqe { width: WidthLog2(0), opcode: Opcode::NOP, ..ADD },
        ] {
            assert_eq!(refused(sqe), (Status::BAD_FLAGS, 0), "{sqe:?}");
        }
        assert_eq!(refused(Sqe { opcode: Opcode::NOP, ..ADD }), (Status::BAD_WIDTH, 0));
    }

    #[test]
    fn bulk_alignment() {
        assert_eq!(refused(Sqe { stride: 12, ..BULK }), (Status::MISALIGNED, 0));
        assert_eq!(refused(Sqe { index_addr: 0x2002, ..INDEXED }), (Status::MISALIGNED, 0x2002));
        let flags = INDEXED.flags.with(SqeFlags::INDEX64);
        assert_eq!(refused(Sqe { flags, ..INDEXED }), (Status::MISALIGNED, 0x2004));
        // Addresses of bulk elements are checked when their turn comes.
        assert!(Command::parse(&Sqe { addr: u64::MAX - 7, ..BULK }).is_ok());
    }
}
