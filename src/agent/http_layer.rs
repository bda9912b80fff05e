//! The tower layer that measures a service's requests.
//!
//! In: requests of an axum router. Out: `http_server_*` families in the agent's registry. Never: an unbounded label. Endpoints
//! are method and matched path, at most [`MAX_ENDPOINTS`] of them; everything further counts as `other`.
//!
//! A request lasts from the call of the service to the head of its response; a streamed body is not part of it. A request
//! whose client went away is recorded when it is dropped, without a status code.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::extract::MatchedPath;
use http::{Method, Request, Response, StatusCode};
use parking_lot::RwLock;
use prometheus::{
    Counter, CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, IntGaugeVec,
    Registry,
};
use tokio::time::Instant;
use tower::{Layer, Service};

use super::collector::options;
use crate::signals::catalogue::families;

/// Endpoints with series of their own.
const MAX_ENDPOINTS: usize = 200;
/// Histograms with series of their own: endpoints times the outcomes they had.
const MAX_HISTOGRAMS: usize = 1_000;
/// The endpoint of requests beyond those limits.
const OTHER: &str = "other";
/// The endpoint of requests that match no route.
const UNMATCHED: &str = "unmatched";

/// Seconds. At most 1.7 apart from 1 ms to 10 s, so that a quantile is known to that factor; with the targets people set.
const BUCKETS: [f64; 24] = [
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0,
];

/// Measures every request of the services it wraps. Cheap to clone; every clone counts into the same series.
#[derive(Clone, Debug)]
pub struct HttpLayer(Arc<Requests>);

type Paths = HashMap<Box<str>, Arc<Endpoint>>;

#[derive(Debug)]
struct Requests {
    duration: HistogramVec,
    in_flight: IntGaugeVec,
    busy: CounterVec,
    folded: IntCounter,
    /// By method, then by path: a known endpoint is found without building its name.
    endpoints: RwLock<HashMap<&'static str, Paths>>,
    endpoint_count: AtomicUsize,
    histogram_count: AtomicUsize,
    /// Its series appear with the first request that needs them.
    other: OnceLock<Arc<Endpoint>>,
}

#[derive(Debug)]
struct Endpoint {
    name: String,
    in_flight: IntGauge,
    busy: Counter,
    durations: RwLock<HashMap<Outcome, Histogram>>,
}

/// How a request ended. Both are labels of the histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Outcome {
    status: Option<StatusCode>,
    /// Empty for a success. A 4xx is the client's error and counts as a success of the service, as OpenTelemetry has it.
    error_type: &'static str,
}

impl HttpLayer {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram =
            HistogramOpts::from(options(&families::REQUEST_DURATION)).buckets(BUCKETS.to_vec());
        let duration = HistogramVec::new(histogram, families::REQUEST_DURATION.labels)?;
        let in_flight = IntGaugeVec::new(
            options(&families::REQUESTS_IN_FLIGHT),
            families::REQUESTS_IN_FLIGHT.labels,
        )?;
        let busy =
            CounterVec::new(options(&families::REQUEST_BUSY), families::REQUEST_BUSY.labels)?;
        let folded = IntCounter::with_opts(options(&families::AGENT_REQUESTS_FOLDED))?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(busy.clone()))?;
        registry.register(Box::new(folded.clone()))?;
        Ok(Self(Arc::new(Requests {
            duration,
            in_flight,
            busy,
            folded,
            endpoints: RwLock::default(),
            endpoint_count: AtomicUsize::new(0),
            histogram_count: AtomicUsize::new(0),
            other: OnceLock::new(),
        })))
    }
}

impl<S> Layer<S> for HttpLayer {
    type Service = HttpService<S>;

    fn layer(&self, inner: S) -> HttpService<S> {
        HttpService { inner, requests: self.0.clone() }
    }
}

/// A service whose requests are measured.
#[derive(Clone, Debug)]
pub struct HttpService<S> {
    inner: S,
    requests: Arc<Requests>,
}

impl<S, RequestBody, ResponseBody> Service<Request<RequestBody>> for HttpService<S>
where
    S: Service<Request<RequestBody>, Response = Response<ResponseBody>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ObservedResponse<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let observed = InFlight::start(&self.requests, request.method(), path);
        ObservedResponse { inner: Box::pin(self.inner.call(request)), request: observed }
    }
}

/// The response of a measured request, and the measuring of it. Dropping it before it is ready records the request.
#[derive(Debug)]
pub struct ObservedResponse<F> {
    inner: Pin<Box<F>>,
    request: InFlight,
}

