//! What is shipped to be installed: kustomize and Helm give the same objects, and the real API server takes each of them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::control_plane::free_ports;
use crate::support::packaging::{
    NAMESPACE, chart, charted, define_kinds_of_others, files, helm, kustomized, objects, output,
};
use crate::support::process::Process;
use crate::support::programs::{HEADROOM, checkout};
use crate::support::shared::{Cluster, eventually, run, share};

/// Components of kustomize, and the values of the chart that stand for them.
const SAME: &[(&[&str], &[&str])] = &[
    (&[], &[]),
    (&["high-availability"], &["highAvailability.enabled=true"]),
    (&["prometheus"], &["prometheus.enabled=true"]),
    (&["network-policy"], &["networkPolicy.enabled=true"]),
    (&["cert-manager"], &["certManager.enabled=true"]),
    (&["beside-keda"], &["apiServices.external=false"]),
    (&["dual-stack"], &["dualStack.enabled=true"]),
    (&["resource-metrics"], &["apiServices.resourceMetrics=true"]),
    (
        &[
            "high-availability",
            "prometheus",
            "network-policy",
            "dual-stack",
            "resource-metrics",
            "cert-manager",
        ],
        &[
            "highAvailability.enabled=true",
            "prometheus.enabled=true",
            "networkPolicy.enabled=true",
            "certManager.enabled=true",
            "dualStack.enabled=true",
            "apiServices.resourceMetrics=true",
        ],
    ),
];

/// What Helm says of a release, and kustomize cannot know.
const HELMS_LABELS: [&str; 4] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
];

/// Objects by kind, namespace and name, without what may differ: Helm's own labels and its mark of what stays, and the
/// Namespace, which `helm install --create-namespace` makes.
fn comparable(yaml: &str) -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for mut object in objects(yaml)? {
        let metadata = &mut object["metadata"];
        if let Some(labels) = metadata["labels"].as_object_mut() {
            labels.retain(|label, _| !HELMS_LABELS.contains(&label.as_str()));
        }
        if let Some(annotations) = metadata["annotations"].as_object_mut() {
            annotations.remove("helm.sh/resource-policy");
            if annotations.is_empty() {
                metadata.as_object_mut().context("metadata")?.remove("annotations");
            }
        }
        if object["kind"] != "Namespace" {
            let [kind, namespace, name] =
                ["/kind", "/metadata/namespace", "/metadata/name"].map(|part| object.pointer(part));
            let text =
                |part: Option<&Value>| part.and_then(Value::as_str).unwrap_or("-").to_owned();
            let key = format!("{} {}/{}", text(kind), text(namespace), text(name));
            ensure!(all.insert(key.clone(), object).is_none(), "{key} is there twice");
        }
    }
    Ok(all)
}

/// The first place at which two values differ, and both of it.
fn difference(path: &str, one: &Value, other: &Value) -> Option<String> {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            let null = Value::Null;
            let of = |map: &serde_json::Map<String, Value>, key: &String| {
                map.get(key).unwrap_or(&null).clone()
            };
            keys.into_iter()
                .find_map(|key| difference(&format!("{path}/{key}"), &of(a, key), &of(b, key)))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => (a.iter().zip(b).enumerate())
            .find_map(|(at, (a, b))| difference(&format!("{path}/{at}"), a, b)),
        _ => (one != other).then(|| format!("{path}: {one} and {other}")),
    }
}

/// Where kustomize's objects and the chart's differ.
fn differences(kustomized: &str, charted: &str) -> Result<Vec<String>> {
    let (kustomized, charted) = (comparable(kustomized)?, comparable(charted)?);
    let mut found = Vec::new();
    for (key, object) in &kustomized {
        match charted.get(key) {
            None => found.push(format!("{key} is not in the chart")),
            Some(other) => found.extend(difference(key, object, other)),
        }
    }
    let more = charted.keys().filter(|key| !kustomized.contains_key(*key));
    found.extend(more.map(|key| format!("{key} is in the chart only")));
    Ok(found)
}

#[test]
fn kustomize_and_helm_give_the_same_objects() {
    run(async {
        let mut faults = Vec::new();
        for (components, values) in SAME {
            let (one, other) = (kustomized(components)?, charted(NAMESPACE, values)?);
            ensure!(comparable(&one)?.len() > 10, "{components:?}: hardly any object");
            let found = differences(&one, &other)?;
            faults.extend(found.into_iter().map(|fault| format!("{components:?}: {fault}")));
        }
        ensure!(faults.is_empty(), "kustomize's and the chart's differ:\n{}", faults.join("\n"));
        Ok(())
    });
}

