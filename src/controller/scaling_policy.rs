//! The `ScalingPolicy` resource as users write it and the API server stores it.
//!
//! In: JSON of the API server. Out: Rust types, and through them the structural schema of the CRD with its bounds and
//! CEL rules. Never: a field that no code obeys, and never a number outside its field's bounds in a stored object,
//! as far as a schema can say it; the rest is [`compile`](super::compile)'s.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What is scaled, where its signals are read, and how much of each signal one pod should carry.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[expect(clippy::duplicated_attributes, reason = "two columns of a table may have one type")]
#[kube(
    group = "headroom.dev",
    version = "v1alpha1",
    kind = "ScalingPolicy",
    singular = "scalingpolicy",
    plural = "scalingpolicies",
    shortname = "spol",
    category = "autoscaling",
    namespaced,
    status = "ScalingPolicyStatus",
    derive = "PartialEq",
    doc = "How a workload scales on what its pods' runtimes report: signals, a threshold per pod for each, and optionally the HorizontalPodAutoscaler that follows them.",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.scaleTargetRef.name"),
    printcolumn(
        name = "Demand",
        type_ = "number",
        json_path = ".status.demand",
        description = "pods' worth of work demanded"
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(
        name = "Driver",
        type_ = "string",
        json_path = ".status.driver",
        description = "the signal with the largest demand"
    ),
    printcolumn(
        name = "Coverage",
        type_ = "number",
        json_path = ".status.coverage",
        description = "share of the pods that report"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "duration(self.window) >= duration(self.endpoint.interval)",
        "message": "window must not be shorter than endpoint.interval",
    },
    {
        "rule": "duration(self.staleAfter) > duration(self.endpoint.interval)",
        "message": "staleAfter must be longer than endpoint.interval",
    },
]))]
pub struct ScalingPolicySpec {
    /// The object that is scaled: anything in this namespace with a scale subresource.
    pub scale_target_ref: ScaleTargetRef,
    /// Where and how often every pod of the target is scraped.
    pub endpoint: PolicyEndpoint,
    /// The long window of demand; a scale-down waits for it. A duration such as 30s.
    #[serde(default = "default_window")]
    #[schemars(schema_with = "window_schema")]
    pub window: String,
    /// From this age on a pod's newest sample no longer counts. A duration such as 20s.
    #[serde(default = "default_stale_after")]
    #[schemars(schema_with = "stale_after_schema")]
    pub stale_after: String,
    /// How long a Ready pod may stay silent before it counts as missing. A duration such as 30s.
    #[serde(default = "default_start_grace")]
    #[schemars(schema_with = "start_grace_schema")]
    pub start_grace: String,
    /// The least share of reporting pods, 0 to 1, from which the demand of the silent ones is inferred.
    #[serde(default = "default_coverage_floor")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub coverage_floor: f64,
    /// What one pod should carry; the demand is the largest of the signals'.
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub signals: Vec<PolicySignal>,
    /// Makes Headroom write and own a HorizontalPodAutoscaler with this policy's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaler: Option<Autoscaler>,
}

/// A reference to the scaled object, as in a HorizontalPodAutoscaler.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleTargetRef {
    /// Group and version, such as apps/v1.
    #[serde(default = "default_api_version")]
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?v[a-z0-9]+$")
    )]
    pub api_version: String,
    /// Kind, such as Deployment.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Z][A-Za-z0-9]*$"))]
    pub kind: String,
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Where a pod's signals are read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyEndpoint {
    /// A port number, or the name that a container gives the port.
    #[schemars(schema_with = "port_schema")]
    pub port: IntOrString,
    /// The HTTP path.
    #[serde(default = "default_path")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^/[!-~]*$"))]
    pub path: String,
    /// The scheme.
    #[serde(default)]
    pub scheme: EndpointScheme,
    /// The time from one scrape of a pod to its next. A duration such as 5s.
    #[serde(default = "default_interval")]
    #[schemars(schema_with = "interval_schema")]
    pub interval: String,
}

/// The scheme of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum EndpointScheme {
    /// Plain HTTP.
    #[default]
    #[serde(rename = "http")]
    Http,
}

