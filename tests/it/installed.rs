//! Installed as an administrator does it, in one command: it serves, it is upgraded, it uses the rights that it has, and goes.
//!
//! No image runs here: the adapter is a process with the token of the ServiceAccount that was installed.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use crate::support::adapter::{Adapter, Installation};
use crate::support::control_plane::ControlPlaneOptions;
use crate::support::direct::{DirectClient, Identity};
use crate::support::load::{Load, LoadDriver};
use crate::support::packaging::{
    NAMESPACE, RELEASE, chart, charted, define_kinds_of_others, helm, kustomized, objects, output,
};
use crate::support::programs::checkout;
use crate::support::shared::{Cluster, eventually, run};
use crate::support::workload::{PolicyOptions, SampleOptions, create, policy, sample_deployment};

const SHOP: &str = "shop";
/// Of the Deployment, the policy and the HPA in the examples.
const NAME: &str = "checkout";
const MINUTE: Duration = Duration::from_secs(60);

/// A cluster of its own, whose audit log has what the adapter asks for.
async fn cluster(name: &str) -> Result<Cluster> {
    let options = ControlPlaneOptions {
        hpa_sync_period: Duration::from_secs(2),
        audited_user: Some(format!("system:serviceaccount:{NAMESPACE}:headroom-adapter")),
        ..ControlPlaneOptions::new(name)?
    };
    Cluster::start(options).await
}

/// Everything in the cluster, but events: they say what happened, and end on their own.
fn inventory(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let plane = &cluster.plane;
    let kinds = plane.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let row = "{.apiVersion} {.kind} {.metadata.namespace}/{.metadata.name}";
    let rows = format!("jsonpath={{range .items[*]}}{row}{{\"\\n\"}}{{end}}");
    let all = plane.kubectl(&["get", &kinds.join(","), "-A", "-o", &rows])?;
    Ok(all.lines().map(str::to_owned).collect())
}

/// Waits until there is what there was, and nothing else.
async fn only(cluster: &Cluster, before: &BTreeSet<String>) -> Result<()> {
    let mut last = (Vec::new(), Vec::new());
    let waited = eventually(MINUTE, "the end of everything", async || {
        let now = inventory(cluster)?;
        last =
            (now.difference(before).cloned().collect(), before.difference(&now).cloned().collect());
        Ok((last.0.is_empty() && last.1.is_empty()).then_some(()))
    })
    .await;
    waited.with_context(|| format!("left over: {:?}, missing: {:?}", last.0, last.1))
}

/// A shipped example, as it is, on a Deployment of its name: its HPA follows the load.
async fn example_scales(cluster: &Cluster) -> Result<()> {
    cluster.namespace(SHOP).await?;
    let client = cluster.plane.client();
    create(client.clone(), SHOP, sample_deployment(NAME, &SampleOptions::default())).await?;
    let example = checkout().join("manifests/examples/hpa/metric.yaml").display().to_string();
    cluster.plane.kubectl(&["apply", "-n", SHOP, "-f", &example])?;
    // 100 items a pod.
    let load = Load::held("/queue", "items", 250.0, Duration::from_secs(5));
    let load = LoadDriver::start(client, SHOP, NAME, load)?;
    let mut last = String::new();
    let waited = eventually(2 * MINUTE, "three replicas", async || {
        let hpa = ["get", "hpa", NAME, "-n", SHOP, "-o", "jsonpath={.status}"];
        last = cluster.plane.kubectl(&hpa)?;
        let status: Value = serde_json::from_str(if last.is_empty() { "{}" } else { &last })?;
        Ok((status["desiredReplicas"] == 3).then_some(()))
    })
    .await;
    waited.with_context(|| format!("{last}, load: {}", load.outcome()))
}

