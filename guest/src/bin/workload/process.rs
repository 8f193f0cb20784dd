// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes that a scenario starts: this program again, as `workload child NAME …`, with a line-wise
//! conversation over its standard input and output.

use crate::scenario::{LIMIT_VARIABLE, limit};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A child; killed when dropped.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    pub(crate) fn start(name: &str, arguments: &[String]) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["child", name]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.env(LIMIT_VARIABLE, limit().as_secs().to_string());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("no standard output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Ends with the child, or with whoever listens.
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line).ok())
        });
        Ok(Process { child, input, lines })
    }

    /// Its identifier.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Says a line to the child.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input is closed")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Waits for the line `expected`.
    pub(crate) fn expect(&mut self, expected: &str, timeout: Duration) -> Result<()> {
        let line = self.line(timeout).with_context(|| format!("waiting for {expected:?}"))?;
        ensure!(line == expected, "the child said {line:?}, not {expected:?}");
        Ok(())
    }

    /// Waits for a line.
    pub(crate) fn line(&mut self, timeout: Duration) -> Result<String> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(line),
            Err(error) => bail!("the child says nothing: {error}; {:?}", self.child.try_wait()?),
        }
    }

    /// Lines that are there already.
    pub(crate) fn lines(&mut self) -> impl Iterator<Item = String> + '_ {
        self.lines.try_iter()
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill")
    }

    /// Closes its input and waits until it has ended.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.input = None;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(start.elapsed() < timeout, "process {} did not end in {timeout:?}", self.child.id());
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended. Waiting could hang where it can't be killed; the init reaps it.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

/// A child's side: says a line.
pub(crate) fn tell(line: &str) -> Result<()> {
    println!("{line}");
    Ok(std::io::stdout().flush()?)
}

/// A child's side: waits for a line, or for the end of its input, which is an empty line.
pub(crate) fn listen() -> Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim().into())
}