/// One signal: a name and exactly one kind.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "[has(self.tasks), has(self.heap), has(self.allocationRate), has(self.cpu), has(self.latency), has(self.metric)].exists_one(kind, kind)",
        "message": "a signal has exactly one of tasks, heap, allocationRate, cpu, latency, metric",
    },
    {
        "rule": "!has(self.base) || has(self.tasks) || has(self.heap) || has(self.cpu)",
        "message": "base belongs to tasks, heap and cpu only",
    },
]))]
pub struct PolicySignal {
    /// The signal's name: a label value, unique in the policy.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What an idle pod shows, in the signal's unit; learned where it is not given. For tasks, heap and cpu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "base_schema")]
    pub base: Option<Quantity>,
    /// Live tasks of the runtime (goroutines, threads and handles where a runtime counts those).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<PerPod>,
    /// Bytes of heap in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heap: Option<PerPod>,
    /// Bytes allocated per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation_rate: Option<PerPod>,
    /// CPU cores that the offered work needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<PerPod>,
    /// Request latency, as the work that keeps a quantile of it under a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencySignal>,
    /// A gauge of the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<MetricSignal>,
}

/// How much of a signal one pod should carry.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PerPod {
    /// How much of it one pod should carry: a quantity such as 5000, 800m or 2Gi.
    #[schemars(schema_with = "threshold_schema")]
    pub threshold: Quantity,
}

/// A latency objective.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencySignal {
    /// The quantile between 0 and 1, as a string such as "0.95".
    #[schemars(schema_with = "quantile_schema")]
    pub quantile: String,
    /// Where the quantile must stay under. A duration such as 200ms.
    #[schemars(schema_with = "latency_schema")]
    pub target: String,
    /// The endpoint concerned, such as "POST /checkout"; all requests where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub endpoint: Option<String>,
    /// How many requests one pod serves at once; as many as it has workers where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub concurrency: Option<i32>,
    /// The service time without load; learned where it is not given. A duration such as 15ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "latency_schema")]
    pub service_time: Option<String>,
}

/// A named gauge.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.describes) || self.name != 'headroom_demand'",
    "message": "headroom_demand is what a policy demands for its target",
}]))]
pub struct MetricSignal {
    /// The gauge's Prometheus name.
    #[schemars(
        length(min = 1, max = 200),
        regex(pattern = r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"),
        extend("x-kubernetes-validations" = [{
            "rule": "!self.matches('_(total|sum|count|bucket)$')",
            "message": "counters only grow, and a metric is read as a gauge: name a gauge, or use cpu, allocationRate or latency for what is counted",
        }])
    )]
    pub name: String,
    /// How the pods' values become the workload's.
    #[serde(default)]
    pub aggregate: MetricAggregate,
    /// How much of it one pod should carry: a quantity such as 100.
    #[schemars(schema_with = "threshold_schema")]
    pub threshold: Quantity,
    /// The object that the value is about, where it is not the pods, such as the Ingress whose requests they count. An
    /// HPA reads it as a metric of type Object: the sum over the pods, an error while one of them is silent, or with
    /// aggregate Max the largest. The object must be in this policy's namespace, or be this namespace itself; others
    /// outside namespaces, such as a Node, are refused with condition DescribedKindNotNamespaced: they belong to the
    /// whole cluster, whose readers could not tell which namespace's policy speaks, and an HPA reads none of them but
    /// its own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub describes: Option<DescribedObjectRef>,
}

/// A reference to an object that a metric is about.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.apiVersion != 'v1' || self.kind != 'Pod'",
    "message": "each pod's own value is served anyway",
}]))]
pub struct DescribedObjectRef {
    /// Group and version, such as networking.k8s.io/v1, or v1 of the core group.
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?v[a-z0-9]+$")
    )]
    pub api_version: String,
    /// Kind, such as Ingress. One that the API server does not have gives condition DescribedKindNotServed.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Z][A-Za-z0-9]*$"))]
    pub kind: String,
    /// The object's name; of a Namespace, the policy's own.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[^/%]+$"))]
    pub name: String,
}

/// How the values of several pods become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum MetricAggregate {
    /// Each pod reports its own part.
    #[default]
    Sum,
    /// Every pod reports the same shared value.
    Max,
}

/// The HorizontalPodAutoscaler that Headroom writes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
    "message": "minReplicas must not be larger than maxReplicas",
}]))]
pub struct Autoscaler {
    /// The least replicas; 1 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min_replicas: Option<i32>,
    /// The most replicas.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_replicas: i32,
    /// The behavior of autoscaling/v2, passed on unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
}

