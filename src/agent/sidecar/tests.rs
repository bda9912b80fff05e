//! What the sidecar makes of real answers, and how it proxies.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::config::{Inputs, RULE_SIGNALS};
use crate::signals::CATALOGUE;

fn routes(sidecar: &Sidecar, progress: &Progress) -> Router {
    sidecar.public_routes(progress).merge(sidecar.debug_routes())
}

/// The lines of what a scrape of the sidecar returns for a service that answers `body`, without HELP.
fn lines(body: &str) -> (Vec<String>, Observation) {
    let mut told = Observation::default();
    told.take(body.as_bytes()).expect("a good body");
    let text = told.text();
    let lines = text.lines().filter(|line| !line.starts_with("# HELP")).map(str::to_owned);
    (lines.collect(), told)
}

/// Each expected line is there, and so is every sample of the service, as it came.
fn check(body: &str, expected: &[&str]) {
    let (lines, _) = lines(body);
    for line in expected {
        assert!(lines.iter().any(|found| found == line), "{line} is not in {lines:#?}");
    }
    for line in body.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        assert!(lines.iter().any(|found| found == line), "{line} was lost");
    }
    check_once_each(&lines);
}

/// No family has two headers, and no series two values.
fn check_once_each(lines: &[String]) {
    let mut seen = std::collections::HashSet::new();
    for line in lines {
        let what = match line.strip_prefix("# TYPE ") {
            Some(header) => header,
            // Up to the value: labels may hold blanks, what follows them does not.
            None => {
                line.rfind('}').map_or(line.split(' ').next().unwrap_or(line), |at| &line[..at])
            }
        };
        assert!(seen.insert(what), "twice: {line}");
    }
}

#[test]
fn go_client_golang() {
    check(
        include_str!("fixtures/go_client_golang.txt"),
        &[
            "# TYPE go_goroutines gauge",
            "# TYPE heap_allocated_bytes gauge",
            "# TYPE heap_allocation_bytes_total counter",
            "http_server_request_duration_seconds_count{endpoint=\"GET /checkout\",status_code=\"200\",error_type=\"\"} 2",
            "http_server_request_duration_seconds_bucket{endpoint=\"GET /burn\",status_code=\"400\",error_type=\"\",le=\"0.5\"} 1",
        ],
    );
}

#[test]
fn jvm_micrometer() {
    check(
        include_str!("fixtures/jvm_micrometer.txt"),
        &[
            "heap_allocated_bytes 31457280",
            "heap_allocation_bytes_total 31457280",
            "process_cpu_seconds_total 12.5",
            "http_server_request_duration_seconds_bucket{endpoint=\"POST /checkout\",status_code=\"200\",error_type=\"\",le=\"1\"} 7",
            "http_server_request_duration_seconds_count{endpoint=\"POST /checkout\",status_code=\"500\",error_type=\"IllegalStateException\"} 1",
        ],
    );
}

#[test]
fn node_prom_client() {
    check(
        include_str!("fixtures/node_prom_client.txt"),
        &[
            "heap_allocated_bytes 9259512",
            "http_server_request_duration_seconds_count{endpoint=\"GET /checkout\",status_code=\"200\",error_type=\"\"} 2",
            "http_server_request_duration_seconds_bucket{endpoint=\"GET /no\",status_code=\"404\",error_type=\"\",le=\"+Inf\"} 1",
        ],
    );
}

#[test]
fn python() {
    check(
        include_str!("fixtures/python_fastapi.txt"),
        &[
            "http_server_request_duration_seconds_count{endpoint=\"GET /checkout\",status_code=\"\",error_type=\"\"} 2",
        ],
    );
    check(
        include_str!("fixtures/python_starlette.txt"),
        &[
            "http_server_request_duration_seconds_count{endpoint=\"GET /checkout\",status_code=\"200\",error_type=\"\"} 2",
        ],
    );
}

/// .NET's family has the very name: it keeps its labels and values, and gets those by which a policy asks.
#[test]
fn dotnet() {
    let (lines, told) = lines(include_str!("fixtures/dotnet.txt"));
    let own = "otel_scope_name=\"Microsoft.AspNetCore.Hosting\",http_request_method=\"GET\",http_response_status_code=\"500\",\
               http_route=\"/checkout\",network_protocol_version=\"1.1\",url_scheme=\"http\"";
    for line in [
        format!(
            "http_server_request_duration_seconds_count{{endpoint=\"GET /checkout\",status_code=\"500\",\
             error_type=\"System.InvalidOperationException\",{own}}} 1"
        ),
        "heap_allocated_bytes 1500000".to_owned(),
        "heap_allocation_bytes_total 7500000".to_owned(),
        "process_cpu_seconds_total 1.75".to_owned(),
    ] {
        assert!(lines.contains(&line), "{line} is not in {lines:#?}");
    }
    check_once_each(&lines);
    assert_eq!(told.normalised.replaced, Some("http_server_request_duration_seconds"));
}

