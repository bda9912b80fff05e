//! What people see: kubectl's answers about metrics, HPAs, APIServices and policies.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::exporter::Exporter;
use crate::support::shared::{Cluster, eventually, run, share};
use crate::support::timeline::demand;
use crate::support::workload::{PolicyOptions, create, policy};

const NAME: &str = "sample";

/// Every family the signals below need; counters stand still, so rates are 0.
const METRICS: &str = "\
# TYPE tokio_alive_tasks gauge
tokio_alive_tasks 80
# TYPE heap_allocated_bytes gauge
heap_allocated_bytes 1000000
# TYPE heap_allocation_bytes_total counter
heap_allocation_bytes_total 5000000
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 12.5
# TYPE queue_depth gauge
queue_depth 20
";

/// Two pods and a policy whose demand is exactly 2, by the queue that both report.
async fn workload(cluster: &Cluster, namespace: &str) -> Result<()> {
    drop(cluster.adapter().await?);
    cluster.namespace(namespace).await?;
    let client = cluster.plane.client();
    let exporter = Exporter::new(&cluster.plane, namespace, METRICS)?;
    create(client.clone(), namespace, exporter.deployment(NAME, 2)).await?;
    let signals = json!([
        {"name": "tasks", "base": "0", "tasks": {"threshold": "100"}},
        {"name": "heap", "base": "0", "heap": {"threshold": "10M"}},
        {"name": "alloc", "allocationRate": {"threshold": "10M"}},
        {"name": "cpu", "base": "0", "cpu": {"threshold": "1"}},
        {"name": "queue", "metric": {"name": "queue_depth", "aggregate": "Max", "threshold": "10"}},
    ]);
    create(client.clone(), namespace, policy(NAME, &signals, &PolicyOptions::default())).await?;
    eventually(Duration::from_secs(60), "a demand of 2", async || {
        let demand = demand(&client, namespace, NAME).await.ok();
        Ok(demand.filter(|demand| (demand - 2.0).abs() < 1e-9))
    })
    .await?;
    Ok(())
}

/// The values of a metric's items, sorted.
fn values(cluster: &Cluster, path: &str) -> Result<Vec<String>> {
    let text = cluster.plane.kubectl(&["get", "--raw", path])?;
    let list: Value = serde_json::from_str(&text)?;
    let items = list["items"].as_array().with_context(|| format!("{path}: {list}"))?;
    let mut values: Vec<String> =
        items.iter().filter_map(|item| item["value"].as_str().map(str::to_owned)).collect();
    values.sort();
    Ok(values)
}

#[test]
fn kubectl_reads_every_metric_of_a_policy() {
    run(async {
        let cluster = share().await?;
        let namespace = "reads-metrics";
        workload(&cluster, namespace).await?;
        let external = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}");
        // A rate needs two samples of every pod; until then the silent one counts as its threshold.
        let settled = eventually(Duration::from_secs(30), "both pods' rates", async || {
            let rate =
                values(&cluster, &format!("{external}/headroom_allocation_bytes_per_second"));
            Ok(rate.ok().filter(|values| values == &["0"]))
        })
        .await;
        let mut faults = Vec::new();
        for (path, expected) in [
            (format!("{external}/headroom_demand"), vec!["2"]),
            (format!("{external}/headroom_signal_demand"), vec!["0", "0", "1600m", "2", "200m"]),
            (format!("{external}/headroom_signal_demand?labelSelector=signal%3Dqueue"), vec!["2"]),
            (format!("{external}/headroom_tasks"), vec!["160"]),
            (format!("{external}/headroom_heap_bytes"), vec!["2M"]),
            (format!("{external}/headroom_allocation_bytes_per_second"), vec!["0"]),
            (format!("{external}/headroom_cpu_cores"), vec!["0"]),
        ] {
            match values(&cluster, &path) {
                Ok(values) if values == expected => {}
                other => faults.push(format!("{path}: {other:?}, expected {expected:?}")),
            }
        }
        cluster.delete_namespace(namespace).await?;
        settled?;
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    });
}

