// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands: a submission queue entry (spec 5) together with a share in the memory it reaches.

use crate::error::Error;
use crate::mapping::Mapping;
use crate::memory::{IndexArray, Place, SharedSlice, Word};
use std::ops::Range;
use std::sync::Arc;
use svmx_abi::queue::{Opcode, Sqe, SqeFlags};

/// What a command in flight keeps mapped: its elements, and its indices.
pub(crate) type Keep = [Option<Arc<Mapping>>; 2];

/// A command whose addresses have been checked against its memory. It can be submitted any number of
/// times.
#[derive(Debug, Clone)]
pub struct Command {
    pub(crate) sqe: Sqe,
    pub(crate) keep: Keep,
}

macro_rules! integer_commands {
    ($($(#[$doc:meta])* $name:ident = $opcode:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name<T: Word>(place: Place<T>, value: T) -> Self {
            Self::scalar(Opcode::$opcode, place, value.to_bits())
        }
    )*};
}

impl Command {
    /// Does nothing, and completes.
    pub fn nop() -> Self {
        Self::without_memory(Opcode::NOP)
    }

    /// Completes when every effect of the queue's earlier commands is visible (spec 10.5).
    pub fn fence() -> Self {
        Self::without_memory(Opcode::FENCE)
    }

    /// Reads an element; the completion's `result` has it.
    pub fn read<T: Word>(place: Place<T>) -> Self {
        Self::scalar(Opcode::READ, place, 0)
    }

    integer_commands! {
        /// Stores `value`, without reading.
        write = WRITE;
        /// Adds `value`, wrapping. As with every command below, `result` has what was there before.
        fetch_add = FETCH_ADD;
        /// Bitwise and.
        fetch_and = FETCH_AND;
        /// Bitwise or.
        fetch_or = FETCH_OR;
        /// Bitwise exclusive or.
        fetch_xor = FETCH_XOR;
        /// The lesser, unsigned.
        fetch_umin = FETCH_UMIN;
        /// The greater, unsigned.
        fetch_umax = FETCH_UMAX;
        /// Stores `value`.
        swap = SWAP;
    }

    /// The lesser, two's complement.
    pub fn fetch_smin<T: Word>(place: Place<T>, value: T::Signed) -> Self {
        Self::scalar(Opcode::FETCH_SMIN, place, T::signed_bits(value))
    }

    /// The greater, two's complement.
    pub fn fetch_smax<T: Word>(place: Place<T>, value: T::Signed) -> Self {
        Self::scalar(Opcode::FETCH_SMAX, place, T::signed_bits(value))
    }

    /// Adds to a binary32 or binary64 number, rounding to nearest even.
    pub fn fetch_fadd<T: Word>(place: Place<T>, value: T::Float) -> Self {
        Self::scalar(Opcode::FETCH_FADD, place, T::float_bits(value))
    }

    /// Stores `new` if `compare` is there.
    pub fn compare_and_swap<T: Word>(place: Place<T>, compare: T, new: T) -> Self {
        let mut command = Self::scalar(Opcode::CAS, place, new.to_bits());
        command.sqe.compare = compare.to_bits();
        command
    }

    /// Adds `value` to `count` elements: `first`, `first + step`, `first + 2 * step` and so on.
    /// `step` may be zero or negative.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if one of the elements is not in `slice`.
    pub fn fetch_add_strided<T: Word>(
        slice: &SharedSlice<T>,
        first: usize,
        step: i32,
        count: u32,
        value: T,
    ) -> Result<Self, Error> {
        let bad = Error::OutOfBounds { what: "the stride", len: slice.len() };
        let distance = i128::from(step) * i128::from(count.saturating_sub(1));
        let last = first as i128 + distance;
        let inside = |element: i128| (0..slice.len() as i128).contains(&element);
        let Some(stride) = step.checked_mul(T::BYTES as i32) else { return Err(bad) };
        if !inside(first as i128) || !inside(last) {
            return Err(bad);
        }
        let mut command = Self::scalar(Opcode::FETCH_ADD, slice.at(first), value.to_bits());
        command.sqe.flags = SqeFlags::BULK;
        command.sqe.count = count;
        command.sqe.stride = stride;
        Ok(command)
    }

