// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The real binary, for tests that want a process: with its socket in a folder of its own and its log in a file
//! beside that.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::HANG;

/// A process, killed when this is dropped if it has not ended by then.
#[derive(Debug)]
pub struct Binary {
    child: Child,
    folder: TempDir,
}

impl Binary {
    /// Starts the program with these arguments, and waits until it listens.
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let binary = Self::spawn(program, arguments, |_| ());
        binary.says("listening on");
        binary
    }

    /// Starts the program, after what is done to the command, and does not wait.
    pub fn spawn(program: &str, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command(program, folder.path(), arguments);
        prepare(&mut command);
        Binary { child: command.spawn().unwrap(), folder }
    }

    /// Starts the program once more in the same folder, when it has ended.
    pub fn again(&mut self, program: &str, arguments: &[&str]) {
        assert!(self.child.try_wait().unwrap().is_some(), "it is still there");
        self.child = command(program, self.folder.path(), arguments).spawn().unwrap();
    }

    /// The folder of its socket and its log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("device.sock")
    }

    /// A connection on which nothing has been said. The file is there a moment before it is listened on.
    pub fn connect(&self) -> UnixStream {
        let mut stream = None;
        patiently("a connection", || {
            stream = UnixStream::connect(self.socket()).ok();
            stream.is_some()
        });
        stream.unwrap()
    }

    /// What it has logged, since the last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits until the log has this.
    pub fn says(&self, what: &str) {
        patiently(what, || self.log().contains(what));
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// A file or folder that the kernel has about it.
    pub fn proc(&self, what: &str) -> PathBuf {
        format!("/proc/{}/{what}", self.pid()).into()
    }

    /// How many descriptors it has.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end, which must come by itself.
    pub fn ended(&mut self) -> ExitStatus {
        patiently("the device's end", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }

    /// Waits for an end that leaves no socket and is a success; the log.
    pub fn ends_well(&mut self) -> String {
        let (status, log) = (self.ended(), self.log());
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(log.matches("ended commands=").count(), 1, "{log}");
        assert!(!self.socket().exists(), "socket left behind");
        log
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, with its socket and its log in a folder.
pub fn command(program: &str, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg("--socket").arg(folder.join("device.sock")).args(arguments).env_remove("SVMX_LOG");
    command.stdout(Stdio::null()).stderr(File::create(folder.join("log")).unwrap());
    command
}

/// Waits for another process, which takes its time; see [`crate::wait_until`].
pub fn patiently(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < HANG, "hang: waiting for {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
