//! Connections: accept, TLS, HTTP/2 or 1.1, drain.
//!
//! In: a bound socket and a router. Out: requests that carry the certificate their client holds. Never: an unbounded number
//! of connections, headers or seconds.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::client_cas::PeerCertificate;
use super::own_metrics::OwnMetrics;

/// Connections at once; more wait in the kernel's backlog. Go clients share one HTTP/2 connection each.
const MAX_CONNECTIONS: usize = 1024;
/// As long as Go's clients wait for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For a request's head, which on HTTP/1.1 includes idling before it.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Beyond this hyper itself refuses a head; [`super::limits`] answers sooner, with a Status.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
const MAX_STREAMS: u32 = 250;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// For requests that are under way when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Before the next attempt, when accepting failed (mostly: no file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How connections are spoken on.
#[derive(Clone)]
struct Protocols {
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
}

impl Protocols {
    fn new() -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .max_buf_size(usize::try_from(MAX_HEADER_BYTES).unwrap_or(usize::MAX));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_header_list_size(MAX_HEADER_BYTES);
        // The protocol is agreed on by ALPN; guessing it from the first bytes would wait for them without a limit.
        Self { http1: builder.clone().http1_only(), http2: builder.http2_only() }
    }
}

/// What every connection needs.
#[derive(Clone)]
pub(super) struct Connections {
    tls: TlsAcceptor,
    router: Router,
    metrics: OwnMetrics,
    protocols: Protocols,
    shutdown: CancellationToken,
}

impl Connections {
    pub(super) fn new(
        tls: Arc<rustls::ServerConfig>,
        router: Router,
        metrics: OwnMetrics,
        shutdown: CancellationToken,
    ) -> Self {
        Self { tls: TlsAcceptor::from(tls), router, metrics, protocols: Protocols::new(), shutdown }
    }

    /// Serves until `shutdown`, then finishes what is under way, for at most [`DRAIN_TIMEOUT`].
    pub(super) async fn serve(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let tasks = TaskTracker::new();
        while let Some((stream, permit)) = self.accept(&listener, &permits).await {
            tasks.spawn(self.clone().connection(stream, permit));
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }

    /// The next connection; `None` on shutdown.
    async fn accept(
        &self,
        listener: &TcpListener,
        permits: &Arc<Semaphore>,
    ) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        let next = async {
            let permit =
                permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => return (stream, permit),
                    Err(error) => {
                        warn!(error = %error, "cannot accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = self.shutdown.cancelled() => None,
            accepted = next => Some(accepted),
        }
    }

    async fn connection(self, stream: TcpStream, _permit: OwnedSemaphorePermit) {
        let handshake = tokio::select! {
            () = self.shutdown.cancelled() => return,
            handshake = self.handshake(stream) => handshake,
        };
        match handshake {
            Ok(stream) => self.requests(stream).await,
            Err(error) => {
                self.metrics.handshake_failed();
                debug!(error = %error, "no TLS connection came about");
            }
        }
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        stream.set_nodelay(true)?;
        timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await?
    }

    async fn requests(self, stream: TlsStream<TcpStream>) {
        let (_, session) = stream.get_ref();
        let peer = session.peer_certificates().and_then(PeerCertificate::new).map(Arc::new);
        let builder = match session.alpn_protocol() {
            Some(b"h2") => self.protocols.http2,
            _ => self.protocols.http1,
        };
        let router = self.router;
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            let answer = router.clone().oneshot(request);
            async { answer.await as Result<Response, Infallible> }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match timeout(DRAIN_TIMEOUT, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return warn!("a connection was cut: its requests did not end in time"),
                }
            }
        };
        if let Err(error) = ended {
            debug!(error, "a connection broke");
        }
    }
}
