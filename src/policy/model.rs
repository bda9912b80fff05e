//! What a decision is made from: the policy, the workload, and what was learned before.
//!
//! Built by the controller from Kubernetes objects, or by the demo from constants. Immutable once built.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::{Threshold, TotalKind, Unserved};
use crate::sample::{EndpointKey, Labels, PodKey};
use crate::time::Timestamp;
use crate::units::{ByteCount, BytesPerSecond, CpuCores, Plain, Ratio, Seconds, TaskCount};

/// A policy's name in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    /// The namespace of the policy, its target and its HPA.
    pub namespace: Arc<str>,
    /// The policy's name, which is also the HPA's.
    pub name: Arc<str>,
}

/// A validated `ScalingPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Whose policy.
    pub id: PolicyId,
    /// `metadata.generation` of the object that this was compiled from.
    pub generation: i64,
    /// What is scaled.
    pub target: TargetRef,
    /// Where its pods expose their signals.
    pub endpoint: Endpoint,
    /// The long window of demand.
    pub window: Duration,
    /// From this age on a pod's newest sample no longer counts.
    pub stale_after: Duration,
    /// How long a Ready pod may stay silent before it is counted as missing.
    pub start_grace: Duration,
    /// The least share of reporting pods from which a total is inferred.
    pub coverage_floor: Ratio,
    /// At least one; names are unique.
    pub signals: Vec<Signal>,
    /// `autoscaler.minReplicas`, where the policy has an autoscaler.
    pub min_replicas: Option<u32>,
    /// Each pod's CPU and memory in use are read, too, for `metrics.k8s.io`.
    pub wants_usage: bool,
    /// `autoscaler.maxReplicas`, where the policy has an autoscaler.
    pub max_replicas: Option<u32>,
    /// What an earlier run learned (`status.learned`); the start of this run's memory.
    pub learned: Learned,
}

impl Policy {
    /// What its metrics describe, where that is not the pods.
    pub fn described(&self) -> impl Iterator<Item = &TargetRef> {
        self.signals.iter().filter_map(|signal| match &signal.kind {
            SignalKind::Metric { describes, .. } => describes.as_ref(),
            _ => None,
        })
    }
}

/// An object of the policy's namespace as a spec names it: `scaleTargetRef`, or what a metric describes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetRef {
    /// E.g. `apps/v1`.
    pub api_version: Arc<str>,
    /// E.g. `Deployment`.
    pub kind: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

/// `endpoint`: where and how often every pod is scraped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The port on the pod's address.
    pub port: Port,
    /// The path, starting with `/`.
    pub path: Arc<str>,
    /// Plain or TLS.
    pub scheme: Scheme,
    /// The time from one scrape of a pod to its next.
    pub interval: Duration,
}

impl Endpoint {
    /// Where its answers of one pod are kept; `None` where the pod has no such port.
    #[must_use]
    pub fn on(&self, pod: &Pod) -> Option<EndpointKey> {
        // With a second scheme, two endpoints may differ in nothing else: it belongs into the key then.
        let Scheme::Http = self.scheme;
        Some(EndpointKey {
            pod: pod.key.clone(),
            port: pod.port?,
            path: self.path.clone(),
            interval: self.interval,
        })
    }
}

/// A port by number, or by the name a container gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// The number itself.
    Number(u16),
    /// `containers[].ports[].name`; the controller resolves it into [`Pod::port`].
    Name(Arc<str>),
}

/// The scheme of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
}

/// One signal of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// Its name in the policy: label `signal`.
    pub name: Arc<str>,
    /// What is measured, and how much of it one pod should carry.
    pub kind: SignalKind,
    /// What an idle pod shows, in the signal's unit, where the policy states it; else it is learned.
    pub base: Option<f64>,
}

impl Signal {
    /// What is measured of what, without the numbers: `latency POST /checkout of apps/v1 Deployment checkout`. What was
    /// learned holds for nothing else.
    #[must_use]
    pub fn subject(&self, target: &TargetRef) -> Arc<str> {
        let (kind, part) = match &self.kind {
            SignalKind::Tasks(_) => ("tasks", None),
            SignalKind::Heap(_) => ("heap", None),
            SignalKind::AllocationRate(_) => ("allocationRate", None),
            SignalKind::Cpu(_) => ("cpu", None),
            SignalKind::Latency(latency) => ("latency", latency.endpoint.as_deref()),
            SignalKind::Metric { name, .. } => ("metric", Some(&**name)),
        };
        let TargetRef { api_version, kind: of, name } = target;
        match part {
            Some(part) => format!("{kind} {part} of {api_version} {of} {name}"),
            None => format!("{kind} of {api_version} {of} {name}"),
        }
        .into()
    }
}

/// The kinds of signals, each with its threshold per pod.
#[derive(Clone, Debug, PartialEq)]
pub enum SignalKind {
    /// Live tasks.
    Tasks(Threshold<TaskCount>),
    /// Heap in use.
    Heap(Threshold<ByteCount>),
    /// Bytes allocated per second.
    AllocationRate(Threshold<BytesPerSecond>),
    /// CPU cores demanded, in the work form.
    Cpu(Threshold<CpuCores>),
    /// Request latency, in the work form.
    Latency(LatencyTarget),
    /// A metric of the service's own.
    Metric {
        /// The gauge's name.
        name: Arc<str>,
        /// How the pods' values become the workload's.
        aggregate: Aggregate,
        /// How much of it one pod should carry.
        threshold: Threshold<Plain>,
        /// The object that the value is about, where it is not the pods; [`Workload::described`] has where it is served.
        describes: Option<TargetRef>,
    },
}

