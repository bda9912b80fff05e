//! A constant reading load on two replicas behind one Service, while one fault after the other comes.
//!
//! Every pod shows the same number all the time, so each answer is either the known demand or an error. What is counted: reads
//! by way and by fault, failures by kind, and for how long a reader went without an answer. A reader that has an answer again
//! before the controller's next pass has cost its autoscaler one pass and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::replicas::Service;
use crate::sla::{add_to_report, namespace};
use crate::support::adapter::{Adapter, Installation, Replica};
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::direct::{DirectClient, Identity};
use crate::support::paper_node::{PaperNode, paper_deployment};
use crate::support::shared::{eventually, run};
use crate::support::timeline::demand;
use crate::support::workload::{PolicyOptions, apply, policy};

const NAMESPACE: &str = "faults";
const NAME: &str = "sample";
/// Half of the threshold below: ten pods demand five.
const METRICS: &str = "# TYPE tokio_alive_tasks gauge\ntokio_alive_tasks 50\n";
const PODS: i32 = 10;
const HUNG: usize = 2;
/// With nobody silent, and with one or two of the ten, of which each then counts as one whole pod.
const RIGHT: [f64; 3] = [5.0, 5.5, 6.0];
const RELOADS: u32 = 100;
const MINUTE: Duration = Duration::from_secs(60);
/// From one pass of the controller to its next.
const PERIOD: Duration = Duration::from_secs(15);
const WAYS: [&str; 2] = ["direct", "aggregated"];

/// What became of the reads of one way during one fault.
#[derive(Clone, Debug, Default)]
struct Tally {
    reads: usize,
    failures: BTreeMap<String, usize>,
    wrong: Vec<f64>,
    /// Answers in which silent pods were filled in.
    filled_in: usize,
    longest_without: Duration,
}

impl Tally {
    fn failed(&self) -> usize {
        self.failures.values().sum()
    }
}

/// What the readers write and the test reads.
#[derive(Debug, Default)]
struct Book {
    stop: AtomicBool,
    /// Whether silent pods may have been filled in.
    filled_in: AtomicBool,
    /// How many changes of the file each killed replica had taken over.
    reloads_of_killed: Mutex<Vec<f64>>,
    /// The faults so far, each with a tally per way.
    faults: Mutex<Vec<(String, [Tally; 2])>>,
}

impl Book {
    fn begin(&self, fault: &str) {
        eprintln!("{fault}");
        self.faults.lock().push((fault.to_owned(), Default::default()));
    }

    /// Writes one read down where it began; `without` is for how long its reader had no answer before it.
    fn note(&self, fault: usize, way: usize, read: &Result<f64, String>, without: Duration) {
        let right = if self.filled_in.load(Ordering::Relaxed) { &RIGHT[..] } else { &RIGHT[..1] };
        let mut faults = self.faults.lock();
        let tally = &mut faults[fault].1[way];
        tally.reads += 1;
        tally.longest_without = tally.longest_without.max(without);
        match read {
            Ok(value) if right.iter().any(|right| (value - right).abs() < 1e-9) => {
                tally.filled_in += usize::from(*value > RIGHT[0] + 0.1);
            }
            Ok(value) => tally.wrong.push(*value),
            Err(kind) => *tally.failures.entry(kind.clone()).or_default() += 1,
        }
    }
}

/// Reads again and again until the end.
async fn read(book: Arc<Book>, way: usize, ask: impl AsyncFn() -> Result<f64, String>) {
    let mut answered = Instant::now();
    let mut failing = false;
    while !book.stop.load(Ordering::Relaxed) {
        let fault = book.faults.lock().len() - 1;
        let answer = ask().await;
        let without = if failing || answer.is_err() { answered.elapsed() } else { Duration::ZERO };
        failing = answer.is_err();
        if !failing {
            answered = Instant::now();
        }
        book.note(fault, way, &answer, without);
        sleep(Duration::from_millis(20)).await;
    }
}

async fn ask_directly(client: &DirectClient) -> Result<f64, String> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/headroom_demand?labelSelector=policy%3D{NAME}"
    );
    let answer = client.get(&path, &[]).await.map_err(|_| "connection lost".to_owned())?;
    if answer.status != 200 {
        let (reason, message) = (&answer.body["reason"], &answer.body["message"]);
        return Err(format!("{} {reason} {message}", answer.status));
    }
    let value = answer.body["items"][0]["value"].as_str();
    let value = value.and_then(|value| value.parse::<headroom::quantity::Quantity>().ok());
    value.map(|value| value.to_f64()).ok_or_else(|| format!("200 without a value: {}", answer.body))
}

async fn ask_aggregated(client: &kube::Client) -> Result<f64, String> {
    demand(client, NAMESPACE, NAME).await.map_err(|error| {
        match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => {
                format!("{} {} {}", status.code, status.reason, status.message)
            }
            _ => format!("{error:#}"),
        }
    })
}

