//! Every signal scales a real Deployment through the real HPA: up with the load, and back.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::constant_adapter::ConstantAdapter;
use crate::support::control_plane::ControlPlaneOptions;
use crate::support::kubelet::CgroupSupport;
use crate::support::load::{Load, LoadDriver};
use crate::support::played::played_because;
use crate::support::shared::{Cluster, alone, eventually, run, share};
use crate::support::timeline::{Expectation, Recorder};
use crate::support::workload::{PolicyOptions, SampleOptions, create, policy, sample_deployment};

const MEBIBYTE: f64 = 1_048_576.0;
const NAME: &str = "sample";

/// One signal's load, and what it must lead to.
struct Case {
    namespace: &'static str,
    signal: Value,
    limits: Value,
    /// Before the load: what the signal learns from.
    quiet: Option<(Load, Duration)>,
    load: Load,
    right: i32,
    /// Why the pods play their CPU limit, if they do.
    played: Option<String>,
}

impl Case {
    fn new(namespace: &'static str, signal: Value, load: Load, right: i32) -> Self {
        Self { namespace, signal, limits: json!({}), quiet: None, load, right, played: None }
    }

    /// The case in results and the name of its artefact.
    fn title(&self) -> String {
        match &self.played {
            Some(why) => format!("{} with played pods ({why})", self.namespace),
            None => self.namespace.to_owned(),
        }
    }
}

/// Idleness of `quiet`, then 225m of CPU in all: 38 times 5 ms and the request's own 0.55 ms, and 6 idle pods of 2m each.
fn cpu_case(namespace: &'static str, quiet: Duration, played: Option<String>) -> Case {
    let cpu = |per_second| Load::Requests { path: "/cpu?milliseconds=5", per_second };
    Case {
        limits: json!({"cpu": "50m"}),
        quiet: Some((cpu(4.0), quiet)),
        played,
        ..Case::new(namespace, json!({"name": "cpu", "cpu": {"threshold": "40m"}}), cpu(38.0), 6)
    }
}

fn cases(idle_heap_bytes: f64, cgroups: &CgroupSupport) -> [Case; 6] {
    let seconds = Duration::from_secs;
    let heap_threshold = idle_heap_bytes + 100.0 * MEBIBYTE;
    let whole = |bytes: f64| format!("{bytes:.0}");
    let work = |per_second| Load::Requests { path: "/work?milliseconds=100", per_second };
    [
        Case::new(
            "scales-tasks",
            json!({"name": "tasks", "tasks": {"threshold": "100"}}),
            Load::held("/tasks", "count", 560.0, seconds(5)),
            6,
        ),
        Case::new(
            "scales-heap",
            json!({"name": "heap", "base": whole(idle_heap_bytes),
                   "heap": {"threshold": whole(heap_threshold)}}),
            Load::held("/heap", "bytes", 560.0 * MEBIBYTE, seconds(10)),
            6,
        ),
        Case::new(
            "scales-alloc",
            json!({"name": "alloc", "allocationRate": {"threshold": "10M"}}),
            Load::Amount { path: "/allocate", parameter: "bytes", per_second: 56e6, hold: None },
            6,
        ),
        Case::new(
            "scales-queue",
            json!({"name": "queue", "metric": {"name": "queue_depth", "threshold": "10"}}),
            Load::held("/queue", "items", 56.0, seconds(5)),
            6,
        ),
        Case {
            quiet: Some((work(20.0), seconds(60))),
            ..Case::new(
                "scales-latency",
                json!({"name": "latency", "latency":
                    {"quantile": "0.95", "target": "150ms", "concurrency": 8}}),
                work(240.0),
                5,
            )
        },
        cpu_case("scales-cpu", seconds(60), played_because(cgroups)),
    ]
}

/// The times in which the HPA must have followed, and how long the load lasts.
#[derive(Clone, Copy)]
struct Times {
    up_within: Duration,
    load: Duration,
    /// `None`: the way down is not looked at.
    down_within: Option<Duration>,
}

