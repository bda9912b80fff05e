//! Every body equals what Kubernetes' own encoder writes of the same values; `fixtures/README.md` tells where those are from.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::quantity::Quantity;
use crate::sample::{Labels, Selector};
use crate::time::Timestamp;

const AT: Timestamp = Timestamp::from_millis(1_790_000_000_999);
const BEFORE_1970: Timestamp = Timestamp::from_millis(-1);

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/adapter/wire/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parsed(json: &[u8]) -> Value {
    serde_json::from_slice(json).expect("JSON")
}

/// `check(fixture, encode)`: first by meaning, for a readable difference, then to the byte.
fn check(name: &str, encode: impl Fn(Encoding) -> Bytes) {
    let (json, protobuf) = (encode(Encoding::Json), encode(Encoding::Protobuf));
    let golden = fixture(&format!("encoded/{name}.json"));
    assert_eq!(parsed(&json), parsed(&golden), "{name}");
    assert_eq!(String::from_utf8_lossy(&json), String::from_utf8_lossy(golden.trim_ascii_end()));
    assert_eq!(protobuf, fixture(&format!("encoded/{name}.pb")), "{name}.pb");
}

fn quantity(text: &str) -> Quantity {
    text.parse().expect("a quantity")
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.into_iter().collect()
}

fn listed(kind: TypeMeta, encoding: Encoding, fragments: &[Bytes]) -> Bytes {
    list(kind, encoding, fragments.iter().map(|fragment| &**fragment))
}

#[test]
fn external_values_are_those_of_kubernetes() {
    let one = labels([("policy", "checkout")]);
    let three = labels([("signal", "wait"), ("quantile", ""), ("policy", "ünïcode \"x\"")]);
    let item = |metric, labels, timestamp, window, value| {
        let (window, value) = (Duration::from_millis(window), quantity(value));
        ExternalItem { metric, labels, timestamp, window, value }
    };
    let none = Labels::default();
    let items = [
        item("headroom_demand", &one, AT, 30_000, "2250m"),
        item("headroom_latency_seconds", &three, BEFORE_1970, 999, "9200T"),
        item("bare", &none, AT, 30_000, "0"),
    ];
    check("external", |encoding| {
        let fragments = items.each_ref().map(|item| item.encode(encoding));
        listed(ExternalItem::LIST, encoding, &fragments)
    });
    check("external-empty", |encoding| listed(ExternalItem::LIST, encoding, &[]));
}

#[test]
fn custom_values_are_those_of_kubernetes_in_both_versions() {
    let selector = "queue=orders,live,!old,tier in (silver,gold),zone notin (a)";
    let selector = Selector::parse(selector).expect("a selector");
    let selector = LabelSelector::of(&selector).expect("it has no comparison");
    let pod = ObjectReference {
        kind: "Pod",
        namespace: Some("shop"),
        name: "checkout-0",
        api_version: "v1",
    };
    let node = ObjectReference { kind: "Node", namespace: None, name: "worker", api_version: "v1" };
    let pressure = CustomItem {
        described: pod,
        metric: "headroom_pressure",
        selector: None,
        timestamp: AT,
        window: Duration::from_secs(30),
        value: quantity("1"),
    };
    let jobs = CustomItem {
        described: node,
        metric: "jobs",
        selector: selector.as_ref(),
        timestamp: BEFORE_1970,
        window: Duration::ZERO,
        value: quantity("1500m"),
    };
    for (name, version) in
        [("custom-v1beta1", CustomVersion::V1beta1), ("custom-v1beta2", CustomVersion::V1beta2)]
    {
        check(name, |encoding| {
            let fragments = [&pressure, &jobs].map(|item| item.encode(version, encoding));
            listed(version.list(), encoding, &fragments)
        });
    }
}

