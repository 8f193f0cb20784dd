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
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Mapped memory, unmapped when dropped.
///
/// Invariant: `[base, base + len)` is mapped readable, and nobody else unmaps it, as long as this
/// value lives. References to it are only ever to atomics.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<c_void>,
    len: usize,
}

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
        &self.words32(offset, 1)[0]
    }

    /// The 64-bit word at `offset`.
    ///
    /// # Panics
    /// If it is misaligned or outside.
    pub(crate) fn word64(&self, offset: usize) -> &AtomicU64 {
        &self.words64(offset, 1)[0]
    }

    /// `count` 32-bit words from `offset` on. Panics as [`Self::word32`].
    pub(crate) fn words32(&self, offset: usize, count: usize) -> &[AtomicU32] {
        let start = self.check(offset, count, 4).cast::<AtomicU32>();
        // SAFETY: `check` found the words inside the mapping and aligned; it stays mapped while
        // `self` is borrowed; every bit pattern is a valid atomic; nobody has plain references.
        unsafe { std::slice::from_raw_parts(start, count) }
    }

    /// `count` 64-bit words from `offset` on. Panics as [`Self::word64`].
    pub(crate) fn words64(&self, offset: usize, count: usize) -> &[AtomicU64] {
        let start = self.check(offset, count, 8).cast::<AtomicU64>();
        // SAFETY: as in `words32`.
        unsafe { std::slice::from_raw_parts(start, count) }
    }

    fn check(&self, offset: usize, count: usize, width: usize) -> *const c_void {
        let end = count.checked_mul(width).and_then(|bytes| bytes.checked_add(offset));
        assert!(offset.is_multiple_of(width) && end.is_some_and(|end| end <= self.len), "outside a mapping");
        // SAFETY: the offset is inside the mapping, or one past its end if `count` is zero.
        unsafe { self.base.as_ptr().byte_add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and no reference into it outlives `self`. It fails
        // only for arguments that are wrong, or where a split needs memory: then it stays mapped.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}
