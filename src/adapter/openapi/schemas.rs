//! The schemas of what is served.
//!
//! In: a group's version. Out: its schemas under Kubernetes' names for them. Never: a field that `wire` does not write.
//! Names: metrics `pkg/apis/*/*/zz_generated.model_name.go`.

use serde_json::{Map, Value, json};

use super::super::groups::{CUSTOM, EXTERNAL, Group, RESOURCE_METRICS};
use super::super::wire::Encoding;

/// What every object can be had in.
pub(super) const MEDIA_TYPES: [&str; 2] =
    [Encoding::Json.content_type(), Encoding::Protobuf.content_type()];

/// The name of a schema.
pub(super) fn name(group: &Group, version: &str, kind: &str) -> String {
    let package = match group.name {
        name if name == EXTERNAL.name => "external_metrics",
        name if name == CUSTOM.name => "custom_metrics",
        _ => "metrics",
    };
    format!("io.k8s.metrics.pkg.apis.{package}.{version}.{kind}")
}

/// The schemas of one version of one group; `prefix` is where a reference finds them.
pub(super) fn of(group: &Group, version: &str, prefix: &str) -> Map<String, Value> {
    let reference = |kind: &str| json!({"$ref": format!("{prefix}{}", name(group, version, kind))});
    let schemas = match group.name {
        name if name == EXTERNAL.name => vec![
            ("ExternalMetricValue", external_value()),
            (
                EXTERNAL.kind,
                list("The values of an external metric.", reference("ExternalMetricValue")),
            ),
        ],
        name if name == CUSTOM.name => {
            let value = if version == "v1beta1" { custom_v1beta1() } else { custom_v1beta2() };
            vec![
                ("MetricValue", value),
                (CUSTOM.kind, list("The values of a metric of objects.", reference("MetricValue"))),
            ]
        }
        name if name == RESOURCE_METRICS.name => vec![
            ("ContainerMetrics", container()),
            ("PodMetrics", pod(reference("ContainerMetrics"))),
            ("PodMetricsList", list("What pods use.", reference("PodMetrics"))),
        ],
        _ => Vec::new(),
    };
    let named = |(kind, mut schema): (&str, Value)| {
        if schema["properties"].get("kind").is_some() {
            let gvk = json!([{"group": group.name, "version": version, "kind": kind}]);
            schema["x-kubernetes-group-version-kind"] = gvk;
        }
        (name(group, version, kind), schema)
    };
    schemas.into_iter().map(named).collect()
}

fn string(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn object(description: &str, properties: Value, required: &[&str]) -> Value {
    let mut schema =
        json!({"type": "object", "description": description, "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

/// An object that says its kind and version.
fn kind(description: &str, properties: Value, required: &[&str]) -> Value {
    let mut schema = object(description, properties, required);
    schema["properties"]["apiVersion"] = string("Group and version of this object.");
    schema["properties"]["kind"] = string("The kind of this object.");
    schema
}

fn list(description: &str, item: Value) -> Value {
    let properties = json!({
        "metadata": object("Empty: a list has no version and no pages.", json!({}), &[]),
        "items": {"type": "array", "description": "What the list is of.", "items": item},
    });
    kind(description, properties, &["items"])
}

fn time() -> Value {
    let description = "When the value was true: no sample that it was made of is older.";
    json!({"type": "string", "format": "date-time", "description": description})
}

fn window() -> Value {
    let description = "Over how many seconds before the timestamp the value was made.";
    json!({"type": "integer", "format": "int64", "description": description})
}

fn quantity(description: &str) -> Value {
    string(&format!("{description} A quantity such as 250m, 4 or 2G."))
}

fn labels(description: &str) -> Value {
    json!({"type": "object", "description": description, "additionalProperties": {"type": "string"}})
}

fn selector() -> Value {
    let expression = object(
        "One requirement.",
        json!({
            "key": string("The label."),
            "operator": string("In, NotIn, Exists or DoesNotExist."),
            "values": {"type": "array", "description": "For In and NotIn.", "items": {"type": "string"}},
        }),
        &["key", "operator"],
    );
    let properties = json!({
        "matchLabels": labels("Labels and the value that each must have."),
        "matchExpressions": {"type": "array", "description": "Other requirements.", "items": expression},
    });
    object("The request's metricLabelSelector, given back.", properties, &[])
}

fn described_object() -> Value {
    let properties = json!({
        "apiVersion": string("Group and version of the object, e.g. apps/v1."),
        "kind": string("The object's kind, e.g. Pod."),
        "namespace": string("The object's namespace."),
        "name": string("The object's name."),
    });
    object("What the value is of.", properties, &[])
}

fn external_value() -> Value {
    let properties = json!({
        "metricName": string("The metric's name."),
        "metricLabels": labels("What tells this value from the metric's others, such as its policy."),
        "timestamp": time(), "window": window(),
        "value": quantity("The value; for a demand, in pods."),
    });
    let required = ["metricName", "metricLabels", "timestamp", "value"];
    kind("One value of an external metric.", properties, &required)
}

fn custom_v1beta1() -> Value {
    let properties = json!({
        "describedObject": described_object(), "metricName": string("The metric's name."),
        "timestamp": time(), "window": window(), "value": quantity("The value."), "selector": selector(),
    });
    let required = ["describedObject", "metricName", "timestamp", "value"];
    kind("One value of a metric of an object.", properties, &required)
}

fn custom_v1beta2() -> Value {
    let metric = json!({"name": string("The metric's name."), "selector": selector()});
    let properties = json!({
        "describedObject": described_object(), "metric": object("The metric.", metric, &["name"]),
        "timestamp": time(), "windowSeconds": window(), "value": quantity("The value."),
    });
    let required = ["describedObject", "metric", "timestamp", "value"];
    kind("One value of a metric of an object.", properties, &required)
}

fn container() -> Value {
    let usage = json!({
        "cpu": quantity("Cores, as a mean over the window."),
        "memory": quantity("Bytes in the working set."),
    });
    let properties = json!({
        "name": string("The container's name."),
        "usage": object("What it uses.", usage, &[]),
    });
    object("What one container uses.", properties, &["name", "usage"])
}

fn pod(container: Value) -> Value {
    let metadata = json!({
        "name": string("The pod's name."), "namespace": string("The pod's namespace."),
        "labels": labels("The pod's labels."),
    });
    let properties = json!({
        "metadata": object("Which pod.", metadata, &["name", "namespace"]),
        "timestamp": time(),
        "window": string("Over which time before the timestamp CPU is a mean, e.g. 15s."),
        "containers": {"type": "array", "description": "The pod's containers.", "items": container},
    });
    kind("What one pod uses.", properties, &["timestamp", "window", "containers"])
}
