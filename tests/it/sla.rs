//! Many autoscalers at once: whether the adapter keeps up with the real HPA controller, and the controller with its period.
//!
//! The figures are the controller's own, and the times between its passes are those of its requests in the adapter's audit
//! log. `make sla` judges figures; `make test` runs a small slice and judges counts only.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::adapter::Adapter;
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions, free_ports};
use crate::support::paper_node::{PaperNode, paper_deployment};
use crate::support::programs::checkout;
use crate::support::shared::{eventually, run};
use crate::support::workload::{PolicyOptions, apply, policy};

const NAMESPACE: &str = "fleet";
/// One pod's worth: the autoscalers look, and change nothing.
const METRICS: &str = "# TYPE queue_depth gauge\nqueue_depth 10\n";
const HPA: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
const RECONCILIATION: &str =
    "horizontal_pod_autoscaler_controller_reconciliation_duration_seconds_bucket{";
const COMPUTATION: &str =
    "horizontal_pod_autoscaler_controller_metric_computation_duration_seconds_bucket{";
/// For all autoscalers to be active.
const PATIENCE: Duration = Duration::from_secs(240);
const RECONCILED_WITHIN_SECONDS: f64 = 0.1;
const BETWEEN_PASSES_SECONDS: f64 = 16.0;

/// How many autoscalers, how often the controller looks, and how long it is looked at.
struct Fleet {
    autoscalers: usize,
    period: Duration,
    watched: Duration,
}

/// What was seen in the time that was looked at.
struct Seen {
    active: usize,
    requests: Requests,
    reconciliations: Histogram,
    computations: Histogram,
}

/// The controller's requests to the adapter that were answered.
#[derive(Debug, Default)]
struct Requests {
    /// By policy: when the controller asked for its metric, in seconds, in order.
    passes: BTreeMap<String, Vec<f64>>,
    /// In how many seconds it was answered, fastest first.
    answers: Vec<f64>,
}

/// Counts by upper bound in seconds, each with all that are below.
#[derive(Clone, Debug, Default, PartialEq)]
struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// Reads the buckets of a family, over all labels.
    fn parse(text: &str, family: &str) -> Self {
        let mut counts: Vec<(f64, f64)> = Vec::new();
        for line in text.lines().filter(|line| line.starts_with(family)) {
            let bound = line.split_once("le=\"").and_then(|(_, rest)| rest.split_once('"'));
            let bound = bound.and_then(|(bound, _)| bound.replace("+Inf", "inf").parse().ok());
            let count = line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
            let (Some(bound), Some(count)) = (bound, count) else { continue };
            match counts.iter_mut().find(|(known, _)| f64::total_cmp(known, &bound).is_eq()) {
                Some((_, sum)) => *sum += count,
                None => counts.push((bound, count)),
            }
        }
        counts.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        Self(counts)
    }

    fn since(&self, before: &Self) -> Self {
        let earlier = |bound: f64| {
            let known = before.0.iter().find(|(known, _)| known.total_cmp(&bound).is_eq());
            known.map_or(0.0, |(_, count)| *count)
        };
        Self(self.0.iter().map(|(bound, count)| (*bound, count - earlier(*bound))).collect())
    }

    fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The bounds of the bucket in which the quantile lies: what can be said without a guess.
    fn quantile(&self, quantile: f64) -> Option<(f64, f64)> {
        let rank = quantile * self.count();
        let at = self.0.iter().position(|(_, count)| *count >= rank && *count > 0.0)?;
        let lower = at.checked_sub(1).map_or(0.0, |below| self.0[below].0);
        Some((lower, self.0[at].0))
    }

    /// The quantile as Prometheus interpolates it: as if a bucket's values lay evenly in it.
    fn interpolated(&self, quantile: f64) -> f64 {
        let Some((lower, upper)) = self.quantile(quantile) else { return f64::NAN };
        let until = |bound: f64| {
            let known = self.0.iter().find(|(known, _)| known.total_cmp(&bound).is_eq());
            known.map_or(0.0, |(_, count)| *count)
        };
        let (below, within) = (until(lower), until(upper));
        lower + (upper - lower) * (quantile * self.count() - below) / (within - below)
    }
}