/// What was last observed. Written on a condition's change, else at most every 30 s.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingPolicyStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, and one condition for each thing that is wrong; one that no longer holds is removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// Pods of the target that are neither being deleted nor finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods_matched: Option<i32>,
    /// Share of the pods that should report and do, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<f64>,
    /// Pods' worth of work demanded; absent while it cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<f64>,
    /// The signal with the largest demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// spec.replicas of the target's scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// One per signal of the policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub signals: Vec<SignalStatus>,
    /// What was learned of the workload, kept over a restart of the adapter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub learned: Vec<LearnedStatus>,
}

/// One signal's part of the demand.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignalStatus {
    /// The signal's name.
    pub name: String,
    /// Pods' worth of this signal; absent while it cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<f64>,
    /// The total over the reporting pods, in the signal's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<f64>,
    /// The threshold per pod, in the same unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// How the demand came about, or what is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What one signal learned.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LearnedStatus {
    /// The signal's name.
    pub name: String,
    /// What was measured of what; for another subject it counts for nothing.
    #[serde(default)]
    pub of: String,
    /// When it was learned.
    pub at: Time,
    /// What an idle pod shows, in the signal's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<f64>,
    /// CPU seconds per completed request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_seconds: Option<f64>,
    /// Service time without load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_time_seconds: Option<f64>,
    /// The wanted quantile of the latency without load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantile_seconds: Option<f64>,
}

fn default_window() -> String {
    "30s".to_owned()
}

fn default_stale_after() -> String {
    "20s".to_owned()
}

fn default_start_grace() -> String {
    "30s".to_owned()
}

fn default_interval() -> String {
    "5s".to_owned()
}

fn default_path() -> String {
    "/metrics".to_owned()
}

fn default_api_version() -> String {
    "apps/v1".to_owned()
}

fn default_coverage_floor() -> f64 {
    0.6
}

/// Without the length CEL costs a quantity at the size of the whole request.
fn quantity_schema(rule: &str, message: &str) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 32,
        "pattern": r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$",
        "x-kubernetes-validations": [{ "rule": rule, "message": message }],
    })
}

fn threshold_schema(_: &mut SchemaGenerator) -> Schema {
    quantity_schema(
        "type(self) == int ? self > 0 : quantity(self).isGreaterThan(quantity('0'))",
        "must be more than 0",
    )
}

fn base_schema(_: &mut SchemaGenerator) -> Schema {
    quantity_schema(
        "type(self) == int ? self >= 0 : quantity(self).compareTo(quantity('0')) >= 0",
        "must be 0 or more",
    )
}

fn port_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 15,
        "pattern": "^[-a-z0-9]*[a-z][-a-z0-9]*$",
        "x-kubernetes-validations": [{
            "rule": "type(self) == string || (self >= 1 && self <= 65535)",
            "message": "must be a port number from 1 to 65535 or the name of a container's port",
        }],
    })
}

fn quantile_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 12,
        "pattern": r"^0?\.[0-9]+$",
        "x-kubernetes-validations": [{
            "rule": "double(self) > 0.0 && double(self) < 1.0",
            "message": "must be between 0 and 1, both excluded",
        }],
    })
}

/// The bounds are repeated in [`compile`](super::compile).
fn duration_schema(least: &str, most: &str) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 24,
        "pattern": r"^([0-9]+(\.[0-9]+)?(us|ms|s|m|h))+$",
        "x-kubernetes-validations": [{
            "rule": format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"),
            "message": format!("must be a duration from {least} to {most}"),
        }],
    })
}

fn interval_schema(_: &mut SchemaGenerator) -> Schema {
    duration_schema("100ms", "5m")
}

fn window_schema(_: &mut SchemaGenerator) -> Schema {
    duration_schema("1s", "1h")
}

fn stale_after_schema(_: &mut SchemaGenerator) -> Schema {
    duration_schema("1s", "1h")
}

fn start_grace_schema(_: &mut SchemaGenerator) -> Schema {
    duration_schema("0s", "1h")
}

fn latency_schema(_: &mut SchemaGenerator) -> Schema {
    duration_schema("10us", "10m")
}