#[test]
fn a_drift_between_kustomize_and_helm_is_seen() {
    run(async {
        let one = kustomized(&[])?;
        for (value, expected) in [
            ("replicas=3", "/spec/replicas: 2 and 3"),
            ("image.tag=next", "/image: \"headroom:0.1.0\" and \"headroom:next\""),
            ("apiServices.custom=false", "custom.metrics.k8s.io is not in the chart"),
            ("networkPolicy.enabled=true", "headroom-adapter is in the chart only"),
        ] {
            let found = differences(&one, &charted(NAMESPACE, &[value])?)?.join("\n");
            ensure!(found.contains(expected), "{value}: {expected:?} is not in {found:?}");
        }
        Ok(())
    });
}

#[test]
fn each_component_stands_for_a_value_of_the_chart_and_names_its_files() {
    run(async {
        let directory = checkout().join("manifests/components");
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a name that is no text")?;
            let known = SAME.iter().any(|(components, _)| *components == [name.as_str()]);
            ensure!(known, "{name} is compared with no value of the chart");
            let text = std::fs::read_to_string(entry.path().join("kustomization.yaml"))?;
            for file in files(&entry.path(), "yaml")? {
                let file = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                // Of Prometheus itself: no object.
                let is_object = !["kustomization.yaml", "scrape-config.yaml"].contains(&file);
                ensure!(!is_object || text.contains(file), "{name} has {file} and does not use it");
            }
        }
        Ok(())
    });
}

#[test]
fn the_chart_goes_into_any_namespace() {
    run(async {
        let (_, everything) = SAME.last().context("cases")?;
        let elsewhere = charted("elsewhere", everything)?;
        let left: Vec<&str> = elsewhere.lines().filter(|line| line.contains(NAMESPACE)).collect();
        ensure!(left.is_empty(), "still of {NAMESPACE}: {left:?}");
        for object in objects(&elsewhere)? {
            let namespace = &object["metadata"]["namespace"];
            let known =
                namespace.is_null() || namespace == "elsewhere" || namespace == "kube-system";
            ensure!(known, "{object}");
        }
        Ok(())
    });
}

#[test]
fn the_chart_refuses_values_that_it_does_not_know() {
    run(async {
        for (value, text) in [
            ("replica=3", "replica"),
            ("replicas=0", "replicas"),
            ("prometheus.enabled=maybe", "prometheus"),
            ("networkPolicy.apiServerPorts={0}", "networkPolicy"),
        ] {
            let said = charted(NAMESPACE, &[value]).err().context(format!("{value} passes"))?;
            let said = format!("{said:#}");
            ensure!(said.contains("schema") && said.contains(text), "{value}: {said}");
        }
        let home = tempfile::tempdir()?;
        let mut lint = helm(home.path())?;
        lint.args(["lint", "--strict"]).arg(chart());
        output(lint).map(drop)
    });
}

