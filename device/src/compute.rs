// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is done with a word of memory (spec 5.2, 5.7): loads, stores, the operations of atomics by the device
//! itself and by the host's instructions, comparisons. Where the word is, and who else may be at it, is for
//! [`crate::execute`].

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use portable_atomic::AtomicU128;
use svmx_abi::queue::Condition;

use crate::command::{AtomicOp, Width};
use crate::memory::Page;

/// A value of a width that commands have.
pub(crate) trait Word: Copy + PartialEq {
    /// The value that `self` is, zero-extended.
    fn widen(self) -> u128;
    /// The low bits of a value.
    fn narrow(value: u128) -> Self;
    /// Loads the word at `va`; acquires (spec 10.1).
    fn load(page: Page<'_>, va: u64) -> Self;
    /// Stores the word at `va`; releases (spec 10.1).
    fn store(self, page: Page<'_>, va: u64);
}

/// A word that atomics work on.
pub(crate) trait Element: Word {
    /// What `self` becomes (spec 5.2).
    fn compute(self, op: AtomicOp, operand: Self, compare: Self) -> Self;
    /// One atomic instruction of the host on the word at `va`; what it was. `None`: nothing was done, because
    /// somebody else has changed the word at each of [`TRIES`] compare-and-swaps.
    fn coherent(page: Page<'_>, va: u64, op: AtomicOp, operand: Self, compare: Self) -> Option<Self>;
}

/// Compare-and-swaps that one call of [`Element::coherent`] makes at most. Who calls looks at the log of
/// invalidations before it calls again, so a CPU that hammers a word holds up no SYNC. A REPLAY has this many.
const TRIES: u32 = 64;

/// Changes a word that was `seen`, with compare-and-swaps that tell what is there if they fail; what it was.
#[inline(always)]
fn change<W: Copy>(
    mut seen: W,
    new: impl Fn(W) -> W,
    mut exchange: impl FnMut(W, W) -> Result<W, W>,
) -> Option<W> {
    for _ in 0..TRIES {
        match exchange(seen, new(seen)) {
            Ok(old) => return Some(old),
            Err(now) => seen = now,
        }
    }
    None
}

macro_rules! word {
    ($ty:ty, $word:ident) => {
        impl Word for $ty {
            #[inline(always)]
            fn widen(self) -> u128 {
                self.into()
            }
            #[inline(always)]
            fn narrow(value: u128) -> Self {
                value as $ty
            }
            #[inline(always)]
            fn load(page: Page<'_>, va: u64) -> Self {
                page.$word(va).load(Ordering::Acquire)
            }
            #[inline(always)]
            fn store(self, page: Page<'_>, va: u64) {
                page.$word(va).store(self, Ordering::Release);
            }
        }
    };
}

word!(u8, word8);
word!(u32, word32);
word!(u64, word64);

impl Word for u128 {
    fn widen(self) -> u128 {
        self
    }
    fn narrow(value: u128) -> Self {
        value
    }
    /// In two halves: only a CAS on a coherent page is one access (spec 10.1).
    fn load(page: Page<'_>, va: u64) -> Self {
        let lower = u64::load(page, va);
        u128::from(lower) | u128::from(u64::load(page, va | 8)) << 64
    }
    fn store(self, page: Page<'_>, va: u64) {
        (self as u64).store(page, va);
        ((self >> 64) as u64).store(page, va | 8);
    }
}

macro_rules! element {
    ($ty:ty, $word:ident, $atomic:ty, $signed:ty, $float:ty) => {
        impl Element for $ty {
            #[inline(always)]
            fn compute(self, op: AtomicOp, operand: Self, compare: Self) -> Self {
                match op {
                    AtomicOp::Add => self.wrapping_add(operand),
                    AtomicOp::And => self & operand,
                    AtomicOp::Or => self | operand,
                    AtomicOp::Xor => self ^ operand,
                    AtomicOp::Umin => self.min(operand),
                    AtomicOp::Umax => self.max(operand),
                    AtomicOp::Smin => (self as $signed).min(operand as $signed) as $ty,
                    AtomicOp::Smax => (self as $signed).max(operand as $signed) as $ty,
                    AtomicOp::Swap => operand,
                    AtomicOp::Cas if self == compare => operand,
                    AtomicOp::Cas => self,
                    AtomicOp::Fadd => (<$float>::from_bits(self) + <$float>::from_bits(operand)).to_bits(),
                }
            }

            #[inline]
            fn coherent(page: Page<'_>, va: u64, op: AtomicOp, operand: Self, compare: Self) -> Option<Self> {
                const ORDER: Ordering = Ordering::SeqCst;
                let word: &$atomic = page.$word(va);
                match op {
                    AtomicOp::Add => Some(word.fetch_add(operand, ORDER)),
                    AtomicOp::Swap => Some(word.swap(operand, ORDER)),
                    AtomicOp::Cas => match word.compare_exchange(compare, operand, ORDER, ORDER) {
                        Ok(old) | Err(old) => Some(old),
                    },
                    // x86 has no instruction for these that says what was there: `fetch_or` is a loop without
                    // an end as well.
                    _ => change(
                        word.load(Ordering::Relaxed),
                        |old| old.compute(op, operand, compare),
                        |old, new| word.compare_exchange_weak(old, new, ORDER, ORDER),
                    ),
                }
            }
        }
    };
}

element!(u32, word32, AtomicU32, i32, f32);
element!(u64, word64, AtomicU64, i64, f64);

/// CAS is the only atomic at 128 bits: [`crate::parse`] lets no other through.
impl Element for u128 {
    fn compute(self, _: AtomicOp, operand: Self, compare: Self) -> Self {
        if self == compare { operand } else { self }
    }
    fn coherent(page: Page<'_>, va: u64, _: AtomicOp, operand: Self, compare: Self) -> Option<Self> {
        let word: &AtomicU128 = page.word128(va);
        match word.compare_exchange(compare, operand, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(old) | Err(old) => Some(old),
        }
    }
}

/// Whether a condition is true of an element and what it is compared with (spec 5.7).
pub(crate) fn holds(condition: Condition, width: Width, element: u64, other: u64) -> bool {
    let signed = |value: u64| if width == Width::W32 { i64::from(value as i32) } else { value as i64 };
    match condition {
        Condition::Eq => element == other,
        Condition::Ne => element != other,
        Condition::Ult => element < other,
        Condition::Ule => element <= other,
        Condition::Ugt => element > other,
        Condition::Uge => element >= other,
        Condition::Slt => signed(element) < signed(other),
        Condition::Sle => signed(element) <= signed(other),
        Condition::Sgt => signed(element) > signed(other),
        Condition::Sge => signed(element) >= signed(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_widths() {
        assert_eq!(1u32.compute(AtomicOp::Smin, u32::MAX, 0), u32::MAX);
        assert_eq!(1u32.compute(AtomicOp::Umin, u32::MAX, 0), 1);
        assert_eq!(1u64.compute(AtomicOp::Smin, u32::MAX.into(), 0), 1);
        assert_eq!(u32::MAX.compute(AtomicOp::Smax, 1, 0), 1);
        assert_eq!(u32::MAX.compute(AtomicOp::Add, 1, 0), 0);
        assert_eq!(2.0f64.to_bits().compute(AtomicOp::Fadd, 1.5f64.to_bits(), 0), 3.5f64.to_bits());
    }

    #[test]
    fn a_word_that_others_hammer_is_given_up_after_a_while() {
        let mut tries = 0;
        let hammered = change(
            0u32,
            |old| old | 1,
            |seen, _| {
                tries += 1;
                Err(seen + 2)
            },
        );
        assert_eq!((hammered, tries), (None, TRIES));
        // Otherwise it is changed once, from what was seen last.
        let mut word = 8u32;
        let mut exchange =
            |seen, new| if seen == word { Ok(std::mem::replace(&mut word, new)) } else { Err(word) };
        assert_eq!(change(0, |old| old | 1, &mut exchange), Some(8));
        assert_eq!(word, 9);
    }

    #[test]
    fn a_cas_looks_at_every_bit() {
        let (low, high) = (7u128, 7u128 | 1 << 64);
        assert_eq!(low.compute(AtomicOp::Cas, 1, high), low);
        assert_eq!(high.compute(AtomicOp::Cas, 1, high), 1);
        assert_eq!(7u64.compute(AtomicOp::Cas, 1, 8), 7);
    }

    #[test]
    fn conditions_have_signs() {
        let (minus, one) = (u64::from(u32::MAX), 1);
        assert!(
            holds(Condition::Slt, Width::W32, minus, one) && !holds(Condition::Slt, Width::W64, minus, one)
        );
        assert!(
            holds(Condition::Ugt, Width::W32, minus, one) && holds(Condition::Sge, Width::W64, minus, one)
        );
        for (condition, less, equal, greater) in [
            (Condition::Eq, false, true, false),
            (Condition::Ne, true, false, true),
            (Condition::Ult, true, false, false),
            (Condition::Ule, true, true, false),
            (Condition::Ugt, false, false, true),
            (Condition::Uge, false, true, true),
            (Condition::Slt, true, false, false),
            (Condition::Sle, true, true, false),
            (Condition::Sgt, false, false, true),
            (Condition::Sge, false, true, true),
        ] {
            let all = [4, 5, 6].map(|element| holds(condition, Width::W64, element, 5));
            assert_eq!(all, [less, equal, greater], "{condition:?}");
        }
    }
}
