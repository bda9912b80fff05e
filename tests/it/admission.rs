//! What the API server refuses of a ScalingPolicy by its definition alone, without the controller.

use anyhow::{Result, ensure};
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::support::programs::checkout;
use crate::support::shared::{run, share};
use crate::support::workload::{PolicyOptions, policies, policy};

fn good() -> Value {
    let signals = json!([{"name": "tasks", "tasks": {"threshold": "100"}}]);
    policy("sample", &signals, &PolicyOptions::default())
}

/// Changes the good policy, asks the API server for a dry run, and expects a refusal with `text`.
async fn check(pointer: &str, value: Value, text: &str) -> Result<()> {
    let said = dry_run(pointer, value.clone()).await?;
    let said = said.err().unwrap_or_else(|| "accepted".to_owned());
    ensure!(said.contains(text), "{pointer} = {value}: {text:?} is not in {said:?}");
    Ok(())
}

async fn dry_run(pointer: &str, value: Value) -> Result<Result<(), String>> {
    let cluster = share().await?;
    let definition = checkout().join("manifests/base/crd.yaml").display().to_string();
    cluster.plane.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &definition])?;
    cluster.plane.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/scalingpolicies.headroom.dev",
    ])?;
    let mut body = good();
    set(&mut body, pointer, value)?;
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    let api = policies(cluster.plane.client(), "default");
    let answer = api.create(&parameters, &serde_json::from_value(body)?).await;
    Ok(answer.map(drop).map_err(|error| error.to_string()))
}

/// Sets one value; null removes nothing, it is set.
fn set(body: &mut Value, pointer: &str, value: Value) -> Result<()> {
    let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    match body.pointer_mut(parent) {
        Some(Value::Object(object)) => drop(object.insert(key.to_owned(), value)),
        Some(Value::Array(items)) => items[key.parse::<usize>()?] = value,
        _ => anyhow::bail!("no {parent} in the good policy"),
    }
    Ok(())
}

#[test]
fn the_good_policy_is_accepted() {
    run(async {
        let answer = dry_run("/metadata/name", json!("sample")).await?;
        ensure!(answer.is_ok(), "{answer:?}");
        Ok(())
    });
}

#[test]
fn a_metric_may_describe_an_object() {
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "main"});
    let metric = json!({"name": "rps", "threshold": 1, "describes": object});
    run(async {
        let answer = dry_run("/spec/signals", json!([{"name": "a", "metric": metric}])).await?;
        ensure!(answer.is_ok(), "{answer:?}");
        Ok(())
    });
}

#[test]
fn invalid_policies_are_refused_and_the_message_says_why() {
    let signals = "/spec/signals";
    let two = json!([{"name": "a", "tasks": {"threshold": 1}, "heap": {"threshold": "1Gi"}}]);
    let twice =
        json!([{"name": "a", "tasks": {"threshold": 1}}, {"name": "a", "cpu": {"threshold": "1"}}]);
    let metric = |name: &str| json!([{"name": "a", "metric": {"name": name, "threshold": 1}}]);
    let about = |metric: &str, object: Value| {
        let metric = json!({"name": metric, "threshold": 1, "describes": object});
        json!([{"name": "a", "metric": metric}])
    };
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "name": "a"});
    let ingress =
        |name: &str| json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": name});
    let cases = [
        (signals, about("rps", pod), "each pod's own value is served anyway"),
        (signals, about("rps", ingress("a/b")), "should match"),
        (signals, about("rps", json!({"kind": "Ingress", "name": "a"})), "Required value"),
        (signals, about("headroom_demand", ingress("a")), "what a policy demands for its target"),
        (signals, json!([]), "should have at least 1 items"),
        (signals, json!([{"name": "a"}]), "exactly one of"),
        (signals, two, "exactly one of"),
        (signals, twice, "Duplicate value"),
        (signals, json!([{"name": "a", "tasks": {"threshold": 0}}]), "must be more than 0"),
        (signals, json!([{"name": "a", "tasks": {"threshold": "0"}}]), "must be more than 0"),
        (signals, json!([{"name": "a", "tasks": {"threshold": "many"}}]), "should match"),
        (signals, json!([{"name": "A_b", "tasks": {"threshold": 1}}]), "should match"),
        (signals, metric("queue-depth"), "should match"),
        ("/spec/window", json!("1s"), "window must not be shorter"),
        ("/spec/staleAfter", json!("2s"), "staleAfter must be longer"),
        ("/spec/coverageFloor", json!(1.5), "coverageFloor"),
        ("/spec/endpoint/port", json!(0), "port"),
        ("/spec/endpoint/path", json!("metrics"), "path"),
        ("/spec/endpoint/scheme", json!("ftp"), "Unsupported value"),
        ("/spec/autoscaler/maxReplicas", json!(0), "maxReplicas"),
        ("/spec/autoscaler/minReplicas", json!(21), "minReplicas must not be larger"),
        ("/spec/scaleTargetRef/kind", json!("deployment"), "should match"),
        ("/metadata/name", json!("n".repeat(64)), "at most 63"),
    ];
    run(async {
        let mut faults = Vec::new();
        for (pointer, value, text) in cases {
            if let Err(error) = check(pointer, value, text).await {
                faults.push(format!("{error:#}"));
            }
        }
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    });
}
