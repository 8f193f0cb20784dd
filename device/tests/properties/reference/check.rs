// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which commands are refused before they begin, and with what (spec 5.2 to 5.4, 5.9). Not: what happens to
//! those that begin.

use svmx_abi::pci::VA_END;
use svmx_abi::queue::{Condition, Opcode, Sqe, SqeFlags};
use svmx_abi::status::Status;

/// Why a command ended: its status, and the address that the status is about, or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) status: Status,
    pub(crate) fault_addr: u64,
}

/// The table of spec 5.2: opcode, the binary logarithms of its widths in bytes, whether it has a bulk form.
const COMMANDS: [(Opcode, &[u8], bool); 18] = [
    (Opcode::NOP, &[0], false),
    (Opcode::FENCE, &[0], false),
    (Opcode::READ, &[2, 3], false),
    (Opcode::WRITE, &[2, 3], false),
    (Opcode::FETCH_ADD, &[2, 3], true),
    (Opcode::FETCH_AND, &[2, 3], true),
    (Opcode::FETCH_OR, &[2, 3], true),
    (Opcode::FETCH_XOR, &[2, 3], true),
    (Opcode::FETCH_UMIN, &[2, 3], true),
    (Opcode::FETCH_UMAX, &[2, 3], true),
    (Opcode::FETCH_SMIN, &[2, 3], true),
    (Opcode::FETCH_SMAX, &[2, 3], true),
    (Opcode::SWAP, &[2, 3], true),
    (Opcode::CAS, &[2, 3, 4], true),
    (Opcode::FETCH_FADD, &[2, 3], true),
    (Opcode::COPY, &[0, 2, 3], false),
    (Opcode::FILL, &[0, 2, 3], false),
    (Opcode::WAIT, &[2, 3], false),
];

/// The form of a command: what its fields mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form<'a>(pub(crate) &'a Sqe);

impl Form<'_> {
    fn has(self, flag: SqeFlags) -> bool {
        self.0.flags.contains(flag)
    }
    pub(crate) fn bulk(self) -> bool {
        self.has(SqeFlags::BULK)
    }
    pub(crate) fn indexed(self) -> bool {
        self.has(SqeFlags::INDEXED)
    }
    pub(crate) fn store_old(self) -> bool {
        self.has(SqeFlags::STORE_OLD)
    }
    /// Whether each element has its own operand.
    pub(crate) fn own_operands(self) -> bool {
        self.has(SqeFlags::OPERANDS)
    }
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> u32 {
        1 << self.0.width.0
    }
    /// Bytes of an index.
    pub(crate) fn index_bytes(self) -> u32 {
        if self.has(SqeFlags::INDEX64) { 8 } else { 4 }
    }
    pub(crate) fn is_cas(self) -> bool {
        self.0.opcode == Opcode::CAS
    }
    /// Whether this is a CAS at 128 bits.
    pub(crate) fn wide(self) -> bool {
        self.is_cas() && self.bytes() == 16
    }
    /// Whether operands are in memory.
    pub(crate) fn operands_in_memory(self) -> bool {
        self.own_operands() || (self.bulk() && self.wide())
    }
    /// Bytes of an operand in memory: of a CAS a pair.
    pub(crate) fn operand_bytes(self) -> u32 {
        if self.is_cas() { 2 * self.bytes() } else { self.bytes() }
    }
    pub(crate) fn is_nothing(self) -> bool {
        matches!(self.0.opcode, Opcode::NOP | Opcode::FENCE)
    }
    /// Whether the command has elements in the plural: their addresses are checked one by one.
    pub(crate) fn has_count(self) -> bool {
        self.bulk() || matches!(self.0.opcode, Opcode::COPY | Opcode::FILL)
    }
}

