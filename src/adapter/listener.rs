//! Connections: accept, TLS or none, HTTP/2 or 1.1, idling, drain.
//!
//! In: a bound socket and a router. Out: requests that carry the certificate their client holds and the address it came from.
//! Never: an unbounded number of connections, headers or seconds, and never all connections to one address.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::access::{Recognised, SourceAddress};
use super::authentication::source_of;
use super::client_cas::PeerCertificate;
use super::front::{Front, routed};
use super::own_metrics::OwnMetrics;
use super::shares::{Share, Shares};

/// As long as Go's clients wait for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Beyond this hyper itself refuses a head; [`super::limits`] answers sooner, with a Status.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
const MAX_STREAMS: u32 = 250;
/// What a client may send ahead of its being read, on one request and on all: no body here is long.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// For requests that are under way when the server stops, and answers that are still read when an idle connection is closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection without any request yet: hyper waits for the preface of HTTP/2 even when told to end.
const UNUSED_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Before the next attempt, when accepting failed (mostly: no file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections at once, those in a handshake included; of one address as many as are free.
    pub(super) connections: usize,
    /// For a request's head, which on HTTP/1.1 includes idling before it.
    pub(super) header_read: Duration,
    /// A connection is closed when for so long no request of a sender who is known was under way on it.
    pub(super) idle: Duration,
    /// The same for a connection that never had such a request, and for all when less than half of the connections are free.
    pub(super) idle_when_scarce: Duration,
}

impl Bounds {
    /// Go clients share one HTTP/2 connection each, and the aggregator asks every 30 s.
    pub(super) const API: Self = Self {
        connections: 1024,
        header_read: Duration::from_secs(30),
        idle: Duration::from_secs(600),
        idle_when_scarce: Duration::from_secs(40),
    };
    /// A scraper keeps one connection between scrapes, which are mostly a minute apart. Nobody is known here.
    pub(super) const PLAIN: Self = Self {
        connections: 128,
        header_read: Duration::from_secs(90),
        idle: Duration::from_secs(90),
        idle_when_scarce: Duration::from_secs(90),
    };
}

/// How connections are spoken on.
#[derive(Clone)]
struct Protocols {
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
}

impl Protocols {
    fn new(header_read: Duration) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(header_read)
            .max_buf_size(usize::try_from(MAX_HEADER_BYTES).unwrap_or(usize::MAX));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_header_list_size(MAX_HEADER_BYTES);
        // The protocol is agreed on by ALPN; guessing it from the first bytes would wait for them without a limit.
        Self { http1: builder.clone().http1_only(), http2: builder.http2_only() }
    }
}

/// How bytes become requests.
#[derive(Clone)]
enum Transport {
    Tls(TlsAcceptor),
    Plain,
}

/// Who answers.
#[derive(Clone)]
pub(super) enum Routes {
    /// To those who may ask.
    Guarded(Arc<Front>),
    /// To anyone.
    Open(Router),
}

impl Routes {
    async fn answer(self, request: Request) -> Response {
        match self {
            Self::Guarded(front) => front.answer(request).await,
            Self::Open(routes) => routed(&routes, request).await,
        }
    }
}

/// What every connection needs.
#[derive(Clone)]
pub(super) struct Connections {
    transport: Transport,
    routes: Routes,
    metrics: OwnMetrics,
    protocols: Protocols,
    bounds: Bounds,
    shares: Arc<Shares>,
    shutdown: CancellationToken,
}

impl Connections {
    /// HTTPS.
    pub(super) fn tls(
        tls: Arc<rustls::ServerConfig>,
        routes: Routes,
        metrics: OwnMetrics,
        shutdown: CancellationToken,
    ) -> Self {
        let transport = Transport::Tls(TlsAcceptor::from(tls));
        Self::new(transport, routes, metrics, shutdown, Bounds::API)
    }

    /// HTTP/1.1 without TLS.
    pub(super) fn plain(routes: Router, metrics: OwnMetrics, shutdown: CancellationToken) -> Self {
        Self::new(Transport::Plain, Routes::Open(routes), metrics, shutdown, Bounds::PLAIN)
    }

    fn new(
        transport: Transport,
        routes: Routes,
        metrics: OwnMetrics,
        shutdown: CancellationToken,
        bounds: Bounds,
    ) -> Self {
        let protocols = Protocols::new(bounds.header_read);
        let shares = Shares::new(bounds.connections);
        Self { transport, routes, metrics, protocols, bounds, shares, shutdown }
    }

    /// The same with other bounds.
    #[cfg(test)]
    pub(super) fn within(self, bounds: Bounds) -> Self {
        Self::new(self.transport, self.routes, self.metrics, self.shutdown, bounds)
    }

