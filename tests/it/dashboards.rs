//! The shipped dashboards and recording rules against a real Prometheus that scrapes a running system as the shipped configuration
//! says: every query returns data, for all and for each value of each variable.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::load::{Load, LoadDriver};
use crate::support::packaging::files;
use crate::support::programs::checkout;
use crate::support::prometheus::{Prometheus, rules_file};
use crate::support::shared::{Cluster, eventually, run};
use crate::support::workload::{PolicyOptions, SampleOptions, create, policy, sample_deployment};

const NAMESPACE: &str = "shop";
const NAME: &str = "checkout";
/// The shipped 15 s would only make the test longer.
const INTERVAL: &str = "2s";
/// In place of `$__rate_interval`: some scrapes.
const RATE_INTERVAL: &str = "20s";

/// The shipped configuration. Pods are found as it says; the adapter is no pod here, so it is named.
fn configuration(plane: &ControlPlane, adapter: &str) -> Result<String> {
    let shipped = checkout().join("manifests/components/prometheus/scrape-config.yaml");
    let mut config: Value = serde_saphyr::from_str(&std::fs::read_to_string(shipped)?)?;
    for job in config["scrape_configs"].as_array_mut().context("jobs")? {
        job["scrape_interval"] = json!(INTERVAL);
        if job["job_name"] == "headroom-adapter" {
            let job = job.as_object_mut().context("a job")?;
            job.retain(|key, _| !["kubernetes_sd_configs", "relabel_configs"].contains(&&**key));
            let labels = json!({"namespace": "headroom-system", "pod": "headroom-adapter-0"});
            job.insert(
                "static_configs".to_owned(),
                json!([{"targets": [adapter], "labels": labels}]),
            );
        } else {
            job["kubernetes_sd_configs"][0]["kubeconfig_file"] = json!(plane.kubeconfig());
        }
    }
    config["rule_files"] = json!(["rules.yaml"]);
    config["global"] = json!({"evaluation_interval": INTERVAL});
    Ok(config.to_string())
}

/// Five pods with the agent, whose policy has signals of each kind, and load on all of them.
async fn system(cluster: &Cluster) -> Result<Vec<LoadDriver>> {
    drop(cluster.adapter().await?);
    cluster.namespace(NAMESPACE).await?;
    let client = cluster.plane.client();
    let limits = json!({"cpu": "500m", "memory": "512Mi"});
    let sample = SampleOptions { replicas: 5, limits, ..SampleOptions::default() };
    let mut deployment = sample_deployment(NAME, &sample);
    deployment["spec"]["template"]["metadata"]["labels"]["headroom.dev/agent"] = json!("true");
    create(client.clone(), NAMESPACE, deployment).await?;
    let signals = json!([
        {"name": "tasks", "tasks": {"threshold": "100"}},
        {"name": "heap", "heap": {"threshold": "256Mi"}},
        {"name": "queue", "metric": {"name": "queue_depth", "threshold": "100"}},
    ]);
    let options = PolicyOptions { min: 2, max: 10, ..PolicyOptions::default() };
    create(client.clone(), NAMESPACE, policy(NAME, &signals, &options)).await?;
    let start = |load| LoadDriver::start(client.clone(), NAMESPACE, NAME, load);
    Ok(vec![
        start(Load::held("/tasks", "count", 650.0, Duration::from_secs(5)))?,
        start(Load::Requests { path: "/work?milliseconds=5", per_second: 20.0 })?,
    ])
}

/// What a variable of a dashboard can be.
struct Variable {
    all: String,
    values: Vec<String>,
}

/// The variables of a dashboard whose values are asked of Prometheus, by name.
async fn variables(prometheus: &Prometheus, board: &Value) -> Result<BTreeMap<String, Variable>> {
    let mut found = BTreeMap::new();
    for variable in board["templating"]["list"].as_array().context("variables")? {
        let name = variable["name"].as_str().context("a name")?.to_owned();
        let Some(definition) = variable["query"]["query"].as_str() else { continue };
        let all = variable["allValue"].as_str().context("a value for all")?;
        let asked = definition
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "));
        let (series, label) = asked.with_context(|| definition.to_owned())?;
        let series = ["namespace", "service", "policy", "pod", "instance"]
            .iter()
            .fold(series.to_owned(), |text, name| text.replace(&format!("${name}"), ".*"));
        let path = format!("label/{label}/values");
        let values = prometheus.data(&path, &[("match[]", &series)]).await?;
        let values: Vec<String> = serde_json::from_value(values)?;
        ensure!(!values.is_empty(), "the variable {name} has no value: {definition}");
        found.insert(name, Variable { all: all.to_owned(), values });
    }
    Ok(found)
}

/// Whether there is a finite point.
async fn has_data(prometheus: &Prometheus, expression: &str) -> Result<bool> {
    let data = prometheus.data("query", &[("query", expression)]).await?;
    let series = data["result"].as_array().context("a vector")?;
    let value = |series: &Value| series["value"][1].as_str()?.parse::<f64>().ok();
    Ok(series.iter().filter_map(value).any(f64::is_finite))
}

