// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands: a submission queue entry (spec 5) together with a share in the memory it reaches. Here are
//! those on a single element, COPY, FILL and WAIT; [`crate::bulk`] has the others.

use crate::element::{Bits, Element, Swappable, Unit, Word};
use crate::error::Error;
use crate::mapping::Mapping;
use crate::memory::{Place, SharedSlice};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use svmx_abi::queue::{Condition, Opcode, Sqe, WAIT_FOREVER};

/// What a command in flight keeps mapped.
pub(crate) type Keep = [Option<Arc<Mapping>>; 4];
/// In a [`Keep`]: the elements, or the destination of a COPY.
pub(crate) const ELEMENTS: usize = 0;
/// Indices.
pub(crate) const INDICES: usize = 1;
/// Operands, or the source of a COPY.
pub(crate) const OPERANDS: usize = 2;
/// Where old values are stored.
pub(crate) const OLD_VALUES: usize = 3;

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
            Self::scalar(Opcode::$opcode, place, value)
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
        Self::on(Opcode::READ, place)
    }

    integer_commands! {
        /// Stores `value`, without reading.
        write = WRITE;
        /// Adds `value`, wrapping. As with every atomic below, `result` has what was there before.
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
        Self::scalar(Opcode::FETCH_SMIN, place, T::of_signed(value))
    }

    /// The greater, two's complement.
    pub fn fetch_smax<T: Word>(place: Place<T>, value: T::Signed) -> Self {
        Self::scalar(Opcode::FETCH_SMAX, place, T::of_signed(value))
    }

    /// Adds to a binary32 or binary64 number, rounding to nearest even.
    pub fn fetch_fadd<T: Word>(place: Place<T>, value: T::Float) -> Self {
        Self::scalar(Opcode::FETCH_FADD, place, T::of_float(value))
    }

    /// Stores `new` if `compare` is there.
    pub fn compare_and_swap<T: Swappable>(place: Place<T>, compare: T, new: T) -> Self {
        let mut command = Self::scalar(Opcode::CAS, place, new);
        // Upper halves are zero below 128 bits, as they have to be (spec 5.4).
        (command.sqe.compare, command.sqe.arg1) = halves(compare);
        command.sqe.arg0 = halves(new).1;
        command
    }

    /// Copies `from[range]` to `to[at]` and what follows, as memmove does: they may overlap.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if one of them is outside its slice.
    pub fn copy<T: Unit>(
        from: &SharedSlice<T>,
        range: Range<usize>,
        to: &SharedSlice<T>,
        at: usize,
    ) -> Result<Self, Error> {
        let outside = |what, slice: &SharedSlice<T>| Error::OutOfBounds { what, len: slice.len() };
        let (source, count) = from.part(range).ok_or(outside("the source", from))?;
        let end = at.saturating_add(count as usize);
        let (addr, _) = to.part(at..end).ok_or(outside("the destination", to))?;
        let sqe = Sqe { opcode: Opcode::COPY, width: T::WIDTH, addr, count, arg0: source, ..Sqe::default() };
        let mut keep = Keep::default();
        keep[ELEMENTS] = Some(to.mapping.clone());
        keep[OPERANDS] = Some(from.mapping.clone());
        Ok(Command { sqe, keep })
    }

    /// Stores `value` in every element of `slice[range]`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the range is outside the slice.
    pub fn fill<T: Unit>(slice: &SharedSlice<T>, range: Range<usize>, value: T) -> Result<Self, Error> {
        let out = Error::OutOfBounds { what: "the range", len: slice.len() };
        let (addr, count) = slice.part(range).ok_or(out)?;
        let (operand, _) = halves(value);
        let sqe = Sqe { opcode: Opcode::FILL, width: T::WIDTH, addr, count, operand, ..Sqe::default() };
        let mut keep = Keep::default();
        keep[ELEMENTS] = Some(slice.mapping.clone());
        Ok(Command { sqe, keep })
    }

    /// Waits until the element compares true with `value`: it is on the left, `Ult` waits until it is less.
    /// Signed conditions take both for two's complement. After `timeout` it completes all the same, with
    /// TIMEOUT; `None` waits for ever. The completion's `result` is what was seen last.
    pub fn wait<T: Word>(place: Place<T>, condition: Condition, value: T, timeout: Option<Duration>) -> Self {
        let mut command = Self::on(Opcode::WAIT, place);
        (command.sqe.compare, _) = halves(value);
        let longest = WAIT_FOREVER - 1;
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(longest).min(longest);
        command.sqe.arg0 = timeout.map_or(WAIT_FOREVER, nanoseconds);
        command.sqe.arg1 = condition as u64;
        command
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
        Command { sqe: Sqe { opcode, ..Sqe::default() }, keep: Keep::default() }
    }

    fn scalar<T: Element>(opcode: Opcode, place: Place<T>, operand: T) -> Self {
        let mut command = Self::on(opcode, place);
        (command.sqe.operand, _) = halves(operand);
        command
    }

    fn on<T: Element>(opcode: Opcode, place: Place<T>) -> Self {
        let sqe = Sqe { opcode, width: T::WIDTH, addr: place.address, ..Sqe::default() };
        let mut keep = Keep::default();
        keep[ELEMENTS] = Some(place.mapping);
        Command { sqe, keep }
    }
}

