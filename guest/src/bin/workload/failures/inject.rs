// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's fault injection, aimed at the driver: only an allocation with one of its functions among its callers
//! fails. Knows nothing of what is called meanwhile.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const DEBUGFS: &str = "/sys/kernel/debug";
/// Both kinds of allocation.
const CAPABILITIES: [&str; 2] = ["failslab", "fail_page_alloc"];
/// Of the calling thread: which allocation fails, counted from one, once. Zero when it has.
const NTH: &str = "/proc/thread-self/fail-nth";

/// Allocations of the driver can be made to fail as long as this lives.
pub(crate) struct Injector(());

impl Injector {
    /// Takes aim. `None` if this kernel injects no failures.
    pub(crate) fn aim() -> Result<Option<Self>> {
        if !CAPABILITIES.iter().all(|capability| Path::new(DEBUGFS).join(capability).is_dir()) {
            return Ok(None);
        }
        let (start, end) = text_of("svmx")?;
        set(&[
            // An allocation that may sleep fails, too; so does one of a single page, and one for a process.
            ("ignore-gfp-wait", "N"),
            ("task-filter", "N"),
            ("space", "0"),
            // The kernel would log where it was; its log shall stay clean.
            ("verbose", "0"),
            ("stacktrace-depth", "32"),
            ("require-start", &format!("{start:#x}")),
            ("require-end", &format!("{end:#x}")),
        ])?;
        for (name, value) in [("min-order", "0"), ("ignore-gfp-highmem", "N")] {
            write(&format!("{DEBUGFS}/fail_page_alloc/{name}"), value)?;
        }
        let injector = Injector(());
        injector.never()?;
        Ok(Some(injector))
    }

    /// Lets the `nth` allocation in `work` fail that this thread asks for. Returns what came of it, and whether there
    /// were so many.
    pub(crate) fn nth<T>(&self, nth: u32, work: impl FnOnce() -> T) -> Result<(T, bool)> {
        write(NTH, &nth.to_string())?;
        let result = work();
        let left = fs::read_to_string(NTH).context(NTH)?;
        write(NTH, "0")?;
        Ok((result, left.trim() == "0"))
    }

    /// Lets each `interval`-th allocation fail, whoever asks for it, `times` times at most.
    pub(crate) fn each(&self, interval: u64, times: u64) -> Result<()> {
        let (interval, times) = (interval.to_string(), times.to_string());
        set(&[("interval", &interval), ("times", &times), ("probability", "100")])
    }

    /// Lets none fail.
    pub(crate) fn never(&self) -> Result<()> {
        set(&[("probability", "0"), ("interval", "1"), ("times", "-1")])
    }

    /// Failures that are left of those that [`Self::each`] allowed, of both kinds together.
    pub(crate) fn left(&self) -> Result<u64> {
        CAPABILITIES.iter().try_fold(0, |sum, capability| {
            let path = format!("{DEBUGFS}/{capability}/times");
            Ok(sum + fs::read_to_string(&path).context(path)?.trim().parse::<u64>()?)
        })
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        // What can't be switched off fails the rest of the scenario.
        let _ = self.never();
    }
}

fn set(values: &[(&str, &str)]) -> Result<()> {
    for capability in CAPABILITIES {
        for (name, value) in values {
            write(&format!("{DEBUGFS}/{capability}/{name}"), value)?;
        }
    }
    Ok(())
}

fn write(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("writing {value:?} to {path}"))
}

/// Where the code of a module is. The end may lie behind it, where nothing calls anything.
fn text_of(module: &str) -> Result<(u64, u64)> {
    let modules = fs::read_to_string("/proc/modules").context("/proc/modules")?;
    place(&modules, module)
        .with_context(|| format!("{module} is not in /proc/modules, or without its address"))
}

/// Address and end of a module: its line is `name size users by state address`.
fn place(modules: &str, module: &str) -> Option<(u64, u64)> {
    let mut words = modules.lines().map(str::split_whitespace).find_map(|mut words| {
        let found = words.next()? == module;
        found.then_some(words)
    })?;
    let size: u64 = words.next()?.parse().ok()?;
    let address = u64::from_str_radix(words.nth(3)?.strip_prefix("0x")?, 16).ok()?;
    (address != 0).then_some((address, address.checked_add(size)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_among_others() {
        let modules = "zram 1 0 - Live 0xffffffffc0100000\nsvmx 4096 2 - Live 0xffffffffc0000000 (OE)\n";
        assert_eq!(place(modules, "svmx"), Some((0xffff_ffff_c000_0000, 0xffff_ffff_c000_1000)));
        assert_eq!(place(modules, "svm"), None);
        assert_eq!(place("svmx 4096 0 - Live 0x0000000000000000\n", "svmx"), None);
    }
}
