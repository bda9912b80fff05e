//! The tower layer that measures a service's requests.
//!
//! In: requests of an axum router. Out: the `http_server_*` families, and labels for the samples of profiles: while a request is
//! polled, its thread carries the endpoint and the trace of its `traceparent`. Never: an unbounded label. Endpoints are method and
//! matched path, a bounded number of them; everything further counts as `other`. Never: a lock that another request holds.
//!
//! A request lasts from the call of the service to the head of its response; a streamed body is not part of it. A request
//! whose client went away is recorded when it is dropped, without a status code.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::MatchedPath;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::pprof::labels::{Labelled, Labels};
use crate::time::{Moment, wall_now};

mod counts;
mod endpoints;
mod exemplars;
mod exposed;
mod recent;
mod trace_context;

#[cfg(any(fuzzing, test))]
pub use trace_context::read_any_traceparent;

use endpoints::{Endpoint, Endpoints, Outcome};
pub(super) use exemplars::{Exemplar, Exemplars};
use trace_context::TraceContext;

/// Measures every request of the services it wraps. Cheap to clone; every clone counts into the same series.
#[derive(Clone, Debug, Default)]
pub struct HttpLayer(Arc<Endpoints>);

impl HttpLayer {
    /// To be called about once per second: the window of the recent durations moves with it.
    pub(super) fn tick(&self, now: Moment) {
        self.0.tick(now);
    }
}

impl<S> Layer<S> for HttpLayer {
    type Service = HttpService<S>;

    fn layer(&self, inner: S) -> HttpService<S> {
        HttpService { inner, endpoints: self.0.clone() }
    }
}

/// A service whose requests are measured.
#[derive(Clone, Debug)]
pub struct HttpService<S> {
    inner: S,
    endpoints: Arc<Endpoints>,
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
        let endpoint = self.endpoints.of(request.method(), path);
        let observed = InFlight::start(endpoint, TraceContext::of(request.headers()));
        let labelled = observed.label_thread();
        let inner = self.inner.call(request);
        drop(labelled);
        ObservedResponse { inner, request: observed }
    }
}

pin_project! {
    /// The response of a measured request, and the measuring of it. Dropping it before it is ready records the request.
    #[derive(Debug)]
    pub struct ObservedResponse<F> {
        #[pin]
        inner: F,
        request: InFlight,
    }
}

impl<F, ResponseBody, E> Future for ObservedResponse<F>
where
    F: Future<Output = Result<Response<ResponseBody>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let labelled = this.request.label_thread();
        let began = Instant::now();
        let polled = this.inner.poll(cx);
        let ended = Instant::now();
        drop(labelled);
        this.request.endpoint.add_busy(ended - began);
        if let Poll::Ready(result) = &polled {
            let outcome = match result {
                Ok(response) => Outcome::of_status(response.status()),
                Err(_) => Outcome::failed("service_error"),
            };
            this.request.finish(outcome, ended);
        }
        polled
    }
}

/// One request between arrival and record.
#[derive(Debug)]
struct InFlight {
    endpoint: Arc<Endpoint>,
    trace: Option<TraceContext>,
    arrived: Instant,
    recorded: bool,
}

impl InFlight {
    fn start(endpoint: Arc<Endpoint>, trace: Option<TraceContext>) -> Self {
        endpoint.start();
        Self { endpoint, trace, arrived: Instant::now(), recorded: false }
    }

    /// What this thread does is done for the request; the task's label stays.
    fn label_thread(&self) -> Labelled {
        let (endpoint, trace) =
            (self.endpoint.label, self.trace.map_or(0, |context| context.trace));
        Labelled::enter(|labels| Labels { endpoint, trace, ..labels })
    }

