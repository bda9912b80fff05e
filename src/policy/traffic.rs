//! A pod's requests between its two newest samples.
//!
//! In: the families of the request layer. Out: [`Traffic`] and latency histograms. Never: unknown for a pod that was scraped
//! and had no request, and never the requests of endpoints that stay open by design.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::families::{AGENT_EVIDENCE, REQUEST_BUCKET, REQUEST_COUNT, REQUEST_SUM, TRAFFIC};
use super::observe::{Found, View};
use super::window::Totals;
use crate::sample::Labels;
use crate::signals::catalogue::{REQUEST_BUSY, REQUESTS_IN_FLIGHT};
use crate::store::{Histogram, PodWindow, Series, Span};
use crate::time::Timestamp;

/// From this mean duration on, requests in flight are connections that stay open, not a backlog.
const LONG_REQUEST_SECONDS: f64 = 15.0;
/// Completions after which an endpoint with short requests stays one: later its mean may hold long waits in a queue.
const ENOUGH_COMPLETIONS: f64 = 100.0;
/// Endpoints that are remembered as short.
const REMEMBERED_ENDPOINTS: usize = 1000;

/// What a pod's request layer did over the short span.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    /// Completed requests per second.
    pub(super) completed: f64,
    /// Seconds of latency per second: the mean number of requests in the pod, by Little's law.
    pub(super) latency: f64,
    /// Seconds that requests kept a worker, per second; `None` where that is not served.
    pub(super) busy: Option<f64>,
    /// Requests in flight at the newest sample.
    pub(super) in_flight: f64,
    /// Requests in flight at the older sample.
    pub(super) in_flight_before: f64,
    /// Change of the requests in flight, per second.
    pub(super) change: f64,
    /// The short span; `None` while no request was completed in it.
    pub(super) span: Option<(Timestamp, Timestamp)>,
}

impl Traffic {
    /// These requests as totals, with `work` used above the base.
    pub(super) fn totals(&self, work: f64) -> Totals {
        Totals { work, completed: self.completed, change: self.change, in_flight: self.in_flight }
    }
}

/// Which requests are read: one endpoint's, or all; and the endpoints whose requests are short.
pub(super) struct Requests<'a> {
    endpoint: Option<&'a str>,
    short: BTreeSet<&'a str>,
    /// Endpoints that completed requests, long ones.
    open: BTreeSet<&'a str>,
}

fn endpoint_of(labels: &Labels) -> &str {
    labels.get("endpoint").unwrap_or_default()
}

/// The endpoints of which any pod's newest answer shows requests; `""` for requests without the label.
pub(super) fn endpoints_seen<'a>(view: &View<'a>) -> BTreeSet<&'a str> {
    let windows = view.pods.iter().filter_map(|pod| pod.window);
    let series = windows.flat_map(|window| {
        [REQUEST_COUNT, REQUESTS_IN_FLIGHT].into_iter().flat_map(|family| window.family(family))
    });
    series.map(|(labels, _)| endpoint_of(labels)).collect()
}

impl<'a> Requests<'a> {
    /// Tells short endpoints from long ones by the mean duration over all pods since they started. `remembered` are the
    /// endpoints that were short before.
    pub(super) fn new(
        view: &View<'a>,
        endpoint: Option<&'a str>,
        remembered: &mut BTreeSet<String>,
    ) -> Self {
        let mut lifetime: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for window in view.pods.iter().filter_map(|pod| pod.window) {
            for (labels, series) in window.family(REQUEST_SUM) {
                lifetime.entry(endpoint_of(labels)).or_default().0 += series.newest().value;
            }
            for (labels, series) in window.family(REQUEST_COUNT) {
                lifetime.entry(endpoint_of(labels)).or_default().1 += series.newest().value;
            }
        }
        let mut short = BTreeSet::new();
        let mut open = BTreeSet::new();
        for (endpoint, (seconds, requests)) in lifetime {
            let is_short = requests > 0.0 && seconds / requests < LONG_REQUEST_SECONDS;
            if is_short && requests >= ENOUGH_COMPLETIONS && remembered.len() < REMEMBERED_ENDPOINTS
            {
                remembered.insert(endpoint.to_owned());
            }
            if is_short || remembered.contains(endpoint) {
                short.insert(endpoint);
            } else if requests > 0.0 {
                open.insert(endpoint);
            }
        }
        Self { endpoint, short, open }
    }

