// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A piece of mapped memory that others change: the process's other threads and the device.
//! It owns the mapping and hands out atomics only.
#![expect(unsafe_code, reason = "maps memory, and makes references to atomics in it")]

use crate::error::Error;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// Mapped memory, unmapped when dropped.
///
/// Invariant: `[base, base + len)` is mapped readable, and nobody else unmaps it, as long as this
/// value lives. References to it are only ever to atomics.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<c_void>,
    len: usize,
}

/// Atomics, and arrays of them.
///
/// # Safety
/// Every byte belongs to an atomic, so any bits are a value, and others may change them.
pub unsafe trait Atomics: Sync {}

// SAFETY: an atomic each.
unsafe impl Atomics for AtomicU8 {}
// SAFETY: as above.
unsafe impl Atomics for AtomicU32 {}
// SAFETY: as above.
unsafe impl Atomics for AtomicU64 {}
// SAFETY: an array has no bytes but its elements'.
unsafe impl<A: Atomics, const N: usize> Atomics for [A; N] {}

// SAFETY: the memory is reached through atomics only, and its address belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed private anonymous memory of at least `len` bytes, writable.
    pub(crate) fn anonymous(len: usize) -> Result<Self, Error> {
        let bad = |errno| Error::Map { what: "shared memory", errno };
        let len = len.checked_next_multiple_of(4096).and_then(NonZeroUsize::new);
        let len = len.ok_or(bad(Errno::EINVAL))?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE) }.map_err(bad)?;
        Ok(Mapping { base, len: len.get() })
    }

    /// Part of a device's file. A read-only one must be read with relaxed loads only: stronger ones
    /// need not be plain loads to Rust.
    pub(crate) fn of_file(
        file: impl AsFd,
        what: &'static str,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<Self, Error> {
        let bad = |errno| Error::Map { what, errno };
        let len = usize::try_from(len).ok().and_then(NonZeroUsize::new).ok_or(bad(Errno::EINVAL))?;
        let offset = i64::try_from(offset).map_err(|_| bad(Errno::EINVAL))?;
        let write = if writable { ProtFlags::PROT_WRITE } else { ProtFlags::empty() };
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base =
            unsafe { mmap(None, len, ProtFlags::PROT_READ | write, MapFlags::MAP_SHARED, file, offset) };
        Ok(Mapping { base: base.map_err(bad)?, len: len.get() })
    }

    /// Makes it read-only to this process, and so to the device.
    pub(crate) fn freeze(&self) -> Result<(), Error> {
        // SAFETY: the range is this mapping; what reads it goes on working, and its owner vouches
        // with the call that nobody writes any more.
        unsafe { mprotect(self.base, self.len, ProtFlags::PROT_READ) }
            .map_err(|errno| Error::Map { what: "read-only memory", errno })
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of byte `offset`, as the device is told.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.base.as_ptr() as u64 + offset as u64
    }

    /// The 32-bit word at `offset`.
    ///
    /// # Panics
    /// If it is misaligned or outside.
    pub(crate) fn word32(&self, offset: usize) -> &AtomicU32 {
        &self.atomics(offset, 1)[0]
    }

    /// The 64-bit word at `offset`.
    ///
    /// # Panics
    /// If it is misaligned or outside.
    pub(crate) fn word64(&self, offset: usize) -> &AtomicU64 {
        &self.words64(offset, 1)[0]
    }

    /// `count` 64-bit words from `offset` on. Panics as [`Self::word64`].
    pub(crate) fn words64(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.atomics(offset, count)
    }

    /// `count` atomics from `offset` on.
    ///
    /// # Panics
    /// If one is misaligned or outside.
    pub(crate) fn atomics<A: Atomics>(&self, offset: usize, count: usize) -> &[A] {
        let end = count.checked_mul(size_of::<A>()).and_then(|bytes| bytes.checked_add(offset));
        let inside = end.is_some_and(|end| end <= self.len);
        assert!(offset.is_multiple_of(align_of::<A>()) && inside, "outside a mapping");
        // SAFETY: the offset is inside the mapping, or one past its end if `count` is zero.
        let start = unsafe { self.base.as_ptr().byte_add(offset) }.cast::<A>();
        // SAFETY: the atomics are inside the mapping, which begins with a page and so is aligned as they
        // are; it stays mapped while `self` is borrowed; any bits are atomics; nobody has plain references.
        unsafe { std::slice::from_raw_parts(start, count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and no reference into it outlives `self`. It fails
        // only for arguments that are wrong, or where a split needs memory: then it stays mapped.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}
