// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory: an immutable snapshot of the DMA maps, and the words inside it.
//!
//! A map or unmap makes a new snapshot; whoever uses guest memory holds an `Arc` of one, so a host
//! pointer can't outlive its mapping. *When* users move to a new snapshot is not decided here but by
//! [`crate::invalidate`]. Guest memory is shared with CPUs that obey nobody: every access is an
//! atomic one of 8 to 128 bits, and what was read once is never read again.
//!
//! A file's length is checked when it is mapped. If it is cut afterwards an access beyond its end raises
//! SIGBUS, which ends this process; it does not reach other memory. The same comes of the first access to a page
//! for which the host has none: in a file of a tmpfs that is full, or of huge pages when they have run out. The
//! first only a holder of the descriptor can do: the VMM, not its guest. The second is for whoever sets the VMM
//! up to rule out, by pages that are there from the start (`prealloc=on`). QEMU seals its memfds against shrinking (`memory-backend-memfd`, `seal=on` by
//! default). Seals are not demanded here, because files of a tmpfs and memfds that were made without them are
//! good memory too, and not added, because one would stay on when the VMM has its memory back, and a VMM that
//! means harm would give a file that takes none.

#![expect(unsafe_code, reason = "turns host addresses inside a mapping into references to atomic words")]

use std::fs::File;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use nix::libc::{MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE};
use portable_atomic::AtomicU128;
use rustix::fs::fstat;
use svmx_abi::pci::{PAGE_SIZE, page_base, page_offset};
use svmx_abi::pte::Access;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};

/// Maps that one device accepts. QEMU makes about twenty.
pub const MAX_MAPS: usize = 1024;

/// Bytes of all maps together: 16 TiB. A file can be as long as its owner says, and a process has no more than
/// 128 TiB of addresses (47 bits). Where they are used up allocations fail and end it; so maps may have an eighth
/// of them, a quarter for the moment in which one snapshot follows another.
pub const MAX_MAPPED: u64 = 1 << 44;

/// Why a DMA map or unmap was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Address or size is not a multiple of the page size, is zero, or wraps.
    #[error("range {address:#x}+{size:#x} is empty, misaligned or wraps")]
    BadRange {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// The range overlaps one that is mapped.
    #[error("range {address:#x}+{size:#x} overlaps another map")]
    Overlap {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// More than [`MAX_MAPS`].
    #[error("more than {MAX_MAPS} maps")]
    TooMany,
    /// More than [`MAX_MAPPED`].
    #[error("{size:#x} bytes more would be over {MAX_MAPPED:#x} in all maps")]
    TooMuch {
        /// Bytes of the map.
        size: u64,
    },
    /// The file ends before the range does: an access there would end this process.
    #[error("file too short for {offset:#x}+{size:#x}")]
    ShortFile {
        /// Where the range begins in the file.
        offset: u64,
        /// Bytes.
        size: u64,
    },
    /// The host could not map the file there.
    #[error("mapping the file: {0}")]
    Mmap(#[from] vm_memory::mmap::MmapRegionError),
}

/// One DMA map: a file's bytes at a guest-physical address.
#[derive(Debug)]
pub struct DmaMap {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// What holds the memory.
    pub file: File,
    /// Where in the file.
    pub offset: u64,
    /// Whether the device may write. The file descriptor may allow it all the same.
    pub writable: bool,
}

/// What an unmap took away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Removed {
    /// Nothing was mapped there.
    None,
    /// Maps inside the range.
    Whole,
    /// Also a map that reaches beyond the range.
    MoreThanAsked,
}

/// A snapshot of all DMA maps.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: GuestMemoryMmap,
}

