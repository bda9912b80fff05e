//! A node whose pods run nothing: hundreds of them cost this machine nothing but what is measured.
//!
//! In: pods that name this node. Out: each one Running and Ready at once, with a loopback address of its own, where this
//! process serves one text as its metrics. Never: a process, a probe, or the end of a pod.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::workload::deployment;

const NODE: &str = "paper";
const PORT: u16 = 9469;
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A running node; its endpoints end with it.
pub(crate) struct PaperNode {
    /// By uid: whether the pod accepts and never answers.
    hung: Arc<Mutex<BTreeMap<String, Arc<AtomicBool>>>>,
    _tasks: JoinSet<()>,
}

impl PaperNode {
    /// Creates the Node; each of its pods will show `text`.
    ///
    /// # Errors
    /// The Node cannot be created.
    pub(crate) async fn start(client: Client, text: &'static str) -> Result<Self> {
        let node = serde_json::from_value(json!({"metadata": {"name": NODE}}))?;
        let nodes = Api::<Node>::all(client.clone());
        nodes.create(&PostParams::default(), &node).await.context("cannot create the node")?;
        beat(&nodes).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                sleep(HEARTBEAT).await;
                // One that is lost changes nothing: the next is due long before the node is given up.
                let _lost = beat(&nodes).await;
            }
        });
        let hung = Arc::<Mutex<_>>::default();
        tasks.spawn(keep_pods(client, text, Arc::clone(&hung)));
        Ok(Self { hung, _tasks: tasks })
    }

    /// So many of the pods accept and never answer from now on; the others answer.
    pub(crate) fn hang(&self, count: usize) {
        for (index, hung) in self.hung.lock().values().enumerate() {
            hung.store(index < count, Ordering::Relaxed);
        }
    }
}

/// A Deployment whose pods are on this node.
pub(crate) fn paper_deployment(name: &str, replicas: i32) -> Value {
    let ports = json!({"ports": [{"name": "metrics", "containerPort": PORT}]});
    let mut deployment = deployment(name, replicas, ports);
    deployment["spec"]["template"]["spec"]["nodeName"] = NODE.into();
    deployment
}

async fn beat(nodes: &Api<Node>) -> Result<()> {
    let now = jiff::Timestamp::now().to_string();
    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": "True", "reason": "KubeletReady",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}});
    nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

async fn keep_pods(
    client: Client,
    text: &'static str,
    hung: Arc<Mutex<BTreeMap<String, Arc<AtomicBool>>>>,
) {
    let mut lives = JoinSet::new();
    let mut addresses = 1..u16::MAX;
    let config = watcher::Config::default().fields(&format!("spec.nodeName={NODE}"));
    let events = watcher::watcher(Api::<Pod>::all(client.clone()), config).default_backoff();
    let mut events = Box::pin(events);
    loop {
        // A failure is the stream's to cope with, which it does with pauses.
        let Ok(Some(Event::Apply(pod) | Event::InitApply(pod))) = events.try_next().await else {
            continue;
        };
        let flag = Arc::<AtomicBool>::default();
        let uid = pod.uid().unwrap_or_default();
        if hung.lock().contains_key(&uid) {
            continue;
        }
        let Some((address, listener)) = bind(&mut addresses).await else { return };
        hung.lock().insert(uid, Arc::clone(&flag));
        lives.spawn(serve(listener, text, flag));
        let client = client.clone();
        lives.spawn(async move {
            // Refused if the pod is gone; until then the API server may be away for a moment.
            for _ in 0..5 {
                if report(&client, &pod, address).await.is_ok() {
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

/// The next address that nobody of this machine uses for a pod.
async fn bind(addresses: &mut std::ops::Range<u16>) -> Option<(Ipv4Addr, TcpListener)> {
    for index in addresses {
        let [high, low] = index.to_be_bytes();
        let address = Ipv4Addr::new(127, 240, high, low);
        if let Ok(listener) = TcpListener::bind((address, PORT)).await {
            return Some((address, listener));
        }
    }
    None
}

async fn serve(listener: TcpListener, text: &'static str, hung: Arc<AtomicBool>) {
    let answer = async move || {
        if hung.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        text
    };
    // Ends with the node only.
    let _ended = axum::serve(listener, Router::new().fallback(answer)).await;
}

/// Says that the pod runs and is ready.
async fn report(client: &Client, pod: &Pod, address: Ipv4Addr) -> Result<()> {
    let now = jiff::Timestamp::now().to_string();
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|condition| json!({"type": condition, "status": "True", "lastTransitionTime": now}));
    let status = json!({"status": {
        "phase": "Running",
        "hostIP": "127.0.0.1",
        "podIP": address.to_string(),
        "podIPs": [{"ip": address.to_string()}],
        "startTime": now,
        "conditions": conditions,
        "containerStatuses": [{
            "name": "main", "image": "none", "imageID": "", "ready": true, "started": true,
            "restartCount": 0, "state": {"running": {"startedAt": now}}, "lastState": {},
        }],
    }});
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await?;
    Ok(())
}
