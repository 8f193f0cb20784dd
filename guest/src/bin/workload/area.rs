// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of every kind, at addresses of a scenario's choice, and queues that may name any of it.
//! Nothing of it is ever a Rust object: it is reached by atomics through its address.
#![expect(unsafe_code, reason = "maps memory and reaches it by its address")]

use crate::scenario::patience;
use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{
    MapFlags, MmapAdvise, MsFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, msync, munmap,
};
use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Release, SeqCst},
};
use svmx::abi::queue::{Opcode, Sqe, WidthLog2};
use svmx::{Completion, Queue};

/// A page.
pub(crate) const PAGE: u64 = 4096;

/// What backs an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Private anonymous memory.
    Private,
    /// Shared anonymous memory.
    SharedAnonymous,
    /// A memfd or another file, shared.
    Memfd,
}

/// Mapped memory.
#[derive(Debug)]
pub(crate) struct Area {
    base: u64,
    len: u64,
    /// Bytes from the start that are mapped still.
    live: u64,
    backing: Backing,
    readable: bool,
    writable: bool,
}

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

impl Area {
    /// `len` bytes, a multiple of the page size.
    pub(crate) fn new(backing: Backing, len: u64) -> Result<Self> {
        let size = NonZeroUsize::new(len as usize).context("an area of no bytes")?;
        Self::map(backing, None, size)
    }

    /// Private anonymous memory at `base`, where nothing is mapped.
    pub(crate) fn at(base: u64, len: u64) -> Result<Self> {
        Self::at_of(Backing::Private, base, len)
    }

    /// Memory at `base`, where nothing is mapped.
    pub(crate) fn at_of(backing: Backing, base: u64, len: u64) -> Result<Self> {
        let address = NonZeroUsize::new(base as usize).context("an area at address zero")?;
        let size = NonZeroUsize::new(len as usize).context("an area of no bytes")?;
        Self::map(backing, Some(address), size)
    }

