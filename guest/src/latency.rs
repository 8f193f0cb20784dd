// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Percentiles of the driver's latency histograms.

use svmx_abi::hist;
use svmx_abi::uapi::Histogram;

/// The latency, in nanoseconds, that `percent` of the samples don't exceed by more than their bucket's
/// width: the lower bound of the bucket that holds the sample. `None` if there are no samples.
pub fn percentile(histogram: &Histogram, percent: f64) -> Option<u64> {
    let total: u64 = histogram.iter().sum();
    let rank = ((total as f64 * percent / 100.0).ceil() as u64).clamp(1, total.max(1));
    let mut seen = 0;
    let bucket = histogram.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    Some(hist::lower_bound(bucket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_samples() {
        let mut histogram = [0; hist::BUCKETS];
        assert_eq!(percentile(&histogram, 50.0), None);
        histogram[hist::bucket(1000)] = 98;
        histogram[hist::bucket(8192)] = 2;
        assert_eq!(percentile(&histogram, 50.0), Some(hist::lower_bound(hist::bucket(1000))));
        assert_eq!(percentile(&histogram, 99.0), Some(8192));
        assert_eq!(percentile(&histogram, 0.0), Some(hist::lower_bound(hist::bucket(1000))));
    }
}
