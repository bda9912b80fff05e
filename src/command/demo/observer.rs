//! Reads what a user could read: the HTTPS API and the agent's `/metrics`.
//!
//! In: the two addresses, the CA and the token. Out: an [`Observation`]. Never: a number taken from inside a process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::Value;

use super::credentials::api;
use crate::quantity::Quantity;
use crate::sources::{Limits, Wanted, parse};
use crate::time::wall_now;

/// What one round of reads saw. An `Err` is what the reader was told.
#[derive(Debug)]
pub(super) struct Observation {
    /// `headroom_demand`.
    pub demand: Result<f64, String>,
    /// `headroom_signal_demand` by signal.
    pub signals: BTreeMap<String, f64>,
    /// The raw totals that the API serves, by metric name; latency by `headroom_latency_seconds`.
    pub totals: BTreeMap<&'static str, f64>,
    /// Gauges of the service's own, from `/metrics`.
    pub gauges: Result<BTreeMap<&'static str, f64>, String>,
}

/// The raw totals that the view shows.
const TOTALS: &[&str] = &[
    "headroom_tasks",
    "headroom_heap_bytes",
    "headroom_allocation_bytes_per_second",
    "headroom_cpu_cores",
    "headroom_latency_seconds",
];

/// The service's own gauges that the view shows.
const GAUGES: &[&str] = &["queue_depth"];

pub(super) struct Observer {
    https: reqwest::Client,
    http: reqwest::Client,
    api: String,
    metrics: String,
    token: String,
}

/// Where to read.
pub(super) struct Endpoints<'a> {
    pub adapter: SocketAddr,
    pub agent: SocketAddr,
    pub ca_pem: &'a [u8],
    pub token: &'a str,
}

impl Observer {
    pub(super) fn new(endpoints: &Endpoints<'_>) -> anyhow::Result<Self> {
        let timeout = Duration::from_millis(900);
        let ca = reqwest::Certificate::from_pem(endpoints.ca_pem)
            .context("the demo's CA is not a certificate")?;
        let builder = || reqwest::Client::builder().timeout(timeout).no_proxy();
        Ok(Self {
            https: builder().tls_certs_only([ca]).build().context("cannot make an HTTPS client")?,
            http: builder().build().context("cannot make an HTTP client")?,
            api: api(endpoints.adapter),
            metrics: format!("http://{}/metrics", endpoints.agent),
            token: endpoints.token.to_owned(),
        })
    }

    pub(super) async fn observe(&self) -> Observation {
        let demand = self.items("headroom_demand").await.and_then(|items| {
            let first = items.first().ok_or_else(|| anyhow!("the answer has no item"))?;
            value(first)
        });
        let (mut signals, mut totals) = (BTreeMap::new(), BTreeMap::new());
        if demand.is_ok() {
            signals = self.signals().await.unwrap_or_default();
            for name in TOTALS {
                if let Some(total) = self.total(name).await {
                    totals.insert(*name, total);
                }
            }
        }
        let demand = demand.map_err(|error| format!("{error:#}"));
        Observation {
            demand,
            signals,
            totals,
            gauges: self.gauges().await.map_err(|e| format!("{e:#}")),
        }
    }

    async fn signals(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let items = self.items("headroom_signal_demand").await?;
        Ok(items
            .iter()
            .filter_map(|item| {
                Some((item["metricLabels"]["signal"].as_str()?.to_owned(), value(item).ok()?))
            })
            .collect())
    }

    async fn total(&self, name: &str) -> Option<f64> {
        self.items(name).await.ok()?.first().and_then(|item| value(item).ok())
    }

    async fn items(&self, metric: &str) -> anyhow::Result<Vec<Value>> {
        let request = self.https.get(format!("{}/{metric}", self.api)).bearer_auth(&self.token);
        let response = request.send().await.map_err(|error| anyhow!(short(&error)))?;
        let status = response.status();
        let body: Value = response.json().await.context("the answer is not JSON")?;
        if !status.is_success() {
            let message = body["message"].as_str().unwrap_or("no message");
            return Err(anyhow!("{}", brief(message)));
        }
        Ok(body["items"].as_array().cloned().unwrap_or_default())
    }

    async fn gauges(&self) -> anyhow::Result<BTreeMap<&'static str, f64>> {
        let response =
            self.http.get(&self.metrics).send().await.map_err(|error| anyhow!(short(&error)))?;
        let body = response.bytes().await.context("/metrics broke off")?;
        let wanted =
            GAUGES.iter().map(|name| crate::sample::MetricName::new(name)).collect::<Wanted>();
        let parsed = parse(&body, &wanted, &Limits::default(), wall_now())?;
        let find = |name: &&'static str| {
            parsed
                .samples
                .iter()
                .find(|s| s.series.name.as_str() == *name)
                .map(|s| (*name, s.value))
        };
        Ok(GAUGES.iter().filter_map(find).collect())
    }
}

fn value(item: &Value) -> anyhow::Result<f64> {
    let text = item["value"].as_str().context("an item has no value")?;
    Ok(text.parse::<Quantity>()?.to_f64())
}

/// A refusal without the name of the policy, of which there is one here, and without since when and why: both are in the
/// picture already.
fn brief(message: &str) -> &str {
    let message = message.split_once("policy default/sample: ").map_or(message, |(_, why)| why);
    let rest = [", the newest sample", " since the adapter took up", "; "];
    let end = rest.iter().filter_map(|part| message.find(part)).min();
    &message[..end.unwrap_or(message.len())]
}

/// The innermost cause: "connection refused" says more than the chain around it.
fn short(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        let text = cause.to_string().to_lowercase();
        text.split(" (os error").next().unwrap_or(&text).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_clause_and_names_no_second_age() {
        let check = |message, expected| assert_eq!(brief(message), expected);
        let silent = "headroom_demand: policy default/sample: signal tasks: none of 1 pods reports, \
                      the newest sample is of 2026-11-24T10:12:55Z, 9 s ago; sample: cannot connect";
        check(silent, "signal tasks: none of 1 pods reports");
        let second =
            "headroom_demand: policy default/sample: signal cpu: waiting for its second sample";
        check(second, "signal cpu: waiting for its second sample");
        let none = "headroom_demand: policy default/sample: no sample of Deployment sample has arrived since the \
                    adapter took up this policy";
        check(none, "no sample of Deployment sample has arrived");
        check("unauthorized", "unauthorized");
    }
}
