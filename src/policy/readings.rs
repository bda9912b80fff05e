//! What single pods and described objects show: the custom metrics of a decision.
//!
//! In: the outcome of each signal. Out: [`PodReading`]s and [`ObjectReading`]s. Never: a value of a pod that is silent, ended
//! or without the family, and never a part of a total as an object's value.

use std::sync::Arc;

use super::memory::Outcome;
use super::observe::{Observed, Reading, View};
use super::{
    Aggregate, DescribedObject, Finding, LeftOut, ObjectReading, PodReading, Signal, SignalKind,
    TargetRef, Unserved, refusal, usage,
};
use crate::store::PodWindow;

/// One per pod that shows anything now. `outcomes` are in the order of the policy's signals.
pub(super) fn pod_readings(view: &View<'_>, outcomes: &[Outcome]) -> Vec<PodReading> {
    let names: Vec<_> = view.policy.signals.iter().map(|signal| signal.kind.metric()).collect();
    let usage = usage::of_pods(view);
    let reading = |(index, pod): (usize, &Observed<'_>)| {
        let shares = outcomes.iter().filter_map(|outcome| outcome.shares.get(index));
        let pressure = shares.filter_map(Reading::fresh).copied().reduce(f64::max);
        let values = values(&names, outcomes, index);
        let usage = usage.get(index).cloned().flatten();
        let shows = pressure.is_some() || !values.is_empty() || usage.is_some();
        shows.then(|| PodReading {
            name: pod.pod.name.clone(),
            labels: pod.pod.labels.clone(),
            pressure,
            values,
            usage,
            sampled_at: pod.window.and_then(PodWindow::newest_source).unwrap_or(view.now.wall),
        })
    };
    view.pods.iter().enumerate().filter_map(reading).collect()
}

/// Of two signals that measure the same, the first counts, as with totals.
fn values(names: &[Option<Arc<str>>], outcomes: &[Outcome], index: usize) -> Vec<(Arc<str>, f64)> {
    let mut values: Vec<(Arc<str>, f64)> = Vec::new();
    for (name, outcome) in names.iter().zip(outcomes) {
        if let (Some(name), Some(value)) = (name, outcome.values.get(index).copied().flatten())
            && values.iter().all(|(known, _)| known != name)
        {
            values.push((name.clone(), value));
        }
    }
    values
}

/// One per metric that says what it describes, each metric of an object once; and what is wrong with the others'.
pub(super) fn described_objects(
    view: &View<'_>,
    outcomes: &[Outcome],
    left_out: &[LeftOut],
) -> (Vec<ObjectReading>, Vec<Finding>) {
    let mut objects: Vec<ObjectReading> = Vec::new();
    let mut findings = Vec::new();
    for (signal, outcome) in view.policy.signals.iter().zip(outcomes) {
        let SignalKind::Metric { name, aggregate, describes: Some(reference), .. } = &signal.kind
        else {
            continue;
        };
        let (object, value) = match view.workload.described.get(reference) {
            Some(Ok(object)) => (object.clone(), value(outcome, *aggregate, left_out)),
            Some(Err(why)) => {
                let message = format!("signal {}: {}", signal.name, why.message);
                findings.push(Finding { reason: why.reason, message });
                (unplaced(view, reference), Err(why.clone()))
            }
            None => (unplaced(view, reference), Err(pending(signal, reference))),
        };
        let same = |known: &ObjectReading| known.object == object && known.metric == *name;
        if !objects.iter().any(same) {
            objects.push(ObjectReading { object, metric: name.clone(), value });
        }
    }
    (objects, findings)
}

/// One shared value that every pod reports may come from any of them; of parts, none may be lacking.
fn value(outcome: &Outcome, aggregate: Aggregate, left_out: &[LeftOut]) -> Result<f64, Unserved> {
    let decision = &outcome.decision;
    if let Err(why) = &decision.demand {
        return Err(why.clone());
    }
    if aggregate == Aggregate::Sum {
        refusal::whole(left_out, &decision.name, decision.coverage)?;
    }
    Ok(outcome.amount.expect("a metric with a demand has the amount that it was made from"))
}

fn pending(signal: &Signal, reference: &TargetRef) -> Unserved {
    refusal::described_kind_pending(&signal.name, &reference.kind)
}

/// An object of which it is not known where it is served.
fn unplaced(view: &View<'_>, reference: &TargetRef) -> DescribedObject {
    let TargetRef { api_version, kind, name } = reference.clone();
    let namespace = Some(view.policy.id.namespace.clone());
    DescribedObject { api_version, kind, resource: "".into(), namespace, name }
}

#[cfg(test)]
mod tests;