#[test]
fn what_is_configured_reaches_the_adapter_as_a_file() {
    run(async {
        let rendered = objects(&charted(NAMESPACE, &["config.logLevel=debug"])?)?;
        let of_kind = |kind: &str| rendered.iter().find(|object| object["kind"] == kind);
        let map = of_kind("ConfigMap").context("no ConfigMap")?;
        let text = map["data"]["config.yaml"].as_str().context("no config.yaml")?;
        let read = headroom::config::load::<headroom::config::AdapterConfig>(
            &headroom::config::Inputs::default(),
            Some(text),
        )?;
        ensure!(read.config.log_level == "debug", "{text}");
        let pod = &of_kind("Deployment").context("no Deployment")?["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let directory = container["volumeMounts"]
            .as_array()
            .and_then(|mounts| mounts.iter().find(|mount| mount["name"] == "config"))
            .and_then(|mount| mount["mountPath"].as_str())
            .context("it is not mounted")?;
        let flag = json!(format!("--config={directory}/config.yaml"));
        let arguments = container["args"].as_array().context("no arguments")?;
        ensure!(arguments.contains(&flag), "{arguments:?}");
        ensure!(pod["volumes"].to_string().contains("\"configMap\""), "{pod}");
        Ok(())
    });
}

#[test]
fn each_dashboard_is_a_config_map_for_grafanas_sidecar() {
    run(async {
        let rendered = objects(&charted(NAMESPACE, &["dashboards.enabled=true"])?)?;
        let label = "/metadata/labels/grafana_dashboard";
        let maps = rendered.iter().filter(|object| object.pointer(label).is_some());
        let mut held = BTreeMap::new();
        for map in maps {
            for (file, text) in map["data"].as_object().context("no data")? {
                held.insert(file.clone(), text.as_str().context("no text")?.to_owned());
            }
        }
        let mut shipped = BTreeMap::new();
        for path in files(&checkout().join("dashboards"), "json")? {
            let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
            shipped.insert(name.to_owned(), std::fs::read_to_string(&path)?);
        }
        ensure!(held == shipped, "{:?} and {:?}", held.keys(), shipped.keys());
        Ok(())
    });
}

#[test]
fn what_dual_stack_sets_listens_on_both_families() {
    run(async {
        if std::net::TcpListener::bind("[::1]:0").is_err() {
            writeln!(std::io::stderr(), "IPv6 was not tried: this machine has none")?;
            return Ok(());
        }
        let rendered = objects(&kustomized(&["dual-stack"])?)?;
        let deployment = rendered.iter().find(|object| object["kind"] == "Deployment");
        let container =
            &deployment.context("no Deployment")?["spec"]["template"]["spec"]["containers"][0];
        let [port, metrics_port] = free_ports()?;
        let directory = tempfile::tempdir()?;
        let kubeconfig = directory.path().join("kubeconfig");
        // Nobody is there: what listens needs no cluster.
        let nowhere = json!({
            "clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "users": [{"name": "a", "user": {}}], "current-context": "a",
        });
        std::fs::write(&kubeconfig, nowhere.to_string())?;
        let mut command = Command::new(HEADROOM);
        command.args(["adapter", "--secure-port", &port.to_string(), "--kubeconfig"]);
        command.arg(&kubeconfig);
        for variable in container["env"].as_array().context("no env")? {
            if let (Some(name), Some(value)) =
                (variable["name"].as_str(), variable["value"].as_str())
            {
                command.env(name, value.replace("8080", &metrics_port.to_string()));
            }
        }
        let _adapter = Process::spawn(command, &directory.path().join("log"), Vec::new())?;
        for port in [port, metrics_port] {
            for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
                let what = format!("{address} port {port}");
                eventually(Duration::from_secs(20), &what, async || {
                    Ok(TcpStream::connect((address, port)).await.ok())
                })
                .await?;
            }
        }
        Ok(())
    });
}

/// The cluster, with Headroom and the definitions of what the components use of others.
async fn prepare(cluster: &Cluster) -> Result<()> {
    drop(cluster.adapter().await?);
    define_kinds_of_others(&cluster.plane)
}

/// Whether the real API server takes the text, with unknown and repeated fields as errors; nothing is stored.
fn try_apply(cluster: &Cluster, yaml: &str, more: &[&str]) -> Result<String> {
    let strict = ["apply", "--dry-run=server", "--validate=strict", "-o", "name", "-f", "-"];
    cluster.plane.kubectl_with_input(&[&strict[..], more].concat(), yaml)
}

#[test]
fn the_api_server_takes_every_manifest_and_example_strictly() {
    run(async {
        let cluster = share().await?;
        prepare(&cluster).await?;
        let other_managers = ["--server-side", "--force-conflicts"];
        let mut faults = Vec::new();
        for (components, values) in SAME {
            let renderings = [kustomized(components)?, charted(NAMESPACE, values)?];
            for rendered in renderings {
                if let Err(error) = try_apply(&cluster, &rendered, &other_managers) {
                    faults.push(format!("{components:?}: {error:#}"));
                }
            }
        }
        let examples = files(&checkout().join("manifests/examples"), "yaml")?;
        ensure!(examples.len() > 10, "{examples:?}");
        for file in &examples {
            let text = std::fs::read_to_string(file)?;
            if let Err(error) = try_apply(&cluster, &text, &["-n", "default"]) {
                faults.push(format!("{}: {error:#}", file.display()));
            }
        }
        // The checks above would pass if nothing was looked at.
        let misspelt = kustomized(&[])?.replace("maxUnavailable: 0", "maxUnavailible: 0");
        let said =
            try_apply(&cluster, &misspelt, &other_managers).err().context("a typo passes")?;
        ensure!(format!("{said:#}").contains("maxUnavailible"), "{said:#}");
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    });
}

