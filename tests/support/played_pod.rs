//! A process that plays a pod under a CPU quota, for machines where no cgroup can be written.
//!
//! In: requests `POST /cpu?milliseconds=`. Out: answers at the speed of the quota, and the families that a throttled pod
//! shows, on port 9469. Never: real CPU time for the work, and never run by a test directly; the node of the tests runs
//! this binary as a container.
//!
//! The work is a fluid: it is worked off in the order of its arrival, at the quota's rate, and each request is answered
//! when its own is done. That is what a thread that only burns does under the kernel's CFS quota, seen from outside.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};

use super::shared::run;
use super::workload::{SampleOptions, sample_deployment};

/// The quota of the CPU case, 5 ms in 100 ms.
const QUOTA_CORES: f64 = 0.05;
/// What a real request costs beside the work that it asks for.
const OVERHEAD: Duration = Duration::from_micros(600);
/// What a real sample pod uses without requests.
const IDLE_CORES: f64 = 0.002;
/// CFS periods.
const PERIODS_PER_SECOND: f64 = 10.0;

/// A Deployment of played pods, with the ports, probe and start of the sample service.
///
/// # Errors
/// This binary's path is unknown.
pub(crate) fn deployment(name: &str, options: &SampleOptions) -> Result<Value> {
    let mut deployment = sample_deployment(name, options);
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    let binary = std::env::current_exe()?;
    container["command"] =
        json!([binary, "--ignored", "--exact", "support::played_pod::container", "--nocapture"]);
    Ok(deployment)
}

#[test]
#[ignore = "the container of a played pod, not a test"]
fn container() {
    run(async {
        let address: IpAddr = std::env::var("POD_IP").context("POD_IP")?.parse()?;
        let delay = std::env::var("HEADROOM_SERVICE_STARTUP_DELAY").context("startup delay")?;
        let delay = delay.strip_suffix('s').context("startup delay")?.parse()?;
        let pod = Played::new(Instant::now(), Duration::from_secs(delay));
        let service = Router::new()
            .route("/ready", get(ready))
            .route("/cpu", post(work))
            .with_state(pod.clone());
        let metrics = Router::new().route("/metrics", get(metrics)).with_state(pod);
        let (service_port, agent_port) = tokio::try_join!(
            TcpListener::bind((address, 8000)),
            TcpListener::bind((address, 9469))
        )?;
        tokio::try_join!(axum::serve(service_port, service), axum::serve(agent_port, metrics))?;
        Ok(())
    });
}

#[derive(Clone, Debug)]
struct Played {
    started: Instant,
    ready_at: Instant,
    state: Arc<Mutex<Fluid>>,
}

/// The work of the pod.
#[derive(Clone, Copy, Debug)]
struct Fluid {
    /// When all work that has arrived will be done.
    busy_until: Instant,
    /// CPU seconds of all work that has arrived.
    offered: f64,
    /// Wall seconds in which there was or will be work.
    busy: f64,
    in_flight: u32,
    completed: u32,
    /// Of the completed requests together.
    request_seconds: f64,
}

impl Fluid {
    /// Takes work; when it will be done.
    fn arrive(&mut self, now: Instant, work: Duration) -> Instant {
        let wall = work.div_f64(QUOTA_CORES);
        self.busy_until = self.busy_until.max(now) + wall;
        self.offered += work.as_secs_f64();
        self.busy += wall.as_secs_f64();
        self.in_flight += 1;
        self.busy_until
    }

    fn complete(&mut self, took: Duration) {
        self.in_flight -= 1;
        self.completed += 1;
        self.request_seconds += took.as_secs_f64();
    }

    /// CPU seconds used and wall seconds spent at the quota until now.
    fn spent(&self, now: Instant) -> (f64, f64) {
        let left = self.busy_until.saturating_duration_since(now).as_secs_f64();
        (self.offered - left * QUOTA_CORES, self.busy - left)
    }
}

impl Played {
    fn new(now: Instant, startup_delay: Duration) -> Self {
        let fluid = Fluid {
            busy_until: now,
            offered: 0.0,
            busy: 0.0,
            in_flight: 0,
            completed: 0,
            request_seconds: 0.0,
        };
        Self { started: now, ready_at: now + startup_delay, state: Arc::new(Mutex::new(fluid)) }
    }

    fn text(&self, now: Instant) -> String {
        let fluid = *self.state.lock();
        let uptime = now.saturating_duration_since(self.started).as_secs_f64();
        let (used, saturated) = fluid.spent(now);
        let labels = r#"endpoint="POST /cpu",error_type="",status_code="200""#;
        let (completed, seconds) = (fluid.completed, fluid.request_seconds);
        let mut text = String::new();
        for (family, kind, value) in [
            ("process_cpu_seconds_total", "counter", IDLE_CORES.mul_add(uptime, used)),
            ("cgroup_cpu_limit_cores", "gauge", QUOTA_CORES),
            ("cgroup_cpu_periods_total", "counter", uptime * PERIODS_PER_SECOND),
            ("cgroup_cpu_throttled_periods_total", "counter", saturated * PERIODS_PER_SECOND),
            ("cgroup_cpu_throttled_seconds_total", "counter", saturated * (1.0 - QUOTA_CORES)),
            ("tokio_alive_tasks", "gauge", f64::from(fluid.in_flight)),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# TYPE {family} {kind}\n{family} {value}");
        }
        let _ = writeln!(
            text,
            "# TYPE http_server_requests_in_flight gauge\n\
             http_server_requests_in_flight{{endpoint=\"POST /cpu\"}} {}\n\
             # TYPE http_server_request_duration_seconds histogram\n\
             http_server_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {completed}\n\
             http_server_request_duration_seconds_sum{{{labels}}} {seconds}\n\
             http_server_request_duration_seconds_count{{{labels}}} {completed}",
            fluid.in_flight,
        );
        text
    }
}

async fn ready(State(pod): State<Played>) -> StatusCode {
    if Instant::now() >= pod.ready_at { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

#[derive(Debug, Deserialize)]
struct Work {
    milliseconds: u64,
}

async fn work(State(pod): State<Played>, Query(Work { milliseconds }): Query<Work>) {
    let arrived = Instant::now();
    let work = Duration::from_millis(milliseconds) + OVERHEAD;
    let done = pod.state.lock().arrive(arrived, work);
    sleep_until(done).await;
    pod.state.lock().complete(arrived.elapsed());
}

async fn metrics(State(pod): State<Played>) -> String {
    pod.text(Instant::now())
}

#[test]
fn a_played_pod_works_at_its_quota_and_no_faster() {
    let start = Instant::now();
    let pod = Played::new(start, Duration::ZERO);
    let mut fluid = *pod.state.lock();
    let first = fluid.arrive(start, Duration::from_millis(5));
    let second = fluid.arrive(start, Duration::from_millis(5));
    assert_eq!(first - start, Duration::from_millis(100));
    assert_eq!(second - start, Duration::from_millis(200));
    let (used, saturated) = fluid.spent(start + Duration::from_millis(150));
    assert!((used - 0.0075).abs() < 1e-9 && (saturated - 0.15).abs() < 1e-9, "{used} {saturated}");
    let (used, saturated) = fluid.spent(start + Duration::from_secs(9));
    assert!((used - 0.01).abs() < 1e-9 && (saturated - 0.2).abs() < 1e-9, "{used} {saturated}");
}
