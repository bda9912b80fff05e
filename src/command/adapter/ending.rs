//! How the adapter ends: without losing a request where it is told to, and whole where a part of it fails.
//!
//! In: a signal, or a task that ended on its own. Out: the end of every task, in order. Never: half an adapter, and never a
//! request that was accepted and not answered.
//!
//! Told to end, the adapter first says so at `/readyz` and goes on serving, new connections included, for
//! `--shutdown-delay-duration`: whoever sends it requests needs that time to hear of it (kube-apiserver has a flag of that
//! name for the same reason). Then no connection is accepted any more; clients of HTTP/2 get a GOAWAY, and what is under way
//! is answered. The Lease goes last: while it is held, no other replica writes beside a write under way. A second signal
//! ends the delay.

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Tasks;
use crate::command::shutdown;
use crate::config::{AdapterConfig, Live};
use crate::probes::{Condition, Progress};

/// How long requests under way may take when the program ends.
const DRAIN: Duration = Duration::from_secs(10);

/// What ends, and what says when.
pub(super) struct Ending {
    /// Cancelled by the first signal.
    told: CancellationToken,
    /// For the delay that is configured by then.
    live: Live<AdapterConfig>,
    in_service: Condition,
    /// Ends every task but the last.
    pub(super) shutdown: CancellationToken,
    /// Ends the leader election.
    pub(super) lease: CancellationToken,
}

impl Ending {
    /// Adds the condition `shutdown`, which holds until the program is told to end.
    pub(super) fn new(
        told: CancellationToken,
        live: Live<AdapterConfig>,
        progress: &Progress,
    ) -> Self {
        let in_service = progress.add_condition("shutdown");
        in_service.ready();
        Self {
            told,
            live,
            in_service,
            shutdown: CancellationToken::new(),
            lease: CancellationToken::new(),
        }
    }

    /// Waits for the end and brings it about.
    ///
    /// # Errors
    /// Why a task ended on its own.
    pub(super) async fn supervise(self, mut tasks: Tasks) -> anyhow::Result<()> {
        let fault = tokio::select! {
            () = self.leave() => None,
            Some(ended) = tasks.join_next() => Some(match ended {
                Ok(Ok(name)) => anyhow!("{name} ended"),
                Ok(Err(error)) => error,
                Err(error) => anyhow!(error).context("a task panicked"),
            }),
        };
        self.shutdown.cancel();
        let drained = timeout(DRAIN, async {
            while tasks.len() > 1 && tasks.join_next().await.is_some() {}
            self.lease.cancel();
            tasks.join_next().await;
        })
        .await;
        info!(drained = drained.is_ok(), "adapter ends");
        fault.map_or(Ok(()), Err)
    }

    /// Says that it ends, and gives everybody time to hear it.
    async fn leave(&self) {
        self.told.cancelled().await;
        let delay = self.live.current().config.shutdown_delay;
        self.in_service.not_ready("the adapter ends");
        info!(delay_seconds = delay.as_secs_f64(), "told to end, and serves on until others know");
        tokio::select! {
            () = sleep(delay) => {}
            () = shutdown::next_signal() => info!("told again, and waits no longer"),
        }
    }
}
