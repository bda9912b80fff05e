//! The last minute, always kept: one slice per second of CPU samples, tasks by site, and signals.
//!
//! In: a slice each tick. Out: the slices of a window. Never: more than the limits; the oldest slices go first, and how far
//! back the ring reaches is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::pprof::CpuSlice;
use crate::time::{Now, Timestamp};

/// What the ring may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLimits {
    /// How far back it reaches at most.
    pub window: Duration,
    /// What its slices may take in memory, in bytes.
    pub bytes: usize,
}

impl Default for RingLimits {
    fn default() -> Self {
        Self { window: Duration::from_secs(60), bytes: 4 << 20 }
    }
}

/// What was seen between two ticks.
#[derive(Debug)]
pub(in crate::agent) struct Slice {
    pub(in crate::agent) since: Timestamp,
    pub(in crate::agent) until: Now,
    pub(in crate::agent) cpu: CpuSlice,
    pub(in crate::agent) values: Vec<SliceValue>,
    /// What it takes in memory, its shared parts included.
    pub(super) bytes: usize,
}

/// One series at the end of a slice.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::agent) struct SliceValue {
    pub(in crate::agent) name: &'static str,
    /// As Prometheus writes them, without braces; shared between slices.
    pub(in crate::agent) labels: Arc<str>,
    pub(in crate::agent) value: f64,
}

impl Slice {
    pub(super) fn new(
        since: Timestamp,
        until: Now,
        cpu: CpuSlice,
        values: Vec<SliceValue>,
    ) -> Self {
        let values_bytes: usize =
            values.iter().map(|value| size_of::<SliceValue>() + value.labels.len()).sum();
        let bytes = size_of::<Self>() + cpu.bytes() + values_bytes;
        Self { since, until, cpu, values, bytes }
    }
}

/// The slices, oldest first.
#[derive(Debug)]
pub(super) struct EvidenceRing {
    limits: RingLimits,
    slices: VecDeque<Arc<Slice>>,
    bytes: usize,
}

impl EvidenceRing {
    pub(super) const fn new(limits: RingLimits) -> Self {
        Self { limits, slices: VecDeque::new(), bytes: 0 }
    }

    /// Adds the newest slice; one that is larger than the ring alone is not kept.
    pub(super) fn push(&mut self, slice: Arc<Slice>) {
        let now = slice.until.monotonic;
        self.bytes += slice.bytes;
        self.slices.push_back(slice);
        while let Some(oldest) = self.slices.front() {
            let outdated = now.since(oldest.until.monotonic) >= self.limits.window;
            if !outdated && self.bytes <= self.limits.bytes {
                break;
            }
            self.bytes -= oldest.bytes;
            self.slices.pop_front();
        }
    }

    /// The slices that end within `before` of `now`.
    pub(super) fn last(&self, before: Duration, now: Now) -> Vec<Arc<Slice>> {
        let within = |slice: &&Arc<Slice>| now.monotonic.since(slice.until.monotonic) < before;
        self.slices.iter().filter(within).cloned().collect()
    }

    /// How many slices there are.
    pub(super) fn len(&self) -> usize {
        self.slices.len()
    }

    /// What they take.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) const fn limits(&self) -> RingLimits {
        self.limits
    }
}
