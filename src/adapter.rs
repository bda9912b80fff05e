//! Serve: the aggregated API server.

pub mod serving_ca;
