// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results: a line each, the table of the demonstration, the JSON file, the last line of `test`.

use crate::failure::bad_request;
use crate::vm::Verdict;
use anyhow::Context;
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// One result, as it is in the JSON file.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    /// In whole milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub(crate) duration_s: f64,
    pub(crate) metrics: Map<String, Value>,
}

fn milliseconds<S: serde::Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((seconds * 1000.0).round() / 1000.0)
}

impl Row {
    /// Of what could not even begin.
    pub(crate) fn failed(name: &str) -> Self {
        Row { name: name.to_owned(), verdict: Verdict::Fail, duration_s: 0.0, metrics: Map::new() }
    }

    /// The result for people.
    pub(crate) fn line(&self, detail: &str) -> String {
        let line =
            format!("{:<4}  {:<20} {:>6.1} s  {detail}", self.verdict.name(), self.name, self.duration_s);
        line.trim_end().to_owned()
    }
}

/// The file named by `--json`, opened before anything else is done.
#[derive(Debug)]
pub(crate) struct JsonFile {
    path: PathBuf,
    file: File,
}

impl JsonFile {
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file =
            File::create(path).map_err(|error| bad_request(format!("--json {}: {error}", path.display())))?;
        Ok(JsonFile { path: path.to_owned(), file })
    }

    pub(crate) fn write<R: Serialize>(self, rows: &[R]) -> anyhow::Result<()> {
        let mut writer = BufWriter::new(self.file);
        serde_json::to_writer_pretty(&mut writer, rows)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(writeln!(writer).and_then(|()| writer.flush())?))
            .with_context(|| format!("can't write {}", self.path.display()))
    }
}

/// `N passed, N failed`, and what was skipped if anything was.
pub(crate) fn summary(rows: &[Row]) -> String {
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let mut line = format!("{} passed, {} failed", count(Verdict::Pass), count(Verdict::Fail));
    if count(Verdict::Skip) > 0 {
        line.push_str(&format!(", {} skipped", count(Verdict::Skip)));
    }
    line
}

/// The figures of the demonstration, in this order, with what they are called in the table.
const FIGURES: [(&str, &str); 15] = [
    ("cpu_ops", "increments by CPU threads"),
    ("device_ops", "increments by the device"),
    ("expected", "sum that must come out"),
    ("observed", "sum that came out"),
    ("lost", "lost updates"),
    ("exclusive_grants", "exclusive grants"),
    ("revocations", "revocations"),
    ("device_ops_per_s", "device increments per second"),
    ("grant_ns_p50", "grant, median, ns"),
    ("grant_ns_p99", "grant, 99 %, ns"),
    ("revoke_ns_p50", "revocation, median, ns"),
    ("revoke_ns_p99", "revocation, 99 %, ns"),
    ("replay_ns_p50", "fault to replay, median, ns"),
    ("replay_ns_p99", "fault to replay, 99 %, ns"),
    ("boot_to_verdict_s", "boot to verdict, s"),
];

/// A column for each row, a line for each figure that any row has.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines =
        vec![std::iter::once(String::new()).chain(rows.iter().map(|row| row.name.clone())).collect()];
    for (key, title) in FIGURES {
        if rows.iter().any(|row| row.metrics.contains_key(key)) {
            let cells = rows.iter().map(|row| row.metrics.get(key).map_or("–".to_owned(), figure));
            lines.push(std::iter::once(title.to_owned()).chain(cells).collect::<Vec<_>>());
        }
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=rows.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A number with its thousands apart.
fn figure(value: &Value) -> String {
    let Some(number) = value.as_i64() else {
        return value.as_f64().map_or_else(|| value.to_string(), |number| format!("{number:.2}"));
    };
    let digits = number.unsigned_abs().to_string();
    let mut text = if number < 0 { "-".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(name: &str, verdict: Verdict, metrics: Value) -> Row {
        Row {
            name: name.into(),
            verdict,
            duration_s: 1.250_001,
            metrics: metrics.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn the_last_line() {
        let pass = row("a", Verdict::Pass, json!({}));
        let fail = row("b", Verdict::Fail, json!({}));
        let skip = row("c", Verdict::Skip, json!({}));
        assert_eq!(summary(&[]), "0 passed, 0 failed");
        assert_eq!(summary(&[pass.clone(), pass.clone(), fail.clone()]), "2 passed, 1 failed");
        assert_eq!(summary(&[pass, skip]), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn the_table_has_a_column_a_row_and_only_known_figures() {
        let rows = [
            row("counter", Verdict::Pass, json!({"cpu_ops": 20_000_000, "lost": 0})),
            row(
                "unprotected",
                Verdict::Pass,
                json!({"cpu_ops": 20_000_000, "lost": -12, "boot_to_verdict_s": 2.5}),
            ),
        ];
        let table = table(&rows);
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.contains("20,000,000   20,000,000"), "{table}");
        assert!(table.contains("-12") && table.contains('–') && table.contains("2.50"), "{table}");
    }

    #[test]
    fn thousands() {
        let shown = [0, 999, 1000, 1_234_567, -1000].map(|number| figure(&json!(number)));
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567", "-1,000"]);
    }

    #[test]
    fn json_has_the_agreed_keys() {
        let text = serde_json::to_string(&[row("a", Verdict::Pass, json!({"lost": 0}))]).unwrap();
        assert_eq!(text, r#"[{"name":"a","verdict":"pass","duration_s":1.25,"metrics":{"lost":0}}]"#);
    }
}