/// The trusted CA of each APIService, and the uid of the example's policy: what an upgrade must not touch.
fn kept(cluster: &Cluster, installation: &Installation) -> Result<Vec<String>> {
    let uid = ["get", "spol", NAME, "-n", SHOP, "-o", "jsonpath={.metadata.uid}"];
    let mut all = vec![cluster.plane.kubectl(&uid)?];
    for name in &installation.api_services {
        let bundle = ["get", "apiservice", name, "-o", "jsonpath={.spec.caBundle}"];
        all.push(cluster.plane.kubectl(&bundle)?);
    }
    ensure!(all.iter().all(|text| !text.is_empty()), "{all:?}");
    Ok(all)
}

/// What is served goes on being served: the HPA reads it.
async fn still_active(cluster: &Cluster) -> Result<()> {
    eventually(MINUTE, "an HPA that reads its metric", async || {
        let condition = "jsonpath={.status.conditions[?(@.type==\"ScalingActive\")].status}";
        let said = cluster.plane.kubectl(&["get", "hpa", NAME, "-n", SHOP, "-o", condition])?;
        Ok((said == "True").then_some(()))
    })
    .await
}

/// Upgrades: the HPA goes on reading, and what an upgrade must not touch is as it was.
async fn upgraded(
    cluster: &Cluster,
    adapter: &mut Adapter,
    upgrade: impl FnOnce() -> Result<String>,
) -> Result<()> {
    let installation = adapter.installation().clone();
    let known = kept(cluster, &installation)?;
    // The Service leads to this machine only for these tests: what is installed next makes it anew.
    let service = ["delete", "service", "-n", &installation.namespace, &installation.service];
    cluster.plane.kubectl(&service)?;
    upgrade()?;
    adapter.attach_again(&cluster.plane).await?;
    still_active(cluster).await?;
    let after = kept(cluster, &installation)?;
    ensure!(known == after, "before the upgrade {known:?}, after it {after:?}");
    Ok(())
}

/// No policy is left, and the namespace of the workload can be deleted.
async fn ends(cluster: &Cluster, before: &BTreeSet<String>) -> Result<()> {
    cluster.delete_namespace(SHOP).await?;
    cluster.namespace_ends(SHOP).await?;
    only(cluster, before).await
}

#[test]
fn kustomize_installs_in_one_command_with_no_right_too_many_and_leaves_nothing() {
    run(async {
        let cluster = cluster("kustomize").await?;
        let before = inventory(&cluster)?;
        let base = checkout().join("manifests/base").display().to_string();
        cluster.plane.kubectl(&["apply", "--server-side", "-k", &base])?;
        let rendered = objects(&kustomized(&[])?)?;
        let adapter = Adapter::attach(&cluster.plane, Installation::of(&rendered)?).await?;
        example_scales(&cluster).await?;
        exercise(&cluster, &adapter).await?;
        compare_rights(&cluster, &rendered).await?;
        hpas_end_with_policies(&cluster).await?;

        cluster.plane.kubectl(&["delete", "--timeout=120s", "-k", &base])?;
        drop(adapter);
        let hpas = ["get", "hpa", "-n", SHOP, "-o", "name"];
        eventually(MINUTE, "the end of the HPAs that Headroom made", async || {
            let left = cluster.plane.kubectl(&hpas)?;
            Ok((!left.contains("owned")).then_some(()))
        })
        .await?;
        let left = cluster.plane.kubectl(&hpas)?;
        ensure!(left.contains(NAME) && left.contains("foreign"), "those of others stay: {left}");
        ends(&cluster, &before).await
    });
}

