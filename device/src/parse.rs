// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Submission entries, parsed: raw bytes become a validated [`Command`] once (spec 5.9).
//!
//! What is checked here is never checked again. What can only be known when an element's turn comes (its
//! address) is left to [`crate::work`].

use svmx_abi::pci::VA_END;
use svmx_abi::queue::{Condition, Opcode, Sqe, SqeFlags, WidthLog2};
use svmx_abi::status::Status;

use crate::command::{
    Addressing, Atomic, AtomicOp, Bulk, Command, Fill, Operand, Operands, Target, Transfer, Wait, Width,
};

/// Why an entry is refused: its completion's status and `fault_addr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused with status {status:?}")]
pub struct Refusal {
    /// Status.
    pub status: Status,
    /// The address that it is about, or zero.
    pub va: u64,
}

const BAD_FLAGS: Refusal = refusal(Status::BAD_FLAGS, 0);

const fn refusal(status: Status, va: u64) -> Refusal {
    Refusal { status, va }
}

impl Command {
    /// Validates an entry, in the order of spec 5.9.
    pub fn parse(sqe: &Sqe) -> Result<Self, Refusal> {
        let form = Form::parse(sqe)?;
        let width = form.width(sqe.width).ok_or(refusal(Status::BAD_WIDTH, 0))?;
        form.check_fields(sqe, width)?;
        form.check_alignment(sqe, width)?;
        if form.one_element() && sqe.addr >= VA_END {
            return Err(refusal(Status::ADDRESS_RANGE, sqe.addr));
        }
        form.command(sqe, width)
    }
}

/// The form of a command: what decides which fields it has (spec 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// No width, no fields.
    Plain(Command),
    Read,
    Write,
    Atomic(AtomicOp),
    Bulk(AtomicOp),
    Copy,
    Fill,
    Wait,
}

impl Form {
    fn parse(sqe: &Sqe) -> Result<Self, Refusal> {
        let bad_opcode = refusal(Status::BAD_OPCODE, 0);
        if sqe.flags.contains(SqeFlags::BULK) {
            return AtomicOp::from_opcode(sqe.opcode).map(Form::Bulk).ok_or(bad_opcode);
        }
        match sqe.opcode {
            Opcode::NOP => Ok(Form::Plain(Command::Nop)),
            Opcode::FENCE => Ok(Form::Plain(Command::Fence)),
            Opcode::READ => Ok(Form::Read),
            Opcode::WRITE => Ok(Form::Write),
            Opcode::COPY => Ok(Form::Copy),
            Opcode::FILL => Ok(Form::Fill),
            Opcode::WAIT => Ok(Form::Wait),
            opcode => AtomicOp::from_opcode(opcode).map(Form::Atomic).ok_or(bad_opcode),
        }
    }

    /// The width, if the opcode takes it; of a form without one, any.
    fn width(self, width: WidthLog2) -> Option<Width> {
        let parsed = Width::from_log2(width)?;
        let taken = match (self, parsed) {
            (Form::Plain(_), _) => width == WidthLog2(0),
            (_, Width::W32 | Width::W64) => true,
            (_, Width::W8) => matches!(self, Form::Copy | Form::Fill),
            (_, Width::W128) => matches!(self, Form::Atomic(AtomicOp::Cas) | Form::Bulk(AtomicOp::Cas)),
        };
        taken.then_some(parsed)
    }

    /// Whether the command is about the one element at `addr`.
    fn one_element(self) -> bool {
        matches!(self, Form::Read | Form::Write | Form::Atomic(_) | Form::Wait)
    }

    /// Flags belong together, values fit, and fields that the form does not use are zero.
    fn check_fields(self, sqe: &Sqe, width: Width) -> Result<(), Refusal> {
        let has = |flag| sqe.flags.contains(flag);
        let (bulk, indexed) = (matches!(self, Form::Bulk(_)), has(SqeFlags::INDEXED));
        let flags = sqe.flags.known()
            && (bulk || sqe.flags == SqeFlags::default())
            && (indexed || !has(SqeFlags::INDEX64));
        let counted = bulk || matches!(self, Form::Copy | Form::Fill);
        let places = (!matches!(self, Form::Plain(_)) || sqe.addr == 0)
            && (counted || sqe.count == 0)
            && (bulk && !indexed || sqe.stride == 0)
            && (indexed || sqe.index_addr == 0);
        let values = self.operand_fits(sqe, width) && self.compare_fits(sqe, width);
        if flags && places && values && self.arguments_fit(sqe, width) { Ok(()) } else { Err(BAD_FLAGS) }
    }

