//! The replicas that a HorizontalPodAutoscaler would choose: its calculator, for the demo and for tests.
//!
//! In: metric values as an HPA reads them (whole milli units) and the scale's state. Out: a [`Proposal`], which
//! [`Normalizer`] turns into the next `spec.replicas`. Never: better than the real one; it keeps its quirks.
//! Source: Kubernetes 1.37 `pkg/controller/podautoscaler/replica_calculator.go` and `horizontal.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

mod behavior;
pub use behavior::{Behavior, Normalizer, RatePolicy, RateStep, ScalingRules, Select};

/// How far the ratio of current to target may be from 1 without a change: inclusive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Above 1.
    pub up: f64,
    /// Below 1.
    pub down: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { up: 0.1, down: 0.1 }
    }
}

impl Tolerance {
    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// A metric with its target, both in milli units.
#[derive(Clone, Debug, PartialEq)]
pub enum Metric {
    /// External, `AverageValue`: absolute, the only pair that Headroom generates.
    ExternalAverageValue {
        /// The values of all items.
        items_milli: Vec<i64>,
        /// The target per pod.
        target_milli: i64,
    },
    /// External, `Value`: relative to the Ready pods.
    ExternalValue {
        /// The values of all items.
        items_milli: Vec<i64>,
        /// The target of their sum.
        target_milli: i64,
    },
    /// Pods, `averageValue`.
    Pods {
        /// One value per pod name.
        values_milli: BTreeMap<Arc<str>, i64>,
        /// The target of their mean.
        target_milli: i64,
    },
}

/// A pod as the calculator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HpaPod {
    /// Its name.
    pub name: Arc<str>,
    /// What it is in.
    pub phase: HpaPodPhase,
}

/// The standings that the calculator tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HpaPodPhase {
    /// Running and Ready.
    Ready,
    /// Running, not Ready.
    Unready,
    /// Pending.
    Pending,
    /// Being deleted, or failed: not looked at.
    Ignored,
}

/// The scale subresource and its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScaleState {
    /// `spec.replicas`.
    pub spec_replicas: u32,
    /// `status.replicas`.
    pub status_replicas: u32,
    /// The pods that the selector matches.
    pub pods: Vec<HpaPod>,
}

/// What one metric asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The replicas.
    pub replicas: u32,
    /// What the HPA's status shows as the current value, in milli units.
    pub status_milli: i64,
}

/// Why a metric proposes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpaError {
    /// An answer without items.
    #[error("no metrics returned from the metrics API")]
    NoItems,
    /// The selector matches nothing.
    #[error("no pods returned by selector while calculating replica count")]
    NoPods,
}

/// What the metric asks for. An HPA with several metrics takes the largest proposal.
///
/// # Errors
/// [`HpaError`] where the real calculator reports one; the replicas then stay.
pub fn desired_replicas(
    metric: &Metric,
    scale: &ScaleState,
    tolerance: Tolerance,
) -> Result<Proposal, HpaError> {
    match metric {
        Metric::ExternalAverageValue { items_milli, target_milli } => {
            external_average(items_milli, *target_milli, scale, tolerance)
        }
        Metric::ExternalValue { items_milli, target_milli } => {
            external_value(items_milli, *target_milli, scale, tolerance)
        }
        Metric::Pods { values_milli, target_milli } => {
            pods_average(values_milli.clone(), *target_milli, scale, tolerance)
        }
    }
}

fn external_average(
    items: &[i64],
    target: i64,
    scale: &ScaleState,
    tolerance: Tolerance,
) -> Result<Proposal, HpaError> {
    if items.is_empty() {
        return Err(HpaError::NoItems);
    }
    let mut usage = 0_i64;
    for item in items {
        usage = usage.wrapping_add(*item);
        if usage < 0 {
            // The calculator takes every negative sum for an overflow, which a single negative item is enough for.
            usage = i64::MAX;
            break;
        }
    }
    let replicas = f64::from(scale.status_replicas);
    let ratio = float(usage) / (float(target) * replicas);
    let proposed = if tolerance.holds(ratio) {
        scale.status_replicas
    } else {
        whole(float(usage) / float(target))
    };
    let status_milli = if usage == i64::MAX { usage } else { milli(float(usage) / replicas) };
    Ok(Proposal { replicas: proposed, status_milli })
}