/// The columns of a table of kubectl, by its header.
fn row(table: &str) -> Result<Vec<(String, String)>> {
    let mut lines = table.lines();
    let header = lines.next().context("no header")?;
    let line = lines.next().context("no row")?;
    let mut starts: Vec<usize> = header
        .char_indices()
        .filter(|(at, c)| *c != ' ' && (*at == 0 || header[..*at].ends_with("  ")))
        .map(|(at, _)| at)
        .collect();
    starts.push(line.len().max(header.len()));
    let cut = |text: &str, from: usize, to: usize| {
        text.get(from..to.min(text.len())).unwrap_or_default().trim().to_owned()
    };
    Ok(starts
        .windows(2)
        .map(|pair| (cut(header, pair[0], pair[1]), cut(line, pair[0], pair[1])))
        .collect())
}

fn column<'a>(row: &'a [(String, String)], name: &str) -> &'a str {
    row.iter().find(|(header, _)| header == name).map_or("", |(_, value)| value)
}

#[test]
fn hpa_and_policy_show_the_same_demand() {
    run(async {
        let cluster = share().await?;
        let namespace = "reads-tables";
        workload(&cluster, namespace).await?;
        // The HPA looks every 15 s; the status follows a condition's change.
        let shown = eventually(Duration::from_secs(60), "the tables", async || {
            let hpa = row(&cluster.plane.kubectl(&["get", "hpa", NAME, "-n", namespace])?)?;
            let spol = row(&cluster.plane.kubectl(&["get", "spol", NAME, "-n", namespace])?)?;
            let settled = column(&hpa, "TARGETS") == "1/1 (avg)" && column(&spol, "DEMAND") == "2";
            Ok(settled.then_some((hpa, spol)))
        })
        .await;
        let conditions = cluster.plane.kubectl(&["describe", "hpa", NAME, "-n", namespace])?;
        let policies = cluster.plane.kubectl(&["get", "spol", "-n", namespace, "-o", "yaml"])?;
        cluster.delete_namespace(namespace).await?;
        let (hpa, spol) = shown.with_context(|| format!("{conditions}\n{policies}"))?;
        ensure!(column(&hpa, "REPLICAS") == "2", "{hpa:?}");
        for (name, expected) in [
            ("TARGET", NAME),
            ("REPLICAS", "2"),
            ("DRIVER", "queue"),
            ("COVERAGE", "1"),
            ("READY", "True"),
        ] {
            ensure!(column(&spol, name) == expected, "{name}: {spol:?}");
        }
        ensure!(conditions.contains("ValidMetricFound"), "{conditions}");
        Ok(())
    });
}

#[test]
fn every_apiservice_is_available_and_checked_by_its_authority() {
    run(async {
        let cluster = share().await?;
        let names = cluster.adapter().await?.installation().api_services.clone();
        ensure!(names.iter().any(|name| name == "v1beta1.external.metrics.k8s.io"), "{names:?}");
        for name in names {
            let text = cluster.plane.kubectl(&["describe", "apiservice", &name])?;
            ensure!(text.contains("all checks passed"), "{text}");
            ensure!(text.contains("Ca Bundle:"), "served without an authority: {text}");
            ensure!(!text.contains("Insecure Skip TLS Verify:  true"), "{text}");
        }
        Ok(())
    });
}

#[test]
fn a_table_of_kubectl_is_read_by_its_header() {
    let table = "NAME     TARGETS     REPLICAS\nsample   1/1 (avg)   2\n";
    let row = row(table).expect("a header and a row");
    assert_eq!(column(&row, "TARGETS"), "1/1 (avg)");
    assert_eq!(column(&row, "REPLICAS"), "2");
    assert_eq!(column(&row, "NAME"), "sample");
}