#[test]
fn pod_metrics_are_those_of_kubernetes_in_both_versions_alone_and_in_a_list() {
    let some = labels([("empty", ""), ("app", "checkout")]);
    let containers = [
        ("app", quantity("250m"), quantity("123456789")),
        ("sidecar", quantity("0"), quantity("4M")),
    ];
    let checkout = PodMetricsItem {
        namespace: "shop",
        name: "checkout-0",
        labels: &some,
        timestamp: AT,
        window: Duration::from_secs(15),
        containers: &containers,
    };
    let none = Labels::default();
    let cart = PodMetricsItem {
        namespace: "shop",
        name: "cart-0",
        labels: &none,
        timestamp: BEFORE_1970,
        window: Duration::from_millis(90_500),
        containers: &[],
    };
    let (v1, v1beta1) = (PodMetricsVersion::V1, PodMetricsVersion::V1beta1);
    for (name, version) in [("pods-v1", v1), ("pods-v1beta1", v1beta1)] {
        check(name, |encoding| {
            let fragments = [&checkout, &cart].map(|item| item.encode(encoding));
            listed(version.list(), encoding, &fragments)
        });
    }
    check("pod-v1", |encoding| object(v1.object(), encoding, &checkout.encode(encoding)));
    check("pod-v1beta1", |encoding| object(v1beta1.object(), encoding, &cart.encode(encoding)));
}

#[test]
fn the_golden_value_of_external_metrics_is_equalled() {
    let name = "kubernetes/external.metrics.k8s.io.v1beta1.ExternalMetricValue";
    let item = ExternalItem {
        metric: "metricNameValue",
        labels: &labels([("metricLabelsKey", "metricLabelsValue")]),
        timestamp: Timestamp::from_millis(1_041_382_861_000),
        window: Duration::from_secs(4),
        value: Quantity::default(),
    };
    let kind = TypeMeta { kind: "ExternalMetricValue", ..ExternalItem::LIST };
    let encoded = |encoding| object(kind, encoding, &item.encode(encoding));
    assert_eq!(parsed(&encoded(Encoding::Json)), parsed(&fixture(&format!("{name}.json"))));
    assert_eq!(encoded(Encoding::Protobuf), fixture(&format!("{name}.pb")));
}

/// Of `v1.ObjectReference` uid, resourceVersion and fieldPath are not known here.
#[test]
fn the_golden_values_of_custom_metrics_have_no_other_fields() {
    let golden = |version: &str| {
        let name = format!("kubernetes/custom.metrics.k8s.io.{version}.MetricValue.json");
        parsed(&fixture(&name))
    };
    let selector = LabelSelector::of(&Selector::parse("a=b,c in (d,e)").expect("a selector"));
    let item = CustomItem {
        described: ObjectReference {
            kind: "kindValue",
            namespace: Some("namespaceValue"),
            name: "nameValue",
            api_version: "apiVersionValue",
        },
        metric: "",
        selector: selector.as_ref().expect("it has no comparison").as_ref(),
        timestamp: Timestamp::from_millis(1_041_382_861_000),
        window: Duration::from_secs(4),
        value: Quantity::default(),
    };
    for (name, version, metric) in [
        ("v1beta1", CustomVersion::V1beta1, "metricNameValue"),
        ("v1beta2", CustomVersion::V1beta2, "nameValue"),
    ] {
        assert_eq!(CustomVersion::named(name), Some(version));
        let fragment = CustomItem { metric, ..item.clone() }.encode(version, Encoding::Json);
        let kind = TypeMeta { kind: "MetricValue", ..version.list() };
        let mut ours = parsed(&object(kind, Encoding::Json, &fragment));
        let mut golden = golden(name);
        let described = golden["describedObject"].as_object_mut().expect("an object");
        for absent in ["uid", "resourceVersion", "fieldPath"] {
            assert!(described.remove(absent).is_some());
        }
        // What selectors look like is compared elsewhere; here only that both have one at the same place.
        let place = match version {
            CustomVersion::V1beta1 => "/selector",
            CustomVersion::V1beta2 => "/metric/selector",
        };
        for value in [&mut ours, &mut golden] {
            assert!(value.pointer_mut(place).expect("there").take().is_object());
        }
        assert_eq!(ours, golden, "{name}");
    }
}

/// Recorded from custom-metrics-apiserver (0.36 series), which knows no window.
#[test]
fn a_recorded_list_differs_in_the_window_alone() {
    const RECORDED: &[u8] =
        b"k8s\0\n:\n\x1fexternal.metrics.k8s.io/v1beta1\x12\x17ExternalMetricValueList\
        \x12:\n\x06\n\0\x12\0\x1a\0\x120\n\x12my-external-metric\x12\n\n\x03foo\x12\x03bar\
        \x1a\x08\x08\x86\xa4\x92\xd8\x06\x10\0*\x04\n\x0242\x1a\0\"\0";
    let item = ExternalItem {
        metric: "my-external-metric",
        labels: &labels([("foo", "bar")]),
        timestamp: Timestamp::from_millis(1_795_461_638_000),
        window: Duration::ZERO,
        value: quantity("42"),
    };
    let fragment = item.encode(Encoding::Protobuf);
    let window = fragment.windows(3).position(|bytes| bytes == [0x20, 0, 0x2a]).expect("a window");
    let without = [&fragment[..window], &fragment[window + 2..]].concat();
    let body = list(ExternalItem::LIST, Encoding::Protobuf, std::iter::once(&*without));
    assert_eq!(body, RECORDED);
}