    fn wants(&self, labels: &Labels) -> bool {
        self.endpoint.is_none_or(|wanted| endpoint_of(labels) == wanted)
    }

    fn series<'w>(
        &'w self,
        window: &'w PodWindow,
        family: &'w str,
    ) -> impl Iterator<Item = (&'w Labels, Series<'w>)> {
        window.family(family).filter(|(labels, _)| self.wants(labels))
    }

    fn rate(&self, window: &PodWindow, family: &str, gap: Duration) -> f64 {
        self.series(window, family)
            .filter_map(|(_, series)| series.span(gap))
            .map(|span| span.rate())
            .sum()
    }

    /// The pod's traffic over the short span. A pod that serves a family of the agent and no series of the endpoint had none.
    pub(super) fn find(&self, window: &PodWindow, gap: Duration) -> Found<Traffic> {
        if TRAFFIC.iter().any(|family| !window.is_complete(family)) {
            return Found::Absent;
        }
        let served = window.serves(REQUEST_COUNT)
            || AGENT_EVIDENCE.iter().any(|family| window.serves(family));
        let Some(newest) = window.newest_point().filter(|_| served) else { return Found::Absent };
        // Many batches of the pod say nothing of a family that is asked for only now: its first count is no rate yet.
        let mut counts = self.series(window, REQUEST_COUNT);
        let unmeasured =
            |series: Series<'_>| series.span(gap).is_none() && !series.counted_from_zero();
        if window.fresh_batches() < 2 || counts.any(|(_, series)| unmeasured(series)) {
            return Found::Awaiting;
        }
        let counts = self.series(window, REQUEST_COUNT).filter_map(|(_, series)| series.span(gap));
        let span = counts.map(|span| (span.from, span.to)).max_by_key(|&(_, to)| to);
        let mut traffic = Traffic {
            completed: self.rate(window, REQUEST_COUNT, gap),
            latency: self.rate(window, REQUEST_SUM, gap),
            busy: window.serves(REQUEST_BUSY).then(|| self.rate(window, REQUEST_BUSY, gap)),
            span,
            ..Traffic::default()
        };
        self.add_in_flight(window, gap, &mut traffic);
        Found::Value(traffic, newest.arrived)
    }

    /// Whether a request is in flight, or completed in the last `over`. Connections that stay open by design do not count.
    pub(super) fn had_any(&self, window: &PodWindow, over: Duration) -> bool {
        let completed = self
            .series(window, REQUEST_COUNT)
            .filter_map(|(_, series)| series.span_over(over))
            .any(|span| span.increase > 0.0);
        let mut in_flight = self.series(window, REQUESTS_IN_FLIGHT);
        completed
            || in_flight.any(|(labels, series)| {
                series.newest().value > 0.0 && !self.open.contains(endpoint_of(labels))
            })
    }

    fn add_in_flight(&self, window: &PodWindow, gap: Duration, traffic: &mut Traffic) {
        let short = |labels: &Labels| self.short.contains(endpoint_of(labels));
        for (_, series) in
            self.series(window, REQUESTS_IN_FLIGHT).filter(|(labels, _)| short(labels))
        {
            let newest = series.newest().value;
            traffic.in_flight += newest;
            match series.span(gap) {
                Some(span) => {
                    traffic.in_flight_before += newest - span.change;
                    traffic.change += span.change / span.seconds();
                }
                None => traffic.in_flight_before += newest,
            }
        }
    }

    /// The latencies of the requests that completed in each series' span; none of a pod that lost a part of its buckets.
    pub(super) fn latencies(
        &self,
        window: &PodWindow,
        span: impl Fn(Series<'_>) -> Option<Span>,
    ) -> Histogram {
        if !(window.is_complete(REQUEST_BUCKET) && window.is_complete(REQUEST_SUM)) {
            return Histogram::default();
        }
        let buckets = self.series(window, REQUEST_BUCKET).filter_map(|(labels, series)| {
            let bound: f64 = labels.get("le")?.parse().ok()?;
            Some((bound, span(series)?.increase))
        });
        let sum = self.series(window, REQUEST_SUM).filter_map(|(_, series)| span(series));
        Histogram::from_increases(buckets, sum.map(|span| span.increase).sum())
    }
}
