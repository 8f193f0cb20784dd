// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The workload's process: starts it, passes its requests on to the host and the answers back, takes its
//! one verdict, and reaps whatever it leaves behind.

use crate::cmdline::Options;
use crate::verdict::{self, Ending};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use svmx::report::{Message, SOCKET_VARIABLE};

const PROGRAM: &str = "/bin/workload";

/// Runs the scenario to its end; afterwards there is no process but this one.
pub(crate) fn run(options: &Options) -> Result<Ending> {
    let (ours, theirs) = sockets()?;
    let mut command = Command::new(PROGRAM);
    command.arg(&options.scenario);
    command.args(["--seed", &options.seed.to_string(), "--cpus", &options.cpus.to_string()]);
    command.args([
        "--devices",
        &options.devices.to_string(),
        "--limit",
        &options.limit.as_secs().to_string(),
    ]);
    command.args(["--module", &options.module, "--only", &options.only]);
    if let Some(seconds) = options.duration {
        command.args(["--duration", &seconds.to_string()]);
    }
    command.env(SOCKET_VARIABLE, theirs.as_raw_fd().to_string());
    let child = command.spawn().context(PROGRAM)?;
    drop(theirs);
    pass_answers(ours.try_clone()?);
    let verdicts = thread::spawn(move || pass_requests(ours));

    let status = reap_until(Pid::from_raw(child.id().cast_signed()))?;
    end_everything();
    // Every other end of the socket is closed now.
    let mut verdicts = verdicts.join().unwrap_or_default();
    let last = verdicts.pop();
    Ok(match (status, last) {
        (WaitStatus::Exited(_, 0), Some(ending)) if verdicts.is_empty() => ending,
        (WaitStatus::Exited(_, 0), Some(_)) => Ending::fail("the workload said several verdicts".into()),
        (WaitStatus::Exited(_, 0), None) => Ending::fail("the workload said no verdict".into()),
        // It exits with 1 when it fails, and has said why.
        (WaitStatus::Exited(_, 1), Some(ending)) if !ending.passed() => ending,
        (status, last) => {
            let said =
                last.map_or("nothing".into(), |ending| format!("{:?}: {}", ending.verdict, ending.detail));
            Ending::fail(format!("the workload ended with {status:?}, having said {said}"))
        }
    })
}

/// Ours is closed on exec, theirs is not.
fn sockets() -> Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok((ours.into(), theirs))
}

/// Reads the workload's lines: requests go to the host, verdicts are kept.
fn pass_requests(from: UnixStream) -> Vec<Ending> {
    let mut verdicts = Vec::new();
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(message @ Message::Request { .. }) => verdict::tell(&message),
            Ok(Message::Verdict { verdict, detail, metrics }) => {
                verdicts.push(Ending { verdict, detail, metrics });
            }
            Ok(_) | Err(_) => verdicts.push(Ending::fail(format!("the workload said {line:?}"))),
        }
    }
    verdicts
}

/// Reads the host's lines, and gives them to the workload. It ends with the machine.
fn pass_answers(to: UnixStream) {
    let Some(port) = verdict::reader() else { return };
    thread::spawn(move || {
        for line in BufReader::new(port).lines().map_while(Result::ok) {
            match serde_json::from_str::<Message>(&line) {
                Ok(message) => drop(message.send(&to)),
                Err(error) => println!("svmx-init: the host said {line:?}: {error}"),
            }
        }
    });
}

/// Reaps children and orphans until `child` has ended.
pub(crate) fn reap_until(child: Pid) -> Result<WaitStatus> {
    loop {
        match waitpid(None, None) {
            Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..))) if pid == child => {
                return Ok(status);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for the workload"),
        }
    }
}

/// Kills what the workload left behind.
fn end_everything() {
    // -1 is everybody but the caller. ESRCH: there is nobody.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while !matches!(waitpid(None, Some(WaitPidFlag::empty())), Err(Errno::ECHILD)) {}
}
