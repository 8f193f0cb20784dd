// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask test`: every check, cheapest first: style, the crates' own tests, then the scenarios.

use crate::checkout;
use crate::failure::{Reported, bad_request};
use crate::options::{KernelOptions, RunOptions, VmOptions};
use crate::process;
use crate::progress::Progress;
use crate::report::{self, JsonFile, Row};
use crate::scenario::{SCENARIOS, Scenario};
use crate::vm::Verdict;
use crate::{batch, prepare};
use anyhow::Result;
use serde_json::Map;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// Options of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Runs only what has this in its name
    filter: Option<String>,
    /// Shows the table instead of running it
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    common: RunOptions,
}

/// A check that cargo does.
#[derive(Debug)]
struct Check {
    name: &'static str,
    shows: &'static str,
    arguments: &'static [&'static str],
    /// What may not be installed.
    needs: Option<Need>,
}

/// A program without which a check is skipped.
#[derive(Clone, Copy, Debug)]
enum Need {
    /// A subcommand of cargo.
    Subcommand(&'static str),
    /// A C++ compiler.
    Cxx,
}

const CHECKS: [Check; 10] = [
    Check {
        name: "fmt",
        shows: "the sources are formatted",
        arguments: &["fmt", "--all", "--check"],
        needs: Some(Need::Subcommand("fmt")),
    },
    Check {
        name: "abi",
        shows: "sizes and offsets, and the tables of docs/spec.md",
        arguments: &["test", "--package", "svmx-abi"],
        needs: None,
    },
    Check {
        name: "device",
        shows: "the device against models, a mock driver and a real socket",
        arguments: &["test", "--package", "svmx-device", "--package", "svmx-measure"],
        needs: None,
    },
    Check {
        name: "device-watched",
        shows: "models again, with light chaos and the exclusivity checker, which is silent",
        arguments: &[
            "test",
            "--package",
            "svmx-device",
            "--test",
            "model",
            "--test",
            "properties",
            "--config",
            "env.SVMX_CHECK_EXCLUSIVE='1'",
            "--config",
            "env.SVMX_CHAOS='light'",
        ],
        needs: None,
    },
    Check {
        name: "model-check",
        shows: "invalidation, ownership and sleeping in all interleavings of a kind, and that fences can't be left out",
        arguments: &["test", "--package", "svmx-model-check"],
        needs: None,
    },
    Check {
        name: "fuzz-replay",
        shows: "the inputs that fuzzing starts from, and those that once found something",
        arguments: &["test", "--package", "svmx-fuzz"],
        needs: None,
    },
    Check {
        name: "fuzz-build",
        shows: "the fuzz targets link with libFuzzer (`cargo xtask fuzz` runs them)",
        arguments: &["build", "--package", "svmx-fuzz", "--features", "libfuzzer", "--bins"],
        needs: Some(Need::Cxx),
    },
    Check {
        name: "guest",
        shows: "the guest's library, init and workloads, as far as they run on the host",
        arguments: &["test", "--package", "svmx"],
        needs: None,
    },
    Check {
        name: "xtask",
        shows: "xtask's own parts",
        arguments: &["test", "--package", "xtask"],
        needs: None,
    },
    Check {
        name: "clippy",
        // A new compiler brings new warnings, which should not break an old commit.
        shows: "no lint that Cargo.toml denies; warnings are counted",
        arguments: &["clippy", "--workspace", "--all-targets"],
        needs: Some(Need::Subcommand("clippy")),
    },
];

/// A check has this long; a cold build is part of it.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1200);

/// Runs the rows that the filter leaves.
pub(crate) async fn run(options: Options) -> Result<()> {
    let wanted = |name: &str| options.filter.as_ref().is_none_or(|filter| name.contains(filter));
    let checks: Vec<&Check> = CHECKS.iter().filter(|check| wanted(check.name)).collect();
    let scenarios: Vec<&'static Scenario> = SCENARIOS.iter().filter(|row| wanted(row.name)).collect();
    let vm = &options.common.vm;
    let debug = vm.kernel.debug_too().map(|kernel| with_kernel(&options.common, kernel));
    let debugged: Vec<&'static Scenario> = match &debug {
        Some(_) => SCENARIOS.iter().filter(|row| row.debug_too && wanted(&row.debug_name())).collect(),
        None => Vec::new(),
    };
    if checks.is_empty() && scenarios.is_empty() && debugged.is_empty() {
        let filter = options.filter.unwrap_or_default();
        return Err(bad_request(format!("no test has {filter:?} in its name; see `test --list`")));
    }
    batch::check(&options.common, &scenarios)?;
    batch::check(&options.common, &debugged)?;
    if options.list {
        list(&checks, &scenarios, &debugged);
        return Ok(());
    }
    let progress = Progress::new(options.common.vm.verbose);
    let decided = if scenarios.is_empty() && debugged.is_empty() {
        None
    } else {
        Some(prepare::decide(vm, &progress).await?)
    };
    let json = options.common.json.as_deref().map(JsonFile::create).transpose()?;
    let mut rows = Vec::new();
    for check in checks {
        rows.push(run_check(check, &progress).await);
    }
    let mut refused = Ok(());
    if let Some(decided) = decided {
        let plain = (Some(&options.common), &scenarios, Scenario::own_name as fn(&Scenario) -> String);
        let debugged = (debug.as_ref(), &debugged, Scenario::debug_name as fn(&Scenario) -> String);
        for (common, scenarios, name) in [plain, debugged] {
            let Some(common) = common.filter(|_| refused.is_ok() && !scenarios.is_empty()) else { continue };
            let machine = prepare::machine(decided.clone(), &common.vm, &progress).await;
            let (more, result) = batch::run(machine, common, scenarios, name, &progress).await;
            rows.extend(more);
            refused = result;
        }
    }
    if let Some(json) = json {
        json.write(&rows)?;
    }
    println!("{}", report::summary(&rows));
    refused?;
    if rows.iter().any(|row| row.verdict == Verdict::Fail) { Err(Reported.into()) } else { Ok(()) }
}

