//! `ExternalMetricValue` of `external.metrics.k8s.io/v1beta1`.
//!
//! In: one value with its labels. Out: its fragment. Never: a window that is left out, which would say "not known".

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::protobuf::Message;
use super::{Encoding, TypeMeta, text};
use crate::quantity::Quantity;
use crate::sample::Labels;
use crate::time::Timestamp;

/// One value of an external metric.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalItem<'a> {
    /// The metric's name.
    #[serde(rename = "metricName")]
    pub metric: &'a str,
    /// What tells it from the metric's other values.
    #[serde(rename = "metricLabels", serialize_with = "text::labels")]
    pub labels: &'a Labels,
    /// When it was true; whole seconds on the wire.
    #[serde(serialize_with = "text::shown")]
    pub timestamp: Timestamp,
    /// Over which time before that; whole seconds on the wire.
    #[serde(serialize_with = "text::seconds")]
    pub window: Duration,
    /// The value.
    #[serde(serialize_with = "text::shown")]
    pub value: Quantity,
}

impl ExternalItem<'_> {
    /// The list that the fragments go in.
    pub const LIST: TypeMeta = TypeMeta {
        api_version: "external.metrics.k8s.io/v1beta1",
        kind: "ExternalMetricValueList",
    };

    /// The fragment.
    #[must_use]
    pub fn encode(&self, encoding: Encoding) -> Bytes {
        match encoding {
            Encoding::Json => text::json(self),
            Encoding::Protobuf => {
                let mut message = Message::default();
                message.text(1, self.metric);
                message.labels(2, self.labels);
                message.time(3, self.timestamp);
                message.seconds(4, self.window);
                message.quantity(5, self.value);
                message.into_bytes().into()
            }
        }
    }
}
