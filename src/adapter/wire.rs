//! The metrics APIs of Kubernetes on the wire, in JSON and in protobuf.
//!
//! In: values. Out: bytes, equal to those of Kubernetes' own encoders but for the escapes that Go makes in JSON strings. Never:
//! HTTP, besides the text of an `Accept` header, and never an item encoded again because a list is put together: an item is
//! encoded once into a *fragment*, and [`list`] copies fragments.
//!
//! ```text
//! ExternalItem, CustomItem, PodMetricsItem --encode--> fragment --list / object--> body
//! PodMetricsItem --table_row--> fragment --table--> body
//! ```
//!
//! Sources: metrics `pkg/apis/*/*/{types.go,generated.proto}`, apimachinery `pkg/runtime/serializer/protobuf/protobuf.go`.

mod custom;
mod external;
mod label_selector;
mod negotiation;
mod pod_metrics;
mod protobuf;
mod text;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use custom::{CustomItem, CustomVersion, ObjectReference};
pub use external::ExternalItem;
pub use label_selector::{LabelSelector, LabelSelectorError};
pub use negotiation::{Form, NotAcceptable};
pub use pod_metrics::{PodMetricsItem, PodMetricsVersion, table};

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// `application/json`, the default.
    Json,
    /// `application/vnd.kubernetes.protobuf`, which kube-controller-manager asks for first.
    Protobuf,
}

impl Encoding {
    /// The `Content-Type` of a body. Never left out: client-go decodes nothing without it.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// What a body says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeMeta {
    /// Group and version, e.g. `metrics.k8s.io/v1beta1`.
    pub api_version: &'static str,
    /// E.g. `PodMetricsList`.
    pub kind: &'static str,
}

/// What protobuf bodies of Kubernetes begin with.
const MAGIC: &[u8] = b"k8s\0";

/// A list of fragments that were encoded in the same encoding, in their order.
///
/// The iterator is walked twice: once to measure and once to copy.
pub fn list<'a>(
    kind: TypeMeta,
    encoding: Encoding,
    fragments: impl Iterator<Item = &'a [u8]> + Clone,
) -> Bytes {
    match encoding {
        Encoding::Json => json_list(kind, fragments),
        Encoding::Protobuf => protobuf_list(kind, fragments),
    }
}

/// One fragment as an object of its own.
#[must_use]
pub fn object(kind: TypeMeta, encoding: Encoding, fragment: &[u8]) -> Bytes {
    match encoding {
        Encoding::Json => {
            let TypeMeta { api_version, kind } = kind;
            let head = format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","#);
            // A fragment is an object with at least one field.
            let fields = fragment.strip_prefix(b"{").unwrap_or(fragment);
            [head.as_bytes(), fields].concat().into()
        }
        Encoding::Protobuf => {
            let mut body = unknown(kind, fragment.len());
            body.extend_from_slice(fragment);
            ended(body)
        }
    }
}

fn json_list<'a>(kind: TypeMeta, fragments: impl Iterator<Item = &'a [u8]> + Clone) -> Bytes {
    let TypeMeta { api_version, kind } = kind;
    let head =
        format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{}},"items":["#);
    text::json_array(&head, fragments)
}

/// Fields of every list: 1 its `ListMeta`, 2 its items.
fn protobuf_list<'a>(kind: TypeMeta, fragments: impl Iterator<Item = &'a [u8]> + Clone) -> Bytes {
    let mut metadata = protobuf::Message::default();
    metadata.message(1, |meta| {
        // selfLink, resourceVersion, continue.
        (1..=3).for_each(|field| meta.text(field, ""));
    });
    let metadata = metadata.into_bytes();
    let items: usize = fragments.clone().map(|item| protobuf::length_of_field(2, item.len())).sum();
    let mut body = unknown(kind, metadata.len() + items);
    body.extend_from_slice(&metadata);
    let mut body = protobuf::Message::continued(body);
    fragments.for_each(|item| body.bytes(2, item));
    ended(body.into_bytes())
}

/// `runtime.Unknown` up to its field 2, whose `length` bytes follow.
fn unknown(kind: TypeMeta, length: usize) -> Vec<u8> {
    let mut head = protobuf::Message::continued(MAGIC.to_vec());
    head.message(1, |meta| {
        meta.text(1, kind.api_version);
        meta.text(2, kind.kind);
    });
    head.reserve(length + 16);
    head.head_of_field(2, length);
    head.into_bytes()
}

/// The last fields of `runtime.Unknown`: contentEncoding and contentType, which are empty.
fn ended(body: Vec<u8>) -> Bytes {
    let mut body = protobuf::Message::continued(body);
    body.text(3, "");
    body.text(4, "");
    body.into_bytes().into()
}