/// The queries of a dashboard that return nothing, or an error.
async fn empty_of(prometheus: &Prometheus, file: &Path) -> Result<(usize, Vec<String>)> {
    let board: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let variables = variables(prometheus, &board).await?;
    let all: BTreeMap<&str, &str> =
        variables.iter().map(|(name, variable)| (&**name, &*variable.all)).collect();
    let mut choices = vec![all.clone()];
    for (name, variable) in &variables {
        choices.extend(variable.values.iter().map(|value| {
            let mut choice = all.clone();
            choice.insert(name, value);
            choice
        }));
    }
    let (mut asked, mut empty) = (0, Vec::new());
    let panels = board["panels"].as_array().context("panels")?;
    let targets = panels.iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(move |target| (&panel["title"], &target["expr"]))
    });
    for (title, expression) in targets {
        let expression = expression.as_str().with_context(|| format!("{title} has no query"))?;
        let expression = expression.replace("$__rate_interval", RATE_INTERVAL);
        for choice in &choices {
            let filled = choice.iter().fold(expression.clone(), |text, (name, value)| {
                text.replace(&format!("${name}"), value)
            });
            asked += 1;
            match has_data(prometheus, &filled).await {
                Ok(true) => {}
                Ok(false) => empty.push(format!("{title} is empty for {choice:?}: {filled}")),
                Err(error) => empty.push(format!("{title}: {error:#}: {filled}")),
            }
        }
    }
    Ok((asked, empty))
}

/// The recorded series that do not exist.
async fn unrecorded(prometheus: &Prometheus) -> Result<Vec<String>> {
    let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(rules_file())?)?;
    let groups = rules["groups"].as_array().context("groups")?;
    let rules = groups.iter().flat_map(|group| group["rules"].as_array()).flatten();
    let mut missing = Vec::new();
    for name in rules.filter_map(|rule| rule["record"].as_str()) {
        if !has_data(prometheus, name).await? {
            missing.push(format!("{name} is not recorded"));
        }
    }
    Ok(missing)
}

/// How many queries were asked, and what is wrong with some.
async fn asked_all(prometheus: &Prometheus) -> Result<(usize, Vec<String>)> {
    let (mut asked, mut wrong) = (0, unrecorded(prometheus).await?);
    for file in files(&checkout().join("dashboards"), "json")? {
        let (queries, empty) = empty_of(prometheus, &file).await?;
        asked += queries;
        wrong.extend(empty.into_iter().map(|what| format!("{}: {what}", file.display())));
    }
    Ok((asked, wrong))
}

/// A running system, and a Prometheus that scrapes it.
async fn scraped(cluster: &Cluster) -> Result<(Vec<LoadDriver>, Prometheus)> {
    let loads = system(cluster).await?;
    let adapter = cluster.adapter().await?.metrics_url();
    let config = configuration(&cluster.plane, adapter.trim_start_matches("http://"))?;
    let rules = std::fs::read_to_string(rules_file())?;
    let dir = cluster.plane.dir().join("prometheus");
    Ok((loads, Prometheus::configured(&dir, &config, &rules)?))
}

/// `make pictures`: the dashboards of a system under load, drawn.
#[test]
#[ignore = "needs Node.js and Chromium, and takes some minutes"]
fn pictures() {
    run(async {
        let cluster = Cluster::start(ControlPlaneOptions::new("pictures")?).await?;
        let (_loads, prometheus) = scraped(&cluster).await?;
        eprintln!("four minutes of load, so that there is something to see");
        tokio::time::sleep(Duration::from_secs(240)).await;
        let script = checkout().join("tests/pictures/draw.sh");
        let mut draw = std::process::Command::new(script);
        draw.arg(prometheus.url()).arg(checkout().join("docs/pictures"));
        // On a thread of its own: the load goes on meanwhile.
        let drawn = tokio::task::spawn_blocking(move || draw.status()).await??;
        ensure!(drawn.success(), "the pictures were not drawn");
        Ok(())
    });
}

#[test]
fn every_query_of_every_dashboard_and_recording_rule_returns_data_of_a_running_system() {
    run(async {
        let cluster = Cluster::start(ControlPlaneOptions::new("dashboards")?).await?;
        let (_loads, prometheus) = scraped(&cluster).await?;
        let mut last = String::new();
        let everything = eventually(Duration::from_secs(150), "data for every query", async || {
            // It takes a moment to listen, and the variables some scrapes to have values.
            let (asked, wrong) = match asked_all(&prometheus).await {
                Ok(said) => said,
                Err(error) => (0, vec![format!("{error:#}")]),
            };
            last = wrong.join("\n");
            Ok(wrong.is_empty().then_some(asked))
        })
        .await;
        let asked = everything.with_context(|| last.clone())?;
        eprintln!("{asked} queries returned data");
        ensure!(asked > 300, "only {asked} queries were asked");
        // The check itself fails where a metric has another name.
        ensure!(!has_data(&prometheus, "sum(tokio_living_tasks)").await?, "no such metric");
        Ok(())
    });
}
