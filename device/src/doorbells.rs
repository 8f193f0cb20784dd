// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The memory behind BAR2: doorbell pages that the guest maps (spec 4.1).
//!
//! The types say who writes what: a word that the other side writes can be loaded here and not
//! stored, and the reverse. What the other side writes may be anything at any time. What doorbells
//! mean is for [`crate::queue`] and [`crate::control`].

#![expect(unsafe_code, reason = "maps the memfd that is shared with the guest")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use svmx_abi::doorbell;
use svmx_abi::pci::{BAR_DOORBELLS_SIZE, MAX_QUEUES, PAGE_SIZE};

/// All doorbell pages.
#[derive(Debug)]
pub struct Doorbells {
    file: File,
    pages: NonNull<u8>,
}

// SAFETY: the mapping is owned by this value until it is dropped, and is accessed by atomics alone.
unsafe impl Send for Doorbells {}
// SAFETY: as above.
unsafe impl Sync for Doorbells {}

impl Doorbells {
    /// Makes the memory, all zero, as long as the BAR: a shorter file would kill a VMM that maps it. It is sealed,
    /// so that nobody who is given the file can make it shorter: that would kill this process.
    pub fn new() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("svmx-doorbells", flags)?);
        file.set_len(BAR_DOORBELLS_SIZE)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let length = NonZeroUsize::new(BAR_DOORBELLS_SIZE as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
        let pages = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0)? };
        Ok(Doorbells { file, pages: pages.cast() })
    }

    /// The file, for those who map it into a guest.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// All words of all pages are zero again (spec 1.1).
    pub fn clear(&self) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if fallocate(&self.file, flags, 0, BAR_DOORBELLS_SIZE as i64).is_err() {
            (0..=MAX_QUEUES).for_each(|page| self.clear_page(page));
        }
    }

    /// The page of a queue, which must be 1 to `MAX_QUEUES`; any other is the last one's.
    pub fn queue(&self, queue: u32) -> QueuePage<'_> {
        let word = |offset| self.word(queue.min(MAX_QUEUES), offset);
        QueuePage {
            sq_tail: TheirWord(word(doorbell::queue::SQ_TAIL)),
            cq_head: TheirWord(word(doorbell::queue::CQ_HEAD)),
            need_kick: OurWord(word(doorbell::queue::NEED_KICK)),
            cq_arm: ArmWord(word(doorbell::queue::CQ_ARM)),
        }
    }

    /// The driver's page.
    pub fn driver(&self) -> DriverPage<'_> {
        let word = |offset| self.word(doorbell::DRIVER_PAGE, offset);
        DriverPage {
            ctl_tail: TheirWord(word(doorbell::driver::CTL_TAIL)),
            fault_head: TheirWord(word(doorbell::driver::FAULT_HEAD)),
            need_kick: OurWord(word(doorbell::driver::NEED_KICK)),
            fault_arm: ArmWord(word(doorbell::driver::FAULT_ARM)),
            ctl_head: OurWord(word(doorbell::driver::CTL_HEAD)),
        }
    }

    /// Zeroes one page whole, so that nothing of a queue's last owner is left for the next.
    pub fn clear_page(&self, page: u32) {
        for offset in (0..PAGE_SIZE).step_by(4) {
            self.word(page.min(MAX_QUEUES), offset).store(0, Ordering::Relaxed);
        }
    }

    fn word(&self, page: u32, offset: u64) -> &AtomicU32 {
        let offset = u64::from(page) * PAGE_SIZE + offset;
        debug_assert!(page <= MAX_QUEUES && offset.is_multiple_of(4));
        // SAFETY: page is at most MAX_QUEUES and offset in the page, so this is inside the mapping,
        // which lives as long as self; it is aligned, and only accessed by atomics.
        unsafe { AtomicU32::from_ptr(self.pages.add(offset as usize).as_ptr().cast()) }
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and nothing borrows from self now.
        let _ = unsafe { munmap(self.pages.cast(), BAR_DOORBELLS_SIZE as usize) };
    }
}

