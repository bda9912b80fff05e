//! The sample service: each request makes one signal rise, hold, and fall back.
//!
//! In: requests with amounts, each bounded. Out: real tasks, heap, allocations, CPU time, waits and a queue, seen by the
//! agent that it embeds. Never: an amount without a bound, alone or in total; what is too much is refused with 429.

mod api;
mod work;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agent::Agent;
use work::Workshop;

/// How long requests in flight may take after the end was asked for.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// What the service is told at its start.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Where it serves; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Where its agent serves `/metrics` and `/debug/pprof/`.
    pub agent_bind: SocketAddr,
    /// How many `/work` requests are served at once; the others wait.
    pub concurrency: usize,
    /// How long `/ready` says no.
    pub startup_delay: Duration,
}

impl ServiceOptions {
    /// Eight requests at once, ready at once.
    #[must_use]
    pub fn new(bind: SocketAddr, agent_bind: SocketAddr) -> Self {
        Self { bind, agent_bind, concurrency: 8, startup_delay: Duration::ZERO }
    }
}

/// Why the service does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The address is taken or not of this machine.
    #[error("cannot serve on {address}")]
    Bind {
        /// As it was asked for.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The agent did not start.
    #[error("cannot start the agent of the sample service")]
    Agent(#[source] crate::agent::AgentError),
    /// The queue's gauge has the name of another metric.
    #[error("cannot register the metric of the queue")]
    Metric(#[source] prometheus::Error),
    /// Accepting connections failed.
    #[error("the sample service stopped serving")]
    Serve(#[source] io::Error),
}

/// A sample service that holds its ports and does not serve yet.
#[derive(Debug)]
pub struct Service {
    listener: TcpListener,
    address: SocketAddr,
    agent: Agent,
    workshop: Workshop,
}

impl Service {
    /// Takes both ports and starts the agent.
    ///
    /// # Errors
    /// [`ServiceError::Bind`], [`ServiceError::Agent`], [`ServiceError::Metric`].
    pub async fn start(options: ServiceOptions) -> Result<Self, ServiceError> {
        let bind = |source| ServiceError::Bind { address: options.bind, source };
        let listener = TcpListener::bind(options.bind).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let agent = Agent::builder()
            .service("sample")
            .version(env!("CARGO_PKG_VERSION"))
            .bind(options.agent_bind)
            .start()
            .map_err(ServiceError::Agent)?;
        let workshop = Workshop::new(options.concurrency, options.startup_delay);
        let registry = agent.registry();
        registry.register(Box::new(workshop.queue_depth())).map_err(ServiceError::Metric)?;
        Ok(Self { listener, address, agent, workshop })
    }

    /// Where requests are served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the agent serves.
    #[must_use]
    pub fn agent_address(&self) -> SocketAddr {
        self.agent.local_addr()
    }

    /// Serves until `shutdown`, then finishes the requests in flight, for at most ten seconds.
    ///
    /// # Errors
    /// [`ServiceError::Serve`] if connections can no longer be accepted.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), ServiceError> {
        info!(address = %self.address, agent = %self.agent_address(), "the sample service runs");
        let workshop = self.workshop;
        let routes = api::routes(workshop.clone()).layer(self.agent.http_layer());
        let server = axum::serve(self.listener, routes)
            .with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let too_late = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN_LIMIT).await;
        };
        let outcome = tokio::select! {
            outcome = server => outcome.map_err(ServiceError::Serve),
            () = too_late => {
                warn!(limit_seconds = DRAIN_LIMIT.as_secs(), "requests in flight were cut off");
                Ok(())
            }
        };
        workshop.close().await;
        let agent = self.agent;
        if tokio::task::spawn_blocking(move || agent.shutdown()).await.is_err() {
            warn!("the agent did not end in order");
        }
        outcome
    }
}

/// Starts the service and serves until `shutdown`.
///
/// # Errors
/// As [`Service::start`] and [`Service::serve`].
pub async fn run(options: ServiceOptions, shutdown: CancellationToken) -> Result<(), ServiceError> {
    Service::start(options).await?.serve(shutdown).await
}

#[cfg(test)]
mod tests;

/// The tasks that hold something, and the signal that ends them early.
#[derive(Clone, Debug, Default)]
struct Holders {
    tasks: TaskTracker,
    end: CancellationToken,
}
