// SPDX-License-Identifier: GPL-2.0

//! Counters and latency histograms of a context. Statistics: nothing is ordered with them.

use super::abi::{hist, uapi};
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

    fn copy_to(&self, out: &mut uapi::Histogram) {
        for (out, count) in out.iter_mut().zip(&self.0) {
            *out = count.get();
        }
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
}

// SAFETY: Nothing but atomic integers, for which zero is a value.
unsafe impl Zeroable for Stats {}

impl Stats {
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
