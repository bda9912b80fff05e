//! Headroom.

pub mod time;
pub mod units;

pub mod quantity;
pub mod sample;

pub mod probes;
pub mod telemetry;

pub mod signals;

pub mod pprof;
pub mod store;

pub mod policy;

#[cfg(feature = "agent")]
pub mod agent;

#[cfg(feature = "adapter")]
pub mod adapter;
#[cfg(feature = "adapter")]
pub mod controller;
#[cfg(feature = "adapter")]
pub mod sources;

#[cfg(feature = "adapter")]
pub mod pipeline;

#[cfg(all(feature = "agent", feature = "adapter"))]
pub mod cli;
#[cfg(all(feature = "agent", feature = "adapter"))]
pub mod command;
