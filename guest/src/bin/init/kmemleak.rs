// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own leak detector, where it is configured.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

const FILE: &str = "/sys/kernel/debug/kmemleak";
/// Younger memory is not reported: something on its way may refer to it.
const AGE: Duration = Duration::from_secs(6);
/// Lines of a report that are worth a verdict: the first object and where it was made.
const HEAD: usize = 12;

/// Looks for memory that nothing refers to, when nothing should be left.
///
/// # Errors
/// There is some.
pub(crate) fn scan() -> Result<()> {
    if !Path::new(FILE).exists() {
        return Ok(());
    }
    thread::sleep(AGE);
    // A reference that moves during a scan may be missed by it, but not by two.
    for _ in 0..2 {
        fs::write(FILE, "scan").context("kmemleak does not scan")?;
    }
    let report = fs::read_to_string(FILE).context(FILE)?;
    match head(&report) {
        None => Ok(()),
        Some(head) => bail!("kmemleak: {head}"),
    }
}

/// The beginning of a report in a line; `None` if it is empty.
fn head(report: &str) -> Option<String> {
    let lines: Vec<&str> = report.lines().map(str::trim).filter(|line| !line.is_empty()).take(HEAD).collect();
    (!lines.is_empty()).then(|| lines.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_cut_to_its_head() {
        assert_eq!(head(""), None);
        assert_eq!(head("\n\n"), None);
        assert_eq!(
            head("unreferenced object 0x1 (size 8):\n  comm \"x\"\n").unwrap(),
            "unreferenced object 0x1 (size 8): | comm \"x\""
        );
        assert_eq!(head(&"x\n".repeat(100)).unwrap().split(" | ").count(), HEAD);
    }
}
