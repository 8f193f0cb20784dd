// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What one element becomes (spec 5.2), and when a WAIT is over (spec 5.7). Values are 128 bits wide here,
//! and only their low `bits` count. Not: where elements are, and whether they may be touched.

use svmx_abi::queue::{Condition, Opcode};

/// A value, and whether the specification says what it is: which NaN an addition results in, it doesn't.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) bits: u128,
    pub(crate) unspecified: bool,
}

impl From<u128> for Value {
    fn from(bits: u128) -> Self {
        Value { bits, unspecified: false }
    }
}

/// The element `m` after the command with operand `v`, both of `bytes` bytes.
pub(crate) fn after(opcode: Opcode, bytes: u32, m: Value, v: u128, compare: u128) -> Value {
    let new = match opcode {
        Opcode::WRITE | Opcode::FILL | Opcode::SWAP => v,
        Opcode::FETCH_FADD => return float_sum(bytes, m, v),
        _ => {
            assert!(!m.unspecified, "{opcode:?} on a NaN that nobody specified: the program is no test");
            let m = m.bits;
            match opcode {
                Opcode::FETCH_ADD => m.wrapping_add(v),
                Opcode::FETCH_AND => m & v,
                Opcode::FETCH_OR => m | v,
                Opcode::FETCH_XOR => m ^ v,
                Opcode::FETCH_UMIN => m.min(v),
                Opcode::FETCH_UMAX => m.max(v),
                Opcode::FETCH_SMIN if signed(bytes, v) < signed(bytes, m) => v,
                Opcode::FETCH_SMAX if signed(bytes, v) > signed(bytes, m) => v,
                Opcode::FETCH_SMIN | Opcode::FETCH_SMAX => m,
                Opcode::CAS if m == compare => v,
                Opcode::CAS => m,
                other => panic!("{other:?} changes no element"),
            }
        }
    };
    (new & mask(bytes)).into()
}

/// Whether the element `m` compares true with `compare`.
pub(crate) fn holds(condition: Condition, bytes: u32, m: u128, compare: u128) -> bool {
    let signed = |value| signed(bytes, value);
    match condition {
        Condition::Eq => m == compare,
        Condition::Ne => m != compare,
        Condition::Ult => m < compare,
        Condition::Ule => m <= compare,
        Condition::Ugt => m > compare,
        Condition::Uge => m >= compare,
        Condition::Slt => signed(m) < signed(compare),
        Condition::Sle => signed(m) <= signed(compare),
        Condition::Sgt => signed(m) > signed(compare),
        Condition::Sge => signed(m) >= signed(compare),
    }
}

/// All ones in the low `bytes` bytes.
pub(crate) fn mask(bytes: u32) -> u128 {
    u128::MAX >> (128 - 8 * bytes)
}

fn signed(bytes: u32, value: u128) -> i128 {
    let unused = 128 - 8 * bytes;
    ((value << unused) as i128) >> unused
}

fn float_sum(bytes: u32, m: Value, v: u128) -> Value {
    let (bits, nan) = if bytes == 4 {
        let sum = f32::from_bits(m.bits as u32) + f32::from_bits(v as u32);
        (sum.to_bits().into(), sum.is_nan())
    } else {
        let sum = f64::from_bits(m.bits as u64) + f64::from_bits(v as u64);
        (sum.to_bits().into(), sum.is_nan())
    };
    Value { bits, unspecified: nan }
}

#[test]
fn some_elements_by_hand() {
    let after = |opcode, bytes, m: u128, v, compare| after(opcode, bytes, m.into(), v, compare).bits;
    assert_eq!(after(Opcode::FETCH_ADD, 4, 0xffff_ffff, 2, 0), 1);
    assert_eq!(after(Opcode::FETCH_SMIN, 4, 0x7fff_ffff, 0x8000_0000, 0), 0x8000_0000);
    assert_eq!(after(Opcode::FETCH_SMAX, 8, u64::MAX.into(), 0, 0), 0);
    assert_eq!(after(Opcode::FETCH_UMAX, 8, u64::MAX.into(), 0, 0), u64::MAX.into());
    assert_eq!(after(Opcode::CAS, 16, 1 << 100, 7, 1 << 100), 7);
    assert_eq!(after(Opcode::CAS, 16, 1 << 100, 7, 1 << 101), 1 << 100);
    let (one, half) = (1.0f32.to_bits().into(), 0.5f32.to_bits().into());
    assert_eq!(after(Opcode::FETCH_FADD, 4, one, half, 0), 1.5f32.to_bits().into());
    // Halfway between two neighbours: to the even one.
    let (big, one) = (9_007_199_254_740_992.0f64, 1.0f64);
    assert_eq!(
        after(Opcode::FETCH_FADD, 8, big.to_bits().into(), one.to_bits().into(), 0),
        big.to_bits().into()
    );
    assert!(holds(Condition::Slt, 4, 0xffff_ffff, 0) && !holds(Condition::Ult, 4, 0xffff_ffff, 0));
    assert!(holds(Condition::Uge, 8, 5, 5) && !holds(Condition::Sgt, 8, 5, 5));
}