impl Seen {
    /// The times between the passes of one autoscaler, of all of them, shortest first.
    fn gaps(&self) -> Vec<f64> {
        let each =
            self.requests.passes.values().flat_map(|times| times.windows(2).map(|w| w[1] - w[0]));
        let mut gaps: Vec<f64> = each.collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    }

    fn report(&self, fleet: &Fleet) -> Result<String> {
        let gaps = self.gaps();
        let gap = |part: f64| at(&gaps, part);
        let mut text = format!(
            "## {} autoscalers at once\n\n{} of them ScalingActive, looked at for {:?} after all were, period {:?}, {} passes; measured on \
             a machine that others used at the same time.\n\n| what | p50 | p99 | largest | bar |\n|---|---|---|---|---|\n",
            fleet.autoscalers,
            self.active,
            fleet.watched,
            fleet.period,
            self.reconciliations.count()
        );
        for (name, histogram, bar) in [
            ("`reconciliation_duration_seconds`, ms", &self.reconciliations, "p99 under 100"),
            ("`metric_computation_duration_seconds`, ms", &self.computations, "none"),
        ] {
            let shown = |quantile: f64| histogram.interpolated(quantile) * 1000.0;
            let largest = histogram.quantile(1.0).map_or(f64::NAN, |(_, upper)| upper * 1000.0);
            writeln!(
                text,
                "| {name} | {:.1} | {:.1} | at most {largest:.0} | {bar} |",
                shown(0.5),
                shown(0.99)
            )?;
        }
        let answer = |part: f64| at(&self.requests.answers, part) * 1000.0;
        writeln!(
            text,
            "| the adapter's answer to the controller, by its audit log, ms | {:.2} | {:.2} | {:.2} | none |",
            answer(0.5),
            answer(0.99),
            answer(1.0)
        )?;
        writeln!(
            text,
            "| between two passes of one autoscaler, s | {:.2} | {:.2} | {:.2} | largest at most 16 |",
            gap(0.5),
            gap(0.99),
            gap(1.0)
        )?;
        let late = gaps.iter().filter(|gap| **gap > BETWEEN_PASSES_SECONDS).count();
        writeln!(text, "\n{} times between passes, {late} of them over the bar.\n", gaps.len())?;
        Ok(text)
    }
}

/// The value at this part of what is sorted.
fn at(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of 0 to 1 of an index is an index"
    )]
    let index = (part * last as f64).ceil() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// A section of this run's report.
pub(crate) fn add_to_report(section: &str) -> Result<()> {
    eprintln!("{section}");
    let dir = checkout().join("target/it-artifacts");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("sla.md");
    let mut report = std::fs::OpenOptions::new().create(true).append(true).open(&file)?;
    report.write_all(section.as_bytes()).with_context(|| format!("{}", file.display()))
}

/// Makes a namespace of a control plane without the tests' own node, and waits until pods can be made in it.
pub(crate) async fn namespace(plane: &ControlPlane, name: &str) -> Result<()> {
    plane.kubectl(&["create", "namespace", name])?;
    let accounts = Api::<ServiceAccount>::namespaced(plane.client(), name);
    eventually(Duration::from_secs(30), "the default ServiceAccount", async || {
        Ok(accounts.get_opt("default").await?.map(drop))
    })
    .await
}

/// A Deployment of one pod and its policy, whose autoscaler the adapter makes: as users have it.
async fn workload(client: Client, index: usize) -> Result<()> {
    let name = format!("app-{index:03}");
    apply(client.clone(), NAMESPACE, paper_deployment(&name, 1)).await?;
    let signals = json!([{"name": "queue",
        "metric": {"name": "queue_depth", "aggregate": "Max", "threshold": "10"}}]);
    let options = PolicyOptions { interval: Duration::from_secs(5), ..PolicyOptions::default() };
    apply(client, NAMESPACE, policy(&name, &signals, &options)).await?;
    Ok(())
}

