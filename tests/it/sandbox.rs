//! A cluster to play with: what the tests start, left running until Ctrl-C, and what to try in it.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::support::control_plane::ControlPlaneOptions;
use crate::support::programs;
use crate::support::shared::{Cluster, eventually};
use crate::support::timeline::demand;
use crate::support::workload::{PolicyOptions, SampleOptions, create, policy, sample_deployment};

const NAMESPACE: &str = "shop";
const NAME: &str = "checkout";

/// Starts control plane, node, adapter, sample workload and policy; says what to do; waits for Ctrl-C.
///
/// # Errors
/// Something does not come up.
pub(crate) async fn serve() -> Result<()> {
    eprintln!("starting etcd, kube-apiserver, kube-controller-manager, a node and the adapter ...");
    let cluster = Cluster::start(ControlPlaneOptions::new("cluster")?).await?;
    drop(cluster.adapter().await?);
    cluster.namespace(NAMESPACE).await?;
    let client = cluster.plane.client();
    let sample = SampleOptions {
        startup_delay: Duration::from_secs(5),
        limits: json!({"cpu": "500m"}),
        ..SampleOptions::default()
    };
    create(client.clone(), NAMESPACE, sample_deployment(NAME, &sample)).await?;
    let signals = json!([
        {"name": "tasks", "tasks": {"threshold": "100"}},
        {"name": "heap", "heap": {"threshold": "256Mi"}},
        {"name": "alloc", "allocationRate": {"threshold": "50M"}},
        {"name": "cpu", "cpu": {"threshold": "400m"}},
        {"name": "queue", "metric": {"name": "queue_depth", "threshold": "10"}},
    ]);
    let options = PolicyOptions { max: 10, ..PolicyOptions::default() };
    create(client.clone(), NAMESPACE, policy(NAME, &signals, &options)).await?;
    let served = eventually(Duration::from_secs(90), "a demand", async || {
        Ok(demand(&client, NAMESPACE, NAME).await.ok())
    })
    .await;
    if let Err(error) = served {
        eprintln!("no demand is served yet: {error:#}");
    }
    eprintln!("{}", instructions(&cluster).await?);
    tokio::signal::ctrl_c().await?;
    eprintln!("stopping");
    Ok(())
}

async fn instructions(cluster: &Cluster) -> Result<String> {
    let kubectl = programs::kubernetes("kubectl")?;
    let metrics = cluster.adapter().await?.metrics_url();
    let (config, kubectl) = (cluster.plane.kubeconfig(), kubectl.display().to_string());
    let logs = cluster.plane.dir();
    Ok(format!(
        r#"
The cluster runs: API server {url}, limits {limits}.
In another shell:

    export KUBECONFIG={config}
    alias k='{kubectl} -n {NAMESPACE}'
    k get spol,hpa,pods
    k get hpa {NAME} -w
    k describe hpa {NAME}
    k get --raw /apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/headroom_demand
    k get --raw '/apis/custom.metrics.k8s.io/v1beta2/namespaces/{NAMESPACE}/pods/*/headroom_pressure'

Load on the first pod (450 tasks are 4.5 pods' worth; the HPA looks every 15 s):

    ips() {{ k get pods -o jsonpath='{{.items[*].status.podIP}}'; }}
    curl -X POST "http://$(ips | cut -d' ' -f1):8000/tasks?count=450&seconds=60"
    curl -X POST "http://$(ips | cut -d' ' -f1):8000/queue?items=40&seconds=60"
    curl -X POST "http://$(ips | cut -d' ' -f1):8000/heap?bytes=600000000&seconds=60"

What a pod says of itself, and where its CPU goes:

    curl "http://$(ips | cut -d' ' -f1):9469/metrics"
    curl -o cpu.pb.gz "http://$(ips | cut -d' ' -f1):9469/debug/pprof/profile?seconds=10"

The adapter's own metrics: {metrics}/metrics
Logs: {logs}

Ctrl-C ends everything.
"#,
        url = cluster.plane.url(),
        limits = cluster.kubelet.cgroups(),
        config = config.display(),
        logs = logs.display(),
    ))
}
