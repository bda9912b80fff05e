//! The agent's HTTP server: `/metrics`, probes and profiles.
//!
//! In: a listener. Out: answers, from a bounded number of connections. Never: a client that keeps others from being answered:
//! heads have to arrive in time, a peer that does not read loses its connection, and when all places are taken the oldest
//! idle connection makes room. Never: a probe or profile that waits for a collector of the service.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::access::{self, Gate};
use super::evidence::{self, Evidence};
use super::exposition::{Exposition, Format};
use crate::pprof;
use crate::probes::Progress;
use crate::signals::catalogue::families;
use crate::signals::{Collectors, Snapshot};
use crate::time::Clock;

mod patient;
use patient::Patient;

/// Connections at once. A scraper, a kubelet and a person need three.
const MAX_CONNECTIONS: usize = 64;
/// For the head of a request, and for how long a connection may be idle: longer than the usual scrape intervals, so that a
/// scraper keeps its connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// For an answer of which the client takes no byte.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// For the collectors of one scrape, together with those of the scrape before it.
const GATHER_DEADLINE: Duration = Duration::from_secs(2);
/// For answers that are being written when the agent stops.
const DRAIN: Duration = Duration::from_millis(500);

/// What the agent's routes answer from.
pub(super) struct Routes {
    pub(super) exposition: Exposition,
    pub(super) progress: Progress,
    pub(super) service: pprof::Service,
    /// The one whose tasks are counted.
    pub(super) service_runtime: Handle,
    pub(super) sources: Sources,
    pub(super) evidence: Evidence,
    pub(super) gate: Gate,
}

impl Routes {
    /// Metrics and probes.
    pub(super) fn public(&self) -> Router {
        let turn = Arc::new(Semaphore::new(1));
        Router::new()
            .route("/metrics", get(metrics))
            .with_state(Scrapes { exposition: self.exposition.clone(), turn })
            .merge(self.progress.routes())
    }

    /// Profiles and captures, for those who may.
    pub(super) fn debug(&self) -> Router {
        Router::new()
            .merge(pprof::routes(&self.service, Some(self.service_runtime.clone())))
            .route(SOURCES_PATH, get(sources))
            .with_state(self.sources.clone())
            .merge(evidence::routes(self.evidence.clone()))
            .layer(middleware::from_fn_with_state(self.gate.clone(), access::check))
    }
}

/// Where the page of the sources is: what can be read, and what not and why.
pub(super) const SOURCES_PATH: &str = "/debug/headroom/sources";

/// What the page of the sources is made from.
#[derive(Clone)]
pub(super) struct Sources {
    collectors: Arc<Mutex<Collectors>>,
    clock: Clock,
}

impl Sources {
    pub(super) const fn new(collectors: Arc<Mutex<Collectors>>, clock: Clock) -> Self {
        Self { collectors, clock }
    }
}

async fn sources(State(Sources { collectors, clock }): State<Sources>) -> Response {
    let read = move || collectors.lock().reasons_text(clock.now());
    match tokio::task::spawn_blocking(read).await {
        Ok(text) => text.into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "a collector panicked").into_response(),
    }
}

/// What a scrape needs. Collectors that the service registered are foreign code, which may wait for a lock that the service
/// holds: they run on a thread of their own, and one at a time, so that late ones do not pile up.
#[derive(Clone)]
struct Scrapes {
    exposition: Exposition,
    turn: Arc<Semaphore>,
}

impl Scrapes {
    /// Waits for its turn and for the collectors. Those go on when the caller no longer waits, and keep the turn.
    async fn body(self, format: Format) -> Result<Vec<u8>, JoinError> {
        let turn = self.turn.acquire_owned().await.expect("the semaphore is never closed");
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            self.exposition.body(format)
        })
        .await
    }
}

async fn metrics(State(scrapes): State<Scrapes>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::negotiate(accept);
    match tokio::time::timeout(GATHER_DEADLINE, scrapes.body(format)).await {
        Ok(Ok(body)) => {
            let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
            (headers, body).into_response()
        }
        Ok(Err(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a collector panicked");
            (StatusCode::INTERNAL_SERVER_ERROR, "a collector panicked").into_response()
        }
        Err(_) => {
            tracing::warn!("a collector of the service did not answer in time");
            (StatusCode::SERVICE_UNAVAILABLE, "a collector did not answer within 2 s")
                .into_response()
        }
    }
}

/// Counts connections that made room for others. Every clone is the same count.
#[derive(Clone, Debug, Default)]
pub(super) struct Evicted(Arc<AtomicU64>);

impl Evicted {
    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds the family.
    pub(super) fn collect(&self, snapshot: &mut Snapshot) {
        let evicted = self.0.load(Ordering::Relaxed);
        snapshot.push(&families::AGENT_CONNECTIONS_EVICTED, evicted as f64);
    }
}

/// Serves until `stop`, then lets running answers finish for [`DRAIN`].
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    evicted: Evicted,
    stop: CancellationToken,
) {
    let mut connections = Connections { tasks: JoinSet::new(), places: VecDeque::new(), evicted };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => connections.add(stream, peer, router.clone(), stop.clone()),
                Err(error) => back_off(&error).await,
            },
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, async {
        while connections.tasks.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        connections.tasks.shutdown().await;
    }
}

/// The process may be out of descriptors; trying again at once would burn its CPU.
async fn back_off(error: &io::Error) {
    tracing::warn!(error = error as &dyn std::error::Error, "cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

struct Connections {
    tasks: JoinSet<()>,
    /// Oldest first.
    places: VecDeque<Place>,
    evicted: Evicted,
}

struct Place {
    task: AbortHandle,
    /// Requests of the connection whose answer has not begun.
    requests: Arc<AtomicUsize>,
}

impl Connections {
    fn add(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        router: Router,
        stop: CancellationToken,
    ) {
        self.places.retain(|place| !place.task.is_finished());
        if self.places.len() >= MAX_CONNECTIONS {
            let idle = |place: &Place| place.requests.load(Ordering::Relaxed) == 0;
            let oldest_idle = self.places.iter().position(idle).unwrap_or(0);
            if let Some(place) = self.places.remove(oldest_idle) {
                place.task.abort();
                self.evicted.count();
            }
        }
        let requests = Arc::new(AtomicUsize::new(0));
        let task = self.tasks.spawn(connection(stream, peer, router, requests.clone(), stop));
        self.places.push_back(Place { task, requests });
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    requests: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    // Only latency is at stake.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let running = Running::start(&requests);
        let answer = router.clone().oneshot(request.map(Body::new));
        async move {
            let answer = answer.await;
            drop(running);
            answer
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut served =
        pin!(builder.serve_connection(Patient::new(TokioIo::new(stream), WRITE_PATIENCE), service));
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(error = &error as &dyn std::error::Error, "connection ended");
    }
}

/// Counts a request for as long as it lives.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn start(requests: &Arc<AtomicUsize>) -> Self {
        requests.fetch_add(1, Ordering::Relaxed);
        Self(requests.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