#[test]
fn lengths_that_need_several_bytes_are_right() {
    let long = "x".repeat(70_000);
    let labels = labels([("policy", &*long)]);
    let item = ExternalItem {
        metric: &long,
        labels: &labels,
        timestamp: AT,
        window: Duration::from_secs(30),
        value: quantity("1"),
    };
    let fragment = item.encode(Encoding::Protobuf);
    let fragments = vec![fragment.clone(); 300];
    let body = listed(ExternalItem::LIST, Encoding::Protobuf, &fragments);
    let read = decoded(&body[4..]);
    assert_eq!(read.iter().map(|(field, _)| *field).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let items = decoded(&read[1].1);
    assert_eq!(items.len(), 301);
    assert!(items[1..].iter().all(|(field, bytes)| *field == 2 && *bytes == fragment));
    let fields = decoded(&fragment);
    assert_eq!(fields[0], (1, long.clone().into_bytes()));
    assert_eq!(decoded(&fields[1].1)[1], (2, long.into_bytes()));
}

/// The length-delimited fields of a message.
fn decoded(mut message: &[u8]) -> Vec<(u32, Vec<u8>)> {
    use prost::encoding::{DecodeContext, WireType, bytes, decode_key, skip_field};
    let mut fields = Vec::new();
    while !message.is_empty() {
        let (field, wire) = decode_key(&mut message).expect("a key");
        if wire == WireType::LengthDelimited {
            let mut value = Vec::new();
            bytes::merge(wire, &mut value, &mut message, DecodeContext::default()).expect("bytes");
            fields.push((field, value));
        } else {
            skip_field(wire, field, &mut message, DecodeContext::default()).expect("a field");
        }
    }
    fields
}

#[test]
fn a_table_has_a_cell_for_each_column_and_the_sum_of_the_containers() {
    let labels = labels([("app", "checkout")]);
    let containers =
        [("app", quantity("250m"), quantity("2Gi")), ("sidecar", quantity("50m"), quantity("1Ki"))];
    let item = PodMetricsItem {
        namespace: "shop",
        name: "checkout-0",
        labels: &labels,
        timestamp: AT,
        window: Duration::from_secs(15),
        containers: &containers,
    };
    let rows = [item.table_row(), item.table_row()];
    let table = parsed(&table(rows.iter().map(|row| &**row)));
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    let columns = table["columnDefinitions"].as_array().expect("columns");
    let expected = json!({
        "cells": ["checkout-0", "300m", "2147484672", "15s"],
        "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"name": "checkout-0", "namespace": "shop", "labels": {"app": "checkout"}}},
    });
    assert_eq!(table["rows"], json!([expected, expected]));
    assert_eq!(columns.len(), 4);
}

#[test]
fn a_selector_becomes_an_object_that_asks_the_same() {
    let of = |text: &str| {
        let selector = Selector::parse(text).expect("a selector");
        LabelSelector::of(&selector).map(|made| serde_json::to_value(made).expect("JSON"))
    };
    let expression =
        |operator: &str, values: Value| json!({"key": "a", "operator": operator, "values": values});
    for (text, expected) in [
        ("", json!(null)),
        ("a=b", json!({"matchLabels": {"a": "b"}})),
        ("a in (b)", json!({"matchLabels": {"a": "b"}})),
        ("a!=b", json!({"matchExpressions": [expression("NotIn", json!(["b"]))]})),
        (
            "a=b,a=c",
            json!({"matchLabels": {"a": "b"}, "matchExpressions": [expression("In", json!(["c"]))]}),
        ),
        ("!a", json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]})),
    ] {
        assert_eq!(of(text), Ok(expected), "{text}");
    }
    for (text, operator) in [("a>1", ">"), ("x,a<1", "<")] {
        let error = LabelSelectorError::Comparison { key: "a".to_owned(), operator };
        assert_eq!(of(text), Err(error));
    }
}
