//! Cases 31 to 38: how values, items and lists are written.

use serde_json::{Map, Value};

use super::case::{Case, Check, Outcome, Passed, Stop, expect};
use super::protobuf;
use super::reading::{self, Reading};
use super::routing::QPS;
use super::suite::{KnownMetric, Suite};
use super::wire::Answer;
use crate::quantity::{MAX_SERVED, Quantity};
use crate::time::{Timestamp, wall_now};

const HPA_ACCEPT: &str = "application/vnd.kubernetes.protobuf, */*";
const KUBECTL_ACCEPT: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,\
    application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
/// Between this machine's clock and the adapter's.
const CLOCKS_DIFFER_MILLIS: i64 = 3_000;
const POD: &str = "conformance-pod-0";

pub(super) const CASES: [Case; 8] = [
    Case {
        number: 31,
        name: "the HPA's Accept gets an answer that it can decode",
        what: "`Accept: application/vnd.kubernetes.protobuf, */*`: JSON with `Content-Type: application/json`, or Kubernetes' protobuf.",
        consequence_for_hpa: "FailedGetExternalMetric: the answer cannot be decoded",
        check: Check::OnTheWire(|suite| Box::pin(hpa_accept(suite))),
    },
    Case {
        number: 32,
        name: "kubectl's Accept gets the plain list",
        what: "`Accept: application/json;as=Table;…,application/json`: the list in JSON, not 406.",
        consequence_for_hpa: "none; `kubectl get --raw` and plugins fail",
        check: Check::OnTheWire(|suite| Box::pin(kubectl_accept(suite))),
    },
    Case {
        number: 33,
        name: "values are canonical quantities, and zero is one",
        what: "1.5, 0.1, 1000, 0 and 1234567 are `1500m`, `100m`, `1k`, `0` and `1234567`; for a pod too 0 is an item.",
        consequence_for_hpa: "a value is refused or misread; an idle pod counts as missing",
        check: Check::OnTheWire(|suite| Box::pin(quantities(suite))),
    },
    Case {
        number: 34,
        name: "NaN and infinity are never numbers, negatives never negative",
        what: "NaN and ±Inf: no item, or an error; -1: no item, 0, or an error. External and custom alike.",
        consequence_for_hpa: "NaN as int64 scales to the maximum, NaN as 0 to the minimum",
        check: Check::OnTheWire(|suite| Box::pin(not_numbers(suite))),
    },
    Case {
        number: 35,
        name: "a value above 9.2e15 is clamped",
        what: "1e17: at most 9.2e15, or an error. Beyond it the HPA's milli value overflows an int64 in silence.",
        consequence_for_hpa: "a huge value reads as 0 or negative: it scales to a limit",
        check: Check::OnTheWire(|suite| Box::pin(clamped(suite))),
    },
    Case {
        number: 36,
        name: "an item has the fields and types of ExternalMetricValue",
        what: "The fields of upstream's golden file and no others; protobuf, where it is answered, says the same.",
        consequence_for_hpa: "one item that does not decode loses the whole list",
        check: Check::OnTheWire(|suite| Box::pin(golden(suite))),
    },
    Case {
        number: 37,
        name: "custom v1beta1 and v1beta2 each use their own field names",
        what: "v1beta1: `metricName`, `window`. v1beta2: `metric.name`, `windowSeconds`. A pod's `apiVersion` is `v1`.",
        consequence_for_hpa: "the metric's name or window is lost; references do not resolve",
        check: Check::OnTheWire(|suite| Box::pin(versions(suite))),
    },
    Case {
        number: 38,
        name: "timestamps are the sample's: RFC 3339, UTC, whole seconds",
        what: "A sample ten seconds old says so; `window` is a whole number of seconds.",
        consequence_for_hpa: "none; it logs them. People cannot see that a number is old",
        check: Check::OnTheWire(|suite| Box::pin(timestamps(suite))),
    },
];

async fn read(suite: &Suite, metric: &KnownMetric, accept: &str) -> Result<Answer, Stop> {
    let path = suite.external_path(&metric.name, &metric.selector);
    suite.get(path).accept(accept).send().await
}

/// What does not change from read to read.
fn series(readings: &[Reading], with_values: bool) -> Vec<String> {
    let mut found: Vec<String> = readings
        .iter()
        .map(|reading| {
            let value = if with_values { reading.value.to_string() } else { String::new() };
            format!("{:?} {value}", reading.labels)
        })
        .collect();
    found.sort();
    found
}

async fn hpa_accept(suite: &Suite) -> Outcome {
    let metric = suite.known_external().await?;
    let asked = reading::external(&read(suite, &metric, HPA_ACCEPT).await?)?;
    let json = reading::external(&read(suite, &metric, "application/json").await?)?;
    let same = series(&asked, metric.staged) == series(&json, metric.staged);
    expect(same, reading::shown(&json), reading::shown(&asked))?;
    is_staged(&metric, &asked)?;
    Ok(Passed::Wholly)
}