/// What is wrong with a command, first things first (spec 5.9).
pub(crate) fn check(sqe: &Sqe) -> Result<(), End> {
    let form = Form(sqe);
    let refused = |status| Err(End { status, fault_addr: 0 });
    let Some((_, widths, has_bulk)) = COMMANDS.iter().find(|(opcode, ..)| *opcode == sqe.opcode) else {
        return refused(Status::BAD_OPCODE);
    };
    if form.bulk() && !has_bulk {
        return refused(Status::BAD_OPCODE);
    }
    if !widths.contains(&sqe.width.0) {
        return refused(Status::BAD_WIDTH);
    }
    if !flags_go_together(form) || uses_an_unused_field(form) || has_no_condition(form) {
        return refused(Status::BAD_FLAGS);
    }
    if let Some(fault_addr) = misaligned(form) {
        return Err(End { status: Status::MISALIGNED, fault_addr });
    }
    if !form.has_count() && sqe.addr >= VA_END {
        return Err(End { status: Status::ADDRESS_RANGE, fault_addr: sqe.addr });
    }
    Ok(())
}

fn flags_go_together(form: Form<'_>) -> bool {
    let known = form.0.flags.0 & !0x1f == 0;
    let only_with_bulk = form.indexed() || form.own_operands() || form.store_old();
    let only_with_indexed = form.has(SqeFlags::INDEX64);
    known && (form.bulk() || !only_with_bulk) && (form.indexed() || !only_with_indexed)
}

/// Whether a bit is set that the form says must be zero (spec 5.4).
fn uses_an_unused_field(form: Form<'_>) -> bool {
    let (all, none, value) = (u64::MAX, 0, u64::MAX >> (64 - 8 * form.bytes().min(8)));
    let has = |used: bool| if used { all } else { none };
    let (operand, compare, arg0, arg1) = match form.0.opcode {
        Opcode::NOP | Opcode::FENCE | Opcode::READ => (none, none, none, none),
        Opcode::WRITE | Opcode::FILL => (value, none, none, none),
        Opcode::COPY => (none, none, all, none),
        Opcode::WAIT => (none, value, all, all),
        _ if form.operands_in_memory() => (all, none, has(form.store_old()), none),
        Opcode::CAS if form.bulk() => (value, value, has(form.store_old()), none),
        Opcode::CAS if form.wide() => (all, all, all, all),
        Opcode::CAS => (value, value, none, none),
        _ => (value, none, has(form.store_old()), none),
    };
    let Sqe { addr, count, stride, index_addr, .. } = *form.0;
    let used = [
        (addr, has(!form.is_nothing())),
        (form.0.operand, operand),
        (form.0.compare, compare),
        (count.into(), has(form.has_count())),
        (stride as u64, has(form.bulk() && !form.indexed())),
        (index_addr, has(form.indexed())),
        (form.0.arg0, arg0),
        (form.0.arg1, arg1),
    ];
    used.iter().any(|(field, may)| field & !may != 0)
}

fn has_no_condition(form: Form<'_>) -> bool {
    form.0.opcode == Opcode::WAIT && Condition::from_number(form.0.arg1).is_none()
}

/// What `fault_addr` says about the first thing that is misaligned, if any is.
fn misaligned(form: Form<'_>) -> Option<u64> {
    let Sqe { addr, stride, index_addr, operand, arg0, .. } = *form.0;
    let (bytes, last) = (form.bytes(), form.store_old() || form.0.opcode == Opcode::COPY);
    let in_order = [
        (!form.is_nothing(), addr, addr, bytes),
        (form.bulk() && !form.indexed(), 0, stride as u64, bytes),
        (form.indexed(), index_addr, index_addr, form.index_bytes()),
        (form.operands_in_memory(), operand, operand, form.operand_bytes()),
        (last, arg0, arg0, bytes),
    ];
    let bad = in_order.into_iter().find(|(used, _, value, bytes)| *used && value % u64::from(*bytes) != 0);
    bad.map(|(_, fault_addr, ..)| fault_addr)
}
