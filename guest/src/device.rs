// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/dev/svmxN`: a context, and the driver's ioctls (spec 9).
#![expect(unsafe_code, reason = "calls ioctl")]

use crate::error::Error;
use crate::mapping::Mapping;
use crate::queue::{Queue, QueueSize};
use crate::ring::Rings;
use nix::errno::Errno;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::uapi::{
    self, Acquire, Info, Kick, Policy, QueueCreate, QueueDestroy, Release, SetPolicy, Stats, Wait,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// A context: this process's address space, as the device sees it. Clones are the same context, which
/// ends with the last of them and of its queues.
#[derive(Debug, Clone)]
pub struct Device {
    file: Arc<File>,
}

/// A structure and its ioctl. Only those for which the pair is right implement it.
trait Request: FromBytes + IntoBytes {
    const NUMBER: u32;
    const NAME: &'static str;
}

macro_rules! requests {
    ($($ty:ty = $number:ident;)*) => {$(
        impl Request for $ty {
            const NUMBER: u32 = uapi::$number;
            const NAME: &'static str = stringify!($number);
        }
    )*};
}

requests! {
    Info = IOC_INFO;
    QueueCreate = IOC_QUEUE_CREATE;
    QueueDestroy = IOC_QUEUE_DESTROY;
    Kick = IOC_KICK;
    Wait = IOC_WAIT;
    Stats = IOC_STATS;
    Acquire = IOC_ACQUIRE_EXCLUSIVE;
    Release = IOC_RELEASE;
    SetPolicy = IOC_POLICY;
}

impl Device {
    /// The file of the `n`-th device.
    pub fn path(n: u32) -> PathBuf {
        PathBuf::from(format!("/dev/svmx{n}"))
    }

    /// Opens the `n`-th device.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_nth(n: u32) -> Result<Self, Error> {
        Self::open(Self::path(n))
    }

    /// Opens a device, which makes a context.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Ok(Device { file: Arc::new(file) })
    }

    /// What device and driver can do.
    ///
    /// # Errors
    /// [`Error::Ioctl`], [`Error::DeviceLost`].
    pub fn info(&self) -> Result<Info, Error> {
        let mut info = Info { size: size_of::<Info>() as u32, ..Info::default() };
        self.ioctl(&mut info)?;
        Ok(info)
    }

    /// What happened in this context since it was opened.
    ///
    /// # Errors
    /// [`Error::Ioctl`], [`Error::DeviceLost`].
    pub fn stats(&self) -> Result<Box<Stats>, Error> {
        let mut stats = Box::new(Stats::new_zeroed());
        stats.size = size_of::<Stats>() as u32;
        self.ioctl(&mut *stats)?;
        Ok(stats)
    }

    /// Makes a queue.
    ///
    /// # Errors
    /// [`Error::Ioctl`] (ENOSPC: none is free), [`Error::Map`], [`Error::BadAnswer`], [`Error::DeviceLost`].
    pub fn create_queue(&self, size: QueueSize) -> Result<Queue, Error> {
        let QueueSize { sq_log2, cq_log2 } = size;
        let mut create =
            QueueCreate { size: size_of::<QueueCreate>() as u32, sq_log2, cq_log2, ..QueueCreate::default() };
        self.ioctl(&mut create)?;
        self.map_rings(&create).map(|rings| Queue::new(self.clone(), create.queue, rings)).inspect_err(|_| {
            let _ = self.destroy_queue(create.queue);
        })
    }

    fn map_rings(&self, create: &QueueCreate) -> Result<Rings, Error> {
        let file = self.as_fd();
        let sq = Mapping::of_file(file, "a submission queue", create.sq_offset, create.sq_bytes, true)?;
        let cq = Mapping::of_file(file, "a completion queue", create.cq_offset, create.cq_bytes, false)?;
        let doorbell = Mapping::of_file(file, "a doorbell page", create.doorbell_offset, PAGE_SIZE, true)?;
        Rings::new((sq, create.sq_log2), (cq, create.cq_log2), doorbell)
    }

    /// Sleeps until the completion with free-running `index` is posted in queue `queue`. What
    /// [`Queue::complete`] calls.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::DeviceLost`], and [`Error::Ioctl`] with EINTR, ENOENT (no such queue) or
    /// ECANCELED (it was destroyed).
    pub fn wait(&self, queue: u32, index: u32, timeout: Option<Duration>) -> Result<(), Error> {
        let timeout_ns = timeout.map_or(-1, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX));
        let mut wait = Wait { size: size_of::<Wait>() as u32, flags: 0, queue, index, timeout_ns };
        self.ioctl(&mut wait)
    }

    /// Gets the device every page of `range`, whole pages, ahead of use: exclusively, or as the policy says. Atomics there
    /// have no fault then, until something takes a page back, such as a CPU that touches it.
    ///
    /// # Errors
    /// [`Error::Partial`]: the first `done` pages were acquired, then came the error. EFAULT: no memory; EACCES: not
    /// writable; EOPNOTSUPP: memory that can't be exclusive; EAGAIN: taken back each time; EINTR: a signal, go on behind
    /// those that are done; EINVAL: not whole pages, none, or addresses that the device doesn't have.
    /// [`Error::DeviceLost`].
    pub fn acquire(&self, range: Range<u64>) -> Result<(), Error> {
        const STEP: u64 = uapi::MAX_ACQUIRE_PAGES * PAGE_SIZE;
        let (size, mut addr, mut done) = (size_of::<Acquire>() as u32, range.start, 0);
        loop {
            let len = range.end.wrapping_sub(addr).min(STEP);
            let mut acquire = Acquire { size, flags: 0, addr, len, done: 0 };
            let result = self.ioctl(&mut acquire);
            done += acquire.done;
            result.map_err(|error| error.after(done))?;
            addr += len;
            if addr == range.end {
                return Ok(());
            }
        }
    }

    /// Takes `range`, whole pages, from the device and gives the CPU the pages back that the device had exclusively, so
    /// that touching them does not fault page by page. Returns how many pages the device had, in whichever way.
    ///
    /// # Errors
    /// [`Error::Partial`] with EINTR, after which the rest can be released by the same call, or EINVAL as for
    /// [`Self::acquire`]; [`Error::DeviceLost`].
    pub fn release(&self, range: Range<u64>) -> Result<u64, Error> {
        let (addr, len) = (range.start, range.end.wrapping_sub(range.start));
        let mut release = Release { size: size_of::<Release>() as u32, flags: 0, addr, len, done: 0 };
        let result = self.ioctl(&mut release);
        result.map(|()| release.done).map_err(|error| error.after(release.done))
    }

    /// Says how the device's atomics on `range`, whole pages, are served: exclusively, which is the default; or, for
    /// memory that is shared with others or that CPUs hammer all the time, by single atomic instructions of the host.
    /// [`SharedSlice::pages`](crate::SharedSlice::pages) has the range of a slice.
    ///
    /// It may be called at any time: no update is lost by it, whatever runs. The policy is this context's, and belongs
    /// to the addresses: whatever is mapped there later has it too.
    ///
    /// # Errors
    /// [`Error::Ioctl`] with EINVAL (not whole pages, none, or addresses that the device doesn't have) or ENOSPC (more than
    /// [`MAX_POLICIES`](uapi::MAX_POLICIES) ranges), [`Error::DeviceLost`].
    pub fn set_policy(&self, range: Range<u64>, policy: Policy) -> Result<(), Error> {
        let size = size_of::<SetPolicy>() as u32;
        let (addr, len) = (range.start, range.end.wrapping_sub(range.start));
        self.ioctl(&mut SetPolicy { size, flags: 0, addr, len, policy, reserved: 0 })
    }

    pub(crate) fn kick(&self, queue: u32) -> Result<(), Error> {
        let size = size_of::<Kick>() as u32;
        self.ioctl(&mut Kick { size, queue, ..Kick::default() })
    }

    pub(crate) fn destroy_queue(&self, queue: u32) -> Result<(), Error> {
        let size = size_of::<QueueDestroy>() as u32;
        self.ioctl(&mut QueueDestroy { size, queue, ..QueueDestroy::default() })
    }

    fn ioctl<T: Request>(&self, argument: &mut T) -> Result<(), Error> {
        let argument: *mut T = argument;
        // SAFETY: the number encodes the size of `T` and the driver copies no more than that, in and out;
        // `argument` is valid for both, and any bytes are a `T`.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), T::NUMBER.into(), argument) };
        match Errno::result(result) {
            Ok(_) => Ok(()),
            Err(Errno::ENODEV) => Err(Error::DeviceLost),
            Err(Errno::ETIMEDOUT) => Err(Error::TimedOut),
            Err(errno) => Err(Error::Ioctl { name: T::NAME, errno }),
        }
    }
}

impl AsFd for Device {
    /// For `poll`: readable while a queue of the context has a completion that was not taken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
