//! Integration tests: the program as its users run it, against a real Kubernetes control plane.
//!
//! `support` starts the control plane, a node, the adapter and loads; the other modules hold the tests.
//! Everything runs on loopback and ends with this process.

mod support {
    pub(crate) mod control_plane;
    pub(crate) mod journal;
    pub(crate) mod kubelet;
    pub(crate) mod pki;
    pub(crate) mod process;
    pub(crate) mod programs;
    pub(crate) mod shared;
}

#[path = "it/ground.rs"]
mod ground;