    /// Adds `value` to the elements of `slice` that `indices[range]` name, in that order. An element
    /// that is named twice is added to twice.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if an index of the array, in `range` or not, is outside `slice`, or the range
    /// outside the array.
    pub fn fetch_add_indexed<T: Word, I: Word>(
        slice: &SharedSlice<T>,
        indices: &IndexArray<I>,
        range: Range<usize>,
        value: T,
    ) -> Result<Self, Error> {
        if indices.highest() >= slice.len() as u64 {
            return Err(Error::OutOfBounds { what: "an index", len: slice.len() });
        }
        let out = Error::OutOfBounds { what: "the range", len: indices.count() };
        let (index_addr, count) = indices.part(range).ok_or(out)?;
        let mut command = Self::scalar(Opcode::FETCH_ADD, slice.at(0), value.to_bits());
        let index64 = if I::BYTES == 8 { SqeFlags::INDEX64 } else { SqeFlags::default() };
        command.sqe.flags = SqeFlags::BULK.with(SqeFlags::INDEXED).with(index64);
        command.sqe.count = count;
        command.sqe.index_addr = index_addr;
        command.keep[1] = Some(indices.mapping().clone());
        Ok(command)
    }

    /// The same command with a tag, which its completion returns.
    #[must_use]
    pub fn tagged(mut self, tag: u32) -> Self {
        self.sqe.tag = tag;
        self
    }

    /// The entry that the device is given.
    pub fn entry(&self) -> &Sqe {
        &self.sqe
    }

    fn without_memory(opcode: Opcode) -> Self {
        Command { sqe: Sqe { opcode, ..Sqe::default() }, keep: [None, None] }
    }

    fn scalar<T: Word>(opcode: Opcode, place: Place<T>, operand: u64) -> Self {
        let sqe = Sqe { opcode, width: T::WIDTH, addr: place.address, operand, ..Sqe::default() };
        Command { sqe, keep: [Some(place.mapping), None] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stride_stays_inside() {
        let slice = SharedSlice::<u32>::zeroed(10).unwrap();
        let strided = |first, step, count| Command::fetch_add_strided(&slice, first, step, count, 1).is_ok();
        assert!(strided(0, 1, 10) && strided(9, -3, 4) && strided(5, 0, u32::MAX) && strided(9, 100, 1));
        assert!(strided(3, 1000, 0), "nothing is reached");
        assert!(!strided(0, 1, 11) && !strided(9, -3, 5) && !strided(10, 0, 1));
        assert!(!strided(0, i32::MAX, 2), "the stride in bytes does not fit");
        assert!(!strided(0, i32::MAX / 4, u32::MAX), "no wrap");
    }

    #[test]
    fn an_index_stays_inside() {
        let slice = SharedSlice::<u64>::zeroed(10).unwrap();
        let good = IndexArray::new(&[9u32, 0, 9]).unwrap();
        let bad = IndexArray::new(&[0u64, 10]).unwrap();
        let command = Command::fetch_add_indexed(&slice, &good, 1..3, 1).unwrap();
        assert_eq!((command.sqe.count, command.sqe.index_addr), (2, good.mapping().address(4)));
        assert!(Command::fetch_add_indexed(&slice, &good, 1..4, 1).is_err());
        assert!(Command::fetch_add_indexed(&slice, &bad, 0..1, 1).is_err());
    }

    #[test]
    fn carved_slices_never_overlap() {
        let mut memory = crate::SharedMemory::new(4096).unwrap();
        let narrow = memory.carve::<u32>(3).unwrap();
        let wide = memory.carve::<u64>(510).unwrap();
        assert_eq!(wide.address(0) - narrow.address(0), 16);
        assert!(memory.carve::<u32>(1).is_none());
    }

    #[test]
    fn operands_are_zero_extended() {
        let slice = SharedSlice::<u32>::zeroed(1).unwrap();
        assert_eq!(Command::fetch_smin(slice.at(0), -1).sqe.operand, 0xffff_ffff);
        assert_eq!(Command::fetch_fadd(slice.at(0), -0.0).sqe.operand, 0x8000_0000);
    }
}
