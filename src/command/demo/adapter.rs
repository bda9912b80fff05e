//! The demo's adapter: the pipeline and the API server of the real one, with one constant policy and one pod.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::super::adapter::itself::profiles;
use super::{credentials, scenario};
use crate::adapter::{
    Authentication, Authorization, Groups, OwnMetrics, Server, ServingCertificate, StaticToken,
};
use crate::cli::DemoArgs;
use crate::config::AuditLevel;
use crate::pipeline::{Pipeline, PipelineSetup};
use crate::policy::{Assignment, Board, Pod, Workload};
use crate::probes::Progress;
use crate::sample::{Labels, PodKey};
use crate::sources::{Limits, ScrapeSetup, Scraper};
use crate::time::{Clock, Timestamp, wall_now};

/// Serves until told to end.
pub(super) async fn run(args: &DemoArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let folder = args.credentials.as_deref().context("--credentials is missing")?;
    let token = args.token.as_deref().context("HEADROOM_DEMO_TOKEN is not set")?;
    let clock = Clock::start();
    let (progress, registry) = (Progress::new(clock), prometheus::Registry::new());
    let board = Arc::<Board>::default();

    let (sender, batches) = mpsc::channel(16);
    let source = Scraper::new(ScrapeSetup {
        limits: Limits::default(),
        clock,
        batches: sender,
        registry: &registry,
    })?;
    let assignments = vec![assignment(args.agent_address())?];
    let (_roster, roster) = watch::channel(Arc::new(assignments));
    let pipeline = Pipeline::new(PipelineSetup {
        roster,
        source,
        batches,
        board: board.clone(),
        clock,
        progress: &progress,
        registry: &registry,
    })?;
    let pipeline = tokio::spawn(pipeline.run(shutdown.clone()));

    let certificate = Arc::new(ServingCertificate::new(progress.add_condition("TLS")));
    let read = |name| fs::read(folder.join(name)).with_context(|| format!("cannot read {name}"));
    certificate.install(&read(credentials::CERTIFICATE)?, &read(credentials::KEY)?)?;
    let server = Server {
        groups: Groups::default(),
        board,
        clock,
        certificate,
        authentication: Authentication::StaticToken(StaticToken::new(token)),
        authorization: Authorization::SuperusersOnly,
        progress: progress.clone(),
        metrics: OwnMetrics::register(&registry)?,
        audit: AuditLevel::Off,
        extra: profiles(),
    };
    let address = args.adapter_address();
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    server.serve(listener, shutdown).await?;
    pipeline.await.context("the pipeline panicked")
}

fn assignment(agent: SocketAddr) -> anyhow::Result<Assignment> {
    let pod = Pod {
        key: PodKey("demo".into()),
        name: "sample".into(),
        ip: Some(agent.ip()),
        port: Some(agent.port()),
        started_at: Some(Timestamp::default()),
        ready_since: Some(wall_now()),
        ended: false,
        cpu_limit: None,
        labels: Labels::default(),
        container: None,
    };
    Ok(Assignment::Active {
        policy: Arc::new(scenario::policy(agent.port())?),
        workload: Arc::new(Workload {
            spec_replicas: 1,
            status_replicas: 1,
            resource: "deployments".into(),
            pods: vec![pod],
            ..Workload::default()
        }),
    })
}
