// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can go wrong between the library and the driver. How a *command* ended is not here: that is
//! the completion's status.

use nix::errno::Errno;
use std::path::PathBuf;

/// An error of the library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device's file can't be opened.
    #[error("can't open {}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The driver refused an ioctl.
    #[error("{name}: {errno}")]
    Ioctl {
        /// The ioctl's name.
        name: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// The driver ended [`Device::acquire`](crate::Device::acquire) or [`release`](crate::Device::release) early.
    #[error("{name}: {errno} after {done} pages")]
    Partial {
        /// The ioctl's name.
        name: &'static str,
        /// Pages that were acquired or released.
        done: u64,
        /// Its error.
        errno: Errno,
    },
    /// Memory can't be mapped.
    #[error("can't map {what}: {errno}")]
    Map {
        /// What it was for.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The driver's answer makes no sense, such as a mapping that is too small for its ring.
    #[error("the driver's answer makes no sense: {0}")]
    BadAnswer(&'static str),
    /// As many commands are in flight as the submission queue has entries.
    #[error("the submission queue is full")]
    Full,
    /// No command is in flight, so there is nothing to wait for.
    #[error("no command is in flight")]
    Idle,
    /// [`Queue::execute`](crate::Queue::execute) while other commands are in flight.
    #[error("other commands are in flight")]
    Busy,
    /// The device broke the queue because of a bad doorbell (spec 4.5).
    #[error("the queue is broken: bad doorbell")]
    Broken,
    /// The device died or was removed.
    #[error("the device is gone")]
    DeviceLost,
    /// Nothing happened in the time given.
    #[error("timed out")]
    TimedOut,
    /// A command would reach outside its memory.
    #[error("{what} reaches outside {len} elements")]
    OutOfBounds {
        /// What does: a stride, an index.
        what: &'static str,
        /// Elements in the slice.
        len: usize,
    },
}

impl Error {
    /// The errno of the driver, if the error came from it.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Ioctl { errno, .. } | Error::Partial { errno, .. } | Error::Map { errno, .. } => {
                Some(*errno)
            }
            Error::Open { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Error::DeviceLost => Some(Errno::ENODEV),
            Error::TimedOut => Some(Errno::ETIMEDOUT),
            _ => None,
        }
    }

    /// The driver's error, after so many pages.
    pub(crate) fn after(self, done: u64) -> Self {
        match self {
            Error::Ioctl { name, errno } => Error::Partial { name, done, errno },
            other => other,
        }
    }
}
