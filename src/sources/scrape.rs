//! Scrape: asks every pod for its text format, each in a rhythm of its own.
//!
//! In: the pods to ask. Out: a [`Batch`] per attempt, on a bounded channel. Never: a redirect, a proxy, a cookie, a body past
//! its limit in memory, or one pod that waits for another: each endpoint has its own task, connection and deadline.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{Limits, Parsed, Source, Target, Wanted, parse};
use crate::sample::{Batch, CollectFailure, EndpointKey};
use crate::time::Clock;

mod metrics;
mod rhythm;

use metrics::ScrapeMetrics;
use rhythm::Rhythm;

/// The longest wait for a whole answer; a shorter interval bounds it further.
const MAX_DEADLINE: Duration = Duration::from_secs(10);
/// A larger answer is parsed on a thread where it keeps no other task waiting (this much takes a few milliseconds).
const PARSE_IN_PLACE_BYTES: usize = 128 << 10;
/// Without a choice of its own a pod answers in the format that [`parse`] reads.
const ACCEPTED: &str = "text/plain;version=0.0.4;q=1,*/*;q=0.1";

/// What a scraper is made from.
#[derive(Debug)]
pub struct ScrapeSetup<'a> {
    /// What one answer may cost.
    pub limits: Limits,
    /// The clock of the batches.
    pub clock: Clock,
    /// Where batches go. While it is full, every endpoint holds one batch and is not asked again.
    pub batches: mpsc::Sender<Batch>,
    /// Where the scraper's own metrics are registered.
    pub registry: &'a Registry,
}

/// Why a scraper cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A metric of that name is registered already.
    #[error("cannot register the scraper's metrics")]
    Metrics(#[from] prometheus::Error),
    /// The TLS provider offers no protocol version.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The HTTP client refuses its options.
    #[error("cannot build the HTTP client")]
    Client(#[from] reqwest::Error),
}

/// Asks pods over HTTP. Dropping it ends every task it started.
#[derive(Debug)]
pub struct Scraper {
    shared: Arc<Shared>,
    running: HashMap<Asked, Running>,
}

/// What all endpoints share.
#[derive(Debug)]
struct Shared {
    client: reqwest::Client,
    limits: Limits,
    clock: Clock,
    epoch: Instant,
    batches: mpsc::Sender<Batch>,
    metrics: ScrapeMetrics,
}

/// Policies that name the same endpoint of a pod share its answers; a pod whose address changed is asked anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    endpoint: EndpointKey,
    address: SocketAddr,
}

#[derive(Debug)]
struct Running {
    wanted: watch::Sender<Arc<Wanted>>,
    task: AbortOnDropHandle<()>,
}

impl Scraper {
    /// A scraper without targets.
    ///
    /// # Errors
    /// [`SetupError`] if its metrics exist already or the HTTP client cannot be built.
    pub fn new(setup: ScrapeSetup<'_>) -> Result<Self, SetupError> {
        let shared = Shared {
            client: http_client()?,
            limits: setup.limits,
            clock: setup.clock,
            epoch: Instant::now(),
            batches: setup.batches,
            metrics: ScrapeMetrics::register(setup.registry)?,
        };
        Ok(Self { shared: Arc::new(shared), running: HashMap::new() })
    }
}

impl Source for Scraper {
    /// Must be called within a tokio runtime. A new endpoint is asked at once, and so is one of which
    /// something else is wanted.
    fn set_targets(&mut self, targets: Vec<Target>) {
        let mut merged = merge(targets);
        // A task only ends by itself when it panicked or the program ends; the former is started anew.
        self.running.retain(|key, running| merged.contains_key(key) && !running.task.is_finished());
        for (key, wanted) in merged.drain() {
            match self.running.get(&key) {
                Some(running) => {
                    running.wanted.send_if_modified(|old| {
                        let changed = *old != wanted;
                        *old = wanted;
                        changed
                    });
                }
                None => {
                    let (sender, receiver) = watch::channel(wanted);
                    let endpoint = Endpoint::new(self.shared.clone(), &key);
                    let task = AbortOnDropHandle::new(tokio::spawn(endpoint.run(receiver)));
                    self.running.insert(key, Running { wanted: sender, task });
                }
            }
        }
        self.shared.metrics.targets.set(i64::try_from(self.running.len()).unwrap_or(i64::MAX));
    }
}

/// Of each endpoint everything that anyone wants.
fn merge(targets: Vec<Target>) -> HashMap<Asked, Arc<Wanted>> {
    let mut merged: HashMap<Asked, Arc<Wanted>> = HashMap::new();
    for Target { endpoint, address, wanted } in targets {
        merged
            .entry(Asked { endpoint, address })
            .and_modify(|all| {
                if *all != wanted {
                    Arc::make_mut(all).extend_from(&wanted);
                }
            })
            .or_insert(wanted);
    }
    merged
}