/// A word that the other side writes.
#[derive(Clone, Copy, Debug)]
pub struct TheirWord<'a>(&'a AtomicU32);

impl TheirWord<'_> {
    /// Loads it; what was written before the word was stored is visible (spec 4.2).
    pub fn load(self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

/// A word that the device alone writes, and never reads.
#[derive(Clone, Copy, Debug)]
pub struct OurWord<'a>(&'a AtomicU32);

impl OurWord<'_> {
    /// Stores it, behind everything written before.
    pub fn store(self, value: u32) {
        self.0.store(value, Ordering::Release);
    }

    /// Stores 1 and makes the full barrier of spec 4.3, whose partner stands between the writer's
    /// store of a polled word and its look at this one.
    pub fn raise(self) {
        self.store(1);
        fence(Ordering::SeqCst);
    }
}

/// A word that the consumer sets and the device takes.
#[derive(Clone, Copy, Debug)]
pub struct ArmWord<'a>(&'a AtomicU32);

impl ArmWord<'_> {
    /// Takes the arming: true if there was one. To be called when an entry has been written; the
    /// barrier's partner stands between the consumer's arming and its last look (spec 4.4).
    pub fn take(self) -> bool {
        fence(Ordering::SeqCst);
        // The exchange is left out while nothing is armed: it would take the line from the consumer.
        self.0.load(Ordering::Relaxed) != 0 && self.0.swap(0, Ordering::SeqCst) == 1
    }
}

/// The words of a queue's page.
#[derive(Clone, Copy, Debug)]
pub struct QueuePage<'a> {
    /// Free-running tail of the submission queue.
    pub sq_tail: TheirWord<'a>,
    /// Free-running head of the completion queue.
    pub cq_head: TheirWord<'a>,
    /// 1 while the device does not poll this page.
    pub need_kick: OurWord<'a>,
    /// Interrupt wanted.
    pub cq_arm: ArmWord<'a>,
}

/// The words of the driver's page.
#[derive(Clone, Copy, Debug)]
pub struct DriverPage<'a> {
    /// Free-running tail of the control queue.
    pub ctl_tail: TheirWord<'a>,
    /// Free-running head of the fault queue.
    pub fault_head: TheirWord<'a>,
    /// 1 while the device does not poll this page.
    pub need_kick: OurWord<'a>,
    /// Interrupt wanted.
    pub fault_arm: ArmWord<'a>,
    /// Free-running head of the control queue.
    pub ctl_head: OurWord<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arming_is_taken_once() {
        let doorbells = Doorbells::new().unwrap();
        let page = doorbells.queue(3);
        assert!(!page.cq_arm.take());
        doorbells.word(3, doorbell::queue::CQ_ARM).store(1, Ordering::Relaxed);
        assert!(page.cq_arm.take() && !page.cq_arm.take());
        // Rubbish is not an arming.
        doorbells.word(3, doorbell::queue::CQ_ARM).store(7, Ordering::Relaxed);
        assert!(!page.cq_arm.take());
    }

    #[test]
    fn nobody_can_change_its_length() {
        let doorbells = Doorbells::new().unwrap();
        let theirs = doorbells.file().try_clone().unwrap();
        for length in [0, BAR_DOORBELLS_SIZE - PAGE_SIZE, BAR_DOORBELLS_SIZE + PAGE_SIZE] {
            assert_eq!(theirs.set_len(length).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        assert_eq!(theirs.metadata().unwrap().len(), BAR_DOORBELLS_SIZE);
        // Nor forbid the device to write.
        assert!(fcntl(&theirs, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err());
        doorbells.clear();
    }

    #[test]
    fn clearing_reaches_every_page() {
        let doorbells = Doorbells::new().unwrap();
        doorbells.queue(MAX_QUEUES).need_kick.raise();
        doorbells.driver().ctl_head.store(9);
        doorbells.clear();
        assert_eq!(doorbells.word(MAX_QUEUES, doorbell::queue::NEED_KICK).load(Ordering::Relaxed), 0);
        assert_eq!(doorbells.word(0, doorbell::driver::CTL_HEAD).load(Ordering::Relaxed), 0);
    }
}
