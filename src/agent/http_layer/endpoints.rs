//! The series of the request layer.
//!
//! In: method, matched path and outcome of requests. Out: one [`Endpoint`] per method and path, one [`Series`] per outcome of
//! it. Never: more than [`MAX_ENDPOINTS`] or [`MAX_HISTOGRAMS`] of them, or a lock to find one that is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Method, StatusCode};
use parking_lot::Mutex;

use super::counts::Counts;
use super::exemplars::Exemplars;
use super::recent::Recent;
use crate::pprof::labels::Name;
use crate::signals::exponential::{Histogram, Snapshot};
use crate::signals::sharded::Sharded;
use crate::time::Moment;

/// Endpoints with series of their own.
pub(super) const MAX_ENDPOINTS: usize = 200;
/// Histograms with series of their own: endpoints times the outcomes they had.
const MAX_HISTOGRAMS: usize = 1_000;
/// The endpoint of requests beyond those limits.
const OTHER: &str = "other";
/// The endpoint of requests that match no route.
const UNMATCHED: &str = "unmatched";
/// Between two ticks of the recent durations.
const TICK: Duration = Duration::from_secs(10);

/// Methods are the client's to invent; the label is not. The last is that of all others.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "OTHER"];

/// How a request ended. Both are labels of the histogram. The order is that of the series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Outcome {
    /// Empty for a success. A 4xx is the client's error and counts as a success of the service, as OpenTelemetry has it.
    pub(super) error_type: &'static str,
    pub(super) status: Option<StatusCode>,
}

impl Outcome {
    pub(super) fn of_status(status: StatusCode) -> Self {
        Self { status: Some(status), error_type: if status.is_server_error() { "5xx" } else { "" } }
    }

    pub(super) const fn failed(error_type: &'static str) -> Self {
        Self { status: None, error_type }
    }
}

/// The requests of an endpoint that ended in one way.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) outcome: Outcome,
    pub(super) histogram: Histogram,
    pub(super) exemplars: Exemplars,
}

/// One method and path.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// As the label has it.
    pub(super) name: String,
    /// The same for samples of CPU and heap.
    pub(super) label: Name,
    counts: Sharded<Counts>,
    /// By outcome.
    series: ArcSwap<Vec<Arc<Series>>>,
    adding: Mutex<()>,
    recent: Mutex<Recent>,
    limits: Arc<Limits>,
    /// Where outcomes that find no room are counted; that endpoint itself has none.
    other: Option<Arc<Endpoint>>,
}

#[derive(Debug, Default)]
struct Limits {
    histograms: AtomicUsize,
    folded: AtomicU64,
}

impl Endpoint {
    fn new(name: String, limits: &Arc<Limits>, other: Option<&Arc<Self>>) -> Self {
        Self {
            label: Name::of(&name),
            name,
            counts: Sharded::default(),
            series: ArcSwap::default(),
            adding: Mutex::default(),
            recent: Mutex::default(),
            limits: limits.clone(),
            other: other.cloned(),
        }
    }

    pub(super) fn start(&self) {
        self.counts.own().0.start();
    }

    pub(super) fn add_busy(&self, busy: Duration) {
        let nanoseconds = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        self.counts.own().0.add_busy(nanoseconds);
    }

    /// Counts the request as ended, and gives `record` the series of its outcome.
    pub(super) fn finish(&self, outcome: Outcome, record: impl FnOnce(&Series)) {
        self.counts.own().0.finish();
        let series = self.series.load();
        match series.iter().find(|series| series.outcome == outcome) {
            Some(known) => record(known),
            None => record(&self.new_series(outcome)),
        }
    }

    /// The series of an outcome that has none here.
    #[cold]
    fn new_series(&self, outcome: Outcome) -> Arc<Series> {
        // Two new outcomes at once may both find room; the limit is not exact.
        if let Some(other) = &self.other
            && self.limits.histograms.load(Ordering::Relaxed) >= MAX_HISTOGRAMS
        {
            self.limits.folded.fetch_add(1, Ordering::Relaxed);
            let series = other.series.load();
            let known = series.iter().find(|series| series.outcome == outcome).cloned();
            return known.unwrap_or_else(|| other.new_series(outcome));
        }
        let _adding = self.adding.lock();
        let mut all = Vec::clone(&self.series.load());
        let place = match all.binary_search_by(|series| series.outcome.cmp(&outcome)) {
            Ok(added_meanwhile) => return all[added_meanwhile].clone(),
            Err(place) => place,
        };
        let (histogram, exemplars) = (Histogram::default(), Exemplars::default());
        let new = Arc::new(Series { outcome, histogram, exemplars });
        all.insert(place, new.clone());
        self.series.store(Arc::new(all));
        self.limits.histograms.fetch_add(1, Ordering::Relaxed);
        new
    }

