// SPDX-License-Identifier: Apache-2.0 OR MIT

//! userfaultfd: faults that a process serves itself.
//!
//! The structures are those of linux/userfaultfd.h.
#![expect(unsafe_code, reason = "calls ioctl")]

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const PAGE: u64 = 4096;

/// What a range is watched for.
pub(crate) const MISSING: u64 = 1 << 0;
pub(crate) const WRITE_PROTECT: u64 = 1 << 1;
pub(crate) const MINOR: u64 = 1 << 2;

/// Features that are asked for when one is made.
pub(crate) const FEATURE_SIGBUS: u64 = 1 << 7;
pub(crate) const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
pub(crate) const FEATURE_POISON: u64 = 1 << 14;
pub(crate) const FEATURE_MOVE: u64 = 1 << 16;

/// How often something is tried that the kernel says to try again.
const TRIES: u32 = 100_000;

const API_VERSION: u64 = 0xaa;
const EVENT_PAGEFAULT: u8 = 0x12;
const FLAG_WP: u64 = 1 << 1;
const FLAG_MINOR: u64 = 1 << 2;

#[repr(C)]
#[derive(Debug, Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

/// A range, a mode, and what the kernel answers: uffdio_register, zeropage, continue, poison.
#[repr(C)]
#[derive(Debug)]
struct Moded {
    range: Range,
    mode: u64,
    answer: u64,
}

#[repr(C)]
#[derive(Debug)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

/// uffdio_copy and uffdio_move.
#[repr(C)]
#[derive(Debug)]
struct Transfer {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    answer: i64,
}

/// struct uffd_msg, as far as it is about a fault.
#[repr(C)]
#[derive(Debug, Default)]
struct Raw {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

nix::ioctl_readwrite!(api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(register, 0xaa, 0x00, Moded);
nix::ioctl_read!(unregister, 0xaa, 0x01, Range);
nix::ioctl_read!(wake, 0xaa, 0x02, Range);
nix::ioctl_readwrite!(copy, 0xaa, 0x03, Transfer);
nix::ioctl_readwrite!(zeropage, 0xaa, 0x04, Moded);
nix::ioctl_readwrite!(transfer, 0xaa, 0x05, Transfer);
nix::ioctl_readwrite!(write_protect, 0xaa, 0x06, WriteProtect);
nix::ioctl_readwrite!(minor_continue, 0xaa, 0x07, Moded);
nix::ioctl_readwrite!(poison, 0xaa, 0x08, Moded);

/// A userfaultfd.
#[derive(Debug)]
pub(crate) struct Uffd(OwnedFd);

/// Why a thread, or the device, waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Missing,
    WriteProtected,
    Minor,
}

/// A fault that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Of the page.
    pub(crate) page: u64,
    pub(crate) kind: Kind,
}

impl From<OwnedFd> for Uffd {
    /// `file` is a userfaultfd, perhaps of another process.
    fn from(file: OwnedFd) -> Self {
        Uffd(file)
    }
}

impl Uffd {
    /// One with these features. Faults of the kernel are served too.
    pub(crate) fn new(features: u64) -> Result<Self> {
        Self::with(features, 0)
    }

    /// One that serves faults of user space alone: those of the kernel, and of a driver, fail.
    pub(crate) fn user_mode_only() -> Result<Self> {
        Self::with(0, 1)
    }

