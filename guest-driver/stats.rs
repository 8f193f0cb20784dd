// SPDX-License-Identifier: GPL-2.0

//! Counters and latency histograms of a context. Statistics: nothing is ordered with them.

use super::abi::{hist, pte::Pte, uapi};
use kernel::sync::atomic::{Atomic, Relaxed};
use pin_init::Zeroable;

/// A number that only grows.
#[repr(transparent)]
pub(crate) struct Count(Atomic<u64>);

impl Count {
    /// One more.
    pub(crate) fn bump(&self) {
        self.add(1);
    }

    /// `n` more.
    pub(crate) fn add(&self, n: u64) {
        self.0.add(n, Relaxed);
    }

    /// What it is now.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A latency histogram.
#[repr(transparent)]
pub(crate) struct Latency([Count; hist::BUCKETS]);

impl Latency {
    /// Counts a latency of `ns`.
    pub(crate) fn record(&self, ns: u64) {
        self.record_each(ns, 1);
    }

    /// Counts `n` latencies that took `ns` together, as their average.
    pub(crate) fn record_each(&self, ns: u64, n: u64) {
        if let Some(count) = ns.checked_div(n).and_then(|each| self.0.get(hist::bucket(each))) {
            count.add(n);
        }
    }

    /// What each bucket counted.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(Count::get)
    }

    /// All that was counted.
    pub(crate) fn total(&self) -> u64 {
        self.buckets().sum()
    }

    /// The least that the bucket counts which holds this percentile; `None` if nothing was counted.
    pub(crate) fn percentile(&self, thousandths: u64) -> Option<u64> {
        let rank = self.total().saturating_mul(thousandths).div_ceil(1000).max(1);
        let mut seen = 0;
        let holds = |count| {
            seen += count;
            seen >= rank
        };
        self.buckets().position(holds).map(hist::lower_bound)
    }

    fn add(&self, other: &Latency) {
        self.0.iter().zip(&other.0).for_each(|(sum, count)| sum.add(count.get()));
    }

    fn copy_to(&self, out: &mut uapi::Histogram) {
        for (out, count) in out.iter_mut().zip(&self.0) {
            *out = count.get();
        }
    }
}

/// Mappings that the device has now.
#[repr(transparent)]
pub(crate) struct Gauge(Atomic<i64>);

impl Gauge {
    fn change(&self, by: i64) {
        self.0.add(by, Relaxed);
    }
}

/// What `IOC_STATS` reports; fields as in [`uapi::Stats`].
#[repr(C)]
pub(crate) struct Stats {
    pub(crate) faults: Count,
    pub(crate) grants: Count,
    pub(crate) revocations: Count,
    pub(crate) shared_grants: Count,
    pub(crate) replays: Count,
    pub(crate) cancels: Count,
    pub(crate) retries: Count,
    pub(crate) invalidations: Count,
    pub(crate) ahead: Count,
    pub(crate) ahead_lost: Count,
    pub(crate) evictions: Count,
    pub(crate) huge_grants: Count,
    pub(crate) grant_ns: Latency,
    pub(crate) revoke_ns: Latency,
    pub(crate) replay_ns: Latency,
    held_exclusive: Gauge,
    held_shared: Gauge,
    held_huge: Gauge,
}

/// The sum over all contexts that have ended.
pub(crate) static ENDED: Stats = pin_init::zeroed();

// SAFETY: Nothing but atomic integers, for which zero is a value.
unsafe impl Zeroable for Stats {}

impl Stats {
    /// Every number, by the name that [`uapi::Stats`] has for it.
    pub(crate) fn numbers(&self) -> [(&'static str, u64); 12] {
        self.counts().map(|(name, count)| (name, count.get()))
    }

    fn counts(&self) -> [(&'static str, &Count); 12] {
        [
            ("faults", &self.faults),
            ("grants", &self.grants),
            ("revocations", &self.revocations),
            ("shared_grants", &self.shared_grants),
            ("replays", &self.replays),
            ("cancels", &self.cancels),
            ("retries", &self.retries),
            ("invalidations", &self.invalidations),
            ("ahead", &self.ahead),
            ("ahead_lost", &self.ahead_lost),
            ("evictions", &self.evictions),
            ("huge_grants", &self.huge_grants),
        ]
    }

    /// Every histogram, likewise.
    pub(crate) fn latencies(&self) -> [(&'static str, &Latency); 3] {
        [("grant_ns", &self.grant_ns), ("revoke_ns", &self.revoke_ns), ("replay_ns", &self.replay_ns)]
    }

    /// Adds all of `other`.
    pub(crate) fn add(&self, other: &Stats) {
        self.counts().iter().zip(other.counts()).for_each(|((_, sum), (_, count))| sum.add(count.get()));
        self.latencies().iter().zip(other.latencies()).for_each(|((_, sum), (_, latency))| sum.add(latency));
    }

    /// The device has what `entry` maps, if it is valid.
    pub(crate) fn hold(&self, entry: Pte) {
        self.gauge(entry).change(entry.valid().into());
    }

    /// It has lost that.
    pub(crate) fn let_go(&self, entry: Pte) {
        self.gauge(entry).change(-i64::from(entry.valid()));
    }

    fn gauge(&self, entry: Pte) -> &Gauge {
        match (entry.huge(), entry.access().atomic) {
            (true, _) => &self.held_huge,
            (false, true) => &self.held_exclusive,
            (false, false) => &self.held_shared,
        }
    }

    /// What the device has: pages of 4 KiB, and mappings of 2 MiB.
    pub(crate) fn held(&self) -> [(&'static str, i64); 3] {
        let pages = |gauge: &Gauge| gauge.0.load(Relaxed);
        [
            ("pages_exclusive", pages(&self.held_exclusive)),
            ("pages_shared", pages(&self.held_shared)),
            ("huge_shared", pages(&self.held_huge)),
        ]
    }

    /// Copies the numbers into what the process gets.
    pub(crate) fn copy_to(&self, out: &mut uapi::Stats) {
        out.faults = self.faults.get();
        out.grants = self.grants.get();
        out.revocations = self.revocations.get();
        out.shared_grants = self.shared_grants.get();
        out.replays = self.replays.get();
        out.cancels = self.cancels.get();
        out.retries = self.retries.get();
        out.invalidations = self.invalidations.get();
        out.ahead = self.ahead.get();
        out.ahead_lost = self.ahead_lost.get();
        out.evictions = self.evictions.get();
        out.huge_grants = self.huge_grants.get();
        self.grant_ns.copy_to(&mut out.grant_ns);
        self.revoke_ns.copy_to(&mut out.revoke_ns);
        self.replay_ns.copy_to(&mut out.replay_ns);
    }
}
