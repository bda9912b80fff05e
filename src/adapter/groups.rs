//! The API groups: which there are, in which versions, and which of them are served.
//!
//! In: [`Groups`], from the configuration. Out: what discovery, OpenAPI and the registration need to know of each. Never: a verb that can delete or watch: the namespace controller and the garbage collector
//! would use it on metrics (kubernetes `pkg/controller/namespace/deletion/namespaced_resources_deleter.go`).

/// Which API groups are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// `custom.metrics.k8s.io`: metrics of pods and other objects.
    pub custom: bool,
    /// `external.metrics.k8s.io`: metrics of policies.
    pub external: bool,
    /// `metrics.k8s.io`: CPU and memory of pods. Nearly every cluster has it already, from metrics-server.
    pub resource_metrics: bool,
}

impl Default for Groups {
    /// All that does not stand in metrics-server's place.
    fn default() -> Self {
        Self { custom: true, external: true, resource_metrics: false }
    }
}

/// One API group, with the one resource that stands for all it serves.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: &'static str,
    /// The preferred one first.
    pub(super) versions: &'static [&'static str],
    /// What discovery lists. Metrics are not listed one by one: the list would grow with them, and whoever reads it
    /// (the aggregator, kubectl, every controller) reads all of it.
    pub(super) resource: &'static str,
    pub(super) kind: &'static str,
    pub(super) verbs: &'static [&'static str],
}

pub(super) const EXTERNAL: Group = Group {
    name: "external.metrics.k8s.io",
    versions: &["v1beta1"],
    resource: "externalmetrics",
    kind: "ExternalMetricValueList",
    verbs: &["get"],
};

pub(super) const CUSTOM: Group = Group {
    name: "custom.metrics.k8s.io",
    versions: &["v1beta2", "v1beta1"],
    resource: "custommetrics",
    kind: "MetricValueList",
    verbs: &["get"],
};

pub(super) const RESOURCE_METRICS: Group = Group {
    name: "metrics.k8s.io",
    versions: &["v1", "v1beta1"],
    resource: "pods",
    kind: "PodMetrics",
    verbs: &["get", "list"],
};

impl Groups {
    pub(super) fn served(self) -> impl Iterator<Item = &'static Group> {
        let Self { custom, external, resource_metrics } = self;
        [(custom, &CUSTOM), (external, &EXTERNAL), (resource_metrics, &RESOURCE_METRICS)]
            .into_iter()
            .filter_map(|(is_served, group)| is_served.then_some(group))
    }

    /// The names of the APIServices that lead here, such as `v1beta1.external.metrics.k8s.io`.
    #[must_use]
    pub fn api_services(self) -> Vec<String> {
        let of = |group: &'static Group| {
            group.versions.iter().map(|version| format!("{version}.{}", group.name))
        };
        self.served().flat_map(of).collect()
    }
}
