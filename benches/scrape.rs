//! What a scrape of all signals costs: CPU time, and allocations besides the body, in each format.
//!
//! Run with `make bench`. The agent is that of a service with 20 endpoints and three outcomes each.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::process::ExitCode;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use headroom::Agent;
use http::{Request, StatusCode};
use tower::ServiceExt as _;

headroom::profiled_jemalloc!();

const SCRAPES: u32 = 2_000;
/// Of CPU time, in the formats that most scrapes ask for.
const MAX_MILLISECONDS: f64 = 1.0;
/// The body is one. Threads hand their counts over in batches of 64, which is so much of one scrape.
const MAX_ALLOCATIONS: f64 = 1.0 + 2.0 * 64.0 / SCRAPES as f64;

const FORMATS: [(&str, &str); 3] = [
    ("text", "text/plain;version=0.0.4"),
    ("OpenMetrics", "application/openmetrics-text;version=1.0.0"),
    (
        "protobuf",
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
    ),
];

#[tokio::main]
async fn main() -> ExitCode {
    let address = ([127, 0, 0, 1], 0).into();
    let agent = Agent::builder().bind(address).start().expect("a free port");
    serve_requests(&agent).await;
    let mut cheap = true;
    for (name, accept) in FORMATS {
        let scrape = || agent.metrics(Some(accept)).1;
        let size = (0..20).map(|_| scrape().len()).max().unwrap_or(0);
        let (allocations, bytes, cpu) = (allocations(&agent), allocated(&agent), cpu_seconds());
        (0..SCRAPES).for_each(|_| drop(scrape()));
        let per_scrape = |total: f64| total / f64::from(SCRAPES);
        let milliseconds = per_scrape(cpu_seconds() - cpu) * 1e3;
        let allocations = per_scrape(self::allocations(&agent) - allocations);
        let bytes = per_scrape(self::allocated(&agent) - bytes);
        println!(
            "{name}: {milliseconds:.3} ms of CPU (at most {MAX_MILLISECONDS}), body of {size} bytes, \
             {allocations:.2} allocations of {bytes:.0} bytes, the body's included (at most \
             {MAX_ALLOCATIONS:.2})"
        );
        cheap &= milliseconds <= MAX_MILLISECONDS && allocations <= MAX_ALLOCATIONS;
    }
    if cheap { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn serve_requests(agent: &Agent) {
    let answer = async |Path((status, wait)): Path<(u16, u64)>| {
        tokio::time::sleep(std::time::Duration::from_micros(wait)).await;
        StatusCode::from_u16(status).unwrap_or_default()
    };
    let routes = (0..20).fold(Router::new(), |router, number| {
        router.route(&format!("/endpoint{number}/{{status}}/{{wait}}"), get(answer))
    });
    let router = routes.layer(agent.http_layer());
    for number in 0..20 {
        for status in [200, 404, 503] {
            for wait in [0, 1, 3_000, 9_000] {
                let uri = format!("/endpoint{number}/{status}/{wait}");
                let request = Request::builder().uri(uri).body(axum::body::Body::empty());
                let request = request.expect("a valid request");
                router.clone().oneshot(request).await.expect("axum is infallible");
            }
        }
    }
}

fn allocations(agent: &Agent) -> f64 {
    read(agent, "heap_allocations_total")
}

fn allocated(agent: &Agent) -> f64 {
    read(agent, "heap_allocation_bytes_total")
}

fn read(agent: &Agent, name: &str) -> f64 {
    let text = String::from_utf8(agent.metrics(None).1).expect("text");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).expect("it is served")
}

/// CPU time of this thread: the first number of its schedstat, in nanoseconds.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let nanoseconds = text.split(' ').next().and_then(|number| number.parse::<f64>().ok());
    nanoseconds.expect("a number") / 1e9
}
