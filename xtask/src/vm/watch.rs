// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Watches a running guest until it ends: QEMU's monitor, the verdict port, the device processes, the clock.

use super::device::{self, Device};
use super::qmp::{Event, Qmp};
use super::terminal;
use super::verdict::{self, Action, Transcript, Verdict};
use crate::process::{self, Running};
use crate::scenario::Scenario;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// How long QEMU may take to connect to our sockets.
const CONNECT: Duration = Duration::from_secs(30);
/// How long the guest may take from its verdict to its power-off.
const POWER_OFF: Duration = Duration::from_secs(30);
/// How long QEMU may take to take what we write to it, or to answer. Whoever gives up on it kills it.
const ANSWER: Duration = Duration::from_secs(5);

/// The parts of a run, and what has been seen of it.
pub(super) struct Watch<'a> {
    scenario: &'static Scenario,
    devices: &'a mut [Device],
    qemu: &'a mut Running,
    booted: Instant,
    transcript: Transcript,
    boot_to_verdict: Option<Duration>,
    problems: Vec<String>,
}

/// What was seen.
pub(super) struct Seen {
    pub(super) verdict: Option<Verdict>,
    pub(super) detail: String,
    pub(super) metrics: Map<String, Value>,
    pub(super) problems: Vec<String>,
}

