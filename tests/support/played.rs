//! A pod that plays the CPU limit which no cgroup enforces: a fluid that flows no faster than the quota.
//!
//! In: the load's requests, each worth the CPU time it asks for. Out: an answer once the quota has covered the work, and
//! the metrics of a real agent in which CPU, limit and throttling are the played ones. Never: taken for a limited process
//! in silence: [`played_because`] says why a pod plays, and the results carry it. The node of the tests runs this binary
//! as the container; no test runs it directly.

use std::env;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use headroom::Agent;
use headroom::quantity::Quantity;
use headroom::signals::catalogue;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use super::kubelet::CgroupSupport;
use super::shared::run;

/// The limit that the container plays, as a Kubernetes quantity of cores.
pub(crate) const LIMIT: &str = "HEADROOM_TEST_PLAYED_CPU_LIMIT";

/// Of the kernel's bandwidth control: a quota is for so long, and what is left of it is lost.
const PERIOD_SECONDS: f64 = 0.1;
/// What a request costs the sample service beside the time it asks for, and what an idle pod uses; both measured.
const REQUEST_SECONDS: f64 = 0.000_55;
const IDLE_CORES: f64 = 0.002;

/// Why pods must play their CPU limit on this machine; `None` where the kernel enforces it.
pub(crate) fn played_because(cgroups: &CgroupSupport) -> Option<String> {
    match cgroups {
        CgroupSupport::Enforced { .. } => None,
        CgroupSupport::Unavailable(reason) => Some(format!("no cgroup: {reason}")),
    }
}

/// Work that flows at the speed of the quota. Times are seconds since the start.
#[derive(Clone, Copy, Debug)]
struct Fluid {
    limit_cores: f64,
    /// All work that was ever given, in CPU seconds.
    given: f64,
    /// When the quota has covered all of it.
    covered_at: f64,
    /// For how long there is more work than quota, the future included.
    backlogged: f64,
}

impl Fluid {
    fn new(limit_cores: f64) -> Self {
        Self { limit_cores, given: 0.0, covered_at: 0.0, backlogged: 0.0 }
    }

    /// What is left for requests.
    fn speed(&self) -> f64 {
        self.limit_cores - IDLE_CORES
    }

    /// Takes work; when it is done.
    fn take(&mut self, work_seconds: f64, now: f64) -> f64 {
        // After a rest one period's quota can be used at once.
        let from = self.covered_at.max(now - PERIOD_SECONDS);
        self.covered_at = from + work_seconds / self.speed();
        self.backlogged += (self.covered_at - from.max(now)).max(0.0);
        self.given += work_seconds;
        self.covered_at.max(now + work_seconds)
    }

    fn ahead(&self, now: f64) -> f64 {
        (self.covered_at - now).max(0.0)
    }

    /// CPU seconds used until now.
    fn used(&self, now: f64) -> f64 {
        IDLE_CORES * now + self.given - self.ahead(now) * self.speed()
    }

    /// What the agent would say of it: name, kind, value.
    fn metrics(&self, now: f64) -> [(&'static str, &'static str, f64); 5] {
        let backlogged = self.backlogged - self.ahead(now);
        [
            (catalogue::CPU[0], "counter", self.used(now)),
            (catalogue::CGROUP_CPU_LIMIT, "gauge", self.limit_cores),
            (catalogue::CGROUP_PERIODS, "counter", (now / PERIOD_SECONDS).floor()),
            (catalogue::CGROUP_THROTTLED_PERIODS, "counter", (backlogged / PERIOD_SECONDS).floor()),
            (catalogue::CGROUP_THROTTLED, "counter", backlogged * (1.0 - self.limit_cores)),
        ]
    }
}

/// The container.
#[derive(Clone)]
struct Player {
    began: Instant,
    ready_after: Duration,
    /// Requests get it one after the other, as in the sample service; one whose client goes while it waits costs nothing.
    core: Arc<Semaphore>,
    fluid: Arc<Mutex<Fluid>>,
    /// Of the real agent.
    metrics_url: Arc<str>,
    http: reqwest::Client,
}

#[derive(Debug, Deserialize)]
struct Cpu {
    milliseconds: f64,
}

