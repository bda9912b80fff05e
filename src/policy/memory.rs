//! What one signal remembers from decision to decision, and what it hands back from each.
//!
//! In: the signal, and what an earlier run learned. Out: [`Memory`] and [`Outcome`]. Never: anything that the store could
//! tell again.

use std::collections::BTreeSet;
use std::mem::discriminant;
use std::sync::Arc;

use super::learning::{BaseLearning, CostLearning};
use super::observe::{Reading, View};
use super::window::WindowMean;
use super::{
    Coverage, Finding, LearnedSignal, Policy, Quantile, Signal, SignalDecision, SignalKind,
    Unserved,
};
use crate::time::Moment;
use crate::units::Measure;

/// The largest learned CPU base, as a share of the threshold.
const LARGEST_CPU_BASE: f64 = 0.1;

/// One signal's memory.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) signal: Signal,
    pub(super) long: WindowMean,
    /// It has had two samples once.
    pub(super) warm: bool,
    pub(super) base: BaseLearning,
    pub(super) cost: CostLearning,
    /// Endpoints whose requests were short while there was no queue.
    pub(super) short_endpoints: BTreeSet<String>,
    /// When a pod last had requests in its short span.
    pub(super) last_busy: Option<Moment>,
    /// A pod has shown a request of the signal's endpoint.
    pub(super) endpoint_seen: bool,
    start: Option<LearnedSignal>,
    /// The signal's subject.
    of: Arc<str>,
}

/// One signal's part in a decision, before the signals are combined.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) decision: SignalDecision,
    /// Each pod's part of the demand, in the view's order; empty where it could not be said.
    pub(super) shares: Vec<Reading<f64>>,
    /// Each pod's own value in the signal's unit, in the view's order; empty where the signal has none of single pods.
    pub(super) values: Vec<Option<f64>>,
    /// The workload's value in the signal's unit with what was filled in for silent pods; none without a demand, or a
    /// reader would scale down on it.
    pub(super) amount: Option<f64>,
    pub(super) quantile: Option<Quantile>,
    pub(super) findings: Vec<Finding>,
}

impl Memory {
    /// Starts with what an earlier run learned, if it was of the same: a signal may keep its name and measure another
    /// thing, or the policy another workload.
    pub(super) fn new(signal: &Signal, policy: &Policy) -> Self {
        let of = signal.subject(&policy.target);
        let mut earlier = policy.learned.signals.iter();
        let start = earlier.find(|learned| learned.name == signal.name && learned.of == of);
        Self::starting(signal, policy, start.cloned())
    }

    fn starting(signal: &Signal, policy: &Policy, start: Option<LearnedSignal>) -> Self {
        let of_start = |field: fn(&LearnedSignal) -> Option<f64>| start.as_ref().and_then(field);
        Self {
            signal: signal.clone(),
            long: WindowMean::new(policy.window, policy.endpoint.interval),
            warm: false,
            base: BaseLearning::new(of_start(|learned| learned.base)),
            cost: CostLearning::new(
                of_start(|learned| learned.cost_seconds.or(learned.service_time_seconds)),
                of_start(|learned| learned.quantile_seconds),
            ),
            short_endpoints: BTreeSet::new(),
            last_busy: None,
            // What a request costs is learned from requests.
            endpoint_seen: start.is_some(),
            start,
            of: signal.subject(&policy.target),
        }
    }

    /// The memory for a changed policy: all of it for the same signal, what was learned where only its numbers changed.
    pub(super) fn carry_over(self, signal: &Signal, old: &Policy, new: &Policy) -> Self {
        let same_windows = old.window == new.window && old.endpoint == new.endpoint;
        let same_target = old.target == new.target;
        if self.signal == *signal && same_windows && same_target {
            return self;
        }
        // The new policy's status is what this one learned, so it is no better known.
        let mut fresh = Self::starting(signal, new, None);
        if same_target && measures_the_same(&self.signal.kind, &signal.kind) {
            fresh.warm = self.warm;
            fresh.base = self.base;
            fresh.cost = self.cost;
            fresh.short_endpoints = self.short_endpoints;
            fresh.last_busy = self.last_busy;
            fresh.endpoint_seen = self.endpoint_seen;
            fresh.start = self.start;
        }
        fresh
    }

    /// The base in use: stated, else learned, else 0.
    pub(super) fn base(&self) -> f64 {
        self.signal.base.or(self.learned_base()).unwrap_or(0.0)
    }

    /// A learned CPU base is bounded: a starting process burns CPU that an idle one does not.
    fn learned_base(&self) -> Option<f64> {
        let learned = self.base.value()?;
        Some(match &self.signal.kind {
            SignalKind::Cpu(threshold) => {
                learned.min(LARGEST_CPU_BASE * threshold.threshold().get())
            }
            _ => learned,
        })
    }

    /// Forgets what is kept of pods that are gone.
    pub(super) fn forget_gone(&mut self, view: &View<'_>) {
        let here = |key: &_| view.pods.iter().any(|pod| pod.pod.key == *key);
        self.base.retain(here);
        self.cost.retain(here);
    }

    /// What is learned so far, if anything.
    pub(super) fn learned(&self) -> Option<LearnedSignal> {
        let base = self.learned_base();
        let cost = self.cost.cost(self.base());
        let (cost_seconds, service_time_seconds, quantile_seconds) = match &self.signal.kind {
            SignalKind::Latency(target) => (None, cost, self.cost.quantile(target.quantile.get())),
            _ => (cost, None, None),
        };
        if base.is_none() && cost.is_none() {
            return None;
        }
        let start = self.start.as_ref().map(|start| start.at);
        Some(LearnedSignal {
            name: self.signal.name.clone(),
            of: self.of.clone(),
            at: self.base.learned_at.max(self.cost.learned_at).or(start).unwrap_or_default(),
            base,
            cost_seconds,
            service_time_seconds,
            quantile_seconds,
        })
    }

    /// An outcome without a demand.
    pub(super) fn unserved(&self, coverage: Coverage, threshold: f64, why: Unserved) -> Outcome {
        let decision = SignalDecision {
            name: self.signal.name.clone(),
            formula: format!("no demand: {why}"),
            demand: Err(why),
            current: None,
            coverage,
            threshold,
            base: self.base(),
        };
        Outcome {
            decision,
            shares: vec![],
            values: vec![],
            amount: None,
            quantile: None,
            findings: vec![],
        }
    }
}

/// Whether what was learned about one holds for the other: the same quantity of the same pods.
fn measures_the_same(old: &SignalKind, new: &SignalKind) -> bool {
    match (old, new) {
        (SignalKind::Latency(old), SignalKind::Latency(new)) => {
            (&old.endpoint, old.concurrency.is_some(), old.quantile)
                == (&new.endpoint, new.concurrency.is_some(), new.quantile)
        }
        (SignalKind::Metric { name: old, .. }, SignalKind::Metric { name: new, .. }) => old == new,
        (old, new) => discriminant(old) == discriminant(new),
    }
}
