// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guest says over its verdict port: one JSON object a line, exactly one of them a verdict.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A scenario's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Pass,
    Fail,
    Skip,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Skip => "skip",
        }
    }
}

/// A line from the guest.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum Message {
    /// The init has read its parameters and begins.
    Started { scenario: String },
    /// The guest wants the host to do something and waits for [`done`].
    Request {
        id: u64,
        #[serde(flatten)]
        action: Action,
    },
    /// The end.
    Verdict {
        verdict: Verdict,
        #[serde(default)]
        detail: String,
        #[serde(default)]
        metrics: Map<String, Value>,
    },
}

/// What a guest may ask of the host.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub(crate) enum Action {
    /// SIGKILL for the process of this device.
    KillDevice { device: usize },
    /// SIGSTOP for it, and SIGCONT that many seconds later.
    StopDevice { device: usize, seconds: u32 },
}

/// The answer to request `id`.
pub(crate) fn done(id: u64) -> String {
    format!("{{\"type\":\"done\",\"id\":{id}}}\n")
}

/// The single verdict, with what came before it checked.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    started: bool,
    verdict: Option<(Verdict, String, Map<String, Value>)>,
    problems: Vec<String>,
}

impl Transcript {
    /// Takes a line; returns what the guest asks of the host.
    pub(crate) fn line(&mut self, line: &str, scenario: &str) -> Option<(u64, Action)> {
        let message = match serde_json::from_str(line) {
            Ok(message) => message,
            Err(error) => {
                let shown: String = line.chars().take(200).collect();
                self.problems.push(format!("the guest sent {shown:?}, which is no message: {error}"));
                return None;
            }
        };
        if self.verdict.is_some() {
            self.problems.push("the guest went on after its verdict".to_owned());
            return None;
        }
        match message {
            Message::Started { scenario: name } if name == scenario => self.started = true,
            Message::Started { scenario: name } => {
                self.problems.push(format!("the guest started {name:?} instead of {scenario:?}"));
            }
            Message::Request { id, action } => return Some((id, action)),
            Message::Verdict { verdict, detail, metrics } => self.verdict = Some((verdict, detail, metrics)),
        }
        None
    }

    /// Whether the verdict has come.
    pub(crate) fn has_verdict(&self) -> bool {
        self.verdict.is_some()
    }

    /// Whether the guest got as far as its init.
    pub(crate) fn has_started(&self) -> bool {
        self.started
    }

    /// The verdict, its detail, the metrics, and everything that is wrong with the way they came.
    pub(crate) fn finish(self) -> (Option<Verdict>, String, Map<String, Value>, Vec<String>) {
        let mut problems = self.problems;
        if !self.started {
            problems.push("the guest's init never started".to_owned());
        }
        match self.verdict {
            Some((verdict, detail, metrics)) => (Some(verdict), detail, metrics, problems),
            None => {
                if self.started {
                    problems.push("the guest gave no verdict".to_owned());
                }
                (None, String::new(), Map::new(), problems)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTED: &str = r#"{"type":"started","scenario":"counter"}"#;
    const PASS: &str = r#"{"type":"verdict","verdict":"pass","detail":"exact","metrics":{"lost":0}}"#;

    fn finish(lines: &[&str]) -> (Option<Verdict>, Vec<String>) {
        let mut transcript = Transcript::default();
        for line in lines {
            assert_eq!(transcript.line(line, "counter"), None);
        }
        let (verdict, _, _, problems) = transcript.finish();
        (verdict, problems)
    }

    #[test]
    fn one_verdict_is_good() {
        assert_eq!(finish(&[STARTED, PASS]), (Some(Verdict::Pass), vec![]));
    }

    #[test]
    fn anything_else_is_a_problem() {
        assert_eq!(finish(&[]).0, None);
        for lines in [
            &[] as &[_],
            &[STARTED],
            &[PASS],
            &[STARTED, PASS, PASS],
            &[STARTED, "garbage", PASS],
            &[r#"{"type":"started","scenario":"other"}"#, PASS],
            &[STARTED, r#"{"type":"verdict","verdict":"maybe"}"#],
        ] {
            assert!(!finish(lines).1.is_empty(), "{lines:?}");
        }
    }

    #[test]
    fn requests_reach_the_host() {
        let mut transcript = Transcript::default();
        let request = transcript.line(r#"{"type":"request","id":7,"action":"kill-device","device":1}"#, "x");
        assert_eq!(request, Some((7, Action::KillDevice { device: 1 })));
        let line = r#"{"type":"request","id":8,"action":"stop-device","device":0,"seconds":20}"#;
        let request = transcript.line(line, "x");
        assert_eq!(request, Some((8, Action::StopDevice { device: 0, seconds: 20 })));
        assert_eq!(done(7), "{\"type\":\"done\",\"id\":7}\n");
    }

    #[test]
    fn the_metrics_are_the_guests() {
        let mut transcript = Transcript::default();
        transcript.line(STARTED, "counter");
        transcript.line(PASS, "counter");
        let (_, detail, metrics, _) = transcript.finish();
        assert_eq!((detail.as_str(), metrics["lost"].as_u64()), ("exact", Some(0)));
    }
}