/// How many of the autoscalers are active.
async fn active(client: &Client) -> Result<usize> {
    let hpas = Api::<HorizontalPodAutoscaler>::namespaced(client.clone(), NAMESPACE);
    let listed = hpas.list(&ListParams::default()).await?.items;
    let is_active = |hpa: &&HorizontalPodAutoscaler| {
        let conditions = hpa.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|one| one.type_ == "ScalingActive" && one.status == "True")
    };
    Ok(listed.iter().filter(is_active).count())
}

/// Reads the controller's requests from the audit log.
fn requests(log: &str, from: jiff::Timestamp) -> Result<Requests> {
    let mut requests = Requests::default();
    for line in log.lines().filter(|line| line.contains(r#""target":"audit""#)) {
        let line: Value = serde_json::from_str(line)?;
        let when: jiff::Timestamp = line["timestamp"].as_str().context("no time")?.parse()?;
        if line["user"] != HPA || line["code"] != 200 || when < from {
            continue;
        }
        let selector = line["label_selector"].as_str().context("no selector")?.to_owned();
        requests.passes.entry(selector).or_default().push(when.as_microsecond() as f64 / 1e6);
        requests.answers.push(line["elapsed_seconds"].as_f64().context("no duration")?);
    }
    requests.answers.sort_by(f64::total_cmp);
    Ok(requests)
}

async fn watch(fleet: &Fleet) -> Result<Seen> {
    let [port] = free_ports()?;
    let flags = [
        "--kube-api-qps=100",
        "--kube-api-burst=200",
        "--bind-address=127.0.0.1",
        "--authorization-always-allow-paths=/metrics",
    ];
    let mut controller_flags = flags.map(str::to_owned).to_vec();
    controller_flags.push(format!("--secure-port={port}"));
    let options = ControlPlaneOptions {
        hpa_sync_period: fleet.period,
        controller_flags,
        ..ControlPlaneOptions::new(&format!("sla-{}", fleet.autoscalers))?
    };
    eprintln!("logs are below {}", options.dir.display());
    let plane = ControlPlane::start(options).await?;
    let audit = vec![("HEADROOM_ADAPTER_AUDIT", "metadata".to_owned())];
    let adapter = Adapter::start_with(&plane, audit).await?;
    let _node = PaperNode::start(plane.client(), METRICS).await?;
    namespace(&plane, NAMESPACE).await?;
    let began = Instant::now();
    futures::stream::iter((0..fleet.autoscalers).map(|index| workload(plane.client(), index)))
        .buffer_unordered(16)
        .try_collect::<Vec<()>>()
        .await?;
    eprintln!("{} workloads were made in {:.1?}", fleet.autoscalers, began.elapsed());
    eventually(PATIENCE, "active autoscalers", async || {
        Ok((active(&plane.client()).await? == fleet.autoscalers).then_some(()))
    })
    .await?;
    eprintln!("all are active after {:.1?}", began.elapsed());

    let http =
        reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).build()?;
    let url = format!("https://127.0.0.1:{port}/metrics");
    let look = async || -> Result<String> {
        Ok(http.get(&url).send().await?.error_for_status()?.text().await?)
    };
    let (from, before) = (jiff::Timestamp::now(), look().await?);
    sleep(fleet.watched).await;
    let after = look().await?;
    let since =
        |family: &str| Histogram::parse(&after, family).since(&Histogram::parse(&before, family));
    let requests = requests(&std::fs::read_to_string(adapter.log())?, from)?;
    Ok(Seen {
        active: active(&plane.client()).await?,
        requests,
        reconciliations: since(RECONCILIATION),
        computations: since(COMPUTATION),
    })
}

