// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What memory that is shared with the device consists of: elements of the widths that commands take, and
//! pairs of them for CAS. Each has a view of atomics, through which CPU threads reach it.
//!
//! | type | seen by the CPU as | commands that take it |
//! |---|---|---|
//! | `u8` | `AtomicU8` | COPY, FILL |
//! | `u32`, `u64` | `AtomicU32`, `AtomicU64` | all |
//! | `u128` | two `AtomicU64`, the lower half first | CAS |
//! | [`Pair`] | two views of its element | bulk CAS, as operands |

use crate::mapping::Atomics;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use svmx_abi::queue::WidthLog2;

mod sealed {
    /// Keeps the implementations to this file, and hides what only the library calls.
    pub trait Sealed: Sized {
        type Atomic: super::Atomics;
        fn load(from: &Self::Atomic) -> Self;
        fn store(self, to: &Self::Atomic);
    }

    pub trait Bits: Sized {
        /// Zero-extended.
        fn bits(self) -> u128;
    }

    pub trait Numbers: Sized {
        type Signed;
        type Float;
        fn of_signed(value: Self::Signed) -> Self;
        fn of_float(value: Self::Float) -> Self;
    }
}
pub(crate) use sealed::{Bits, Numbers, Sealed};

/// What a [`SharedSlice`](crate::SharedSlice) can consist of: an [`Element`], or a [`Pair`].
pub trait Item: Sealed + Copy + Send + Sync + 'static {
    /// Its bytes, and its alignment.
    const BYTES: usize;
}

/// What a command can work on: `u8`, `u32`, `u64`, `u128`.
pub trait Element: Item + Bits {
    /// Its width, as commands say it.
    const WIDTH: WidthLog2;
}

/// An element of COPY and FILL: `u8`, `u32`, `u64`.
pub trait Unit: Element {}

/// An element of every atomic, and of READ, WRITE and WAIT: `u32`, `u64`.
pub trait Word: Unit + Swappable + Numbers {}

/// An element of CAS: `u32`, `u64`, `u128`.
pub trait Swappable: Element {}

/// What a bulk CAS with operands of its own takes for an element (spec 5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pair<T> {
    /// What the element is compared with.
    pub compare: T,
    /// What it becomes, if it was equal.
    pub new: T,
}

macro_rules! elements {
    ($($ty:ty, $atomic:ty, $width:ident;)*) => {$(
        impl Sealed for $ty {
            type Atomic = $atomic;
            fn load(from: &$atomic) -> $ty {
                from.load(Relaxed)
            }
            fn store(self, to: &$atomic) {
                to.store(self, Relaxed);
            }
        }
        elements!($ty, $width);
    )*};
    ($ty:ty, $width:ident) => {
        impl Bits for $ty {
            fn bits(self) -> u128 {
                self.into()
            }
        }
        impl Item for $ty {
            const BYTES: usize = size_of::<$ty>();
        }
        impl Element for $ty {
            const WIDTH: WidthLog2 = WidthLog2::$width;
        }
    };
}

elements! {
    u8, AtomicU8, W8;
    u32, AtomicU32, W32;
    u64, AtomicU64, W64;
}
elements!(u128, W128);

/// Two loads and two stores: a value that changes meanwhile may be seen half old, half new. The device has
/// the page to itself during a CAS, so to a CPU its accesses are two of 64 bits as well.
impl Sealed for u128 {
    type Atomic = [AtomicU64; 2];
    fn load([low, high]: &Self::Atomic) -> u128 {
        u128::from(low.load(Relaxed)) | u128::from(high.load(Relaxed)) << 64
    }
    fn store(self, [low, high]: &Self::Atomic) {
        low.store(self as u64, Relaxed);
        high.store((self >> 64) as u64, Relaxed);
    }
}

impl<T: Swappable> Sealed for Pair<T> {
    type Atomic = [T::Atomic; 2];
    fn load([compare, new]: &Self::Atomic) -> Self {
        Pair { compare: T::load(compare), new: T::load(new) }
    }
    fn store(self, [compare, new]: &Self::Atomic) {
        self.compare.store(compare);
        self.new.store(new);
    }
}
impl<T: Swappable> Item for Pair<T> {
    const BYTES: usize = 2 * T::BYTES;
}

impl Unit for u8 {}
impl Unit for u32 {}
impl Unit for u64 {}
impl Swappable for u32 {}
impl Swappable for u64 {}
impl Swappable for u128 {}
impl Word for u32 {}
impl Word for u64 {}

impl Numbers for u32 {
    type Signed = i32;
    type Float = f32;
    fn of_signed(value: i32) -> u32 {
        value.cast_unsigned()
    }
    fn of_float(value: f32) -> u32 {
        value.to_bits()
    }
}

impl Numbers for u64 {
    type Signed = i64;
    type Float = f64;
    fn of_signed(value: i64) -> u64 {
        value.cast_unsigned()
    }
    fn of_float(value: f64) -> u64 {
        value.to_bits()
    }
}
