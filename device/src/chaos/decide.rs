// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Decisions of chaos: the *k*-th of a stream is a function of seed, stream and *k*, and of nothing else. A stream
//! belongs to one thread (or vector) and one purpose, so what other threads do in the meantime changes nothing.

use std::time::Duration;

use super::spec::Delay;

/// What a stream decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Interrupt,
    Sync,
    Evict,
    Invalidate,
    Slow,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    key: u64,
    /// Values taken so far.
    taken: u64,
}

impl Stream {
    /// The stream of a purpose for the thread or vector of that number.
    pub(super) fn new(seed: u64, purpose: Purpose, number: u16) -> Self {
        let name = (purpose as u64 + 1) << 16 | u64::from(number);
        Stream { key: mix(mix(seed) ^ name), taken: 0 }
    }

    fn next(&mut self) -> u64 {
        self.taken += 1;
        mix(self.key.wrapping_add(self.taken.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number from 0 up to, but not including, 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether it happens this time. What never happens costs nothing.
    pub(super) fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.fraction() < probability
    }

    /// How late it is this time.
    pub(super) fn delay(&mut self, delay: Delay) -> Option<Duration> {
        let happens = self.happens(delay.probability);
        happens.then(|| delay.time.mul_f64(self.fraction()))
    }
}

/// The finalizer of splitmix64: every bit of the input changes half of the output's.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decisions(seed: u64, purpose: Purpose, number: u16) -> Vec<bool> {
        let mut stream = Stream::new(seed, purpose, number);
        (0..1000).map(|_| stream.happens(0.3)).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_decisions() {
        assert_eq!(decisions(7, Purpose::Evict, 1), decisions(7, Purpose::Evict, 1));
        let others = [(8, Purpose::Evict, 1), (7, Purpose::Slow, 1), (7, Purpose::Evict, 0)];
        for (seed, purpose, number) in others {
            assert_ne!(decisions(7, Purpose::Evict, 1), decisions(seed, purpose, number));
        }
    }

    #[test]
    fn probabilities_are_kept() {
        let happened = decisions(1, Purpose::Sync, 3).into_iter().filter(|&happens| happens).count();
        assert!((250..350).contains(&happened), "{happened}");
        let mut stream = Stream::new(1, Purpose::Sync, 0);
        assert!((0..1000).all(|_| stream.happens(1.0) && !stream.happens(0.0)));
        let late = Delay { time: Duration::from_micros(10), probability: 1.0 };
        assert!((0..1000).all(|_| stream.delay(late).is_some_and(|time| time <= late.time)));
    }
}
