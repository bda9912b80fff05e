//! A process that plays a pod under a CPU quota, for machines where no cgroup can be written.
//!
//! In: requests `POST /cpu?milliseconds=`. Out: answers at the speed of the quota, and the families that a throttled pod
//! shows, on port 9469. Never: real CPU time for the work, and never run by a test directly; the node of the tests runs
//! this binary as a container.
//!
//! Requests are worked off one after the other, in the order of their arrival, at the quota's rate; one whose client gives
//! up while it waits is never begun. That is what a thread that only burns does under the kernel's CFS quota, seen from
//! outside.

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
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

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
    state: Arc<Mutex<Done>>,
    /// Held by the request that is worked on; the others wait in the order of their arrival.
    core: Arc<Semaphore>,
}

/// What the pod has done.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    /// Wall time in which it worked; at the quota, so this times the quota is its CPU time.
    worked: Duration,
    /// Since when it works on a request, if it does.
    working_since: Option<Instant>,
    in_flight: u32,
    completed: Ended,
    given_up: Ended,
}

/// Requests that ended one way, and how long they took together.
#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    count: u32,
    seconds: f64,
}

impl Done {
    fn worked_until(&self, now: Instant) -> f64 {
        let current = self.working_since.map_or(Duration::ZERO, |since| now - since);
        (self.worked + current).as_secs_f64()
    }

    fn stop_working(&mut self, now: Instant) {
        self.worked += self.working_since.take().map_or(Duration::ZERO, |since| now - since);
    }
}

/// A request between its arrival and its end, however it ends.
struct InFlight {
    pod: Played,
    arrived: Instant,
    is_done: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.pod.state.lock();
        state.in_flight -= 1;
        let ended = if self.is_done { &mut state.completed } else { &mut state.given_up };
        ended.count += 1;
        ended.seconds += self.arrived.elapsed().as_secs_f64();
    }
}

/// The core, while it works.
struct Working(Played);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.state.lock().stop_working(Instant::now());
    }
}

impl Played {
    fn new(now: Instant, startup_delay: Duration) -> Self {
        let core = Arc::new(Semaphore::new(1));
        Self { started: now, ready_at: now + startup_delay, state: Arc::default(), core }
    }

    fn text(&self, now: Instant) -> String {
        let state = *self.state.lock();
        let uptime = (now - self.started).as_secs_f64();
        let worked = state.worked_until(now);
        let mut text = String::new();
        for (family, kind, value) in [
            ("process_cpu_seconds_total", "counter", IDLE_CORES * uptime + QUOTA_CORES * worked),
            ("cgroup_cpu_limit_cores", "gauge", QUOTA_CORES),
            ("cgroup_cpu_periods_total", "counter", uptime * PERIODS_PER_SECOND),
            ("cgroup_cpu_throttled_periods_total", "counter", worked * PERIODS_PER_SECOND),
            ("cgroup_cpu_throttled_seconds_total", "counter", worked * (1.0 - QUOTA_CORES)),
            ("tokio_alive_tasks", "gauge", f64::from(state.in_flight)),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# TYPE {family} {kind}\n{family} {value}");
        }
        let in_flight = state.in_flight;
        let _ = writeln!(
            text,
            "# TYPE http_server_requests_in_flight gauge\n\
             http_server_requests_in_flight{{endpoint=\"POST /cpu\"}} {in_flight}\n\
             # TYPE http_server_request_duration_seconds histogram"
        );
        for (outcome, Ended { count, seconds }) in [
            (r#"error_type="",status_code="200""#, state.completed),
            (r#"error_type="client_disconnected",status_code="""#, state.given_up),
        ] {
            let labels = format!(r#"endpoint="POST /cpu",{outcome}"#);
            let _ = writeln!(
                text,
                "http_server_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {count}\n\
                 http_server_request_duration_seconds_sum{{{labels}}} {seconds}\n\
                 http_server_request_duration_seconds_count{{{labels}}} {count}"
            );
        }
        text
    }

    /// Does the work, when its turn comes; stops where the caller gives up.
    async fn work(&self, work: Duration) {
        let arrived = Instant::now();
        self.state.lock().in_flight += 1;
        let mut request = InFlight { pod: self.clone(), arrived, is_done: false };
        let _core = self.core.acquire().await.expect("the semaphore is never closed");
        let since = Instant::now();
        self.state.lock().working_since = Some(since);
        let _working = Working(self.clone());
        sleep_until(since + work.div_f64(QUOTA_CORES)).await;
        request.is_done = true;
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
    pod.work(Duration::from_millis(milliseconds) + OVERHEAD).await;
}

async fn metrics(State(pod): State<Played>) -> String {
    pod.text(Instant::now())
}

#[test]
fn a_played_pod_works_at_its_quota_and_never_begins_what_was_given_up() {
    run(async {
        let pod = Played::new(Instant::now(), Duration::ZERO);
        let work = || pod.work(Duration::from_millis(10));
        // Polled in this order, so that the second waits for the first.
        let (_, second, _) =
            tokio::join!(work(), timeout(Duration::from_millis(50), work()), work());
        anyhow::ensure!(second.is_err(), "it was done before its turn");
        let state = *pod.state.lock();
        // 10 ms of CPU at 5 % of a core are 200 ms; the second was given up before its turn.
        let seconds = state.worked.as_secs_f64();
        anyhow::ensure!((0.4..0.5).contains(&seconds), "{seconds}");
        anyhow::ensure!(state.in_flight == 0 && state.completed.count == 2, "{state:?}");
        anyhow::ensure!(state.given_up.count == 1, "{state:?}");
        Ok(())
    });
}
