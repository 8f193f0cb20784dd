// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The way to the init and through it to the host: metrics, one verdict, requests. Without an init (in
//! the guest's shell) the verdict goes to standard output.
#![expect(unsafe_code, reason = "takes over the socket that the init left open")]

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::io::{BufRead, BufReader};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use svmx::report::{Action, Message, Metrics, SOCKET_VARIABLE, Verdict};

/// The socket; `None` without an init.
static SOCKET: OnceLock<Option<UnixStream>> = OnceLock::new();
static METRICS: LazyLock<Mutex<Metrics>> = LazyLock::new(Mutex::default);
static SAID: AtomicBool = AtomicBool::new(false);
/// Requests so far. Locked while one is under way; a verdict does not wait for it.
static REQUESTS: Mutex<u32> = Mutex::new(0);

/// Takes the socket over. Called once, before there are threads.
pub(crate) fn open() {
    let number = std::env::var(SOCKET_VARIABLE).ok().and_then(|number| number.parse().ok());
    let socket = number.map(|number: i32| {
        // SAFETY: the init says in the variable that this descriptor is open and ours; nobody else in
        // this process takes it, since `open` is called once.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        // Children must not hold it open. It was just said to be a descriptor, so this can't fail.
        let _ = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        UnixStream::from(fd)
    });
    // The second of two calls would be one too many, see above.
    let _ = SOCKET.set(socket);
}

fn socket() -> Option<&'static UnixStream> {
    SOCKET.get()?.as_ref()
}

fn metrics() -> MutexGuard<'static, Metrics> {
    METRICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a number for the verdict.
pub(crate) fn metric(name: &str, value: impl Into<serde_json::Value>) {
    metrics().insert(name.into(), value.into());
}

/// Says the verdict, the first time that it is called.
pub(crate) fn say(verdict: Verdict, detail: String) {
    if SAID.swap(true, Relaxed) {
        return;
    }
    let message = Message::Verdict { verdict, detail, metrics: std::mem::take(&mut *metrics()) };
    // Whoever does not listen will miss it, and judge so.
    let _ = match socket() {
        Some(socket) => message.send(socket),
        None => message.send(std::io::stdout()),
    };
}

/// Asks the host for something and waits until it is done.
pub(crate) fn request(action: Action) -> Result<()> {
    let mut requests = REQUESTS.lock().unwrap_or_else(PoisonError::into_inner);
    *requests += 1;
    let id = *requests;
    let socket = socket().context("only the host can do this, and there is no init")?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    Message::Request { id, action }.send(socket)?;
    let mut line = String::new();
    // One answer to one request: nothing is left in the buffer.
    BufReader::new(socket).read_line(&mut line).context("the host does not answer")?;
    let done = serde_json::from_str::<Message>(&line)? == Message::Done { id };
    ensure!(done, "the host answered {line:?} to request {id}");
    Ok(())
}
