//! What Prometheus understands of `/metrics`: its own parser reads each format.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use axum::extract::Path;
use axum::routing::get;
use headroom::Agent;
use http::{Request, StatusCode};
use serde::Deserialize;
use tower::ServiceExt as _;

use crate::support::programs::checkout;
use crate::support::shared::run;

const DURATION: &str = "http_server_request_duration_seconds";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// What `tests/prometheus` prints of one sample.
#[derive(Debug, Deserialize)]
struct Entry {
    kind: String,
    name: String,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    value: String,
    #[serde(default)]
    schema: i32,
    #[serde(default)]
    count: u64,
    #[serde(default)]
    buckets: Vec<Bucket>,
    #[serde(default)]
    exemplar: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Bucket {
    upper: String,
    count: f64,
}

/// Prometheus' parser, built.
struct Parser {
    directory: tempfile::TempDir,
}

impl Parser {
    fn build() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new("go");
        command
            .args(["build", "-mod=readonly", "-o"])
            .arg(directory.path().join("parser"))
            .arg(".");
        command.current_dir(checkout().join("tests/prometheus"));
        let output = command.output().context("cannot run go")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Self { directory })
    }

    fn read(&self, agent: &Agent, accept: &str) -> Result<Vec<Entry>> {
        let (content_type, body) = agent.metrics(Some(accept));
        let mut command = Command::new(self.directory.path().join("parser"));
        command.arg(content_type).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        // The parser reads all before it writes.
        child.stdin.take().context("stdin is piped")?.write_all(&body)?;
        let output = child.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "Prometheus refuses {content_type}: {error}");
        let text = String::from_utf8(output.stdout)?;
        text.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
    }
}

/// An agent whose service had requests of many durations, the slow ones in a sampled trace.
async fn agent() -> Result<Agent> {
    let agent = Agent::builder().bind(([127, 0, 0, 1], 0).into()).start()?;
    let queue = prometheus::IntCounter::new("jobs_total", "Jobs")?;
    let waits = prometheus::HistogramOpts::new("wait_seconds", "Waits").buckets(vec![0.5, 1.0]);
    let waits = prometheus::Histogram::with_opts(waits)?;
    queue.inc_by(3);
    waits.observe(0.7);
    agent.registry().register(Box::new(queue))?;
    agent.registry().register(Box::new(waits))?;
    let answer = async |Path(millis): Path<u64>| {
        tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
        if millis == 5 { StatusCode::BAD_GATEWAY } else { StatusCode::OK }
    };
    let app = axum::Router::new().route("/wait/{millis}", get(answer)).layer(agent.http_layer());
    for millis in [0, 0, 0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89] {
        let mut request = Request::builder().uri(format!("/wait/{millis}"));
        if millis > 10 {
            request = request.header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"));
        }
        app.clone().oneshot(request.body(axum::body::Body::empty())?).await?;
    }
    Ok(agent)
}

const TEXT: &str = "text/plain;version=0.0.4";
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0";
const PROTOBUF: &str =
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

#[test]
fn prometheus_reads_every_format_and_finds_the_same_series() {
    run(async {
        let (parser, agent) = (Parser::build()?, agent().await?);
        let series = |accept| -> Result<BTreeSet<(String, BTreeMap<String, String>)>> {
            let entries = parser.read(&agent, accept)?;
            let samples = entries.into_iter().filter(|entry| entry.kind == "sample");
            let same_bound = |(name, mut labels): (String, BTreeMap<String, String>)| {
                if let Some(bound) = labels.get_mut("le") {
                    *bound = bound.parse::<f64>().map_or(String::new(), |bound| bound.to_string());
                }
                (name, labels)
            };
            Ok(samples.map(|entry| same_bound((entry.name, entry.labels))).collect())
        };
        let text = series(TEXT)?;
        for name in ["jobs_total", "wait_seconds_bucket", "http_server_requests_started_total"] {
            ensure!(text.iter().any(|(found, _)| found == name), "{name} is missing");
        }
        for accept in [OPENMETRICS, PROTOBUF] {
            let other = series(accept)?;
            let differing: Vec<_> = text.symmetric_difference(&other).collect();
            ensure!(differing.is_empty(), "{accept}: {differing:?}");
        }
        Ok(())
    });
}

#[test]
fn native_and_classic_buckets_agree_by_prometheus_own_bounds() {
    run(async {
        let (parser, agent) = (Parser::build()?, agent().await?);
        let entries = parser.read(&agent, PROTOBUF)?;
        let natives: Vec<&Entry> = entries.iter().filter(|entry| entry.kind == "native").collect();
        ensure!(natives.len() == 2, "one of status 200 and one of 502: {natives:?}");
        for native in natives {
            ensure!(native.name == DURATION && native.schema == 3, "{native:?}");
            let sums: f64 = native.buckets.iter().map(|bucket| bucket.count).sum();
            ensure!((sums - native.count as f64).abs() < 0.5, "{native:?}");
            let classic = entries.iter().filter(|entry| {
                let of_series =
                    |(name, value)| name == "le" || native.labels.get(name) == Some(value);
                entry.name == format!("{DURATION}_bucket")
                    && entry.kind == "sample"
                    && entry.labels.iter().all(of_series)
            });
            let mut compared = 0;
            for bucket in classic {
                let bound: f64 = bucket.labels["le"].parse()?;
                let mut below = 0.0;
                for bucket in &native.buckets {
                    below += if bucket.upper.parse::<f64>()? <= bound { bucket.count } else { 0.0 };
                }
                ensure!(bucket.value.parse::<f64>()? - below == 0.0, "{bucket:?} of {native:?}");
                compared += 1;
            }
            ensure!(compared == 30, "29 bounds and infinity: {compared}");
        }
        Ok(())
    });
}

#[test]
fn prometheus_finds_the_traces_of_sampled_requests() {
    run(async {
        let (parser, agent) = (Parser::build()?, agent().await?);
        for accept in [OPENMETRICS, PROTOBUF] {
            let entries = parser.read(&agent, accept)?;
            let exemplars: Vec<_> = entries
                .iter()
                .filter(|entry| entry.kind == "exemplar" && entry.name.ends_with("_bucket"))
                .collect();
            ensure!(!exemplars.is_empty(), "{accept}");
            for exemplar in exemplars {
                ensure!(exemplar.exemplar["trace_id"] == TRACE, "{exemplar:?}");
                let (value, bound) = (exemplar.value.parse::<f64>()?, &exemplar.labels["le"]);
                ensure!(value > 0.010 && value <= bound.parse()?, "{exemplar:?}");
            }
        }
        Ok(())
    });
}