    fn finish(&mut self, outcome: Outcome, now: Instant) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let duration = now - self.arrived;
        self.endpoint.finish(outcome, |series| {
            series.histogram.record(duration);
            if let Some(context) = self.trace.filter(|context| context.sampled) {
                series.exemplars.offer(context, duration, wall_now());
            }
        });
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.recorded {
            let panicking = std::thread::panicking();
            let error_type = if panicking { "panic" } else { "client_disconnected" };
            self.finish(Outcome::failed(error_type), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use axum::routing::{get, post};
    use tower::ServiceExt as _;

    use super::endpoints::MAX_ENDPOINTS;
    use crate::agent::exposition::written;
    use http::{Request, StatusCode};

    fn service() -> (HttpLayer, Router) {
        let layer = HttpLayer::default();
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
    fn samples(layer: &HttpLayer, prefix: &str) -> Vec<String> {
        lines(layer, false, prefix)
    }

    fn lines(layer: &HttpLayer, open: bool, prefix: &str) -> Vec<String> {
        let text = written(open, |writer| layer.write(writer));
        text.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
    }

    const COUNT: &str = "http_server_request_duration_seconds_count";

    #[tokio::test]
    async fn a_request_counts_under_its_method_matched_path_and_outcome() {
        let (layer, router) = service();
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
        assert_eq!(samples(&layer, COUNT), expected.map(|labels| format!("{COUNT}{labels}")));
        let in_flight = samples(&layer, "http_server_requests_in_flight{");
        assert!(in_flight.iter().all(|line| line.ends_with(" 0")), "{in_flight:?}");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_recorded_and_leaves_flight() {
        let (layer, router) = service();
        let mut response = Box::pin(router.oneshot(request("GET", "/forever")));
        assert!(futures::poll!(&mut response).is_pending());
        let in_flight = "http_server_requests_in_flight{endpoint=\"GET /forever\"}";
        assert_eq!(samples(&layer, in_flight), [format!("{in_flight} 1")]);
        drop(response);
        assert_eq!(samples(&layer, in_flight), [format!("{in_flight} 0")]);
        let labels =
            r#"{endpoint="GET /forever",error_type="client_disconnected",status_code=""} 1"#;
        assert_eq!(samples(&layer, COUNT), [format!("{COUNT}{labels}")]);
    }

    #[tokio::test]
    async fn a_panic_of_the_handler_is_an_error_of_its_own() {
        let (layer, router) = service();
        let outcome = tokio::spawn(router.oneshot(request("GET", "/panics"))).await;
        assert!(outcome.is_err_and(|error| error.is_panic()));
        let labels = r#"{endpoint="GET /panics",error_type="panic",status_code=""} 1"#;
        assert_eq!(samples(&layer, COUNT), [format!("{COUNT}{labels}")]);
    }

    #[tokio::test]
    async fn endpoints_past_the_limit_count_as_other() {
        let layer = HttpLayer::default();
        let paths: Vec<String> =
            (0..MAX_ENDPOINTS + 3).map(|index| format!("/path{index}")).collect();
        let router =
            paths.iter().fold(Router::new(), |router, path| router.route(path, get(|| async {})));
        let router = router.layer(layer.clone());
        for path in &paths {
            router.clone().oneshot(request("GET", path)).await.expect("axum is infallible");
        }
        let counts = samples(&layer, COUNT);
        assert_eq!(counts.len(), MAX_ENDPOINTS + 1);
        let other = format!("{COUNT}{{endpoint=\"other\",error_type=\"\",status_code=\"200\"}} 3");
        assert!(counts.contains(&other), "{:?}", counts.last());
        assert_eq!(
            samples(&layer, "headroom_agent_http_requests_folded_total"),
            ["headroom_agent_http_requests_folded_total 3"]
        );
    }

    #[test]
    fn outcomes_past_the_limit_count_as_those_of_other() {
        let layer = HttpLayer::default();
        let status = |code| Outcome::of_status(StatusCode::from_u16(code).expect("a status"));
        let codes = 200..200 + 21;
        for path in (0..50).map(|index| format!("/path{index}")) {
            let endpoint = layer.0.of(&http::Method::GET, Some(&path));
            for code in codes.clone() {
                endpoint.start();
                endpoint.finish(status(code), |series| {
                    series.histogram.record(std::time::Duration::from_millis(1));
                });
            }
        }
        // 50 times 21 outcomes, of which 1000 found room.
        let folded = "headroom_agent_http_requests_folded_total 50";
        assert_eq!(samples(&layer, "headroom_agent_http_requests_folded_total"), [folded]);
        let counts = samples(&layer, COUNT);
        let of_other: f64 = counts
            .iter()
            .filter(|line| line.contains("endpoint=\"other\""))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum();
        assert!((of_other - 50.0).abs() < 1e-9, "{of_other}");
        assert!(
            samples(&layer, "http_server_requests_in_flight{")
                .iter()
                .all(|line| line.ends_with(" 0"))
        );
    }

    #[tokio::test]
    async fn time_inside_polls_is_busy_time_and_waiting_is_not() {
        let layer = HttpLayer::default();
        let work = || async {
            std::thread::sleep(std::time::Duration::from_millis(20));
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        };
        let router = Router::new().route("/work", get(work)).layer(layer.clone());
        router.oneshot(request("GET", "/work")).await.expect("axum is infallible");
        let seconds = |prefix: &str| {
            let line = samples(&layer, prefix).remove(0);
            line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")
        };
        let busy = seconds("http_server_request_busy_seconds_total{");
        let duration = seconds("http_server_request_duration_seconds_sum{");
        assert!(busy >= 0.02, "{busy}");
        assert!(duration - busy >= 0.45, "{duration} {busy}");
    }

    #[tokio::test]
    async fn arrivals_are_counted_before_they_are_answered() {
        let (layer, router) = service();
        let mut response = Box::pin(router.oneshot(request("GET", "/forever")));
        assert!(futures::poll!(&mut response).is_pending());
        let started = "http_server_requests_started_total{endpoint=\"GET /forever\"}";
        assert_eq!(samples(&layer, started), [format!("{started} 1")]);
        assert!(samples(&layer, COUNT).is_empty());
    }

    /// The labels of this thread.
    fn labels() -> Labels {
        let mut seen = Labels::NONE;
        drop(Labelled::enter(|present| {
            seen = present;
            present
        }));
        seen
    }

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn traced(path: &str, flags: &str) -> Request<Body> {
        let mut request = request("GET", path);
        let context = format!("00-{TRACE}-b7ad6b7169203331-{flags}");
        request.headers_mut().insert("traceparent", context.parse().expect("a valid value"));
        request
    }

    #[tokio::test]
    async fn a_threads_labels_are_those_of_the_request_it_polls() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let handler = async move || {
            sender.send(labels()).expect("the test waits");
            tokio::task::yield_now().await;
            sender.send(labels()).expect("the test waits");
        };
        let router = Router::new().route("/work", get(handler)).layer(HttpLayer::default());
        let mut response = Box::pin(router.oneshot(traced("/work", "00")));
        assert!(futures::poll!(&mut response).is_pending());
        assert_eq!(labels(), Labels::NONE);
        response.await.expect("axum is infallible");
        for _ in 0..2 {
            let seen = receiver.recv().await.expect("the handler ran");
            assert_eq!(seen.endpoint.text(), "GET /work");
            assert_eq!(format!("{:032x}", seen.trace), TRACE);
        }
    }

    #[tokio::test]
    async fn a_sampled_request_is_the_exemplar_of_its_bucket_in_openmetrics() {
        let (layer, router) = service();
        router.clone().oneshot(traced("/users/1", "00")).await.expect("axum is infallible");
        let exemplars = |open| {
            let all = lines(&layer, open, "http_server_request_duration_seconds_bucket");
            all.into_iter().filter(|line| line.contains(" # ")).collect::<Vec<_>>()
        };
        assert_eq!(exemplars(true), [""; 0]);
        router.oneshot(traced("/users/1", "01")).await.expect("axum is infallible");
        assert_eq!(exemplars(false), [""; 0]);
        let found = exemplars(true);
        let [line] = found.as_slice() else { panic!("{found:?}") };
        let (sample, exemplar) = line.split_once(" # ").expect("an exemplar");
        let (labels, numbers) = exemplar.split_once("} ").expect("labels");
        assert_eq!(labels, format!("{{trace_id=\"{TRACE}\",span_id=\"b7ad6b7169203331\""));
        let (value, at) = numbers.split_once(' ').expect("value and time");
        let value: f64 = value.parse().expect("a number");
        let bound = sample.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
        assert!(bound.and_then(|bound| bound.parse().ok()).is_some_and(|le: f64| value <= le));
        let age = wall_now().as_millis() as f64 - at.parse::<f64>().expect("a time") * 1e3;
        assert!((-1.0..60_000.0).contains(&age), "{age}");
    }

    #[tokio::test]
    async fn quantiles_are_of_the_last_minute_and_absent_without_requests() {
        let (layer, router) = service();
        let quantiles = || samples(&layer, "http_server_request_duration_quantile_seconds{");
        let at = |seconds| Moment::after_start(std::time::Duration::from_secs(seconds));
        assert_eq!(quantiles(), [""; 0]);
        layer.tick(at(10));
        router.oneshot(request("GET", "/users/1")).await.expect("axum is infallible");
        let found = quantiles();
        for (line, quantile) in found.iter().zip(["0.5", "0.9", "0.99", "0.999"]) {
            let labels = format!("{{endpoint=\"GET /users/{{id}}\",quantile=\"{quantile}\"}} ");
            assert!(line.contains(&labels), "{line}");
        }
        assert_eq!(found.len(), 4);
        // A tick too early changes nothing.
        for seconds in [20, 21, 30, 40, 50, 60] {
            layer.tick(at(seconds));
        }
        assert_eq!(quantiles().len(), 4);
        layer.tick(at(70));
        assert_eq!(quantiles(), [""; 0]);
    }
}
