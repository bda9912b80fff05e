//! Decides about one policy: evaluates its signals and combines them.
//!
//! In: the store, the workload, `now`. Out: a [`Decision`]. Never: replicas lowered because a signal was lost.

use std::sync::Arc;

use super::memory::{Memory, Outcome};
use super::observe::{FirstReady, Reading, View, remember_ready};
use super::readings::{described_objects, pod_readings};
use super::settle::pods_needed;
use super::{
    Decision, DescribedObject, Finding, Learned, LeftOut, LeftOutReason, Policy, Signal,
    SignalKind, TargetRef, Total, Unserved, Workload, refusal, signal_cpu, signal_latency,
    signal_plain,
};
use crate::store::Store;
use crate::time::Now;
use crate::units::Measure;

/// The memory of one policy: long windows and learned values. Everything else is read from the store anew.
#[derive(Debug)]
pub struct Decider {
    policy: Arc<Policy>,
    memories: Vec<Memory>,
    first_ready: FirstReady,
}

impl Decider {
    /// Starts with what `policy.learned` holds of an earlier run.
    #[must_use]
    pub fn new(policy: Arc<Policy>) -> Self {
        let memories = policy.signals.iter().map(|signal| Memory::new(signal, &policy)).collect();
        Self { policy, memories, first_ready: FirstReady::new() }
    }

    /// The policy decided about.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// What is learned so far.
    #[must_use]
    pub fn learned(&self) -> Learned {
        Learned { signals: self.memories.iter().filter_map(Memory::learned).collect() }
    }

    /// Takes a changed policy. Signals that did not change keep all of their memory; of one whose threshold changed,
    /// what was learned is kept.
    pub fn update(&mut self, policy: Arc<Policy>) {
        let mut old = std::mem::take(&mut self.memories);
        self.memories = policy
            .signals
            .iter()
            .map(|signal| match old.iter().position(|memory| memory.signal.name == signal.name) {
                Some(known) => old.swap_remove(known).carry_over(signal, &self.policy, &policy),
                None => Memory::new(signal, &policy),
            })
            .collect();
        self.policy = policy;
    }

    /// Decides at `now`. Each call counts as one reading of the totals; call it when a batch of one of the pods arrived.
    pub fn decide(&mut self, store: &Store, workload: &Workload, now: Now) -> Decision {
        let policy = Arc::clone(&self.policy);
        remember_ready(&mut self.first_ready, &workload.pods);
        let view = View::new(&policy, store, workload, &self.first_ready, now);
        let mut outcomes = Vec::with_capacity(self.memories.len());
        for memory in &mut self.memories {
            memory.forget_gone(&view);
            outcomes.push(evaluate(memory, &view));
        }
        self.assemble(&view, outcomes)
    }

    fn assemble(&self, view: &View<'_>, outcomes: Vec<Outcome>) -> Decision {
        let (demand, driver) = combine(view, &outcomes);
        let pods = pod_readings(view, &outcomes);
        let left_out = left_out(view, &outcomes);
        let (objects, undescribed) = described_objects(view, &outcomes, &left_out);
        let mut decision = Decision {
            policy: self.policy.id.clone(),
            target: described(&self.policy, view.workload),
            generation: self.policy.generation,
            decided: view.now.monotonic,
            stale_after: self.policy.stale_after,
            sampled_at: view.sampled_at(),
            window: self.policy.window,
            demand,
            driver,
            signals: vec![],
            coverage: view.coverage(),
            totals: vec![],
            quantiles: vec![],
            pods,
            objects,
            left_out,
            findings: cannot_wake(&self.policy).into_iter().collect(),
            learned: self.learned(),
        };
        for (signal, outcome) in self.policy.signals.iter().zip(outcomes) {
            add_total(&mut decision.totals, signal, outcome.amount);
            decision.signals.push(outcome.decision);
            decision.quantiles.extend(outcome.quantile);
            decision.findings.extend(outcome.findings);
        }
        decision.findings.extend(undescribed);
        decision
    }
}

