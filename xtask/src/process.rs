// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Child processes that end with us: each in a process group of its own, killed when dropped, and
//! killed by the kernel if we die without dropping anything.

// `pre_exec` is unsafe; it is the only place where a child can ask for its parent-death signal.
#![expect(unsafe_code)]

use crate::progress::Step;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

/// A child process, killed with its whole group when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    group: Pid,
    ended: Option<ExitStatus>,
    /// How long it may clean up after itself when dropped, before it is killed.
    grace: Duration,
}

/// What a step may take that neither compiles a kernel nor depends on a package mirror.
const STEP_LIMIT: Duration = Duration::from_secs(30 * 60);
/// What any other step may take.
pub(crate) const LONG_STEP_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

impl Running {
    /// Starts `command` in a process group of its own.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let parent = nix::unistd::getpid();
        command.process_group(0).kill_on_drop(true);
        // SAFETY: between fork and exec the closure only makes the system calls prctl and getppid; it
        // allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // The parent may have died before the line above took effect.
                if nix::unistd::getppid() != parent {
                    return Err(nix::errno::Errno::ESRCH.into());
                }
                Ok(())
            });
        }
        let program = command.as_std().get_program().to_owned();
        let child = command.spawn().with_context(|| format!("can't start {}", program.to_string_lossy()))?;
        let pid = child.id().context("the child ended before it started")?;
        Ok(Running { child, group: Pid::from_raw(pid.cast_signed()), ended: None, grace: Duration::ZERO })
    }

    /// Lets it clean up after itself for that long when it is dropped.
    pub(crate) fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The process itself, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal to the process and those it started.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // A process that is just ending is no error.
            let _ = killpg(self.group, signal);
        }
    }

    /// Waits for its end. May be called again, and cancelled.
    pub(crate) async fn wait(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let status = self.child.wait().await?;
        self.ended = Some(status);
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_some() {
            return;
        }
        if !self.grace.is_zero() {
            self.signal(Signal::SIGTERM);
            gone_within(self.group, self.grace);
        }
        // Also after a clean end: what it started may be slower than it.
        self.signal(Signal::SIGKILL);
        // Whoever looks after we are gone shall find nothing. A killed process is gone within
        // milliseconds, unless it waits for a disk, and for that nobody should have to wait.
        gone_within(self.group, Duration::from_millis(500));
    }
}

/// Waits for the end of a child, in a place that can't await.
fn gone_within(child: Pid, limit: Duration) {
    let deadline = Instant::now() + limit;
    while waitpid(child, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive)
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a process ended, for people.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => "an unknown end".to_owned(),
    }
}

/// What a program says that has nothing to do but to answer.
///
/// # Errors
/// When it can't be started or takes longer than 20 s.
pub(crate) async fn answer(command: &mut Command) -> std::io::Result<Output> {
    const LIMIT: Duration = Duration::from_secs(20);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(LIMIT, output).await {
        Ok(output) => output,
        Err(_) => Err(std::io::Error::other(format!("no answer in {} s", LIMIT.as_secs()))),
    }
}

/// Runs `command` to its end with its output in `log`, each line also given to `watch`.
///
/// # Errors
/// When it can't be started, fails, or takes too long; the message has the log's last lines and its path.
pub(crate) async fn logged(
    command: &mut Command,
    log: &Path,
    step: &Step,
    watch: impl FnMut(&Step, &str),
) -> Result<()> {
    logged_within(STEP_LIMIT, command, log, step, watch).await
}

/// [`logged`] with a limit of the caller's.
pub(crate) async fn logged_within(
    limit: Duration,
    command: &mut Command,
    log: &Path,
    step: &Step,
    watch: impl FnMut(&Step, &str),
) -> Result<()> {
    match tokio::time::timeout(limit, logged_to_end(command, log, step, watch)).await {
        Ok(result) => result,
        Err(_) => {
            let program = command.as_std().get_program().to_string_lossy().into_owned();
            bail!("{program}: not done after {} s\n{}", limit.as_secs(), tail(log, 20))
        }
    }
}

async fn logged_to_end(
    command: &mut Command,
    log: &Path,
    step: &Step,
    mut watch: impl FnMut(&Step, &str),
) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(log)?;
    writeln!(file, "+ {:?}", command.as_std())?;
    // One pipe for both streams, so that the log has their lines in order.
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let started = Running::start(command);
    // The command keeps its ends of the pipe until it is given others; then only the child has one.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = started?;
    copy_lines(Receiver::from_owned_fd(reader.into())?, &mut file, |line| watch(step, line)).await?;
    expect_success(command, running.wait().await?, log)
}

/// Fails, with the log's tail, unless `status` is success.
pub(crate) fn expect_success(command: &Command, status: ExitStatus, log: &Path) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    bail!("{program}: {}\n{}", describe(status), tail(log, 20));
}

/// Copies lines to `file` and to `each` until the stream ends.
pub(crate) async fn copy_lines(
    from: impl AsyncRead + Unpin,
    file: &mut impl Write,
    mut each: impl FnMut(&str),
) -> Result<()> {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).await? != 0 {
        file.write_all(&line)?;
        each(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(())
}

/// The last `lines` lines of a log and its path.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let last = &all[all.len().saturating_sub(lines)..];
    let mut shown: String = last.iter().map(|line| format!("    {line}\n")).collect();
    shown.push_str(&format!("  (last {} lines of {})", last.len(), log.display()));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropping_ends_the_whole_group() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
        let mut running = Running::start(&mut command).unwrap();
        let mut grandchild = String::new();
        let stdout = running.child().stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut grandchild).await.unwrap();
        drop(running);
        let stat = format!("/proc/{}/stat", grandchild.trim());
        for _ in 0..100 {
            // Gone, or a zombie that nobody has reaped yet.
            match fs::read_to_string(&stat) {
                Err(_) => return,
                Ok(text) if text.contains(") Z ") => return,
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        panic!("the grandchild is still there");
    }

    #[tokio::test]
    async fn one_with_grace_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scratch");
        let mut command = Command::new("sh");
        command.args(["-c", "trap 'rm \"$0\"; exit' TERM; touch \"$0\"; while :; do sleep 0.05; done"]);
        let running = Running::start(command.arg(&file)).unwrap().with_grace(Duration::from_secs(10));
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The trap was set before the file was made.
        drop(running);
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn a_step_has_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let progress = crate::progress::Progress::new(false);
        let (mut command, step) = (Command::new("sleep"), progress.step("x"));
        let log = dir.path().join("log");
        let running = logged_within(Duration::from_millis(20), command.arg("1000"), &log, &step, |_, _| ());
        assert!(running.await.unwrap_err().to_string().contains("not done"));
    }

    #[tokio::test]
    async fn a_failure_shows_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let progress = crate::progress::Progress::new(false);
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let mut seen = Vec::new();
        let error = logged(&mut command, &log, &progress.step("x"), |_, line| seen.push(line.to_owned()))
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(seen, ["out", "err"]);
        assert!(
            error.contains("exit code 3") && error.contains("    err\n") && error.contains("log"),
            "{error}"
        );
    }
}
