// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bulk commands (spec 5.5): first the elements, then what is done to each.
//!
//! ```no_run
//! # use svmx::{Error, IndexArray, Pair, SharedSlice};
//! # fn main() -> Result<(), Error> {
//! let counters = SharedSlice::<u64>::zeroed(1000)?;
//! let indices = IndexArray::new(&[7u32, 999, 7])?;
//! let before = SharedSlice::<u64>::zeroed(3)?;
//!
//! // One operand for all, and the old values stored.
//! let histogram = counters.indexed(&indices, 0..3)?.store_old(&before, 0)?.fetch_add(1);
//! // An operand for each: elements 0, 10 and 20 become the lesser of what they are and 5, 6 and 7.
//! let operands = SharedSlice::of(&[5, 6, 7])?;
//! let least = counters.strided(0, 10, 3)?.fetch_umin_each(&operands, 0)?;
//! // A compared value and a new one for each.
//! let pairs = SharedSlice::of(&[Pair { compare: 0, new: 1 }, Pair { compare: 0, new: 2 }])?;
//! let swap = counters.strided(500, -1, 2)?.compare_and_swap_each(&pairs, 0)?;
//! # Ok(())
//! # }
//! ```

use crate::command::{Command, ELEMENTS, INDICES, Keep, OLD_VALUES, OPERANDS};
use crate::element::{Item, Pair, Swappable, Word};
use crate::error::Error;
use crate::memory::{IndexArray, SharedSlice};
use std::marker::PhantomData;
use std::ops::Range;
use svmx_abi::queue::{Opcode, Sqe, SqeFlags};

/// The elements of a bulk command, in the order in which it is applied to them. An element that is there
/// twice is worked on twice.
#[derive(Debug, Clone)]
#[must_use]
pub struct Elements<T: Swappable> {
    sqe: Sqe,
    keep: Keep,
    element: PhantomData<T>,
}

impl<T: Swappable> SharedSlice<T> {
    /// `count` elements: `first`, `first + step`, `first + 2 * step` and so on. `step` may be zero or
    /// negative.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if one of them is not in the slice.
    pub fn strided(&self, first: usize, step: i32, count: u32) -> Result<Elements<T>, Error> {
        let bad = Error::OutOfBounds { what: "the stride", len: self.len() };
        let distance = i128::from(step) * i128::from(count.saturating_sub(1));
        let last = first as i128 + distance;
        let inside = |element: i128| (0..self.len() as i128).contains(&element);
        let Some(stride) = step.checked_mul(T::BYTES as i32) else { return Err(bad) };
        if !inside(first as i128) || !inside(last) {
            return Err(bad);
        }
        let mut elements = self.bulk(first, SqeFlags::BULK, count);
        elements.sqe.stride = stride;
        Ok(elements)
    }

    /// The elements that `indices[range]` name.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if an index of the array, in `range` or not, is outside the slice, or the range
    /// outside the array.
    pub fn indexed<I: Word>(
        &self,
        indices: &IndexArray<I>,
        range: Range<usize>,
    ) -> Result<Elements<T>, Error> {
        if indices.highest() >= self.len() as u64 {
            return Err(Error::OutOfBounds { what: "an index", len: self.len() });
        }
        let out = Error::OutOfBounds { what: "the range", len: indices.count() };
        let (index_addr, count) = indices.part(range).ok_or(out)?;
        let index64 = if I::BYTES == 8 { SqeFlags::INDEX64 } else { SqeFlags::default() };
        let flags = SqeFlags::BULK.with(SqeFlags::INDEXED).with(index64);
        let mut elements = self.bulk(0, flags, count);
        elements.sqe.index_addr = index_addr;
        elements.keep[INDICES] = Some(indices.mapping().clone());
        Ok(elements)
    }

    fn bulk(&self, first: usize, flags: SqeFlags, count: u32) -> Elements<T> {
        let sqe = Sqe { width: T::WIDTH, flags, addr: self.address(first), count, ..Sqe::default() };
        let mut keep = Keep::default();
        keep[ELEMENTS] = Some(self.mapping.clone());
        Elements { sqe, keep, element: PhantomData }
    }
}

impl<T: Swappable> Elements<T> {
    /// Stores every element's old value: that of the first at `into[first]`, and so on.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if they have no room in `into`.
    pub fn store_old(mut self, into: &SharedSlice<T>, first: usize) -> Result<Self, Error> {
        self.sqe.arg0 = self.array(into, first, "the old values")?;
        self.sqe.flags = self.sqe.flags.with(SqeFlags::STORE_OLD);
        self.keep[OLD_VALUES] = Some(into.mapping.clone());
        Ok(self)
    }

    /// Stores a value of its own in each element where another is: the first takes `pairs[first]`, and so on.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if there are too few pairs.
    pub fn compare_and_swap_each(self, pairs: &SharedSlice<Pair<T>>, first: usize) -> Result<Command, Error> {
        self.each(Opcode::CAS, pairs, first)
    }