impl SignalKind {
    /// The raw total that is served of it, where there is one.
    #[must_use]
    pub const fn total_kind(&self) -> Option<TotalKind> {
        match self {
            Self::Tasks(_) => Some(TotalKind::Tasks),
            Self::Heap(_) => Some(TotalKind::HeapBytes),
            Self::AllocationRate(_) => Some(TotalKind::AllocationBytesPerSecond),
            Self::Cpu(_) => Some(TotalKind::CpuCores),
            Self::Latency(_) | Self::Metric { .. } => None,
        }
    }

    /// The name under which a pod's own value is served. Latency has none: a quantile belongs to all pods together.
    #[must_use]
    pub fn metric(&self) -> Option<Arc<str>> {
        match self {
            Self::Metric { name, .. } => Some(name.clone()),
            kind => kind.total_kind().map(|total| total.name().into()),
        }
    }
}

/// An object that a metric is about, as custom.metrics.k8s.io addresses it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DescribedObject {
    /// E.g. `networking.k8s.io/v1`, or `v1` of the core group.
    pub api_version: Arc<str>,
    /// E.g. `Ingress`.
    pub kind: Arc<str>,
    /// The plural in paths, e.g. `ingresses`; empty where it is not known.
    pub resource: Arc<str>,
    /// Its namespace, which is the policy's; `None` of a kind that has none.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Arc<str>,
}

impl DescribedObject {
    /// The API group; empty of the core group.
    #[must_use]
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }
}

/// How the values of several pods become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// Each pod reports its own part.
    Sum,
    /// Every pod reports the same shared value.
    Max,
}

/// `latency`: the quantile of the request latency that must stay under a target.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyTarget {
    /// Between 0 and 1, exclusive.
    pub quantile: Ratio,
    /// Where it must stay under.
    pub target: Threshold<Seconds>,
    /// The value of label `endpoint`; `None` is all requests.
    pub endpoint: Option<Arc<str>>,
    /// Requests one pod serves at once; `None`: as many as it has workers.
    pub concurrency: Option<NonZeroU32>,
    /// The no-load service time, where the policy states it; else it is learned.
    pub service_time: Option<Duration>,
}

/// What was learned, and is kept over a restart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learned {
    /// One entry per signal that learned something.
    pub signals: Vec<LearnedSignal>,
}

/// What one signal learned.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnedSignal {
    /// The signal's name in the policy.
    pub name: Arc<str>,
    /// Of what it was learned: the [`Signal::subject`].
    pub of: Arc<str>,
    /// When.
    pub at: Timestamp,
    /// What an idle pod shows, in the signal's unit.
    pub base: Option<f64>,
    /// CPU seconds per completed request.
    pub cost_seconds: Option<f64>,
    /// No-load service time in seconds.
    pub service_time_seconds: Option<f64>,
    /// The wanted quantile of the latency without load, in seconds.
    pub quantile_seconds: Option<f64>,
}

/// The scale target as it is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    /// `spec.replicas` of its scale subresource.
    pub spec_replicas: u32,
    /// `status.replicas` of its scale subresource, which the HPA divides by.
    pub status_replicas: u32,
    /// The plural of its kind in paths, e.g. `deployments`; empty where it was not looked up.
    pub resource: Arc<str>,
    /// What the policy's metrics describe, as the API server serves it, or why it cannot; absent: not looked up yet.
    pub described: BTreeMap<TargetRef, Result<DescribedObject, Unserved>>,
    /// The pods that its selector matches.
    pub pods: Vec<Pod>,
}

/// One pod of the workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Its incarnation.
    pub key: PodKey,
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// The container that serves the endpoint's port, where one says so.
    pub container: Option<Arc<str>>,
    /// `status.podIP`, once it has one.
    pub ip: Option<IpAddr>,
    /// The endpoint's port on it; `None` where no container has a port of that name.
    pub port: Option<u16>,
    /// When its (most recently started) container started.
    pub started_at: Option<Timestamp>,
    /// Since when the Ready condition is true; `None` while it is not.
    pub ready_since: Option<Timestamp>,
    /// Being deleted, Failed or Succeeded: out of the newest total and the coverage at once.
    pub ended: bool,
    /// The CPU limit of the container that serves the endpoint's port; where none says that it does, the pod's: its own, or
    /// the sum of its containers' if all have one.
    pub cpu_limit: Option<CpuCores>,
}

/// A policy together with the workload it is about: what the controller hands to the pipeline.
#[derive(Clone, Debug, PartialEq)]
pub enum Assignment {
    /// Scrape, decide, serve.
    Active {
        /// The policy.
        policy: Arc<Policy>,
        /// Its workload now.
        workload: Arc<Workload>,
    },
    /// Known, but not served, for a reason the reader of its metrics is told.
    Refused {
        /// Whose policy.
        id: PolicyId,
        /// A CamelCase reason, as in a condition.
        reason: &'static str,
        /// One sentence.
        message: String,
    },
}
