// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The DMA ranges that a client has given: which exist, and so which may be added or taken away. What is
//! behind them is the backend's.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::backend::Refusal;

/// Ranges that don't overlap, by address, with their sizes.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Whether a range may be added. It does not wrap.
    pub(super) fn check_new(&self, address: u64, size: u64, max: u64) -> Result<(), Refusal> {
        if self.overlapping(address, size).next().is_some() {
            return Err(Refusal::new(Errno::EXIST, format!("{address:#x}+{size:#x} overlaps another map")));
        }
        if self.0.len() as u64 >= max {
            return Err(Refusal::new(Errno::NOSPC, format!("more than {max} maps")));
        }
        Ok(())
    }

    /// Adds a range that has been checked.
    pub(super) fn add(&mut self, address: u64, size: u64) {
        self.0.insert(address, size);
    }

    /// Forgets a range.
    pub(super) fn remove(&mut self, address: u64) {
        self.0.remove(&address);
    }

    /// The ranges that an unmap of this one means: all that lie in it, at least one. None may reach
    /// beyond it.
    pub(super) fn in_range(&self, address: u64, size: u64) -> Result<Vec<(u64, u64)>, Refusal> {
        let found: Vec<_> = self.overlapping(address, size).collect();
        let inside = |&(at, length): &(u64, u64)| at >= address && at + length <= address + size;
        if found.is_empty() {
            return Err(Refusal::new(Errno::NOENT, format!("nothing is mapped at {address:#x}+{size:#x}")));
        }
        if !found.iter().all(inside) {
            return Err(Refusal::new(Errno::INVAL, format!("{address:#x}+{size:#x} would split a map")));
        }
        Ok(found)
    }

    /// Every range.
    pub(super) fn all(&self) -> Vec<(u64, u64)> {
        self.0.iter().map(|(&address, &size)| (address, size)).collect()
    }

    fn overlapping(&self, address: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
        let ends_after = move |&(at, length): &(u64, u64)| at + length > address;
        // The last one that begins before may reach in; those before that one end before it begins.
        let before = self.0.range(..address).next_back();
        before
            .into_iter()
            .chain(self.0.range(address..address + size))
            .map(|(&at, &s)| (at, s))
            .filter(ends_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno<T>(result: Result<T, Refusal>) -> Option<Errno> {
        result.err().map(|refusal| refusal.errno)
    }

    #[test]
    fn what_overlaps_is_refused() {
        let mut ranges = Ranges::default();
        ranges.add(0x1000, 0x2000);
        for (address, size) in
            [(0x1000, 0x1000), (0x2000, 0x1000), (0, 0x2000), (0, 0x9000), (0x2000, 0x9000)]
        {
            assert_eq!(
                errno(ranges.check_new(address, size, 9)),
                Some(Errno::EXIST),
                "{address:#x}+{size:#x}"
            );
        }
        for (address, size) in [(0, 0x1000), (0x3000, 0x1000), (0x3000, u64::MAX - 0x3000)] {
            assert_eq!(errno(ranges.check_new(address, size, 9)), None, "{address:#x}+{size:#x}");
            assert_eq!(errno(ranges.check_new(address, size, 1)), Some(Errno::NOSPC));
        }
    }

    #[test]
    fn whole_ranges_go_together_and_none_is_split() {
        let mut ranges = Ranges::default();
        ranges.add(0x1000, 0x2000);
        ranges.add(0x8000, 0x1000);
        assert_eq!(ranges.in_range(0x1000, 0x2000).unwrap(), [(0x1000, 0x2000)]);
        assert_eq!(ranges.in_range(0, 0x9000).unwrap(), ranges.all());
        for (address, size) in [(0x1000, 0x1000), (0x2000, 0x1000), (0x2000, 0x9000), (0, 0x2000)] {
            assert_eq!(errno(ranges.in_range(address, size)), Some(Errno::INVAL), "{address:#x}+{size:#x}");
        }
        assert_eq!(errno(ranges.in_range(0x3000, 0x5000)), Some(Errno::NOENT));
        ranges.remove(0x1000);
        assert_eq!(errno(ranges.in_range(0x1000, 0x2000)), Some(Errno::NOENT));
    }
}
