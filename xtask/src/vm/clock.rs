// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The frequency of the host's timestamp counter, which is the guest's under TCG. A guest finds it out at boot,
//! by comparing it with emulated timers; on an overloaded host that fails now and then by a factor of ten ("PIT
//! calibration deviates from PMTIMER"), after which the guest's clock runs so much too fast, and its timeouts
//! end before their time. So the guest is told (`tsc_early_khz`). Under KVM the kernel is told by KVM.
#![expect(unsafe_code, reason = "reads the timestamp counter")]

use std::time::{Duration, Instant};

/// Between the two readings.
const INTERVAL: Duration = Duration::from_millis(20);
/// Tries for a reading: one in which we lose the CPU says little.
const TRIES: usize = 200;

/// The counter at a moment, and how well that moment is known.
#[derive(Clone, Copy, Debug)]
struct Reading {
    ticks: u64,
    at: Instant,
    within: Duration,
}

/// In kilohertz; `None` if this machine is too busy to tell.
pub(crate) fn tsc_khz() -> Option<u64> {
    let first = Reading::take();
    std::thread::sleep(INTERVAL);
    frequency(first, Reading::take())
}

impl Reading {
    /// The one of many whose moment is known best.
    fn take() -> Self {
        let readings = (0..TRIES).map(|_| {
            let at = Instant::now();
            // SAFETY: every x86-64 has this instruction, and no kernel that we know forbids it by default.
            let ticks = unsafe { std::arch::x86_64::_rdtsc() };
            Reading { ticks, at, within: at.elapsed() }
        });
        let best = readings.min_by_key(|reading| reading.within);
        best.expect("there are several")
    }
}

/// `None` if it would be wrong by more than a thousandth: a guest does better than that as a rule.
fn frequency(first: Reading, last: Reading) -> Option<u64> {
    let time = last.at.checked_duration_since(first.at).filter(|time| !time.is_zero())?;
    let ticks = last.ticks.checked_sub(first.ticks)?;
    let khz = u128::from(ticks) * 1_000_000 / time.as_nanos();
    let known = (first.within + last.within) * 1000 <= time;
    u64::try_from(khz).ok().filter(|&khz| known && khz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequency_takes_two_good_readings() {
        let start = Instant::now();
        let reading = |millis, ticks, nanos| {
            let at = start + Duration::from_millis(millis);
            Reading { ticks, at, within: Duration::from_nanos(nanos) }
        };
        let first = reading(0, 1_000, 30);
        assert_eq!(frequency(first, reading(20, 52_001_000, 30)), Some(2_600_000));
        assert_eq!(frequency(first, reading(20, 52_001_000, 50_000)), None, "a bad reading");
        assert_eq!(frequency(first, reading(20, 999, 30)), None, "the counter was set");
        assert_eq!(frequency(first, reading(0, 52_001_000, 30)), None, "no time");
    }

    #[test]
    fn the_counter_counts() {
        let first = Reading::take();
        assert!(Reading::take().ticks > first.ticks);
    }
}