#[test]
fn helm_installs_upgrades_and_leaves_nothing() {
    run(async {
        let cluster = cluster("helm").await?;
        let before = inventory(&cluster)?;
        let home = tempfile::tempdir()?;
        let kubeconfig = cluster.plane.kubeconfig();
        let helm = |arguments: &[&str]| -> Result<String> {
            let mut command = helm(home.path())?;
            command.arg("--kubeconfig").arg(&kubeconfig).args(["--namespace", NAMESPACE]);
            command.args(arguments);
            output(command)
        };
        let chart = chart().display().to_string();
        helm(&["install", RELEASE, &chart, "--create-namespace"])?;
        let rendered = objects(&charted(NAMESPACE, &[])?)?;
        let mut adapter = Adapter::attach(&cluster.plane, Installation::of(&rendered)?).await?;
        example_scales(&cluster).await?;

        let more = ["highAvailability.enabled=true", "networkPolicy.enabled=true"];
        let upgrade = || helm(&["upgrade", RELEASE, &chart, "--set", more[0], "--set", more[1]]);
        upgraded(&cluster, &mut adapter, upgrade).await?;
        let deployment = ["get", "deployment", "-n", NAMESPACE, "headroom-adapter"];
        let replicas = cluster
            .plane
            .kubectl(&[&deployment[..], &["-o", "jsonpath={.spec.replicas}"]].concat())?;
        ensure!(replicas == "3", "{replicas}");

        let installation = adapter.installation().clone();
        helm(&["uninstall", RELEASE, "--wait", "--timeout=2m"])?;
        drop(adapter);
        // The policies stay with their definition until somebody says otherwise.
        ensure!(kept(&cluster, &Installation { api_services: Vec::new(), ..installation }).is_ok());
        cluster.plane.kubectl(&["delete", "crd", "scalingpolicies.headroom.dev"])?;
        cluster.plane.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=120s"])?;
        ends(&cluster, &before).await
    });
}

/// `manifests/base` as it was before its last change, in `directory`; `None` where the history is not at hand.
fn earlier(directory: &Path) -> Result<Option<()>> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(checkout()).args(arguments);
        output(command)
    };
    let last = git(&["rev-list", "-1", "HEAD", "--", "manifests/base"]);
    let Ok(last) = last else { return Ok(None) };
    let before = format!("{}^", last.trim());
    if git(&["cat-file", "-e", &format!("{before}:manifests/base")]).is_err() {
        return Ok(None);
    }
    let archive = directory.join("manifests.tar");
    let to = format!("--output={}", archive.display());
    git(&["archive", "--format=tar", &to, &before, "manifests/base"])?;
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&archive).arg("-C").arg(directory);
    output(unpack).map(|_| Some(()))
}

#[test]
fn the_manifests_of_before_are_upgraded_in_one_command() {
    run(async {
        let directory = tempfile::tempdir()?;
        if earlier(directory.path())?.is_none() {
            writeln!(std::io::stderr(), "no upgrade was tried: git has no earlier manifests here")?;
            return Ok(());
        }
        let cluster = cluster("upgrade").await?;
        let old = directory.path().join("manifests/base").display().to_string();
        cluster.plane.kubectl(&["apply", "--server-side", "-k", &old])?;
        let old_objects = objects(&cluster.plane.kubectl(&["kustomize", &old])?)?;
        let mut adapter = Adapter::attach(&cluster.plane, Installation::of(&old_objects)?).await?;
        example_scales(&cluster).await?;
        let new = checkout().join("manifests/base").display().to_string();
        // The ports are what these tests changed; nobody else has a conflict.
        let apply = ["apply", "--server-side", "--force-conflicts", "-k", &new];
        upgraded(&cluster, &mut adapter, || cluster.plane.kubectl(&apply)).await?;
        let new_objects = objects(&kustomized(&[])?)?;
        for object in &old_objects {
            let same = |other: &&Value| {
                other["kind"] == object["kind"]
                    && other["metadata"]["name"] == object["metadata"]["name"]
            };
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
            ensure!(new_objects.iter().any(|other| same(&other)), "{name} would be left behind");
        }
        Ok(())
    });
}