async fn kubectl_accept(suite: &Suite) -> Outcome {
    let metric = suite.known_external().await?;
    let answer = read(suite, &metric, KUBECTL_ACCEPT).await?;
    answer.kind("ExternalMetricValueList")?;
    is_staged(&metric, &reading::external(&answer)?)?;
    Ok(Passed::Wholly)
}

/// The fixture's queues, if it is they.
fn is_staged(metric: &KnownMetric, items: &[Reading]) -> Result<(), Stop> {
    let sum: i64 = reading::milli_values(items).iter().sum();
    expect(!metric.staged || sum == 85_000, "2 items: 42, 43", reading::shown(items))
}

const QUANTITIES: [(&str, &str); 5] =
    [("1.5", "1500m"), ("0.1", "100m"), ("1000", "1k"), ("0", "0"), ("1234567", "1234567")];

async fn quantities(suite: &Suite) -> Outcome {
    let fixture = QUANTITIES.iter().fold(suite.fixture(), |fixture, (value, _)| {
        fixture.external(suite.queue(), &[(suite.label(0, "n"), &format!("v{value}"))], value)
    });
    suite.stage(&fixture).await?;
    let items =
        reading::external(&suite.get(suite.external_path(suite.queue(), "")).send().await?)?;
    for (value, expected) in QUANTITIES {
        let label = format!("v{value}");
        let item = items.iter().find(|item| item.labels.get(suite.label(0, "n")) == Some(&label));
        let got = item.map_or("no item", Reading::value_text);
        expect(got == expected, format!("{expected:?} for {value}"), format!("{got:?}"))?;
    }
    let pod = suite.fixture().object("pods", POD, &[]).of_object("pods", POD, QPS, "0");
    match suite.stage(&pod).await {
        Err(Stop::Skip(_)) => {
            return Ok(Passed::Without("a pod at 0: its fixture cannot stage it"));
        }
        staged => drop(staged?),
    }
    let path = suite.custom_path(&format!("pods/%2A/{QPS}"), "");
    let items = reading::custom(&suite.get(path).send().await?, "v1beta2")?;
    let zero = items.len() == 1 && items[0].value == Quantity::default();
    expect(zero, "1 items: 0, for a pod at 0", reading::shown(&items))?;
    Ok(Passed::Wholly)
}

async fn not_numbers(suite: &Suite) -> Outcome {
    let mut custom = true;
    for value in ["NaN", "+Inf", "-Inf", "-1"] {
        suite.stage(&suite.fixture().external(suite.queue(), &[], value)).await?;
        let answer = suite.get(suite.external_path(suite.queue(), "")).send().await?;
        is_left_out(value, &answer, reading::external)?;
        let pod = suite.fixture().object("pods", POD, &[]).of_object("pods", POD, QPS, value);
        match suite.stage(&pod).await {
            Err(Stop::Skip(_)) => custom = false,
            staged => {
                staged?;
                let path = suite.custom_path(&format!("pods/%2A/{QPS}"), "");
                let answer = suite.get(path).send().await?;
                is_left_out(value, &answer, |answer| reading::custom(answer, "v1beta2"))?;
            }
        }
    }
    let without = Passed::Without("custom metrics: its fixture cannot stage them");
    Ok(if custom { Passed::Wholly } else { without })
}

fn is_left_out(
    value: &str,
    answer: &Answer,
    read: impl Fn(&Answer) -> Result<Vec<Reading>, Stop>,
) -> Result<(), Stop> {
    if answer.status >= 400 {
        return Ok(());
    }
    let items = read(answer)?;
    let may_be_zero = value == "-1";
    let right = items.iter().all(|item| may_be_zero && item.milli() == 0);
    let zero = if may_be_zero { "no item, 0" } else { "no item" };
    expect(right, format!("{zero} or an error for {value}"), reading::shown(&items))
}

async fn clamped(suite: &Suite) -> Outcome {
    suite.stage(&suite.fixture().external(suite.queue(), &[], "1e17")).await?;
    let answer = suite.get(suite.external_path(suite.queue(), "")).send().await?;
    if answer.status >= 400 {
        answer.is_refusal(&[answer.status])?;
        return Ok(Passed::Wholly);
    }
    let items = reading::external(&answer)?;
    let limit = Quantity::from_served(MAX_SERVED).unwrap_or_default();
    let thousand = Quantity::from_milli(1_000_000);
    let right = items.len() == 1 && items.iter().all(|i| i.value <= limit && i.value > thousand);
    expect(right, "one item of at most 9.2e15 for 1e17", reading::shown(&items))?;
    Ok(Passed::Wholly)
}

