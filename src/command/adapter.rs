//! `headroom adapter`: the metrics API server and the controller, in a cluster.
//!
//! Every room runs as one task; the first that ends on its own ends the program with its reason, so that Kubernetes
//! restarts a whole adapter and never runs half of one.

use std::sync::Arc;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{configured, shutdown};
use crate::adapter::serving_ca::{ServingCa, ServingCaOptions};
use crate::adapter::serving_certificate::{InstallError, ServingMetrics};
use crate::adapter::serving_files::ServingFiles;
use crate::adapter::{
    AccessReviews, Authentication, Authorization, ClientCas, Delegated, Groups, OwnMetrics, Server,
    ServingCertificate, metrics_routes, serve_plain,
};
use crate::cli::AdapterArgs;
use crate::config::{AdapterConfig, Inputs, Live};
use crate::controller::Controller;
use crate::controller::lease::Election;
use crate::pipeline::{Pipeline, PipelineSetup};
use crate::policy::{Assignment, Board};
use crate::probes::Progress;
use crate::sources::{Limits, ScrapeSetup, Scraper};
use crate::telemetry::Telemetry;
use crate::time::Clock;

mod ending;
pub(in crate::command) mod itself;
#[cfg(test)]
mod tests;

use ending::Ending;

/// Batches that wait for the pipeline; a full queue holds the scrapers back.
const QUEUED_BATCHES: usize = 1024;

/// Runs until SIGINT or SIGTERM.
pub(super) fn run(args: AdapterArgs) -> anyhow::Result<()> {
    Telemetry::init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start tokio")?;
    runtime.block_on(async {
        let told = shutdown::on_signal().context("cannot handle signals")?;
        let registry = prometheus::Registry::new();
        let inputs = Inputs::from_process(args.flags(), args.config.clone());
        let live = configured::start::<AdapterConfig>(inputs, &registry)?;
        let config = live.current().config.clone();
        let client = client(&args).await?;
        let (address, port) = (config.bind_address, config.secure_port);
        let listener = TcpListener::bind((address, port))
            .await
            .with_context(|| format!("cannot listen on {address}:{port} (adapter.securePort)"))?;
        let plain = TcpListener::bind(config.metrics_bind_address).await.with_context(|| {
            let address = config.metrics_bind_address;
            format!("cannot listen on {address} (adapter.metricsBindAddress)")
        })?;
        let parts = Parts::new(args, live, registry, client);
        info!(secure_port = port, "adapter starts");
        let ending = Ending::new(told, parts.live.clone(), &parts.progress);
        let tasks = parts.start(listener, plain, &ending.shutdown, &ending.lease)?;
        ending.supervise(tasks).await
    })
}

async fn client(args: &AdapterArgs) -> anyhow::Result<kube::Client> {
    let mut config = match &args.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("{} does not name a cluster", path.display()))?
        }
        None => {
            kube::Config::incluster().context("not in a cluster, and no --kubeconfig is given")?
        }
    };
    // Every loop has a pace of its own, and a request under way must not wait minutes for a server that answers 503.
    config.default_retry = false;
    kube::Client::try_from(config).context("cannot make a client of the Kubernetes API")
}

type Tasks = JoinSet<anyhow::Result<&'static str>>;

/// What the rooms share.
struct Parts {
    args: AdapterArgs,
    live: Live<AdapterConfig>,
    /// As it was at the start: what these parts take from it needs one.
    config: AdapterConfig,
    client: kube::Client,
    clock: Clock,
    progress: Progress,
    registry: prometheus::Registry,
    board: Arc<Board>,
}

impl Parts {
    fn new(
        args: AdapterArgs,
        live: Live<AdapterConfig>,
        registry: prometheus::Registry,
        client: kube::Client,
    ) -> Self {
        let clock = Clock::start();
        Self {
            args,
            config: live.current().config.clone(),
            live,
            client,
            clock,
            progress: Progress::new(clock),
            registry,
            board: Arc::default(),
        }
    }

    fn start(
        &self,
        listener: TcpListener,
        plain: TcpListener,
        shutdown: &CancellationToken,
        lease: &CancellationToken,
    ) -> anyhow::Result<Tasks> {
        let mut tasks = Tasks::new();
        let leading = self.elect(&mut tasks, lease)?;
        let roster = self.control(&mut tasks, leading.clone(), shutdown);
        self.decide(&mut tasks, roster, shutdown)?;
        self.observe(&mut tasks, shutdown)?;
        let certificate = Arc::new(ServingCertificate::new(self.progress.add_condition("TLS")));
        self.certify(&mut tasks, certificate.clone(), leading, shutdown)?;
        let metrics = OwnMetrics::register(&self.registry)?;
        self.serve(&mut tasks, listener, certificate, metrics.clone(), shutdown);
        let live = self.live.clone();
        let ended = shutdown.clone();
        tasks.spawn(async move {
            configured::follow(live, ended, |config: &AdapterConfig| config.log_level.clone())
                .await;
            Ok("configuration")
        });
        let routes =
            metrics_routes(self.registry.clone(), &self.progress).merge(self.live.routes());
        let ended = shutdown.clone();
        tasks.spawn(async move {
            serve_plain(plain, routes, metrics, ended).await;
            Ok("metrics")
        });
        Ok(tasks)
    }