/// One endpoint of one pod, asked until its task is aborted.
struct Endpoint {
    shared: Arc<Shared>,
    key: EndpointKey,
    url: String,
    /// Where in an interval this endpoint is asked; the same after every restart.
    spread: u64,
}

impl Endpoint {
    fn new(shared: Arc<Shared>, asked: &Asked) -> Self {
        let mut hasher = DefaultHasher::new();
        asked.hash(&mut hasher);
        let key = asked.endpoint.clone();
        let url = format!("http://{}{}", asked.address, key.path);
        Self { shared, key, url, spread: hasher.finish() }
    }

    async fn run(self, mut wanted: watch::Receiver<Arc<Wanted>>) {
        let mut due = Instant::now();
        loop {
            let now_wanted = wanted.borrow_and_update().clone();
            let pod = &*self.key.pod.0;
            let span = tracing::debug_span!("scrape", scrape_target = self.url, pod);
            let batch = self.attempt(&now_wanted).instrument(span).await;
            // Waits while the reader lags, so that there is never more than this one batch.
            if self.shared.batches.send(batch).await.is_err() {
                return;
            }
            let rhythm = Rhythm::new(self.shared.epoch, self.key.interval, self.spread);
            due = rhythm.after(due, Instant::now());
            tokio::select! {
                () = sleep_until(due) => {}
                changed = wanted.changed() => match changed {
                    Ok(()) => due = Instant::now(),
                    Err(_) => return,
                },
            }
        }
    }

    async fn attempt(&self, wanted: &Arc<Wanted>) -> Batch {
        let started = Instant::now();
        let deadline = self.key.interval.min(MAX_DEADLINE);
        let outcome = match timeout(deadline, self.collect(wanted, deadline)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CollectFailure::Timeout(deadline)),
        };
        self.shared.metrics.observe(&outcome, started.elapsed());
        let (outcome, dropped) = match outcome {
            Ok(Parsed { samples, dropped }) => {
                let elapsed_seconds = started.elapsed().as_secs_f64();
                tracing::debug!(samples = samples.len(), elapsed_seconds, "a pod was scraped");
                (Ok(samples), dropped)
            }
            Err(failure) => {
                tracing::debug!(error = %failure, "scrape failed");
                (Err(failure), Vec::new())
            }
        };
        let now = self.shared.clock.now();
        let endpoint = self.key.clone();
        Batch { endpoint, arrived: now.monotonic, arrived_at: now.wall, outcome, dropped }
    }

    async fn collect(
        &self,
        wanted: &Arc<Wanted>,
        deadline: Duration,
    ) -> Result<Parsed, CollectFailure> {
        let mut response = self
            .shared
            .client
            .get(&self.url)
            .header("x-prometheus-scrape-timeout-seconds", deadline.as_secs_f64().to_string())
            .send()
            .await
            .map_err(|error| not_answered(&error))?;
        let answered_at = self.shared.clock.now().wall;
        if response.status() != StatusCode::OK {
            return Err(CollectFailure::Status(response.status().as_u16()));
        }
        let body = read_body(&mut response, self.shared.limits.body_bytes).await?;
        if body.len() <= PARSE_IN_PLACE_BYTES {
            return parse(&body, wanted, &self.shared.limits, answered_at);
        }
        let (wanted, limits) = (wanted.clone(), self.shared.limits);
        tokio::task::spawn_blocking(move || parse(&body, &wanted, &limits, answered_at))
            .await
            .unwrap_or_else(|error| Err(CollectFailure::Interrupted(error.to_string())))
    }
}

fn http_client() -> Result<reqwest::Client, SetupError> {
    // Endpoints are plain HTTP. The client wants a TLS setup all the same; this one trusts nobody.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(ACCEPTED))]);
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("headroom/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .pool_max_idle_per_host(1);
    Ok(client.build()?)
}

/// Reads until the end or the limit, whichever comes first; a declared length past the limit is not read at all.
async fn read_body(
    response: &mut reqwest::Response,
    limit_bytes: usize,
) -> Result<Vec<u8>, CollectFailure> {
    let too_large = CollectFailure::TooLarge { limit_bytes };
    let declared = response.content_length().map_or(Ok(0), usize::try_from);
    let Some(declared) = declared.ok().filter(|length| *length <= limit_bytes) else {
        return Err(too_large);
    };
    let mut body = Vec::with_capacity(declared);
    let broken = |error: reqwest::Error| CollectFailure::Interrupted(root_cause(&error));
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > limit_bytes {
            return Err(too_large);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn not_answered(error: &reqwest::Error) -> CollectFailure {
    if error.is_connect() || error.is_builder() {
        CollectFailure::Connect(root_cause(error))
    } else {
        CollectFailure::Interrupted(root_cause(error))
    }
}

/// The innermost cause: the layers above it say that a request was sent.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
