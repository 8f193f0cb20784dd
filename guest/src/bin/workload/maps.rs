// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The process's own address space: what is mapped, and where nothing is.

use crate::random::Random;
use anyhow::{Context, Result};
use std::ops::Range;
use svmx::abi::pci::page_base;

/// A mapping and what it is of.
pub(crate) struct Region {
    pub(crate) range: Range<u64>,
    pub(crate) name: String,
}

/// Every mapping of the process, in order.
pub(crate) fn regions() -> Result<Vec<Region>> {
    let text = std::fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
    text.lines().map(|line| region(line).with_context(|| format!("/proc/self/maps: {line:?}"))).collect()
}

fn region(line: &str) -> Option<Region> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    Some(Region { range, name: words.nth(4).unwrap_or_default().into() })
}

/// `count` addresses of 64-bit words, in no mapping of the process nor near its stack, which grows:
/// some anywhere, some just behind or before a mapping.
pub(crate) fn gaps(random: &mut Random, count: usize) -> Result<Vec<u64>> {
    const USER_END: u64 = (1 << 47) - 4096;
    const STACK_ROOM: u64 = 64 << 20;
    let regions = regions()?;
    let free = |addr: u64| {
        !regions.iter().any(|region| {
            let below = if region.name == "[stack]" { STACK_ROOM } else { 0 };
            (region.range.start.saturating_sub(below)..region.range.end).contains(&addr)
        })
    };
    let mut found = Vec::new();
    while found.len() < count {
        let region = &random.pick(&regions).range;
        let addr = match random.below(4) {
            0 => region.end,
            1 => region.start.wrapping_sub(8),
            2 => region.end.wrapping_add(8 * random.below(1 << 20)),
            _ => random.below(USER_END) & !7,
        };
        if page_base(addr) < USER_END && free(addr) {
            found.push(addr);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps() {
        let named = region("7ffd0000-7ffe0000 rw-p 00000000 00:00 0     [stack]").unwrap();
        assert_eq!((named.range, named.name.as_str()), (0x7ffd_0000..0x7ffe_0000, "[stack]"));
        assert_eq!(region("1000-2000 rw-s 00001000 00:05 7 /dev/svmx0").unwrap().name, "/dev/svmx0");
        assert_eq!(region("1000-2000 rw-p 00000000 00:00 0").unwrap().name, "");
    }
}
