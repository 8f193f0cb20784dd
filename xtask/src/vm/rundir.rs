// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A folder per run, with everything that was said in it.

use super::{Outcome, Plan};
use crate::checkout;
use crate::process::Running;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;

/// QEMU logs every access to a device that is gone; this much is enough to see that.
const QEMU_LOG_LIMIT: usize = 1 << 20;
/// Older runs are removed.
const KEPT: usize = 200;

/// A new folder `<time>-<scenario>`.
pub(super) fn create(scenario: &str) -> Result<PathBuf> {
    let runs = checkout::work().join("runs");
    fs::create_dir_all(&runs).with_context(|| format!("can't create {}", runs.display()))?;
    prune(&runs, KEPT);
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string().replace([':', '.'], "-");
    for attempt in 0.. {
        let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
        let dir = runs.join(format!("{time}-{scenario}{suffix}"));
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            // Two xtasks in the same millisecond.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("can't create {}", dir.display())),
        }
    }
    unreachable!("some number is free")
}

/// Their names begin with the time.
fn prune(runs: &Path, keep: usize) {
    let mut dirs: Vec<PathBuf> =
        fs::read_dir(runs).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    dirs.sort();
    for old in dirs.iter().take(dirs.len().saturating_sub(keep)) {
        // Another xtask may be at it, too.
        let _ = fs::remove_dir_all(old);
    }
}

/// QEMU's output on its way to qemu.log.
pub(super) struct Capture([JoinHandle<()>; 2]);

/// Begins to copy QEMU's output, up to a limit, to qemu.log.
pub(super) fn capture(qemu: &mut Running, dir: &Path) -> Result<Capture> {
    let file = File::options().create(true).append(true).open(dir.join("qemu.log"))?;
    let stdout = qemu.child().stdout.take().context("QEMU has no stdout")?;
    let stderr = qemu.child().stderr.take().context("QEMU has no stderr")?;
    Ok(Capture([tokio::spawn(copy(stdout, file.try_clone()?)), tokio::spawn(copy(stderr, file))]))
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: File) {
    let mut left = QEMU_LOG_LIMIT;
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let written = count.min(left);
        // A full disk shows elsewhere; QEMU must not block on its pipe.
        let _ = to.write_all(&buffer[..written]);
        if left > 0 && written == left {
            let _ = to.write_all(b"\n[svmx: the rest is left out]\n");
        }
        left -= written;
    }
}

impl Capture {
    /// Waits until everything is in the file. The pipes close with QEMU's end.
    pub(super) async fn finish(self) {
        for task in self.0 {
            let abort = task.abort_handle();
            if tokio::time::timeout(Duration::from_secs(5), task).await.is_err() {
                abort.abort();
            }
        }
    }
}

/// Writes verdict.json.
pub(super) fn record(outcome: &Outcome, plan: &Plan) -> Result<()> {
    let record = json!({
        "name": plan.scenario.name,
        "verdict": outcome.verdict,
        "detail": outcome.detail,
        "problems": outcome.problems,
        "seed": plan.seed,
        "devices": plan.devices,
        "check_exclusive": plan.instruments.check_exclusive,
        "chaos": plan.chaos(),
        "duration_s": outcome.duration.as_secs_f64(),
        "metrics": outcome.metrics,
    });
    let path = outcome.dir.join("verdict.json");
    let text = serde_json::to_string_pretty(&record)?;
    fs::write(&path, text + "\n").with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_has_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let noise = vec![b'x'; 3 * QEMU_LOG_LIMIT];
        copy(noise.as_slice(), File::create(&path).unwrap()).await;
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() < QEMU_LOG_LIMIT + 100 && text.ends_with("left out]\n"));
    }

    #[test]
    fn the_oldest_runs_go() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["2026-01-03-a", "2026-01-01-a", "2026-01-02-a"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        prune(dir.path(), 2);
        assert!(!dir.path().join("2026-01-01-a").exists());
        assert!(dir.path().join("2026-01-03-a").exists());
    }
}
