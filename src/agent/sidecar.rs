//! The agent beside a service in any language: its metrics, its profiles, its process, on one port.
//!
//! In: a followed configuration. Out: `/metrics` with the service's own families as they are, the same signals under
//! Headroom's names, and what the kernel knows of the process and its cgroup; `/debug/pprof/*` of the service; probes; two pages
//! that say what is in effect and what may not be read. Never: a family of the service that is overwritten, or a service that is
//! down taking the kernel's signals with it, or more than one scrape's worth of its answers in memory.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use prometheus::Registry;
use prometheus::proto::MetricFamily;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::access::{self, Authenticator, Gate};
use super::collector::{self, KnownReasons};
use super::evidence::{self, Evidence, EvidenceOptions, PinRule, RingLimits, Subject};
use super::exposition::{self, FamilySet, Format};
use super::server::{self, Evicted, SOURCES_PATH};
use crate::config::{AgentConfig, CaptureConfig, CaptureRule, Live};
use crate::probes::Progress;
use crate::signals::catalogue::families;
use crate::signals::host::HostCollector;
use crate::signals::{Snapshot, Unavailable};
use crate::telemetry::{error_chain, write_error_chain};
use crate::time::Clock;
use crate::units::Measure as _;

mod normalised;
mod pprof_proxy;
mod target_client;
mod target_families;
mod target_process;
mod target_profiles;
#[cfg(test)]
mod tests;

#[cfg(any(fuzzing, test))]
pub use target_families::read_any_target;

use normalised::Normalised;
use target_client::TargetClient;
use target_families::TargetFamily;
use target_process::TargetProcess;
use target_profiles::TargetProfiles;

/// Families of these names are the sidecar's own, whatever the service serves.
const OWN_PREFIXES: [&str; 2] = ["headroom_agent_", "headroom_config_"];

/// What one observation may take beside the service's answer.
const OBSERVATION_MARGIN: Duration = Duration::from_secs(1);