impl GuestMemory {
    /// This snapshot and one more map.
    pub fn with_map(&self, map: DmaMap) -> Result<Self, MemoryError> {
        let DmaMap { address, size, file, offset, writable } = map;
        check_range(address, size)?;
        let bad_range = MemoryError::BadRange { address, size };
        let (Ok(bytes), 0) = (usize::try_from(size), page_offset(offset)) else { return Err(bad_range) };
        if self.regions.num_regions() >= MAX_MAPS {
            return Err(MemoryError::TooMany);
        }
        let mapped: u64 = self.regions.iter().map(|region| region.len()).sum();
        if size > MAX_MAPPED - mapped {
            return Err(MemoryError::TooMuch { size });
        }
        // Not by the standard library, whose system call takes a path as well.
        let length = fstat(&file).map_or(0, |data| data.st_size.cast_unsigned());
        if offset.checked_add(size).is_none_or(|end| end > length) {
            return Err(MemoryError::ShortFile { offset, size });
        }
        let protection = if writable { PROT_READ | PROT_WRITE } else { PROT_READ };
        let file = FileOffset::new(file, offset);
        let mapping = MmapRegion::build(Some(file), bytes, protection, MAP_SHARED | MAP_NORESERVE)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(address)).ok_or(bad_range)?;
        let regions = self.regions.insert_region(Arc::new(region));
        Ok(GuestMemory { regions: regions.map_err(|_| MemoryError::Overlap { address, size })? })
    }

    /// This snapshot without every map that overlaps a range, and which there were. A map is taken away
    /// whole: less than what was asked for must never stay.
    pub fn without(&self, address: u64, size: u64) -> Result<(Self, Removed), MemoryError> {
        check_range(address, size)?;
        let last = address + (size - 1);
        let mut regions = self.regions.clone();
        let mut removed = Removed::None;
        for region in self.regions.iter() {
            let (start, end) = (region.start_addr().0, region.last_addr().0);
            if end < address || start > last {
                continue;
            }
            let part = start < address || end > last;
            removed = removed.max(if part { Removed::MoreThanAsked } else { Removed::Whole });
            if let Ok((rest, _)) = regions.remove_region(region.start_addr(), region.len()) {
                regions = rest;
            }
        }
        Ok((GuestMemory { regions }, removed))
    }

    /// The 32-bit word at a guest-physical address, or `None` if it is misaligned, outside every map,
    /// or in a read-only one and `write` is wanted.
    pub fn word32(&self, address: u64, write: bool) -> Option<&AtomicU32> {
        let page = self.page(address, write).filter(|_| address.is_multiple_of(4))?;
        Some(page.word32(page_offset(address)))
    }

    /// The 64-bit word at a guest-physical address, under the conditions of [`Self::word32`].
    pub fn word64(&self, address: u64, write: bool) -> Option<&AtomicU64> {
        let page = self.page(address, write).filter(|_| address.is_multiple_of(8))?;
        Some(page.word64(page_offset(address)))
    }

    /// The `N` 64-bit words from a guest-physical address on, all in one page, under the conditions of
    /// [`Self::word32`]: one look-up for a whole entry of a ring.
    #[inline]
    pub fn words<const N: usize>(&self, address: u64, write: bool) -> Option<[&AtomicU64; N]> {
        let offset = page_offset(address);
        let inside = address.is_multiple_of(8) && offset + 8 * N as u64 <= PAGE_SIZE;
        let page = self.page(address, write).filter(|_| inside)?;
        Some(std::array::from_fn(|at| page.word64(offset + 8 * at as u64)))
    }

    /// Copies the `N` 64-bit words of [`Self::words`], each read once.
    pub fn copy<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        Some(self.words(address, false)?.map(|word| word.load(Ordering::Relaxed)))
    }

    /// Whether every page of a range that begins at a page is mapped, and writable if `write`.
    pub fn contains(&self, address: u64, size: u64, write: bool) -> bool {
        let Some(end) = address.checked_add(size) else { return false };
        (page_base(address)..end).step_by(PAGE_SIZE as usize).all(|page| self.page(page, write).is_some())
    }

    /// The page of a guest-physical address, without a translation's permissions.
    pub fn page(&self, address: u64, write: bool) -> Option<Page<'_>> {
        let page = self.host_page(address)?;
        // SAFETY: the page was just found in this snapshot.
        let page = unsafe { page.bind(self) };
        (page.writable() || !write).then_some(page)
    }

    /// The host's page for the guest-physical page of `address`. Maps are page-aligned, so a page is
    /// in one map or none.
    pub(crate) fn host_page(&self, address: u64) -> Option<HostPage> {
        let region = self.regions.find_region(GuestAddress(address))?;
        let offset = page_base(address) - region.start_addr().0;
        let host = region.get_host_address(MemoryRegionAddress(offset)).ok()?;
        let writable = region.prot() & PROT_WRITE != 0;
        Some(HostPage { host: NonNull::new(host)?, frame: page_base(address), writable })
    }

    /// Whether the `size` bytes at `address`, both page-aligned, lie in one map.
    pub(crate) fn contiguous(&self, address: u64, size: u64) -> bool {
        let Some(last) = address.checked_add(size - 1) else { return false };
        let region = self.regions.find_region(GuestAddress(address));
        region.is_some_and(|region| last <= region.last_addr().0)
    }
}