#[test]
fn a_summary_is_passed_on_and_the_page_says_why_there_is_no_histogram() {
    let body = include_str!("fixtures/jvm_summary.txt");
    check(body, &[]);
    let (lines, told) = lines(body);
    assert!(!lines.iter().any(|line| line.contains("http_server_request_duration_seconds")));
    let page = told.page();
    assert!(page.contains("percentiles-histogram.http.server.requests=true"), "{page}");
}

#[test]
fn what_the_service_serves_itself_is_never_overwritten() {
    let body = "# TYPE heap_allocated_bytes gauge\nheap_allocated_bytes 7\n\
                # TYPE go_memstats_heap_inuse_bytes gauge\ngo_memstats_heap_inuse_bytes 9\n\
                # TYPE headroom_agent_info gauge\nheadroom_agent_info 1\n";
    let (lines, told) = lines(body);
    assert!(lines.contains(&"heap_allocated_bytes 7".to_owned()), "{lines:?}");
    assert!(!lines.contains(&"headroom_agent_info 1".to_owned()), "{lines:?}");
    assert_eq!(told.withheld, ["headroom_agent_info"]);
    check_once_each(&lines);
}

#[test]
fn series_with_different_buckets_are_not_added_up() {
    let series = |app: &str, bound: &str| {
        format!(
            "http_request_duration_seconds_bucket{{app=\"{app}\",route=\"/a\",le=\"{bound}\"}} 1\n\
             http_request_duration_seconds_bucket{{app=\"{app}\",route=\"/a\",le=\"+Inf\"}} 1\n\
             http_request_duration_seconds_count{{app=\"{app}\",route=\"/a\"}} 1\n\
             http_request_duration_seconds_sum{{app=\"{app}\",route=\"/a\"}} 1\n"
        )
    };
    let kind = "# TYPE http_request_duration_seconds histogram\n";
    let made = |other: &str| {
        let (_, told) = lines(&format!("{kind}{}{}", series("x", "1"), series("y", other)));
        (told.normalised.made.len(), told.normalised.notes)
    };
    assert_eq!(made("1"), (1, vec![]));
    let why = "http_request_duration_seconds: series of one endpoint have different buckets";
    assert_eq!(made("2"), (0, vec![why.to_owned()]));
}

/// A sidecar whose service serves `router`, on a port of its own.
async fn beside(router: Router) -> (Sidecar, Progress, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    (
        sidecar(&[
            ("agent.target.metrics", &format!("http://{address}/metrics")),
            ("agent.target.pprof", &format!("http://{address}/debug/pprof/")),
            ("agent.target.timeout", "300ms"),
        ]),
        Progress::new(Clock::start()),
        address,
    )
}

