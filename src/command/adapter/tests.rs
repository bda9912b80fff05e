//! The whole adapter with nothing behind its client: what it exposes, and whether it says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use clap::Parser;
use prometheus::proto::{MetricFamily, MetricType};

use super::*;
use crate::adapter::catalogue::{self, OwnFamily, own_family};
use crate::adapter::self_signed;
use crate::cli::{Cli, Command};
use crate::controller::families_of_a_follower;
use crate::policy::{
    Endpoint, Pod, Policy, PolicyId, Port, Signal, SignalKind, Threshold, Workload,
};
use crate::sample::{Labels, PodKey};
use crate::signals::{FamilyKind, catalogue as signals};
use crate::time::{Timestamp, wall_now};
use crate::units::{Measure, Ratio};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The tasks of [`Adapter`]'s policies are read here.
async fn pod() -> SocketAddr {
    let listener = TcpListener::bind((HERE, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let routes = Router::new().route("/metrics", get(|| async { "tokio_alive_tasks 250\n" }));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

fn id(name: &str) -> PolicyId {
    PolicyId { namespace: "shop".into(), name: name.into() }
}

fn tasks() -> Signal {
    let threshold = Threshold::new(100.0).expect("it is not 0");
    Signal { name: "tasks".into(), kind: SignalKind::Tasks(threshold), base: Some(0.0) }
}

/// A policy of two pods: one that answers, one that cannot be reached.
fn active(name: &str, address: SocketAddr) -> Assignment {
    let threshold = Threshold::new(1e9).expect("it is not 0");
    let example = Policy::example(id(name));
    let policy = Policy {
        endpoint: Endpoint {
            port: Port::Number(address.port()),
            // The second sample comes well after every part has started.
            interval: Duration::from_secs(2),
            ..example.endpoint.clone()
        },
        window: Duration::from_secs(5),
        start_grace: Duration::ZERO,
        coverage_floor: Ratio::new(0.5).expect("a ratio"),
        signals: vec![
            tasks(),
            // The pod serves none.
            Signal { name: "heap".into(), kind: SignalKind::Heap(threshold), base: None },
        ],
        min_replicas: Some(1),
        max_replicas: Some(9),
        ..example
    };
    let pod = |name: &str, ip: [u8; 4]| Pod {
        key: PodKey(name.into()),
        name: name.into(),
        ip: Some(ip.into()),
        port: Some(address.port()),
        started_at: Some(Timestamp::default()),
        ready_since: Some(wall_now()),
        ended: false,
        cpu_limit: None,
        labels: Labels::default(),
        container: None,
    };
    let pods = vec![pod("answers", [127, 0, 0, 1]), pod("gone", [127, 0, 0, 9])];
    let workload = Workload { spec_replicas: 2, status_replicas: 2, pods, ..Workload::default() };
    Assignment::Active { policy: Arc::new(policy), workload: Arc::new(workload) }
}

/// Every part of the adapter as `start` composes them, but for the roster, which has no cluster to come from.
struct Adapter {
    _folder: tempfile::TempDir,
    _tasks: Tasks,
    registry: prometheus::Registry,
    progress: Progress,
    url: String,
}

impl Adapter {
    async fn start(assignments: Vec<Assignment>) -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = self_signed(&["localhost"]).expect("names are valid");
        let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        fs::write(&chain, files.certificate_pem).expect("the folder is ours");
        fs::write(&key, files.key_pem).expect("the folder is ours");
        let (chain, key) = (chain.display().to_string(), key.display().to_string());
        let line =
            ["headroom", "adapter", "--tls-cert-file", &chain, "--tls-private-key-file", &key];
        let Command::Adapter(args) = Cli::parse_from(line).command else { unreachable!() };

        let registry = prometheus::Registry::new();
        let inputs = Inputs { flags: args.flags(), environment: BTreeMap::new(), file: None };
        let live = configured::start::<AdapterConfig>(inputs, &registry).expect("defaults fit");
        let nowhere = kube::Config::new("http://127.0.0.1:9".parse().expect("an address"));
        let client = kube::Client::try_from(nowhere).expect("plain HTTP needs no keys");
        let parts = Parts::new(args, live, registry.clone(), client);

        let (shutdown, lease) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = Tasks::new();
        let leading = parts.elect(&mut tasks, &lease).expect("the registry is new");
        let _nothing = parts.control(&mut tasks, leading.clone(), &shutdown);
        let (roster, assigned) = watch::channel(Arc::new(assignments));
        parts.decide(&mut tasks, assigned, &shutdown).expect("the registry is new");
        parts.observe(&mut tasks, &shutdown).expect("the registry is new");
        let condition = parts.progress.add_condition("TLS");
        let certificate = Arc::new(ServingCertificate::new(condition));
        parts.certify(&mut tasks, certificate.clone(), leading, &shutdown).expect("files fit");
        let listener = TcpListener::bind((HERE, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let metrics = OwnMetrics::register(&parts.registry).expect("the registry is new");
        parts.serve(&mut tasks, listener, certificate, metrics, &shutdown);
        // The roster stays for as long as the adapter does.
        tasks.spawn(async move {
            roster.closed().await;
            Ok("roster")
        });
        Self {
            _folder: folder,
            _tasks: tasks,
            registry,
            progress: parts.progress.clone(),
            url: format!("https://{address}"),
        }
    }

    /// Asks without credentials, so that the answer is 401 but for probes.
    async fn status(&self, path: &str) -> u16 {
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(true)
            .build()
            .expect("a client");
        let answer = client.get(format!("{}{path}", self.url)).send().await.expect("it answers");
        answer.status().as_u16()
    }

    /// What is exposed once a policy has a demand.
    async fn families(&self) -> HashMap<String, MetricFamily> {
        for _ in 0..400 {
            let gathered = self.registry.gather();
            let families: HashMap<_, _> =
                gathered.into_iter().map(|family| (family.name().to_owned(), family)).collect();
            let has = |name: &str| families.contains_key(name);
            if has("headroom_adapter_policy_demand") && has("headroom_adapter_writes_total") {
                return families;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("no policy has a demand after 10 s: {:?}", self.progress.ready());
    }
}

/// What is wrong with a family, by what the catalogue says of it.
fn faults(family: &MetricFamily, known: &OwnFamily) -> Vec<String> {
    let mut faults = Vec::new();
    let kind = match family.get_field_type() {
        MetricType::COUNTER => FamilyKind::Counter,
        MetricType::HISTOGRAM => FamilyKind::Histogram,
        _ => FamilyKind::Gauge,
    };
    if (kind, family.help()) != (known.kind, known.help) {
        faults.push(format!("{}: {kind:?}, {:?}", known.name, family.help()));
    }
    let wanted: BTreeSet<&str> = known.labels.iter().map(|label| label.name).collect();
    for metric in family.get_metric() {
        let labels: BTreeMap<&str, &str> =
            metric.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
        if labels.keys().copied().collect::<BTreeSet<_>>() != wanted {
            faults.push(format!("{}: labels {labels:?}", known.name));
        }
        for label in known.labels {
            let value = labels.get(label.name).copied().unwrap_or_default();
            if !label.values.allow(value) {
                faults.push(format!("{}: {}={value:?}", known.name, label.name));
            }
        }
    }
    faults
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_in_a_catalogue_and_every_metric_of_the_catalogue_is_there() {
    let message = "there is no Deployment cart".to_owned();
    let refused = Assignment::Refused { id: id("cart"), reason: "TargetNotFound", message };
    let adapter = Adapter::start(vec![active("checkout", pod().await), refused]).await;
    assert_eq!(adapter.status("/debug/pprof/heap").await, 401, "profiles are behind the gate");
    let mut families = adapter.families().await;
    let of_followers = families_of_a_follower();
    families.extend(of_followers.into_iter().map(|family| (family.name().to_owned(), family)));

    let mut wrong = Vec::new();
    for (name, family) in &families {
        match own_family(name) {
            Some(known) => wrong.extend(faults(family, known)),
            None if signals::family(name).is_some() => {}
            None => wrong.push(format!("{name} is in no catalogue")),
        }
    }
    let absent = catalogue::CATALOGUE.iter().filter(|known| !families.contains_key(known.name));
    wrong.extend(absent.map(|known| format!("{} is in the catalogue only", known.name)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for own in ["process_cpu_seconds_total", "tokio_alive_tasks", "process_resident_memory_bytes"] {
        assert!(families.contains_key(own), "{own} of the adapter itself");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_is_not_ready_before_its_decisions_are() {
    let adapter = Adapter::start(vec![active("checkout", pod().await)]).await;
    let early = adapter.progress.ready().expect_err("there was no time for two samples");
    assert!(early.contains("decisions: "), "{early}");
    adapter.families().await;
    for _ in 0..400 {
        let late = adapter.progress.ready().expect_err("there is no cluster");
        if !late.contains("decisions") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not ready after 10 s: {:?}", adapter.progress.ready());
}