    fn operand_fits(self, sqe: &Sqe, width: Width) -> bool {
        match self {
            Form::Plain(_) | Form::Read | Form::Copy | Form::Wait => sqe.operand == 0,
            Form::Bulk(_) if self.operands_in_memory(sqe, width) => true,
            Form::Write | Form::Atomic(_) | Form::Bulk(_) | Form::Fill => width.holds(sqe.operand),
        }
    }

    fn compare_fits(self, sqe: &Sqe, width: Width) -> bool {
        let compares = match self {
            Form::Atomic(op) => op == AtomicOp::Cas,
            Form::Bulk(op) => op == AtomicOp::Cas && !self.operands_in_memory(sqe, width),
            _ => self == Form::Wait,
        };
        if compares { width.holds(sqe.compare) } else { sqe.compare == 0 }
    }

    fn arguments_fit(self, sqe: &Sqe, width: Width) -> bool {
        match self {
            Form::Atomic(AtomicOp::Cas) if width == Width::W128 => true,
            Form::Wait => Condition::from_number(sqe.arg1).is_some(),
            Form::Copy => sqe.arg1 == 0,
            Form::Bulk(_) => (sqe.flags.contains(SqeFlags::STORE_OLD) || sqe.arg0 == 0) && sqe.arg1 == 0,
            _ => sqe.arg0 == 0 && sqe.arg1 == 0,
        }
    }

    /// Whether `operand` is an address: with OPERANDS, and for values that have no room in an entry.
    fn operands_in_memory(self, sqe: &Sqe, width: Width) -> bool {
        matches!(self, Form::Bulk(_)) && (sqe.flags.contains(SqeFlags::OPERANDS) || width == Width::W128)
    }

    fn check_alignment(self, sqe: &Sqe, width: Width) -> Result<(), Refusal> {
        let operands = match self {
            Form::Bulk(op) if self.operands_in_memory(sqe, width) => op.operand_bytes(width),
            _ => 1,
        };
        let argument = if matches!(self, Form::Bulk(_) | Form::Copy) { width.bytes() } else { 1 };
        let addr = if matches!(self, Form::Plain(_)) { 1 } else { width.bytes() };
        // A misaligned stride is not an address: it is named as zero (spec 5.9).
        for (value, alignment, va) in [
            (sqe.addr, addr, sqe.addr),
            (sqe.stride.unsigned_abs().into(), width.bytes(), 0),
            (sqe.index_addr, index_width(sqe).bytes(), sqe.index_addr),
            (sqe.operand, operands, sqe.operand),
            (sqe.arg0, argument, sqe.arg0),
        ] {
            if !value.is_multiple_of(alignment) {
                return Err(refusal(Status::MISALIGNED, va));
            }
        }
        Ok(())
    }

    fn command(self, sqe: &Sqe, width: Width) -> Result<Command, Refusal> {
        let target = Target { va: sqe.addr, width };
        let count = sqe.count;
        Ok(match self {
            Form::Plain(command) => command,
            Form::Read => Command::Read(target),
            Form::Write => Command::Write(target, sqe.operand),
            Form::Atomic(op) => Command::Atomic(target, Atomic { op, operand: immediate(sqe, width) }),
            Form::Bulk(op) => Command::Bulk(self.bulk(sqe, op, width)),
            Form::Copy => Command::Copy(Transfer { width, count, source: sqe.arg0, destination: sqe.addr }),
            Form::Fill => Command::Fill(Fill { width, count, destination: sqe.addr, value: sqe.operand }),
            Form::Wait => {
                let condition = Condition::from_number(sqe.arg1).ok_or(BAD_FLAGS)?;
                Command::Wait(Wait { target, condition, compare: sqe.compare, time: sqe.arg0 })
            }
        })
    }

    fn bulk(self, sqe: &Sqe, op: AtomicOp, width: Width) -> Bulk {
        let addressing = if sqe.flags.contains(SqeFlags::INDEXED) {
            Addressing::Indexed { array: sqe.index_addr, index: index_width(sqe) }
        } else {
            Addressing::Stride(sqe.stride)
        };
        let operands = if sqe.flags.contains(SqeFlags::OPERANDS) {
            Operands::Each(sqe.operand)
        } else if self.operands_in_memory(sqe, width) {
            Operands::One(sqe.operand)
        } else {
            Operands::Immediate(immediate(sqe, width))
        };
        let old = sqe.flags.contains(SqeFlags::STORE_OLD).then_some(sqe.arg0);
        Bulk { op, width, base: sqe.addr, count: sqe.count, addressing, operands, old }
    }
}

fn index_width(sqe: &Sqe) -> Width {
    if sqe.flags.contains(SqeFlags::INDEX64) { Width::W64 } else { Width::W32 }
}

