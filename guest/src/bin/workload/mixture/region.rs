// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of the mixture: what is mapped, what was done to it, and what must be in it.

use crate::area::PAGE;
use crate::events::scene::{advise, load, map, store};
use crate::random::Random;
use crate::system::ksm::mergeable;
use crate::system::uffd::{self, Uffd};
use anyhow::{Context, Result, ensure};
use nix::libc;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where the regions are; between two of them is nothing.
const BASE: u64 = 0x3000_0000_0000;
const DISTANCE: u64 = 1 << 30;
/// A huge page, and a span of the driver's.
pub(super) const HUGE: u64 = 2 << 20;
/// Offsets of the words of a page that are used.
pub(super) const COUNTER: u64 = 0;
const PATTERN: u64 = 2048;
/// A word in which is nothing.
pub(super) const UNUSED: u64 = PAGE - 8;

/// What a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Small pages around a multiple of 2 MiB.
    Small,
    /// Huge pages, as long as nothing splits them.
    Huge,
    /// Pages of which every second has the same content, but for its counter, which nobody adds to: KSM merges them.
    Alike,
    /// Small pages whose faults the process serves.
    Served,
}

/// A region.
pub(super) struct Region {
    pub(super) kind: Kind,
    pub(super) base: u64,
    pub(super) len: u64,
    /// Held for writing while the memory can't be reached. CPU threads hold it for reading; the device asks nobody.
    pub(super) reachable: RwLock<()>,
    /// Whether it can't always be reached: commands may end with FAULT or PERMISSION.
    pub(super) unsteady: bool,
    pattern: u64,
    /// Additions to each page.
    added: Vec<AtomicU64>,
}

/// The regions of a run.
pub(super) fn all(random: &mut Random, uffd: &Uffd) -> Result<Vec<Region>> {
    const KINDS: [(Kind, u64); 8] = [
        (Kind::Small, 16),
        (Kind::Small, 2),
        (Kind::Small, 64),
        (Kind::Huge, 512),
        (Kind::Huge, 1024),
        (Kind::Alike, 32),
        (Kind::Served, 8),
        (Kind::Served, 16),
    ];
    let mut regions = Vec::new();
    for (n, (kind, pages)) in KINDS.into_iter().enumerate() {
        let middle = BASE + n as u64 * DISTANCE + HUGE;
        let base = if kind == Kind::Huge { middle } else { middle - pages / 2 * PAGE };
        regions.push(Region::new(kind, base, pages, random, uffd).with_context(|| format!("{kind:?}"))?);
    }
    Ok(regions)
}

impl Region {
    fn new(kind: Kind, base: u64, pages: u64, random: &mut Random, uffd: &Uffd) -> Result<Self> {
        let len = pages * PAGE;
        map(base, len)?;
        let region = Region {
            kind,
            base,
            len,
            reachable: RwLock::new(()),
            unsteady: matches!(kind, Kind::Small | Kind::Huge),
            pattern: random.next(),
            added: (0..pages).map(|_| AtomicU64::new(0)).collect(),
        };
        match kind {
            Kind::Small => {}
            Kind::Huge => advise(base, len, libc::MADV_HUGEPAGE)?,
            Kind::Alike => mergeable(base, len)?,
            Kind::Served => {
                uffd.register(base, len, uffd::MISSING | uffd::WRITE_PROTECT)?;
                // Where its pages are when they are moved out.
                map(base + DISTANCE / 2, len)?;
                uffd.register(base + DISTANCE / 2, len, uffd::MISSING)?;
                (0..pages).try_for_each(|page| {
                    uffd.copy(base + page * PAGE, &[0; PAGE as usize], false).map(drop)
                })?;
            }
        }
        for page in 0..pages {
            store(region.address(page) + PATTERN, region.pattern_of(page));
        }
        Ok(region)
    }

    pub(super) fn pages(&self) -> u64 {
        self.len / PAGE
    }

    pub(super) fn address(&self, page: u64) -> u64 {
        self.base + page * PAGE
    }

    /// Where a page of the region is that was moved out, and the other way round.
    pub(super) fn elsewhere(addr: u64) -> u64 {
        addr ^ (DISTANCE / 2)
    }

    /// A page that may be added to.
    pub(super) fn pick(&self, random: &mut Random) -> u64 {
        let page = random.below(self.pages());
        // Those in between stay alike.
        if self.kind == Kind::Alike && !random.one_in(16) { page & !1 } else { page }
    }

    fn pattern_of(&self, page: u64) -> u64 {
        if self.kind == Kind::Alike { self.pattern } else { self.pattern ^ page }
    }

    /// Somebody has added 1 to a page.
    pub(super) fn added(&self, page: u64) {
        self.added[page as usize].fetch_add(1, Relaxed);
    }

    /// How often a page was added to, at least.
    pub(super) fn least(&self, page: u64) -> u64 {
        self.added[page as usize].load(Relaxed)
    }

    /// A page has its pattern.
    pub(super) fn has_pattern(&self, page: u64) -> bool {
        load(self.address(page) + PATTERN) == self.pattern_of(page)
    }

    /// Every page is exactly as it should be.
    pub(super) fn check(&self) -> Result<()> {
        for page in 0..self.pages() {
            let (expected, found) = (self.least(page), load(self.address(page) + COUNTER));
            ensure!(found == expected, "page {page}: expected {expected} additions, found {found}");
            ensure!(self.has_pattern(page), "page {page} has lost its pattern");
        }
        Ok(())
    }
}
