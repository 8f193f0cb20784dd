// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Raising an eventfd that somebody else holds, without ever waiting for them.
//!
//! A `write` can't do that. It waits while the counter is full, and whether it does is a flag of the open file,
//! which everybody shares who has it: a VMM could take O_NONBLOCK away at any moment, fill the counter, and so
//! stop whoever raises an interrupt, with the locks that this one holds, for good. A look at the flag or the
//! counter beforehand is old when the write comes, `RWF_NOWAIT` is not taken by eventfds, and a thread that
//! writes in the others' place costs each interrupt a switch to it and can be stopped too.
//!
//! So the kernel raises it, the way it does by itself when a request is done that somebody gave it (io_submit
//! with `IOCB_FLAG_RESFD`): that adds one to the counter unless it is full, and has no way to wait. The request
//! is one that is done at once, to read nothing from a pipe of our own. What it costs beyond a `write` is half a
//! microsecond. The kernel takes nothing but an eventfd there, so a pipe, a file or a socket is found out when
//! it is given.
//!
//! A host whose kernel has no asynchronous I/O, or none left (`fs.aio-max-nr`), gets a line in the log, and
//! events that are written to.

#![expect(unsafe_code, reason = "makes system calls that have no safe form")]

use std::fs::File;
use std::io::{self, PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::LazyLock;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{self, c_long, c_ulong, timespec};

/// Requests that may be done and not yet taken note of; the kernel rounds up.
const REQUESTS: u32 = 64;
/// Those that are taken note of together.
const DONE: usize = 256;

/// What all devices of this process raise events with: to give such a context back takes the kernel tens of
/// milliseconds, so it is made once.
static CONTEXT: LazyLock<Option<Context>> = LazyLock::new(|| {
    Context::new()
        .inspect_err(|error| {
            tracing::info!("no asynchronous I/O here ({error}): a VMM that means harm can stop this device");
        })
        .ok()
});

/// Raises events.
#[derive(Debug)]
pub(super) struct Signaller(Option<&'static Context>);

impl Signaller {
    /// One that never waits, or where the host does not have that one that should not.
    pub(super) fn new() -> Self {
        Signaller(CONTEXT.as_ref())
    }

    /// Whether this is something that can be raised.
    pub(super) fn accepts(&self, event: &File) -> bool {
        match &self.0 {
            // This can't be done, but what it should raise is looked at first: the pipe's end is for reading.
            Some(context) => context.insist(PWRITE, event) == Err(libc::EBADF),
            None => fcntl(event, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok(),
        }
    }

    /// Adds one to the counter of an event, unless it is full: then it is as raised as it can be.
    pub(super) fn raise(&self, mut event: &File) {
        let Some(context) = &self.0 else {
            let _ = event.write(&1u64.to_ne_bytes());
            return;
        };
        let _ = context.insist(PREAD, event);
    }
}

const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FLAG_RESFD: u32 = 1;

/// The kernel's `struct iocb`.
#[derive(Default)]
#[repr(C)]
struct Request {
    data: u64,
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event: u32,
}

const _: () = assert!(size_of::<Request>() == 64);

/// The kernel's `struct io_event`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Done([u64; 4]);

/// An asynchronous I/O context, and what it reads nothing from.
#[derive(Debug)]
struct Context {
    id: c_ulong,
    nothing: PipeReader,
}

impl Context {
    fn new() -> io::Result<Self> {
        let (nothing, _) = io::pipe()?;
        let mut id: c_ulong = 0;
        // SAFETY: writes the context's number to `id`, which is 0 as it has to be.
        match unsafe { libc::syscall(libc::SYS_io_setup, REQUESTS, &raw mut id) } {
            0 => Ok(Context { id, nothing }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Submits a request for no bytes; an error is an errno.
    fn submit(&self, opcode: u16, event: &File) -> Result<(), i32> {
        let mut request = Request {
            opcode,
            file: self.nothing.as_raw_fd().cast_unsigned(),
            flags: FLAG_RESFD,
            event: event.as_fd().as_raw_fd().cast_unsigned(),
            ..Default::default()
        };
        let list: [*mut Request; 1] = [&raw mut request];
        // SAFETY: the list has one element, which points to a request in the kernel's format that the kernel
        // copies and writes a key into, both before the call returns. The request's buffer has no bytes.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, self.id, list.len() as c_long, list.as_ptr()) };
        if submitted == 1 {
            Ok(())
        } else {
            Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
        }
    }

    /// The same, with room for it. Every time that there is none, others have had all of it since this thread made
    /// some.
    fn insist(&self, opcode: u16, event: &File) -> Result<(), i32> {
        loop {
            match self.submit(opcode, event) {
                Err(libc::EAGAIN) => self.make_room(),
                done => return done,
            }
        }
    }

    /// Takes note of requests that are done; does not wait for any.
    fn make_room(&self) {
        let mut done = [Done::default(); DONE];
        let at_once = timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `done` has room for as many as are asked for; the time is only read.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                0 as c_long,
                done.len() as c_long,
                done.as_mut_ptr(),
                ptr::from_ref(&at_once),
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn event(flags: EfdFlags) -> (EventFd, File) {
        let event = EventFd::from_flags(flags).unwrap();
        let file = File::from(event.as_fd().try_clone_to_owned().unwrap());
        (event, file)
    }

    #[test]
    fn each_time_counts_and_more_than_there_is_room_for() {
        let signaller = Signaller::new();
        let (event, file) = event(EfdFlags::EFD_NONBLOCK);
        assert!(signaller.accepts(&file));
        assert!(event.read().is_err(), "to look at it does not raise it");
        for _ in 0..10 * DONE {
            signaller.raise(&file);
            assert!(signaller.accepts(&file), "also when nobody has taken note of what is done");
        }
        assert_eq!(event.read(), Ok(10 * DONE as u64));
    }

    #[test]
    fn threads_share_it() {
        let signaller = Signaller::new();
        let (event, file) = event(EfdFlags::EFD_NONBLOCK);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| signaller.raise(&file)));
            }
        });
        assert_eq!(event.read(), Ok(4000));
    }

    #[test]
    fn a_full_one_is_not_waited_for() {
        let signaller = Signaller::new();
        assert!(signaller.0.is_some(), "asynchronous I/O is needed to show this");
        let (event, file) = event(EfdFlags::empty());
        event.write(u64::MAX - 1).unwrap();
        (0..3).for_each(|_| signaller.raise(&file));
        assert_eq!(event.read(), Ok(u64::MAX));
    }

    #[test]
    fn nothing_else_is_accepted() {
        let signaller = Signaller::new();
        let (reader, writer) = io::pipe().unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        let file = memfd_create("test", MFdFlags::empty()).unwrap();
        for fd in [OwnedFd::from(reader), writer.into(), stream.into(), file] {
            assert!(!signaller.accepts(&File::from(fd)));
        }
    }

    #[test]
    fn without_asynchronous_io_it_is_a_write() {
        let signaller = Signaller(None);
        let (event, file) = event(EfdFlags::empty());
        assert!(signaller.accepts(&file));
        (0..3).for_each(|_| signaller.raise(&file));
        assert_eq!(event.read(), Ok(3));
        event.write(u64::MAX - 1).unwrap();
        signaller.raise(&file);
        assert_eq!(event.read(), Ok(u64::MAX - 1));
    }
}