/// What must hold however busy the machine is.
async fn watch_all(fleet: &Fleet) -> Result<Seen> {
    let seen = watch(fleet).await?;
    let twice = seen.requests.passes.values().filter(|times| times.len() >= 2).count();
    ensure!(seen.active == fleet.autoscalers, "{} are active at the end", seen.active);
    ensure!(twice == fleet.autoscalers, "{twice} were looked at twice or more");
    Ok(seen)
}

#[test]
fn every_one_of_twenty_autoscalers_is_reconciled_again_and_again() {
    run(async {
        let fleet = Fleet {
            autoscalers: 20,
            period: Duration::from_secs(5),
            watched: Duration::from_secs(25),
        };
        let seen = watch_all(&fleet).await?;
        ensure!(seen.reconciliations.count() >= 40.0, "{:?}", seen.reconciliations);
        Ok(())
    });
}

#[test]
#[ignore = "takes minutes: make sla"]
fn three_hundred_autoscalers_keep_their_period() {
    run(async {
        let fleet = Fleet {
            autoscalers: 300,
            period: Duration::from_secs(15),
            watched: Duration::from_secs(150),
        };
        let seen = watch_all(&fleet).await?;
        add_to_report(&seen.report(&fleet)?)?;
        let p99 = seen.reconciliations.interpolated(0.99);
        let longest = at(&seen.gaps(), 1.0);
        ensure!(p99 < RECONCILED_WITHIN_SECONDS, "p99 of a reconciliation: {p99} s");
        ensure!(longest <= BETWEEN_PASSES_SECONDS, "{longest} s between two passes");
        Ok(())
    });
}

#[test]
fn a_histogram_is_read_over_all_labels_and_between_two_looks() {
    let text = |ok: [u32; 3], error: [u32; 3]| {
        let line = |action: &str, le: &str, count: u32| {
            format!("x_bucket{{a=\"{action}\",le=\"{le}\"}} {count}\n")
        };
        ["0.1", "0.2", "+Inf"]
            .iter()
            .enumerate()
            .map(|(index, le)| line("ok", le, ok[index]) + &line("error", le, error[index]))
            .collect::<String>()
    };
    let before = Histogram::parse(&text([1, 1, 1], [0, 0, 0]), "x_bucket{");
    let after = Histogram::parse(&text([51, 91, 91], [0, 9, 10]), "x_bucket{");
    let seen = after.since(&before);
    let expected = [(0.1, 50.0), (0.2, 99.0), (f64::INFINITY, 100.0)];
    assert_eq!(seen.0, expected);
    assert_eq!(seen.quantile(0.5), Some((0.0, 0.1)));
    assert_eq!(seen.quantile(0.99), Some((0.1, 0.2)));
    assert!((seen.interpolated(0.25) - 0.05).abs() < 1e-9);
    assert!(seen.interpolated(0.999).is_infinite(), "over the largest bound nothing is known");
    assert!(Histogram::default().interpolated(0.5).is_nan());
}

#[test]
fn passes_are_the_requests_of_the_controller_that_were_answered() {
    let line = |second: u32, user: &str, code: u16| {
        json!({"timestamp": format!("2026-01-01T00:00:{second:02}Z"), "target": "audit", "user": user,
               "code": code, "elapsed_seconds": 0.001, "label_selector": "policy=app"})
        .to_string()
    };
    let log = [
        line(1, HPA, 200),
        line(3, HPA, 200),
        line(4, "other", 200),
        line(5, HPA, 503),
        line(18, HPA, 200),
    ];
    let from = "2026-01-01T00:00:02Z".parse().expect("a time");
    let requests = requests(&log.join("\n"), from).expect("whole lines");
    let times = &requests.passes["policy=app"];
    assert_eq!(requests.answers.len(), 2);
    assert_eq!(times.len(), 2);
    assert!((times[1] - times[0] - 15.0).abs() < 1e-6, "{times:?}");
}
