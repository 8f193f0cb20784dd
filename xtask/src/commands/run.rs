// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask run`: scenarios by name, or the demonstration.

use crate::batch;
use crate::failure::{Reported, bad_request};
use crate::options::RunOptions;
use crate::prepare;
use crate::progress::Progress;
use crate::report::{self, JsonFile, Row};
use crate::scenario::{self, Scenario};
use crate::vm::Verdict;
use anyhow::Result;

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Scenarios to run, see `test --list` [default: the demonstration]
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    #[command(flatten)]
    common: RunOptions,
}

/// Runs them all, whatever the first ones' verdicts.
pub(crate) async fn run(options: Options) -> Result<()> {
    let progress = Progress::new(options.common.vm.verbose);
    let demonstration = options.scenarios.is_empty();
    let scenarios = if demonstration {
        named(scenario::DEMONSTRATION)?
    } else {
        named(options.scenarios.iter().map(String::as_str))?
    };
    batch::check(&options.common, &scenarios)?;
    let decided = prepare::decide(&options.common.vm, &progress).await?;
    let json = options.common.json.as_deref().map(JsonFile::create).transpose()?;
    let machine = prepare::machine(decided, &options.common.vm, &progress).await;
    let (rows, refused) =
        batch::run(machine, &options.common, &scenarios, Scenario::own_name, &progress).await;
    let passed = rows.iter().all(|row| row.verdict != Verdict::Fail);
    if demonstration && refused.is_ok() {
        println!("\n{}", report::table(&rows));
        println!("{}", conclusion(&rows));
    }
    if let Some(json) = json {
        json.write(&rows)?;
    }
    refused?;
    if passed { Ok(()) } else { Err(Reported.into()) }
}

fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<&'static Scenario>> {
    let find = |name: &'a str| {
        scenario::find(name).ok_or_else(|| {
            let known: Vec<_> = scenario::SCENARIOS.iter().map(|scenario| scenario.name).collect();
            bad_request(format!("there is no scenario {name:?}; there are {}", known.join(", ")))
        })
    };
    names.into_iter().map(find).collect()
}

/// What the demonstration showed, in a sentence.
fn conclusion(rows: &[Row]) -> String {
    let lost = |row: &Row| row.metrics.get("lost").and_then(serde_json::Value::as_i64);
    match rows {
        [with, without] if rows.iter().all(|row| row.verdict == Verdict::Pass) => format!(
            "With exclusive access {} of the updates were lost; without it, on the same counters, {}.",
            lost(with).map_or("none".to_owned(), |lost| if lost == 0 {
                "none".to_owned()
            } else {
                lost.to_string()
            }),
            lost(without).map_or("some".to_owned(), |lost| lost.to_string()),
        ),
        _ => "The demonstration failed: the lines above say where.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_unknown_scenario_is_a_bad_request() {
        let error = named(["counter", "nosuch"]).unwrap_err();
        assert!(error.is::<crate::failure::BadRequest>());
        assert!(error.to_string().contains("nosuch") && error.to_string().contains("atomics"));
    }

    #[test]
    fn the_conclusion_has_the_numbers() {
        let row = |verdict, lost: i64| Row {
            name: "x".into(),
            verdict,
            duration_s: 0.0,
            metrics: json!({ "lost": lost }).as_object().unwrap().clone(),
        };
        let good = conclusion(&[row(Verdict::Pass, 0), row(Verdict::Pass, 7)]);
        assert!(good.contains("none") && good.contains('7'), "{good}");
        assert!(conclusion(&[row(Verdict::Pass, 0), row(Verdict::Fail, 0)]).contains("failed"));
    }
}
