//! The window of one endpoint of a pod: its series by family, and how its collection went.
//!
//! In: the endpoint's batches. Out: live series of a family, the newest new point, the last failure. Never: a series that
//! the last good batch did not have.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::series::Offered;
use super::{DroppedPoints, Limits, Point, Series, Stats};
use crate::sample::{Batch, CollectFailure, Labels, MetricName, Sample};
use crate::time::{Moment, Timestamp};

/// When something was seen, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// For ages.
    pub arrived: Moment,
    /// For people, and for comparing with times that Kubernetes wrote.
    pub arrived_at: Timestamp,
}

/// An attempt that brought nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// When it was given up.
    pub seen: Seen,
    /// Why.
    pub failure: CollectFailure,
}

#[derive(Clone, Debug, Default)]
struct Family {
    series: BTreeMap<Labels, Series>,
    /// The number of the last good batch with any series of it, and of the one before that.
    last_batch: u32,
    batch_before: u32,
}

/// What is kept of one pod, as one of its endpoints tells it.
#[derive(Clone, Debug, Default)]
pub struct PodWindow {
    families: BTreeMap<MetricName, Family>,
    series: usize,
    /// Good batches so far, which numbers them from 1.
    batches: u32,
    /// Good batches that brought a new point.
    fresh_batches: u32,
    last_good: Option<Seen>,
    newest_point: Option<Seen>,
    /// The largest source timestamp of the last good batch.
    last_source: Option<Timestamp>,
    last_failure: Option<Failure>,
    /// Families of which the last good batch had to leave samples out.
    incomplete: Vec<MetricName>,
}

impl PodWindow {
    /// Live series of a family: those that the last good batch had.
    pub fn family(&self, name: &str) -> impl Iterator<Item = (&Labels, &Series)> {
        let live = self.batches;
        self.families
            .get(name)
            .into_iter()
            .flat_map(|family| family.series.iter())
            .filter(move |(_, series)| series.batch == live)
    }

    /// Whether the last good batch had any series of a family.
    #[must_use]
    pub fn serves(&self, name: &str) -> bool {
        self.family(name).next().is_some()
    }

    /// Whether the last good batch kept every sample of a family; also true where it had none. What is left of a family
    /// that lost some adds up to too little.
    #[must_use]
    pub fn is_complete(&self, name: &str) -> bool {
        !self.incomplete.iter().any(|lost| lost.as_str() == name)
    }

    /// The last good batch.
    #[must_use]
    pub fn last_good(&self) -> Option<Seen> {
        self.last_good
    }

    /// The last batch with a point whose source timestamp was new: a frozen source answers, and still grows old.
    #[must_use]
    pub fn newest_point(&self) -> Option<Seen> {
        self.newest_point
    }

    /// The source time of the newest samples.
    #[must_use]
    pub fn newest_source(&self) -> Option<Timestamp> {
        self.last_source
    }

    /// The failure, if the last attempt failed.
    #[must_use]
    pub fn last_failure(&self) -> Option<&Failure> {
        self.last_failure.as_ref()
    }

    /// How many good batches brought something new.
    #[must_use]
    pub fn fresh_batches(&self) -> u32 {
        self.fresh_batches
    }

    pub(super) fn record(&mut self, batch: &Batch, limits: &Limits, dropped: &mut DroppedPoints) {
        let seen = Seen { arrived: batch.arrived, arrived_at: batch.arrived_at };
        match &batch.outcome {
            Err(failure) => self.last_failure = Some(Failure { seen, failure: failure.clone() }),
            Ok(samples) => {
                self.take(samples, seen, limits, dropped);
                self.incomplete.extend(batch.dropped.iter().map(|dropped| dropped.name.clone()));
            }
        }
    }

    fn take(
        &mut self,
        samples: &[Sample],
        seen: Seen,
        limits: &Limits,
        dropped: &mut DroppedPoints,
    ) {
        self.last_failure = None;
        self.batches = self.batches.saturating_add(1);
        let mut brought_new = false;
        let mut over_limit = Vec::new();
        for sample in samples {
            let point = Point { at: sample.at, arrived: seen.arrived, value: sample.value };
            match self.take_one(sample, point, seen.arrived_at, limits.series_per_pod) {
                Some(Offered::Kept) => brought_new = true,
                Some(Offered::Repeated) => {}
                Some(Offered::OutOfOrder) => dropped.out_of_order += 1,
                None => {
                    dropped.series_limit += 1;
                    over_limit.push(sample.series.name.clone());
                }
            }
        }
        if brought_new {
            self.newest_point = Some(seen);
            self.fresh_batches = self.fresh_batches.saturating_add(1);
        }
        self.last_good = Some(seen);
        self.last_source = samples.iter().map(|sample| sample.at).max().or(self.last_source);
        self.trim(seen.arrived, limits);
        self.incomplete = over_limit;
    }

    /// `None` where the limit of series leaves no room.
    fn take_one(
        &mut self,
        sample: &Sample,
        point: Point,
        wall: Timestamp,
        max_series: usize,
    ) -> Option<Offered> {
        let batch = self.batches;
        let complete = !self.incomplete.contains(&sample.series.name);
        let family = self.families.entry(sample.series.name.clone()).or_default();
        if family.last_batch != batch {
            family.batch_before = family.last_batch;
            family.last_batch = batch;
        }
        // A series that appears beside siblings counted zero before. A whole family that appears may have been there
        // for long and only now be asked for.
        let siblings = batch > 1 && family.batch_before == batch - 1 && complete;
        match family.series.entry(sample.series.labels.clone()) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.batch = batch;
                Some(known.offer(point, wall))
            }
            Entry::Vacant(room) if self.series < max_series => {
                let born = self.last_source.filter(|&at| siblings && at < point.at);
                room.insert(Series::new(point, born, batch));
                self.series += 1;
                Some(Offered::Kept)
            }
            Entry::Vacant(_) => None,
        }
    }

    /// Ended series are remembered for as long as their points would be, so that one that returns is no giant jump.
    fn trim(&mut self, now: Moment, limits: &Limits) {
        let live = self.batches;
        for family in self.families.values_mut() {
            family.series.retain(|_, series| {
                series.trim(now, limits.history, limits.points_per_series);
                series.batch == live || now.since(series.newest().arrived) <= limits.history
            });
        }
        self.families.retain(|_, family| !family.series.is_empty());
        self.series = self.families.values().map(|family| family.series.len()).sum();
    }

    pub(super) fn add_to(&self, stats: &mut Stats) {
        stats.bytes += size_of::<Self>();
        for family in self.families.values() {
            for (labels, series) in &family.series {
                let points = series.points().len();
                let label_bytes: usize =
                    labels.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
                stats.series += 1;
                stats.points += points;
                stats.bytes += points * size_of::<Point>() + size_of::<Series>() + label_bytes;
            }
        }
    }
}