    fn map(backing: Backing, address: Option<NonZeroUsize>, size: NonZeroUsize) -> Result<Self> {
        let fixed = if address.is_some() { MapFlags::MAP_FIXED_NOREPLACE } else { MapFlags::empty() };
        let (shared, private) = (MapFlags::MAP_SHARED | fixed, MapFlags::MAP_PRIVATE | fixed);
        // SAFETY: new mappings overlap nothing, neither at an address of the kernel's choice nor with
        // MAP_FIXED_NOREPLACE.
        let base = unsafe {
            match backing {
                Backing::Private => mmap_anonymous(address, size, READ_WRITE, private),
                Backing::SharedAnonymous => mmap_anonymous(address, size, READ_WRITE, shared),
                Backing::Memfd => {
                    let file = memfd_create(c"area", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
                    nix::unistd::ftruncate(&file, i64::try_from(size.get())?)?;
                    mmap(address, size, READ_WRITE, shared, &file, 0)
                }
            }
        };
        let base = base.with_context(|| format!("mapping {backing:?} at {address:x?}"))?;
        let (base, len) = (base.as_ptr() as u64, size.get() as u64);
        Ok(Area { base, len, live: len, backing, readable: true, writable: true })
    }

    /// The first `len` bytes of a file, shared.
    pub(crate) fn of_file(file: &File, len: u64) -> Result<Self> {
        let size = NonZeroUsize::new(len as usize).context("an area of no bytes")?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { mmap(None, size, READ_WRITE, MapFlags::MAP_SHARED, file, 0) };
        let base = base.context("mapping a file")?.as_ptr() as u64;
        Ok(Area { base, len, live: len, backing: Backing::Memfd, readable: true, writable: true })
    }

    /// Writes what was changed to the file that backs it, and waits until it is there.
    pub(crate) fn sync(&self) -> Result<()> {
        // SAFETY: the range is this area; its content stays.
        unsafe { msync(self.pointer(0), self.live as usize, MsFlags::MS_SYNC) }.context("msync")
    }

    /// The addresses of all of it.
    pub(crate) fn range(&self) -> Range<u64> {
        self.base..self.base + self.len
    }

    /// An address at which `len` bytes could be mapped.
    pub(crate) fn room(len: u64) -> Result<u64> {
        Ok(Area::new(Backing::Private, len)?.base)
    }

    /// `len` private bytes on both sides of an address that is a multiple of 2 MiB, and the offset of
    /// that address.
    pub(crate) fn around_2mib(len: u64) -> Result<(Self, u64)> {
        const HUGE: u64 = 2 << 20;
        let boundary = (Area::room(3 * HUGE)? + HUGE).next_multiple_of(HUGE);
        Ok((Area::at(boundary - len, 2 * len)?, len))
    }

    pub(crate) fn address(&self, offset: u64) -> u64 {
        self.base + offset
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes from the start that are mapped still.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    /// What backs it.
    pub(crate) fn backing(&self) -> Backing {
        self.backing
    }

    /// Whether the process may load from it, and store to it.
    pub(crate) fn rights(&self) -> (bool, bool) {
        (self.readable, self.writable)
    }

    /// All bytes that are mapped still.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        (0..self.live).step_by(8).flat_map(|offset| self.load(offset, WidthLog2::W64).to_le_bytes()).collect()
    }

    /// The element at `offset`, of up to 64 bits.
    pub(crate) fn load(&self, offset: u64, width: WidthLog2) -> u64 {
        let address = self.check(offset, width);
        assert!(self.readable, "the area can't be read");
        // SAFETY: `check` found it aligned and in mapped memory, which only atomics reach.
        unsafe {
            match width {
                WidthLog2::W8 => AtomicU8::from_ptr(address as *mut u8).load(SeqCst).into(),
                WidthLog2::W32 => AtomicU32::from_ptr(address as *mut u32).load(SeqCst).into(),
                _ => AtomicU64::from_ptr(address as *mut u64).load(SeqCst),
            }
        }
    }

    pub(crate) fn store(&self, offset: u64, width: WidthLog2, value: u64) {
        let address = self.check(offset, width);
        assert!(self.writable, "the area can't be written");
        // SAFETY: as in `load`; and it is writable.
        unsafe {
            match width {
                WidthLog2::W8 => AtomicU8::from_ptr(address as *mut u8).store(value as u8, SeqCst),
                WidthLog2::W32 => AtomicU32::from_ptr(address as *mut u32).store(value as u32, SeqCst),
                _ => AtomicU64::from_ptr(address as *mut u64).store(value, SeqCst),
            }
        }
    }

    /// An element of any width; at 128 bits by two loads, the lower half first.
    pub(crate) fn load_wide(&self, offset: u64, width: WidthLog2) -> u128 {
        if width != WidthLog2::W128 {
            return self.load(offset, width).into();
        }
        let half = |at| u128::from(self.load(offset + at, WidthLog2::W64));
        half(0) | half(8) << 64
    }

    /// Stores an element of any width; at 128 bits by two stores, the lower half first.
    pub(crate) fn store_wide(&self, offset: u64, width: WidthLog2, value: u128) {
        if width != WidthLog2::W128 {
            return self.store(offset, width, value as u64);
        }
        self.store(offset, WidthLog2::W64, value as u64);
        self.store(offset + 8, WidthLog2::W64, (value >> 64) as u64);
    }

    /// Adds 1 to the 64-bit word at `offset`.
    pub(crate) fn increment(&self, offset: u64) -> u64 {
        let address = self.check(offset, WidthLog2::W64);
        assert!(self.writable, "the area can't be written");
        // SAFETY: as in `store`.
        unsafe { AtomicU64::from_ptr(address as *mut u64).fetch_add(1, SeqCst) }
    }

    /// The 64-bit word at `offset`, by a load-acquire.
    pub(crate) fn acquire(&self, offset: u64) -> u64 {
        let address = self.check(offset, WidthLog2::W64);
        assert!(self.readable, "the area can't be read");
        // SAFETY: as in `load`.
        unsafe { AtomicU64::from_ptr(address as *mut u64).load(Acquire) }
    }

    /// Stores the 64-bit word at `offset`, by a store-release: not a full barrier, as `store` is.
    pub(crate) fn release(&self, offset: u64, value: u64) {
        let address = self.check(offset, WidthLog2::W64);
        assert!(self.writable, "the area can't be written");
        // SAFETY: as in `store`.
        unsafe { AtomicU64::from_ptr(address as *mut u64).store(value, Release) };
    }

    fn check(&self, offset: u64, width: WidthLog2) -> u64 {
        let bytes = 1 << width.0;
        assert!(offset.is_multiple_of(bytes) && offset + bytes <= self.live, "outside an area");
        self.base + offset
    }

    /// Changes what the process may do with it.
    pub(crate) fn protect(&mut self, read: bool, write: bool) -> Result<()> {
        (self.readable, self.writable) = (read, write);
        let mut prot = ProtFlags::empty();
        prot.set(ProtFlags::PROT_READ, read);
        prot.set(ProtFlags::PROT_WRITE, write);
        let base = self.pointer(0);
        // SAFETY: the range is this area, and `check` keeps to its protection from now on.
        unsafe { mprotect(base, self.live as usize, prot) }.context("mprotect")
    }

    /// Takes the right to write away for a moment, which takes the pages from every device. Whoever calls it is
    /// the only one to write meanwhile.
    pub(crate) fn flicker(&self) -> Result<()> {
        for prot in [ProtFlags::PROT_READ, READ_WRITE] {
            // SAFETY: the range is this area; nobody writes until it is writable again.
            unsafe { mprotect(self.pointer(0), self.live as usize, prot) }.context("mprotect")?;
        }
        Ok(())
    }

    /// Unmaps everything from `offset` on, a multiple of the page size.
    pub(crate) fn unmap_from(&mut self, offset: u64) -> Result<()> {
        let (base, bytes) = (self.pointer(offset), self.live - offset);
        self.live = offset;
        // SAFETY: the range is the end of this area, and `check` keeps out of it from now on.
        unsafe { munmap(base, bytes as usize) }.context("munmap")
    }

    /// Gives the content of all of it up: every page is a new, zeroed one when it is touched next.
    pub(crate) fn discard(&self) -> Result<()> {
        // SAFETY: the range is this area, which nothing but atomics reaches.
        unsafe { madvise(self.pointer(0), self.live as usize, MmapAdvise::MADV_DONTNEED) }.context("madvise")
    }

    /// Asks for huge pages.
    pub(crate) fn huge(&self) -> Result<()> {
        // SAFETY: the range is this area; its content stays.
        unsafe { madvise(self.pointer(0), self.live as usize, MmapAdvise::MADV_HUGEPAGE) }.context("madvise")
    }

    fn pointer(&self, offset: u64) -> NonNull<c_void> {
        NonNull::new((self.base + offset) as *mut c_void).expect("no area is at address zero")
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        if self.live > 0 {
            // A range that was mapped here can be unmapped.
            let _ = self.unmap_from(0);
        }
    }
}

/// A queue that takes any entry.
pub(crate) struct RawQueue(Queue);

impl RawQueue {
    /// # Safety
    /// Every entry that is submitted names areas, or addresses at which the device can write nothing
    /// that Rust knows of.
    pub(crate) unsafe fn new(queue: Queue) -> Self {
        RawQueue(queue)
    }

    pub(crate) fn submit(&mut self, entry: &Sqe) -> Result<()> {
        // SAFETY: `new`'s caller answers for it.
        Ok(unsafe { self.0.submit_raw(entry) }?)
    }

    pub(crate) fn complete(&mut self) -> Result<Completion> {
        Ok(self.0.complete(Some(patience()))?)
    }

    pub(crate) fn execute(&mut self, entry: &Sqe) -> Result<Completion> {
        self.submit(entry)?;
        self.complete().with_context(|| format!("{entry:?}"))
    }

    /// Commands that the device has not completed.
    pub(crate) fn running(&self) -> usize {
        self.0.running()
    }

    /// Ends the queue.
    pub(crate) fn destroy(self) -> Result<()> {
        Ok(self.0.destroy()?)
    }

    pub(crate) fn queue(&mut self) -> &mut Queue {
        &mut self.0
    }
}

/// A scalar entry.
pub(crate) fn scalar(opcode: Opcode, width: WidthLog2, addr: u64, operand: u64) -> Sqe {
    Sqe { opcode, width, addr, operand, ..Sqe::default() }
}
