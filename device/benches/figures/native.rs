// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the device is compared with: the same work in plain native loops, on the same memory.
//!
//! Elements and indices are those that the device uses, through this process's own mapping of the same file,
//! with pages of the same size. Accesses are relaxed atomics, which compile to the plain instructions that a
//! loop over an array has, without letting the compiler keep an element in a register.

#![expect(unsafe_code, reason = "makes slices of guest memory, leaves out bounds checks, prefetches")]

use std::arch::asm;
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mock_driver::Mock;

/// The work of one indexed bulk FETCH_ADD: elements, and which of them in which order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scatter<'m> {
    elements: &'m [AtomicU64],
    /// Each below the number of elements, whenever one looks: see [`Scatter::renew`].
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
        // The words' bytes, half a word an index.
        let array = words(mock, index_array, indices.len().div_ceil(2));
        // SAFETY: the words hold as many indices, and half of an aligned word is aligned.
        let array = unsafe { std::slice::from_raw_parts(array.as_ptr().cast::<AtomicU32>(), indices.len()) };
        let scatter = Scatter { elements: words(mock, at, count), indices: array };
        scatter.renew(indices.iter().copied());
        scatter
    }

    /// Stores other indices, as many as there are.
    pub(crate) fn renew(&self, indices: impl Iterator<Item = u32>) {
        for (place, index) in self.indices.iter().zip(indices) {
            assert!((index as usize) < self.elements.len(), "indices are in range");
            place.store(index, Ordering::Relaxed);
        }
    }

    /// How many elements there are.
    pub(crate) fn elements(&self) -> usize {
        self.elements.len()
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
        // SAFETY: callers count to `count()`; pages begin as zeros, every index was checked before it was
        // stored, and the device has the array's pages with the permission to read only.
        unsafe {
            self.elements.get_unchecked(self.indices.get_unchecked(at).load(Ordering::Relaxed) as usize)
        }
    }

    /// By name: the compiler's own prefetch for a store becomes one for a load unless it may assume a
    /// newer CPU than x86-64's first.
    #[inline(always)]
    fn prefetch<const EXCLUSIVE: bool>(&self, at: usize) {
        let element = std::ptr::from_ref(self.element(at));
        // SAFETY: a prefetch has no effect that a program could see; a CPU without this one ignores it.
        unsafe {
            if EXCLUSIVE {
                asm!("prefetchw [{}]", in(reg) element, options(nostack, preserves_flags, readonly));
            } else {
                asm!("prefetcht0 [{}]", in(reg) element, options(nostack, preserves_flags, readonly));
            }
        }
    }

    /// Load, add, store; with software prefetch.
    pub(crate) fn plain(&self, operand: u64, prefetch: Prefetch) {
        if prefetch.exclusive {
            self.plain_with::<true>(operand, prefetch.distance);
        } else {
            self.plain_with::<false>(operand, prefetch.distance);
        }
    }

    #[inline(never)]
    fn plain_with<const EXCLUSIVE: bool>(&self, operand: u64, distance: usize) {
        let add = |at| {
            let element = self.element(at);
            element.store(element.load(Ordering::Relaxed).wrapping_add(operand), Ordering::Relaxed);
        };
        let ahead = self.count().saturating_sub(distance);
        for at in 0..ahead {
            self.prefetch::<EXCLUSIVE>(at + distance);
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
            self.prefetch::<true>(at + distance);
            add(at);
        }
        (ahead..self.count()).for_each(add);
        black_box(seen);
    }
}

/// Bytes to copy from one place of guest memory to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'m> {
    from: &'m [AtomicU64],
    to: &'m [AtomicU64],
}

impl<'m> Block<'m> {
    /// `bytes` at two places.
    pub(crate) fn new(mock: &'m Mock, from: u64, to: u64, bytes: usize) -> Self {
        Block { from: words(mock, from, bytes / 8), to: words(mock, to, bytes / 8) }
    }

    /// `memcpy`.
    pub(crate) fn copy(&self) {
        // SAFETY: both are valid for as many words, and do not overlap as they begin that far apart; the
        // device, which is the only other one to access them, is idle while a native loop runs.
        unsafe {
            let to = self.to.as_ptr().cast::<u64>().cast_mut();
            std::ptr::copy_nonoverlapping(self.from.as_ptr().cast::<u64>(), to, self.to.len());
        }
    }

    /// `memset`.
    pub(crate) fn fill(&self, byte: u8) {
        // SAFETY: as in `copy`.
        unsafe { std::ptr::write_bytes(self.to.as_ptr().cast::<u64>().cast_mut(), byte, self.to.len()) }
    }

    /// Whether both are the same.
    pub(crate) fn is_copied(&self) -> bool {
        let pairs = self.from.iter().zip(self.to);
        pairs.into_iter().all(|(from, to)| from.load(Ordering::Relaxed) == to.load(Ordering::Relaxed))
    }
}

/// Words of guest memory.
fn words(mock: &Mock, at: u64, count: usize) -> &[AtomicU64] {
    assert!(at.is_multiple_of(8) && mock.ram.contains(at, 8 * count as u64, true));
    // SAFETY: guest memory of a mock driver is one mapping, which lives as long as `mock`; the words are in
    // it and aligned, and all that accesses them while others may does so atomically.
    unsafe { std::slice::from_raw_parts(mock.ram64(at).as_ptr().cast::<AtomicU64>(), count) }
}
