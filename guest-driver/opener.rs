// SPDX-License-Identifier: GPL-2.0

//! Who opened a context: a process identifier and a name, for people.

use super::sys;
use core::ffi::CStr;
use core::fmt;
use kernel::bindings;

const COMM_LEN: usize = bindings::TASK_COMM_LEN as usize;

/// The process that opened a context, as it was then.
pub(crate) struct Opener {
    pid: i32,
    /// Ends with a zero.
    comm: [u8; COMM_LEN],
}

impl Opener {
    /// The calling one.
    pub(crate) fn current() -> Self {
        let mut comm = [0; COMM_LEN];
        // SAFETY: It has room for TASK_COMM_LEN bytes.
        unsafe { sys::svmx_current_comm(comm.as_mut_ptr().cast()) };
        Opener { pid: kernel::current!().group_leader().pid(), comm }
    }

    /// Its identifier, in the first namespace.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Its name, on one line.
    pub(crate) fn comm(&self) -> Comm<'_> {
        Comm(&self.comm)
    }
}

/// A name, which may be any bytes.
pub(crate) struct Comm<'a>(&'a [u8]);

impl fmt::Display for Comm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = CStr::from_bytes_until_nul(self.0).map_or(&[][..], CStr::to_bytes);
        name.iter().try_for_each(|byte| write!(f, "{}", byte.escape_ascii()))
    }
}
