//! Signals whose total is divided by a threshold: tasks, heap, allocation rate, and metrics of the service's own.
//!
//! In: gauges and counters per pod. Out: an [`Outcome`]. Never: two families of one pod added up, or memory that is not heap.

use std::time::Duration;

use super::coverage::Counts;
use super::memory::{Memory, Outcome};
use super::observe::{Found, Reading, View};
use super::refusal::{self, number};
use super::settle::{Measured, settle, settle_shared};
use super::window::Totals;
use super::{Aggregate, SignalDecision, SignalKind};
use crate::sample::Labels;
use crate::signals::catalogue;
use crate::store::{PodWindow, Series};
use crate::time::{Moment, Timestamp};
use crate::units::Measure;

/// Where a plain signal is read and what it is measured by.
struct Plain<'s> {
    families: Vec<&'s str>,
    is_counter: bool,
    learns_base: bool,
    aggregate: Aggregate,
    threshold: f64,
}

/// A pod's value with the source time of its newest point.
struct PodValue {
    value: f64,
    at: Timestamp,
}

impl<'s> Plain<'s> {
    /// `None` for the kinds that need the work form.
    fn of(kind: &'s SignalKind) -> Option<Self> {
        let gauge = |families: &[&'s str], threshold| Self {
            families: families.to_vec(),
            is_counter: false,
            learns_base: true,
            aggregate: Aggregate::Sum,
            threshold,
        };
        Some(match kind {
            SignalKind::Tasks(threshold) => gauge(catalogue::TASKS, threshold.threshold().get()),
            SignalKind::Heap(threshold) => gauge(catalogue::HEAP, threshold.threshold().get()),
            SignalKind::AllocationRate(threshold) => Self {
                is_counter: true,
                learns_base: false,
                ..gauge(catalogue::ALLOCATION, threshold.threshold().get())
            },
            SignalKind::Metric { name, aggregate, threshold, .. } => Self {
                learns_base: false,
                aggregate: *aggregate,
                ..gauge(&[&**name], threshold.threshold().get())
            },
            SignalKind::Cpu(_) | SignalKind::Latency(_) => return None,
        })
    }

    fn find(&self, window: &PodWindow, gap: Duration) -> Found<PodValue> {
        // A family all of whose samples were lost is still the one that the pod serves.
        let serves = |family: &&&str| window.serves(family) || !window.is_complete(family);
        let Some(&family) = self.families.iter().find(serves) else {
            return Found::Absent;
        };
        if !window.is_complete(family) {
            return Found::Absent;
        }
        if self.is_counter { rate_of(window, family, gap) } else { sum_of(window, family) }
    }
}

/// Memory families of the JVM carry label `area`; what is not heap is left out.
fn counts(labels: &Labels) -> bool {
    labels.get("area").is_none_or(|area| area == "heap")
}

fn fold(series: impl Iterator<Item = (f64, Moment, Timestamp)>) -> Option<(PodValue, Moment)> {
    series.fold(None, |sum, (value, arrived, at)| {
        let (before, oldest) = sum.unwrap_or((PodValue { value: 0.0, at }, arrived));
        let sum = PodValue { value: before.value + value, at: before.at.max(at) };
        Some((sum, oldest.min(arrived)))
    })
}

fn sum_of(window: &PodWindow, family: &str) -> Found<PodValue> {
    let newest = |series: Series<'_>| {
        let point = series.newest();
        (point.value, point.arrived, point.at)
    };
    let series = window.family(family).filter(|(labels, _)| counts(labels));
    fold(series.map(|(_, series)| newest(series)))
        .map_or(Found::Absent, |(value, arrived)| Found::Value(value, arrived))
}

/// The counters' growth per second over the short span.
fn rate_of(window: &PodWindow, family: &str, gap: Duration) -> Found<PodValue> {
    let rate = |series: Series<'_>| {
        let span = series.span(gap)?;
        Some((span.rate(), series.newest().arrived, span.to))
    };
    fold(window.family(family).filter_map(|(_, series)| rate(series)))
        .map_or(Found::Awaiting, |(value, arrived)| Found::Value(value, arrived))
}