#[test]
fn with_cert_manager_the_adapter_needs_none_of_the_rights_of_its_own_ca() {
    run(async {
        let cluster = cluster("cert-manager").await?;
        let plane = &cluster.plane;
        define_kinds_of_others(plane)?;
        let rendered = kustomized(&["cert-manager"])?;
        plane.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &rendered)?;
        let rendered = objects(&rendered)?;

        // In place of cert-manager: a certificate with the names of the Certificate that is shipped, and the cainjector's write.
        let certificate = rendered.iter().find(|object| {
            object["kind"] == "Certificate"
                && object["spec"]["secretName"] == "headroom-adapter-serving"
        });
        let names = &certificate.context("no serving Certificate")?["spec"]["dnsNames"];
        plane.pki().serving("adapter", &serde_json::from_value::<Vec<String>>(names.clone())?)?;
        let ca = std::fs::read(plane.pki().certificate("adapter-ca"))?;
        let bundle = json!({"spec": {"caBundle": ByteString(ca)}}).to_string();
        let installation = Installation::of(&rendered)?;
        for name in &installation.api_services {
            plane.kubectl(&["patch", "apiservice", name, "--type=merge", "-p", &bundle])?;
        }

        let [certificate, key] = [plane.pki().certificate("adapter"), plane.pki().key("adapter")];
        let arguments = vec![
            format!("--tls-cert-file={}", certificate.display()),
            format!("--tls-private-key-file={}", key.display()),
        ];
        let adapter = Adapter::attach_with(plane, installation, arguments).await?;
        example_scales(&cluster).await?;
        let asked = asked_for(&cluster)?;
        let own_ca = ["secrets", "apiservices"];
        let needless = asked.iter().find(|(_, _, resource)| own_ca.contains(&resource.as_str()));
        ensure!(needless.is_none(), "{needless:?}");
        let given = shipped(&rendered);
        ensure!(
            given.iter().all(|(_, _, resource)| !own_ca.contains(&resource.as_str())),
            "{given:?}"
        );
        drop(adapter);
        Ok(())
    });
}

#[test]
fn beside_keda_the_demand_is_read_as_a_custom_metric_and_kedas_api_is_left_alone() {
    run(async {
        let cluster = cluster("keda").await?;
        let plane = &cluster.plane;
        // Nothing is behind it, as when KEDA is down.
        let external = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {
                "group": "external.metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": true,
                "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {"namespace": "keda", "name": "keda-operator-metrics-apiserver"},
            },
        });
        plane.kubectl_with_input(&["create", "-f", "-"], &external.to_string())?;
        let rendered = kustomized(&["beside-keda"])?;
        plane.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &rendered)?;
        let adapter = Adapter::attach(plane, Installation::of(&objects(&rendered)?)?).await?;

        cluster.namespace(SHOP).await?;
        let deployment = sample_deployment(NAME, &SampleOptions::default());
        create(plane.client(), SHOP, deployment).await?;
        let example = checkout().join("manifests/examples/beside-keda.yaml").display().to_string();
        plane.kubectl(&["apply", "-n", SHOP, "-f", &example])?;
        still_active(&cluster).await?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.get(format!("{}/readyz", adapter.metrics_url())).send().await?;
        ensure!(answer.status() == 200, "{}", answer.text().await?);
        let behind = ["get", "apiservice", "v1beta1.external.metrics.k8s.io", "-o", "json"];
        let behind: Value = serde_json::from_str(&plane.kubectl(&behind)?)?;
        ensure!(behind["spec"]["service"]["namespace"] == "keda", "{behind}");
        Ok(())
    });
}

/// A verb, an API group and a resource, with its subresource.
type Right = (String, String, String);

fn right(verb: &str, group: &str, resource: &str) -> Right {
    (verb.to_owned(), group.to_owned(), resource.to_owned())
}

/// What the adapter may and did not, and why it may.
const UNUSED: [(&str, &str, &str, &str); 3] = [
    (
        "create",
        "autoscaling",
        "horizontalpodautoscalers",
        "the first apply of an object asks for it beside `patch`",
    ),
    ("update", "", "secrets", "a serving CA near its end is replaced"),
    ("patch", "events.k8s.io", "events", "an event that repeats is counted in the first one"),
];

