//! `headroom demo`: a loaded sample service with the agent, and the adapter, without a cluster.

pub mod service;
