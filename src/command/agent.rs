//! `headroom agent`: the sidecar beside a service in any language.

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{configured, shutdown};
use crate::agent::sidecar::Sidecar;
use crate::cli::AgentArgs;
use crate::config::{AgentConfig, Inputs};
use crate::probes::Progress;
use crate::telemetry::Telemetry;
use crate::time::Clock;

/// Runs until SIGINT or SIGTERM.
pub(super) fn run(args: &AgentArgs) -> anyhow::Result<()> {
    Telemetry::init();
    // One thread is enough to pass bytes on, and leaves the pod's CPU to the service.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start tokio")?;
    runtime.block_on(async {
        let stop = shutdown::on_signal().context("cannot handle signals")?;
        let registry = prometheus::Registry::new();
        let inputs = Inputs::from_process(args.flags(), args.config.clone());
        let live = configured::start::<AgentConfig>(inputs, &registry)?;
        let config = live.current().config.clone();
        let listener = TcpListener::bind(config.bind)
            .await
            .with_context(|| format!("cannot listen on {} (agent.bind)", config.bind))?;
        let address = listener.local_addr().context("cannot tell the address")?;
        let clock = Clock::start();
        let progress = Progress::new(clock);
        let sidecar = Sidecar::new(live.clone(), registry, clock)?;
        info!(address = %address, service = config.service, "the sidecar serves");
        let following = CancellationToken::new();
        let level = |config: &AgentConfig| config.log_level.clone();
        tokio::select! {
            () = sidecar.serve(listener, &progress, stop) => {}
            () = configured::follow(live, following, level) => {}
        }
        info!("the sidecar ends");
        Ok(())
    })
}
