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

use crate::error::Error;
use crate::mapping::Mapping;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use svmx_abi::queue::WidthLog2;

mod sealed {
    pub trait Sealed: Sized {
        type Atomic: Sync;
        fn view(mapping: &super::Mapping, offset: usize, len: usize) -> &[Self::Atomic];
        fn to_bits(self) -> u64;
        fn signed_bits(value: Self::Signed) -> u64;
        fn float_bits(value: Self::Float) -> u64;
        type Signed;
        type Float;
    }
}
pub(crate) use sealed::Sealed;

/// An element that the device operates on: `u32` or `u64`.
pub trait Word: Sealed + Copy + Send + Sync + 'static {
    /// Its width, as commands say it.
    const WIDTH: WidthLog2;
    /// Its bytes.
    const BYTES: usize;
}

impl Sealed for u32 {
    type Atomic = AtomicU32;
    type Signed = i32;
    type Float = f32;
    fn view(mapping: &Mapping, offset: usize, len: usize) -> &[AtomicU32] {
        mapping.words32(offset, len)
    }
    fn to_bits(self) -> u64 {
        self.into()
    }
    fn signed_bits(value: i32) -> u64 {
        (value as u32).into()
    }
    fn float_bits(value: f32) -> u64 {
        value.to_bits().into()
    }
}
impl Word for u32 {
    const WIDTH: WidthLog2 = WidthLog2::W32;
    const BYTES: usize = 4;
}

impl Sealed for u64 {
    type Atomic = AtomicU64;
    type Signed = i64;
    type Float = f64;
    fn view(mapping: &Mapping, offset: usize, len: usize) -> &[AtomicU64] {
        mapping.words64(offset, len)
    }
    fn to_bits(self) -> u64 {
        self
    }
    fn signed_bits(value: i64) -> u64 {
        value as u64
    }
    fn float_bits(value: f64) -> u64 {
        value.to_bits()
    }
}
impl Word for u64 {
    const WIDTH: WidthLog2 = WidthLog2::W64;
    const BYTES: usize = 8;
}

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
    pub fn carve<T: Word>(&mut self, len: usize) -> Option<SharedSlice<T>> {
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
/// It dereferences to a slice of `AtomicU32` or `AtomicU64`.
#[derive(Debug, Clone)]
pub struct SharedSlice<T: Word> {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Word> SharedSlice<T> {
    /// `len` zeroed elements in memory of their own, page-aligned.
    ///
    /// # Errors
    /// [`Error::Map`] if the system has none, or `len` is zero.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        let mut memory = SharedMemory::new(len.saturating_mul(T::BYTES))?;
        memory.carve(len).ok_or(Error::OutOfBounds { what: "the slice", len })
    }

    /// The element at `index`, as commands name it.
    ///
    /// # Panics
    /// If `index` is out of bounds, as indexing does.
    pub fn at(&self, index: usize) -> Place<T> {
        assert!(index < self.len, "element {index} of {}", self.len);
        Place { mapping: self.mapping.clone(), address: self.address(index), element: PhantomData }
    }

    /// The address of the element at `index`. One past the end, and beyond, are only numbers.
    pub fn address(&self, index: usize) -> u64 {
        self.mapping.address(self.offset).wrapping_add((index as u64).wrapping_mul(T::BYTES as u64))
    }
}

impl<T: Word> Deref for SharedSlice<T> {
    type Target = [T::Atomic];
    fn deref(&self) -> &Self::Target {
        T::view(&self.mapping, self.offset, self.len)
    }
}

/// One element of a [`SharedSlice`], with a share in its memory.
#[derive(Debug, Clone)]
pub struct Place<T: Word> {
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
        let mapping = Mapping::anonymous(size_of_val(indices))?;
        let mut highest = 0;
        for (i, index) in indices.iter().enumerate() {
            let bits = index.to_bits();
            highest = highest.max(bits);
            match I::BYTES {
                4 => mapping.word32(4 * i).store(bits as u32, std::sync::atomic::Ordering::Relaxed),
                _ => mapping.word64(8 * i).store(bits, std::sync::atomic::Ordering::Relaxed),
            }
        }
        mapping.freeze()?;
        let mapping = Arc::new(mapping);
        Ok(IndexArray {
            slice: SharedSlice { mapping, offset: 0, len: indices.len(), element: PhantomData },
            highest,
        })
    }

    /// The highest index.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Address and number of the indices in `range`, if it is within the array.
    pub(crate) fn part(&self, range: Range<usize>) -> Option<(u64, u32)> {
        if range.start > range.end || range.end > self.slice.len {
            return None;
        }
        Some((self.slice.address(range.start), u32::try_from(range.len()).ok()?))
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.slice.mapping
    }

    /// Number of indices.
    pub fn count(&self) -> usize {
        self.slice.len
    }
}