/// Why a sidecar cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The TLS provider offers no protocol version.
    #[error("cannot set up the HTTP client")]
    Tls(#[from] rustls::Error),
    /// The HTTP client refuses its options.
    #[error("cannot build the HTTP client")]
    Client(#[from] reqwest::Error),
    /// A metric of the sidecar cannot be registered.
    #[error("cannot register the sidecar's metrics")]
    Register(#[from] prometheus::Error),
}

/// A sidecar. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Sidecar(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    live: Live<AgentConfig>,
    registry: Registry,
    evicted: Evicted,
    clock: Clock,
    client: TargetClient,
    evidence: Evidence,
    gate: Gate,
    kernel: Mutex<Kernel>,
    /// Whose holder observes: an answer of the service and what is made of it may be several times `agent.target.maxBody`.
    turn: Arc<Semaphore>,
    reasons: Mutex<KnownReasons>,
}

/// What is read of the kernel.
#[derive(Debug)]
struct Kernel {
    process: TargetProcess,
    host: HostCollector,
}

impl Sidecar {
    /// A sidecar with that configuration, made inside the runtime that will serve it. Its own metrics go to `registry`,
    /// which is served too. `authenticator` judges the tokens of requests under `/debug/`.
    ///
    /// # Errors
    /// [`SidecarError`]: the HTTP client or the metrics.
    pub fn new(
        live: Live<AgentConfig>,
        registry: Registry,
        clock: Clock,
        authenticator: Option<Arc<dyn Authenticator>>,
    ) -> Result<Self, SidecarError> {
        let client = TargetClient::new()?;
        let runtime = Handle::current();
        let profiles = TargetProfiles { client: client.clone(), live: live.clone(), runtime };
        let options = evidence_options(&live.current().config.capture);
        let evidence = Evidence::new(Subject::Neighbour(Arc::new(profiles)), clock, options);
        let kernel = Kernel { process: TargetProcess::new(), host: HostCollector::new() };
        Ok(Self(Arc::new(Shared {
            live,
            registry,
            evicted: Evicted::default(),
            clock,
            client,
            evidence,
            gate: Gate::new(authenticator),
            kernel: Mutex::new(kernel),
            turn: Arc::new(Semaphore::new(1)),
            reasons: Mutex::default(),
        })))
    }

    /// Metrics and probes.
    pub fn public_routes(&self, progress: &Progress) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .with_state(self.clone())
            .merge(progress.routes())
    }

    /// Profiles, captures and pages, for those who may.
    pub fn debug_routes(&self) -> Router {
        Router::new()
            .route(SOURCES_PATH, get(sources))
            .with_state(self.clone())
            .merge(pprof_proxy::routes(self.clone()))
            .merge(evidence::routes(self.0.evidence.clone()))
            .merge(self.0.live.routes())
            .layer(middleware::from_fn_with_state(self.0.gate.clone(), access::check))
    }

    /// Serves until `stop`, then lets running answers finish for half a second. With `debug` that listener serves
    /// `/debug/` alone.
    pub async fn serve(
        &self,
        listener: TcpListener,
        debug: Option<TcpListener>,
        progress: &Progress,
        stop: CancellationToken,
    ) {
        let serve = |listener, router| {
            server::serve(listener, router, self.0.evicted.clone(), stop.clone())
        };
        let public = self.public_routes(progress);
        let serving = async {
            match debug {
                None => serve(listener, public.merge(self.debug_routes())).await,
                Some(debug) => {
                    let apart = serve(debug, self.debug_routes());
                    tokio::join!(serve(listener, public), apart);
                }
            }
        };
        tokio::select! {
            () = serving => {}
            () = self.keep_evidence() => {}
        }
    }

    /// What the kernel says of the process, once a second, into the ring.
    async fn keep_evidence(&self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut former = None;
        loop {
            ticks.tick().await;
            let config = self.config();
            if former.as_ref() != Some(&config.capture) {
                let EvidenceOptions { rules, memory_near_limit, .. } =
                    evidence_options(&config.capture);
                self.0.evidence.set_rules(rules, memory_near_limit);
                former = Some(config.capture.clone());
            }
            let (snapshot, _) = self.kernel(&config).await;
            self.0.evidence.tick(self.0.clock.now(), &snapshot, &[]);
        }
    }

    fn config(&self) -> AgentConfig {
        self.0.live.current().config.clone()
    }

    fn client(&self) -> &TargetClient {
        &self.0.client
    }

    /// Waits for its turn, for as long as two observations may take: its own and the one before. One that has begun goes on
    /// when the caller no longer waits, and keeps the turn.
    async fn observe_in_turn<T: Send + 'static>(
        &self,
        made: fn(Observation) -> T,
    ) -> Result<T, Response> {
        let sidecar = self.clone();
        let observed = async move {
            let turn = sidecar.0.turn.clone().acquire_owned().await;
            let turn = turn.expect("the semaphore is never closed");
            let observing = async move {
                let _turn = turn;
                made(sidecar.observe().await)
            };
            tokio::spawn(observing).await
        };
        let deadline = 2 * (self.config().target.timeout + OBSERVATION_MARGIN);
        match tokio::time::timeout(deadline, observed).await {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a scrape panicked");
                let why = "reading the service's metrics panicked";
                Err((StatusCode::INTERNAL_SERVER_ERROR, why).into_response())
            }
            Err(_) => {
                tracing::warn!(?deadline, "a scrape did not get its turn in time");
                let why = format!("other scrapes of this sidecar took {deadline:?}; one at a time");
                Err((StatusCode::SERVICE_UNAVAILABLE, why).into_response())
            }
        }
    }

    /// Everything that one scrape sees.
    async fn observe(&self) -> Observation {
        let config = self.config();
        let started = self.0.clock.now().monotonic;
        let (body, read) = tokio::join!(self.body(&config), self.kernel(&config));
        let (mut snapshot, pid) = read;
        let took = self.0.clock.now().monotonic.since(started);
        let mut told = Observation { service: config.service, pid, ..Observation::default() };
        let outcome = match body {
            None => Err(Unavailable::Beside(
                "not configured: set agent.target.metrics (HEADROOM_AGENT_TARGET_METRICS)"
                    .to_owned(),
            )),
            Some(Err(why)) => Err(Unavailable::Beside(why)),
            Some(Ok(body)) => told.take(&body).map_err(Unavailable::Beside),
        };
        if config.target.metrics.is_some() {
            let up = f64::from(u8::from(outcome.is_ok()));
            snapshot.push(&families::AGENT_TARGET_UP, up);
        }
        snapshot.source("target_metrics", outcome);
        self.0.reasons.lock().update(&snapshot, reason, |source, reason| match reason {
            Some(error) => tracing::warn!(source, error, "source is not available"),
            None => tracing::info!(source, "source is available again"),
        });
        self.0.evicted.collect(&mut snapshot);
        let mut own = FamilySet::default();
        collector::write(&snapshot, &told.service, took, &mut own);
        told.add(own.0);
        told.add(self.0.registry.gather());
        told.snapshot = snapshot;
        told
    }

    async fn body(&self, config: &AgentConfig) -> Option<Result<Vec<u8>, String>> {
        let url = config.target.metrics.as_ref()?;
        let body = self.0.client.metrics(url, &config.target).await;
        Some(body.map_err(|error| error_chain(&error)))
    }

    /// Reads procfs on a thread where it keeps no answer waiting.
    async fn kernel(&self, config: &AgentConfig) -> (Snapshot, Option<i32>) {
        let (shared, target) = (self.0.clone(), config.target.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut snapshot = Snapshot::default();
            let mut kernel = shared.kernel.lock();
            kernel.process.collect(&target, &mut snapshot);
            kernel.host.collect(&mut snapshot);
            (snapshot, kernel.process.pid())
        });
        read.await.unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "reading procfs panicked");
            (Snapshot::default(), None)
        })
    }
}