const TIMES: Times = Times {
    up_within: Duration::from_secs(60),
    load: Duration::from_secs(75),
    down_within: Some(Duration::from_secs(60)),
};

/// Past the test harness, which keeps to itself what a passing test prints.
fn say_if_played(case: &Case) -> Result<()> {
    if case.played.is_some() {
        writeln!(std::io::stderr(), "{}: as expected", case.title())?;
    }
    Ok(())
}

async fn deploy(cluster: &Cluster, case: &Case) -> Result<()> {
    let sample = SampleOptions {
        startup_delay: Duration::from_secs(10),
        limits: case.limits.clone(),
        played: case.played.is_some(),
        ..SampleOptions::default()
    };
    cluster.namespace(case.namespace).await?;
    create(cluster.plane.client(), case.namespace, sample_deployment(NAME, &sample)).await?;
    Ok(())
}

/// Runs the load of a case; the faults of what was seen.
async fn scale(cluster: &Cluster, case: &Case, times: Times) -> Result<Vec<String>> {
    let client = cluster.plane.client();
    let recorder = Recorder::start(client.clone(), case.namespace, NAME).titled(case.title());
    eventually(Duration::from_secs(60), "a ready pod", async || {
        Ok(recorder.newest().filter(|row| row.ready >= 1).map(drop))
    })
    .await?;
    if let Some((load, lasting)) = &case.quiet {
        let _quiet = LoadDriver::start(client.clone(), case.namespace, NAME, load.clone())?;
        sleep(*lasting).await;
    } else {
        // Long enough for both windows to be full of idleness.
        sleep(Duration::from_secs(15)).await;
    }
    let driver = LoadDriver::start(client, case.namespace, NAME, case.load.clone())?;
    recorder.load_begins();
    sleep(times.load).await;
    recorder.mark(&driver.outcome());
    drop(driver);
    recorder.load_ends();
    if let Some(down_within) = times.down_within {
        sleep(down_within + Duration::from_secs(2)).await;
    }
    let timeline = recorder.finish()?;
    let expectation = Expectation {
        min: 1,
        right: case.right,
        up_within: times.up_within,
        down_within: times.down_within,
    };
    Ok(expectation.faults(&timeline))
}

/// What an idle sample pod has on its heap, as it says itself.
async fn idle_heap_bytes(cluster: &Cluster) -> Result<f64> {
    let namespace = "scales-base";
    let client = cluster.plane.client();
    cluster.namespace(namespace).await?;
    let deployment = sample_deployment(NAME, &SampleOptions::default());
    create(client.clone(), namespace, deployment).await?;
    let pods = Api::<Pod>::namespaced(client, namespace);
    let http = reqwest::Client::builder().no_proxy().build()?;
    eventually(Duration::from_secs(30), "an idle pod's metrics", async || {
        let listed = pods.list(&ListParams::default()).await?;
        let address = listed.iter().find_map(|pod| pod.status.as_ref()?.pod_ip.clone());
        let Some(address) = address else { return Ok(None) };
        let Ok(answer) = http.get(format!("http://{address}:9469/metrics")).send().await else {
            return Ok(None);
        };
        let text = answer.text().await?;
        let value = text.lines().find_map(|line| line.strip_prefix("heap_allocated_bytes "));
        value.map(|value| Ok(value.trim().parse()?)).transpose()
    })
    .await
}

/// All cases at once, each in its own namespace; the faults of what was seen.
async fn all_at_once(cluster: &Cluster, cases: &[Case]) -> Result<Vec<String>> {
    for case in cases {
        deploy(cluster, case).await?;
        let policy = policy(NAME, &json!([case.signal]), &PolicyOptions::default());
        create(cluster.plane.client(), case.namespace, policy).await?;
    }
    let runs = cases.iter().map(|case| scale(cluster, case, TIMES));
    let mut report = Vec::new();
    for (case, outcome) in cases.iter().zip(futures::future::join_all(runs).await) {
        match outcome {
            Ok(faults) if faults.is_empty() => say_if_played(case)?,
            Ok(faults) => report.push(format!("{}:\n  {}", case.title(), faults.join("\n  "))),
            Err(error) => report.push(format!("{}: {error:#}", case.title())),
        }
    }
    for case in cases {
        cluster.delete_namespace(case.namespace).await?;
    }
    Ok(report)
}