/// The connections that QEMU makes to us.
struct Connections {
    qmp: Qmp,
    lines: Lines<BufReader<OwnedReadHalf>>,
    answers: OwnedWriteHalf,
    console: Option<UnixStream>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        scenario: &'static Scenario,
        devices: &'a mut [Device],
        qemu: &'a mut Running,
        booted: Instant,
    ) -> Self {
        let (transcript, problems) = (Transcript::default(), Vec::new());
        Watch { scenario, devices, qemu, booted, transcript, boot_to_verdict: None, problems }
    }

    /// Until the guest has ended, or must be ended because something is wrong; then QEMU has been told to quit.
    pub(super) async fn run(
        &mut self,
        qmp: &UnixListener,
        verdicts: &UnixListener,
        console: Option<&UnixListener>,
        deadline: Option<Instant>,
    ) {
        let mut connections = match self.connect(qmp, verdicts, console).await {
            Ok(connections) => connections,
            Err(error) => {
                self.problems.push(format!("{error:#}"));
                self.qemu.signal(nix::sys::signal::Signal::SIGTERM);
                return;
            }
        };
        let interactive = connections.console.take().map(|stream| tokio::spawn(terminal::attend(stream)));
        match self.until_end(&mut connections, deadline).await {
            Ok(true) => {}
            Ok(false) => quit(&mut connections.qmp).await,
            Err(error) => {
                self.problems.push(format!("{error:#}"));
                quit(&mut connections.qmp).await;
            }
        }
        self.drain(&mut connections).await;
        if let Some(attending) = interactive {
            attending.abort();
            // Its end restores the terminal.
            let _ = attending.await;
        }
    }

    async fn connect(
        &mut self,
        qmp: &UnixListener,
        verdicts: &UnixListener,
        console: Option<&UnixListener>,
    ) -> Result<Connections> {
        let connecting = async {
            let (read, answers) = verdicts.accept().await?.0.into_split();
            let console = match console {
                Some(console) => Some(console.accept().await?.0),
                None => None,
            };
            let mut qmp = Qmp::new(qmp.accept().await?.0).await?;
            let status = qmp.execute("query-status").await?;
            if status["running"] != true {
                bail!("QEMU does not run the guest: {}", status["status"]);
            }
            Ok(Connections { qmp, lines: BufReader::new(read).lines(), answers, console })
        };
        tokio::select! {
            connections = connecting => connections,
            status = self.qemu.wait() => bail!("QEMU ended before the guest began: {}", process::describe(status?)),
            () = tokio::time::sleep(CONNECT) => bail!("QEMU does not connect to its monitor"),
        }
    }

    /// Handles what happens; true if the guest ended by itself.
    async fn until_end(&mut self, connections: &mut Connections, deadline: Option<Instant>) -> Result<bool> {
        let mut deadline = deadline;
        let mut listening = true;
        loop {
            let limit = at(deadline.map(Into::into));
            let go_on = at(device::next_continue(self.devices));
            tokio::select! {
                biased;
                line = connections.lines.next_line(), if listening => match line {
                    Ok(Some(line)) => {
                        self.line(&line, &mut connections.answers).await?;
                        if self.boot_to_verdict.is_none() && self.transcript.has_verdict() {
                            self.boot_to_verdict = Some(self.booted.elapsed());
                            deadline = deadline.map(|deadline| deadline.min(Instant::now() + POWER_OFF));
                        }
                    }
                    Ok(None) | Err(_) => listening = false,
                },
                event = connections.qmp.event() => match event? {
                    Some(Event::Shutdown(reason)) => {
                        if reason != "guest-shutdown" {
                            self.problems.push(format!("the guest did not power off, but: {reason}"));
                        }
                        return Ok(true);
                    }
                    Some(Event::Panicked) => self.problems.push("the guest's kernel panicked".to_owned()),
                    None => {
                        self.problems.push("QEMU closed its monitor while the guest ran".to_owned());
                        return Ok(true);
                    }
                },
                (index, status) = device::any_end(self.devices) => {
                    let status = status?;
                    if self.scenario.kills_devices && status.success() {
                        continue;
                    }
                    let how = process::describe(status);
                    self.problems.push(format!("device {index} ended while the guest ran: {how}"));
                    return Ok(false);
                }
                () = go_on => device::continue_due(self.devices),
                () = limit => {
                    let what = match (self.transcript.has_started(), self.transcript.has_verdict()) {
                        (_, true) => "the guest did not power off after its verdict".to_owned(),
                        (true, false) => format!("no verdict after {} s", self.booted.elapsed().as_secs()),
                        (false, false) => format!("no init after {} s", self.booted.elapsed().as_secs()),
                    };
                    self.problems.push(what);
                    return Ok(false);
                }
            }
        }
    }

    /// Lines that came before the end but were not read yet. QEMU's end closes the port.
    async fn drain(&mut self, connections: &mut Connections) {
        let rest = async {
            while let Ok(Some(line)) = connections.lines.next_line().await {
                self.transcript.line(&line, self.scenario.workload());
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), rest).await.is_err() {
            self.problems.push("QEMU did not close the verdict port".to_owned());
        }
        if self.boot_to_verdict.is_none() && self.transcript.has_verdict() {
            self.boot_to_verdict = Some(self.booted.elapsed());
        }
    }

    async fn line(&mut self, line: &str, answers: &mut OwnedWriteHalf) -> Result<()> {
        let Some((id, action)) = self.transcript.line(line, self.scenario.workload()) else { return Ok(()) };
        let (Action::KillDevice { device: index } | Action::StopDevice { device: index, .. }) = action;
        let count = self.devices.len();
        let Some(device) = self.devices.get_mut(index) else {
            bail!("the guest wants {action:?}, but there are {count} devices")
        };
        match action {
            Action::KillDevice { .. } if self.scenario.kills_devices => device.kill().await?,
            Action::StopDevice { seconds, .. } if self.scenario.stops_devices => {
                device.stop(Duration::from_secs(seconds.into()));
            }
            _ => bail!("the guest wants {action:?}, which is not part of this scenario"),
        }
        let answer = verdict::done(id);
        let answered = tokio::time::timeout(ANSWER, answers.write_all(answer.as_bytes())).await;
        answered.context("the guest does not take its answer")?.context("can't answer the guest")
    }

    pub(super) fn finish(self) -> Seen {
        // An interactive guest judges nothing.
        let judged = self.scenario.name != crate::scenario::SHELL.name;
        let (verdict, detail, mut metrics, wrong) = self.transcript.finish();
        let mut problems = self.problems;
        if judged {
            problems.extend(wrong);
        }
        if let Some(time) = self.boot_to_verdict {
            metrics.insert("boot_to_verdict_s".to_owned(), (time.as_millis() as f64 / 1000.0).into());
        }
        Seen { verdict: if judged { verdict } else { Some(Verdict::Pass) }, detail, metrics, problems }
    }
}

/// At that time, or never.
async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Tells QEMU to end. If it does not listen, it is killed for not ending.
async fn quit(qmp: &mut Qmp) {
    drop(tokio::time::timeout(ANSWER, qmp.execute("quit")).await);
}
