//! The families of the request layer, as a scrape gets them.
//!
//! In: the endpoints. Out: calls of a [`HistogramSink`], families one after the other. Never: a family without series; a quantile of an
//! endpoint that had no request.

use super::HttpLayer;
use super::endpoints::{Endpoint, Series};
use crate::agent::exposition::HistogramSink;
use crate::signals::catalogue::families;
use crate::signals::exponential::Snapshot;

/// What people look at.
const QUANTILES: [(f64, &str); 4] = [(0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99"), (0.999, "0.999")];

impl HttpLayer {
    /// Writes every family that has series.
    pub(in crate::agent) fn write(&self, sink: &mut impl HistogramSink) {
        let mut durations = Snapshot::default();
        self.each_series(|endpoint, series| {
            durations.clear();
            series.histogram.add_to(&mut durations);
            let status = series.outcome.status.as_ref().map_or("", http::StatusCode::as_str);
            let labels = [endpoint.name.as_str(), series.outcome.error_type, status];
            sink.histogram(&families::REQUEST_DURATION, &labels, &durations, &series.exemplars);
        });
        self.0.for_each(|endpoint| {
            endpoint.recent_durations(&mut durations);
            for (quantile, label) in QUANTILES {
                if let Some(duration) = durations.quantile(quantile) {
                    let (family, labels) =
                        (&families::REQUEST_DURATION_QUANTILE, [&*endpoint.name, label]);
                    sink.number(family, &labels, duration.as_secs_f64(), None);
                }
            }
        });
        let mut numbers = |family, value: fn(&Endpoint) -> f64| {
            let number = |endpoint: &Endpoint| {
                sink.number(family, &[&endpoint.name], value(endpoint), None);
            };
            self.0.for_each(number);
        };
        numbers(&families::REQUESTS_IN_FLIGHT, |endpoint| endpoint.in_flight() as f64);
        numbers(&families::REQUESTS_STARTED, |endpoint| endpoint.started() as f64);
        numbers(&families::REQUEST_BUSY, |endpoint| endpoint.busy().as_secs_f64());
        sink.number(&families::AGENT_REQUESTS_FOLDED, &[], self.0.folded() as f64, None);
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