/// Four that ask directly and two that ask kube-apiserver.
async fn readers(plane: &ControlPlane, service: &Service, book: &Arc<Book>) -> Result<JoinSet<()>> {
    let token = plane.token("kube-system", "horizontal-pod-autoscaler").await?;
    let url = format!("https://{}", service.address);
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let client = DirectClient::new(plane, &url, Identity::Token(&token))?;
        readers.spawn(read(Arc::clone(book), 0, async move || ask_directly(&client).await));
    }
    for _ in 0..2 {
        let client = plane.client();
        readers.spawn(read(Arc::clone(book), 1, async move || ask_aggregated(&client).await));
    }
    Ok(readers)
}

/// Starts a replica and waits until its Service sends it requests.
async fn join(adapter: &Adapter, service: &Service, name: &str) -> Result<Replica> {
    let mut replica = adapter.beside(name, Duration::from_secs(3))?;
    service.add(&replica);
    eventually(MINUTE, "a ready replica", async || match replica.process.exited() {
        Some(status) => bail!("it ended with {status}, see {}", replica.process.log().display()),
        None => Ok(service.is_ready(&replica).then_some(())),
    })
    .await?;
    Ok(replica)
}

fn write_config(file: &Path, turn: u32) -> Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("adapter:\n  shutdownDelay: {}s\n", 5 + turn % 2))?;
    Ok(std::fs::rename(&new, file)?)
}

/// How many changes of the file the replica took over.
async fn reloads(replica: &Replica) -> Result<f64> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let text =
        client.get(format!("{}/metrics", replica.metrics_url())).send().await?.text().await?;
    let applied = "headroom_config_reloads_total{outcome=\"applied\"}";
    let line = text.lines().find_map(|line| line.strip_prefix(applied));
    line.map_or(Ok(0.0), |count| count.trim().parse().context("not a number"))
}

/// The same of the longest line of replicas: those that took one another's place, up to one that runs.
async fn all_reloads(replicas: &VecDeque<Replica>, book: &Book) -> Result<f64> {
    let killed = book.reloads_of_killed.lock().clone();
    let mut longest = 0.0_f64;
    for (line, replica) in replicas.iter().enumerate() {
        let before: f64 = killed.iter().skip(line).step_by(replicas.len()).sum();
        longest = longest.max(before + reloads(replica).await?);
    }
    Ok(longest)
}

/// The faults, one after the other, while the file changes all the time.
async fn inject(
    plane: &mut ControlPlane,
    adapter: &Adapter,
    service: &Service,
    first: Replica,
    node: &PaperNode,
    book: &Book,
) -> Result<VecDeque<Replica>> {
    let second = join(adapter, service, "second").await?;
    sleep(Duration::from_secs(10)).await;

    book.begin("the front proxy's CA is rotated");
    plane.pki().add_front_proxy_authority()?;
    sleep(Duration::from_secs(8)).await;
    plane.pki().change_front_proxy()?;
    sleep(Duration::from_secs(15)).await;

    let mut replicas = VecDeque::from([second, first]);
    for turn in 1..=4 {
        // Connections that stand stay where they are, so the one that came last has none: the other is next.
        let Some(mut victim) = replicas.pop_front() else { bail!("no replica") };
        let known = reloads(&victim).await?;
        book.begin(&format!("a replica is killed and comes back, {turn} of 4"));
        victim.process.kill();
        book.reloads_of_killed.lock().push(known);
        sleep(Duration::from_secs(2)).await;
        service.remove(&victim);
        replicas.push_back(join(adapter, service, &format!("back-{turn}")).await?);
        sleep(Duration::from_secs(3)).await;
    }

    book.begin("etcd is killed, and back after 15 s");
    plane.kill_etcd();
    sleep(PERIOD).await;
    plane.start_etcd_again()?;
    sleep(Duration::from_secs(15)).await;

    book.filled_in.store(true, Ordering::Relaxed);
    book.begin("two of ten pods accept and never answer");
    node.hang(HUNG);
    sleep(Duration::from_secs(45)).await;
    book.begin("these pods answer again");
    node.hang(0);
    sleep(Duration::from_secs(15)).await;
    Ok(replicas)
}

fn report(book: &Book, reloads: f64) -> Result<String> {
    let mut text = format!(
        "## Faults under load\n\nTwo replicas behind one Service, four readers directly and two through kube-apiserver, each again 20 ms \
         after its answer; {reloads} changes of the configuration file taken over meanwhile. Measured on a machine that others used at the \
         same time.\n\n| fault | way | reads | failed | wrong | silent pods filled in | longest without an answer, s | kinds of failure |\n|---|---|---|---|---|---|---|---|\n"
    );
    for (fault, ways) in &*book.faults.lock() {
        for (way, tally) in WAYS.iter().zip(ways) {
            let mut kinds: Vec<String> =
                tally.failures.iter().map(|(kind, count)| format!("{count} x {kind}")).collect();
            kinds.truncate(6);
            writeln!(
                text,
                "| {fault} | {way} | {} | {} | {} | {} | {:.2} | {} |",
                tally.reads,
                tally.failed(),
                tally.wrong.len(),
                tally.filled_in,
                tally.longest_without.as_secs_f64(),
                kinds.join("; ").replace(['|', '\n'], " ")
            )?;
        }
    }
    text.push('\n');
    Ok(text)
}