fn apply(cluster: &Cluster, object: &Value) -> Result<String> {
    let arguments = ["apply", "-n", SHOP, "-f", "-"];
    cluster.plane.kubectl_with_input(&arguments, &object.to_string())
}

/// A policy with an HPA that Headroom writes.
fn of(name: &str, kind: &str, target: &str) -> Value {
    let signals = json!([{"name": "queue", "metric": {"name": "queue_depth", "threshold": 100}}]);
    let mut policy = policy(name, &signals, &PolicyOptions::default());
    policy["spec"]["scaleTargetRef"]["kind"] = kind.into();
    policy["spec"]["scaleTargetRef"]["name"] = target.into();
    policy
}

/// Kubernetes' garbage collector learns of a new kind within 30 s; an owner of a kind that it never knew keeps what it owns.
async fn hpas_end_with_policies(cluster: &Cluster) -> Result<()> {
    let plane = &cluster.plane;
    apply(cluster, &of("short", "Deployment", "nowhere"))?;
    let hpa = || plane.kubectl(&["get", "hpa", "short", "-n", SHOP, "-o", "name"]).is_ok();
    eventually(MINUTE, "the HPA", async || Ok(hpa().then_some(()))).await?;
    plane.kubectl(&["delete", "spol", "short", "-n", SHOP])?;
    eventually(MINUTE, "the end of the HPA", async || Ok((!hpa()).then_some(()))).await
}

/// Makes the adapter do all that it can: policies of each kind of target, HPAs that it writes, leaves alone and deletes,
/// statuses, events, and a user who comes with a token.
async fn exercise(cluster: &Cluster, adapter: &Adapter) -> Result<()> {
    let plane = &cluster.plane;
    let apply = |object: Value| apply(cluster, &object);
    let set = |kind: &str| {
        let mut set = sample_deployment(&kind.to_lowercase(), &SampleOptions::default());
        set["kind"] = kind.into();
        set["spec"]["replicas"] = 0.into();
        set
    };
    for kind in ["StatefulSet", "ReplicaSet"] {
        apply(set(kind))?;
    }
    let foreign = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "foreign"},
        "spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "replicaset"}},
    });
    apply(foreign)?;
    apply(of("foreign", "ReplicaSet", "replicaset"))?;
    apply(of("owned", "StatefulSet", "statefulset"))?;
    apply(of("passing", "Deployment", "elsewhere"))?;
    let hpa = |name: &str| plane.kubectl(&["get", "hpa", name, "-n", SHOP, "-o", "name"]).is_ok();
    eventually(MINUTE, "the HPAs", async || Ok((hpa("owned") && hpa("passing")).then_some(())))
        .await?;
    let without = json!({"spec": {"autoscaler": null}}).to_string();
    plane.kubectl(&["patch", "spol", "passing", "-n", SHOP, "--type=merge", "-p", &without])?;
    eventually(MINUTE, "the end of an HPA", async || Ok((!hpa("passing")).then_some(()))).await?;
    let reason = "jsonpath={.status.conditions[*].type} {.status.conditions[*].reason}";
    eventually(MINUTE, "the condition of the one that is left alone", async || {
        let said = plane.kubectl(&["get", "spol", "foreign", "-n", SHOP, "-o", reason])?;
        Ok(said.contains("HPAConflict").then_some(()))
    })
    .await?;

    let token = plane.token("default", "default").await?;
    let client = DirectClient::new(plane, &adapter.url(), Identity::Token(&token))?;
    let path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/headroom_demand";
    let answer = client.get(path, &[]).await?;
    ensure!(answer.status == 403, "a user without a role: {}", answer.status);
    Ok(())
}