    /// Where an array with something for each element begins.
    fn array<O: Item>(&self, array: &SharedSlice<O>, first: usize, what: &'static str) -> Result<u64, Error> {
        let range = first..first.saturating_add(self.sqe.count as usize);
        let (address, _) = array.part(range).ok_or(Error::OutOfBounds { what, len: array.len() })?;
        Ok(address)
    }

    fn each<O: Item>(
        mut self,
        opcode: Opcode,
        operands: &SharedSlice<O>,
        first: usize,
    ) -> Result<Command, Error> {
        self.sqe.operand = self.array(operands, first, "the operands")?;
        self.sqe.flags = self.sqe.flags.with(SqeFlags::OPERANDS);
        self.keep[OPERANDS] = Some(operands.mapping.clone());
        Ok(self.command(opcode))
    }

    fn command(mut self, opcode: Opcode) -> Command {
        self.sqe.opcode = opcode;
        Command { sqe: self.sqe, keep: self.keep }
    }
}

macro_rules! bulk_commands {
    ($($(#[$doc:meta])* $name:ident, $each:ident = $opcode:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(self, value: T) -> Command {
            self.one(Opcode::$opcode, value)
        }

        /// The same with an operand for each element: the first takes `operands[first]`, and so on.
        ///
        /// # Errors
        /// [`Error::OutOfBounds`] if there are too few operands.
        pub fn $each(self, operands: &SharedSlice<T>, first: usize) -> Result<Command, Error> {
            self.each(Opcode::$opcode, operands, first)
        }
    )*};
}

macro_rules! number_commands {
    ($($(#[$doc:meta])* $name:ident, $each:ident = $opcode:ident, $number:ident, $of:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(self, value: T::$number) -> Command {
            self.one(Opcode::$opcode, T::$of(value))
        }

        /// The same with an operand for each element, by its bits: the first takes `operands[first]`, and so
        /// on.
        ///
        /// # Errors
        /// [`Error::OutOfBounds`] if there are too few operands.
        pub fn $each(self, operands: &SharedSlice<T>, first: usize) -> Result<Command, Error> {
            self.each(Opcode::$opcode, operands, first)
        }
    )*};
}

impl<T: Word> Elements<T> {
    bulk_commands! {
        /// Adds `value` to each, wrapping.
        fetch_add, fetch_add_each = FETCH_ADD;
        /// Bitwise and.
        fetch_and, fetch_and_each = FETCH_AND;
        /// Bitwise or.
        fetch_or, fetch_or_each = FETCH_OR;
        /// Bitwise exclusive or.
        fetch_xor, fetch_xor_each = FETCH_XOR;
        /// The lesser, unsigned.
        fetch_umin, fetch_umin_each = FETCH_UMIN;
        /// The greater, unsigned.
        fetch_umax, fetch_umax_each = FETCH_UMAX;
        /// Stores `value` in each.
        swap, swap_each = SWAP;
    }

    number_commands! {
        /// The lesser, two's complement.
        fetch_smin, fetch_smin_each = FETCH_SMIN, Signed, of_signed;
        /// The greater, two's complement.
        fetch_smax, fetch_smax_each = FETCH_SMAX, Signed, of_signed;
        /// Adds to binary32 or binary64 numbers, rounding to nearest even.
        fetch_fadd, fetch_fadd_each = FETCH_FADD, Float, of_float;
    }

    /// Stores `new` in each element where `compare` is.
    pub fn compare_and_swap(mut self, compare: T, new: T) -> Command {
        self.sqe.compare = compare.bits() as u64;
        self.one(Opcode::CAS, new)
    }

    fn one(mut self, opcode: Opcode, value: T) -> Command {
        self.sqe.operand = value.bits() as u64;
        self.command(opcode)
    }
}

