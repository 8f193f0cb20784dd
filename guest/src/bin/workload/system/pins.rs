// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Those who keep a reference to a process's page, or write to it without its page table.
#![expect(unsafe_code, reason = "hands addresses to the kernel")]

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A buffer that is registered with io_uring: its pages are pinned, for writing, until this is dropped.
pub(crate) struct Pinned {
    ring: IoUring,
    address: u64,
    len: u32,
}

impl Pinned {
    /// Pins the range, which must stay mapped and is reached by atomics only.
    pub(crate) fn new(address: u64, len: u32) -> Result<Self> {
        let ring = IoUring::new(2).context("io_uring_setup")?;
        let buffer = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: len as usize };
        // SAFETY: the kernel keeps the pages, whatever becomes of the mapping.
        unsafe { ring.submitter().register_buffers(&[buffer]) }.context("registering a buffer")?;
        Ok(Pinned { ring, address, len })
    }

    /// Reads what is at the beginning of `file` into the pinned pages.
    pub(crate) fn fill_from(&mut self, file: &impl AsRawFd) -> Result<()> {
        let fd = types::Fd(file.as_raw_fd());
        let read = opcode::ReadFixed::new(fd, self.address as *mut u8, self.len, 0).build();
        self.execute(&read)
    }

    /// Writes the pinned pages to the beginning of `file`.
    pub(crate) fn write_to(&mut self, file: &impl AsRawFd) -> Result<()> {
        let fd = types::Fd(file.as_raw_fd());
        let write = opcode::WriteFixed::new(fd, self.address as *const u8, self.len, 0).build();
        self.execute(&write)
    }

    fn execute(&mut self, entry: &io_uring::squeue::Entry) -> Result<()> {
        // SAFETY: the buffer is the registered one, whose pages are pinned as long as the ring lives; the file
        // is open until the completion is here.
        unsafe { self.ring.submission().push(entry) }.context("the ring is full")?;
        self.ring.submit_and_wait(1).context("io_uring_enter")?;
        let completion = self.ring.completion().next().context("no completion")?;
        ensure!(
            completion.result() == self.len.cast_signed(),
            "the transfer ended with {}",
            completion.result()
        );
        Ok(())
    }
}

/// Pages that were given to a pipe by vmsplice: it refers to them until they are read.
pub(crate) struct Spliced {
    reader: OwnedFd,
    _writer: OwnedFd,
    len: usize,
}

impl Spliced {
    /// Gives the range to a pipe. At most sixteen pages.
    pub(crate) fn new(address: u64, len: usize) -> Result<Self> {
        let (reader, writer) = nix::unistd::pipe()?;
        let vector = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: len };
        // SAFETY: the pages are read, by the pipe's reader, and kept by the kernel.
        let given = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const vector, 1, 0) };
        let given = Errno::result(given).context("vmsplice")?;
        ensure!(given as usize == len, "vmsplice took {given} of {len} bytes");
        Ok(Spliced { reader, _writer: writer, len })
    }

    /// What is in the pages now.
    pub(crate) fn take(self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.len];
        let mut taken = 0;
        while taken < bytes.len() {
            let more = nix::unistd::read(&self.reader, &mut bytes[taken..])?;
            ensure!(more > 0, "the pipe ended");
            taken += more;
        }
        Ok(bytes)
    }
}

/// A file in memory with these bytes.
pub(crate) fn file_of(bytes: &[u8]) -> Result<OwnedFd> {
    // SAFETY: the name ends with a zero byte; a descriptor that is returned is nobody else's.
    let file = unsafe {
        let fd = Errno::result(libc::memfd_create(c"bytes".as_ptr(), libc::MFD_CLOEXEC))?;
        OwnedFd::from_raw_fd(fd)
    };
    let mut left = bytes;
    while !left.is_empty() {
        let written = nix::unistd::write(&file, left)?;
        left = &left[written..];
    }
    nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekSet)?;
    Ok(file)
}
