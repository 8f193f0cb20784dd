// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PID 1 of the guest: mounts, loads the driver, runs one scenario, says exactly one verdict to the
//! host, and powers off. Whatever goes wrong, also in here, becomes a failing verdict.

mod cmdline;
mod kmemleak;
mod mounts;
mod power;
mod shell;
mod verdict;
mod workload;

use anyhow::{Context, Result, ensure};
use cmdline::Options;
use std::time::{Duration, Instant};
use svmx::module::{self, ModuleError};
use svmx::report::{Message, Metrics};
use verdict::Ending;

fn main() {
    // Nothing can be said before /proc, /sys and /dev are there.
    let mounted = mounts::mount_all();
    verdict::fail_on_panic();
    let ending = match mounted.context("mounting").and_then(|()| run()) {
        Ok(Some(ending)) => ending,
        Ok(None) => power::off(),
        Err(error) => Ending::fail(format!("init: {error:#}")),
    };
    verdict::say(ending);
    power::off();
}

/// Scenarios that load the driver themselves, which is what they are about, or do without.
const WITHOUT_DRIVER: [&str; 2] = ["reload", "hmm-baseline"];

/// `None` if there was nothing to judge.
fn run() -> Result<Option<Ending>> {
    mounts::attach_console();
    verdict::open_port();
    let options = Options::read()?;
    let scenario = options.scenario.as_str();
    verdict::tell(&Message::Started { scenario: scenario.into() });
    if scenario == "shell" {
        let loaded = module::load(&options.module).context("no driver");
        loaded.unwrap_or_else(|error| println!("svmx-init: {error:#}"));
        shell::run()?;
        return Ok(None);
    }
    if !WITHOUT_DRIVER.contains(&scenario) {
        module::load(&options.module)?;
        module::wait_for_devices(options.devices, Duration::from_secs(10))?;
    }
    power::watch(options.limit + Duration::from_secs(15));
    let mut ending = workload::run(&options)?;
    add_statistics(&mut ending.metrics);
    let clean = unload_module().and_then(|()| kmemleak::scan());
    Ok(Some(match clean {
        Err(error) if ending.passed() => {
            Ending { metrics: ending.metrics, ..Ending::fail(format!("{error:#}")) }
        }
        _ => ending,
    }))
}

/// The driver's numbers over all contexts as metrics `driver_NAME`. All processes are gone, so every context has
/// ended.
fn add_statistics(metrics: &mut Metrics) {
    // A scenario that unloads the driver takes them along.
    let numbers = svmx::debugfs::ended().unwrap_or_default();
    metrics.extend(numbers.into_iter().map(|(name, value)| (format!("driver_{name}"), value.into())));
}

/// All processes are gone, so nothing may hold the driver.
fn unload_module() -> Result<()> {
    if !module::is_loaded() {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        match module::unload() {
            Ok(()) => break,
            // The last file may still be on its way out.
            Err(ModuleError::Unload(_)) if start.elapsed() < Duration::from_secs(3) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error).context("after the workload"),
        }
    }
    ensure!(!module::is_loaded(), "the driver is still there after it was unloaded");
    Ok(())
}
