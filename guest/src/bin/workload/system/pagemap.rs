// SPDX-License-Identifier: Apache-2.0 OR MIT

//! /proc/self/pagemap: what the process's own page table has.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::fs::FileExt;

const PRESENT: u64 = 1 << 63;
const SWAP: u64 = 1 << 62;
const FRAME: u64 = (1 << 55) - 1;
/// Of an entry that is not memory: its type, which is the number of a swap space, or one of those behind them.
const TYPE_BITS: u32 = 5;
const SWAP_SPACES: u64 = 16;
/// SWP_DEVICE_EXCLUSIVE of linux/swap.h, the last but for SWP_PTE_MARKER.
const EXCLUSIVE: u64 = 30;

/// What is at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// Nothing.
    None,
    /// Memory, at this frame.
    Present(u64),
    /// In swap space.
    Swapped,
    /// Memory at this frame, exclusive to a device.
    Exclusive(u64),
    /// Another entry that is not memory, such as that of a page on its way.
    Other,
}

/// Looks an address up.
pub(crate) fn page(address: u64) -> Result<Page> {
    let file = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    let mut entry = [0; 8];
    file.read_exact_at(&mut entry, address / 4096 * 8).context("reading /proc/self/pagemap")?;
    let entry = u64::from_ne_bytes(entry);
    Ok(match entry {
        entry if entry & PRESENT != 0 => Page::Present(entry & FRAME),
        entry if entry & SWAP != 0 => match (entry & FRAME) % (1 << TYPE_BITS) {
            EXCLUSIVE => Page::Exclusive((entry & FRAME) >> TYPE_BITS),
            space if space < SWAP_SPACES => Page::Swapped,
            _ => Page::Other,
        },
        _ => Page::None,
    })
}

/// The frame of a page that is there, to the process or to a device. Tries again while it is on its way.
pub(crate) fn frame(address: u64) -> Result<u64> {
    for _ in 0..100_000 {
        match page(address)? {
            Page::Present(frame) | Page::Exclusive(frame) if frame != 0 => return Ok(frame),
            Page::Other => std::thread::yield_now(),
            other => bail!("{address:#x} is {other:?}"),
        }
    }
    bail!("{address:#x} stays on its way")
}
