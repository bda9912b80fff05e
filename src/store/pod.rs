//! The window of one endpoint of a pod: its series by family, and how its collection went.
//!
//! In: the endpoint's batches. Out: live series of a family, the newest new point, the last failure. Never: a series that
//! the last good batch did not have.

use super::names::Names;
use super::series::{Kept, Offered};
use super::times::Times;
use super::{DroppedPoints, Limits, Series, Stats};
use crate::sample::{Batch, CollectFailure, Labels, MetricName, Sample, SeriesKey};
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

/// Where a sample goes.
enum Place {
    /// To a series that is kept.
    Known(usize),
    /// To a new one. A series that appears beside siblings counted zero before. A whole family that appears may have been
    /// there for long and only now be asked for.
    New { siblings: bool },
}

/// What is kept of one pod, as one of its endpoints tells it.
#[derive(Clone, Debug, Default)]
pub struct PodWindow {
    /// Ascending by name and labels.
    series: Vec<Kept>,
    times: Times,
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
    pub fn family(&self, name: &str) -> impl Iterator<Item = (&Labels, Series<'_>)> {
        let live = self.times.last();
        self.family_series(name)
            .iter()
            .filter(move |kept| kept.batch == live)
            .map(|kept| (&kept.key().labels, kept.read(&self.times)))
    }

    fn family_series(&self, name: &str) -> &[Kept] {
        let start = self.series.partition_point(|kept| kept.key().name.as_str() < name);
        let from = &self.series[start..];
        &from[..from.partition_point(|kept| kept.key().name.as_str() == name)]
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

    pub(super) fn record(
        &mut self,
        batch: &Batch,
        limits: &Limits,
        names: &mut Names,
        dropped: &mut DroppedPoints,
    ) {
        let seen = Seen { arrived: batch.arrived, arrived_at: batch.arrived_at };
        match &batch.outcome {
            Err(failure) => self.last_failure = Some(Failure { seen, failure: failure.clone() }),
            Ok(samples) => {
                self.take(samples, seen, limits, names, dropped);
                self.incomplete.extend(batch.dropped.iter().map(|dropped| dropped.name.clone()));
            }
        }
    }

    fn take(
        &mut self,
        samples: &[Sample],
        seen: Seen,
        limits: &Limits,
        names: &mut Names,
        dropped: &mut DroppedPoints,
    ) {
        self.last_failure = None;
        // Before any sample is taken, so that siblings are those of the batch before.
        let places: Vec<Place> = samples.iter().map(|sample| self.place(&sample.series)).collect();
        let first_at = samples.first().map_or(seen.arrived_at, |sample| sample.at);
        let number = self.times.push(seen.arrived, first_at);
        let mut newcomers = Vec::new();
        let mut brought_new = false;
        let mut over_limit = Vec::new();
        for (sample, place) in samples.iter().zip(places) {
            let reading = (sample.value, sample.at);
            match place {
                Place::Known(index) => {
                    let known = &mut self.series[index];
                    match known.offer(reading, number, seen.arrived_at, &self.times) {
                        Offered::Kept => brought_new = true,
                        Offered::Repeated => {}
                        Offered::OutOfOrder => dropped.out_of_order += 1,
                    }
                }
                Place::New { siblings } if self.has_room(newcomers.len(), limits) => {
                    let born = self.last_source.filter(|&at| siblings && at < sample.at);
                    let key = names.share(&sample.series);
                    newcomers.push(Kept::new(key, reading, born, number, &self.times));
                    brought_new = true;
                }
                Place::New { .. } => {
                    dropped.series_limit += 1;
                    over_limit.push(sample.series.name.clone());
                }
            }
        }
        self.add(newcomers);
        if brought_new {
            self.newest_point = Some(seen);
            self.fresh_batches = self.fresh_batches.saturating_add(1);
        }
        self.last_good = Some(seen);
        self.last_source = samples.iter().map(|sample| sample.at).max().or(self.last_source);
        self.trim(seen.arrived, limits);
        self.incomplete = over_limit;
    }

    fn place(&self, series: &SeriesKey) -> Place {
        match self.series.binary_search_by(|kept| kept.key().cmp(series)) {
            Ok(index) => Place::Known(index),
            Err(_) => {
                let before = self.times.last();
                let mut family = self.family_series(series.name.as_str()).iter();
                let complete = !self.incomplete.contains(&series.name);
                Place::New { siblings: complete && family.any(|kept| kept.batch == before) }
            }
        }
    }

    fn has_room(&self, newcomers: usize, limits: &Limits) -> bool {
        self.series.len() + newcomers < limits.series_per_pod
    }

    /// Of one series twice in one batch, which no source brings, the first counts.
    fn add(&mut self, mut newcomers: Vec<Kept>) {
        if newcomers.is_empty() {
            return;
        }
        self.series.reserve_exact(newcomers.len());
        self.series.append(&mut newcomers);
        self.series.sort_by(|a, b| a.key().cmp(b.key()));
        self.series.dedup_by(|later, kept| later.key() == kept.key());
    }

    /// Ended series are remembered for as long as their points would be, so that one that returns is no giant jump.
    fn trim(&mut self, now: Moment, limits: &Limits) {
        let oldest = self.times.oldest_wanted(now, limits.history, limits.points_per_series);
        let live = self.times.last();
        self.series.retain_mut(|kept| {
            kept.trim(oldest, &self.times);
            kept.batch == live || !kept.outlived(oldest)
        });
        self.times.forget_before(oldest);
        if self.series.capacity() > 2 * self.series.len() {
            self.series.shrink_to_fit();
        }
    }

    pub(super) fn add_to(&self, stats: &mut Stats) {
        let series: usize = self.series.iter().map(Kept::heap_bytes).sum();
        stats.series += self.series.len();
        stats.points +=
            self.series.iter().map(|kept| kept.read(&self.times).points().count()).sum::<usize>();
        stats.bytes += size_of::<Self>()
            + self.series.capacity() * size_of::<Kept>()
            + series
            + self.times.heap_bytes()
            + self.incomplete.capacity() * size_of::<MetricName>();
    }
}
