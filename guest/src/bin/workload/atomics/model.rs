// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a command does to an element, computed by the CPU (spec 5.2 and 5.7).

use svmx::Condition;
use svmx::abi::queue::{Opcode, WidthLog2};

/// The greatest value of the width.
pub(super) fn greatest(width: WidthLog2) -> u128 {
    u128::MAX >> (128 - (8 << width.0))
}

/// The element after the command. `old`, `operand` and `compare` are zero-extended.
pub(super) fn apply(opcode: Opcode, width: WidthLog2, old: u128, operand: u128, compare: u128) -> u128 {
    let (m, v) = (old, operand);
    match opcode {
        Opcode::READ => m,
        Opcode::WRITE | Opcode::SWAP => v,
        Opcode::FETCH_ADD => m.wrapping_add(v) & greatest(width),
        Opcode::FETCH_AND => m & v,
        Opcode::FETCH_OR => m | v,
        Opcode::FETCH_XOR => m ^ v,
        Opcode::FETCH_UMIN => m.min(v),
        Opcode::FETCH_UMAX => m.max(v),
        Opcode::FETCH_SMIN if signed(width, m) < signed(width, v) => m,
        Opcode::FETCH_SMIN => v,
        Opcode::FETCH_SMAX if signed(width, m) > signed(width, v) => m,
        Opcode::FETCH_SMAX => v,
        Opcode::CAS if m == compare => v,
        Opcode::CAS => m,
        Opcode::FETCH_FADD if width == WidthLog2::W32 => {
            (f32::from_bits(m as u32) + f32::from_bits(v as u32)).to_bits().into()
        }
        Opcode::FETCH_FADD => (f64::from_bits(m as u64) + f64::from_bits(v as u64)).to_bits().into(),
        _ => unreachable!("not an operation on an element"),
    }
}

/// Two's complement.
fn signed(width: WidthLog2, bits: u128) -> i128 {
    let unused = 128 - (8 << width.0);
    (bits << unused).cast_signed() >> unused
}

/// What the completion's `result` is.
pub(super) fn result(opcode: Opcode, old: u128) -> u128 {
    if opcode == Opcode::WRITE { 0 } else { old }
}

/// Whether a WAIT for `condition` with the value `v` ends when it sees `m`.
pub(super) fn holds(condition: Condition, width: WidthLog2, m: u128, v: u128) -> bool {
    let (sm, sv) = (signed(width, m), signed(width, v));
    match condition {
        Condition::Eq => m == v,
        Condition::Ne => m != v,
        Condition::Ult => m < v,
        Condition::Ule => m <= v,
        Condition::Ugt => m > v,
        Condition::Uge => m >= v,
        Condition::Slt => sm < sv,
        Condition::Sle => sm <= sv,
        Condition::Sgt => sm > sv,
        Condition::Sge => sm >= sv,
    }
}

/// Whether the result is a NaN, of which the spec does not say which.
pub(super) fn is_nan(width: WidthLog2, bits: u128) -> bool {
    match width {
        WidthLog2::W32 => f32::from_bits(bits as u32).is_nan(),
        _ => f64::from_bits(bits as u64).is_nan(),
    }
}
