//! The objects of a test's workload: a Deployment, mostly of the sample service, and its ScalingPolicy.
//!
//! In: what differs between tests. Out: JSON for the API server. Never: a default that hides what is tested.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::Client;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::played;
use super::programs::{HEADROOM, this_binary};

/// How the sample service runs.
#[derive(Clone, Debug)]
pub(crate) struct SampleOptions {
    /// `spec.replicas` at first.
    pub(crate) replicas: i32,
    /// From the start of the process until `/ready` is 200.
    pub(crate) startup_delay: Duration,
    /// `resources.limits`.
    pub(crate) limits: Value,
    /// In its place runs a process that [plays](super::played) the CPU limit, which nothing enforces.
    pub(crate) played: bool,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { replicas: 1, startup_delay: Duration::ZERO, limits: json!({}), played: false }
    }
}

/// A Deployment whose pods run this container, which is told its address as POD_IP.
pub(crate) fn deployment(name: &str, replicas: i32, mut container: Value) -> Value {
    let mut variables =
        vec![json!({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})];
    variables.extend(container["env"].as_array().cloned().unwrap_or_default());
    container["env"] = variables.into();
    container["name"] = "main".into();
    container["image"] = "none".into();
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 2, "containers": [container]},
            },
        },
    })
}

/// A Deployment of the sample service with the agent inside.
pub(crate) fn sample_deployment(name: &str, options: &SampleOptions) -> Value {
    let mut container = json!({
        "command": [HEADROOM, "demo", "--service-only"],
        "env": [
            {"name": "HEADROOM_SERVICE_BIND", "value": "$(POD_IP):8000"},
            {"name": "HEADROOM_AGENT_BIND", "value": "$(POD_IP):9469"},
            {"name": "HEADROOM_SERVICE_STARTUP_DELAY",
             "value": format!("{}s", options.startup_delay.as_secs())},
            {"name": played::LIMIT, "value": options.limits["cpu"]},
        ],
        "ports": [
            {"name": "http", "containerPort": 8000},
            {"name": "metrics", "containerPort": 9469},
        ],
        "resources": {"limits": options.limits},
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": "http"},
            "periodSeconds": 1,
            // A throttled pod is slow, not gone.
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
    });
    if options.played {
        container["command"] = this_binary("support::played::container");
        // What is played must not be enforced as well.
        container["resources"] = json!({});
    }
    deployment(name, options.replicas, container)
}

/// How a policy scales.
#[derive(Clone, Debug)]
pub(crate) struct PolicyOptions {
    /// `autoscaler.minReplicas`.
    pub(crate) min: i32,
    /// `autoscaler.maxReplicas`.
    pub(crate) max: i32,
    /// `endpoint.interval`.
    pub(crate) interval: Duration,
}

impl Default for PolicyOptions {
    fn default() -> Self {
        Self { min: 1, max: 20, interval: Duration::from_secs(2) }
    }
}

/// A ScalingPolicy for the Deployment of the same name, with a short window and an autoscaler whose
/// scale-down waits as long.
pub(crate) fn policy(name: &str, signals: &Value, options: &PolicyOptions) -> Value {
    json!({
        "apiVersion": "headroom.dev/v1alpha1", "kind": "ScalingPolicy", "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "endpoint": {"port": "metrics", "interval": format!("{}s", options.interval.as_secs())},
            "window": "15s",
            "signals": signals,
            "autoscaler": {
                "minReplicas": options.min,
                "maxReplicas": options.max,
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 15}},
            },
        },
    })
}

/// The API of a kind that has no Rust type here.
fn dynamic(
    client: Client,
    namespace: &str,
    api_version: &str,
    kind: &str,
    plural: &str,
) -> Api<DynamicObject> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    Api::namespaced_with(client, namespace, &resource)
}

/// ScalingPolicies of the namespace.
pub(crate) fn policies(client: Client, namespace: &str) -> Api<DynamicObject> {
    dynamic(client, namespace, "headroom.dev/v1alpha1", "ScalingPolicy", "scalingpolicies")
}

/// Creates a Deployment, ScalingPolicy or HPA from JSON; its name.
///
/// # Errors
/// The API server refuses it.
pub(crate) async fn create(client: Client, namespace: &str, body: Value) -> Result<String> {
    let api = api_of(client, namespace, &body)?;
    let created = api.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
    Ok(created.name_any())
}

/// The same with server-side apply, which may be said twice.
///
/// # Errors
/// The API server refuses it.
pub(crate) async fn apply(client: Client, namespace: &str, body: Value) -> Result<String> {
    let api = api_of(client, namespace, &body)?;
    let name = body["metadata"]["name"].as_str().context("no name")?;
    let parameters = PatchParams::apply("headroom-tests").force();
    Ok(api.patch(name, &parameters, &Patch::Apply(&body)).await?.name_any())
}

fn api_of(client: Client, namespace: &str, body: &Value) -> Result<Api<DynamicObject>> {
    Ok(match body["kind"].as_str() {
        Some("ScalingPolicy") => policies(client, namespace),
        Some("Deployment") => dynamic(client, namespace, "apps/v1", "Deployment", "deployments"),
        Some("HorizontalPodAutoscaler") => {
            let (kind, plural) = ("HorizontalPodAutoscaler", "horizontalpodautoscalers");
            dynamic(client, namespace, "autoscaling/v2", kind, plural)
        }
        other => bail!("no plural is known of {other:?}"),
    })
}