/// The same options with another kernel.
fn with_kernel(common: &RunOptions, kernel: KernelOptions) -> RunOptions {
    RunOptions { vm: VmOptions { kernel, ..common.vm.clone() }, ..common.clone() }
}

fn list(checks: &[&Check], scenarios: &[&Scenario], debugged: &[&Scenario]) {
    for check in checks {
        println!("{:<20}  {}", check.name, check.shows);
    }
    for scenario in scenarios {
        println!("{:<20}  {}", scenario.name, scenario.shows);
    }
    for scenario in debugged {
        println!("{:<20}  the same with a kernel that checks itself", scenario.debug_name());
    }
}

async fn run_check(check: &Check, progress: &Progress) -> Row {
    let started = Instant::now();
    let missing = match check.needs {
        Some(need) => need.missing().await,
        None => None,
    };
    let (verdict, detail) = match missing {
        Some(what) => (Verdict::Skip, what),
        None => execute(check, progress).await.unwrap_or_else(|error| (Verdict::Fail, format!("{error:#}"))),
    };
    let duration_s = started.elapsed().as_secs_f64();
    let row = Row { name: check.name.to_owned(), verdict, duration_s, metrics: Map::new() };
    println!("{}", row.line(&detail));
    row
}

impl Need {
    /// What to say if it is not there.
    async fn missing(self) -> Option<String> {
        let (mut command, missing) = match self {
            Need::Subcommand(name) => {
                let mut command = Command::new(checkout::cargo());
                command.arg(name);
                (command, format!("cargo {name} is not installed"))
            }
            Need::Cxx => {
                let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
                let missing = format!("no C++ compiler ({}): apt install g++", compiler.display());
                (Command::new(compiler), missing)
            }
        };
        let there =
            process::answer(command.arg("--version")).await.is_ok_and(|output| output.status.success());
        (!there).then_some(missing)
    }
}

async fn execute(check: &Check, progress: &Progress) -> Result<(Verdict, String)> {
    let logs = checkout::work().join("checks");
    std::fs::create_dir_all(&logs)?;
    let log = logs.join(format!("{}.log", check.name));
    std::fs::File::create(&log)?;
    let mut command = Command::new(checkout::cargo());
    command.args(check.arguments).current_dir(checkout::root()).env("CARGO_TERM_COLOR", "never");
    let step = progress.quiet_step(check.name);
    let (mut tests, mut warnings) = (0, 0);
    let running = process::logged(&mut command, &log, &step, |step, line| {
        tests += passed(line);
        warnings += warned(line);
        step.note(line.trim());
    });
    Ok(match tokio::time::timeout(CHECK_TIMEOUT, running).await {
        Ok(Ok(())) if tests > 0 => (Verdict::Pass, format!("{tests} tests")),
        Ok(Ok(())) if check.arguments[0] == "test" => {
            (Verdict::Fail, format!("it ran no test ({})", log.display()))
        }
        Ok(Ok(())) if warnings > 0 => (Verdict::Pass, format!("{warnings} warnings ({})", log.display())),
        Ok(Ok(())) => (Verdict::Pass, String::new()),
        Ok(Err(error)) => (Verdict::Fail, format!("{error:#}")),
        Err(_) => (Verdict::Fail, timed_out(&log)),
    })
}

fn timed_out(log: &Path) -> String {
    format!("not done after {} s\n{}", CHECK_TIMEOUT.as_secs(), process::tail(log, 20))
}

/// The tests that a summary line of libtest counts as passed.
fn passed(line: &str) -> u32 {
    let count = |line: &str| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse().ok();
    count(line).unwrap_or(0)
}

/// The warnings that cargo sums up in this line.
fn warned(line: &str) -> u32 {
    let count = |line: &str| line.split_once(" generated ")?.1.split_once(" warning")?.0.parse().ok();
    line.strip_prefix("warning: ").and_then(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_across_both_tables() {
        let names: Vec<_> = CHECKS
            .iter()
            .map(|check| check.name)
            .chain(SCENARIOS.iter().map(|row| row.name))
            .map(str::to_owned)
            .chain(SCENARIOS.iter().map(Scenario::debug_name))
            .collect();
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn warnings_are_counted() {
        assert_eq!(warned("warning: `xtask` (bin \"xtask\") generated 12 warnings (1 duplicate)"), 12);
        assert_eq!(warned("warning: unused variable: `x`"), 0);
        assert_eq!(warned("    Finished `dev` profile"), 0);
    }

    #[test]
    fn passed_tests_are_counted() {
        assert_eq!(passed("test result: ok. 31 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"), 31);
        assert_eq!(passed("test result: FAILED. 3 passed; 1 failed"), 0);
        assert_eq!(passed("running 3 tests"), 0);
    }
}
