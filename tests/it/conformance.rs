//! `headroom conformance` against the running adapter, as a user runs it.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::exporter::Exporter;
use crate::support::programs::HEADROOM;
use crate::support::shared::{Cluster, eventually, run, share};
use crate::support::timeline::demand;
use crate::support::workload::{PolicyOptions, create, policy};

const NAMESPACE: &str = "conformance";
const NAME: &str = "sample";

/// Cases that metrics which exist and the front proxy's certificate are enough for; src/conformance/tests/ours.rs has the rest.
const DECIDED: [u64; 28] = [
    1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 28, 29, 30, 31, 32, 36,
    37, 38,
];

/// A policy with a demand of 2, of a queue that is the namespace's; one of its pods.
async fn workload(cluster: &Cluster) -> Result<String> {
    cluster.namespace(NAMESPACE).await?;
    let client = cluster.plane.client();
    let metrics = "# TYPE queue_depth gauge\nqueue_depth 20\n";
    let exporter = Exporter::new(&cluster.plane, NAMESPACE, metrics)?;
    create(client.clone(), NAMESPACE, exporter.deployment(NAME, 1)).await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "name": NAMESPACE});
    let queue = json!({
        "name": "queue_depth", "aggregate": "Max", "threshold": "10", "describes": namespace,
    });
    let signals = json!([{"name": "queue", "metric": queue}]);
    create(client.clone(), NAMESPACE, policy(NAME, &signals, &PolicyOptions::default())).await?;
    eventually(Duration::from_secs(60), "a demand of 2", async || {
        let demand = demand(&client, NAMESPACE, NAME).await.ok();
        Ok(demand.filter(|demand| (demand - 2.0).abs() < 1e-9))
    })
    .await?;
    let custom = |rest: &str| {
        let path = format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{NAMESPACE}/{rest}");
        let list = cluster.plane.kubectl(&["get", "--raw", &path]).ok()?;
        serde_json::from_str::<Value>(&list).ok()
    };
    eventually(Duration::from_secs(60), "metrics of the namespace and of a pod", async || {
        let pods = custom("metrics/queue_depth").and_then(|_| custom("pods/*/headroom_pressure"));
        Ok(pods.and_then(|list| {
            list["items"][0]["describedObject"]["name"].as_str().map(str::to_owned)
        }))
    })
    .await
}

/// Runs the suite as the API server's front proxy, with more arguments.
async fn conformance(cluster: &Cluster, more: &[&str]) -> Result<Output> {
    let (url, installation) = {
        let adapter = cluster.adapter().await?;
        (adapter.url(), adapter.installation().clone())
    };
    let ca = cluster.plane.kubectl(&[
        "get",
        "apiservice",
        "v1beta1.external.metrics.k8s.io",
        "--output=go-template={{.spec.caBundle | base64decode}}",
    ])?;
    let ca_file = cluster.plane.dir().join("conformance-ca.pem");
    fs::write(&ca_file, ca)?;
    let pki = cluster.plane.pki();
    let mut command = Command::new(HEADROOM);
    command
        .args(["conformance", "--url", &url, "--namespace", NAMESPACE])
        .args([
            "--server-name",
            &format!("{}.{}.svc", installation.service, installation.namespace),
        ])
        .args(["--external-metric", &format!("headroom_demand,policy={NAME}")])
        .arg("--ca-file")
        .arg(ca_file)
        .arg("--client-cert")
        .arg(pki.certificate("front-proxy"))
        .arg("--client-key")
        .arg(pki.key("front-proxy"))
        .args(more);
    tokio::task::spawn_blocking(move || command.output()).await?.context("headroom conformance")
}

#[test]
fn the_adapter_fails_no_case() {
    run(async {
        let cluster = share().await?;
        drop(cluster.adapter().await?);
        let pod = workload(&cluster).await?;
        let of_pod = format!("pods/{pod}/headroom_pressure");
        let of_namespace = format!("namespaces/{NAMESPACE}/queue_depth");
        let of_app = format!("app={NAME}");
        let mut metrics = vec!["--custom-metric", &of_pod, "--custom-metric", &of_namespace];
        metrics.extend(["--pods-selector", &of_app]);
        let text = conformance(&cluster, &metrics).await;
        metrics.extend(["--output", "json"]);
        let json = conformance(&cluster, &metrics).await;
        cluster.delete_namespace(NAMESPACE).await?;
        let text = text?;
        // Shown by the test harness if the test fails, or with --nocapture: what was not asked is at its end.
        eprintln!("{}", String::from_utf8_lossy(&text.stdout));
        eprintln!("{}", String::from_utf8_lossy(&text.stderr));
        ensure!(text.status.code() == Some(0), "{}", text.status);
        let report: Value = serde_json::from_slice(&json?.stdout)?;
        let passed: Vec<u64> = report["cases"]
            .as_array()
            .context("no cases")?
            .iter()
            .filter(|case| case["verdict"] == "pass")
            .filter_map(|case| case["number"].as_u64())
            .collect();
        ensure!(report["failed"] == 0, "{report:#}");
        for number in DECIDED {
            ensure!(passed.contains(&number), "case {number} was not asked: {report:#}");
        }
        Ok(())
    });
}

#[test]
fn an_adapter_that_is_not_there_is_exit_code_2() {
    let output = Command::new(HEADROOM)
        .args(["conformance", "--url", "https://127.0.0.1:1", "--insecure-skip-tls-verify"])
        .output()
        .expect("the program starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.starts_with("error: cannot reach the adapter"), "{error}");
    assert!(output.stdout.is_empty());
}
