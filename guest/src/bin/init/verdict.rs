// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The port to the host, of which this is the only owner, and the one verdict that goes through it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use svmx::report::{Message, Metrics, PORT_NAME, Verdict};

/// How a scenario ended, and why.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) verdict: Verdict,
    pub(crate) detail: String,
    pub(crate) metrics: Metrics,
}

impl Ending {
    pub(crate) fn fail(detail: String) -> Self {
        Ending { verdict: Verdict::Fail, detail, metrics: Metrics::new() }
    }

    pub(crate) fn passed(&self) -> bool {
        self.verdict != Verdict::Fail
    }
}

struct Channel {
    /// `None` where the host gave none: then the console has to do.
    port: Option<File>,
    said: bool,
}

static CHANNEL: Mutex<Channel> = Mutex::new(Channel { port: None, said: false });

fn channel() -> MutexGuard<'static, Channel> {
    // A panic while it was held leaves nothing half-done that matters more than a verdict.
    CHANNEL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the virtio port.
pub(crate) fn open_port() {
    let port = find_port().and_then(|path| OpenOptions::new().read(true).write(true).open(path).ok());
    if port.is_none() {
        println!("svmx-init: no port {PORT_NAME}");
    }
    channel().port = port;
}

/// The port, to read from.
pub(crate) fn reader() -> Option<File> {
    channel().port.as_ref()?.try_clone().ok()
}

/// Sends a line that is not the verdict.
pub(crate) fn tell(message: &Message) {
    if let Some(port) = &channel().port {
        // A host that does not listen will say so itself.
        let _ = message.send(port);
    }
}

/// Sends the verdict, the first time that it is called.
pub(crate) fn say(ending: Ending) {
    let mut channel = channel();
    if channel.said {
        return;
    }
    channel.said = true;
    let Ending { verdict, detail, metrics } = ending;
    println!("svmx-init: {verdict:?}: {detail}");
    let message = Message::Verdict { verdict, detail, metrics };
    match &channel.port {
        Some(port) => drop(message.send(port)),
        None => drop(message.send(std::io::stdout())),
    }
}

/// A panic in any thread of the init is a failing verdict and the end.
pub(crate) fn fail_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        // The channel may be held by the very thread that panics.
        if CHANNEL.try_lock().is_ok() {
            say(Ending::fail(format!("init: {info}")));
        }
        crate::power::off();
    }));
}

fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let named =
        |path: &Path| fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim() == PORT_NAME);
    let path = ports.flatten().map(|entry| entry.path()).find(|path| named(path))?;
    Some(Path::new("/dev").join(path.file_name()?))
}