/// The pods that the Deployments of a text would make.
fn pods(yaml: &str) -> Result<Vec<Value>> {
    let deployments = objects(yaml)?.into_iter().filter(|object| object["kind"] == "Deployment");
    Ok(deployments
        .map(|deployment| {
            let template = &deployment["spec"]["template"];
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": deployment["metadata"]["name"], "labels": template["metadata"]["labels"]},
                "spec": template["spec"],
            })
        })
        .collect())
}

#[test]
fn restricted_pod_security_admits_every_pod() {
    run(async {
        let cluster = share().await?;
        prepare(&cluster).await?;
        let create = ["create", "--dry-run=server", "-o", "name", "-n", NAMESPACE, "-f", "-"];
        let admit = |pod: &Value| cluster.plane.kubectl_with_input(&create, &pod.to_string());
        let label = ["get", "namespace", NAMESPACE, "-o", "jsonpath={.metadata.labels}"];
        let labels = cluster.plane.kubectl(&label)?;
        ensure!(
            labels.contains("\"pod-security.kubernetes.io/enforce\":\"restricted\""),
            "{labels}"
        );

        let mut all = Vec::new();
        for (components, values) in SAME {
            all.extend(pods(&kustomized(components)?)?);
            all.extend(pods(&charted(NAMESPACE, values)?)?);
        }
        let examples = ["sample.yaml", "sidecar.yaml"];
        for example in examples {
            let file = checkout().join("manifests/examples").join(example);
            all.extend(pods(&std::fs::read_to_string(file)?)?);
        }
        ensure!(all.len() == 2 * SAME.len() + examples.len(), "{} pods", all.len());
        for pod in &all {
            admit(pod)?;
        }
        let mut loose = all[0].clone();
        loose["spec"]["securityContext"]["runAsNonRoot"] = json!(false);
        let said = admit(&loose).err().context("a pod that may be root passes")?;
        ensure!(format!("{said:#}").contains("violates PodSecurity"), "{said:#}");
        Ok(())
    });
}

#[test]
fn the_built_in_roles_read_and_edit_policies() {
    run(async {
        let cluster = share().await?;
        drop(cluster.adapter().await?);
        let namespace = "install-roles";
        cluster.namespace(namespace).await?;
        for role in ["view", "edit", "admin"] {
            let binding = ["create", "rolebinding", role, "-n", namespace];
            let to = [format!("--clusterrole={role}"), format!("--user={role}er")];
            cluster.plane.kubectl(&[&binding[..], &[&to[0], &to[1]]].concat())?;
        }
        let may = |user: &str, verb: &str| {
            let ask = ["auth", "can-i", verb, "scalingpolicies.headroom.dev", "-n", namespace];
            // `no` is said by the exit code as well.
            let said = cluster.plane.kubectl(&[&ask[..], &["--as", user]].concat());
            said.is_ok_and(|said| said.trim() == "yes")
        };
        eventually(Duration::from_secs(30), "the aggregated roles", async || {
            Ok((may("viewer", "watch") && may("editer", "create")).then_some(()))
        })
        .await?;
        for (user, verb, expected) in [
            ("viewer", "list", true),
            ("viewer", "create", false),
            ("viewer", "delete", false),
            ("editer", "patch", true),
            ("editer", "delete", true),
            ("adminer", "deletecollection", true),
            ("nobody", "get", false),
        ] {
            ensure!(may(user, verb) == expected, "{user} {verb}: not {expected}");
        }
        cluster.delete_namespace(namespace).await
    });
}

#[test]
fn one_file_is_in_the_chart_and_in_the_base() {
    // Links: what the chart carries of others cannot differ. A packed chart has their content.
    run(async {
        let same = |one: &Path, other: &Path| -> Result<()> {
            let (one, other) = (one.canonicalize()?, other.canonicalize()?);
            ensure!(one == other, "{} is not {}", one.display(), other.display());
            Ok(())
        };
        let manifests = checkout().join("manifests");
        same(&chart().join("files/crd.yaml"), &manifests.join("base/crd.yaml"))?;
        same(&chart().join("files/prometheus"), &manifests.join("components/prometheus"))?;
        same(&chart().join("dashboards"), &checkout().join("dashboards"))?;

        let directory = tempfile::tempdir()?;
        let mut pack = helm(directory.path())?;
        pack.arg("package").arg(chart()).arg("--destination").arg(directory.path());
        output(pack)?;
        let packed = files(directory.path(), "tgz")?.pop().context("nothing was packed")?;
        let mut render = helm(directory.path())?;
        render.args(["template", "headroom"]).arg(packed).args(["--namespace", NAMESPACE]);
        let found = differences(&kustomized(&[])?, &output(render)?)?;
        ensure!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    });
}
