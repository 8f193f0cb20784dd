// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's trace events, through tracefs.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const TRACEFS: &str = "/sys/kernel/tracing";
/// For each CPU: far more than what a scenario that looks at every event makes.
const BUFFER_KB: &str = "2048";

/// The driver's events, which are recorded as long as it lives.
pub(crate) struct Recording(());

/// An event: its name without `svmx_`, and its fields as they are printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) fields: BTreeMap<String, String>,
}

impl Recording {
    /// Whether this kernel has trace events.
    pub(crate) fn is_possible() -> bool {
        Path::new(TRACEFS).join("events").exists()
    }

    /// Records from now on.
    pub(crate) fn start() -> Result<Self> {
        write("buffer_size_kb", BUFFER_KB)?;
        // One clock for all CPUs, so that the order in the file is that of the events.
        write("trace_clock", "mono")?;
        write("trace", "")?;
        write("events/svmx/enable", "1")?;
        Ok(Recording(()))
    }

    /// What was recorded, in the order of time.
    ///
    /// # Errors
    /// An event was lost, or is not of the form `name: key=value …`.
    pub(crate) fn events(&self) -> Result<Vec<Event>> {
        let text = fs::read_to_string(place("trace")).context("reading the trace")?;
        ensure!(!text.contains("LOST"), "events were lost");
        text.lines().filter(|line| !line.starts_with('#')).map(parse).collect()
    }

    /// The lines as people see them.
    pub(crate) fn text(&self) -> Result<String> {
        fs::read_to_string(place("trace")).context("reading the trace")
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Whoever wants to see it fail reads the events.
        let _ = write("events/svmx/enable", "0");
    }
}

impl Event {
    /// Whether it has the field `key=value`.
    pub(crate) fn says(&self, field: &str) -> bool {
        field.split_once('=').is_some_and(|(key, value)| self.fields.get(key).is_some_and(|v| v == value))
    }

    /// A field, as it is printed.
    pub(crate) fn field(&self, name: &str) -> Result<&str> {
        let value = self.fields.get(name).map(String::as_str);
        value.with_context(|| format!("{self:?} has no {name}"))
    }

    /// A number, in decimal or with `0x`.
    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        let text = self.field(name)?;
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.with_context(|| format!("{name}={text}"))
    }
}

/// `task-pid [cpu] flags time: svmx_name: key=value …`
fn parse(line: &str) -> Result<Event> {
    let parsed = || {
        let (_, event) = line.split_once(": svmx_")?;
        let (name, fields) = event.split_once(": ")?;
        let fields = fields.split_whitespace().map(|field| {
            let (key, value) = field.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        });
        Some(Event { name: name.to_owned(), fields: fields.collect::<Option<_>>()? })
    };
    parsed().with_context(|| format!("not an event of the driver: {line:?}"))
}

fn place(name: &str) -> PathBuf {
    Path::new(TRACEFS).join(name)
}

fn write(name: &str, value: &str) -> Result<()> {
    let place = place(name);
    fs::write(&place, value).with_context(|| format!("writing {value:?} to {}", place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_ring() {
        let line = "  kworker/u9:2-51 [001] ..... 3.25: svmx_fault: device=0 asid=3 va=0x7f00 access=atomic";
        let event = parse(line).unwrap();
        assert_eq!((event.name.as_str(), event.field("access").unwrap()), ("fault", "atomic"));
        assert_eq!((event.number("asid").unwrap(), event.number("va").unwrap()), (3, 0x7f00));
        assert!(event.field("page").is_err() && event.number("access").is_err());
        assert!(parse("nothing of ours").is_err());
    }
}