fn external_value(
    items: &[i64],
    target: i64,
    scale: &ScaleState,
    tolerance: Tolerance,
) -> Result<Proposal, HpaError> {
    if items.is_empty() {
        return Err(HpaError::NoItems);
    }
    let usage = items.iter().fold(0_i64, |sum, item| sum.saturating_add(*item));
    let ratio = float(usage) / float(target);
    let replicas = if scale.spec_replicas == 0 {
        whole(ratio)
    } else if tolerance.holds(ratio) {
        scale.spec_replicas
    } else if scale.pods.is_empty() {
        return Err(HpaError::NoPods);
    } else {
        let ready = scale.pods.iter().filter(|pod| pod.phase == HpaPodPhase::Ready).count();
        whole(ratio * count(ready))
    };
    Ok(Proposal { replicas, status_milli: usage })
}

fn pods_average(
    mut values: BTreeMap<Arc<str>, i64>,
    target: i64,
    scale: &ScaleState,
    tolerance: Tolerance,
) -> Result<Proposal, HpaError> {
    if scale.pods.is_empty() {
        return Err(HpaError::NoPods);
    }
    let groups = group(&scale.pods, &values);
    for name in groups.ignored.iter().chain(&groups.unready) {
        values.remove(name);
    }
    if values.is_empty() {
        return Err(HpaError::NoItems);
    }
    let current = scale.spec_replicas;
    let (ratio, status_milli) = mean_ratio(&values, target);
    let keep = Proposal { replicas: current, status_milli };
    let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !up_with_unready && groups.missing.is_empty() {
        let replicas =
            if tolerance.holds(ratio) { current } else { whole(ratio * count(groups.ready)) };
        return Ok(Proposal { replicas, status_milli });
    }
    // Missing pods hold a move back: down they count as on target, up as idle.
    let filler = if ratio < 1.0 { Some(target) } else { (ratio > 1.0).then_some(0) };
    if let Some(filler) = filler {
        values.extend(groups.missing.iter().map(|name| (name.clone(), filler)));
    }
    if up_with_unready {
        values.extend(groups.unready.iter().map(|name| (name.clone(), 0)));
    }
    let (filled, _) = mean_ratio(&values, target);
    if tolerance.holds(filled) || (ratio < 1.0 && filled > 1.0) || (ratio > 1.0 && filled < 1.0) {
        return Ok(keep);
    }
    let replicas = whole(filled * count(values.len()));
    let turns = (filled < 1.0 && replicas > current) || (filled > 1.0 && replicas < current);
    Ok(if turns { keep } else { Proposal { replicas, status_milli } })
}

#[derive(Default)]
struct Groups {
    ready: usize,
    unready: Vec<Arc<str>>,
    missing: Vec<Arc<str>>,
    ignored: Vec<Arc<str>>,
}

/// For anything but CPU, readiness does not matter once a pod runs and has a value.
fn group(pods: &[HpaPod], values: &BTreeMap<Arc<str>, i64>) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        match pod.phase {
            HpaPodPhase::Ignored => groups.ignored.push(pod.name.clone()),
            HpaPodPhase::Pending => groups.unready.push(pod.name.clone()),
            _ if !values.contains_key(&pod.name) => groups.missing.push(pod.name.clone()),
            _ => groups.ready += 1,
        }
    }
    groups
}

/// The ratio of the mean to the target, and the mean, which is an integer.
fn mean_ratio(values: &BTreeMap<Arc<str>, i64>, target: i64) -> (f64, i64) {
    let sum = values.values().fold(0_i64, |sum, value| sum.saturating_add(*value));
    let mean = i64::try_from(values.len()).map_or(0, |count| sum / count.max(1));
    (float(mean) / float(target), mean)
}

#[expect(clippy::cast_precision_loss, reason = "the calculator computes in float64 too")]
fn float(milli: i64) -> f64 {
    milli as f64
}

fn count(pods: usize) -> f64 {
    f64::from(u32::try_from(pods).unwrap_or(u32::MAX))
}

/// The ceiling as replicas, within an int32 that is not negative; NaN (0/0 at zero replicas) is 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to an int32")]
fn whole(replicas: f64) -> u32 {
    replicas.ceil().clamp(0.0, f64::from(i32::MAX)) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "a float to integer cast saturates, NaN is 0")]
fn milli(value: f64) -> i64 {
    value.ceil() as i64
}

#[cfg(test)]
mod tests;
