//! An answer as an HPA decodes it.
//!
//! In: an [`Answer`]. Out: [`Reading`]s, or what the HPA stumbles over. Never: more tolerance than client-go has.
//! Source: kubernetes `pkg/controller/podautoscaler/metrics/client.go`, metrics `pkg/client/custom_metrics/converter.go`,
//! apimachinery `pkg/api/resource/quantity.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::case::{Stop, expect};
use super::protobuf;
use super::wire::Answer;
use crate::quantity::Quantity;
use crate::sample::Labels;

/// One item of a list.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// `metricLabels` of an external item.
    pub(super) labels: Labels,
    /// The described object's name of a custom item.
    pub(super) object: String,
    pub(super) value: Quantity,
    /// The item as it came.
    pub(super) raw: Value,
}

impl Reading {
    /// What `MilliValue` gives: an int64, which wraps as the HPA's does.
    #[expect(clippy::cast_possible_truncation, reason = "the overflow is the HPA's own")]
    pub(super) fn milli(&self) -> i64 {
        self.value.milli_ceil() as i64
    }

    /// The value's own text.
    pub(super) fn value_text(&self) -> &str {
        self.raw["value"].as_str().unwrap_or_default()
    }
}

/// A list of external metrics: its kind is not looked at, its Content-Type is.
pub(super) fn external(answer: &Answer) -> Result<Vec<Reading>, Stop> {
    answer.has_status(200)?;
    let list = if answer.media_type() == protobuf::MEDIA_TYPE {
        let expected = "runtime.Unknown with an ExternalMetricValueList";
        protobuf::external_list(&answer.body).ok_or_else(|| Stop::fail(expected, answer))?
    } else {
        answer.json()?
    };
    readings(&list, answer)
}

/// A list of custom metrics: kind and version are what client-go converts by.
pub(super) fn custom(answer: &Answer, version: &str) -> Result<Vec<Reading>, Stop> {
    let list = answer.kind("MetricValueList")?;
    let group_version = format!("custom.metrics.k8s.io/{version}");
    expect(list["apiVersion"] == *group_version, format!("apiVersion {group_version}"), answer)?;
    readings(&list, answer)
}

fn readings(list: &Value, answer: &Answer) -> Result<Vec<Reading>, Stop> {
    match &list["items"] {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(|item| reading(item, answer)).collect(),
        _ => Err(Stop::fail("a list of items", answer)),
    }
}

fn reading(item: &Value, answer: &Answer) -> Result<Reading, Stop> {
    let text = match &item["value"] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let value = text.parse().map_err(|_| {
        Stop::fail("values that are quantities; one that is none fails the list", answer)
    })?;
    let labels = item["metricLabels"].as_object().into_iter().flatten();
    let labels = labels.filter_map(|(name, value)| Some((name, value.as_str()?))).collect();
    let object = item["describedObject"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(Reading { labels, object, value, raw: item.clone() })
}

/// The values, as the calculator takes them.
pub(super) fn milli_values(readings: &[Reading]) -> Vec<i64> {
    readings.iter().map(Reading::milli).collect()
}

/// One value per object; of two the last counts.
pub(super) fn by_object(readings: &[Reading]) -> BTreeMap<Arc<str>, i64> {
    readings.iter().map(|reading| (reading.object.as_str().into(), reading.milli())).collect()
}

/// The values as canonical text, sorted, for a report.
pub(super) fn shown(readings: &[Reading]) -> String {
    let mut values: Vec<Quantity> = readings.iter().map(|reading| reading.value).collect();
    values.sort();
    let values: Vec<String> = values.iter().map(Quantity::to_string).collect();
    format!("{} items: {}", values.len(), values.join(", "))
}
