//! `MetricValue` of `custom.metrics.k8s.io`, in both versions.
//!
//! In: one value and the object it is of. Out: its fragment, in the version asked for: `v1beta1` has `metricName`, `window` and
//! `selector`, `v1beta2` has `metric.name`, `metric.selector` and `windowSeconds`. Never: one for the other, as clients take
//! the fields of their own version only.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::protobuf::Message;
use super::{Encoding, LabelSelector, TypeMeta, text};
use crate::quantity::Quantity;
use crate::time::Timestamp;

/// A version of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CustomVersion {
    /// The older one, which old clients know.
    V1beta1,
    /// The one that an HPA prefers.
    V1beta2,
}

impl CustomVersion {
    /// By its name in a path.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "v1beta1" => Some(Self::V1beta1),
            "v1beta2" => Some(Self::V1beta2),
            _ => None,
        }
    }

    /// The list that the fragments of this version go in; for one object too, where it must have exactly one item (metrics
    /// `pkg/client/custom_metrics/versioned_client.go`).
    #[must_use]
    pub const fn list(self) -> TypeMeta {
        let api_version = match self {
            Self::V1beta1 => "custom.metrics.k8s.io/v1beta1",
            Self::V1beta2 => "custom.metrics.k8s.io/v1beta2",
        };
        TypeMeta { api_version, kind: "MetricValueList" }
    }
}

/// The object that a value is of, in the order of `v1.ObjectReference` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference<'a> {
    /// E.g. `Pod`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub kind: &'a str,
    /// `None` for an object that is in no namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<&'a str>,
    /// The object's name.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: &'a str,
    /// E.g. `apps/v1`; for the core group `v1`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub api_version: &'a str,
}

impl ObjectReference<'_> {
    fn write(&self, message: &mut Message) {
        message.text(1, self.kind);
        message.text(2, self.namespace.unwrap_or_default());
        message.text(3, self.name);
        message.text(4, ""); // uid
        message.text(5, self.api_version);
        message.text(6, ""); // resourceVersion
        message.text(7, ""); // fieldPath
    }
}

/// One value of a custom metric.
#[derive(Clone, Debug)]
pub struct CustomItem<'a> {
    /// What it is a value of.
    pub described: ObjectReference<'a>,
    /// The metric's name.
    pub metric: &'a str,
    /// The request's `metricLabelSelector`, given back.
    pub selector: Option<&'a LabelSelector>,
    /// When the value was true; whole seconds on the wire.
    pub timestamp: Timestamp,
    /// Over which time before that; whole seconds on the wire.
    pub window: Duration,
    /// The value.
    pub value: Quantity,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct V1beta1<'a> {
    described_object: ObjectReference<'a>,
    metric_name: &'a str,
    #[serde(serialize_with = "text::shown")]
    timestamp: Timestamp,
    window: u64,
    #[serde(serialize_with = "text::shown")]
    value: Quantity,
    selector: Option<&'a LabelSelector>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct V1beta2<'a> {
    described_object: ObjectReference<'a>,
    metric: MetricIdentifier<'a>,
    #[serde(serialize_with = "text::shown")]
    timestamp: Timestamp,
    window_seconds: u64,
    #[serde(serialize_with = "text::shown")]
    value: Quantity,
}

#[derive(Serialize)]
struct MetricIdentifier<'a> {
    name: &'a str,
    selector: Option<&'a LabelSelector>,
}

impl CustomItem<'_> {
    /// The fragment.
    #[must_use]
    pub fn encode(&self, version: CustomVersion, encoding: Encoding) -> Bytes {
        match (encoding, version) {
            (Encoding::Json, CustomVersion::V1beta1) => text::json(&V1beta1 {
                described_object: self.described,
                metric_name: self.metric,
                timestamp: self.timestamp,
                window: self.window.as_secs(),
                value: self.value,
                selector: self.selector,
            }),
            (Encoding::Json, CustomVersion::V1beta2) => text::json(&V1beta2 {
                described_object: self.described,
                metric: MetricIdentifier { name: self.metric, selector: self.selector },
                timestamp: self.timestamp,
                window_seconds: self.window.as_secs(),
                value: self.value,
            }),
            (Encoding::Protobuf, version) => self.protobuf(version),
        }
    }

    fn protobuf(&self, version: CustomVersion) -> Bytes {
        let selector = |message: &mut Message, field| {
            if let Some(selector) = self.selector {
                message.message(field, |message| selector.write(message));
            }
        };
        let mut message = Message::default();
        message.message(1, |message| self.described.write(message));
        match version {
            CustomVersion::V1beta1 => message.text(2, self.metric),
            CustomVersion::V1beta2 => message.message(2, |metric| {
                metric.text(1, self.metric);
                selector(metric, 2);
            }),
        }
        message.time(3, self.timestamp);
        message.seconds(4, self.window);
        message.quantity(5, self.value);
        if version == CustomVersion::V1beta1 {
            selector(&mut message, 6);
        }
        message.into_bytes().into()
    }
}
