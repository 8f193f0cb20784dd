// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sockets and waiting: the listening socket's file, the one wait that everything else returns from, and how
//! another thread ends it. What goes over a connection is [`super::stream`]'s.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::Mode;
use rustix::io::Errno;

/// What a client is usually given: more than a debugger's user needs to go on, less than an operator's.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process serves this socket.
    #[error("{0}: in use by another process")]
    InUse(PathBuf),
    /// What is there is not a socket.
    #[error("{0}: exists and is not a socket")]
    NotASocket(PathBuf),
    /// The socket can't be made.
    #[error("{path}: {source}")]
    Failed {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket that clients connect to. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Makes the socket, accessible to its owner only; a file of a socket that nobody listens on is replaced.
    /// To be called before other threads make files: the process's umask changes for a moment.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError::Failed { path: path.into(), source };
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(BindError::NotASocket(path.into()));
            }
            // A datagram socket can't connect to a stream socket, but learns whether one is there: the
            // process that waits for its client must not take this for it.
            match UnixDatagram::unbound().and_then(|probe| probe.connect(path)) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.raw_os_error() != Some(Errno::PROTOTYPE.raw_os_error()) => {
                    return Err(failed(error));
                }
                Ok(()) | Err(_) => return Err(BindError::InUse(path.into())),
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let socket = UnixListener::bind(path);
        rustix::process::umask(umask);
        let socket = socket.map_err(failed)?;
        let listener = Listener { socket, path: path.into() };
        // Who connected may have gone again when it is accepted.
        listener.socket.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a client; `None` if told to stop.
    pub fn accept(&self, stop: &Stop) -> io::Result<Option<UnixStream>> {
        let attention = Attention::new(stop);
        while attention.wait(self.socket.as_fd(), PollFlags::IN, None)? != Wake::Stopped {
            if let Some(client) = self.waiting()? {
                return Ok(Some(client));
            }
        }
        Ok(None)
    }

    /// Hangs up on a client that waits. Whether one did.
    pub(super) fn turn_away(&self) -> io::Result<bool> {
        Ok(self.waiting()?.is_some())
    }

    fn waiting(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((client, _)) => Ok(Some(client)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Ends waiting, and serving, from any thread and for good.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Told>);

#[derive(Debug)]
struct Told {
    /// For those who wait.
    event: OwnedFd,
    /// For those who have enough to do.
    told: AtomicBool,
}

impl Stop {
    /// One that has not been told.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Stop(Arc::new(Told { event, told: AtomicBool::new(false) })))
    }

    /// Every wait that knows this one returns, now and later.
    pub fn stop(&self) {
        self.0.told.store(true, Ordering::Relaxed);
        // It fails if the counter is full, which is as good.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
    }

    /// Whether it has been told.
    pub(super) fn told(&self) -> bool {
        self.0.told.load(Ordering::Relaxed)
    }
}

/// What else a wait for a client returns for.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Whoever may end it.
    pub stop: &'a Stop,
    /// Where other clients may come, to be told that one is served.
    pub listener: Option<&'a Listener>,
    /// How long a client may let the rest of a message wait, or not take an answer. It counts from the last
    /// byte that moved, and does not run between messages.
    pub patience: Duration,
}

/// Why a wait returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// What was waited for is there, or may be.
    Ready,
    /// Told to stop.
    Stopped,
    /// The client is quiet, and another one wants in.
    Newcomer,
    /// The time is over.
    TimedOut,
}

impl<'a> Attention<'a> {
    /// No other clients, and [`PATIENCE`].
    pub fn new(stop: &'a Stop) -> Self {
        Attention { stop, listener: None, patience: PATIENCE }
    }

    /// Waits until a socket is ready, or for the other reasons.
    pub(super) fn wait(
        &self,
        socket: BorrowedFd<'_>,
        ready: PollFlags,
        patience: Option<Duration>,
    ) -> io::Result<Wake> {
        let patience = patience.map(|patience| Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: patience.subsec_nanos().into(),
        });
        let stop = self.stop.0.event.as_fd();
        // poll() takes no "nobody": the stop event a second time is as good.
        let door = self.listener.map_or(stop, |listener| listener.socket.as_fd());
        // They are looked at in this order. A newcomer may be the successor of a client that has just hung up:
        // then that is seen too.
        let mut fds = [
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(door, PollFlags::IN),
            PollFd::from_borrowed_fd(socket, ready),
        ];
        match poll(&mut fds, patience.as_ref()) {
            Ok(0) => return Ok(Wake::TimedOut),
            // A signal that this thread does not handle, as when the process is stopped and continued.
            Err(Errno::INTR) => return Ok(Wake::Ready),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let [stopped, _, ready] = fds.map(|fd| !fd.revents().is_empty());
        Ok(match (stopped, ready) {
            (true, _) => Wake::Stopped,
            (_, true) => Wake::Ready,
            _ => Wake::Newcomer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_somebody_listens_on_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::InUse(_))));
        drop(first);
        assert!(!path.exists());
        // Nobody listens any more.
        drop(UnixListener::bind(&path).unwrap());
        drop(Listener::bind(&path).unwrap());
        std::fs::write(&path, "").unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::NotASocket(_))));
    }

    #[test]
    fn what_can_not_be_asked_is_not_in_use_but_an_error() {
        let folder = tempfile::tempdir().unwrap();
        // Too long for an address; its maker has gone by another way.
        let (long, short) = (folder.path().join("f".repeat(120)), folder.path().join("short"));
        std::fs::create_dir(&long).unwrap();
        std::os::unix::fs::symlink(&long, &short).unwrap();
        let _first = UnixListener::bind(short.join("socket")).unwrap();
        let failed = Listener::bind(&long.join("socket"));
        assert!(matches!(failed, Err(BindError::Failed { .. })), "{failed:?}");
        assert!(short.join("socket").exists());
    }
}