    /// All outcomes so far, in order.
    pub(super) fn series(&self) -> arc_swap::Guard<Arc<Vec<Arc<Series>>>> {
        self.series.load()
    }

    pub(super) fn started(&self) -> u64 {
        Counts::started(self.counts.iter())
    }

    /// Requests started and not finished.
    pub(super) fn in_flight(&self) -> u64 {
        let (started, finished) = Counts::started_and_finished(|| self.counts.iter());
        started.saturating_sub(finished)
    }

    pub(super) fn busy(&self) -> Duration {
        Duration::from_nanos(self.counts.iter().map(Counts::busy_nanoseconds).sum())
    }

    /// The durations of the last minute, whatever their outcome.
    pub(super) fn recent_durations(&self, durations: &mut Snapshot) {
        self.all_durations(durations);
        durations.subtract(self.recent.lock().before());
    }

    fn all_durations(&self, durations: &mut Snapshot) {
        durations.clear();
        self.series.load().iter().for_each(|series| series.histogram.add_to(durations));
    }
}

/// All endpoints.
#[derive(Debug)]
pub(super) struct Endpoints {
    known: ArcSwap<Known>,
    adding: Mutex<()>,
    other: Arc<Endpoint>,
    limits: Arc<Limits>,
    ticked: Mutex<Moment>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    unmatched: Option<Arc<Endpoint>>,
    /// By place of the method in [`METHODS`], then by path: found without building a name.
    by_path: [HashMap<Arc<str>, Arc<Endpoint>>; METHODS.len()],
    /// By name.
    all: Vec<Arc<Endpoint>>,
}

impl Known {
    fn get(&self, method: usize, path: Option<&str>) -> Option<&Arc<Endpoint>> {
        match path {
            Some(path) => self.by_path[method].get(path),
            None => self.unmatched.as_ref(),
        }
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        let limits = Arc::default();
        let other = Arc::new(Endpoint::new(OTHER.to_owned(), &limits, None));
        let (known, adding, ticked) = (ArcSwap::default(), Mutex::default(), Mutex::default());
        Self { known, adding, other, limits, ticked }
    }
}

impl Endpoints {
    /// The endpoint of a request; without a matched path the one of all unmatched requests.
    pub(super) fn of(&self, method: &Method, path: Option<&str>) -> Arc<Endpoint> {
        let method = method_place(method);
        if let Some(known) = self.known.load().get(method, path) {
            return known.clone();
        }
        self.add(method, path).unwrap_or_else(|| {
            self.limits.folded.fetch_add(1, Ordering::Relaxed);
            self.other.clone()
        })
    }

    /// `None` if there is no room.
    #[cold]
    fn add(&self, method: usize, path: Option<&str>) -> Option<Arc<Endpoint>> {
        let known = self.known.load();
        if known.all.len() >= MAX_ENDPOINTS {
            return None;
        }
        let _adding = self.adding.lock();
        let mut known = Known::clone(&self.known.load());
        if let Some(added_meanwhile) = known.get(method, path) {
            return Some(added_meanwhile.clone());
        }
        if known.all.len() >= MAX_ENDPOINTS {
            return None;
        }
        let name = match path {
            Some(path) => format!("{} {path}", METHODS[method]),
            None => UNMATCHED.to_owned(),
        };
        let endpoint = Arc::new(Endpoint::new(name, &self.limits, Some(&self.other)));
        match path {
            Some(path) => drop(known.by_path[method].insert(path.into(), endpoint.clone())),
            None => known.unmatched = Some(endpoint.clone()),
        }
        let place = known.all.partition_point(|other| other.name < endpoint.name);
        known.all.insert(place, endpoint.clone());
        self.known.store(Arc::new(known));
        Some(endpoint)
    }

    /// Calls `visit` for every endpoint that had a request, by name.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&Endpoint)) {
        let known = self.known.load();
        let place = known.all.partition_point(|endpoint| endpoint.name.as_str() < OTHER);
        let other_is_used = self.other.started() > 0 || !self.other.series().is_empty();
        let (before, after) = known.all.split_at(place);
        let other = Some(&self.other).filter(|_| other_is_used);
        before.iter().chain(other).chain(after).for_each(|endpoint| visit(endpoint));
    }

    /// Requests counted as `other`.
    pub(super) fn folded(&self) -> u64 {
        self.limits.folded.load(Ordering::Relaxed)
    }

    /// Lets the recent durations move on, if it is time.
    pub(super) fn tick(&self, now: Moment) {
        let mut ticked = self.ticked.lock();
        if now.since(*ticked) < TICK {
            return;
        }
        *ticked = now;
        self.for_each(|endpoint| {
            let mut recent = endpoint.recent.lock();
            endpoint.all_durations(recent.oldest());
        });
    }
}

fn method_place(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}