/// A value's lower and upper 64 bits.
fn halves<T: Bits>(value: T) -> (u64, u64) {
    let bits = value.bits();
    (bits as u64, (bits >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use svmx_abi::queue::WidthLog2;

    #[test]
    fn carved_slices_never_overlap() {
        let mut memory = crate::SharedMemory::new(4096).unwrap();
        let bytes = memory.carve::<u8>(3).unwrap();
        let narrow = memory.carve::<u32>(3).unwrap();
        let wide = memory.carve::<u64>(510).unwrap();
        assert_eq!(narrow.address(0) - bytes.address(0), 4);
        assert_eq!(wide.address(0) - narrow.address(0), 12);
        assert!(memory.carve::<u32>(1).is_none());
    }

    #[test]
    fn operands_are_zero_extended() {
        let slice = SharedSlice::<u32>::zeroed(1).unwrap();
        assert_eq!(Command::fetch_smin(slice.at(0), -1).sqe.operand, 0xffff_ffff);
        assert_eq!(Command::fetch_fadd(slice.at(0), -0.0).sqe.operand, 0x8000_0000);
    }

    #[test]
    fn a_wide_cas_has_its_halves_in_four_fields() {
        let slice = SharedSlice::<u128>::of(&[7 << 64 | 5]).unwrap();
        assert_eq!(slice.load(0), 7 << 64 | 5);
        let sqe = Command::compare_and_swap(slice.at(0), 1 << 64 | 2, 3 << 64 | 4).sqe;
        assert_eq!(sqe.width, WidthLog2::W128);
        assert_eq!((sqe.operand, sqe.arg0, sqe.compare, sqe.arg1), (4, 3, 2, 1));
        let narrow = SharedSlice::<u64>::zeroed(1).unwrap();
        let sqe = Command::compare_and_swap(narrow.at(0), u64::MAX, u64::MAX - 1).sqe;
        assert_eq!((sqe.operand, sqe.arg0, sqe.compare, sqe.arg1), (u64::MAX - 1, 0, u64::MAX, 0));
    }

    #[test]
    fn copies_and_fills_stay_inside_and_keep_both_sides() {
        let (from, to) = (SharedSlice::<u8>::zeroed(10).unwrap(), SharedSlice::<u8>::zeroed(20).unwrap());
        let copy = Command::copy(&from, 2..10, &to, 12).unwrap();
        let Sqe { addr, arg0, count, width, .. } = copy.sqe;
        assert_eq!((addr, arg0, count, width), (to.address(12), from.address(2), 8, WidthLog2::W8));
        assert!(copy.keep[ELEMENTS].is_some() && copy.keep[OPERANDS].is_some());
        assert!(Command::copy(&from, 2..11, &to, 0).is_err());
        assert!(Command::copy(&from, 2..10, &to, 13).is_err());
        assert!(Command::copy(&from, 0..0, &to, usize::MAX).is_err());
        assert!(Command::fill(&to, 0..20, 1).is_ok() && Command::fill(&to, 1..21, 1).is_err());
    }

    #[test]
    fn only_a_wait_without_end_waits_for_ever() {
        let slice = SharedSlice::<u64>::zeroed(1).unwrap();
        let time = |timeout| Command::wait(slice.at(0), Condition::Slt, 9, timeout).sqe;
        assert_eq!(time(None).arg0, WAIT_FOREVER);
        assert_eq!(time(Some(Duration::MAX)).arg0, WAIT_FOREVER - 1);
        let sqe = time(Some(Duration::from_micros(3)));
        assert_eq!((sqe.arg0, sqe.arg1, sqe.compare, sqe.operand), (3000, 6, 9, 0));
    }
}