/// Evaluates one of the plain kinds; `None` for the others.
pub(super) fn evaluate(memory: &mut Memory, view: &View<'_>) -> Option<Outcome> {
    let signal = memory.signal.clone();
    let plain = Plain::of(&signal.kind)?;
    let readings = view.read(|window| plain.find(window, view.gap));
    if plain.learns_base {
        learn_base(memory, view, &readings);
    }
    let base = if plain.learns_base { memory.base() } else { signal.base.unwrap_or(0.0) };
    if base >= plain.threshold {
        let (finding, why) = refusal::base_not_below_threshold(&signal.name, base, plain.threshold);
        let coverage = Counts::of(&readings, &view.pods).coverage(&view.pods);
        let outcome = memory.unserved(coverage, plain.threshold, why);
        return Some(Outcome { findings: vec![finding], values: values(&readings), ..outcome });
    }
    Some(decide(memory, view, &plain, base, &readings))
}

fn learn_base(memory: &mut Memory, view: &View<'_>, readings: &[Reading<PodValue>]) {
    for (pod, reading) in view.pods.iter().zip(readings) {
        if let Some(reading) = reading.fresh() {
            memory.base.observe(pod, reading.value, reading.at);
        }
    }
}

fn decide(
    memory: &mut Memory,
    view: &View<'_>,
    plain: &Plain<'_>,
    base: f64,
    readings: &[Reading<PodValue>],
) -> Outcome {
    let above = |reading: &PodValue| (reading.value - base).max(0.0);
    let reporting: Vec<&PodValue> = readings.iter().filter_map(Reading::fresh).collect();
    let pods = count(reporting.len());
    let room = plain.threshold - base;
    let (current, work, part) = match plain.aggregate {
        Aggregate::Sum => {
            let current: f64 = reporting.iter().map(|reading| reading.value).sum();
            (current, reporting.iter().map(|reading| above(reading)).sum(), 1.0)
        }
        Aggregate::Max => {
            let largest = reporting.iter().map(|reading| reading.value).fold(0.0, f64::max);
            (largest, (largest - base).max(0.0), 1.0 / pods.max(1.0))
        }
    };
    let shares: Vec<_> =
        readings.iter().map(|reading| reading.map(|value| above(value) * part / room)).collect();
    let measured = Measured {
        shares: &shares,
        totals: Totals { work, ..Totals::default() },
        demand: &|totals: &Totals| totals.work / room,
        families: &plain.families.join(", "),
    };
    let settled = match plain.aggregate {
        Aggregate::Sum => settle(view, memory, &measured),
        Aggregate::Max => settle_shared(view, memory, &measured),
    };
    let formula = match &settled {
        Ok(settled) => {
            format!("{} = {}", quotient(plain, current, base, pods), settled.explain(view))
        }
        Err(why) => format!("no demand: {why}"),
    };
    Outcome {
        values: values(readings),
        amount: settled.as_ref().ok().map(|settled| current + settled.filled * room),
        decision: SignalDecision {
            name: memory.signal.name.clone(),
            demand: settled.map(|settled| settled.demand),
            current: (!reporting.is_empty()).then_some(current),
            coverage: Counts::of(&shares, &view.pods).coverage(&view.pods),
            threshold: plain.threshold,
            base,
            formula,
        },
        shares,
        quantile: None,
        findings: vec![],
    }
}

fn quotient(plain: &Plain<'_>, current: f64, base: f64, pods: f64) -> String {
    let (current, threshold) = (number(current), number(plain.threshold));
    let which = match plain.aggregate {
        Aggregate::Sum => "sum",
        Aggregate::Max => "max",
    };
    if base > 0.0 {
        let base = number(base);
        format!(
            "({which} {current} - {} x base {base}) / (threshold {threshold} - base {base})",
            number(pods)
        )
    } else {
        format!("{which} {current} / threshold {threshold}")
    }
}

fn values(readings: &[Reading<PodValue>]) -> Vec<Option<f64>> {
    readings.iter().map(|reading| Some(reading.fresh()?.value)).collect()
}

fn count(pods: usize) -> f64 {
    f64::from(u32::try_from(pods).unwrap_or(u32::MAX))
}
