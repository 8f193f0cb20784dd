// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask fuzz`: libFuzzer on the targets of `device/fuzz`, one after another. That takes a nightly
//! compiler and cargo-fuzz; the inputs that are kept are played by `test` too, which takes neither.

use crate::checkout;
use crate::failure::{Reported, bad_request};
use crate::process;
use crate::progress::Progress;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// Options of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Fuzzes only this target
    target: Option<String>,
    /// Fuzzes each target for this long
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    seconds: u32,
    /// Shows the targets instead of running them
    #[arg(long)]
    list: bool,
}

/// An input takes milliseconds; one that takes this many seconds hangs.
const INPUT_TIMEOUT: u32 = 120;
/// What a cold build of the device, instrumented, may take.
const BUILD: Duration = Duration::from_secs(30 * 60);

/// Fuzzes what was asked for.
pub(crate) async fn run(options: Options) -> Result<()> {
    let all = targets()?;
    let wanted: Vec<_> =
        all.iter().filter(|name| options.target.as_ref().is_none_or(|target| target == *name)).collect();
    if wanted.is_empty() {
        let target = options.target.unwrap_or_default();
        return Err(bad_request(format!("no fuzz target {target:?}; there are {}", all.join(", "))));
    }
    if options.list {
        wanted.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    prerequisites().await?;
    let progress = Progress::new(false);
    let mut found = false;
    for target in wanted {
        match fuzz(target, options.seconds, &progress).await {
            Ok(runs) => {
                progress.result(format!("pass  {target:<10}  {runs} inputs in {} s", options.seconds))
            }
            Err(error) => {
                progress.result(format!("FAIL  {target:<10}  {error:#}"));
                found = true;
            }
        }
    }
    if found { Err(Reported.into()) } else { Ok(()) }
}

fn folder() -> PathBuf {
    checkout::root().join("device/fuzz")
}

/// A target is a file.
fn targets() -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(folder().join("fuzz_targets"))? {
        targets.extend(entry?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    targets.sort();
    Ok(targets)
}

/// The nightly toolchain's cargo, whichever one runs us.
fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]).current_dir(checkout::root());
    for ours in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(ours);
    }
    command
}

async fn prerequisites() -> Result<()> {
    let works = async |arguments: &[&str]| {
        process::answer(nightly().args(arguments)).await.is_ok_and(|output| output.status.success())
    };
    if !works(&["--version"]).await {
        bail!("fuzzing takes a nightly compiler: rustup toolchain install nightly");
    }
    if !works(&["fuzz", "--version"]).await {
        bail!("fuzzing takes cargo-fuzz: cargo install cargo-fuzz");
    }
    Ok(())
}

/// Runs one target; how many inputs it has played.
async fn fuzz(target: &str, seconds: u32, progress: &Progress) -> Result<u64> {
    let work = checkout::work().join("fuzz").join(target);
    let found = work.join("corpus");
    std::fs::create_dir_all(&found)?;
    let log = work.join("log");
    std::fs::File::create(&log)?;
    let kept = ["corpus", "regressions"].map(|kind| folder().join(kind).join(target));
    let mut command = nightly();
    command.args(["fuzz", "run", "--fuzz-dir"]).arg(folder()).args(["--features", "libfuzzer", target]);
    // What is found goes to the first; the others are read.
    command.arg(&found).args(kept.iter().filter(|folder| folder.is_dir()));
    command.args(["--", "-print_final_stats=1", &format!("-timeout={INPUT_TIMEOUT}")]);
    command.arg(format!("-max_total_time={seconds}")).arg(artifacts(&work));
    // The device lives from input to input, and still does when libFuzzer exits: what its threads have then
    // is not leaked. That it leaves nothing behind when it ends is checked by the targets.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    let mut runs = 0;
    let step = progress.step(target);
    let limit = BUILD + Duration::from_secs(u64::from(seconds + INPUT_TIMEOUT));
    process::logged_within(limit, &mut command, &log, &step, |step, line| {
        runs = executed(line).unwrap_or(runs);
        step.note(line.trim());
    })
    .await?;
    Ok(runs)
}

/// Where an input goes that finds something. Those to be kept belong into `regressions/`.
fn artifacts(work: &Path) -> String {
    format!("-artifact_prefix={}/", work.display())
}

/// The number in libFuzzer's last line about inputs.
fn executed(line: &str) -> Option<u64> {
    line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds() {
        let targets = targets().unwrap();
        assert_eq!(targets, ["memory", "messages", "registers", "sequences"]);
        for target in targets {
            assert!(folder().join("corpus").join(&target).read_dir().unwrap().next().is_some(), "{target}");
        }
    }

    #[test]
    fn inputs_are_counted() {
        assert_eq!(executed("stat::number_of_executed_units: 12603"), Some(12603));
        assert_eq!(executed("#8201 NEW cov: 2366"), None);
    }
}
