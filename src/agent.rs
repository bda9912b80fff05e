//! Serve the signals of this process: `/metrics`, `/debug/pprof/*` and probes, from inside a service.
//!
//! In: the service's tokio runtime and its requests. Out: an HTTP server of its own, and a tower layer for the service's
//! router. Never: work on the service's threads beyond that layer, a canary and a few empty tasks that find out which worker
//! runs where, and the samples of the profilers. Reading and serving have threads of their own, so a service that is saturated, blocked or throttled still answers.
//!
//! ```no_run
//! headroom::profiled_jemalloc!();
//!
//! # async fn service() -> Result<(), Box<dyn std::error::Error>> {
//! let agent = headroom::agent::Agent::builder().service("checkout").start()?;
//! let app: axum::Router = axum::Router::new().layer(agent.http_layer());
//! # let _ = app;
//! # Ok(())
//! # }
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use prometheus::Registry;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::pprof;
use crate::probes::Progress;
use crate::signals::Collectors;
use crate::time::Clock;

mod access;
mod collector;
mod evidence;
mod exposition;
mod http_layer;
mod jemalloc;
mod server;
#[cfg(feature = "adapter")]
pub mod sidecar;
#[cfg(test)]
mod tests;
mod thread;

/// What `fuzz/` drives.
#[cfg(all(any(fuzzing, test), feature = "adapter"))]
#[doc(hidden)]
pub mod fuzzing {
    pub use super::exposition::read_any_accept;
    pub use super::http_layer::read_any_traceparent;
    pub use super::sidecar::read_any_target;
}

pub use crate::pprof::tasks::{Instrumented, instrument, spawn};
pub use crate::signals::allocator::Jemalloc;
#[cfg(feature = "adapter")]
pub use access::ClusterAccess;
pub use access::{Access, Authenticator, AuthenticatorError, TokenFile, Verdict};
pub use evidence::{EvidenceOptions, PinRule, RingLimits};
pub use http_layer::{HttpLayer, HttpService, ObservedResponse};
#[doc(hidden)]
pub use jemalloc::MALLOC_CONF;

use access::Gate;
#[cfg(feature = "adapter")]
pub(crate) use collector::Registered;
use collector::{Reserved, SignalCollector};
use evidence::{Evidence, Subject};
use exposition::{Exposition, Format};
use server::{Evicted, Routes, Sources};

