// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a system does to the memory of its processes from outside of them, as functions: swapping, merging,
//! compacting, migrating, taking memory offline, limiting it, pinning it, letting user space serve faults.
//!
//! Nothing here knows the device, and nothing judges. Switches of the whole system are put back when the value
//! that stands for them is dropped.

pub(crate) mod blocks;
pub(crate) mod ksm;
pub(crate) mod memcg;
pub(crate) mod numa;
pub(crate) mod pagemap;
pub(crate) mod pins;
pub(crate) mod swap;
pub(crate) mod uffd;

use anyhow::{Context, Result};
use std::fmt::Display;
use std::path::Path;

/// Writes to a file of the kernel, such as one in /sys.
pub(crate) fn write(path: impl AsRef<Path>, value: impl Display) -> Result<()> {
    let (path, value) = (path.as_ref(), value.to_string());
    std::fs::write(path, &value).with_context(|| format!("writing {value:?} to {}", path.display()))
}

/// Reads a file of the kernel, without the end of the line.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.trim_end().into())
}

/// Reads a number from a file of the kernel.
pub(crate) fn number(path: impl AsRef<Path>) -> Result<u64> {
    let text = read(&path)?;
    text.parse().with_context(|| format!("{}: {text:?}", path.as_ref().display()))
}

/// The number behind `name` in /proc/vmstat.
pub(crate) fn vmstat(name: &str) -> Result<u64> {
    let text = read("/proc/vmstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).with_context(|| format!("/proc/vmstat has no {name}"))
}

/// Compacts the memory of all nodes.
pub(crate) fn compact() -> Result<()> {
    write("/proc/sys/vm/compact_memory", 1)
}
