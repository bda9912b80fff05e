//! `headroom agent`: the sidecar beside a service in any language.
//!
//! In: flags and signals. Out: a sidecar that listens, until it is told to stop. Never: half a start: an address that is taken or
//! a credential that cannot be had ends it with a sentence.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{configured, shutdown};
use crate::agent::sidecar::Sidecar;
use crate::agent::{Authenticator, ClusterAccess, TokenFile};
use crate::cli::AgentArgs;
use crate::config::{AgentConfig, Credential, Inputs};
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
        let listener = listen(config.bind, "agent.bind").await?;
        let debug = match config.debug.bind {
            Some(address) => Some(listen(address, "agent.debug.bind").await?),
            None => None,
        };
        let authenticator = authenticator(&config.debug.credential).await?;
        let address = listener.local_addr().context("cannot tell the address")?;
        let clock = Clock::start();
        let progress = Progress::new(clock);
        let sidecar = Sidecar::new(live.clone(), registry, clock, authenticator)?;
        info!(address = %address, service = config.service, "the sidecar serves");
        let following = CancellationToken::new();
        let level = |config: &AgentConfig| config.log_level.clone();
        tokio::select! {
            () = sidecar.serve(listener, debug, &progress, stop) => {}
            () = configured::follow(live, following, level) => {}
        }
        info!("the sidecar ends");
        Ok(())
    })
}

async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({key})"))
}

async fn authenticator(credential: &Credential) -> anyhow::Result<Option<Arc<dyn Authenticator>>> {
    Ok(match credential {
        Credential::None => None,
        Credential::TokenFile(file) => Some(Arc::new(TokenFile::new(file))),
        Credential::TokenReview => {
            let client = kube::Client::try_default()
                .await
                .context("agent.debug.tokenReview needs the cluster's configuration")?;
            Some(Arc::new(ClusterAccess::new(client, Vec::new())))
        }
    })
}
