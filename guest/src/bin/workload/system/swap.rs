// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Swap on a compressed disk in memory (zram), and pages that go there.
#![expect(unsafe_code, reason = "calls madvise and swapon")]

use super::write;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::libc;
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// In the order in which they need each other. One that the kernel has built in has no file.
const MODULES: [&str; 3] = ["/lib/lzo_compress.ko", "/lib/zsmalloc.ko", "/lib/zram.ko"];
const DISK: &CStr = c"/dev/zram0";
const PAGE: usize = 4096;

/// Swap space that is in use. Pages come back when it is dropped.
#[derive(Debug)]
pub(crate) struct Swap(());

impl Swap {
    /// `bytes` of it, a multiple of the page size. There is one at a time.
    pub(crate) fn on(bytes: u64) -> Result<Self> {
        for module in MODULES.into_iter().filter(|module| Path::new(module).exists()) {
            match finit_module(File::open(module)?, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).context(module),
            }
        }
        write("/sys/block/zram0/reset", 1).context("is there zram?")?;
        write("/sys/block/zram0/disksize", bytes)?;
        let disk = OpenOptions::new().write(true).open("/dev/zram0").context("/dev/zram0")?;
        disk.write_all_at(&header(bytes), 0).context("writing the header of the swap space")?;
        disk.sync_all()?;
        // SAFETY: the path ends with a zero byte.
        Errno::result(unsafe { libc::swapon(DISK.as_ptr(), 0) }).context("swapon")?;
        Ok(Swap(()))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // Fails only if there is no memory for what is there: then it stays, and the machine ends soon.
        // SAFETY: the path ends with a zero byte.
        unsafe { libc::swapoff(DISK.as_ptr()) };
    }
}

/// The first page of a swap space: version 1, its last page, its signature.
fn header(bytes: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let last = (bytes / PAGE as u64 - 1) as u32;
    page[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last.to_ne_bytes());
    page[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    page
}

/// Asks for the pages to be reclaimed. The kernel may leave some of them.
pub(crate) fn page_out(address: u64, len: u64) -> Result<()> {
    // SAFETY: their content stays.
    let result = unsafe { libc::madvise(address as *mut libc::c_void, len as usize, libc::MADV_PAGEOUT) };
    Errno::result(result).map(drop).context("MADV_PAGEOUT")
}