/// The pods, the loads and the control plane share the machine with whatever else runs on it, and a load that the
/// machine cannot offer scales nothing. So one failed attempt is told and repeated; the second is the verdict.
#[test]
fn every_signal_scales_up_with_its_load_and_back() {
    run(async {
        let cluster = alone().await?;
        drop(cluster.adapter().await?);
        let cases = cases(idle_heap_bytes(&cluster).await?, cluster.kubelet.cgroups());
        let mut report = all_at_once(&cluster, &cases).await?;
        if !report.is_empty() {
            eprintln!("REPEATED, since the first attempt saw:\n{}", report.join("\n"));
            for case in &cases {
                cluster.namespace_ends(case.namespace).await?;
            }
            report = all_at_once(&cluster, &cases).await?;
        }
        cluster.delete_namespace("scales-base").await?;
        ensure!(report.is_empty(), "{}", report.join("\n"));
        Ok(())
    });
}

/// Where pods get cgroups the check above plays nothing. Here they always do, so that the player stays true.
#[test]
fn pods_that_play_their_cpu_limit_scale_as_limited_ones_do() {
    run(async {
        let cluster = share().await?;
        drop(cluster.adapter().await?);
        let (quiet, why) = (Duration::from_secs(30), "always in this test".to_owned());
        let case = cpu_case("scales-played", quiet, Some(why));
        deploy(&cluster, &case).await?;
        let policy = policy(NAME, &json!([case.signal]), &PolicyOptions::default());
        create(cluster.plane.client(), case.namespace, policy).await?;
        let times = Times {
            up_within: Duration::from_secs(45),
            load: Duration::from_secs(55),
            // As slow as for every other signal, so that it need not be seen again.
            down_within: None,
        };
        let faults = scale(&cluster, &case, times).await?;
        cluster.delete_namespace(case.namespace).await?;
        ensure!(faults.is_empty(), "{}:\n  {}", case.title(), faults.join("\n  "));
        say_if_played(&case)
    });
}

/// The check above is worth something only if it fails where nobody looks at the pods. A control plane
/// of its own: the shared one's API is the adapter's.
#[test]
fn an_adapter_that_serves_a_constant_fails_the_same_check() {
    run(async {
        let cluster = Cluster::start(ControlPlaneOptions::new("constant")?).await?;
        let first = cases(0.0, cluster.kubelet.cgroups()).into_iter().next().context("a case")?;
        let case = Case { namespace: "scales-constant", ..first };
        let constant = ConstantAdapter::start(6).await?;
        constant.register(&cluster.plane)?;
        deploy(&cluster, &case).await?;
        create(cluster.plane.client(), case.namespace, hpa()).await?;
        let times = Times {
            up_within: Duration::from_secs(20),
            load: Duration::from_secs(25),
            down_within: Some(Duration::from_secs(35)),
        };
        let faults = scale(&cluster, &case, times).await?;
        for expected in ["before the load", "35s after the load"] {
            let found = faults.iter().any(|fault| fault.starts_with(expected));
            ensure!(found, "{expected:?} is not in {faults:?}");
        }
        Ok(())
    });
}

/// The HPA that the controller writes for the policies of these tests.
fn hpa() -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": NAME},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
            "minReplicas": 1,
            "maxReplicas": 20,
            "metrics": [{"type": "External", "external": {
                "metric": {"name": "headroom_demand", "selector": {"matchLabels": {"policy": NAME}}},
                "target": {"type": "AverageValue", "averageValue": "1"},
            }}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 15}},
        },
    })
}
