//! `PodMetrics` of `metrics.k8s.io`, which is the same in both versions, and its table for people.
//!
//! In: what the containers of one pod use. Out: its fragment, or its row. Never: metadata that needs a pod's object besides
//! name, namespace and labels. Columns: those of metrics-server, `pkg/api/table.go`.

use std::time::Duration;

use bytes::Bytes;
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::protobuf::Message;
use super::text::{self, GoDuration};
use super::{Encoding, TypeMeta};
use crate::quantity::Quantity;
use crate::sample::Labels;
use crate::time::Timestamp;

/// A version of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodMetricsVersion {
    /// The one that an HPA reads.
    V1beta1,
    /// The one that `kubectl top` prefers.
    V1,
}

impl PodMetricsVersion {
    /// By its name in a path.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "v1beta1" => Some(Self::V1beta1),
            "v1" => Some(Self::V1),
            _ => None,
        }
    }

    /// The list that the fragments go in.
    #[must_use]
    pub const fn list(self) -> TypeMeta {
        TypeMeta { api_version: self.api_version(), kind: "PodMetricsList" }
    }

    /// A fragment as an object of its own.
    #[must_use]
    pub const fn object(self) -> TypeMeta {
        TypeMeta { api_version: self.api_version(), kind: "PodMetrics" }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::V1beta1 => "metrics.k8s.io/v1beta1",
            Self::V1 => "metrics.k8s.io/v1",
        }
    }
}

/// What one pod uses.
#[derive(Clone, Debug)]
pub struct PodMetricsItem<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub name: &'a str,
    /// The pod's labels, which clients select by.
    pub labels: &'a Labels,
    /// When it was true; whole seconds on the wire.
    pub timestamp: Timestamp,
    /// Over which time before that the CPU is a mean.
    pub window: Duration,
    /// Each container's name, CPU in cores and memory in bytes.
    pub containers: &'a [(&'a str, Quantity, Quantity)],
}

#[derive(Serialize)]
struct Json<'a> {
    metadata: Metadata<'a>,
    #[serde(serialize_with = "text::shown")]
    timestamp: Timestamp,
    window: GoDuration,
    #[serde(serialize_with = "containers")]
    containers: &'a [(&'a str, Quantity, Quantity)],
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_labels")]
    labels: Option<&'a Labels>,
}

#[derive(Serialize)]
struct Container<'a> {
    name: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    #[serde(serialize_with = "text::shown")]
    cpu: Quantity,
    #[serde(serialize_with = "text::shown")]
    memory: Quantity,
}

fn containers<S: Serializer>(
    containers: &[(&str, Quantity, Quantity)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(containers.len()))?;
    for &(name, cpu, memory) in containers {
        list.serialize_element(&Container { name, usage: Usage { cpu, memory } })?;
    }
    list.end()
}

fn some_labels<S: Serializer>(labels: &Option<&Labels>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter().flat_map(|labels| labels.iter()))
}

impl PodMetricsItem<'_> {
    /// The fragment, of both versions.
    #[must_use]
    pub fn encode(&self, encoding: Encoding) -> Bytes {
        match encoding {
            Encoding::Json => text::json(&Json {
                metadata: self.metadata(),
                timestamp: self.timestamp,
                window: GoDuration(self.window),
                containers: self.containers,
            }),
            Encoding::Protobuf => {
                let mut message = Message::default();
                message.message(1, |metadata| self.write_metadata(metadata));
                message.time(2, self.timestamp);
                message.duration(3, self.window);
                for &(name, cpu, memory) in self.containers {
                    message.message(4, |container| {
                        container.text(1, name);
                        for (resource, quantity) in [("cpu", cpu), ("memory", memory)] {
                            container.message(2, |entry| {
                                entry.text(1, resource);
                                entry.quantity(2, quantity);
                            });
                        }
                    });
                }
                message.into_bytes().into()
            }
        }
    }

    /// The fragment of a [`table`].
    #[must_use]
    pub fn table_row(&self) -> Bytes {
        #[derive(Serialize)]
        struct Row<'a> {
            cells: [&'a str; 4],
            object: PartialObjectMetadata<'a>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct PartialObjectMetadata<'a> {
            kind: &'static str,
            api_version: &'static str,
            metadata: Metadata<'a>,
        }
        let cpu: Quantity = self.containers.iter().map(|(_, cpu, _)| *cpu).sum();
        let memory: Quantity = self.containers.iter().map(|(_, _, memory)| *memory).sum();
        text::json(&Row {
            cells: [
                self.name,
                &cpu.to_string(),
                &memory.to_string(),
                &GoDuration(self.window).to_string(),
            ],
            object: PartialObjectMetadata {
                kind: "PartialObjectMetadata",
                api_version: "meta.k8s.io/v1",
                metadata: self.metadata(),
            },
        })
    }

    fn metadata(&self) -> Metadata<'_> {
        let labels = Some(self.labels).filter(|labels| labels.iter().next().is_some());
        Metadata { name: self.name, namespace: self.namespace, labels }
    }

    /// `ObjectMeta`: its fields that are no pointers are written even if they are empty.
    fn write_metadata(&self, message: &mut Message) {
        message.text(1, self.name);
        message.text(2, ""); // generateName
        message.text(3, self.namespace);
        message.text(4, ""); // selfLink
        message.text(5, ""); // uid
        message.text(6, ""); // resourceVersion
        message.number(7, 0); // generation
        message.text(8, ""); // creationTimestamp: the zero time has no bytes
        message.labels(11, self.labels);
    }
}

/// A `meta.k8s.io/v1` `Table` of rows; JSON only, as in Kubernetes.
pub fn table<'a>(rows: impl Iterator<Item = &'a [u8]> + Clone) -> Bytes {
    const HEAD: &str = concat!(
        r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{},"columnDefinitions":["#,
        r#"{"name":"Name","type":"string","format":"name","description":"Name of the pod","priority":0},"#,
        r#"{"name":"cpu","type":"string","format":"quantity","description":"CPU in cores, of all containers","priority":0},"#,
        r#"{"name":"memory","type":"string","format":"quantity","description":"Memory in bytes, of all containers","priority":0},"#,
        r#"{"name":"Window","type":"string","format":"duration","description":"Time that the CPU is a mean over","priority":0}"#,
        r#"],"rows":["#,
    );
    text::json_array(HEAD, rows)
}
