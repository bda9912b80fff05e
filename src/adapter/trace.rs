//! A request in the log, so that a number in an HPA's status leads to the samples that it came from.
//!
//! In: a request's head, and the decisions that it was answered from. Out: at level debug a span around the request with whose
//! it is (`audit_id` as kube-apiserver forwards it, `traceparent` as the caller sends it), and in it a line for each
//! decision with its number; the pipeline has a line with the same number when it decides, and the scraper one for each pod
//! before that. Never: work while the level is off (a test holds that nothing is read then), or a header in the log that
//! is not what it should be.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use tracing::field::Empty;
use tracing::{Level, Span, debug, debug_span};

use super::own_metrics::group_of;
use super::request_info::RequestInfo;
use crate::policy::{EntryState, PolicyId};

/// Longer than any identifier that means something.
const MAX_ID_CHARS: usize = 64;

/// The span of one request. Off, it costs an atomic load.
pub(super) fn request_span(request: &Request) -> Span {
    if !tracing::enabled!(Level::DEBUG) {
        return Span::none();
    }
    let (uri, headers) = (request.uri(), request.headers());
    let info = RequestInfo::of(request.method(), uri);
    let span = debug_span!(
        "request",
        group = group_of(uri.path()),
        verb = info.verb,
        path = info.path,
        namespace = Empty,
        metric = Empty,
        selector = Empty,
        audit_id = identifier(headers, "audit-id"),
        traceparent = identifier(headers, "traceparent"),
        code = Empty,
    );
    if let Some(resource) = info.resource {
        span.record("namespace", resource.namespace);
        // A custom metric is the subresource of its object.
        let metric = [resource.subresource, resource.resource];
        span.record("metric", metric.into_iter().find(|name| !name.is_empty()));
        span.record("selector", info.label_selector);
    }
    span
}

/// The answer's status, on the request's span.
pub(super) fn answered(span: &Span, code: StatusCode) {
    span.record("code", code.as_u16());
}

/// One policy that a request was answered from, in the request's span.
pub(super) fn read(id: &PolicyId, state: &EntryState) {
    if !tracing::enabled!(Level::DEBUG) {
        return;
    }
    let (namespace, name) = (&*id.namespace, &*id.name);
    match state {
        EntryState::Decided { decision, .. } => debug!(
            namespace,
            name,
            decision = decision.number(),
            demand = decision.demand.as_ref().ok(),
            unserved = decision.demand.as_ref().err().map(|why| why.reason),
            sampled_at = %decision.sampled_at,
            "a decision was read"
        ),
        EntryState::Unserved(why) => {
            debug!(namespace, name, unserved = why.reason, "a policy without a decision was read");
        }
    }
}

/// The header's value if it has the form of an identifier: hexadecimal digits and dashes, as in a UUID or a `traceparent`.
fn identifier<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    let has_form = value.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    (has_form && value.len() <= MAX_ID_CHARS).then_some(value)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures::FutureExt as _;
    use serde_json::Value;
    use tracing::Instrument as _;

    use super::*;
    use crate::kept_log::KeptLog;
    use crate::policy::Unserved;

    /// The lines that a request with these headers leaves.
    fn lines(level: Level, headers: &[(&str, &str)]) -> Vec<Value> {
        let log = KeptLog::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(level)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/headroom_demand\
                        ?labelSelector=policy%3Dcheckout";
            let mut request = Request::builder().uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(Body::empty()).expect("a valid request");
            let span = request_span(&request);
            let work = async {
                let id = PolicyId { namespace: "shop".into(), name: "checkout".into() };
                let why = Unserved { reason: "NoSamplesYet", message: String::new() };
                read(&id, &EntryState::Unserved(why));
            };
            work.instrument(span.clone()).now_or_never().expect("it waits for nothing");
            answered(&span, StatusCode::SERVICE_UNAVAILABLE);
            span.in_scope(|| debug!("answered a request"));
        });
        let text = log.text();
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    #[test]
    fn a_line_about_a_number_says_whose_request_it_answers() {
        let headers = [
            ("audit-id", "0f63d7d4-27c7-4bf2-8d0a-4dfd4f5f5f1b"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ];
        let lines = lines(Level::DEBUG, &headers);
        assert_eq!(lines[0]["name"], "checkout");
        let span = &lines[0]["span"];
        for (field, value) in [
            ("name", "request"),
            ("group", "external.metrics.k8s.io"),
            ("namespace", "shop"),
            ("metric", "headroom_demand"),
            ("selector", "policy=checkout"),
            ("audit_id", headers[0].1),
            ("traceparent", headers[1].1),
        ] {
            assert_eq!(span[field], value, "{field} in {span}");
        }
        assert_eq!(lines[1]["span"]["code"], 503);
    }

    #[test]
    fn a_header_that_is_no_identifier_is_not_logged() {
        let long = "a".repeat(65);
        for bad in ["forged\\\"line", "<script>", long.as_str()] {
            let lines = lines(Level::DEBUG, &[("audit-id", bad)]);
            assert!(lines[0]["span"]["audit_id"].is_null(), "{bad}");
        }
    }

    #[test]
    fn while_debug_is_off_nothing_is_logged_and_no_span_is_made() {
        assert_eq!(lines(Level::INFO, &[]), Vec::<Value>::new());
    }

    /// `cargo test --lib -- --ignored --nocapture cost_of_a_span`: 30 to 44 ns without optimisation, of 100 allowed.
    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_span_while_debug_is_off() {
        // As in `Telemetry::init`.
        let subscriber = tracing_subscriber::fmt().with_env_filter("info").with_filter_reloading();
        let subscriber = subscriber.finish();
        tracing::subscriber::with_default(subscriber, || {
            let request = Request::builder().uri("/apis").body(Body::empty()).expect("a request");
            let rounds = 1_000_000_u32;
            let started = tokio::time::Instant::now();
            for _ in 0..rounds {
                let span = request_span(std::hint::black_box(&request));
                answered(std::hint::black_box(&span), StatusCode::OK);
            }
            let each = started.elapsed() / rounds;
            assert!(each < std::time::Duration::from_nanos(100), "{each:?}");
            eprintln!("{each:?} for a span that is off");
        });
    }
}