fn evidence_options(config: &CaptureConfig) -> EvidenceOptions {
    let rule = |rule: &CaptureRule| PinRule {
        signal: rule.signal.clone(),
        above: rule.above,
        cooldown: rule.cooldown,
    };
    EvidenceOptions {
        ring: RingLimits { window: config.ring.window, bytes: config.ring.size_bytes },
        rules: config.rules.iter().map(rule).collect(),
        memory_near_limit: config.memory_near_limit.get(),
        directory: config.directory.clone(),
    }
}

/// The whole chain, and what to set.
fn reason(error: &Unavailable, text: &mut String) {
    write_error_chain(error, text);
    if let Some(grant) = target_process::grant(error) {
        text.extend([": ", grant]);
    }
}

/// What one scrape saw.
#[derive(Debug, Default)]
struct Observation {
    service: String,
    pid: Option<i32>,
    snapshot: Snapshot,
    /// The service's families as text, without those that are ours.
    passed_on: String,
    /// Names that are taken, whoever serves them.
    taken: std::collections::HashSet<String>,
    /// Families of the service that are not passed on under their names.
    withheld: Vec<String>,
    normalised: Normalised,
    own: Vec<MetricFamily>,
}

impl Observation {
    /// The service's answer: passes its families on and makes ours of them.
    fn take(&mut self, body: &[u8]) -> Result<(), String> {
        let served = target_families::read(body).map_err(|error| error.to_string())?;
        self.normalised = normalised::normalise(&served);
        let replaced = self.normalised.replaced;
        for family in &served {
            if OWN_PREFIXES.iter().any(|prefix| family.name.starts_with(prefix)) {
                self.withheld.push(family.name.to_owned());
            } else if Some(family.name) != replaced {
                family.write(&mut self.passed_on);
                self.taken.extend(names(family));
            }
        }
        let made = std::mem::take(&mut self.normalised.families);
        self.add(made);
        Ok(())
    }

    /// Adds families whose names nobody has taken yet.
    fn add(&mut self, families: Vec<MetricFamily>) {
        for family in families {
            if self.taken.insert(family.name().to_owned()) {
                self.own.push(family);
            }
        }
    }

    /// Ours, then the service's, which is moved and not copied: it may be long.
    fn text(&mut self) -> String {
        let mut text = std::mem::take(&mut self.passed_on);
        text.insert_str(0, &exposition::text_of(&self.own));
        text
    }

    fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail.
        let _ = match self.pid {
            Some(pid) => writeln!(page, "process {pid}\n"),
            None => writeln!(page, "no process\n"),
        };
        for (source, outcome) in self.snapshot.sources() {
            let _ = match outcome {
                Ok(()) => writeln!(page, "{source:<24} available"),
                Err(error) => {
                    let _ = write!(page, "{source:<24} NOT available: ");
                    reason(error, &mut page);
                    writeln!(page)
                }
            };
        }
        page.push('\n');
        for (name, source) in &self.normalised.made {
            let _ = writeln!(page, "{name} is made of {source}");
        }
        for note in &self.normalised.notes {
            let _ = writeln!(page, "not made: {note}");
        }
        for name in &self.withheld {
            let _ = writeln!(page, "not passed on: {name}, which is the sidecar's own");
        }
        page
    }
}

/// The name of a family, and of its series where they look like families of their own.
fn names(family: &TargetFamily<'_>) -> Vec<String> {
    let series = family.samples.iter().map(|sample| sample.name);
    let mut names: Vec<String> = series.chain([family.name]).map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    names
}

async fn metrics(State(sidecar): State<Sidecar>) -> Response {
    let kind = [(header::CONTENT_TYPE, Format::Text.content_type())];
    let text = sidecar.observe_in_turn(|mut told| told.text()).await;
    text.map_or_else(|refusal| refusal, |text| (kind, text).into_response())
}

async fn sources(State(sidecar): State<Sidecar>) -> Response {
    let page = sidecar.observe_in_turn(|told| told.page()).await;
    page.map_or_else(|refusal| refusal, IntoResponse::into_response)
}