    /// Serves until `shutdown`, then finishes what is under way, for at most [`DRAIN_TIMEOUT`].
    pub(super) async fn serve(self, listener: TcpListener) {
        let tasks = TaskTracker::new();
        while let Some((stream, address)) = self.accept(&listener).await {
            match self.shares.take(&source_of(address)) {
                Some(share) => drop(tasks.spawn(self.clone().connection(stream, address, share))),
                None => self.metrics.refused_as_too_many("connections"),
            }
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }

    /// The next connection; `None` on shutdown.
    async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, IpAddr)> {
        let next = async {
            loop {
                match listener.accept().await {
                    Ok((stream, address)) => return (stream, address.ip()),
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

    async fn connection(self, stream: TcpStream, address: IpAddr, _share: Share) {
        if let Err(error) = stream.set_nodelay(true) {
            return debug!(error = %error, "a connection broke before its first byte");
        }
        let Transport::Tls(acceptor) = &self.transport else {
            let http1 = self.protocols.http1.clone();
            return self.requests(stream, http1, address, None).await;
        };
        let handshake = tokio::select! {
            () = self.shutdown.cancelled() => return,
            handshake = handshake(acceptor, stream) => handshake,
        };
        match handshake {
            Ok(stream) => {
                let (_, session) = stream.get_ref();
                let peer = session.peer_certificates().and_then(PeerCertificate::new);
                let protocol = match session.alpn_protocol() {
                    Some(b"h2") => self.protocols.http2.clone(),
                    _ => self.protocols.http1.clone(),
                };
                self.requests(stream, protocol, address, peer.map(Arc::new)).await;
            }
            Err(error) => {
                self.metrics.handshake_failed();
                debug!(error = %error, "no TLS connection came about");
            }
        }
    }

    async fn requests(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        protocol: auto::Builder<TokioExecutor>,
        address: IpAddr,
        peer: Option<Arc<PeerCertificate>>,
    ) {
        let usage = Arc::new(Usage::new(Instant::now()));
        let (routes, of_requests) = (self.routes, usage.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(SourceAddress(address));
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            let under_way = UnderWay::new(of_requests.clone());
            let answer = routes.clone().answer(request.map(Body::new));
            async move {
                let answer = answer.await;
                under_way.answered(answer.extensions().get::<Recognised>().is_some());
                Ok::<Response, Infallible>(answer)
            }
        });
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = self.shutdown.cancelled() => None,
            () = usage.idle(&self.bounds, &self.shares) => {
                self.metrics.connection_closed_idle();
                None
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            // On HTTP/2 a GOAWAY, after which requests that are on their way are still answered.
            None => {
                connection.as_mut().graceful_shutdown();
                let mut drained = timeout(UNUSED_DRAIN_TIMEOUT, connection.as_mut()).await;
                if drained.is_err() && usage.ever() {
                    drained = timeout(DRAIN_TIMEOUT - UNUSED_DRAIN_TIMEOUT, connection).await;
                }
                match drained {
                    Ok(ended) => ended,
                    Err(_) if usage.ever() => {
                        return warn!("a connection was cut: its requests did not end in time");
                    }
                    Err(_) => return debug!("a connection was cut that never had a request"),
                }
            }
        };
        if let Err(error) = ended {
            debug!(error, "a connection broke");
        }
    }
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await?
}

/// Whether a connection is of use.
#[derive(Debug)]
struct Usage(Mutex<Used>);

#[derive(Debug)]
struct Used {
    under_way: usize,
    ever: bool,
    /// A request of someone who is known was answered.
    by_someone: bool,
    /// When that last was; before, when the connection came about.
    last: Instant,
}

impl Usage {
    fn new(now: Instant) -> Self {
        Self(Mutex::new(Used { under_way: 0, ever: false, by_someone: false, last: now }))
    }

    /// Whether there was any request.
    fn ever(&self) -> bool {
        self.0.lock().ever
    }

    /// Returns once the connection was of no use for as long as the bounds allow.
    async fn idle(&self, bounds: &Bounds, shares: &Shares) {
        loop {
            let now = Instant::now();
            let left = {
                let used = self.0.lock();
                let kept = used.by_someone && !shares.scarce();
                let allowed = if kept { bounds.idle } else { bounds.idle_when_scarce };
                let idle = now.duration_since(used.last);
                match used.under_way {
                    0 => allowed.saturating_sub(idle),
                    _ => allowed,
                }
            };
            if left.is_zero() {
                return;
            }
            // Connections can become scarce meanwhile.
            sleep(left.min(bounds.idle_when_scarce)).await;
        }
    }
}

/// One request.
struct UnderWay(Arc<Usage>);

impl UnderWay {
    fn new(usage: Arc<Usage>) -> Self {
        {
            let mut used = usage.0.lock();
            used.under_way += 1;
            used.ever = true;
        }
        Self(usage)
    }

    fn answered(self, recognised: bool) {
        if recognised {
            let mut used = self.0.0.lock();
            used.by_someone = true;
            used.last = Instant::now();
        }
    }
}

/// Also of a request whose client went away.
impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.lock().under_way -= 1;
    }
}
