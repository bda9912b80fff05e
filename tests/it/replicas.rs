//! Several adapters: any of them may end or come at any time, and nobody who reads notices.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::adapter::{Adapter, Replica};
use crate::support::control_plane::ControlPlane;
use crate::support::direct::{DirectClient, Identity, hpa_client};
use crate::support::exporter::Exporter;
use crate::support::process::Signal;
use crate::support::shared::{eventually, run, share};
use crate::support::workload::{PolicyOptions, create, policy};

const NAMESPACE: &str = "replicas";
const NAME: &str = "sample";
const MINUTE: Duration = Duration::from_secs(60);
/// Several looks of [`Service`] at a replica.
const DELAY: Duration = Duration::from_secs(3);
const AUDIT_ID: &str = "5e1fb0e2-91d3-4e36-a1c1-1f6a3b1f7d10";

/// A Service in front of the replicas: each new connection goes to one that said that it is ready when
/// it was last asked, as a kubelet and an EndpointSlice have it. Connections that stand are not touched.
pub(crate) struct Service {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    backends: Arc<Mutex<Vec<Backend>>>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Backend {
    port: u16,
    metrics_url: String,
    ready: bool,
}

impl Service {
    /// A Service with nobody behind it.
    ///
    /// # Errors
    /// There is no free port.
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let backends = Arc::new(Mutex::new(Vec::<Backend>::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(probe(backends.clone()));
        let known = backends.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            let mut turn = 0;
            while let Ok((mut client, _)) = listener.accept().await {
                let ready: Vec<u16> =
                    known.lock().iter().filter(|one| one.ready).map(|one| one.port).collect();
                turn += 1;
                let Some(port) = ready.get(turn % ready.len().max(1)).copied() else { continue };
                connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                        // How it ends is the client's to judge.
                        let _ended = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Ok(Self { address, backends, _tasks: tasks })
    }

    /// Sends requests to the replica once it is ready.
    pub(crate) fn add(&self, replica: &Replica) {
        let (port, metrics_url) = (replica.port, replica.metrics_url());
        self.backends.lock().push(Backend { port, metrics_url, ready: false });
    }

    /// Sends the replica no new connection.
    pub(crate) fn remove(&self, replica: &Replica) {
        self.backends.lock().retain(|backend| backend.port != replica.port);
    }

    /// Whether the replica was ready when it was last asked.
    pub(crate) fn is_ready(&self, replica: &Replica) -> bool {
        self.backends.lock().iter().any(|one| one.port == replica.port && one.ready)
    }
}

async fn probe(backends: Arc<Mutex<Vec<Backend>>>) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    loop {
        let known = backends.lock().clone();
        for backend in known {
            let answer = client.get(format!("{}/readyz", backend.metrics_url)).send().await;
            let ready = answer.is_ok_and(|answer| answer.status().is_success());
            let mut backends = backends.lock();
            if let Some(known) = backends.iter_mut().find(|one| one.port == backend.port) {
                known.ready = ready;
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Those who read all the time, over connections that stand and over new ones.
struct Readers {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    tasks: JoinSet<()>,
}

impl Readers {
    async fn start(plane: &ControlPlane, address: SocketAddr) -> Result<Self> {
        let token = plane.token("kube-system", "horizontal-pod-autoscaler").await?;
        let url = format!("https://{address}");
        let make = || DirectClient::new(plane, &url, Identity::Token(&token));
        let mut readers = Self {
            stop: Arc::default(),
            reads: Arc::default(),
            failures: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..3 {
            readers.read(vec![make()?], Duration::from_millis(10));
        }
        // A client for each read, made beforehand: making one takes longer than reading.
        let fresh = (0..600).map(|_| make()).collect::<Result<Vec<_>>>()?;
        readers.read(fresh, Duration::from_millis(50));
        Ok(readers)
    }

    fn read(&mut self, clients: Vec<DirectClient>, pause: Duration) {
        let (stop, reads, failures) =
            (self.stop.clone(), self.reads.clone(), self.failures.clone());
        let started = Instant::now();
        self.tasks.spawn(async move {
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                let client = &clients[turn % clients.len()];
                turn += 1;
                reads.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = client.demand(NAMESPACE, NAME).await {
                    let at = started.elapsed();
                    failures.lock().push(format!("after {at:.2?}: {error:#}"));
                }
                sleep(pause).await;
            }
        });
    }

    /// How many reads there were, and which failed.
    async fn stop(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        (self.reads.load(Ordering::Relaxed), self.failures.lock().clone())
    }
}

/// Starts a replica that serves on for `delay` when it is told to end, and waits until its Service sends
/// it requests; it must answer the first of them.
async fn joined(
    adapter: &Adapter,
    plane: &ControlPlane,
    service: &Service,
    name: &str,
    delay: Duration,
) -> Result<Replica> {
    let mut replica = adapter.beside(name, delay)?;
    service.add(&replica);
    eventually(MINUTE, "a ready replica", async || match replica.process.exited() {
        Some(status) => bail!("it ended with {status}, see {}", replica.process.log().display()),
        None => Ok(service.is_ready(&replica).then_some(())),
    })
    .await?;
    let client = hpa_client(plane, &format!("https://127.0.0.1:{}", replica.port)).await?;
    client.demand(NAMESPACE, NAME).await.context("it said that it was ready, and has no answer")?;
    Ok(replica)
}

/// Tells a replica to end as Kubernetes does, and waits for it.
async fn left(service: &Service, mut replica: Replica) -> Result<()> {
    replica.process.signal(Signal::Terminate);
    let told = Instant::now();
    eventually(DELAY, "not ready", async || Ok((!service.is_ready(&replica)).then_some(())))
        .await?;
    ensure!(replica.process.exited().is_none(), "it ended before it was known to end");
    let status = loop {
        if let Some(status) = replica.process.exited() {
            break status;
        }
        if told.elapsed() > MINUTE {
            bail!("still there after a minute, see {}", replica.process.log().display());
        }
        sleep(Duration::from_millis(50)).await;
    };
    ensure!(status.success(), "it ended with {status}");
    ensure!(told.elapsed() >= DELAY, "it ended after {:?}, before the delay", told.elapsed());
    service.remove(&replica);
    trace(&replica)
}

/// Whoever cannot wait says it twice.
async fn ended_by_a_second_signal(service: &Service, mut replica: Replica) -> Result<()> {
    replica.process.signal(Signal::Terminate);
    eventually(MINUTE, "not ready", async || Ok((!service.is_ready(&replica)).then_some(())))
        .await?;
    ensure!(replica.process.exited().is_none(), "its delay is four minutes");
    replica.process.signal(Signal::Terminate);
    let status = eventually(MINUTE, "its end", async || Ok(replica.process.exited())).await?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// In the log of a replica: a line about a request of this test leads to the decision that it was
/// answered from, and that to the pod that was scraped before.
fn trace(replica: &Replica) -> Result<()> {
    let text = std::fs::read_to_string(replica.process.log())?;
    let lines: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |message: &'static str| lines.iter().filter(move |line| line["message"] == message);
    let read = of("a decision was read").find(|line| line["span"]["audit_id"] == AUDIT_ID);
    let read = read.context("no line about a read of this test")?;
    ensure!(read["span"]["metric"] == "headroom_demand", "{read}");
    let decided = of("a policy was decided").find(|line| line["decision"] == read["decision"]);
    let decided = decided.with_context(|| format!("no decision {}", read["decision"]))?;
    ensure!(decided["sampled_at"] == read["sampled_at"], "{decided} {read}");
    ensure!(of("a pod was scraped").any(|line| line["span"]["name"] == "scrape"), "no scrape");
    Ok(())
}

/// One read that names itself.
async fn signed_read(plane: &ControlPlane, replica: &Replica) -> Result<()> {
    let client = hpa_client(plane, &format!("https://127.0.0.1:{}", replica.port)).await?;
    let path =
        format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/headroom_demand");
    let answer = client.get(&path, &[("audit-id", AUDIT_ID)]).await?;
    ensure!(answer.status == 200, "{}", answer.body);
    ensure!(answer.version == http::Version::HTTP_2, "{:?} has no GOAWAY", answer.version);
    Ok(())
}

/// The values of a series of the test's policy on each of the replicas.
async fn series(urls: &[String], name: &str) -> Result<Vec<Option<f64>>> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut values = Vec::new();
    for url in urls {
        let text = client.get(format!("{url}/metrics")).send().await?.text().await?;
        let line = text.lines().find(|line| {
            let of_policy = !line.contains("namespace=") || line.contains(NAMESPACE);
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && of_policy
        });
        values.push(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()));
    }
    Ok(values)
}

#[test]
fn a_rolling_update_of_two_replicas_loses_no_request() {
    run(async {
        let cluster = share().await?;
        let (plane, client) = (&cluster.plane, cluster.plane.client());
        drop(cluster.adapter().await?);
        cluster.namespace(NAMESPACE).await?;
        let exporter =
            Exporter::new(plane, NAMESPACE, "# TYPE queue_depth gauge\nqueue_depth 25\n")?;
        create(client.clone(), NAMESPACE, exporter.deployment(NAME, 1)).await?;
        let signals = json!([{"name": "queue",
            "metric": {"name": "queue_depth", "aggregate": "Max", "threshold": "10"}}]);
        create(client, NAMESPACE, policy(NAME, &signals, &PolicyOptions::default())).await?;

        // Until then an error is the truth, which no replica has to hide.
        let shared = cluster.adapter().await?.url();
        let shared = hpa_client(plane, &shared).await?;
        eventually(MINUTE, "a number", async || Ok(shared.demand(NAMESPACE, NAME).await.ok()))
            .await?;

        let service = Service::start().await?;
        let (first, second, shared) = {
            let adapter = cluster.adapter().await?;
            let (first, second) = tokio::try_join!(
                joined(&adapter, plane, &service, "first", DELAY),
                joined(&adapter, plane, &service, "second", DELAY)
            )?;
            (first, second, adapter.metrics_url())
        };
        let urls = [shared, first.metrics_url(), second.metrics_url()];
        eventually(MINUTE, "two followers that agree with the leader", async || {
            let leaders = series(&urls, "headroom_adapter_leader").await?;
            let apart = series(&urls, "headroom_adapter_demand_divergence_ratio").await?;
            let followers = apart.iter().flatten().filter(|ratio| **ratio < 0.05).count();
            let led: f64 = leaders.into_iter().flatten().sum();
            Ok((followers == 2 && (led - 1.0).abs() < 0.1).then_some(()))
        })
        .await?;

        let readers = Readers::start(plane, service.address).await?;
        sleep(Duration::from_secs(1)).await;
        signed_read(plane, &first).await?;
        left(&service, first).await?;
        let third = {
            let adapter = cluster.adapter().await?;
            joined(&adapter, plane, &service, "third", 4 * MINUTE).await?
        };
        signed_read(plane, &second).await?;
        left(&service, second).await?;
        sleep(Duration::from_secs(1)).await;
        let (reads, failures) = readers.stop().await;
        ended_by_a_second_signal(&service, third).await?;
        cluster.delete_namespace(NAMESPACE).await?;
        let kinds: HashSet<&String> = failures.iter().take(10).collect();
        ensure!(failures.is_empty(), "{} of {reads} reads failed: {kinds:#?}", failures.len());
        ensure!(reads > 300, "only {reads} reads: nothing was shown");
        Ok(())
    });
}
