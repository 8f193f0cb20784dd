// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask shell`: an interactive guest on this terminal.

use crate::failure::Reported;
use crate::options::VmOptions;
use crate::prepare;
use crate::progress::Progress;
use crate::scenario;
use crate::vm::{Instruments, Plan, Verdict};
use anyhow::Result;

/// Boots and hands over the console.
pub(crate) async fn run(options: VmOptions) -> Result<()> {
    let progress = Progress::new(options.verbose);
    let decided = prepare::decide(&options, &progress).await?;
    let machine = prepare::machine(decided, &options, &progress).await?;
    let plan = Plan {
        scenario: &scenario::SHELL,
        devices: options.devices.unwrap_or(scenario::SHELL.devices),
        engines: options.engines,
        rmw_delay: options.rmw_delay,
        instruments: Instruments::new(&options, &scenario::SHELL),
        seed: 0,
        only: None,
        duration: None,
        timeout: None,
    };
    progress.say("`exit` powers the guest off; Ctrl-] ends it from here");
    let outcome = machine.run(&plan, &progress).await?;
    for problem in &outcome.problems {
        println!("{problem}");
    }
    println!("logs: {}", outcome.dir.display());
    if outcome.verdict == Verdict::Fail { Err(Reported.into()) } else { Ok(()) }
}
