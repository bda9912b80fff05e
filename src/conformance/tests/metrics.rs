//! The twin's numbers: what a correct adapter serves of a fixture, and what nine known bugs make of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::conformance::fixture::{Fixture, Object, Series};
use crate::quantity::Quantity;
use crate::sample::{Labels, Selector};
use crate::time::{Timestamp, wall_now};

/// One bug that another adapter has, or had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// prometheus-adapter: external NaN is cast to an int64, custom NaN is 0.
    CastsNan,
    /// prometheus-adapter: the `apiVersion` of a core object is `/v1`.
    SlashVersion,
    /// prometheus-adapter: of several series of one object the last counts.
    LastSeriesCounts,
    /// zalando's kube-metrics-adapter: the selector of pods is not looked at.
    IgnoresPodLabels,
    /// zalando's kube-metrics-adapter: the time to live is not looked at when reading.
    IgnoresAge,
    /// KEDA's `useCachedMetrics`: the last value stands in for ever.
    CachesForEver,
    /// KEDA: ready, though what it asks is not there.
    ReadyWithoutBackend,
    /// KEDA: authorities are added to a pool, and never leave it.
    KeepsOldAuthorities,
    /// metrics-server: what is at 0 is left out.
    DropsZero,
}

/// Why there is no list.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: &str) -> Self {
        Self { code, reason, message: message.to_owned() }
    }

    pub(super) fn not_found(message: &str) -> Self {
        Self::new(404, "NotFound", message)
    }
}

fn parsed(selector: &str) -> Result<Selector, Refusal> {
    Selector::parse(selector).map_err(|error| Refusal::new(400, "BadRequest", &error.to_string()))
}

fn is_stale(series: &Series, fixture: &Fixture, bug: Option<Bug>) -> bool {
    series.age_seconds > fixture.stale_after_seconds && bug != Some(Bug::IgnoresAge)
}

/// The value as text, `None` for one that the bug drops.
fn value(value: f64, bug: Option<Bug>, nan: &str) -> Result<Option<String>, Refusal> {
    if value.is_nan() && bug == Some(Bug::CastsNan) {
        return Ok(Some(nan.to_owned()));
    }
    if !value.is_finite() || value < 0.0 {
        return Err(Refusal::new(
            503,
            "NotANumber",
            "the value is not a number that can be served",
        ));
    }
    let quantity = Quantity::from_served(value).expect("finite");
    let dropped = quantity == Quantity::default() && bug == Some(Bug::DropsZero);
    Ok((!dropped).then(|| quantity.to_string()))
}

fn number(series: &Series) -> f64 {
    series.value.parse().expect("the suite writes numbers")
}

fn sampled(age_seconds: u64) -> String {
    let age = i64::try_from(Duration::from_secs(age_seconds).as_millis()).expect("a short time");
    Timestamp::from_millis(wall_now().as_millis() - age).to_string()
}

pub(super) fn external(
    fixture: &Fixture,
    bug: Option<Bug>,
    metric: &str,
    selector: &str,
) -> Result<Value, Refusal> {
    let picks = parsed(selector)?;
    let labels = |series: &Series| series.labels.iter().collect::<Labels>();
    let named =
        |series: &&Series| series.object.is_none() && series.name.eq_ignore_ascii_case(metric);
    let known: Vec<&Series> = fixture.series.iter().filter(named).collect();
    if known.is_empty() {
        return Err(Refusal::not_found("there is no such metric"));
    }
    let mut items = Vec::new();
    for series in known.into_iter().filter(|series| picks.matches(&labels(series))) {
        if is_stale(series, fixture, bug) {
            let message = format!("stale: last sample {} s ago", series.age_seconds);
            return Err(Refusal::new(503, "Stale", &message));
        }
        let Some(value) = value(number(series), bug, "-9223372036854775808m")? else { continue };
        items.push(json!({
            "metricName": metric, "metricLabels": series.labels,
            "timestamp": sampled(series.age_seconds), "window": 0, "value": value,
        }));
    }
    Ok(json!({
        "kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1",
        "metadata": {}, "items": items,
    }))
}

/// `rest` is the path after the version.
pub(super) fn custom(
    fixture: &Fixture,
    bug: Option<Bug>,
    version: &str,
    rest: &[&str],
    selector: &str,
) -> Result<Value, Refusal> {
    let (resource, name, metric) = match *rest {
        ["namespaces", namespace, "metrics", metric] => ("namespaces", namespace, metric),
        ["namespaces", _, resource, name, metric] | [resource, name, metric] => {
            (resource, name, metric)
        }
        _ => return Err(Refusal::not_found("no such path")),
    };
    let picks = parsed(if bug == Some(Bug::IgnoresPodLabels) { "" } else { selector })?;
    let picked = |object: &&Object| {
        object.resource == resource
            && (name == "*" || object.name == name)
            && picks.matches(&object.labels.iter().collect())
    };
    let mut items = Vec::new();
    for object in fixture.objects.iter().filter(picked) {
        items.extend(item(fixture, bug, object, version, metric)?);
    }
    if items.is_empty() && name != "*" {
        return Err(Refusal::not_found("there is no such object with the metric"));
    }
    let group_version = format!("custom.metrics.k8s.io/{version}");
    Ok(
        json!({"kind": "MetricValueList", "apiVersion": group_version, "metadata": {}, "items": items}),
    )
}

fn item(
    fixture: &Fixture,
    bug: Option<Bug>,
    object: &Object,
    version: &str,
    metric: &str,
) -> Result<Option<Value>, Refusal> {
    let of_it = |series: &&Series| {
        let is = |of: &crate::conformance::fixture::ObjectName| {
            of.resource == object.resource && of.name == object.name
        };
        series.name == metric && series.object.as_ref().is_some_and(is)
    };
    let fresh = |series: &&Series| !is_stale(series, fixture, bug);
    let mine: Vec<&Series> = fixture.series.iter().filter(of_it).filter(fresh).collect();
    let Some(last) = mine.last() else { return Ok(None) };
    let sum = mine.iter().map(|series| number(series)).sum();
    let total = if bug == Some(Bug::LastSeriesCounts) { number(last) } else { sum };
    let Some(value) = value(total, bug, "0")? else { return Ok(None) };
    let (kind, namespace) = match object.resource.as_str() {
        "pods" => ("Pod", json!(fixture.namespace)),
        "nodes" => ("Node", Value::Null),
        _ => ("Namespace", Value::Null),
    };
    let api_version = if bug == Some(Bug::SlashVersion) { "/v1" } else { "v1" };
    let mut item = json!({
        "describedObject": {
            "kind": kind, "namespace": namespace, "name": object.name, "apiVersion": api_version,
        },
        "timestamp": sampled(last.age_seconds), "value": value,
    });
    if version == "v1beta1" {
        item["metricName"] = metric.into();
        item["window"] = 0.into();
    } else {
        item["metric"] = json!({"name": metric, "selector": null});
        item["windowSeconds"] = 0.into();
    }
    Ok(Some(item))
}