fn judge(book: &Book) -> Result<()> {
    for (fault, ways) in &*book.faults.lock() {
        for (way, tally) in WAYS.iter().zip(ways) {
            ensure!(tally.wrong.is_empty(), "{fault}, {way}: wrong values {:?}", tally.wrong);
            ensure!(tally.reads > 50, "{fault}, {way}: only {} reads", tally.reads);
            let without = tally.longest_without;
            ensure!(without < PERIOD, "{fault}, {way}: {without:?} without an answer");
            let silent = fault.contains("never answer");
            ensure!(!silent || tally.filled_in > 0, "{fault}, {way}: no pod was silent");
            let may_fail = fault.contains("killed and comes back");
            let kinds = &tally.failures;
            ensure!(may_fail || kinds.is_empty(), "{fault}, {way}: {kinds:#?}");
        }
    }
    Ok(())
}

/// The adapter, a workload whose demand is served, and a Service that leads to replicas.
async fn ground(plane: &ControlPlane, config: &Path) -> Result<(Adapter, Service, Replica)> {
    write_config(config, 0)?;
    let environment = vec![("HEADROOM_CONFIG", config.display().to_string())];
    let mut adapter = Adapter::start_with(plane, environment).await?;
    namespace(plane, NAMESPACE).await?;
    apply(plane.client(), NAMESPACE, paper_deployment(NAME, PODS)).await?;
    let signals = json!([{"name": "tasks", "base": "0", "tasks": {"threshold": "100"}}]);
    let options = PolicyOptions { min: PODS, max: PODS, ..PolicyOptions::default() };
    apply(plane.client(), NAMESPACE, policy(NAME, &signals, &options)).await?;
    eventually(MINUTE, "the right demand", async || {
        let demand = demand(&plane.client(), NAMESPACE, NAME).await.ok();
        Ok(demand.filter(|demand| (demand - RIGHT[0]).abs() < 1e-9))
    })
    .await?;
    let service = Service::start().await?;
    let first = join(&adapter, &service, "first").await?;
    Installation::apply(plane, service.address.port())?;
    adapter.kill();
    adapter.installation().wait_available(plane, || Ok(())).await?;
    Ok((adapter, service, first))
}

#[test]
#[ignore = "takes minutes: make sla"]
fn faults_under_load_serve_no_wrong_value_and_cost_a_pass_at_most() {
    run(async {
        let options = ControlPlaneOptions::new("faults")?;
        eprintln!("logs are below {}", options.dir.display());
        let config = options.dir.join("config.yaml");
        let mut plane = ControlPlane::start(options).await?;
        let node = PaperNode::start(plane.client(), METRICS).await?;
        let (adapter, service, first) = ground(&plane, &config).await?;

        let book = Arc::<Book>::default();
        book.begin("none");
        let mut readers = readers(&plane, &service, &book).await?;
        let mut changes = JoinSet::new();
        changes.spawn(async move {
            for turn in 1..u32::MAX {
                sleep(Duration::from_millis(2200)).await;
                if write_config(&config, turn).is_err() {
                    return;
                }
            }
        });
        let replicas = inject(&mut plane, &adapter, &service, first, &node, &book).await?;
        // Whoever waits sees what is known so far.
        eprintln!("{}", report(&book, all_reloads(&replicas, &book).await?)?);
        book.filled_in.store(false, Ordering::Relaxed);
        book.begin("only the configuration changes");
        let reloaded = eventually(6 * MINUTE, "the changes of the file", async || {
            let count = all_reloads(&replicas, &book).await?;
            Ok((count >= f64::from(RELOADS)).then_some(count))
        })
        .await;
        book.stop.store(true, Ordering::Relaxed);
        while readers.join_next().await.is_some() {}
        let count = all_reloads(&replicas, &book).await?;
        add_to_report(&report(&book, count)?)?;
        reloaded?;
        judge(&book)
    });
}

#[test]
fn a_value_that_is_not_the_known_one_is_wrong_and_filled_in_ones_only_when_pods_hang() {
    let book = Book::default();
    book.begin("none");
    book.note(0, 0, &Ok(5.0), Duration::ZERO);
    book.note(0, 0, &Ok(6.0), Duration::ZERO);
    book.note(0, 0, &Err("503".to_owned()), Duration::from_secs(1));
    book.filled_in.store(true, Ordering::Relaxed);
    book.note(0, 0, &Ok(6.0), Duration::ZERO);
    let tally = book.faults.lock()[0].1[0].clone();
    let counts = (tally.reads, tally.failed(), tally.wrong.len(), tally.filled_in);
    assert_eq!(counts, (4, 1, 1, 1), "{tally:?}");
    assert!(judge(&book).is_err());
}
