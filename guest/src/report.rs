// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a workload, the init and the host tell each other: one JSON object a line.
//!
//! The workload has a socket to the init, the init a virtio port to the host. Kernel messages go
//! elsewhere, so they can't garble it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io::{self, Write};

/// Name of the virtio port.
pub const PORT_NAME: &str = "svmx.verdict";
/// Environment variable with the number of the workload's socket to the init.
pub const SOCKET_VARIABLE: &str = "SVMX_SOCKET";

/// Numbers of a run, by name.
pub type Metrics = Map<String, Value>;

/// How a scenario ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// What it shows was shown.
    Pass,
    /// It was not.
    Fail,
    /// It can't be shown here.
    Skip,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Message {
    /// Init to host: user space runs.
    Started {
        /// The scenario.
        scenario: String,
    },
    /// Workload to init to host: do something that only the host can.
    Request {
        /// Repeated in the answer.
        id: u32,
        /// What.
        #[serde(flatten)]
        action: Action,
    },
    /// Host to init to workload: the request was carried out.
    Done {
        /// Of the request.
        id: u32,
    },
    /// Workload to init, and then init to host: exactly once each.
    Verdict {
        /// How it ended.
        verdict: Verdict,
        /// Why, in a line.
        detail: String,
        /// Numbers of the run.
        metrics: Metrics,
    },
}

/// What the host can be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// SIGKILL a device's process.
    KillDevice {
        /// Its number.
        device: u32,
    },
    /// SIGSTOP a device's process, and SIGCONT later. It is done when the process is stopped.
    StopDevice {
        /// Its number.
        device: u32,
        /// How much later.
        seconds: u32,
    },
}

impl Message {
    /// Writes the message as one line, in one write where the writer allows it.
    ///
    /// # Errors
    /// The writer's.
    pub fn send(&self, mut to: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)?;
        to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_are_what_the_host_expects() {
        let line = |message: &Message| serde_json::to_value(message).unwrap();
        let request = Message::Request { id: 1, action: Action::KillDevice { device: 0 } };
        assert_eq!(line(&request), json!({"type": "request", "id": 1, "action": "kill-device", "device": 0}));
        let request = Message::Request { id: 2, action: Action::StopDevice { device: 1, seconds: 9 } };
        let expected =
            json!({"type": "request", "id": 2, "action": "stop-device", "device": 1, "seconds": 9});
        assert_eq!(line(&request), expected);
        assert_eq!(serde_json::from_value::<Message>(expected).unwrap(), request);
        assert_eq!(
            serde_json::from_str::<Message>(r#"{"type":"done","id":1}"#).unwrap(),
            Message::Done { id: 1 }
        );
        let verdict =
            Message::Verdict { verdict: Verdict::Pass, detail: "exact".into(), metrics: Metrics::new() };
        let expected = json!({"type": "verdict", "verdict": "pass", "detail": "exact", "metrics": {}});
        assert_eq!(line(&verdict), expected);
    }
}