    fn with(features: u64, flags: i32) -> Result<Self> {
        // SAFETY: takes flags alone; the descriptor is nobody else's.
        let fd = unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | flags);
            OwnedFd::from_raw_fd(Errno::result(fd).context("userfaultfd")? as i32)
        };
        let mut said = Api { api: API_VERSION, features, ioctls: 0 };
        // SAFETY: the structure is the ioctl's.
        unsafe { api(fd.as_raw_fd(), &raw mut said) }.context("UFFDIO_API")?;
        Ok(Uffd(fd))
    }

    /// Its descriptor, for whoever may take files of this process.
    pub(crate) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Watches a range for [`MISSING`], [`WRITE_PROTECT`], [`MINOR`] or several.
    pub(crate) fn register(&self, start: u64, len: u64, mode: u64) -> Result<()> {
        let mut arguments = Moded { range: Range { start, len }, mode, answer: 0 };
        // SAFETY: the structure is the ioctl's.
        unsafe { register(self.0.as_raw_fd(), &raw mut arguments) }.map(drop).context("UFFDIO_REGISTER")
    }

    /// Ends that. Who waits goes on.
    pub(crate) fn unregister(&self, start: u64, len: u64) -> Result<()> {
        let mut range = Range { start, len };
        // SAFETY: the structure is the ioctl's.
        unsafe { unregister(self.0.as_raw_fd(), &raw mut range) }.map(drop).context("UFFDIO_UNREGISTER")
    }

    /// Wakes who waits for the range, to look again.
    pub(crate) fn wake(&self, start: u64, len: u64) -> Result<()> {
        let mut range = Range { start, len };
        // SAFETY: the structure is the ioctl's.
        unsafe { wake(self.0.as_raw_fd(), &raw mut range) }.map(drop).context("UFFDIO_WAKE")
    }

    /// The next fault, if one comes within `milliseconds`.
    pub(crate) fn next(&self, milliseconds: u16) -> Result<Option<Fault>> {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(milliseconds)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            other => other.context("poll of a userfaultfd")?,
        };
        let mut raw = Raw::default();
        // SAFETY: the buffer has the size of a message, and any bytes are one.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut raw).cast(), size_of::<Raw>()) };
        match Errno::result(read) {
            Ok(_) if raw.event == EVENT_PAGEFAULT => {}
            Ok(_) => bail!("event {:#x} of a userfaultfd", raw.event),
            // Whoever waited has gone.
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno).context("reading a userfaultfd"),
        }
        let kind = match raw.flags {
            flags if flags & FLAG_WP != 0 => Kind::WriteProtected,
            flags if flags & FLAG_MINOR != 0 => Kind::Minor,
            _ => Kind::Missing,
        };
        Ok(Some(Fault { page: raw.address & !(PAGE - 1), kind }))
    }

    /// Puts a page with these bytes where one is missing, write-protected if `protect`. False if there is one.
    pub(crate) fn copy(&self, page: u64, bytes: &[u8; PAGE as usize], protect: bool) -> Result<bool> {
        let mode = if protect { 1 << 1 } else { 0 };
        let mut arguments = Transfer { to: page, from: bytes.as_ptr() as u64, len: PAGE, mode, answer: 0 };
        // SAFETY: the structure is the ioctl's; `bytes` is a page. A page appears only where none is.
        unless_there("UFFDIO_COPY", || unsafe { copy(self.0.as_raw_fd(), &raw mut arguments) })
    }

    /// Puts the zero page where a page is missing. False if there is one.
    pub(crate) fn zero(&self, page: u64) -> Result<bool> {
        let mut arguments = page_of(page);
        // SAFETY: the structure is the ioctl's. A page appears only where none is.
        unless_there("UFFDIO_ZEROPAGE", || unsafe { zeropage(self.0.as_raw_fd(), &raw mut arguments) })
    }

    /// Moves a page from one address to another, where none is. Its old address is empty then.
    pub(crate) fn transfer(&self, from: u64, to: u64) -> Result<bool> {
        let mut arguments = Transfer { to, from, len: PAGE, mode: 0, answer: 0 };
        // SAFETY: the structure is the ioctl's; both pages are reached by atomics alone.
        unless_there("UFFDIO_MOVE", || unsafe { transfer(self.0.as_raw_fd(), &raw mut arguments) })
    }

    /// Maps the page that the file has.
    pub(crate) fn map_minor(&self, page: u64) -> Result<bool> {
        let mut arguments = page_of(page);
        // SAFETY: the structure is the ioctl's.
        unless_there("UFFDIO_CONTINUE", || unsafe { minor_continue(self.0.as_raw_fd(), &raw mut arguments) })
    }

    /// Makes a missing page one whose use is an error.
    pub(crate) fn poison(&self, page: u64) -> Result<bool> {
        let mut arguments = page_of(page);
        // SAFETY: the structure is the ioctl's.
        unless_there("UFFDIO_POISON", || unsafe { poison(self.0.as_raw_fd(), &raw mut arguments) })
    }

    /// Protects a range from writes, or ends that and wakes who waits.
    pub(crate) fn protect(&self, start: u64, len: u64, on: bool) -> Result<()> {
        let mut arguments = WriteProtect { range: Range { start, len }, mode: on.into() };
        // SAFETY: the structure is the ioctl's.
        unless_there("UFFDIO_WRITEPROTECT", || unsafe {
            write_protect(self.0.as_raw_fd(), &raw mut arguments)
        })
        .map(drop)
    }
}

fn page_of(page: u64) -> Moded {
    Moded { range: Range { start: page, len: PAGE }, mode: 0, answer: 0 }
}

/// Whether it was done; not if a page is there already. The kernel says EAGAIN while mappings change, and of a page
/// that somebody else is at work with.
fn unless_there(what: &'static str, mut call: impl FnMut() -> nix::Result<i32>) -> Result<bool> {
    for _ in 0..TRIES {
        match call() {
            Ok(_) => return Ok(true),
            Err(Errno::EEXIST) => return Ok(false),
            Err(Errno::EAGAIN) => std::thread::yield_now(),
            Err(errno) => return Err(errno).context(what),
        }
    }
    bail!("{what}: EAGAIN, {TRIES} times")
}
