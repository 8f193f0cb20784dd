// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `c-example`: guest/c/fetch_add.c, which users of C begin with, does what it says.

use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};
use svmx::debugfs;

const PROGRAM: &str = "/bin/fetch_add";

pub(crate) fn run(_: &Run) -> Result<Shown> {
    step(PROGRAM);
    let output = Command::new(PROGRAM).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context(PROGRAM)?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "it ended with {} and said {text:?}", output.status);
    // It judges itself: it must have used the device at all.
    let grants = debugfs::ended()?.get("grants").copied().unwrap_or(0);
    ensure!(grants > 0, "it said {text:?}, but no page was given to the device");
    Ok(Shown::Pass(format!("{}, with {grants} grants", text.trim())))
}