impl<F, ResponseBody, E> Future for ObservedResponse<F>
where
    F: Future<Output = Result<Response<ResponseBody>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let began = Instant::now();
        let polled = this.inner.as_mut().poll(cx);
        this.request.endpoint.busy.inc_by(began.elapsed().as_secs_f64());
        if let Poll::Ready(result) = &polled {
            this.request.finish(match result {
                Ok(response) => Outcome::of_status(response.status()),
                Err(_) => Outcome { status: None, error_type: "service_error" },
            });
        }
        polled
    }
}

/// One request between arrival and record.
#[derive(Debug)]
struct InFlight {
    requests: Arc<Requests>,
    endpoint: Arc<Endpoint>,
    arrived: Instant,
    recorded: bool,
}

impl InFlight {
    fn start(requests: &Arc<Requests>, method: &Method, path: Option<&str>) -> Self {
        let endpoint = requests.endpoint(method, path);
        endpoint.in_flight.inc();
        Self { requests: requests.clone(), endpoint, arrived: Instant::now(), recorded: false }
    }

    fn finish(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.recorded, true) {
            self.endpoint.in_flight.dec();
            let seconds = self.arrived.elapsed().as_secs_f64();
            self.requests.histogram(&self.endpoint, outcome).observe(seconds);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let error_type = if std::thread::panicking() { "panic" } else { "client_disconnected" };
        self.finish(Outcome { status: None, error_type });
    }
}

impl Requests {
    fn endpoint(&self, method: &Method, path: Option<&str>) -> Arc<Endpoint> {
        let method = if path.is_some() { method_label(method) } else { "" };
        let path = path.unwrap_or(UNMATCHED);
        let known = self.endpoints.read().get(method).and_then(|paths| paths.get(path)).cloned();
        let endpoint = known.unwrap_or_else(|| self.add_endpoint(method, path));
        if endpoint.name == OTHER {
            self.folded.inc();
        }
        endpoint
    }

    fn add_endpoint(&self, method: &'static str, path: &str) -> Arc<Endpoint> {
        let mut endpoints = self.endpoints.write();
        let paths = endpoints.entry(method).or_default();
        if let Some(added_meanwhile) = paths.get(path) {
            return added_meanwhile.clone();
        }
        // Held under the lock, so the order does not matter.
        if self.endpoint_count.load(Ordering::Relaxed) >= MAX_ENDPOINTS {
            return self.other().clone();
        }
        self.endpoint_count.fetch_add(1, Ordering::Relaxed);
        let name = if method.is_empty() { path.to_owned() } else { format!("{method} {path}") };
        let endpoint = Arc::new(self.new_endpoint(name));
        paths.insert(path.into(), endpoint.clone());
        endpoint
    }

    fn other(&self) -> &Arc<Endpoint> {
        self.other.get_or_init(|| Arc::new(self.new_endpoint(OTHER.to_owned())))
    }

    fn new_endpoint(&self, name: String) -> Endpoint {
        let in_flight = self.in_flight.with_label_values(&[&name]);
        let busy = self.busy.with_label_values(&[&name]);
        Endpoint { name, in_flight, busy, durations: RwLock::default() }
    }

    fn histogram(&self, endpoint: &Endpoint, outcome: Outcome) -> Histogram {
        if let Some(known) = endpoint.durations.read().get(&outcome) {
            return known.clone();
        }
        // Two first requests at once may both count; the limit is not exact.
        let is_other = endpoint.name == OTHER;
        if !is_other && self.histogram_count.fetch_add(1, Ordering::Relaxed) >= MAX_HISTOGRAMS {
            self.folded.inc();
            return self.histogram(self.other(), outcome);
        }
        let status = outcome.status.as_ref().map_or("", StatusCode::as_str);
        let labels = [endpoint.name.as_str(), status, outcome.error_type];
        let histogram = self.duration.with_label_values(&labels);
        endpoint.durations.write().insert(outcome, histogram.clone());
        histogram
    }
}

impl Outcome {
    fn of_status(status: StatusCode) -> Self {
        Self { status: Some(status), error_type: if status.is_server_error() { "5xx" } else { "" } }
    }
}

