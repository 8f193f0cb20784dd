// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A QMP client of four commands. The `qapi` crates generate QEMU's whole schema, of a release older
//! than ours, and would add more to a cold build than everything else here together.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    /// Events that came while we waited for an answer.
    events: VecDeque<Value>,
}

/// Something that happened to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It ended; QEMU's word for why (`guest-shutdown`, `guest-reset`, `guest-panic`, …).
    Shutdown(String),
    /// It said that it panicked.
    Panicked,
}

impl Qmp {
    /// Takes QEMU's greeting and enters command mode.
    pub(crate) async fn new(stream: UnixStream) -> Result<Self> {
        let (read, write) = stream.into_split();
        let mut qmp = Qmp { lines: BufReader::new(read).lines(), write, events: VecDeque::new() };
        let greeting = qmp.read().await?.context("QEMU closed its monitor at once")?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU's monitor greets with {greeting}");
        }
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Executes a command without arguments and returns its result.
    pub(crate) async fn execute(&mut self, command: &str) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.write.write_all(line.as_bytes()).await?;
        loop {
            let mut message =
                self.read().await?.with_context(|| format!("QEMU closed its monitor at {command}"))?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            match message.get_mut("return") {
                Some(result) => return Ok(result.take()),
                None => self.events.push_back(message),
            }
        }
    }

    /// The next event that matters; `None` when QEMU has closed the connection. May be cancelled.
    pub(crate) async fn event(&mut self) -> Result<Option<Event>> {
        loop {
            let message = match self.events.pop_front() {
                Some(message) => message,
                None => match self.read().await? {
                    Some(message) => message,
                    None => return Ok(None),
                },
            };
            if let Some(event) = event(&message) {
                return Ok(Some(event));
            }
        }
    }

    async fn read(&mut self) -> Result<Option<Value>> {
        match self.lines.next_line().await {
            Ok(Some(line)) => Ok(Some(serde_json::from_str(&line).context("QEMU's monitor sends no JSON")?)),
            // QEMU may be gone before it has read all we wrote.
            Ok(None) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn event(message: &Value) -> Option<Event> {
    match message.get("event")?.as_str()? {
        "SHUTDOWN" => {
            let reason = message.pointer("/data/reason").and_then(Value::as_str).unwrap_or("unknown");
            Some(Event::Shutdown(reason.to_owned()))
        }
        "GUEST_PANICKED" => Some(Event::Panicked),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_among_answers_are_kept() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let script = concat!(
            "{\"QMP\": {\"version\": {}}}\n{\"return\": {}}\n",
            "{\"event\": \"RESUME\"}\n{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n",
            "{\"return\": {\"status\": \"running\"}}\n",
        );
        qemu.write_all(script.as_bytes()).await.unwrap();
        let mut qmp = Qmp::new(ours).await.unwrap();
        assert_eq!(qmp.execute("query-status").await.unwrap()["status"], "running");
        assert_eq!(qmp.event().await.unwrap(), Some(Event::Shutdown("guest-reset".into())));
        drop(qemu);
        assert_eq!(qmp.event().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_refused_command_is_an_error() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        qemu.write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n{\"error\": {\"desc\": \"no\"}}\n").await.unwrap();
        let mut qmp = Qmp::new(ours).await.unwrap();
        assert!(qmp.execute("quit").await.unwrap_err().to_string().contains("refuses quit"));
    }
}
