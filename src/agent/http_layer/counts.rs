//! Requests of one endpoint, as the threads of one shard have seen them.
//!
//! In: requests that start and end, each maybe on another thread than before. Out: how many there were, and how many are under
//! way. Never: a lock, or a request that ended without having started.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct Counts {
    started: AtomicU64,
    finished: AtomicU64,
    busy_nanoseconds: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self { started: zero(), finished: zero(), busy_nanoseconds: zero() }
    }
}

impl Counts {
    #[inline]
    pub(super) fn start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn finish(&self) {
        // Whoever sees this one sees that it was started, on whatever thread.
        self.finished.fetch_add(1, Ordering::Release);
    }

    #[inline]
    pub(super) fn add_busy(&self, nanoseconds: u64) {
        self.busy_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    pub(super) fn busy_nanoseconds(&self) -> u64 {
        self.busy_nanoseconds.load(Ordering::Relaxed)
    }

    /// Requests started and those of them that ended, of all shards.
    pub(super) fn started_and_finished<'a, I>(shards: impl Fn() -> I) -> (u64, u64)
    where
        I: Iterator<Item = &'a Self>,
    {
        // In this order, so that a request that ends in between is not missing from those started.
        let finished = shards().map(|counts| counts.finished.load(Ordering::Acquire)).sum();
        (Self::started(shards()), finished)
    }

    /// Requests started, of all shards.
    pub(super) fn started<'a>(shards: impl Iterator<Item = &'a Self>) -> u64 {
        shards.map(|counts| counts.started.load(Ordering::Relaxed)).sum()
    }
}