fn check_range(address: u64, size: u64) -> Result<(), MemoryError> {
    let aligned = page_offset(address) == 0 && page_offset(size) == 0;
    let good = size != 0 && aligned && address.checked_add(size).is_some();
    if good { Ok(()) } else { Err(MemoryError::BadRange { address, size }) }
}

/// Where the host has a page of guest memory; means something only together with the snapshot that
/// it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostPage {
    host: NonNull<u8>,
    /// Guest-physical address of the page.
    frame: u64,
    writable: bool,
}

// SAFETY: an address is only dereferenced through `bind`, whose caller holds the snapshot; the memory
// behind it is accessed by atomic operations alone, from any thread.
unsafe impl Send for HostPage {}

impl HostPage {
    /// A page at that host address.
    #[inline(always)]
    pub(crate) fn new(host: NonNull<u8>, frame: u64, writable: bool) -> Self {
        HostPage { host, frame, writable }
    }

    /// Ties the page to the snapshot that it came from.
    ///
    /// # Safety
    ///
    /// `memory` gave out this page.
    #[inline(always)]
    pub(crate) unsafe fn bind(self, _memory: &GuestMemory) -> Page<'_> {
        Page { at: self, access: Access::default(), memory: PhantomData }
    }
}

/// A page of guest memory with what its translation allows, while its snapshot is held.
#[derive(Clone, Copy, Debug)]
pub struct Page<'m> {
    at: HostPage,
    access: Access,
    memory: PhantomData<&'m GuestMemory>,
}

impl<'m> Page<'m> {
    /// The same page with a translation's permissions.
    #[inline(always)]
    pub fn with_access(self, access: Access) -> Self {
        Page { access, ..self }
    }
    /// What the translation allows.
    pub fn access(&self) -> Access {
        self.access
    }
    /// Whether the device does its own read-modify-write here (spec 6.3).
    #[inline]
    pub fn exclusive(&self) -> bool {
        self.access.atomic && !self.access.coherent
    }
    /// Guest-physical address of the page.
    pub fn frame(&self) -> u64 {
        self.at.frame
    }
    /// Where the host has it: 4096 bytes that stay mapped for 'm.
    pub(crate) fn host(&self) -> *mut u8 {
        self.at.host.as_ptr()
    }
    /// Whether the DMA map lets the device write.
    pub fn writable(&self) -> bool {
        self.at.writable
    }

    /// The byte at `offset` into the page.
    #[inline(always)]
    pub fn word8(&self, offset: u64) -> &'m AtomicU8 {
        let offset = page_offset(offset) as usize;
        // SAFETY: as in `word32`, with an offset of at most 4095.
        unsafe { AtomicU8::from_ptr(self.at.host.add(offset).as_ptr()) }
    }

    /// The 32-bit word at `offset` into the page, rounded down to one.
    #[inline(always)]
    pub fn word32(&self, offset: u64) -> &'m AtomicU32 {
        let offset = (page_offset(offset) & !3) as usize;
        // SAFETY: a page is 4096 mapped bytes that stay mapped for 'm, and the offset is aligned and
        // at most 4092. All accesses to the memory by this process are atomic.
        unsafe { AtomicU32::from_ptr(self.at.host.add(offset).as_ptr().cast()) }
    }

    /// The 64-bit word at `offset` into the page, rounded down to one.
    #[inline(always)]
    pub fn word64(&self, offset: u64) -> &'m AtomicU64 {
        let offset = (page_offset(offset) & !7) as usize;
        // SAFETY: as in `word32`, with an offset of at most 4088.
        unsafe { AtomicU64::from_ptr(self.at.host.add(offset).as_ptr().cast()) }
    }

    /// The 128-bit word at `offset` into the page, rounded down to one.
    #[inline(always)]
    pub fn word128(&self, offset: u64) -> &'m AtomicU128 {
        let offset = (page_offset(offset) & !15) as usize;
        // SAFETY: as in `word32`, with an offset of at most 4080.
        unsafe { AtomicU128::from_ptr(self.at.host.add(offset).as_ptr().cast()) }
    }
}