/// The operand that is in the entry itself, at 128 bits in two halves.
fn immediate(sqe: &Sqe, width: Width) -> Operand {
    let upper = |half| if width == Width::W128 { u128::from(half) << 64 } else { 0 };
    Operand {
        value: u128::from(sqe.operand) | upper(sqe.arg0),
        compare: u128::from(sqe.compare) | upper(sqe.arg1),
    }
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
    const EACH: Sqe = Sqe { flags: SqeFlags::BULK.with(SqeFlags::OPERANDS), operand: 0x3008, ..BULK };
    const OLD: Sqe = Sqe { flags: SqeFlags::BULK.with(SqeFlags::STORE_OLD), arg0: 0x4008, ..BULK };
    const CAS: Sqe = Sqe { opcode: Opcode::CAS, ..ADD };
    const CAS128: Sqe = Sqe { width: WidthLog2::W128, arg0: 2, compare: 3, arg1: 4, ..CAS };
    const COPY: Sqe = Sqe { opcode: Opcode::COPY, operand: 0, count: 5, arg0: 0x5000, ..ADD };
    const FILL: Sqe = Sqe { opcode: Opcode::FILL, count: 5, ..ADD };
    const WAIT: Sqe = Sqe { opcode: Opcode::WAIT, operand: 0, compare: 7, arg0: 1000, arg1: 9, ..ADD };

    fn refused(sqe: Sqe) -> (Status, u64) {
        let refusal = Command::parse(&sqe).unwrap_err();
        (refusal.status, refusal.va)
    }

    fn bulk(sqe: Sqe) -> Bulk {
        let Ok(Command::Bulk(bulk)) = Command::parse(&sqe) else { panic!("{sqe:?}") };
        bulk
    }

    #[test]
    fn good_entries_are_taken() {
        let target = Target { va: 0x1000, width: Width::W64 };
        let one = Operand { value: 1, compare: 0 };
        assert_eq!(
            Command::parse(&ADD),
            Ok(Command::Atomic(target, Atomic { op: AtomicOp::Add, operand: one }))
        );
        assert_eq!((bulk(BULK).count, bulk(BULK).addressing), (3, Addressing::Stride(-8)));
        let indexed = Addressing::Indexed { array: 0x2004, index: Width::W32 };
        assert_eq!((bulk(INDEXED).addressing, bulk(INDEXED).operands), (indexed, Operands::Immediate(one)));
        assert_eq!((bulk(EACH).operands, bulk(EACH).old), (Operands::Each(0x3008), None));
        assert_eq!(bulk(OLD).old, Some(0x4008));
        let copy = Transfer { width: Width::W64, count: 5, source: 0x5000, destination: 0x1000 };
        assert_eq!(Command::parse(&COPY), Ok(Command::Copy(copy)));
        let fill = Fill { width: Width::W8, count: 5, destination: 0x1001, value: 0xff };
        let sqe = Sqe { width: WidthLog2::W8, addr: 0x1001, operand: 0xff, ..FILL };
        assert_eq!(Command::parse(&sqe), Ok(Command::Fill(fill)));
        let wait = Wait { target, condition: Condition::Sge, compare: 7, time: 1000 };
        assert_eq!(Command::parse(&WAIT), Ok(Command::Wait(wait)));
        assert_eq!(Command::parse(&Sqe::default()), Ok(Command::Nop));
        assert_eq!(Command::parse(&Sqe { opcode: Opcode::FENCE, ..Default::default() }), Ok(Command::Fence));
    }

    #[test]
    fn values_of_128_bits_are_in_halves_or_in_memory() {
        let Ok(Command::Atomic(target, atomic)) = Command::parse(&CAS128) else { panic!() };
        assert_eq!(target.width, Width::W128);
        assert_eq!(atomic.operand, Operand { value: 1 | 2 << 64, compare: 3 | 4 << 64 });
        let many = Sqe { flags: SqeFlags::BULK, operand: 0x3020, compare: 0, arg0: 0, arg1: 0, ..CAS128 };
        assert_eq!(bulk(many).operands, Operands::One(0x3020));
        let each = Sqe { flags: EACH.flags, ..many };
        assert_eq!(bulk(each).operands, Operands::Each(0x3020));
        assert_eq!(refused(Sqe { operand: 0x3010, ..many }), (Status::MISALIGNED, 0x3010));
        assert_eq!(refused(Sqe { compare: 1, ..many }), (Status::BAD_FLAGS, 0));
    }

    #[test]
    fn every_opcode_of_the_spec_is_taken_and_no_other() {
        for value in 0..=u8::MAX {
            let known = Opcode::ALL.iter().any(|(_, opcode)| opcode.0 == value);
            let opcode = Opcode(value);
            for (flags, known) in
                [(SqeFlags(0), known), (SqeFlags::BULK, opcode.bit() & Command::bulk_opcodes() != 0)]
            {
                let parsed = Command::parse(&Sqe { opcode, flags, ..Default::default() });
                assert_eq!(parsed != Err(refusal(Status::BAD_OPCODE, 0)), known, "{value:#x} {flags:?}");
            }
        }
    }

    #[test]
    fn opcodes_take_the_widths_of_the_spec() {
        for (sqe, widths) in [
            (Sqe::default(), &[0][..]),
            (Sqe { operand: 0, opcode: Opcode::READ, ..ADD }, &[2, 3]),
            (ADD, &[2, 3]),
            (Sqe { opcode: Opcode::WRITE, ..ADD }, &[2, 3]),
            (CAS, &[2, 3, 4]),
            (COPY, &[0, 2, 3]),
            (FILL, &[0, 2, 3]),
            (WAIT, &[2, 3]),
        ] {
            for width in 0..=u8::MAX {
                let parsed = Command::parse(&Sqe { width: WidthLog2(width), ..sqe });
                let bad = parsed == Err(refusal(Status::BAD_WIDTH, 0));
                assert_eq!(!bad, widths.contains(&width), "{sqe:?} at {width}");
            }
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
        assert_eq!(refused(Sqe { addr: VA_END, ..WAIT }), (Status::ADDRESS_RANGE, VA_END));
    }

    #[test]
    fn unused_fields_are_zero() {
        for sqe in [
            Sqe { compare: 1, ..ADD },
            Sqe { count: 1, ..ADD },
            Sqe { stride: 8, ..ADD },
            Sqe { index_addr: 8, ..ADD },
            Sqe { arg0: 8, ..ADD },
            Sqe { arg1: 1, ..ADD },
            Sqe { arg0: 8, ..CAS },
            Sqe { flags: SqeFlags::INDEXED, ..ADD },
            Sqe { flags: SqeFlags::OPERANDS, ..ADD },
            Sqe { flags: SqeFlags::STORE_OLD, ..ADD },
            Sqe { flags: SqeFlags::INDEX64.with(SqeFlags::BULK), ..BULK },
            Sqe { index_addr: 8, ..BULK },
            Sqe { arg0: 8, ..BULK },
            Sqe { arg1: 8, ..OLD },
            Sqe { stride: 8, ..INDEXED },
            Sqe { compare: 1, opcode: Opcode::CAS, operand: 0x3010, ..EACH },
            Sqe { width: WidthLog2::W32, operand: 1 << 32, ..ADD },
            Sqe { width: WidthLog2::W8, operand: 0x100, ..FILL },
            Sqe { width: WidthLog2::W32, compare: 1 << 32, ..WAIT },
            Sqe { opcode: Opcode::READ, operand: 1, ..ADD },
            Sqe { arg1: 10, ..WAIT },
            Sqe { operand: 1, ..WAIT },
            Sqe { operand: 1, ..COPY },
            Sqe { stride: 8, ..COPY },
            Sqe { arg1: 1, ..COPY },
            Sqe { arg0: 1, ..FILL },
            Sqe { compare: 1, ..FILL },
            Sqe { addr: 8, ..Sqe::default() },
        ] {
            assert_eq!(refused(sqe), (Status::BAD_FLAGS, 0), "{sqe:?}");
        }
    }

    #[test]
    fn the_first_that_is_misaligned_is_named() {
        let flags = SqeFlags(0x1f);
        let mut worst = Sqe { flags, addr: 1, stride: 0, index_addr: 2, operand: 3, arg0: 4, ..BULK };
        assert_eq!(refused(worst), (Status::MISALIGNED, 1));
        worst.addr = 8;
        assert_eq!(refused(worst), (Status::MISALIGNED, 2));
        worst.index_addr = 8;
        assert_eq!(refused(worst), (Status::MISALIGNED, 3));
        worst.operand = 8;
        assert_eq!(refused(worst), (Status::MISALIGNED, 4));
        worst.arg0 = 8;
        assert!(Command::parse(&worst).is_ok());
        assert_eq!(refused(Sqe { opcode: Opcode::CAS, ..worst }), (Status::MISALIGNED, 8));
        assert_eq!(refused(Sqe { stride: 12, ..BULK }), (Status::MISALIGNED, 0));
        assert_eq!(refused(Sqe { arg0: 0x5004, ..COPY }), (Status::MISALIGNED, 0x5004));
        // Addresses of elements of several are checked when their turn comes.
        assert!(Command::parse(&Sqe { addr: u64::MAX - 7, ..BULK }).is_ok());
        assert!(Command::parse(&Sqe { arg0: u64::MAX - 7, addr: u64::MAX - 7, ..COPY }).is_ok());
    }
}