/// Methods are the client's to invent; the label is not.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        "CONNECT" => "CONNECT",
        "TRACE" => "TRACE",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use axum::routing::{get, post};
    use tower::ServiceExt as _;

    use crate::agent::exposition::Format;

    fn service(registry: &Registry) -> (HttpLayer, Router) {
        let layer = HttpLayer::register(registry).expect("an empty registry");
        let router = Router::new()
            .route("/users/{id}", get(|| async { "found" }))
            .route("/broken", post(|| async { StatusCode::BAD_GATEWAY }))
            .route("/forever", get(std::future::pending::<()>))
            .route("/panics", get(panics))
            .layer(layer.clone());
        (layer, router)
    }

    async fn panics() -> StatusCode {
        panic!("a bug in the service")
    }

    fn request(method: &str, path: &str) -> Request<Body> {
        Request::builder().method(method).uri(path).body(Body::empty()).expect("a valid request")
    }

    /// The samples whose line starts with `prefix`.
    fn samples(registry: &Registry, prefix: &str) -> Vec<String> {
        let text = Format::Text.encode(&registry.gather());
        text.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
    }

    const COUNT: &str = "http_server_request_duration_seconds_count";

    #[tokio::test]
    async fn a_request_counts_under_its_method_matched_path_and_outcome() {
        let registry = Registry::new();
        let (_, router) = service(&registry);
        for (method, path) in [
            ("GET", "/users/1"),
            ("GET", "/users/2"),
            ("POST", "/broken"),
            ("GET", "/nowhere"),
            ("BREW", "/users/3"),
        ] {
            router.clone().oneshot(request(method, path)).await.expect("axum is infallible");
        }
        let expected = [
            r#"{endpoint="GET /users/{id}",error_type="",status_code="200"} 2"#,
            r#"{endpoint="OTHER /users/{id}",error_type="",status_code="405"} 1"#,
            r#"{endpoint="POST /broken",error_type="5xx",status_code="502"} 1"#,
            r#"{endpoint="unmatched",error_type="",status_code="404"} 1"#,
        ];
        assert_eq!(samples(&registry, COUNT), expected.map(|labels| format!("{COUNT}{labels}")));
        let in_flight = samples(&registry, "http_server_requests_in_flight{");
        assert!(in_flight.iter().all(|line| line.ends_with(" 0")), "{in_flight:?}");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_recorded_and_leaves_flight() {
        let registry = Registry::new();
        let (_, router) = service(&registry);
        let mut response = Box::pin(router.oneshot(request("GET", "/forever")));
        assert!(futures::poll!(&mut response).is_pending());
        let in_flight = "http_server_requests_in_flight{endpoint=\"GET /forever\"}";
        assert_eq!(samples(&registry, in_flight), [format!("{in_flight} 1")]);
        drop(response);
        assert_eq!(samples(&registry, in_flight), [format!("{in_flight} 0")]);
        let labels =
            r#"{endpoint="GET /forever",error_type="client_disconnected",status_code=""} 1"#;
        assert_eq!(samples(&registry, COUNT), [format!("{COUNT}{labels}")]);
    }

    #[tokio::test]
    async fn a_panic_of_the_handler_is_an_error_of_its_own() {
        let registry = Registry::new();
        let (_, router) = service(&registry);
        let outcome = tokio::spawn(router.oneshot(request("GET", "/panics"))).await;
        assert!(outcome.is_err_and(|error| error.is_panic()));
        let labels = r#"{endpoint="GET /panics",error_type="panic",status_code=""} 1"#;
        assert_eq!(samples(&registry, COUNT), [format!("{COUNT}{labels}")]);
    }

    #[tokio::test]
    async fn endpoints_past_the_limit_count_as_other() {
        let registry = Registry::new();
        let layer = HttpLayer::register(&registry).expect("an empty registry");
        let paths: Vec<String> =
            (0..MAX_ENDPOINTS + 3).map(|index| format!("/path{index}")).collect();
        let router =
            paths.iter().fold(Router::new(), |router, path| router.route(path, get(|| async {})));
        let router = router.layer(layer);
        for path in &paths {
            router.clone().oneshot(request("GET", path)).await.expect("axum is infallible");
        }
        let counts = samples(&registry, COUNT);
        assert_eq!(counts.len(), MAX_ENDPOINTS + 1);
        let other = format!("{COUNT}{{endpoint=\"other\",error_type=\"\",status_code=\"200\"}} 3");
        assert!(counts.contains(&other), "{:?}", counts.last());
        assert_eq!(
            samples(&registry, "headroom_agent_http_requests_folded_total"),
            ["headroom_agent_http_requests_folded_total 3"]
        );
    }

    #[tokio::test]
    async fn time_inside_polls_is_busy_time_and_waiting_is_not() {
        let registry = Registry::new();
        let layer = HttpLayer::register(&registry).expect("an empty registry");
        let work = || async {
            std::thread::sleep(std::time::Duration::from_millis(20));
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        };
        let router = Router::new().route("/work", get(work)).layer(layer);
        router.oneshot(request("GET", "/work")).await.expect("axum is infallible");
        let seconds = |prefix: &str| {
            let line = samples(&registry, prefix).remove(0);
            line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")
        };
        let busy = seconds("http_server_request_busy_seconds_total{");
        let duration = seconds("http_server_request_duration_seconds_sum{");
        assert!(busy >= 0.02, "{busy}");
        assert!(duration - busy >= 0.45, "{duration} {busy}");
    }
}