    /// What is registered and served.
    fn groups(&self) -> Groups {
        Groups { resource_metrics: self.config.resource_metrics, ..Groups::default() }
    }

    /// The adapter is a process like those that it scales.
    fn observe(&self, tasks: &mut Tasks, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let observer = itself::observe(&self.registry, self.clock, shutdown.clone())?;
        tasks.spawn(async move {
            observer.await?;
            Ok("observer")
        });
        Ok(())
    }

    fn elect(
        &self,
        tasks: &mut Tasks,
        lease: &CancellationToken,
    ) -> anyhow::Result<watch::Receiver<bool>> {
        let replica = match &self.args.identity {
            Some(name) => name.clone(),
            None => sysinfo::System::host_name().unwrap_or_else(|_| "headroom-adapter".to_owned()),
        };
        let namespace = &self.config.namespace;
        let (election, leading) = Election::new(
            self.client.clone(),
            namespace,
            &replica,
            &self.progress,
            &self.registry,
        )?;
        let ended = lease.clone();
        tasks.spawn(async move {
            election.run(ended).await;
            Ok("leader election")
        });
        Ok(leading)
    }

    fn control(
        &self,
        tasks: &mut Tasks,
        leader: watch::Receiver<bool>,
        shutdown: &CancellationToken,
    ) -> watch::Receiver<Arc<Vec<Assignment>>> {
        let (roster, assignments) = watch::channel(Arc::default());
        let controller = Controller {
            client: self.client.clone(),
            board: self.board.clone(),
            roster,
            resource_metrics: self.config.resource_metrics,
            leader,
            clock: self.clock,
            progress: self.progress.clone(),
            registry: self.registry.clone(),
        };
        let ended = shutdown.clone();
        tasks.spawn(async move {
            controller.run(ended).await?;
            Ok("controller")
        });
        assignments
    }

    fn decide(
        &self,
        tasks: &mut Tasks,
        roster: watch::Receiver<Arc<Vec<Assignment>>>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let (sender, batches) = mpsc::channel(QUEUED_BATCHES);
        let source = Scraper::new(ScrapeSetup {
            limits: Limits {
                body_bytes: self.config.scrape.body_bytes,
                series_per_pod: self.config.scrape.series_per_pod,
                labels_per_series: self.config.scrape.labels_per_series,
                label_bytes_per_series: self.config.scrape.label_bytes_per_series,
            },
            clock: self.clock,
            batches: sender,
            registry: &self.registry,
        })?;
        let pipeline = Pipeline::new(PipelineSetup {
            roster,
            source,
            batches,
            board: self.board.clone(),
            clock: self.clock,
            progress: &self.progress,
            registry: &self.registry,
        })?;
        let ended = shutdown.clone();
        tasks.spawn(async move {
            pipeline.run(ended).await;
            Ok("pipeline")
        });
        Ok(())
    }

    /// From files where they are given, else from the shared CA.
    fn certify(
        &self,
        tasks: &mut Tasks,
        certificate: Arc<ServingCertificate>,
        leading: watch::Receiver<bool>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let metrics = ServingMetrics::register(&self.registry)?;
        let install = move |chain: &[u8], key: &[u8]| {
            certificate.install(chain, key).map_err(|e| Box::new(e) as InstallError)
        };
        let ended = shutdown.clone();
        if let (Some(chain), Some(key)) =
            (&self.args.tls_cert_file, &self.args.tls_private_key_file)
        {
            let files = ServingFiles::load(chain.clone(), key.clone(), metrics, install)?;
            tasks.spawn(async move {
                files.run(ended).await;
                Ok("serving files")
            });
            return Ok(());
        }
        let options = ServingCaOptions {
            namespace: self.config.namespace.clone(),
            service: self.config.service_name.clone(),
            service_port: 443,
            pod_ip: self.args.pod_ip,
            api_services: self.groups().api_services(),
            take_over: self.args.take_over,
        };
        let ca =
            ServingCa::new(self.client.clone(), options, leading, &self.progress, metrics, install);
        tasks.spawn(async move {
            ca.run(ended).await;
            Ok("serving CA")
        });
        Ok(())
    }

    fn serve(
        &self,
        tasks: &mut Tasks,
        listener: TcpListener,
        certificate: Arc<ServingCertificate>,
        metrics: OwnMetrics,
        shutdown: &CancellationToken,
    ) {
        let cas = Arc::new(ClientCas::new(self.progress.add_condition("client CAs")));
        let server = Server {
            groups: self.groups(),
            board: self.board.clone(),
            clock: self.clock,
            certificate,
            authentication: Authentication::Delegated(Delegated::new(
                cas.clone(),
                self.client.clone(),
            )),
            authorization: Authorization::Delegated(AccessReviews::new(self.client.clone())),
            progress: self.progress.clone(),
            metrics,
            audit: self.config.audit,
            extra: itself::profiles(),
        };
        let (client, ended) = (self.client.clone(), shutdown.clone());
        tasks.spawn(async move {
            cas.follow(client, ended).await;
            Ok("client CAs")
        });
        let ended = shutdown.clone();
        tasks.spawn(async move {
            server.serve(listener, ended).await?;
            Ok("API server")
        });
    }
}
