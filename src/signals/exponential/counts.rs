//! What one shard of a histogram has counted.
//!
//! In: places of buckets, from any thread. Out: the counts so far. Never: a lock, or a count that falls. It knows no bounds: the
//! models of `loom/` drive it with few buckets.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use crate::signals::sharded::Writers;

#[derive(Debug)]
pub(super) struct Counts<const BUCKETS: usize> {
    sum_nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl<const BUCKETS: usize> Default for Counts<BUCKETS> {
    fn default() -> Self {
        let buckets = std::array::from_fn(|_| AtomicU64::new(0));
        Self { sum_nanoseconds: AtomicU64::new(0), buckets }
    }
}

impl<const BUCKETS: usize> Counts<BUCKETS> {
    /// Counts one duration.
    #[inline(always)]
    pub(super) fn record(&self, writers: Writers, bucket: usize, nanoseconds: u64) {
        writers.add(&self.buckets[bucket], 1);
        writers.add(&self.sum_nanoseconds, nanoseconds);
    }

    /// Adds the counts so far. Of what is being recorded, the sum may lack or hold what the buckets do not.
    pub(super) fn add_to(&self, sum_nanoseconds: &mut u64, buckets: &mut [u64; BUCKETS]) {
        for (total, count) in buckets.iter_mut().zip(&self.buckets) {
            *total = total.wrapping_add(count.load(Ordering::Relaxed));
        }
        let sum = self.sum_nanoseconds.load(Ordering::Relaxed);
        *sum_nanoseconds = sum_nanoseconds.wrapping_add(sum);
    }
}
