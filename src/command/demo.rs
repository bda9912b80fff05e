//! `headroom demo`: a loaded sample service with the agent, and the adapter, without a cluster.

pub mod load;
pub mod service;
