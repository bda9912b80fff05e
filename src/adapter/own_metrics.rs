//! What the API server tells about itself.
//!
//! In: requests, handshakes and served items. Out: metrics in a registry that the caller owns. Never: a label value from
//! outside a closed set.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

use super::authentication::Means;
use crate::probes::Progress;

/// Answers come from memory: the interesting latencies are those of a review by the API server, up to the deadline.
const DURATION_BUCKETS: [f64; 10] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0];
/// From one push interval to well over any `staleAfter`.
const AGE_BUCKETS: [f64; 9] = [0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0];

/// The API server's own metrics. Cheap to clone; every clone counts into the same.
#[derive(Clone, Debug)]
pub struct OwnMetrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    authentications: IntCounterVec,
    served_ages: Histogram,
    handshake_failures: IntCounter,
    client_cas_refused: IntGauge,
    too_many: IntCounterVec,
    connections_closed_idle: IntCounter,
    audit_lines_dropped: IntCounter,
}

/// What can be refused as too many.
const TOO_MANY: [&str; 3] = ["connections", "requests", "user_requests"];

impl OwnMetrics {
    /// Adds the metrics to `registry`.
    ///
    /// # Errors
    /// If one of the names is taken in it.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let durations = HistogramOpts::new(
            "headroom_adapter_request_duration_seconds",
            "Time from a request's head to its answer's, by API group and HTTP status.",
        )
        .buckets(DURATION_BUCKETS.to_vec());
        let ages = HistogramOpts::new(
            "headroom_adapter_served_age_seconds",
            "Age of the oldest sample behind each served item, when it was served.",
        )
        .buckets(AGE_BUCKETS.to_vec());
        let own = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "headroom_adapter_requests_total",
                    "Answered requests, by API group and HTTP status.",
                ),
                &["group", "code"],
            )?,
            durations: HistogramVec::new(durations, &["group", "code"])?,
            authentications: IntCounterVec::new(
                Opts::new(
                    "headroom_adapter_authentication_total",
                    "Requests, by how their sender was recognised.",
                ),
                &["outcome"],
            )?,
            served_ages: Histogram::with_opts(ages)?,
            client_cas_refused: IntGauge::new(
                "headroom_adapter_client_ca_config_refused",
                "1 if at the last request the ConfigMap with the client CAs was refused and older ones were in use.",
            )?,
            handshake_failures: counter(
                registry,
                "headroom_adapter_tls_handshake_failures_total",
                "Connections that gave up, or were given up, before TLS was established.",
            )?,
            too_many: IntCounterVec::new(
                Opts::new(
                    "headroom_adapter_refused_as_too_many_total",
                    "What was refused because as much of it was under way as may be at once.",
                ),
                &["what"],
            )?,
            connections_closed_idle: counter(
                registry,
                "headroom_adapter_connections_closed_idle_total",
                "Connections that were closed because nobody who is known used them.",
            )?,
            audit_lines_dropped: counter(
                registry,
                "headroom_adapter_audit_lines_dropped_total",
                "Refused requests of unknown senders that have no line in the audit log, because there were too many.",
            )?,
        };
        registry.register(Box::new(own.too_many.clone()))?;
        registry.register(Box::new(own.requests.clone()))?;
        registry.register(Box::new(own.durations.clone()))?;
        registry.register(Box::new(own.authentications.clone()))?;
        registry.register(Box::new(own.served_ages.clone()))?;
        registry.register(Box::new(own.client_cas_refused.clone()))?;
        for what in TOO_MANY {
            own.too_many.with_label_values(&[what]);
        }
        for outcome in Means::ALL.map(Means::as_str).into_iter().chain(["nobody", "error"]) {
            own.authentications.with_label_values(&[outcome]);
        }
        Ok(own)
    }

    /// `group` is one that [`group_of`] tells.
    pub(super) fn answered(&self, group: &'static str, code: StatusCode, took: Duration) {
        let labels = [group, code.as_str()];
        self.requests.with_label_values(&labels).inc();
        self.durations.with_label_values(&labels).observe(took.as_secs_f64());
    }

    pub(super) fn authenticated(&self, outcome: &'static str) {
        self.authentications.with_label_values(&[outcome]).inc();
    }

    pub(super) fn served(&self, age: Duration) {
        self.served_ages.observe(age.as_secs_f64());
    }

    pub(super) fn client_cas_refused(&self, refused: bool) {
        self.client_cas_refused.set(i64::from(refused));
    }

    pub(super) fn refused_as_too_many(&self, what: &'static str) {
        self.too_many.with_label_values(&[what]).inc();
    }

    pub(super) fn connection_closed_idle(&self) {
        self.connections_closed_idle.inc();
    }

    pub(super) fn audit_line_dropped(&self) {
        self.audit_lines_dropped.inc();
    }

    pub(super) fn handshake_failed(&self) {
        self.handshake_failures.inc();
    }
}

/// A counter that is in the registry.
fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

/// The group of paths that anyone may read.
pub(super) const PROBE: &str = "probe";

/// The `group` label of a path: a closed set, whatever the path.
pub(super) fn group_of(path: &str) -> &'static str {
    let mut parts = path.trim_matches('/').split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("apis"), Some("external.metrics.k8s.io"), Some(_), Some(_)) => {
            "external.metrics.k8s.io"
        }
        (Some("apis"), Some("custom.metrics.k8s.io"), Some(_), Some(_)) => "custom.metrics.k8s.io",
        (Some("apis"), Some("explain.headroom.dev"), Some(_), Some(_)) => "explain.headroom.dev",
        (Some("apis"), _, _, None) => "discovery",
        (Some("openapi"), ..) => "openapi",
        (Some("healthz" | "livez" | "readyz"), None, ..) => PROBE,
        (Some("debug"), Some("pprof"), ..) => "profile",
        _ => "other",
    }
}

/// The routes of the plain port: `/metrics` in the Prometheus text format, and the probes.
pub fn metrics_routes(registry: Registry, progress: &Progress) -> Router {
    Router::new().route("/metrics", get(exposition)).with_state(registry).merge(progress.routes())
}

/// Gathering walks all policies and reads files of the kernel: not on a worker that answers requests.
async fn exposition(State(registry): State<Registry>) -> Response {
    let encoder = TextEncoder::new();
    let content_type = encoder.format_type().to_owned();
    let encoded = tokio::task::spawn_blocking(move || {
        let mut body = Vec::new();
        encoder.encode(&registry.gather(), &mut body).map(|()| body)
    });
    let error = match encoded.await {
        Ok(Ok(body)) => return ([(header::CONTENT_TYPE, content_type)], body).into_response(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    };
    tracing::error!(error, "cannot encode own metrics");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_can_make_a_new_group() {
        for (path, group) in [
            ("/apis/external.metrics.k8s.io/v1beta1/namespaces/a/m", "external.metrics.k8s.io"),
            ("/apis/external.metrics.k8s.io/v1beta1", "discovery"),
            ("/apis", "discovery"),
            ("/apis/evil.example/v1/x", "other"),
            ("/openapi/v3/apis/a/b", "openapi"),
            ("/readyz", "probe"),
            ("/readyz/x", "other"),
            ("/debug/pprof/heap", "profile"),
            ("/debug/vars", "other"),
            ("/", "other"),
        ] {
            assert_eq!(group_of(path), group, "{path}");
        }
    }
}
