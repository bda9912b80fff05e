//! Decide: thresholds over a view of the store give a demand, or say why not.
//!
//! In: a [`Policy`], the [`Workload`] it is about, the store's windows, `now`. Out: a [`Decision`] that explains itself.
//! Never: a clock, a network, Kubernetes types, and never a 0 for something unknown.
//!
//! Reading order: `decider` runs the signals of a policy and combines them; `signal_plain`, `signal_cpu` and
//! `signal_latency` each measure one family of kinds; `settle` turns a measurement into a demand by way of `coverage`,
//! `window` and `imputation`; `work_form`, `erlang` and `learning` hold the formulas; `readings` and `usage` tell what single
//! pods and described objects show.

mod board;
mod coverage;
mod decider;
mod decision;
mod erlang;
mod families;
pub mod hpa;
mod imputation;
mod learning;
mod memory;
mod model;
mod observe;
mod readings;
pub mod reason;
mod refusal;
mod settle;
mod signal_cpu;
mod signal_latency;
mod signal_plain;
mod threshold;
mod traffic;
mod usage;
mod window;
mod work_form;

#[cfg(test)]
mod example;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use board::{Board, Entry, EntryState, Namespace, Standing};
pub use decider::Decider;
pub use decision::{
    Coverage, DEMAND_METRIC, Decision, Finding, LeftOut, LeftOutReason, ObjectReading,
    POLICY_LABEL, PodReading, PodUsage, Quantile, SignalDecision, Total, TotalKind, Unserved,
};
pub use model::{
    Aggregate, Assignment, DescribedObject, Endpoint, LatencyTarget, Learned, LearnedSignal, Pod,
    Policy, PolicyId, Port, Scheme, Signal, SignalKind, TargetRef, Workload,
};
pub use threshold::Threshold;
