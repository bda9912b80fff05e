//! What is kept of a pod: its address, its ports, its life, its labels.
//!
//! In: pods as the API server lists them. Out: [`SeenPod`], a few hundred bytes each. Never: a judgement about a pod; the
//! selector of a target and the port of an endpoint are applied by the [index](super::index).

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::Deserialize;

use crate::policy::{self, Port};
use crate::quantity::Quantity;
use crate::sample::{Labels, PodKey};
use crate::time::Timestamp;
use crate::units::{CpuCores, Measure};

/// No pod lists more ports that anyone scrapes.
const MAX_PORTS: usize = 64;

/// A pod, cut down to what a decision needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SeenPod {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) labels: Labels,
    key: PodKey,
    ip: Option<IpAddr>,
    ports: Vec<SeenPort>,
    started_at: Option<Timestamp>,
    ready_since: Option<Timestamp>,
    ended: bool,
    /// The pod's own limit, or the sum of its containers'.
    cpu_limit: Option<CpuCores>,
}

/// A TCP port that a container names or only lists.
#[derive(Clone, Debug, PartialEq)]
struct SeenPort {
    name: Option<Arc<str>>,
    number: u16,
    container: Option<Arc<str>>,
    /// What its container may use: its own limit within the pod's; `None` where neither has one.
    cpu_limit: Option<CpuCores>,
}

impl SeenPod {
    /// The pod as a member of a workload whose endpoint has this port. One container serves the port, so what it reports
    /// has that container's limit and not the sum of all.
    pub(super) fn with_port(&self, port: &Port) -> policy::Pod {
        let owner = self.ports.iter().find(|seen| match port {
            Port::Number(number) => seen.number == *number,
            Port::Name(name) => seen.name.as_ref() == Some(name),
        });
        let number = match port {
            Port::Number(number) => Some(*number),
            Port::Name(_) => owner.map(|seen| seen.number),
        };
        policy::Pod {
            key: self.key.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            container: owner.and_then(|seen| seen.container.clone()),
            ip: self.ip,
            port: number,
            started_at: self.started_at,
            ready_since: self.ready_since,
            ended: self.ended,
            cpu_limit: owner.map_or(self.cpu_limit, |seen| seen.cpu_limit),
        }
    }
}

