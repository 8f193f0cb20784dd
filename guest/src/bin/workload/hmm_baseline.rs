// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `hmm-baseline`: the kernel's own test of HMM on the kernel's own device without hardware, without our driver. It
//! shows that the kernel's exclusive access is sane before ours is judged.

mod tap;

use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, bail, ensure};
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use svmx::module;
use tap::{Report, Verdict};

/// Where the initramfs has the device and the program, if the kernel has them.
const DEVICE: &str = "/lib/test_hmm.ko";
const PROGRAM: &str = "/bin/hmm-tests";

/// Every test has a variant for memory of the device that is coherent with the CPUs'. Such memory is described by
/// firmware; this machine's describes none, and the test says so.
const SKIPPED_VARIANT: &str = "device_coherent";
const SKIPPED_BECAUSE: &str = "DEVICE_COHERENT not available";
/// What they are run for here.
const ABOUT_EXCLUSIVE: [&str; 3] = ["exclusive", "exclusive_cow", "exclusive_mprotect"];

pub(crate) fn run(_: &Run) -> Result<Shown> {
    for file in [DEVICE, PROGRAM] {
        if !Path::new(file).exists() {
            return Ok(Shown::Skip(format!("this kernel, or its source, has no {file}")));
        }
    }
    ensure!(!module::is_loaded(), "our driver is loaded: this is about the kernel's own");
    step("loading test_hmm");
    finit_module(File::open(DEVICE)?, c"", ModuleInitFlags::empty()).context("loading test_hmm")?;
    let start = Instant::now();
    step("running hmm-tests");
    let output =
        Command::new(PROGRAM).stdin(Stdio::null()).stderr(Stdio::inherit()).output().context(PROGRAM)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let judged = Report::parse(&text).and_then(|report| judge(&report));
    if judged.is_err() || !output.status.success() {
        // Which assertion failed stands between the results.
        print!("{text}");
    }
    let counts = judged?;
    ensure!(output.status.success(), "no test failed, but {PROGRAM} ended with {}", output.status);
    metric("duration_s", start.elapsed().as_secs_f64());
    step("unloading test_hmm");
    delete_module(c"test_hmm", DeleteModuleFlags::O_NONBLOCK).context("unloading test_hmm")?;
    let Counts { passed, skipped } = counts;
    Ok(Shown::Pass(format!(
        "{passed} of the kernel's own tests passed, 0 failed; {skipped} need coherent device memory"
    )))
}

struct Counts {
    passed: usize,
    skipped: usize,
}

/// Everything passed, but for the variants that can't run here, each of which was skipped for just that reason.
fn judge(report: &Report) -> Result<Counts> {
    let count =
        |verdict: fn(&Verdict) -> bool| report.results.iter().filter(|test| verdict(&test.verdict)).count();
    let (passed, failed) = (count(|it| *it == Verdict::Pass), count(|it| *it == Verdict::Fail));
    let skipped = report.results.len() - passed - failed;
    metric("passed", passed);
    metric("failed", failed);
    metric("skipped", skipped);
    for test in &report.results {
        let expected = match test.name.contains(SKIPPED_VARIANT) {
            true => Verdict::Skip(SKIPPED_BECAUSE.into()),
            false => Verdict::Pass,
        };
        ensure!(test.verdict == expected, "{}: expected {expected:?}, found {:?}", test.name, test.verdict);
    }
    // Each test once in either variant.
    ensure!(
        passed == skipped,
        "{passed} passed, but {skipped} were skipped for want of coherent device memory"
    );
    for name in ABOUT_EXCLUSIVE {
        let is_it = |test: &&tap::Test| test.name.rsplit('.').next() == Some(name);
        if !report.results.iter().filter(is_it).any(|test| test.verdict == Verdict::Pass) {
            bail!("there is no test {name} among the {passed} that passed");
        }
    }
    Ok(Counts { passed, skipped })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "TAP version 13\n1..6\n\
        ok 1 hmm.hmm_device_private.exclusive\nok 2 hmm.hmm_device_private.exclusive_cow\n\
        ok 3 hmm.hmm_device_private.exclusive_mprotect\n\
        ok 4 hmm.hmm_device_coherent.exclusive # SKIP DEVICE_COHERENT not available\n\
        ok 5 hmm.hmm_device_coherent.exclusive_cow # SKIP DEVICE_COHERENT not available\n\
        ok 6 hmm.hmm_device_coherent.exclusive_mprotect # SKIP DEVICE_COHERENT not available\n";

    fn judged(text: &str) -> Result<Counts> {
        judge(&Report::parse(text)?)
    }

    #[test]
    fn passes_and_explained_skips_are_good() {
        let counts = judged(GOOD).unwrap();
        assert_eq!((counts.passed, counts.skipped), (3, 3));
    }

    #[test]
    fn anything_else_is_not() {
        for (from, to) in [
            ("ok 2 ", "not ok 2 "),
            ("private.exclusive_cow", "private.exclusive_cow # SKIP no memory"),
            (
                "coherent.exclusive # SKIP DEVICE_COHERENT not available",
                "coherent.exclusive # SKIP no memory",
            ),
            ("coherent.exclusive # SKIP DEVICE_COHERENT not available", "coherent.exclusive"),
            ("private.exclusive_mprotect", "private.other"),
            ("ok 6 hmm.hmm_device_coherent.exclusive_mprotect # SKIP DEVICE_COHERENT not available\n", ""),
        ] {
            assert!(judged(&GOOD.replacen(from, to, 1)).is_err(), "{from} -> {to}");
        }
    }
}
