// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The way to the init and through it to the host: metrics, one verdict, requests. Without an init (in
//! the guest's shell) the verdict goes to standard output.
#![expect(unsafe_code, reason = "takes over the socket that the init left open")]

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::io::{BufRead, BufReader};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use svmx::report::{Action, Message, Metrics, SOCKET_VARIABLE, Verdict};

struct Link {
    socket: Option<BufReader<UnixStream>>,
    metrics: Metrics,
    requests: u32,
    said: bool,
}

static LINK: Mutex<Option<Link>> = Mutex::new(None);

fn with<R>(use_link: impl FnOnce(&mut Link) -> R) -> R {
    let mut link: MutexGuard<'_, Option<Link>> = LINK.lock().unwrap_or_else(PoisonError::into_inner);
    let new = || Link { socket: None, metrics: Metrics::new(), requests: 0, said: false };
    use_link(link.get_or_insert_with(new))
}

/// Takes the socket over. Called once, before there are threads.
pub(crate) fn open() {
    let number = std::env::var(SOCKET_VARIABLE).ok().and_then(|number| number.parse().ok());
    let socket = number.map(|number: i32| {
        // SAFETY: the init says in the variable that this descriptor is open and ours; nobody else in
        // this process takes it, since `open` is called once.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        // Children must not hold it open. It was just said to be a descriptor, so this can't fail.
        let _ = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        BufReader::new(UnixStream::from(fd))
    });
    with(|link| link.socket = socket);
}

/// Notes a number for the verdict.
pub(crate) fn metric(name: &str, value: impl Into<serde_json::Value>) {
    with(|link| link.metrics.insert(name.into(), value.into()));
}

/// Says the verdict, the first time that it is called.
pub(crate) fn say(verdict: Verdict, detail: String) {
    with(|link| {
        if std::mem::replace(&mut link.said, true) {
            return;
        }
        let message = Message::Verdict { verdict, detail, metrics: std::mem::take(&mut link.metrics) };
        // Whoever does not listen will miss it, and judge so.
        let _ = match &link.socket {
            Some(socket) => message.send(socket.get_ref()),
            None => message.send(std::io::stdout()),
        };
    });
}

/// Asks the host for something and waits until it is done.
pub(crate) fn request(action: Action, device: u32) -> Result<()> {
    with(|link| {
        link.requests += 1;
        let id = link.requests;
        let socket = link.socket.as_mut().context("only the host can do this, and there is no init")?;
        socket.get_ref().set_read_timeout(Some(Duration::from_secs(30)))?;
        Message::Request { id, action, device }.send(socket.get_ref())?;
        let mut line = String::new();
        socket.read_line(&mut line).context("the host does not answer")?;
        ensure!(
            serde_json::from_str::<Message>(&line)? == Message::Done { id },
            "the host answered {line:?} to request {id}"
        );
        Ok(())
    })
}
