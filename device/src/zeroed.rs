// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Large tables of zeros that cost nothing until they are used, on huge pages of the host.
//!
//! An allocator would write the zeros if a type is aligned to more than it is used to. And a table that is looked at at
//! random wants few host translations: with pages of 4 KiB the host's own TLB misses it nearly each time, as it
//! also holds those of guest memory.

#![expect(unsafe_code, reason = "gives memory of its own mapping a type")]

use std::io;
use std::num::NonZero;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use zerocopy::FromZeros;

/// What the host has for huge pages on its common architectures.
const HUGE: usize = 2 << 20;

/// A `T` of zeros, in a mapping of its own.
#[derive(Debug)]
pub struct Zeroed<T> {
    value: NonNull<T>,
    mapping: NonNull<std::ffi::c_void>,
    length: NonZero<usize>,
}

// SAFETY: it owns its `T` as a box does.
unsafe impl<T: Send> Send for Zeroed<T> {}
// SAFETY: and gives no more away than a box does.
unsafe impl<T: Sync> Sync for Zeroed<T> {}

impl<T: FromZeros> Zeroed<T> {
    /// # Errors
    ///
    /// Those of mmap(2).
    pub fn new() -> io::Result<Self> {
        const { assert!(align_of::<T>() <= HUGE) };
        // Room to begin at a huge page; what is not used is only addresses.
        let length = NonZero::new(size_of::<T>() + HUGE).ok_or(io::ErrorKind::InvalidInput)?;
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping at a place of the kernel's choice is in nobody's way.
        let mapping = unsafe { mmap_anonymous(None, length, access, flags | MapFlags::MAP_NORESERVE) }?;
        let at = mapping.cast::<u8>();
        // SAFETY: less than HUGE further on the mapping has room for a `T` still.
        let value = unsafe { at.add(at.align_offset(HUGE)) }.cast::<T>();
        // SAFETY: advice for pages that are all in the mapping. It may be refused: then the pages are small.
        let _ = unsafe { madvise(value.cast(), size_of::<T>(), MmapAdvise::MADV_HUGEPAGE) };
        Ok(Zeroed { value, mapping, length })
    }
}

impl<T> Deref for Zeroed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: mapped until `drop`, aligned, and zero is a value of `T`, as it was when this was made.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for Zeroed<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and borrowed by nobody else.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for Zeroed<T> {
    fn drop(&mut self) {
        const { assert!(!std::mem::needs_drop::<T>()) };
        // SAFETY: this was mapped as such, and nobody can reach it any more.
        let unmapped = unsafe { munmap(self.mapping, self.length.get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_and_aligned_and_keeps_what_is_stored() {
        let mut table = Zeroed::<[u64; 3 * HUGE / 16]>::new().unwrap();
        assert!(table.iter().all(|word| *word == 0));
        assert_eq!((&raw const *table).addr() % HUGE, 0);
        let last = table.len() - 1;
        (table[0], table[last]) = (1, 2);
        assert_eq!(table.iter().sum::<u64>(), 3);
    }
}
