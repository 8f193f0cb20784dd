// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! Buckets of the latency histograms: logarithmic, four to each power of two of nanoseconds.

/// Buckets of a histogram. The last one takes everything from 15 · 2^31 ns (32 s) on.
pub const BUCKETS: usize = 136;
/// Binary logarithm of the buckets in each power of two.
const SUB_BITS: u32 = 2;

/// The bucket that counts `ns`.
pub const fn bucket(ns: u64) -> usize {
    if ns < (1 << SUB_BITS) {
        return ns as usize;
    }
    let exponent = 63 - ns.leading_zeros();
    let sub = (ns >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    let index = (((exponent - SUB_BITS + 1) as usize) << SUB_BITS) + sub as usize;
    if index < BUCKETS {
        index
    } else {
        BUCKETS - 1
    }
}

/// The least value, in nanoseconds, that `bucket` counts.
pub const fn lower_bound(bucket: usize) -> u64 {
    if bucket < (1 << SUB_BITS) {
        return bucket as u64;
    }
    let exponent = (bucket >> SUB_BITS) as u32 - 1;
    ((1 << SUB_BITS) + (bucket as u64 & ((1 << SUB_BITS) - 1))) << exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lower_bound_is_the_first_of_its_bucket() {
        for index in 1..BUCKETS {
            assert_eq!(bucket(lower_bound(index)), index);
            assert_eq!(bucket(lower_bound(index) - 1), index - 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
