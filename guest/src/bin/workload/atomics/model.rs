// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a command does to an element, computed by the CPU (spec 5.2).

use svmx::abi::queue::{Opcode, WidthLog2};

/// The element after the command. `old`, `operand` and `compare` are zero-extended.
pub(super) fn apply(opcode: Opcode, width: WidthLog2, old: u64, operand: u64, compare: u64) -> u64 {
    let (m, v) = (old, operand);
    if width == WidthLog2::W32 {
        let (m32, v32) = (m as u32, v as u32);
        let (signed, other) = (m32.cast_signed(), v32.cast_signed());
        return u64::from(match opcode {
            Opcode::FETCH_SMIN => signed.min(other).cast_unsigned(),
            Opcode::FETCH_SMAX => signed.max(other).cast_unsigned(),
            Opcode::FETCH_FADD => (f32::from_bits(m32) + f32::from_bits(v32)).to_bits(),
            _ => whole(opcode, m, v, compare) as u32,
        });
    }
    match opcode {
        Opcode::FETCH_SMIN => m.cast_signed().min(v.cast_signed()).cast_unsigned(),
        Opcode::FETCH_SMAX => m.cast_signed().max(v.cast_signed()).cast_unsigned(),
        Opcode::FETCH_FADD => (f64::from_bits(m) + f64::from_bits(v)).to_bits(),
        _ => whole(opcode, m, v, compare),
    }
}

/// Operations that are the same on a zero-extended element, but for the upper bits.
fn whole(opcode: Opcode, m: u64, v: u64, compare: u64) -> u64 {
    match opcode {
        Opcode::READ => m,
        Opcode::WRITE | Opcode::SWAP => v,
        Opcode::FETCH_ADD => m.wrapping_add(v),
        Opcode::FETCH_AND => m & v,
        Opcode::FETCH_OR => m | v,
        Opcode::FETCH_XOR => m ^ v,
        Opcode::FETCH_UMIN => m.min(v),
        Opcode::FETCH_UMAX => m.max(v),
        Opcode::CAS if m == compare => v,
        Opcode::CAS => m,
        _ => unreachable!("not an operation on an element"),
    }
}

/// What the completion's `result` is.
pub(super) fn result(opcode: Opcode, old: u64) -> u64 {
    if opcode == Opcode::WRITE { 0 } else { old }
}

/// Whether the result is a NaN, of which the spec does not say which.
pub(super) fn is_nan(width: WidthLog2, bits: u64) -> bool {
    match width {
        WidthLog2::W32 => f32::from_bits(bits as u32).is_nan(),
        _ => f64::from_bits(bits).is_nan(),
    }
}