/// The part of a pod's JSON that is read. Everything may be absent; a pod that is not well formed cannot be stored.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = Pod)]
pub(super) struct PodView {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    resources: Option<Resources>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    restart_policy: Option<String>,
    ports: Option<Vec<ContainerPort>>,
    resources: Option<Resources>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: Option<String>,
    container_port: i64,
    protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    limits: Option<Limits>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Limits {
    cpu: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<PodCondition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_transition_time: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    name: String,
    state: Option<ContainerState>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<Running>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Running {
    started_at: Option<Time>,
}

impl Container {
    /// An init container that runs beside the others: a sidecar.
    fn runs_beside(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }

    fn cpu_limit(&self) -> Option<f64> {
        self.resources.as_ref().and_then(Resources::cpu_limit)
    }
}

impl Resources {
    fn cpu_limit(&self) -> Option<f64> {
        let text = self.limits.as_ref()?.cpu.as_deref()?;
        Quantity::from_str(text).ok().map(Quantity::to_f64)
    }
}

impl PodView {
    /// The containers that run as long as the pod does.
    fn lasting_containers(&self) -> impl Iterator<Item = &Container> {
        let sidecars = self.spec.init_containers.iter().flatten().filter(|c| c.runs_beside());
        self.spec.containers.iter().flatten().chain(sidecars)
    }

    fn ports(&self) -> Vec<SeenPort> {
        let tcp = |port: &ContainerPort| port.protocol.as_deref().is_none_or(|p| p == "TCP");
        let of_container = |container: &Container| {
            let limit = [container.cpu_limit(), self.own_cpu_limit()].into_iter().flatten();
            let cpu_limit = limit.reduce(f64::min).and_then(cores);
            let ports = container.ports.iter().flatten().filter(|port| tcp(port));
            let seen = ports.filter_map(|port| {
                let number = u16::try_from(port.container_port).ok()?;
                Some(SeenPort {
                    name: port.name.as_deref().map(Arc::from),
                    number,
                    container: Some(container.name.as_str().into()),
                    cpu_limit,
                })
            });
            seen.collect::<Vec<_>>()
        };
        self.lasting_containers().flat_map(of_container).take(MAX_PORTS).collect()
    }

    /// When the most recently started of the lasting containers started: from then on counters may begin anew.
    fn started_at(&self) -> Option<Timestamp> {
        let sidecar = |status: &&ContainerStatus| {
            self.spec
                .init_containers
                .iter()
                .flatten()
                .any(|c| c.name == status.name && c.runs_beside())
        };
        let sidecars = self.status.init_container_statuses.iter().flatten().filter(sidecar);
        self.status
            .container_statuses
            .iter()
            .flatten()
            .chain(sidecars)
            .filter_map(|status| status.state.as_ref()?.running.as_ref()?.started_at.as_ref())
            .map(timestamp)
            .max()
    }

    fn ready_since(&self) -> Option<Timestamp> {
        let ready =
            |condition: &&PodCondition| condition.kind == "Ready" && condition.status == "True";
        let condition = self.status.conditions.iter().flatten().find(ready)?;
        condition.last_transition_time.as_ref().map(timestamp)
    }

    /// The pod's own limit where it has one, else the containers' sum if all have one.
    fn cpu_limit(&self) -> Option<CpuCores> {
        let summed = || self.lasting_containers().map(Container::cpu_limit).sum::<Option<f64>>();
        self.own_cpu_limit().or_else(summed).and_then(cores)
    }

    fn own_cpu_limit(&self) -> Option<f64> {
        self.spec.resources.as_ref().and_then(Resources::cpu_limit)
    }

    fn ended(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
            || matches!(self.status.phase.as_deref(), Some("Failed" | "Succeeded"))
    }
}

/// A limit of 0 is none.
fn cores(limit: f64) -> Option<CpuCores> {
    CpuCores::new(limit).ok().filter(|_| limit > 0.0)
}

impl From<PodView> for SeenPod {
    fn from(view: PodView) -> Self {
        let text = |value: &Option<String>| Arc::<str>::from(value.as_deref().unwrap_or_default());
        Self {
            namespace: text(&view.metadata.namespace),
            name: text(&view.metadata.name),
            labels: view.metadata.labels.iter().flatten().collect(),
            key: PodKey(text(&view.metadata.uid)),
            ip: view.status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
            ports: view.ports(),
            started_at: view.started_at(),
            ready_since: view.ready_since(),
            ended: view.ended(),
            cpu_limit: view.cpu_limit(),
        }
    }
}

pub(super) fn timestamp(time: &Time) -> Timestamp {
    Timestamp::from_millis(time.0.as_millisecond())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A running, ready pod as kube-apiserver 1.37.2 lists it, cut down to the fields that are read.
    pub(crate) fn pod(name: &str, change: impl FnOnce(&mut Value)) -> SeenPod {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {"app": "checkout"},
            },
            "spec": {
                "containers": [{
                    "name": "app",
                    "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"},
                              {"containerPort": 9469, "name": "metrics", "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "1500m"}},
                }],
            },
            "status": {
                "phase": "Running",
                "podIP": "10.1.2.3",
                "conditions": [
                    {"type": "Initialized", "status": "True", "lastTransitionTime": "2026-09-21T14:13:00Z"},
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-09-21T14:13:20Z"},
                ],
                "containerStatuses": [{"name": "app", "state": {"running": {"startedAt": "2026-09-21T14:13:10Z"}}}],
            },
        });
        change(&mut object);
        let view: PodView = serde_json::from_value(object).expect("the object has a pod's form");
        view.into()
    }

    fn metrics_port() -> Port {
        Port::Name("metrics".into())
    }

    #[test]
    fn a_ready_pod_gives_all_that_a_decision_needs() {
        let pod = pod("a", |_| {}).with_port(&metrics_port());
        let expected = policy::Pod {
            key: PodKey("uid-a".into()),
            name: "a".into(),
            ip: Some(IpAddr::from([10, 1, 2, 3])),
            port: Some(9469),
            started_at: Some(Timestamp::from_millis(1_789_999_990_000)),
            ready_since: Some(Timestamp::from_millis(1_790_000_000_000)),
            ended: false,
            cpu_limit: CpuCores::new(1.5).ok(),
            labels: [("app", "checkout")].into_iter().collect(),
            container: Some("app".into()),
        };
        assert_eq!(pod, expected);
    }

    #[test]
    fn a_pod_without_a_port_of_that_name_has_no_port() {
        assert_eq!(pod("a", |_| {}).with_port(&Port::Name("admin".into())).port, None);
        assert_eq!(pod("a", |_| {}).with_port(&Port::Number(7)).port, Some(7));
        let udp =
            pod("a", |pod| pod["spec"]["containers"][0]["ports"][1]["protocol"] = json!("UDP"));
        assert_eq!(udp.with_port(&metrics_port()).port, None);
    }

    #[test]
    fn a_pending_pod_has_no_address_no_start_and_is_not_ready() {
        let pod =
            pod("a", |pod| pod["status"] = json!({"phase": "Pending"})).with_port(&metrics_port());
        assert_eq!((pod.ip, pod.started_at, pod.ready_since, pod.ended), (None, None, None, false));
    }

    #[test]
    fn a_pod_that_lost_readiness_is_ready_since_never() {
        let pod = pod("a", |pod| pod["status"]["conditions"][1]["status"] = json!("False"));
        assert_eq!(pod.with_port(&metrics_port()).ready_since, None);
    }

    #[test]
    fn a_restarted_sidecar_moves_the_start() {
        let pod = pod("a", |pod| {
            pod["spec"]["initContainers"] = json!([
                {"name": "setup"},
                {"name": "agent", "restartPolicy": "Always", "ports": [{"containerPort": 9999, "name": "agent"}]},
            ]);
            pod["status"]["initContainerStatuses"] = json!([
                {"name": "setup", "state": {"running": {"startedAt": "2026-09-21T15:00:00Z"}}},
                {"name": "agent", "state": {"running": {"startedAt": "2026-09-21T14:13:20Z"}}},
            ]);
        })
        .with_port(&Port::Name("agent".into()));
        assert_eq!(pod.started_at, Some(Timestamp::from_millis(1_790_000_000_000)));
        assert_eq!(pod.port, Some(9999));
        assert_eq!(pod.cpu_limit, None, "the sidecar serves the port and has no limit");
    }

    #[test]
    fn the_limit_is_that_of_the_container_whose_port_is_asked_and_else_the_pods() {
        let limit_of = |port: Port, change: fn(&mut Value)| {
            let pod = pod("a", |pod| {
                let proxy = json!({
                    "name": "proxy",
                    "ports": [{"containerPort": 15090}, {"containerPort": 8080, "protocol": "UDP"}],
                    "resources": {"limits": {"cpu": "4"}},
                });
                pod["spec"]["containers"].as_array_mut().expect("a list").push(proxy);
                change(pod);
            });
            pod.with_port(&port).cpu_limit.map(Measure::get)
        };
        let unchanged = |_: &mut Value| {};
        let within_2 = |pod: &mut Value| pod["spec"]["resources"]["limits"]["cpu"] = json!("2");
        assert_eq!(limit_of(metrics_port(), unchanged), Some(1.5));
        assert_eq!(limit_of(Port::Number(8080), unchanged), Some(1.5), "its UDP twin is not asked");
        assert_eq!(limit_of(Port::Number(15090), unchanged), Some(4.0), "it needs no name");
        assert_eq!(limit_of(Port::Number(7), unchanged), Some(5.5), "nobody lists it");
        assert_eq!(limit_of(Port::Number(15090), within_2), Some(2.0), "within the pod's own");
        assert_eq!(limit_of(metrics_port(), within_2), Some(1.5));
        let unlimited = |pod: &mut Value| pod["spec"]["containers"][1]["resources"] = json!({});
        assert_eq!(limit_of(metrics_port(), unlimited), Some(1.5), "whatever its neighbours have");
        assert_eq!(limit_of(Port::Number(15090), unlimited), None);
    }

    #[test]
    fn the_limit_of_the_pod_itself_counts_before_those_of_its_containers() {
        let own = pod("a", |pod| pod["spec"]["resources"] = json!({"limits": {"cpu": "4"}}));
        assert_eq!(own.with_port(&Port::Number(7)).cpu_limit, CpuCores::new(4.0).ok());
    }

    #[test]
    fn a_pod_has_ended_when_it_is_deleted_failed_or_succeeded() {
        let ended = |change: fn(&mut Value)| pod("a", change).with_port(&metrics_port()).ended;
        assert!(ended(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-09-21T14:13:20Z")));
        assert!(ended(|pod| pod["status"]["phase"] = json!("Failed")));
        assert!(ended(|pod| pod["status"]["phase"] = json!("Succeeded")));
        assert!(!ended(|pod| pod["status"]["phase"] = json!("Unknown")));
    }
}