/// Asks for the cache line of something that will be read soon.
#[inline(always)]
pub(crate) fn prefetch<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch does nothing that can be seen, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr::from_ref(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the cache line of something that will be written soon.
#[inline(always)]
pub(crate) fn prefetch_to_write<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `prefetch`. The compiler's own prefetch for writing becomes one for reading where it can't
    // take the instruction for granted; every processor of this architecture takes it at least as a no-op.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) ptr::from_ref(at), options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn memfd(size: u64) -> File {
        let file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        file
    }

    fn map(address: u64, size: u64, writable: bool) -> DmaMap {
        DmaMap { address, size, file: memfd(size), offset: 0, writable }
    }

    #[test]
    fn words_outside_maps_are_none() {
        let memory = GuestMemory::default().with_map(map(0x1000, 0x2000, true)).unwrap();
        assert!(memory.word64(0x1000, true).is_some() && memory.word64(0x2ff8, true).is_some());
        for address in [0, 0xff8, 0x3000, 0x1004, u64::MAX, u64::MAX - 7] {
            assert!(memory.word64(address, false).is_none(), "{address:#x}");
            assert!(memory.copy::<2>(address).is_none(), "{address:#x}");
        }
        memory.word64(0x1ff8, true).unwrap().store(7, Ordering::Relaxed);
        assert_eq!(memory.copy(0x1ff0), Some([0, 7]));
        assert_eq!(memory.copy::<2>(0x1ff8), None, "two pages need not be neighbours on the host");
    }

    #[test]
    fn read_only_maps_refuse_writers() {
        let memory = GuestMemory::default().with_map(map(0, 0x1000, false)).unwrap();
        assert!(memory.word32(0, false).is_some() && memory.word32(0, true).is_none());
        assert!(!memory.contains(0, 0x1000, true));
    }

    #[test]
    fn bad_maps_are_refused() {
        let memory = GuestMemory::default().with_map(map(0x1000, 0x2000, true)).unwrap();
        assert!(matches!(memory.with_map(map(0x2000, 0x1000, true)), Err(MemoryError::Overlap { .. })));
        assert!(matches!(memory.with_map(map(0x8001, 0x1000, true)), Err(MemoryError::BadRange { .. })));
        let wrap = DmaMap { address: !0xfff, size: 0x2000, ..map(0, 0x1000, true) };
        assert!(matches!(memory.with_map(wrap), Err(MemoryError::BadRange { .. })));
        let short = DmaMap { size: 0x4000, ..map(0x10000, 0x1000, true) };
        assert!(matches!(memory.with_map(short), Err(MemoryError::ShortFile { .. })));
    }

    #[test]
    fn all_maps_together_are_bounded() {
        // Nothing of it is ever touched.
        let file = memfd(2 * MAX_MAPPED);
        let map = |address, size| {
            let file = file.try_clone().unwrap();
            DmaMap { address, size, file, offset: 0, writable: true }
        };
        let too_much = |memory: &GuestMemory, size| {
            matches!(memory.with_map(map(2 * MAX_MAPPED, size)), Err(MemoryError::TooMuch { .. }))
        };
        assert!(too_much(&GuestMemory::default(), MAX_MAPPED + PAGE_SIZE));
        let memory = GuestMemory::default().with_map(map(0, MAX_MAPPED / 2)).unwrap();
        let memory = memory.with_map(map(MAX_MAPPED, MAX_MAPPED / 2)).unwrap();
        assert!(too_much(&memory, PAGE_SIZE));
        let (memory, _) = memory.without(0, MAX_MAPPED / 2).unwrap();
        assert!(!too_much(&memory, MAX_MAPPED / 2));
    }

    #[test]
    fn unmap_takes_every_map_that_it_meets() {
        let memory = GuestMemory::default().with_map(map(0x1000, 0x2000, true)).unwrap();
        let memory = memory.with_map(map(0x8000, 0x1000, true)).unwrap();
        let (rest, removed) = memory.without(0, 0x10000).unwrap();
        assert_eq!(removed, Removed::Whole);
        assert!(rest.word32(0x1000, false).is_none() && rest.word32(0x8000, false).is_none());
        assert_eq!(rest.without(0x1000, 0x2000).unwrap().1, Removed::None);
        for (address, size) in [(0x1000, 0x1000), (0x2000, 0x1000), (0x2000, 0x4000), (0, 0x2000)] {
            let (rest, removed) = memory.without(address, size).unwrap();
            assert_eq!(removed, Removed::MoreThanAsked);
            assert!(rest.word32(0x1000, false).is_none() && rest.word32(0x2000, false).is_none());
            assert!(rest.word32(0x8000, false).is_some());
        }
        assert!(memory.without(0x1001, 0x1000).is_err());
    }
}
