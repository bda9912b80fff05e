//! Serve: the aggregated API server.

pub mod serving_ca;
pub mod serving_certificate;
pub mod serving_files;