fn described(policy: &Policy, workload: &Workload) -> DescribedObject {
    let TargetRef { api_version, kind, name } = &policy.target;
    DescribedObject {
        api_version: api_version.clone(),
        kind: kind.clone(),
        resource: workload.resource.clone(),
        namespace: Some(policy.id.namespace.clone()),
        name: name.clone(),
    }
}

fn evaluate(memory: &mut Memory, view: &View<'_>) -> Outcome {
    match memory.signal.kind.clone() {
        SignalKind::Cpu(threshold) => {
            signal_cpu::evaluate(memory, view, threshold.threshold().get())
        }
        SignalKind::Latency(target) => signal_latency::evaluate(memory, view, &target),
        _ => signal_plain::evaluate(memory, view)
            .expect("every kind but CPU and latency is a plain one"),
    }
}

/// The maximum over the signals, and which one it is. Of several, a missing one leaves the others only a number that does
/// not lower the replicas.
fn combine(view: &View<'_>, outcomes: &[Outcome]) -> (Result<f64, Unserved>, Option<Arc<str>>) {
    let known = outcomes.iter().filter_map(|outcome| {
        let demand = *outcome.decision.demand.as_ref().ok()?;
        Some((demand, &outcome.decision.name))
    });
    let largest = known.max_by(|(a, _), (b, _)| a.total_cmp(b));
    let missing: Vec<(&Arc<str>, &Unserved)> = outcomes
        .iter()
        .filter_map(|outcome| {
            Some((&outcome.decision.name, outcome.decision.demand.as_ref().err()?))
        })
        .collect();
    let driver = largest.map(|(_, name)| name.clone());
    let demand = match (largest, missing.first()) {
        (Some((demand, _)), None) => Ok(demand),
        (Some((demand, _)), Some(_))
            if pods_needed(demand) >= f64::from(view.workload.spec_replicas) =>
        {
            Ok(demand)
        }
        (Some((demand, _)), Some(_)) => {
            Err(refusal::signal_missing(&missing, demand, view.workload.spec_replicas))
        }
        (None, Some((_, why))) => Err((*why).clone()),
        (None, None) => {
            Err(Unserved { reason: "NoSignals", message: "the policy has no signals".to_owned() })
        }
    };
    (demand, driver)
}

/// Silent pods once, and reporting pods for each signal that they do not serve.
fn left_out(view: &View<'_>, outcomes: &[Outcome]) -> Vec<LeftOut> {
    let mut left_out = view.silent();
    for outcome in outcomes {
        let signal = &outcome.decision.name;
        let kind = view.policy.signals.iter().find(|known| known.name == *signal);
        for (pod, share) in view.pods.iter().zip(&outcome.shares) {
            let partial = || pod.partial_family(&kind?.kind);
            let reason = match share {
                Reading::Missing => match partial() {
                    Some(family) => LeftOutReason::PartialFamily { signal: signal.clone(), family },
                    None => LeftOutReason::MissingFamily { signal: signal.clone() },
                },
                Reading::Awaiting => LeftOutReason::NotYetReported,
                _ => continue,
            };
            let entry = pod.left_out(reason, view.now);
            if !left_out.contains(&entry) {
                left_out.push(entry);
            }
        }
    }
    left_out
}

/// Totals are per kind once, even of several signals.
fn add_total(totals: &mut Vec<Total>, signal: &Signal, amount: Option<f64>) {
    if let (Some(kind), Some(value)) = (signal.kind.total_kind(), amount)
        && totals.iter().all(|known| known.kind != kind)
    {
        totals.push(Total { kind, signal: signal.name.clone(), value });
    }
}

/// Signals of pods cannot bring a workload back from zero.
fn cannot_wake(policy: &Policy) -> Option<Finding> {
    (policy.min_replicas == Some(0)).then(|| Finding {
        reason: "CannotWake",
        message: "minReplicas is 0, but every signal is read from pods: at zero replicas nothing asks for the first pod"
            .to_owned(),
    })
}
