//! Keep: bounded windows of samples per endpoint of a pod.
//!
//! In: [`Batch`]es, in the order in which they arrived. Out: [`PodWindow`]s to read gauges, increases and histograms from.
//! Never: a clock, more than its [`Limits`], a value carried on after its series ended, or a counter that goes back.

use std::collections::HashMap;
use std::time::Duration;

use crate::sample::{Batch, EndpointKey};

mod column;
mod histogram;
mod names;
mod pod;
mod series;
mod times;

use names::Names;

pub use histogram::Histogram;
pub use pod::{Failure, PodWindow, Seen};
pub use series::{Point, Series, Span};

/// Bounds of a [`Store`]. There is no "unlimited".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Endpoints of pods that are kept at the same time; batches of further ones are dropped.
    pub pods: usize,
    /// Series per endpoint of a pod; further series are dropped.
    pub series_per_pod: usize,
    /// Points per series, of as many batches; the oldest make room.
    pub points_per_series: usize,
    /// How long points are kept, by arrival.
    pub history: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pods: 10_000,
            // As many as a scrape keeps.
            series_per_pod: 10_000,
            points_per_series: 240,
            history: Duration::from_secs(120),
        }
    }
}

/// What the store holds and what it had to drop, for the program's own metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Endpoints of pods held.
    pub pods: usize,
    /// Series held.
    pub series: usize,
    /// Points held.
    pub points: usize,
    /// Bytes held, by the capacity of what holds them. Names and labels count once, however many pods have them.
    pub bytes: usize,
    /// What was dropped so far.
    pub dropped: DroppedPoints,
}

/// What was not kept since the start, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedPoints {
    /// Batches of endpoints over the limit of them.
    pub pod_limit: u64,
    /// Points of series over the limit of series per endpoint.
    pub series_limit: u64,
    /// Points older than the newest of their series.
    pub out_of_order: u64,
}

/// The windows of all pods, one per endpoint that is asked. One writer; decisions read between its writes.
#[derive(Debug)]
pub struct Store {
    limits: Limits,
    /// Boxed, so that the map's free places are small.
    pods: HashMap<EndpointKey, Box<PodWindow>>,
    names: Names,
    dropped: DroppedPoints,
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pods: HashMap::new(),
            names: Names::default(),
            dropped: DroppedPoints::default(),
        }
    }

    /// Changes how long points are kept: the longest `Policy::history` of all policies.
    pub fn set_history(&mut self, history: Duration) {
        self.limits.history = history;
    }

    /// Takes a batch: its points, or the failure.
    pub fn record(&mut self, batch: &Batch) {
        if !self.pods.contains_key(&batch.endpoint) && self.pods.len() >= self.limits.pods {
            self.dropped.pod_limit += 1;
            return;
        }
        let window = self.pods.entry(batch.endpoint.clone()).or_default();
        window.record(batch, &self.limits, &mut self.names, &mut self.dropped);
    }

    /// The window of a pod's endpoint, if a batch of it was recorded.
    #[must_use]
    pub fn pod(&self, key: &EndpointKey) -> Option<&PodWindow> {
        self.pods.get(key).map(Box::as_ref)
    }

    /// Forgets one endpoint.
    pub fn forget(&mut self, key: &EndpointKey) {
        self.pods.remove(key);
    }

    /// Forgets every endpoint that `keep` refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(&EndpointKey) -> bool) {
        self.pods.retain(|key, _| keep(key));
        self.names.sweep();
    }

    /// What is held and what was dropped. Walks all series.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats { pods: self.pods.len(), dropped: self.dropped, ..Stats::default() };
        stats.bytes = self.names.heap_bytes()
            + table_bytes::<(EndpointKey, Box<PodWindow>)>(self.pods.capacity());
        for (endpoint, window) in &self.pods {
            stats.bytes += endpoint.pod.0.len();
            window.add_to(&mut stats);
        }
        stats
    }
}

/// Bytes of a hash table with room for `capacity` entries: 7 of 8 places may be taken, and each has a control byte.
fn table_bytes<T>(capacity: usize) -> usize {
    capacity * 8 / 7 * (size_of::<T>() + 1)
}

#[cfg(test)]
mod exactness;
#[cfg(test)]
mod tests;