fn sidecar(flags: &[(&'static str, &str)]) -> Sidecar {
    let flags = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
    let inputs = Inputs { flags, ..Inputs::default() };
    let registry = Registry::new();
    let live = Live::start(inputs, &registry).expect("good flags");
    Sidecar::new(live, registry, Clock::start(), None).expect("a sidecar")
}

async fn ask(sidecar: &Sidecar, progress: &Progress, path: &str) -> (StatusCode, String) {
    let request = Request::builder().uri(path).body(Body::empty()).expect("a request");
    let answer = routes(sidecar, progress).oneshot(request).await.expect("a router never fails");
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn a_service_that_is_down_or_hangs_takes_only_its_own_families_with_it() {
    let progress = Progress::new(Clock::start());
    let own = std::process::id().to_string();
    let pid = ("agent.target.pid", own.as_str());
    let down = sidecar(&[("agent.target.metrics", "http://127.0.0.1:9/metrics"), pid]);
    let (_, text) = ask(&down, &progress, "/metrics").await;
    assert!(text.contains("\nheadroom_agent_target_up 0\n"), "{text}");
    assert!(text.contains("\nprocess_cpu_seconds_total "), "{text}");
    let (_, page) = ask(&down, &progress, SOURCES_PATH).await;
    assert!(page.contains("target_metrics           NOT available: no answer from"), "{page}");

    let hanging = Router::new().route("/metrics", get(std::future::pending::<String>));
    let (hangs, progress, _) = beside(hanging).await;
    let (status, text) = ask(&hangs, &progress, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("\nheadroom_agent_target_up 0\n"), "{text}");
    let (_, page) = ask(&hangs, &progress, SOURCES_PATH).await;
    assert!(page.contains("within 300ms"), "{page}");
}

#[tokio::test]
async fn a_malformed_or_too_long_answer_is_left_out_whole() {
    let router = Router::new()
        .route("/metrics", get(|| async { "good 1\nbad{ 2\n" }))
        .route("/long", get(|| async { "good 1\n".repeat(1000) }));
    let (sidecar, progress, address) = beside(router).await;
    let (_, text) = ask(&sidecar, &progress, "/metrics").await;
    assert!(!text.contains("good 1"), "{text}");
    assert!(text.contains("\nheadroom_agent_target_up 0\n"), "{text}");
    let long = self::sidecar(&[
        ("agent.target.metrics", &format!("http://{address}/long")),
        ("agent.target.maxBody", "1Ki"),
    ]);
    let (_, page) = ask(&long, &progress, SOURCES_PATH).await;
    assert!(page.contains("more than 1024 bytes (agent.target.maxBody)"), "{page}");
}

#[tokio::test]
async fn the_service_is_asked_once_at_a_time_however_many_ask() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, seen) = (now.clone(), most.clone());
    let slow = move || async move {
        let _running = Capture(running.clone());
        seen.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
        "good 1\n"
    };
    let (_, progress, address) = beside(Router::new().route("/metrics", get(slow))).await;
    let sidecar = sidecar(&[
        ("agent.target.metrics", &format!("http://{address}/metrics")),
        ("agent.target.timeout", "60s"),
    ]);
    let paths = ["/metrics", SOURCES_PATH, "/metrics", SOURCES_PATH, "/metrics"];
    let answers = paths.map(|path| ask(&sidecar, &progress, path));
    for (status, text) in futures::future::join_all(answers).await {
        assert_eq!(status, StatusCode::OK, "{text}");
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn who_does_not_get_a_turn_is_told_why_and_probes_need_none() {
    let (sidecar, progress) =
        (sidecar(&[("agent.target.timeout", "10ms")]), Progress::new(Clock::start()));
    let turn = sidecar.0.turn.clone().acquire_owned().await.expect("open");
    let (scrape, page) =
        tokio::join!(ask(&sidecar, &progress, "/metrics"), ask(&sidecar, &progress, SOURCES_PATH));
    for (status, text) in [scrape, page] {
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("one at a time"), "{text}");
    }
    assert_eq!(ask(&sidecar, &progress, "/healthz").await.0, StatusCode::OK);
    drop(turn);
    assert_eq!(ask(&sidecar, &progress, "/metrics").await.0, StatusCode::OK);
}

/// What a rule may be about is what the ring gets, no more and no less.
#[tokio::test]
async fn every_signal_of_a_rule_is_one_that_the_kernel_is_asked_for() {
    let own = std::process::id().to_string();
    let sidecar = sidecar(&[("agent.target.pid", &own)]);
    let (snapshot, _) = sidecar.kernel(&sidecar.config()).await;
    for reading in snapshot.readings() {
        assert!(RULE_SIGNALS.contains(&reading.family.name), "{}", reading.family.name);
    }
    let of_kernel = ["process_", "cgroup_", "pressure_", "headroom_agent_host_"];
    let asked = |name: &str| of_kernel.iter().any(|prefix| name.starts_with(prefix));
    let known = CATALOGUE.iter().map(|family| family.name).filter(|name| asked(name));
    assert_eq!(RULE_SIGNALS.iter().copied().collect::<BTreeSet<_>>(), known.collect());
}

#[tokio::test]
async fn without_profiles_the_answer_names_the_setting() {
    let progress = Progress::new(Clock::start());
    let (status, text) = ask(&sidecar(&[]), &progress, "/debug/pprof/profile").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.contains("HEADROOM_AGENT_TARGET_PPROF"), "{text}");
}

#[tokio::test]
async fn a_refusal_of_the_service_comes_through_with_its_words() {
    let refuse =
        || async { (StatusCode::INTERNAL_SERVER_ERROR, [("x-go-pprof", "1")], "already in use\n") };
    let (sidecar, progress, _) =
        beside(Router::new().route("/debug/pprof/profile", get(refuse))).await;
    let request = Request::builder().uri("/debug/pprof/profile?seconds=1").body(Body::empty());
    let request = request.expect("a request");
    let answer = routes(&sidecar, &progress).oneshot(request).await.expect("a router never fails");
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.headers()["x-go-pprof"], "1");
}

/// Counts the captures that run.
struct Capture(Arc<AtomicUsize>);

impl Drop for Capture {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_profile_streams_and_a_client_that_leaves_ends_the_capture() {
    let running = Arc::new(AtomicUsize::new(0));
    let count = running.clone();
    let endless = move || async move {
        count.fetch_add(1, Ordering::SeqCst);
        let capture = Capture(count);
        let chunks = futures::stream::once(async { Ok::<_, Infallible>(Bytes::from("first")) });
        let rest = futures::stream::once(async move {
            let _capture = capture;
            std::future::pending::<Result<Bytes, Infallible>>().await
        });
        Body::from_stream(chunks.chain(rest))
    };
    let (sidecar, progress, _) =
        beside(Router::new().route("/debug/pprof/trace", get(endless))).await;
    let request = Request::builder().uri("/debug/pprof/trace?seconds=9").body(Body::empty());
    let request = request.expect("a request");
    let answer = routes(&sidecar, &progress).oneshot(request).await.expect("a router never fails");
    let mut body = answer.into_body().into_data_stream();
    let first = body.next().await.expect("a chunk").expect("no error");
    assert_eq!(first, "first");
    assert_eq!(running.load(Ordering::SeqCst), 1);
    drop(body);
    while running.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
