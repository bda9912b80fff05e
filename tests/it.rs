//! Integration tests: the program as its users run it, against a real Kubernetes control plane.
//!
//! `support` starts the control plane, a node, the adapter and loads; the other modules hold the tests.
//! Everything runs on loopback and ends with this process.

#[path = "support"]
mod support {
    pub(crate) mod adapter;
    pub(crate) mod constant_adapter;
    pub(crate) mod control_plane;
    pub(crate) mod direct;
    pub(crate) mod exporter;
    pub(crate) mod journal;
    pub(crate) mod kubelet;
    pub(crate) mod load;
    pub(crate) mod packaging;
    pub(crate) mod paper_node;
    pub(crate) mod pki;
    pub(crate) mod played;
    pub(crate) mod process;
    pub(crate) mod programs;
    pub(crate) mod prometheus;
    pub(crate) mod raw_profile;
    pub(crate) mod sample;
    pub(crate) mod shared;
    pub(crate) mod timeline;
    pub(crate) mod workload;
}

#[path = "it/access.rs"]
mod access;
#[path = "it/admission.rs"]
mod admission;
#[path = "it/alerts.rs"]
mod alerts;
#[path = "it/conformance.rs"]
mod conformance;
#[path = "it/dashboards.rs"]
mod dashboards;
#[path = "it/dependencies.rs"]
mod dependencies;
#[path = "it/discovery.rs"]
mod discovery;
#[path = "it/docs.rs"]
mod docs;
#[path = "it/exposition.rs"]
mod exposition;
#[path = "it/failures.rs"]
mod failures;
#[path = "it/faults.rs"]
mod faults;
#[path = "it/ground.rs"]
mod ground;
#[path = "it/install.rs"]
mod install;
#[path = "it/installed.rs"]
mod installed;
#[path = "it/layers.rs"]
mod layers;
#[path = "it/profile_readers.rs"]
mod profile_readers;
#[path = "it/profile_views.rs"]
mod profile_views;
#[path = "it/profiles.rs"]
mod profiles;
#[path = "it/reading.rs"]
mod reading;
#[path = "it/replicas.rs"]
mod replicas;
#[path = "it/rules.rs"]
mod rules;
#[path = "it/sandbox.rs"]
mod sandbox;
#[path = "it/scaling.rs"]
mod scaling;
#[path = "it/sidecar.rs"]
mod sidecar;
#[path = "it/sla.rs"]
mod sla;
#[path = "it/soak.rs"]
mod soak;

/// `make cluster`: everything these tests use, for a person to look at.
#[test]
#[ignore = "runs until Ctrl-C"]
fn cluster() {
    support::shared::run(sandbox::serve());
}
