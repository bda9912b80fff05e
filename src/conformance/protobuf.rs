//! A list of external metrics in Kubernetes' protobuf form.
//!
//! In: a body with the magic of `runtime.Unknown`. Out: the same list as JSON. Never: any other kind.
//! Source: apimachinery `pkg/runtime/generated.proto`, metrics `pkg/apis/external_metrics/v1beta1/generated.proto`.

use std::collections::BTreeMap;

use prost::Message;
use serde_json::{Value, json};

/// What a body in this form is announced as.
pub(super) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";

#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, repeated, tag = "2")]
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, Message)]
struct Item {
    #[prost(string, tag = "1")]
    metric_name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    metric_labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Time>,
    #[prost(int64, optional, tag = "4")]
    window: Option<i64>,
    #[prost(message, optional, tag = "5")]
    value: Option<Quantity>,
}

#[derive(Clone, PartialEq, Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Quantity {
    #[prost(string, tag = "1")]
    string: String,
}

impl Item {
    fn json(&self) -> Option<Value> {
        let time = self.timestamp.as_ref()?;
        let timestamp = jiff::Timestamp::new(time.seconds, time.nanos).ok()?.to_string();
        let mut item = json!({
            "metricName": self.metric_name, "metricLabels": self.metric_labels,
            "timestamp": timestamp, "value": self.value.as_ref()?.string,
        });
        if let Some(window) = self.window {
            item["window"] = window.into();
        }
        Some(item)
    }
}

fn unwrapped(body: &[u8]) -> Option<(TypeMeta, Vec<u8>)> {
    let unknown = Unknown::decode(body.strip_prefix(MAGIC)?).ok()?;
    Some((unknown.type_meta?, unknown.raw))
}

/// The list as its JSON form; `None` for anything else.
pub(super) fn external_list(body: &[u8]) -> Option<Value> {
    let (of, raw) = unwrapped(body)?;
    let list = List::decode(&raw[..]).ok()?;
    let items: Option<Vec<Value>> = list.items.iter().map(Item::json).collect();
    Some(json!({"kind": of.kind, "apiVersion": of.api_version, "metadata": {}, "items": items?}))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `external.metrics.k8s.io.v1beta1.ExternalMetricValue.{pb,json}` of metrics v0.37.2, `pkg/apis/testdata/HEAD`.
    const GOLDEN: &str = "6b3873000a360a1f65787465726e616c2e6d6574726963732e6b38732e696f2f763162657461311213\
        45787465726e616c4d657472696356616c756512480a0f6d65747269634e616d6556616c756512240a0f6d65747269634c616265\
        6c734b657912116d65747269634c6162656c7356616c75651a0808cdfbc8f003100020042a030a01301a002200";

    fn golden() -> Vec<u8> {
        let digits: Vec<u32> = GOLDEN.chars().filter_map(|digit| digit.to_digit(16)).collect();
        let bytes = digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]));
        bytes.collect::<Result<_, _>>().expect("two digits are a byte")
    }

    #[test]
    fn upstreams_golden_bytes_are_its_golden_json() {
        let (of, raw) = unwrapped(&golden()).expect("the bytes are wrapped");
        assert_eq!(of.kind, "ExternalMetricValue");
        let item = Item::decode(&raw[..]).expect("the bytes are an item");
        let expected = json!({
            "metricName": "metricNameValue", "metricLabels": {"metricLabelsKey": "metricLabelsValue"},
            "timestamp": "2003-01-01T01:01:01Z", "window": 4, "value": "0",
        });
        assert_eq!(item.json(), Some(expected));
    }

    #[test]
    fn what_lacks_the_magic_is_no_list() {
        assert_eq!(external_list(&golden()[1..]), None);
        assert_eq!(external_list(b"{\"items\":[]}"), None);
    }
}