impl Elements<u128> {
    /// Compares and swaps every element with the same `pairs[index]`. It is read from there because an
    /// entry has no room for it.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if there is no such pair.
    pub fn compare_and_swap_with(
        mut self,
        pairs: &SharedSlice<Pair<u128>>,
        index: usize,
    ) -> Result<Command, Error> {
        let out = Error::OutOfBounds { what: "the pair", len: pairs.len() };
        let (address, _) = pairs.part(index..index.saturating_add(1)).ok_or(out)?;
        self.sqe.operand = address;
        self.keep[OPERANDS] = Some(pairs.mapping.clone());
        Ok(self.command(Opcode::CAS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use svmx_abi::queue::WidthLog2;

    #[test]
    fn a_stride_stays_inside() {
        let slice = SharedSlice::<u32>::zeroed(10).unwrap();
        let strided = |first, step, count| slice.strided(first, step, count).is_ok();
        assert!(strided(0, 1, 10) && strided(9, -3, 4) && strided(5, 0, u32::MAX) && strided(9, 100, 1));
        assert!(strided(3, 1000, 0), "nothing is reached");
        assert!(!strided(0, 1, 11) && !strided(9, -3, 5) && !strided(10, 0, 1));
        assert!(!strided(0, i32::MAX, 2), "the stride in bytes does not fit");
        assert!(!strided(0, i32::MAX / 4, u32::MAX), "no wrap");
        let wide = SharedSlice::<u128>::zeroed(3).unwrap();
        assert_eq!(wide.strided(2, -1, 3).unwrap().sqe.stride, -16);
    }

    #[test]
    fn an_index_stays_inside() {
        let slice = SharedSlice::<u64>::zeroed(10).unwrap();
        let good = IndexArray::new(&[9u32, 0, 9]).unwrap();
        let bad = IndexArray::new(&[0u64, 10]).unwrap();
        let command = slice.indexed(&good, 1..3).unwrap().fetch_add(1);
        assert_eq!((command.sqe.count, command.sqe.index_addr), (2, good.mapping().address(4)));
        assert!(slice.indexed(&good, 1..4).is_err());
        assert!(slice.indexed(&bad, 0..1).is_err());
    }

    #[test]
    fn arrays_have_something_for_each_element() {
        let slice = SharedSlice::<u32>::zeroed(10).unwrap();
        let array = SharedSlice::<u32>::zeroed(5).unwrap();
        let pairs = SharedSlice::<Pair<u32>>::zeroed(5).unwrap();
        let three = || slice.strided(0, 1, 3).unwrap();
        assert!(three().store_old(&array, 2).is_ok() && three().store_old(&array, 3).is_err());
        assert!(three().swap_each(&array, 2).is_ok() && three().swap_each(&array, 3).is_err());
        assert!(three().compare_and_swap_each(&pairs, 2).is_ok());
        assert!(three().compare_and_swap_each(&pairs, 3).is_err());
        assert!(three().swap_each(&array, usize::MAX).is_err(), "no wrap");
    }

    #[test]
    fn entries_are_what_the_spec_says() {
        let slice = SharedSlice::<u64>::zeroed(10).unwrap();
        let array = SharedSlice::<u64>::zeroed(10).unwrap();
        let pairs = SharedSlice::of(&[Pair { compare: 1u64, new: 2 }; 4]).unwrap();
        let elements = || slice.strided(9, -1, 4).unwrap();
        let base =
            Sqe { width: WidthLog2::W64, addr: slice.address(9), count: 4, stride: -8, ..Sqe::default() };
        let operands = SqeFlags::BULK.with(SqeFlags::OPERANDS);
        assert_eq!(
            elements().compare_and_swap(5, 6).sqe,
            Sqe { opcode: Opcode::CAS, flags: SqeFlags::BULK, operand: 6, compare: 5, ..base }
        );
        assert_eq!(
            elements().compare_and_swap_each(&pairs, 0).unwrap().sqe,
            Sqe { opcode: Opcode::CAS, flags: operands, operand: pairs.address(0), ..base }
        );
        assert_eq!(
            elements().store_old(&array, 6).unwrap().fetch_fadd_each(&array, 1).unwrap().sqe,
            Sqe {
                opcode: Opcode::FETCH_FADD,
                flags: operands.with(SqeFlags::STORE_OLD),
                operand: array.address(1),
                arg0: array.address(6),
                ..base
            }
        );
        assert_eq!(elements().fetch_smin(-1).sqe.operand, u64::MAX);
    }

    #[test]
    fn wide_bulk_operands_are_in_memory() {
        let slice = SharedSlice::<u128>::zeroed(4).unwrap();
        let pairs = SharedSlice::<Pair<u128>>::zeroed(2).unwrap();
        let elements = || slice.strided(0, 1, 2).unwrap();
        let one = elements().compare_and_swap_with(&pairs, 1).unwrap();
        assert_eq!((one.sqe.flags, one.sqe.operand), (SqeFlags::BULK, pairs.address(1)));
        assert!(one.sqe.operand.is_multiple_of(32) && one.sqe.addr.is_multiple_of(16));
        assert!(elements().compare_and_swap_with(&pairs, 2).is_err());
        assert!(elements().compare_and_swap_each(&pairs, 0).unwrap().sqe.flags.contains(SqeFlags::OPERANDS));
    }

    #[test]
    fn a_command_keeps_every_array() {
        let command = {
            let slice = SharedSlice::<u32>::zeroed(2).unwrap();
            let indices = IndexArray::new(&[1u64, 0]).unwrap();
            let (old, operands) = (SharedSlice::zeroed(2).unwrap(), SharedSlice::zeroed(2).unwrap());
            let elements = slice.indexed(&indices, 0..2).unwrap().store_old(&old, 0).unwrap();
            elements.fetch_xor_each(&operands, 0).unwrap()
        };
        let kept = |address: u64| command.keep.iter().flatten().any(|map| map.address(0) == address);
        let Sqe { addr, operand, index_addr, arg0, .. } = command.sqe;
        assert!([addr, operand, index_addr, arg0].into_iter().all(kept));
    }
}
