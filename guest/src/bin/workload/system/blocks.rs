// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Blocks of memory that can be taken offline and brought back.

use super::{read, write};
use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// KPF_RESERVED of linux/kernel-page-flags.h: a page that the kernel or the firmware has had since it booted.
const RESERVED: u64 = 1 << 32;
const FOLDER: &str = "/sys/devices/system/memory";

/// A block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block(u64);

impl Block {
    /// The block of a page frame.
    pub(crate) fn of_frame(frame: u64) -> Result<Self> {
        Ok(Block(frame / frames()?))
    }

    /// Those that can go offline, unless somebody pins a page.
    pub(crate) fn movable() -> Result<Vec<Self>> {
        let mut blocks = Vec::new();
        for entry in std::fs::read_dir(FOLDER).context(FOLDER)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("memory")?.parse().ok());
            if let Some(block) = number.map(Block)
                && block.is_movable()?
                && !block.has_reserved()?
            {
                blocks.push(block);
            }
        }
        Ok(blocks)
    }

    /// Whether all of it is of the zone from which everything can be moved, but for what was there before.
    fn is_movable(self) -> Result<bool> {
        Ok(read(self.file("valid_zones"))?.split_whitespace().next() == Some("Movable"))
    }

    /// Whether there is something in it that was there before there were zones.
    fn has_reserved(self) -> Result<bool> {
        let frames = frames()?;
        let mut flags = vec![0; 8 * frames as usize];
        let file = File::open("/proc/kpageflags").context("/proc/kpageflags")?;
        file.read_exact_at(&mut flags, 8 * self.0 * frames).context("reading /proc/kpageflags")?;
        let (flags, _) = flags.as_chunks();
        Ok(flags.iter().any(|flags| u64::from_ne_bytes(*flags) & RESERVED != 0))
    }

    /// Moves everything out of it and takes it away. Fails with the kernel's errno if something stays.
    pub(crate) fn offline(self) -> Result<Offline> {
        write(self.file("state"), "offline")?;
        Ok(Offline(self))
    }

    fn file(self, name: &str) -> String {
        format!("{FOLDER}/memory{}/{name}", self.0)
    }
}

/// Page frames of a block.
fn frames() -> Result<u64> {
    let size = read(format!("{FOLDER}/block_size_bytes"))?;
    Ok(u64::from_str_radix(size.trim_start_matches("0x"), 16).context("block_size_bytes")? / 4096)
}

/// A block that is offline. It is brought back when this is dropped.
#[derive(Debug)]
pub(crate) struct Offline(Block);

impl Offline {
    /// Brings it back.
    pub(crate) fn online(self) -> Result<()> {
        let block = self.0;
        std::mem::forget(self);
        write(block.file("state"), "online_movable")
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        // Whoever needs it misses it soon enough.
        let _ = write(self.0.file("state"), "online_movable");
    }
}