/// What the adapter asked the API server for, as its audit log has it.
fn asked_for(cluster: &Cluster) -> Result<BTreeSet<Right>> {
    let log = std::fs::read_to_string(cluster.plane.audit_log())?;
    let mut all = BTreeSet::new();
    // A last line that is being written is no JSON yet.
    for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let object = &line["objectRef"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if line["responseStatus"]["code"] == 403 {
            bail!("a right is missing: {} {}", line["verb"], line["requestURI"]);
        }
        let resource = match object["subresource"].as_str() {
            Some(sub) => format!("{}/{sub}", text(&object["resource"])),
            None => text(&object["resource"]),
        };
        if !resource.is_empty() {
            all.insert((text(&line["verb"]), text(&object["apiGroup"]), resource));
        }
    }
    Ok(all)
}

/// The rights of the roles that are shipped for the adapter.
fn shipped(rendered: &[Value]) -> BTreeSet<Right> {
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let roles = rendered.iter().filter(|object| {
        ["Role", "ClusterRole"].iter().any(|kind| object["kind"] == *kind)
            && object["metadata"]["name"] == "headroom-adapter"
    });
    let mut all = BTreeSet::new();
    for rule in roles.filter_map(|role| role["rules"].as_array()).flatten() {
        for verb in texts(&rule["verbs"]) {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    all.insert((verb.clone(), group.clone(), resource));
                }
            }
        }
    }
    all
}

/// Whether a right, which may say `*`, was needed for what was asked for.
fn covers(right: &Right, asked: &Right) -> bool {
    let resource = match right.2.strip_prefix("*/") {
        Some(sub) => asked.2.split_once('/').is_some_and(|(_, asked)| asked == sub),
        None => right.2 == asked.2,
    };
    right.0 == asked.0 && (right.1 == "*" || right.1 == asked.1) && resource
}

/// No right is missing, and each that is there was used or has its reason.
async fn compare_rights(cluster: &Cluster, rendered: &[Value]) -> Result<()> {
    let shipped = shipped(rendered);
    let reasons = UNUSED.map(|(verb, group, resource, _)| right(verb, group, resource));
    for listed in &reasons {
        ensure!(shipped.contains(listed), "{listed:?} has a reason and is not shipped");
    }
    let mut unused = Vec::new();
    let waited = eventually(MINUTE, "the use of every right", async || {
        let asked = asked_for(cluster)?;
        let used = |right: &&Right| asked.iter().any(|asked| covers(right, asked));
        let left = shipped.iter().filter(|right| !used(right) && !reasons.contains(right));
        unused = left.cloned().collect();
        Ok(unused.is_empty().then_some(()))
    })
    .await;
    waited.with_context(|| format!("never used: {unused:?}, used: {:?}", asked_for(cluster)))?;

    // What it asked for and these roles do not give comes from the two built-in ones.
    let built_in = [
        right("create", "authentication.k8s.io", "tokenreviews"),
        right("create", "authorization.k8s.io", "subjectaccessreviews"),
        right("get", "", "configmaps"),
        right("list", "", "configmaps"),
        right("watch", "", "configmaps"),
    ];
    for asked in asked_for(cluster)? {
        let given = shipped.iter().chain(&built_in).any(|right| covers(right, &asked));
        ensure!(given, "{asked:?} is allowed by no role of ours");
    }
    Ok(())
}

#[test]
fn a_right_is_used_by_the_same_question_only() {
    let asked = right("get", "apps", "deployments/scale");
    for (verb, group, resource, expected) in [
        ("get", "*", "*/scale", true),
        ("get", "apps", "deployments/scale", true),
        ("get", "apps", "deployments", false),
        ("patch", "*", "*/scale", false),
        ("get", "", "*/scale", false),
        ("get", "*", "*/status", false),
    ] {
        let right = right(verb, group, resource);
        assert_eq!(covers(&right, &asked), expected, "{right:?}");
    }
    assert!(!covers(&right("get", "*", "*/scale"), &right("get", "apps", "deployments")));
}