/// The port of the agent unless the service names another.
pub const DEFAULT_PORT: u16 = 9469;

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The builder was started outside a tokio runtime.
    #[error("the agent must be started inside the service's tokio runtime")]
    NoRuntime(#[from] tokio::runtime::TryCurrentError),
    /// The address cannot be served on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The agent's thread or its runtime cannot be made.
    #[error("cannot start the agent's thread")]
    Thread(#[source] io::Error),
    /// A rule of the evidence names a signal that does not exist.
    #[error("{0} is no signal: see headroom::signals::CATALOGUE")]
    UnknownSignal(String),
    /// A metric of the agent cannot be registered.
    #[error("cannot register the agent's metrics")]
    Register(#[from] prometheus::Error),
}

/// What an agent is started with.
#[derive(Clone, Debug)]
#[must_use = "an agent that is not started serves nothing"]
pub struct AgentBuilder {
    service: String,
    version: String,
    address: SocketAddr,
    debug_address: Option<SocketAddr>,
    authenticator: Option<Arc<dyn Authenticator>>,
    evidence: EvidenceOptions,
}

impl AgentBuilder {
    /// The service's name, as profiles and `headroom_agent_info` carry it.
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = name.into();
        self
    }

    /// The service's version, as profiles carry it.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Where to serve; port 0 takes a free one. Default: port 9469 of every address.
    pub fn bind(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Serves `/debug/` there alone, apart from metrics and probes. Default: beside them.
    pub fn bind_debug(mut self, address: SocketAddr) -> Self {
        self.debug_address = Some(address);
        self
    }

    /// Asks for a bearer token under `/debug/`. Without one everybody who reaches the address may read profiles, and only
    /// loopback may change something.
    pub fn authenticator(mut self, authenticator: impl Authenticator + 'static) -> Self {
        self.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// What the ring of the last minute keeps, and what pins it by itself.
    pub fn evidence(mut self, options: EvidenceOptions) -> Self {
        self.evidence = options;
        self
    }

    /// Starts serving. The runtime this is called in is the one that is watched.
    ///
    /// # Errors
    /// [`AgentError`]: no runtime, the address is taken, a rule names no signal, or the system refuses a thread.
    pub fn start(self) -> Result<Agent, AgentError> {
        let service_runtime = Handle::try_current()?;
        let is_known = |rule: &&PinRule| crate::signals::catalogue::family(&rule.signal).is_some();
        if let Some(rule) = self.evidence.rules.iter().find(|rule| !is_known(rule)) {
            return Err(AgentError::UnknownSignal(rule.signal.clone()));
        }
        let (listener, local_addr) = listen(self.address)?;
        let debug = self.debug_address.map(listen).transpose()?;
        let (debug_listener, debug_addr) = debug.unzip();

        let clock = Clock::start();
        let progress = Progress::new(clock);
        let registry = Registry::new();
        registry.register(Box::new(Reserved::new()?))?;
        let (http_layer, evicted) = (HttpLayer::default(), Evicted::default());
        let collectors = Arc::new(Mutex::new(Collectors::start(&service_runtime, clock)));
        let (service, watched) = (self.service.clone(), collectors.clone());
        let signals = SignalCollector::new(service, clock, watched, evicted.clone());
        let exposition = Exposition::new(registry.clone(), http_layer.clone(), signals);
        let stop = CancellationToken::new();
        let service = pprof::Service { name: self.service, version: self.version };
        let subject = Subject::Itself(service.clone(), service_runtime.clone());
        let evidence = Evidence::new(subject, clock, self.evidence);
        let part = thread::AgentThread {
            listener,
            debug_listener,
            routes: Routes {
                exposition: exposition.clone(),
                progress: progress.clone(),
                service,
                service_runtime: service_runtime.clone(),
                sources: Sources::new(collectors.clone(), clock),
                evidence,
                gate: Gate::new(self.authenticator),
            },
            http_layer: http_layer.clone(),
            evicted,
            collectors,
            polls: pprof::block::Watcher::new(&service_runtime, clock.now().monotonic),
            clock,
            stop: stop.clone(),
        };
        let thread = start_thread(part)?;
        tracing::info!(address = %local_addr, "the agent serves");
        Ok(Agent {
            local_addr,
            debug_addr: debug_addr.unwrap_or(local_addr),
            registry,
            exposition,
            progress,
            http_layer,
            stop,
            thread: Some(thread),
        })
    }
}

/// A listener that does not block, and its address.
fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), AgentError> {
    let bind = |source| AgentError::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(bind)?;
    listener.set_nonblocking(true).map_err(bind)?;
    let local_addr = listener.local_addr().map_err(bind)?;
    Ok((listener, local_addr))
}

/// Starts the thread and waits until its runtime exists.
fn start_thread(part: thread::AgentThread) -> Result<JoinHandle<()>, AgentError> {
    let (started, start) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("headroom-agent".to_owned())
        .spawn(move || part.run(&started))
        .map_err(AgentError::Thread)?;
    let gone = || io::Error::other("the thread ended before it served");
    start.recv().unwrap_or_else(|_| Err(gone())).map_err(AgentError::Thread)?;
    Ok(thread)
}

/// A running agent. Dropping it stops serving and ends its thread.
#[derive(Debug)]
pub struct Agent {
    local_addr: SocketAddr,
    debug_addr: SocketAddr,
    registry: Registry,
    exposition: Exposition,
    progress: Progress,
    http_layer: HttpLayer,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// An agent for a nameless service on port 9469 of every address.
    pub fn builder() -> AgentBuilder {
        AgentBuilder {
            service: "service".to_owned(),
            version: String::new(),
            address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)),
            debug_address: None,
            authenticator: None,
            evidence: EvidenceOptions::default(),
        }
    }

    /// Where the agent serves.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where `/debug/` is served: the same address unless the builder was given another.
    #[must_use]
    pub const fn debug_addr(&self) -> SocketAddr {
        self.debug_addr
    }

    /// The registry behind `/metrics`, for the service's own metrics. A collector registered here runs at every scrape, on a
    /// thread of the agent: scrapes fail while one takes longer than 2 s. The agent's own families are in `/metrics` but
    /// not in [`Registry::gather`]; their names are taken.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What `/metrics` answers to that `Accept` header, with its content type, for a service that also serves it elsewhere.
    #[must_use]
    pub fn metrics(&self, accept: Option<&str>) -> (&'static str, Vec<u8>) {
        let format = Format::negotiate(accept);
        (format.content_type(), self.exposition.body(format))
    }

    /// Where the service adds conditions of its readiness and loops of its liveness; the agent's probes answer from it.
    #[must_use]
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The layer that measures requests: `router.layer(agent.http_layer())`, after the routes were added.
    #[must_use]
    pub fn http_layer(&self) -> HttpLayer {
        self.http_layer.clone()
    }

    /// Stops serving and waits for the thread: at most about a second, for answers that are being written.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the agent's thread panicked");
        }
    }
}
