//! `ScalingPolicy` objects become the current policy set; status is written back.

pub mod compile;
pub mod crd;
pub mod lease;
pub mod scaling_policy;
