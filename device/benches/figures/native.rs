// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the device is compared with: the same work in plain native loops, on the same memory.
//!
//! Elements and indices are those that the device uses, through this process's own mapping of the same file,
//! with pages of the same size. Accesses are relaxed atomics, which compile to the plain instructions that a
//! loop over an array has, without letting the compiler keep an element in a register.

#![expect(unsafe_code, reason = "makes slices of guest memory, leaves out bounds checks, prefetches")]

use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mock_driver::Mock;

/// The work of one indexed bulk FETCH_ADD: elements, and which of them in which order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scatter<'m> {
    elements: &'m [AtomicU64],
    /// Each below the number of elements, and nobody stores to them any more.
    indices: &'m [AtomicU32],
}

/// How a loop prefetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefetch {
    /// Elements ahead.
    pub(crate) distance: usize,
    /// For a store, not only for a load.
    pub(crate) exclusive: bool,
}

impl<'m> Scatter<'m> {
    /// Stores `indices` at one place of guest memory, for the elements at another.
    pub(crate) fn new(mock: &'m Mock, elements: (u64, usize), index_array: u64, indices: &[u32]) -> Self {
        let (at, count) = elements;
        assert!(indices.iter().all(|&index| (index as usize) < count), "indices are in range");
        let bytes = |count: usize, width| (count * width) as u64;
        assert!(at.is_multiple_of(8) && mock.ram.contains(at, bytes(count, 8), true));
        assert!(
            index_array.is_multiple_of(4) && mock.ram.contains(index_array, bytes(indices.len(), 4), true)
        );
        let (first, first_index) = (mock.ram64(at).as_ptr(), mock.ram32(index_array).as_ptr());
        // SAFETY: guest memory of a mock driver is one mapping, which lives as long as `mock`; the words
        // are in it and aligned, and all that accesses them does so atomically.
        let elements = unsafe { std::slice::from_raw_parts(first.cast::<AtomicU64>(), count) };
        // SAFETY: as above.
        let array = unsafe { std::slice::from_raw_parts(first_index.cast::<AtomicU32>(), indices.len()) };
        for (place, index) in array.iter().zip(indices) {
            place.store(*index, Ordering::Relaxed);
        }
        Scatter { elements, indices: array }
    }

    /// How many additions there are.
    pub(crate) fn count(&self) -> usize {
        self.indices.len()
    }

    /// Sum of all elements.
    pub(crate) fn sum(&self) -> u64 {
        self.elements.iter().fold(0, |sum: u64, element| sum.wrapping_add(element.load(Ordering::Relaxed)))
    }

    #[inline(always)]
    fn element(&self, at: usize) -> &AtomicU64 {
        // SAFETY: callers count to `count()`; the indices were checked when they were stored, and nobody
        // changes them: the device has the array's pages with the permission to read only.
        unsafe {
            self.elements.get_unchecked(self.indices.get_unchecked(at).load(Ordering::Relaxed) as usize)
        }
    }

    #[inline(always)]
    fn prefetch<const HINT: i32>(&self, at: usize) {
        // SAFETY: a prefetch of any address has no effect that a program could see.
        unsafe { _mm_prefetch::<HINT>(std::ptr::from_ref(self.element(at)).cast()) }
    }

    /// Load, add, store; with software prefetch.
    pub(crate) fn plain(&self, operand: u64, prefetch: Prefetch) {
        if prefetch.exclusive {
            self.plain_with::<_MM_HINT_ET0>(operand, prefetch.distance);
        } else {
            self.plain_with::<_MM_HINT_T0>(operand, prefetch.distance);
        }
    }

    #[inline(never)]
    fn plain_with<const HINT: i32>(&self, operand: u64, distance: usize) {
        let add = |at| {
            let element = self.element(at);
            element.store(element.load(Ordering::Relaxed).wrapping_add(operand), Ordering::Relaxed);
        };
        let ahead = self.count().saturating_sub(distance);
        for at in 0..ahead {
            self.prefetch::<HINT>(at + distance);
            add(at);
        }
        (ahead..self.count()).for_each(add);
    }

    /// `lock xadd`, as the old value is used.
    #[inline(never)]
    pub(crate) fn xadd(&self, operand: u64) {
        let mut seen = 0u64;
        for at in 0..self.count() {
            seen = seen.wrapping_add(self.element(at).fetch_add(operand, Ordering::SeqCst));
        }
        black_box(seen);
    }

    /// `lock xadd` with software prefetch.
    #[inline(never)]
    pub(crate) fn xadd_prefetched(&self, operand: u64, distance: usize) {
        let mut seen = 0u64;
        let mut add = |at| seen = seen.wrapping_add(self.element(at).fetch_add(operand, Ordering::SeqCst));
        let ahead = self.count().saturating_sub(distance);
        for at in 0..ahead {
            self.prefetch::<_MM_HINT_ET0>(at + distance);
            add(at);
        }
        (ahead..self.count()).for_each(add);
        black_box(seen);
    }
}
