//! Decide: thresholds over a view of the store give a demand, or say why not.
//!
//! In: a [`Policy`], the [`Workload`] it is about, the store's windows, `now`. Out: a [`Decision`] that explains itself.
//! Never: a clock, a network, Kubernetes types, and never a 0 for something unknown.

mod board;
mod decision;
mod model;
mod threshold;

pub use board::{Board, Entry, EntryState};
pub use decision::{
    Coverage, Decision, Finding, LeftOut, LeftOutReason, PodPressure, Quantile, SignalDecision, Total, TotalKind, Unserved,
};
pub use model::{
    Aggregate, Assignment, Endpoint, LatencyTarget, Learned, LearnedSignal, Pod, Policy, PolicyId, Port, Scheme, Signal, SignalKind,
    TargetRef, Workload,
};
pub use threshold::Threshold;