async fn golden(suite: &Suite) -> Outcome {
    let metric = suite.known_external().await?;
    let answer = read(suite, &metric, "application/json").await?;
    let list = answer.kind("ExternalMetricValueList")?;
    let version = "external.metrics.k8s.io/v1beta1";
    expect(list["apiVersion"] == version, format!("apiVersion {version}"), &answer)?;
    let items = reading::external(&answer)?;
    expect(!items.is_empty(), "at least one item", &answer)?;
    for item in &items {
        is_golden(&item.raw)?;
        let name = item.raw["metricName"].as_str().unwrap_or_default();
        let same = name.eq_ignore_ascii_case(&metric.name);
        expect(same, format!("metricName {}", metric.name), &item.raw)?;
    }
    is_staged(&metric, &items)?;
    let asked = read(suite, &metric, HPA_ACCEPT).await?;
    if asked.media_type() == protobuf::MEDIA_TYPE {
        let decoded = reading::external(&asked)?;
        let same = series(&decoded, metric.staged) == series(&items, metric.staged);
        expect(same, reading::shown(&items), reading::shown(&decoded))?;
    }
    Ok(Passed::Wholly)
}

/// The shape of `external.metrics.k8s.io.v1beta1.ExternalMetricValue.json` in metrics' `pkg/apis/testdata/HEAD`.
fn is_golden(item: &Value) -> Result<(), Stop> {
    let empty = Map::new();
    let fields = item.as_object().unwrap_or(&empty);
    let known =
        ["metricName", "metricLabels", "timestamp", "window", "value", "kind", "apiVersion"];
    let strings = ["metricName", "timestamp", "value"].iter().all(|name| item[*name].is_string());
    let labels = match &item["metricLabels"] {
        Value::Object(labels) => labels.values().all(Value::is_string),
        other => other.is_null() && fields.contains_key("metricLabels"),
    };
    let window = fields.get("window").is_none_or(|window| window.is_i64() || window.is_null());
    let no_other = fields.keys().all(|name| known.contains(&name.as_str()));
    let right = strings && labels && window && no_other;
    expect(right, "metricName, metricLabels, timestamp, value, and window as an integer", item)
}

async fn versions(suite: &Suite) -> Outcome {
    let metric = if suite.has_control() {
        let pod = suite.fixture().object("pods", POD, &[]).of_object("pods", POD, QPS, "3");
        suite.stage(&pod).await?;
        QPS.to_owned()
    } else {
        suite.known_object("pods")?.metric.clone()
    };
    for version in ["v1beta1", "v1beta2"] {
        let namespace = &suite.options.namespace;
        let path = format!(
            "/apis/custom.metrics.k8s.io/{version}/namespaces/{namespace}/pods/%2A/{metric}"
        );
        let answer = suite.get(path).send().await?;
        let items = reading::custom(&answer, version)?;
        expect(!items.is_empty(), "at least one item", &answer)?;
        for item in &items {
            is_of_version(&item.raw, version, &metric)?;
        }
    }
    Ok(Passed::Wholly)
}

fn is_of_version(item: &Value, version: &str, metric: &str) -> Result<(), Stop> {
    let (name, window, others) = match version {
        "v1beta1" => (&item["metricName"], "window", ["metric", "windowSeconds"]),
        _ => (&item["metric"]["name"], "windowSeconds", ["metricName", "window"]),
    };
    let whole = item.get(window).is_none_or(|seconds| seconds.is_i64() || seconds.is_null());
    let foreign = others.iter().any(|field| item.get(field).is_some());
    let expected = format!("the fields of {version}, none of {others:?}");
    expect(name == metric && whole && !foreign, expected, item)?;
    let described = &item["describedObject"];
    let pod = described["kind"] == "Pod" && described["name"].is_string();
    let of_core = pod && described["apiVersion"] == "v1";
    expect(of_core, "describedObject of kind Pod with apiVersion v1", described)
}

async fn timestamps(suite: &Suite) -> Outcome {
    let staged = suite.has_control();
    let metric = if staged {
        suite.stage(&suite.fixture().external(suite.queue(), &[], "42").last(10, &[])).await?;
        KnownMetric { name: suite.queue().to_owned(), selector: String::new(), staged }
    } else {
        suite.known_external().await?
    };
    let sampled = Timestamp::from_millis(wall_now().as_millis() - 10_000);
    let items = reading::external(&read(suite, &metric, "application/json").await?)?;
    expect(!items.is_empty(), "at least one item", reading::shown(&items))?;
    for item in &items {
        let text = item.raw["timestamp"].as_str().unwrap_or_default();
        let at = text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond);
        let whole = text.len() == "2026-01-01T00:00:00Z".len() && text.ends_with('Z');
        let window = item.raw.get("window").is_none_or(|w| w.is_i64() || w.is_null());
        let got = format!("timestamp {text}, window {}", item.raw["window"]);
        let expected = "RFC 3339 in UTC with whole seconds; window in whole seconds";
        let at = at.filter(|_| whole && window).ok_or_else(|| Stop::fail(expected, &got))?;
        let late = at - sampled.as_millis();
        let expected = format!("{sampled}, when the sample was taken");
        let near = late.abs() <= CLOCKS_DIFFER_MILLIS;
        let past = late <= 10_000 + CLOCKS_DIFFER_MILLIS;
        expect(if staged { near } else { past }, expected, got)?;
    }
    let without = Passed::Without("that the time is the sample's: needs --control-url");
    Ok(if staged { Passed::Wholly } else { without })
}