impl Player {
    async fn cpu(State(player): State<Self>, Query(asked): Query<Cpu>) -> Json<Value> {
        let _core = player.core.acquire().await.expect("it is never closed");
        let work = asked.milliseconds / 1000.0 + REQUEST_SECONDS;
        let done = player.fluid.lock().take(work, player.began.elapsed().as_secs_f64());
        sleep_until(player.began + Duration::from_secs_f64(done)).await;
        Json(json!({"cpuMilliseconds": asked.milliseconds}))
    }

    async fn ready(State(player): State<Self>) -> StatusCode {
        let ready = player.began.elapsed() >= player.ready_after;
        if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }

    /// The real agent's answer, with the played families in the place of its own.
    async fn metrics(State(player): State<Self>) -> Result<String, (StatusCode, String)> {
        let real = player.real_metrics().await;
        let real = real.map_err(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")))?;
        let played = player.fluid.lock().metrics(player.began.elapsed().as_secs_f64());
        let is_played = |line: &&str| {
            let line = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
            let name = line.split([' ', '{']).next();
            played.iter().any(|(family, ..)| Some(*family) == name)
        };
        let mut text = String::new();
        for line in real.lines().filter(|line| !is_played(line)) {
            let _ = writeln!(text, "{line}");
        }
        for (name, kind, value) in played {
            let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
        }
        Ok(text)
    }

    async fn real_metrics(&self) -> Result<String> {
        let answer = self.http.get(&*self.metrics_url).send().await?.error_for_status()?;
        Ok(answer.text().await?)
    }
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| name.to_owned())
}

#[test]
#[ignore = "the container of a pod that plays its CPU limit, not a test"]
fn container() {
    run(async {
        let service: SocketAddr = variable("HEADROOM_SERVICE_BIND")?.parse()?;
        let metrics: SocketAddr = variable("HEADROOM_AGENT_BIND")?.parse()?;
        let delay = variable("HEADROOM_SERVICE_STARTUP_DELAY")?;
        let agent =
            Agent::builder().service("played").bind(SocketAddr::new(service.ip(), 0)).start()?;
        let player = Player {
            began: Instant::now(),
            ready_after: Duration::from_secs(delay.trim_end_matches('s').parse()?),
            core: Arc::new(Semaphore::new(1)),
            fluid: Arc::new(Mutex::new(Fluid::new(variable(LIMIT)?.parse::<Quantity>()?.to_f64()))),
            metrics_url: format!("http://{}/metrics", agent.local_addr()).into(),
            http: reqwest::Client::builder().no_proxy().build()?,
        };
        let requests = Router::new()
            .route("/cpu", post(Player::cpu))
            .route("/ready", get(Player::ready))
            .with_state(player.clone())
            .layer(agent.http_layer());
        let shown = Router::new().fallback(Player::metrics).with_state(player);
        let (service, metrics) =
            (TcpListener::bind(service).await?, TcpListener::bind(metrics).await?);
        tokio::try_join!(
            axum::serve(service, requests).into_future(),
            axum::serve(metrics, shown).into_future()
        )?;
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
    }

    #[test]
    fn an_overloaded_player_uses_its_limit_and_no_more_and_says_that_it_is_throttled() {
        let mut fluid = Fluid::new(0.05);
        let done = (0..100).map(|_| fluid.take(0.0048, 10.0)).fold(0.0, f64::max);
        // 10 s of the speed, of which one period was left from the rest before.
        close(done, 19.9);
        let at = |now: f64| fluid.metrics(now).map(|(_, _, value)| value);
        let (before, after) = (at(12.0), at(17.0));
        close(after[0] - before[0], 5.0 * 0.05);
        close(after[2] - before[2], 50.0);
        close(after[3] - before[3], 50.0);
        close(after[4] - before[4], 5.0 * 0.95);
        close(at(30.0)[0], 0.48 + 30.0 * IDLE_CORES);
    }

    #[test]
    fn a_player_under_its_limit_answers_soon_and_has_no_backlog_for_long() {
        let mut fluid = Fluid::new(0.05);
        for request in 1..40 {
            let now = f64::from(request) * 0.25;
            let took = fluid.take(0.005 + REQUEST_SECONDS, now) - now;
            assert!(took < 0.03, "{took} s");
        }
        close(fluid.ahead(10.0), 0.0);
    }
}
