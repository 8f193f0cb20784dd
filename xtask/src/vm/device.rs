// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device processes of a run: started before QEMU, watched, and expected to end well.

use crate::failure::bad_request;
use crate::process::{self, Running};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fs::{self, File};
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::task::Poll;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;

/// How long a device may take to listen on its socket, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a device logs when QEMU may connect.
const LISTENING: &str = "listening on ";

/// One device process.
#[derive(Debug)]
pub(crate) struct Device {
    running: Running,
    log: PathBuf,
    ended: Option<ExitStatus>,
    killed: bool,
    /// It is stopped until then.
    stopped: Option<Instant>,
}

/// The socket's name in the folder of sockets.
pub(crate) fn socket_name(index: usize) -> String {
    format!("device-{index}.sock")
}

impl Device {
    /// Starts device number `index` and waits until it listens.
    pub(crate) async fn start(
        binary: &Path,
        index: usize,
        options: &[OsString],
        sockets: &Path,
        run_dir: &Path,
    ) -> Result<Self> {
        let socket = sockets.join(socket_name(index));
        let log = run_dir.join(format!("device-{index}.log"));
        let stderr = File::create(&log)?;
        let mut command = Command::new(binary);
        command.arg("--once").arg("--socket").arg(&socket).args(options);
        // Its log is judged, and must say what we wait for.
        command.env_remove("SVMX_LOG");
        command.stdin(Stdio::null()).stdout(stderr.try_clone()?).stderr(stderr);
        let running = Running::start(&mut command)?;
        let mut device = Device { running, log, ended: None, killed: false, stopped: None };
        device.listening().await.with_context(|| format!("device {index}"))?;
        Ok(device)
    }

    async fn listening(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.says_so() {
            tokio::select! {
                status = self.running.wait() => {
                    let status = status?;
                    if status.code() == Some(2) {
                        // It says in a line what is wrong with its arguments, which are the user's.
                        return Err(bad_request(process::tail(&self.log, 1).trim()));
                    }
                    bail!("ended before it listened: {}\n{}", process::describe(status), process::tail(&self.log, 10))
                }
                () = tokio::time::sleep_until(deadline) => {
                    bail!("does not listen on its socket\n{}", process::tail(&self.log, 10))
                }
                () = tokio::time::sleep(Duration::from_millis(2)) => {}
            }
        }
        Ok(())
    }

    /// The socket's file is there before anybody can connect to it.
    fn says_so(&self) -> bool {
        fs::read_to_string(&self.log).is_ok_and(|log| log.contains(LISTENING))
    }

    /// Ends it without warning, because the guest asked for that.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.killed = true;
        self.running.signal(Signal::SIGKILL);
        self.ended = Some(self.running.wait().await?);
        Ok(())
    }

    /// Stops it for a while, because the guest asked for that: see [`continue_due`].
    pub(crate) fn stop(&mut self, time: Duration) {
        self.running.signal(Signal::SIGSTOP);
        self.stopped = Some(Instant::now() + time);
    }

    fn go_on(&mut self) {
        if self.stopped.take().is_some() {
            self.running.signal(Signal::SIGCONT);
        }
    }

    /// Sees to its end after QEMU's; what is wrong with it.
    pub(crate) async fn finish(&mut self, index: usize) -> Option<String> {
        self.go_on();
        if self.killed {
            return None;
        }
        if let Ok(status) = tokio::time::timeout(PATIENCE, self.running.wait()).await {
            return match status {
                Ok(status) if status.success() => None,
                Ok(status) => Some(format!("device {index} ended with {}", process::describe(status))),
                Err(error) => Some(format!("device {index} can't be waited for: {error}")),
            };
        }
        self.running.signal(Signal::SIGTERM);
        let obeyed = tokio::time::timeout(PATIENCE, self.running.wait()).await.is_ok();
        self.running.signal(Signal::SIGKILL);
        let how = if obeyed { "had to be told to end" } else { "had to be killed: it ignores SIGTERM" };
        Some(format!("device {index} {how} after QEMU was gone"))
    }
}

/// When the next one that is stopped must be continued.
pub(crate) fn next_continue(devices: &[Device]) -> Option<Instant> {
    devices.iter().filter_map(|device| device.stopped).min()
}

/// Continues those that have been stopped long enough.
pub(crate) fn continue_due(devices: &mut [Device]) {
    let now = Instant::now();
    devices
        .iter_mut()
        .filter(|device| device.stopped.is_some_and(|until| until <= now))
        .for_each(Device::go_on);
}

/// Waits until one of them ends that has not been known to have ended. May be cancelled.
pub(crate) async fn any_end(devices: &mut [Device]) -> (usize, Result<ExitStatus>) {
    poll_fn(|context| {
        for (index, device) in devices.iter_mut().enumerate().filter(|(_, device)| device.ended.is_none()) {
            if let Poll::Ready(status) = pin!(device.running.wait()).poll(context) {
                device.ended = status.as_ref().ok().copied();
                return Poll::Ready((index, status));
            }
        }
        Poll::Pending
    })
    .await
}
