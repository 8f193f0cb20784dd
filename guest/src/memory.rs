// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that CPU threads and the device change at the same time.
//!
//! | who | reads | writes | when |
//! |---|---|---|---|
//! | CPU threads | atomics | atomics | at any time |
//! | device | single accesses | single accesses, or read-modify-writes on pages it has exclusively | while a command on it is in flight |
//!
//! Nothing here talks to the driver: what makes the two sides atomic to each other is exclusive access
//! to the page (spec 11).

use crate::element::{Element, Item, Word};
use crate::error::Error;
use crate::mapping::Mapping;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;
use svmx_abi::pci::{PAGE_SIZE, page_base};

/// Private anonymous memory that slices are carved from, front to back, so that slices of different
/// widths can share a page and never a byte.
#[derive(Debug)]
pub struct SharedMemory {
    mapping: Arc<Mapping>,
    used: usize,
}

impl SharedMemory {
    /// Zeroed memory of at least `bytes` bytes, page-aligned.
    ///
    /// # Errors
    /// [`Error::Map`] if the system has none, or `bytes` is zero.
    pub fn new(bytes: usize) -> Result<Self, Error> {
        Ok(SharedMemory { mapping: Arc::new(Mapping::anonymous(bytes)?), used: 0 })
    }

    /// The next `len` elements, or `None` if that is more than is left.
    pub fn carve<T: Item>(&mut self, len: usize) -> Option<SharedSlice<T>> {
        let offset = self.used.next_multiple_of(T::BYTES);
        let end = len.checked_mul(T::BYTES)?.checked_add(offset)?;
        if end > self.mapping.len() {
            return None;
        }
        self.used = end;
        Some(SharedSlice { mapping: self.mapping.clone(), offset, len, element: PhantomData })
    }
}

/// Elements that CPU threads and the device share. Cloning clones the handle, not the memory.
///
/// It dereferences to a slice of atomics, such as `AtomicU32` of a `SharedSlice<u32>`; for `u128` and
/// [`Pair`](crate::Pair), of arrays of two.
#[derive(Debug, Clone)]
pub struct SharedSlice<T: Item> {
    pub(crate) mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Item> SharedSlice<T> {
    /// `len` zeroed elements in memory of their own, page-aligned.
    ///
    /// # Errors
    /// [`Error::Map`] if the system has none, or `len` is zero.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        let mut memory = SharedMemory::new(len.saturating_mul(T::BYTES))?;
        memory.carve(len).ok_or(Error::OutOfBounds { what: "the slice", len })
    }

    /// A copy of `values` in memory of its own, page-aligned.
    ///
    /// # Errors
    /// [`Error::Map`] if the system has none, or there are no values.
    pub fn of(values: &[T]) -> Result<Self, Error> {
        let slice = Self::zeroed(values.len())?;
        values.iter().zip(slice.iter()).for_each(|(value, to)| value.store(to));
        Ok(slice)
    }

    /// The element at `index`, by relaxed loads: one, or one for each atomic of its view.
    ///
    /// # Panics
    /// If `index` is out of bounds, as indexing does.
    pub fn load(&self, index: usize) -> T {
        T::load(&self[index])
    }

    /// Stores the element at `index`, by relaxed stores as in [`Self::load`].
    ///
    /// # Panics
    /// If `index` is out of bounds, as indexing does.
    pub fn store(&self, index: usize, value: T) {
        value.store(&self[index]);
    }

    /// The address of the element at `index`. One past the end, and beyond, are only numbers.
    pub fn address(&self, index: usize) -> u64 {
        self.mapping.address(self.offset).wrapping_add((index as u64).wrapping_mul(T::BYTES as u64))
    }

    /// The addresses of the pages that have the slice's elements, whole pages: other slices may have some of them too.
    pub fn pages(&self) -> Range<u64> {
        page_base(self.address(0))..page_base(self.address(self.len) + PAGE_SIZE - 1)
    }

    /// Address and number of the elements in `range`, if it is within the slice and a command can count them.
    pub(crate) fn part(&self, range: Range<usize>) -> Option<(u64, u32)> {
        if range.start > range.end || range.end > self.len {
            return None;
        }
        Some((self.address(range.start), u32::try_from(range.len()).ok()?))
    }
}

impl<T: Element> SharedSlice<T> {
    /// The element at `index`, as commands name it.
    ///
    /// # Panics
    /// If `index` is out of bounds, as indexing does.
    pub fn at(&self, index: usize) -> Place<T> {
        assert!(index < self.len, "element {index} of {}", self.len);
        Place { mapping: self.mapping.clone(), address: self.address(index), element: PhantomData }
    }
}

impl<T: Item> Deref for SharedSlice<T> {
    type Target = [T::Atomic];
    fn deref(&self) -> &Self::Target {
        self.mapping.atomics(self.offset, self.len)
    }
}

/// One element of a [`SharedSlice`], with a share in its memory.
#[derive(Debug, Clone)]
pub struct Place<T: Element> {
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) address: u64,
    element: PhantomData<T>,
}

/// Indices of a bulk command, in memory that the device reads and nobody writes any more.
///
/// The device reads indices while the command runs. Were they writable, a store to one after the
/// check would let the device reach any address of the process.
#[derive(Debug, Clone)]
pub struct IndexArray<I: Word> {
    slice: SharedSlice<I>,
    highest: u64,
}

impl<I: Word> IndexArray<I> {
    /// Copies `indices`.
    ///
    /// # Errors
    /// [`Error::Map`] if the system has no memory, or there are no indices.
    pub fn new(indices: &[I]) -> Result<Self, Error> {
        let slice = SharedSlice::of(indices)?;
        slice.mapping.freeze()?;
        let highest = indices.iter().map(|index| index.bits() as u64).max().unwrap_or(0);
        Ok(IndexArray { slice, highest })
    }

    /// The highest index.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Address and number of the indices in `range`, if it is within the array.
    pub(crate) fn part(&self, range: Range<usize>) -> Option<(u64, u32)> {
        self.slice.part(range)
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.slice.mapping
    }

    /// Number of indices.
    pub fn count(&self) -> usize {
        self.slice.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole_and_have_every_element() {
        let mut memory = SharedMemory::new(3 * PAGE_SIZE as usize).unwrap();
        let first = memory.carve::<u64>(512).unwrap();
        let second = memory.carve::<u32>(1).unwrap();
        let third = memory.carve::<u64>(512).unwrap();
        let base = first.address(0);
        assert_eq!(first.pages(), base..base + PAGE_SIZE);
        assert_eq!(second.pages(), base + PAGE_SIZE..base + 2 * PAGE_SIZE);
        assert_eq!(
            third.pages(),
            base + PAGE_SIZE..base + 3 * PAGE_SIZE,
            "part of it is on another slice's page"
        );
    }
}
