//! One local node: scheduler and kubelet of the tests.
//!
//! In: pods of the API server. Out: each one's first container as a real process on this machine, with a
//! loopback address of its own, and its status in the API. Never: images, volumes, init containers, or a
//! pod that is bound to another node.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use super::process::{Process, Signal};

mod cgroup;
mod pod;
mod probe;
mod status;

pub(crate) use cgroup::CgroupSupport;

/// How the node runs.
#[derive(Clone, Debug)]
pub(crate) struct KubeletOptions {
    /// The Node's name.
    pub(crate) node: String,
    /// Where pods' logs and tokens and the node's journal go.
    pub(crate) dir: PathBuf,
}

/// A running node; its pods end with it.
pub(crate) struct Kubelet {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// What the pods' tasks share.
struct Shared {
    client: Client,
    options: KubeletOptions,
    journal: Journal,
    cgroups: CgroupSupport,
    probes: reqwest::Client,
    /// By uid: the pods that run here.
    pods: Mutex<HashMap<String, Running>>,
}

/// A pod that a task of this node looks after.
#[derive(Debug)]
struct Running {
    namespace: String,
    name: String,
    stop: CancellationToken,
    /// Its process, while there is one.
    process: Arc<Mutex<Option<Process>>>,
}

const HEARTBEAT: Duration = Duration::from_secs(10);

impl Kubelet {
    /// Creates the Node and begins to run pods.
    ///
    /// # Errors
    /// The Node cannot be created, or the directory not be written.
    pub(crate) async fn start(client: Client, options: KubeletOptions) -> Result<Self> {
        fs::create_dir_all(&options.dir)?;
        let cgroups = CgroupSupport::detect();
        let journal = Journal::create(&options.dir.join("kubelet.log"))?;
        journal.note(format!("limits: {cgroups}"));
        let node = serde_json::from_value(json!({"metadata": {"name": options.node}}))?;
        Api::<Node>::all(client.clone())
            .create(&PostParams::default(), &node)
            .await
            .context("cannot create the node")?;
        let probes = reqwest::Client::builder().no_proxy().build()?;
        let pods = Mutex::default();
        let shared = Arc::new(Shared { client, options, journal, cgroups, probes, pods });
        shared.beat().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&shared).keep_beating());
        tasks.spawn(Arc::clone(&shared).keep_pods());
        Ok(Self { shared, tasks })
    }

    /// Whether limits are enforced.
    pub(crate) fn cgroups(&self) -> &CgroupSupport {
        &self.shared.cgroups
    }

    /// The process ids of the namespace's running pods, by pod name.
    pub(crate) fn processes(&self, namespace: &str) -> HashMap<String, u32> {
        let pods = self.shared.pods.lock();
        let here = pods.values().filter(|pod| pod.namespace == namespace);
        here.filter_map(|pod| Some((pod.name.clone(), pod.process.lock().as_ref()?.id()))).collect()
    }

    /// Signals a pod's process; false if it has none.
    pub(crate) fn signal(&self, namespace: &str, name: &str, signal: Signal) -> bool {
        let pods = self.shared.pods.lock();
        let pod = pods.values().find(|pod| pod.namespace == namespace && pod.name == name);
        let Some(pod) = pod else { return false };
        let mut process = pod.process.lock();
        process.as_mut().map(|process| process.signal(signal)).is_some()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.tasks.abort_all();
        for (_, pod) in self.shared.pods.lock().drain() {
            pod.stop.cancel();
            pod.process.lock().take();
        }
        self.shared.cgroups.remove();
    }
}

impl Shared {
    async fn keep_beating(self: Arc<Self>) {
        loop {
            if let Err(error) = self.beat().await {
                self.journal.note(format!("no heartbeat: {error:#}"));
            }
            sleep(HEARTBEAT).await;
        }
    }

    /// Says that the node is Ready, as a kubelet does; else its pods would be marked not Ready.
    async fn beat(&self) -> Result<()> {
        let now = jiff::Timestamp::now().to_string();
        let status = json!({"status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }]}});
        let nodes = Api::<Node>::all(self.client.clone());
        let parameters = PatchParams::default();
        nodes.patch_status(&self.options.node, &parameters, &Patch::Merge(status)).await?;
        Ok(())
    }

    async fn keep_pods(self: Arc<Self>) {
        let mut lives = JoinSet::new();
        let pods = Api::<Pod>::all(self.client.clone());
        let mut events = Box::pin(watcher::watcher(pods, watcher::Config::default()));
        loop {
            let pod = match events.try_next().await {
                Ok(Some(Event::Apply(pod) | Event::InitApply(pod))) => pod,
                Ok(Some(Event::Delete(pod))) => {
                    self.stop(&pod);
                    continue;
                }
                Ok(_) => continue,
                Err(error) => {
                    self.journal.note(format!("the watch of pods failed: {error}"));
                    sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            while lives.try_join_next().is_some() {}
            self.look_at(pod, &mut lives);
        }
    }

    fn look_at(self: &Arc<Self>, pod: Pod, lives: &mut JoinSet<()>) {
        let bound_to = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let ours = bound_to == Some(&self.options.node);
        let known = self.pods.lock().contains_key(&uid(&pod));
        let shared = Arc::clone(self);
        match (pod.metadata.deletion_timestamp.is_some(), ours, known) {
            (true, _, true) => self.stop(&pod),
            (true, true, false) => drop(lives.spawn(async move { shared.finish(&pod).await })),
            (false, true, false) => {
                let stop = CancellationToken::new();
                let process = Arc::new(Mutex::new(None));
                let running = Running {
                    namespace: pod.namespace().unwrap_or_default(),
                    name: pod.name_any(),
                    stop: stop.clone(),
                    process: Arc::clone(&process),
                };
                self.pods.lock().insert(uid(&pod), running);
                lives.spawn(pod::live(shared, pod, stop, process));
            }
            (false, false, _) if bound_to.is_none() => {
                lives.spawn(async move { shared.bind(&pod).await });
            }
            _ => {}
        }
    }

    fn stop(&self, pod: &Pod) {
        if let Some(running) = self.pods.lock().get(&uid(pod)) {
            running.stop.cancel();
        }
    }

    async fn bind(&self, pod: &Pod) {
        let name = pod.name_any();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.options.node},
        });
        let parameters = PostParams::default();
        let bound: Result<serde_json::Value, _> =
            self.api(pod).create_subresource("binding", &name, &parameters, &binding).await;
        if let Err(error) = bound {
            // Seen twice before the first binding came back through the watch: the other one won.
            self.journal.note(format!("{name}: not bound: {error}"));
        }
    }

    /// The last step of a pod's deletion, which only its node may take.
    async fn finish(&self, pod: &Pod) {
        let name = pod.name_any();
        let parameters = DeleteParams {
            preconditions: Some(kube::api::Preconditions {
                uid: Some(uid(pod)),
                resource_version: None,
            }),
            ..DeleteParams::default().grace_period(0)
        };
        if let Err(error) = self.api(pod).delete(&name, &parameters).await {
            self.journal.note(format!("{name}: not removed: {error}"));
        }
        self.pods.lock().remove(&uid(pod));
    }

    fn api(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default())
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// An address nobody else has: the second byte comes from the process id, the rest is counted, and
/// none is given out twice.
fn allocate_address() -> Ipv4Addr {
    static COUNTER: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = COUNTER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let [_, _, _, process] = std::process::id().to_be_bytes();
    // 127.0 is everybody's.
    Ipv4Addr::new(127, process | 0x40, high, low)
}
