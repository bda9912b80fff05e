//! Real faults of a real adapter, and the alerts that a real Prometheus makes of them.
//!
//! The rules are the shipped ones, their minutes made seconds. Each fault is made, its alerts are waited for, it is mended, and
//! they must be gone. What needs days (certificates), hours (tasks) or a bug (a panic), and what no fault here makes yet (a blocked
//! worker, a memory limit, a failing watch, replicas that differ), is held by promtool alone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use crate::support::adapter::Adapter;
use crate::support::control_plane::ControlPlaneOptions;
use crate::support::exporter::Exporter;
use crate::support::process::Signal;
use crate::support::prometheus::{Prometheus, quick, rules_file};
use crate::support::shared::{Cluster, eventually, run};
use crate::support::workload::{PolicyOptions, create, policy};

const NAMESPACE: &str = "alerts";
const NAME: &str = "sample";
/// An alert waits for 15 s at most, behind a range of 15 s; pods start and end meanwhile.
const SOON: Duration = Duration::from_secs(120);
const BUSY: &str = "# TYPE tokio_alive_tasks gauge\ntokio_alive_tasks 500\n";
const IDLE: &str = "# TYPE tokio_alive_tasks gauge\ntokio_alive_tasks 50\n";
const OTHER: &str = "# TYPE up_to_something gauge\nup_to_something 1\n";

/// Waits until the firing alerts are as they should be.
async fn until(
    prometheus: &Prometheus,
    what: &str,
    right: impl Fn(&BTreeSet<String>) -> bool,
) -> Result<()> {
    let mut seen = BTreeSet::new();
    let waited = eventually(SOON, what, async || {
        let Some(firing) = prometheus.firing().await else { return Ok(None) };
        let done = right(&firing).then_some(());
        seen = firing;
        Ok(done)
    })
    .await;
    waited.with_context(|| format!("firing at last: {seen:?}"))
}

/// Waits until all of `alerts` fire, then mends, then waits until none does.
async fn raised_and_resolved(
    prometheus: &Prometheus,
    alerts: &[&str],
    mend: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let all = |firing: &BTreeSet<String>| alerts.iter().all(|alert| firing.contains(*alert));
    let none = |firing: &BTreeSet<String>| !alerts.iter().any(|alert| firing.contains(*alert));
    until(prometheus, &format!("{alerts:?}"), all).await?;
    eprintln!("fire: {alerts:?}");
    mend().await?;
    until(prometheus, &format!("the end of {alerts:?}"), none).await
}

async fn stop_one_pod(cluster: &Cluster) -> Result<()> {
    let pods = Api::<Pod>::namespaced(cluster.plane.client(), NAMESPACE);
    let listed = pods.list(&ListParams::default()).await?.items;
    let name = listed.first().and_then(|pod| pod.metadata.name.as_deref()).context("a pod")?;
    ensure!(cluster.kubelet.signal(NAMESPACE, name, Signal::Stop), "{name} has no process");
    Ok(())
}

#[test]
fn each_fault_raises_its_alerts_and_its_mend_resolves_them() {
    run(async {
        let mut cluster = Cluster::start(ControlPlaneOptions::new("alerts")?).await?;
        cluster.namespace(NAMESPACE).await?;
        let dir = cluster.plane.dir().to_owned();
        let config = dir.join("adapter.yaml");
        let good = "adapter:\n  logLevel: info\n";
        std::fs::write(&config, good)?;
        let environment = vec![("HEADROOM_CONFIG", config.display().to_string())];
        let mut adapter = Adapter::start_with(&cluster.plane, environment).await?;
        let exporter = Exporter::new(&cluster.plane, NAMESPACE, IDLE)?;
        create(cluster.plane.client(), NAMESPACE, exporter.deployment(NAME, 2)).await?;
        let signals = json!([{"name": "tasks", "base": "0", "tasks": {"threshold": "100"}}]);
        let options = PolicyOptions { min: 2, max: 2, ..PolicyOptions::default() };
        create(cluster.plane.client(), NAMESPACE, policy(NAME, &signals, &options)).await?;
        let rules = quick(&std::fs::read_to_string(rules_file())?);
        let prometheus =
            Prometheus::start(&dir.join("prometheus"), &adapter.metrics_url(), &rules)?;

        // The pods start first, which with such short waits may well raise something.
        until(&prometheus, "no alert while all is well", BTreeSet::is_empty).await?;

        std::fs::write(&config, "adapter:\n  logLevle: info\n")?;
        let mend = async || Ok(std::fs::write(&config, good)?);
        raised_and_resolved(&prometheus, &["HeadroomConfigRefused"], mend).await?;

        exporter.show(BUSY)?;
        let mend = async || exporter.show(IDLE);
        raised_and_resolved(&prometheus, &["HeadroomAtMaxReplicas"], mend).await?;

        exporter.show(OTHER)?;
        let mend = async || exporter.show(IDLE);
        raised_and_resolved(&prometheus, &["HeadroomPolicyUnserved"], mend).await?;

        stop_one_pod(&cluster).await?;
        let mend = async || {
            let gone = ["-n", NAMESPACE, "delete", "pods", "--all", "--wait=false"];
            cluster.plane.kubectl(&gone).map(drop)
        };
        let alerts = ["HeadroomCoverageLow", "HeadroomScrapesFailing"];
        raised_and_resolved(&prometheus, &alerts, mend).await?;

        adapter.kill();
        let mend = async || adapter.start_again();
        let alerts = ["HeadroomAdapterAbsent", "HeadroomAdapterDown"];
        raised_and_resolved(&prometheus, &alerts, mend).await?;

        cluster.plane.kill_etcd();
        let mend = async || cluster.plane.start_etcd_again();
        raised_and_resolved(&prometheus, &["HeadroomNoLeader"], mend).await
    });
}
