// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask bench`: figures, each next to what it is compared with in the same run. A missed aim is
//! shown and is no failure: other work on the machine may be why.
//!
//! What is measured, and how, is in `device/benches/figures`; this builds that, runs it and shows its rows.

use crate::checkout;
use crate::failure::bad_request;
use crate::process;
use crate::progress::Progress;
use crate::report::JsonFile;
use anyhow::Result;
use measure::{Row, show, table};
use std::path::PathBuf;
use tokio::process::Command;

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Takes only figures that have this in their name
    filter: Option<String>,
    /// Shows the table instead of taking them
    #[arg(long)]
    list: bool,
    /// Rounds that count, after two that don't
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Writes the rows to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Takes the figures that the filter leaves.
pub(crate) async fn run(options: Options) -> Result<()> {
    let names = table::matching(options.filter.as_deref());
    if names.is_empty() {
        let filter = options.filter.unwrap_or_default();
        return Err(bad_request(format!("no figure has {filter:?} in its name; see `bench --list`")));
    }
    if options.list {
        for (name, shows) in table::FIGURES.iter().filter(|(name, _)| names.contains(name)) {
            println!("{name:<20}  {shows}");
        }
        return Ok(());
    }
    let json = options.json.as_deref().map(JsonFile::create).transpose()?;
    let mut rows = Vec::new();
    let taken = take(&options, &mut rows).await;
    // Also those that came before something failed.
    if let Some(json) = json {
        json.write(&rows)?;
    }
    taken?;
    println!("{}", summary(&rows));
    Ok(())
}

/// Builds the benchmark, then shows its rows, and puts them into `rows`, as they come.
async fn take(options: &Options, rows: &mut Vec<Row>) -> Result<()> {
    const BENCHMARK: [&str; 5] = ["bench", "--package", "svmx-device", "--bench", "figures"];
    let progress = Progress::new(false);
    std::fs::create_dir_all(checkout::work())?;
    let log = checkout::work().join("bench.log");
    std::fs::File::create(&log)?;
    let mut build = Command::new(checkout::cargo());
    build.args(BENCHMARK).arg("--no-run").current_dir(checkout::root()).env("CARGO_TERM_COLOR", "never");
    let step = progress.quiet_step("benchmark");
    process::logged(&mut build, &log, &step, |step, line| {
        if line.trim_start().starts_with("Compiling") {
            step.note(line.trim());
        }
    })
    .await?;
    step.done();

    let mut run = Command::new(checkout::cargo());
    run.args(BENCHMARK).args(["--", "--json", "--rounds", &options.rounds.to_string()]);
    run.args(&options.filter).current_dir(checkout::root()).env("CARGO_TERM_COLOR", "never");
    progress.result(show::header());
    let step = progress.step("measuring");
    process::logged(&mut run, &log, &step, |_, line| {
        if let Ok(row) = serde_json::from_str(line) {
            progress.result(show::lines(&row, rows.last()));
            rows.push(row);
        }
    })
    .await
}

/// How many aims are met.
fn summary(rows: &[Row]) -> String {
    let count = |met| rows.iter().filter(|row| !row.aim.is_empty() && row.met == met).count();
    let mut line = format!("{} aims met, {} missed", count(Some(true)), count(Some(false)));
    if count(None) > 0 {
        line.push_str(&format!(", {} that this machine can't tell", count(None)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use measure::{Aim, Samples};

    #[test]
    fn aims_are_counted() {
        let row = |value: f64, aim| Row::alone("x", "x", "us", &Samples::from(vec![value]), aim);
        let mut unknown = row(1.0, Aim::ValueAtMost(2.0));
        unknown.met = None;
        let rows =
            [row(1.0, Aim::ValueAtMost(2.0)), row(3.0, Aim::ValueAtMost(2.0)), row(1.0, Aim::None), unknown];
        assert_eq!(summary(&rows), "1 aims met, 1 missed, 1 that this machine can't tell");
        assert_eq!(summary(&rows[..1]), "1 aims met, 0 missed");
    }

    #[tokio::test]
    async fn a_bad_filter_is_a_bad_request() {
        let options = Options { filter: Some("no such".into()), list: false, rounds: 1, json: None };
        assert!(crate::failure::is_bad_request(&run(options).await.unwrap_err()));
    }
}
