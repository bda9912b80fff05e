//! `ScalingPolicy` objects become the current policy set; status is written back.

pub mod lease;
