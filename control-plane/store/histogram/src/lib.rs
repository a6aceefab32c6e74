//! What openraft counts the sizes of its batches with.
//!
//! The crate of this name on crates.io computes tables for sixteen resolutions when the first histogram is
//! made and keeps them: 25 MB in each server, of which openraft uses a few hundred bytes, and the store uses
//! none of the figures. This one has what openraft calls of it, with one bucket for each power of two.

use std::fmt;
use std::marker::PhantomData;

/// One bucket for 0, and one for each number of bits.
const BUCKETS: usize = 65;

/// How often values of each magnitude were recorded. The parameter is for what openraft does not use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    unused: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            unused: PhantomData,
        }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value several times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let bucket = &mut self.counts[bits(value)];
        *bucket = bucket.saturating_add(times);
    }

    /// How many values were recorded.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The largest value of the bucket in which the value of a rank, in thousandths, is; 0 if there is none.
    fn at(&self, thousandths: u64) -> u64 {
        let rank = (u128::from(self.total()) * u128::from(thousandths)).div_ceil(1_000);
        let mut seen = 0;
        for (bits, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= rank {
                return largest(bits);
            }
        }
        0
    }

    /// The usual percentiles.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.at(1),
            p1: self.at(10),
            p5: self.at(50),
            p10: self.at(100),
            p50: self.at(500),
            p90: self.at(900),
            p99: self.at(990),
            p99_9: self.at(999),
        }
    }
}

/// How many bits a value takes: the number of its bucket.
fn bits(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()) as usize
}

/// The largest value of so many bits.
fn largest(bits: usize) -> u64 {
    u32::try_from(bits)
        .ok()
        .and_then(|bits| u64::MAX.checked_shr(u64::BITS.saturating_sub(bits)))
        .unwrap_or(0)
}

/// Percentiles, each rounded up to all bits set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PercentileStats {
    /// How many values.
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} samples: p0.1 {}, p1 {}, p5 {}, p10 {}, p50 {}, p90 {}, p99 {}, p99.9 {}",
            self.samples,
            self.p0_1,
            self.p1,
            self.p5,
            self.p10,
            self.p50,
            self.p90,
            self.p99,
            self.p99_9
        )
    }
}

/// Histograms side by side, as text.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    rows: Vec<(String, Histogram)>,
}

impl AsciiChart {
    /// Without rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more row.
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.rows.push((name.into(), histogram));
        self
    }

    /// What to print.
    #[must_use]
    pub fn detailed(&self) -> String {
        let line = |(name, histogram): &(String, Histogram)| {
            format!("{name}: {}\n", histogram.percentile_stats())
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_values_to_the_next_power_of_two() {
        let mut histogram: Histogram = Histogram::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        histogram.record_n(1, 90);
        histogram.record_n(100, 10);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p50, stats.p90), (100, 1, 1));
        assert_eq!((stats.p99, stats.p0_1), (127, 1));
    }

    #[test]
    fn every_value_has_a_bucket() {
        for value in [0, 1, 2, 3, 1 << 40, u64::MAX] {
            let mut histogram: Histogram = Histogram::new();
            histogram.record(value);
            assert!(histogram.percentile_stats().p50 >= value);
        }
    }
}
