//! Every signal scales a real Deployment through the real HPA: up with the load, and back.

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
use crate::support::shared::{Cluster, alone, eventually, run};
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
}

impl Case {
    fn new(namespace: &'static str, signal: Value, load: Load, right: i32) -> Self {
        Self { namespace, signal, limits: json!({}), quiet: None, load, right }
    }
}

fn cases(idle_heap_bytes: f64) -> [Case; 6] {
    let seconds = Duration::from_secs;
    let heap_threshold = idle_heap_bytes + 100.0 * MEBIBYTE;
    let whole = |bytes: f64| format!("{bytes:.0}");
    let work = |per_second| Load::Requests { path: "/work?milliseconds=100", per_second };
    let cpu = |per_second| Load::Requests { path: "/cpu?milliseconds=5", per_second };
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
        Case {
            limits: json!({"cpu": "50m"}),
            quiet: Some((cpu(4.0), seconds(60))),
            ..Case::new(
                "scales-cpu",
                json!({"name": "cpu", "cpu": {"threshold": "40m"}}),
                // 225m in all: 38 times 5 ms and the request's own 0.55 ms, and 6 idle pods of 2m each.
                cpu(38.0),
                6,
            )
        },
    ]
}

/// The times in which the HPA must have followed, and how long the load lasts.
#[derive(Clone, Copy)]
struct Times {
    up_within: Duration,
    load: Duration,
    down_within: Duration,
}

const TIMES: Times = Times {
    up_within: Duration::from_secs(60),
    load: Duration::from_secs(75),
    down_within: Duration::from_secs(60),
};

async fn deploy(cluster: &Cluster, case: &Case) -> Result<()> {
    let sample = SampleOptions {
        startup_delay: Duration::from_secs(10),
        limits: case.limits.clone(),
        ..SampleOptions::default()
    };
    cluster.namespace(case.namespace).await?;
    create(cluster.plane.client(), case.namespace, sample_deployment(NAME, &sample)).await?;
    Ok(())
}

/// Runs the load of a case; the faults of what was seen.
async fn scale(cluster: &Cluster, case: &Case, times: Times) -> Result<Vec<String>> {
    let client = cluster.plane.client();
    let recorder = Recorder::start(client.clone(), case.namespace, NAME);
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
    sleep(times.down_within + Duration::from_secs(2)).await;
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
            Ok(faults) if faults.is_empty() => {}
            Ok(faults) => report.push(format!("{}:\n  {}", case.namespace, faults.join("\n  "))),
            Err(error) => report.push(format!("{}: {error:#}", case.namespace)),
        }
    }
    if let CgroupSupport::Unavailable(reason) = cluster.kubelet.cgroups() {
        // Not left out in silence: without the limit the pods of the CPU case never saturate.
        report.push(format!("scales-cpu: no CPU limit is enforced here: {reason}"));
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
        let cases = cases(idle_heap_bytes(&cluster).await?);
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

/// The check above is worth something only if it fails where nobody looks at the pods. A control plane
/// of its own: the shared one's API is the adapter's.
#[test]
fn an_adapter_that_serves_a_constant_fails_the_same_check() {
    run(async {
        let cluster = Cluster::start(ControlPlaneOptions::new("constant")?).await?;
        let first = cases(0.0).into_iter().next().context("a case")?;
        let case = Case { namespace: "scales-constant", ..first };
        let constant = ConstantAdapter::start(6).await?;
        constant.register(&cluster.plane)?;
        deploy(&cluster, &case).await?;
        create(cluster.plane.client(), case.namespace, hpa()).await?;
        let times = Times {
            up_within: Duration::from_secs(20),
            load: Duration::from_secs(25),
            down_within: Duration::from_secs(35),
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
