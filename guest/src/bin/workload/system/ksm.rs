// SPDX-License-Identifier: Apache-2.0 OR MIT

//! KSM: identical pages become one.
#![expect(unsafe_code, reason = "calls madvise")]

use super::{number, write};
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use std::time::{Duration, Instant};

/// The thread that merges, at work. Dropped, it stops, and what it merged stays merged.
#[derive(Debug)]
pub(crate) struct Ksm(());

impl Ksm {
    /// Starts it, as fast as it can be.
    pub(crate) fn start() -> Result<Self> {
        write(file("pages_to_scan"), 10_000)?;
        write(file("sleep_millisecs"), 1)?;
        // A page whose content was not seen to stay the same for a while is not looked at, else.
        let _ = write(file("smart_scan"), 0);
        write(file("run"), 1)?;
        Ok(Ksm(()))
    }

    /// Waits until everything has been looked at `times` more.
    pub(crate) fn scans(&self, times: u64, limit: Duration) -> Result<()> {
        let (start, first) = (Instant::now(), number(file("full_scans"))?);
        while number(file("full_scans"))? < first + times {
            ensure!(start.elapsed() < limit, "KSM did not look at all memory {times} times in {limit:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        let _ = write(file("run"), 0);
    }
}

fn file(name: &str) -> String {
    format!("/sys/kernel/mm/ksm/{name}")
}

/// Lets KSM look at the range, which must be of private pages.
pub(crate) fn mergeable(address: u64, len: u64) -> Result<()> {
    advise(address, len, libc::MADV_MERGEABLE).context("MADV_MERGEABLE")
}

/// Takes the range back, and unmerges it.
pub(crate) fn unmergeable(address: u64, len: u64) -> Result<()> {
    advise(address, len, libc::MADV_UNMERGEABLE).context("MADV_UNMERGEABLE")
}

fn advise(address: u64, len: u64, advice: i32) -> Result<()> {
    // SAFETY: the content of the pages stays, and so do their addresses.
    let result = unsafe { libc::madvise(address as *mut libc::c_void, len as usize, advice) };
    Ok(Errno::result(result).map(drop)?)
}
