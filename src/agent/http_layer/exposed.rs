//! The families of the request layer, as a scrape gets them.
//!
//! In: the endpoints. Out: calls of a [`Sink`], families one after the other. Never: a family without series; a quantile of an
//! endpoint that had no request.

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::HttpLayer;
use super::endpoints::{Endpoint, Series};
use crate::agent::collector::describe;
use crate::agent::exposition::Sink;
use crate::signals::Family;
use crate::signals::catalogue::families;
use crate::signals::exponential::Snapshot;

/// All families of the layer.
pub(in crate::agent) const FAMILIES: [&Family; 6] = [
    &families::REQUEST_DURATION,
    &families::REQUEST_DURATION_QUANTILE,
    &families::REQUESTS_IN_FLIGHT,
    &families::REQUESTS_STARTED,
    &families::REQUEST_BUSY,
    &families::AGENT_REQUESTS_FOLDED,
];

/// What people look at.
const QUANTILES: [(f64, &str); 4] = [(0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99"), (0.999, "0.999")];

impl HttpLayer {
    /// Writes every family that has series.
    pub(in crate::agent) fn write(&self, sink: &mut impl Sink) {
        let mut durations = Snapshot::default();
        let mut started = Started(None);
        self.each_series(|endpoint, series| {
            durations.clear();
            series.histogram.add_to(&mut durations);
            let status = series.outcome.status.as_ref().map_or("", http::StatusCode::as_str);
            let labels = [endpoint.name.as_str(), series.outcome.error_type, status];
            started.family(sink, &families::REQUEST_DURATION);
            sink.histogram(&labels, &durations, &series.exemplars);
        });
        self.0.for_each(|endpoint| {
            endpoint.recent_durations(&mut durations);
            for (quantile, label) in QUANTILES {
                if let Some(duration) = durations.quantile(quantile) {
                    started.family(sink, &families::REQUEST_DURATION_QUANTILE);
                    sink.number(&[&endpoint.name, label], duration.as_secs_f64());
                }
            }
        });
        let mut numbers = |family, value: fn(&Endpoint) -> f64| {
            self.0.for_each(|endpoint| {
                started.family(sink, family);
                sink.number(&[&endpoint.name], value(endpoint));
            });
        };
        numbers(&families::REQUESTS_IN_FLIGHT, |endpoint| endpoint.in_flight() as f64);
        numbers(&families::REQUESTS_STARTED, |endpoint| endpoint.started() as f64);
        numbers(&families::REQUEST_BUSY, |endpoint| endpoint.busy().as_secs_f64());
        sink.family(&families::AGENT_REQUESTS_FOLDED);
        sink.number(&[], self.0.folded() as f64);
    }

    /// All endpoints together, for the ring: family, labels as text, value. The quantile is that of the slowest endpoint.
    pub(in crate::agent) fn totals(&self) -> Vec<(&'static str, &'static str, f64)> {
        let (mut in_flight, mut started, mut busy) = (0.0, 0.0, 0.0);
        let (mut slowest, mut durations) = (None, Snapshot::default());
        self.0.for_each(|endpoint| {
            in_flight += endpoint.in_flight() as f64;
            started += endpoint.started() as f64;
            busy += endpoint.busy().as_secs_f64();
            endpoint.recent_durations(&mut durations);
            slowest = slowest.max(durations.quantile(0.99));
        });
        let mut totals = vec![
            (families::REQUESTS_IN_FLIGHT.name, "", in_flight),
            (families::REQUESTS_STARTED.name, "", started),
            (families::REQUEST_BUSY.name, "", busy),
        ];
        totals.extend(slowest.map(|slowest| {
            let name = families::REQUEST_DURATION_QUANTILE.name;
            (name, "quantile=\"0.99\"", slowest.as_secs_f64())
        }));
        totals
    }

    fn each_series(&self, mut visit: impl FnMut(&Endpoint, &Series)) {
        self.0.for_each(|endpoint| {
            endpoint.series().iter().for_each(|series| visit(endpoint, series));
        });
    }
}

/// The family whose series are being written.
struct Started(Option<&'static str>);

impl Started {
    fn family(&mut self, sink: &mut impl Sink, family: &'static Family) {
        if self.0.replace(family.name) != Some(family.name) {
            sink.family(family);
        }
    }
}

/// Keeps the names of the families from being registered by the service.
pub(super) struct Reserved(Vec<Desc>);

impl Reserved {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        FAMILIES.into_iter().map(describe).collect::<Result<_, _>>().map(Self)
    }
}

impl Collector for Reserved {
    fn desc(&self) -> Vec<&Desc> {
        self.0.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        Vec::new()
    }
}
