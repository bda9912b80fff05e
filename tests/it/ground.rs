//! The ground that the other tests stand on: the control plane and the node do what real ones do.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::kubelet::CgroupSupport;
use crate::support::shared::{Cluster, eventually, run, share};
use crate::support::workload::{self, deployment};

const WAIT: Duration = Duration::from_secs(30);

async fn create(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    replicas: i32,
    container: Value,
) -> Result<()> {
    let body = deployment(name, replicas, container);
    workload::create(cluster.plane.client(), namespace, body).await.map(drop)
}

async fn ready_pods(cluster: &Cluster, namespace: &str, wanted: usize) -> Result<Vec<Pod>> {
    let pods = Api::<Pod>::namespaced(cluster.plane.client(), namespace);
    eventually(WAIT, "ready pods", async || {
        let listed = pods.list(&ListParams::default()).await?.items;
        let ready = listed.iter().filter(|pod| {
            let conditions =
                pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
        });
        Ok((ready.count() == wanted && listed.len() == wanted).then_some(listed))
    })
    .await
}

#[test]
fn pods_of_a_deployment_are_processes_that_end_with_them() {
    run(async {
        let cluster = share().await?;
        let namespace = "ground-life";
        cluster.namespace(namespace).await?;
        create(&cluster, namespace, "sleep", 2, json!({"command": ["sleep", "1000"]})).await?;
        let pods = ready_pods(&cluster, namespace, 2).await?;
        let addresses: Vec<_> =
            pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.clone()).collect();
        ensure!(addresses[0] != addresses[1], "both have {}", addresses[0]);
        let processes = cluster.kubelet.processes(namespace);
        for (pod, id) in &processes {
            let words = std::fs::read_to_string(format!("/proc/{id}/cmdline"))?;
            ensure!(words == "sleep\x001000\x00", "{pod} runs {words:?}");
        }
        ensure!(processes.len() == 2, "{processes:?}");

        let deployments = Api::<Deployment>::namespaced(cluster.plane.client(), namespace);
        let zero = Patch::Merge(json!({"spec": {"replicas": 0}}));
        deployments.patch_scale("sleep", &PatchParams::default(), &zero).await?;
        ready_pods(&cluster, namespace, 0).await?;
        for id in processes.values() {
            ensure!(!Path::new(&format!("/proc/{id}")).exists(), "{id} still runs");
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_ignores_sigterm_is_killed_after_its_grace_period() {
    run(async {
        let cluster = share().await?;
        let namespace = "ground-grace";
        cluster.namespace(namespace).await?;
        let stubborn = ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"];
        create(&cluster, namespace, "stubborn", 1, json!({"command": stubborn})).await?;
        ready_pods(&cluster, namespace, 1).await?;
        let processes = cluster.kubelet.processes(namespace);
        let deployments = Api::<Deployment>::namespaced(cluster.plane.client(), namespace);
        deployments.delete("stubborn", &Default::default()).await?;
        ready_pods(&cluster, namespace, 0).await?;
        for id in processes.values() {
            ensure!(!Path::new(&format!("/proc/{id}")).exists(), "{id} still runs");
        }
        Ok(())
    });
}

#[test]
fn a_container_that_ends_is_started_again_and_counted() {
    run(async {
        let cluster = share().await?;
        let namespace = "ground-crash";
        cluster.namespace(namespace).await?;
        let crash = ["sh", "-c", "sleep 0.3; exit 3"];
        create(&cluster, namespace, "crash", 1, json!({"command": crash})).await?;
        let pods = Api::<Pod>::namespaced(cluster.plane.client(), namespace);
        eventually(WAIT, "two restarts", async || {
            let listed = pods.list(&ListParams::default()).await?.items;
            let containers = listed.iter().filter_map(|pod| pod.status.as_ref());
            let mut containers =
                containers.flat_map(|status| status.container_statuses.iter().flatten());
            Ok(containers.any(|container| container.restart_count >= 2).then_some(()))
        })
        .await
    });
}

#[test]
fn a_cpu_limit_holds_for_a_pod_that_wants_more() {
    run(async {
        let cluster = share().await?;
        if let CgroupSupport::Unavailable(reason) = cluster.kubelet.cgroups() {
            eprintln!("NOT CHECKED: limits are not enforced on this machine: {reason}");
            return Ok(());
        }
        let namespace = "ground-limit";
        cluster.namespace(namespace).await?;
        let burn = json!({
            "command": ["sh", "-c", "while :; do :; done"],
            "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
        });
        create(&cluster, namespace, "burn", 1, burn).await?;
        ready_pods(&cluster, namespace, 1).await?;
        let processes = cluster.kubelet.processes(namespace);
        let id = *processes.values().next().expect("one pod is ready");
        let used = cpu_ticks(id)?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        // 100 ticks a second; unlimited it would be up to 300, and 30 at the limit.
        let used = cpu_ticks(id)? - used;
        ensure!((5..=60).contains(&used), "{used} ticks in 3 s");
        Ok(())
    });
}

/// utime + stime of /proc/PID/stat, in ticks of 10 ms.
fn cpu_ticks(id: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let times = fields.split(' ').skip(11).take(2);
    times.map(|time| Ok(time.parse::<u64>()?)).sum()
}

#[test]
fn a_service_account_can_do_what_rbac_grants_and_no_more() {
    run(async {
        let cluster = share().await?;
        let namespace = "ground-rbac";
        cluster.namespace(namespace).await?;
        let file = cluster.plane.kubeconfig_for_service_account(namespace, "default").await?;
        let client = crate::support::control_plane::client_from(&file).await?;
        let pods = Api::<Pod>::namespaced(client, namespace);
        let refused = pods.list(&ListParams::default()).await;
        let text = format!("{:?}", refused.map(|pods| pods.items.len()));
        ensure!(text.contains("system:serviceaccount:ground-rbac:default"), "{text}");
        ensure!(text.contains("403"), "{text}");
        Ok(())
    });
}

#[test]
fn kubectl_is_the_real_one_and_sees_the_node_ready() {
    run(async {
        let cluster = share().await?;
        let nodes = cluster.plane.kubectl(&["get", "nodes", "--no-headers"])?;
        ensure!(nodes.split_whitespace().take(2).eq(["local", "Ready"]), "{nodes}");
        let unknown = cluster.plane.kubectl(&["get", "nothing"]);
        let text = unknown.unwrap_or_else(|error| error.to_string());
        ensure!(text.contains("doesn't have a resource type"), "{text}");
        Ok(())
    });
}
