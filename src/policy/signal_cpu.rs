//! CPU as a signal: the cores that the offered work needs, not those that saturated pods got.
//!
//! In: CPU seconds, throttling, run-queue wait and the request layer of each pod. Out: an [`Outcome`] by the work form.
//! Never: waiting below saturation, which measures queue length and noisy neighbours.

use std::time::Duration;

use super::coverage::Counts;
use super::learning::CostSample;
use super::memory::{Memory, Outcome};
use super::observe::{Found, Observed, Reading, View};
use super::refusal::{self, number};
use super::settle::{Measured, settle};
use super::traffic::{Requests, Traffic};
use super::window::Totals;
use super::work_form::WorkForm;
use super::{Finding, SignalDecision};
use crate::signals::catalogue;
use crate::store::{Histogram, PodWindow};
use crate::time::Timestamp;

/// A pod is saturated from this share of its limit on.
const SATURATED: f64 = 0.9;
/// Or when it was throttled in this share of its periods.
const THROTTLED_PERIODS: f64 = 0.5;
/// A threshold above this share of the limit is never left by saturated pods: it is within an HPA's tolerance of it.
const REACHABLE: f64 = 0.9;
/// A pod without a limit is taken to be full at threshold / 0.8.
const FULL_OF_THRESHOLD: f64 = 0.8;

/// What one pod did over the short span.
#[derive(Clone, Copy, Debug)]
struct PodCpu {
    used: f64,
    /// Seconds per second that threads waited for a core, or were throttled: the larger.
    waiting: f64,
    /// Throttled periods of all periods.
    throttled: f64,
    traffic: Traffic,
    has_requests: bool,
    span: (Timestamp, Timestamp),
}

fn rate(window: &PodWindow, family: &str, gap: Duration) -> f64 {
    window.family(family).filter_map(|(_, series)| series.span(gap)).map(|span| span.rate()).sum()
}

fn find(window: &PodWindow, requests: &Requests<'_>, gap: Duration) -> Found<PodCpu> {
    let Some(&family) = catalogue::CPU.iter().find(|family| window.serves(family)) else {
        return Found::Absent;
    };
    if !window.is_complete(family) {
        return Found::Absent;
    }
    let spans: Vec<_> = window
        .family(family)
        .filter_map(|(_, series)| Some((series.span(gap)?, series.newest().arrived)))
        .collect();
    let Some(arrived) = spans.iter().map(|&(_, arrived)| arrived).min() else {
        return Found::Awaiting;
    };
    let span = spans[0].0;
    let periods = rate(window, catalogue::CGROUP_PERIODS, gap);
    let throttled = rate(window, catalogue::CGROUP_THROTTLED_PERIODS, gap);
    let found = requests.find(window, gap);
    // A request layer of which a part was lost is none: used cores say more than too few arrivals.
    let has_requests = !matches!(found, Found::Absent)
        && (window.serves(super::families::REQUEST_COUNT)
            || window.serves(catalogue::REQUESTS_IN_FLIGHT));
    let traffic = match found {
        Found::Value(traffic, _) => traffic,
        _ => Traffic::default(),
    };
    let cpu = PodCpu {
        used: spans.iter().map(|(span, _)| span.rate()).sum(),
        waiting: rate(window, catalogue::RUNQUEUE_WAIT, gap).max(rate(
            window,
            catalogue::CGROUP_THROTTLED,
            gap,
        )),
        throttled: if periods > 0.0 { throttled / periods } else { 0.0 },
        traffic,
        has_requests,
        span: (span.from, span.to),
    };
    Found::Value(cpu, arrived)
}

impl PodCpu {
    /// Cores offered by a pod whose requests are not known: up to twice the used ones, while it is saturated.
    fn offered(&self, limit: Option<f64>) -> f64 {
        let at_limit = limit.is_some_and(|limit| self.used >= SATURATED * limit);
        let saturated = at_limit || self.throttled >= THROTTLED_PERIODS;
        if saturated && self.used > 0.0 {
            self.used * (1.0 + self.waiting / self.used).clamp(1.0, 2.0)
        } else {
            self.used
        }
    }
}

/// The mean of the values; `None` of none.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

/// Evaluates a CPU signal with that threshold in cores.
pub(super) fn evaluate(memory: &mut Memory, view: &View<'_>, threshold: f64) -> Outcome {
    let requests = Requests::new(view, None, &mut memory.short_endpoints);
    let readings = view.read(|window| find(window, &requests, view.gap));
    learn_base(memory, view, &readings);
    let base = memory.base();
    if base >= threshold {
        let (finding, why) =
            refusal::base_not_below_threshold(&memory.signal.name, base, threshold);
        let coverage = Counts::of(&readings, &view.pods).coverage(&view.pods);
        let outcome = memory.unserved(coverage, threshold, why);
        return Outcome { findings: vec![finding], ..outcome };
    }
    let limits: Vec<_> = view.pods.iter().map(Observed::cpu_limit).collect();
    learn_cost(memory, view, &readings, &limits, threshold);
    let full = |limit: &Option<f64>| limit.unwrap_or(threshold / FULL_OF_THRESHOLD);
    let reporting = limits.iter().zip(&readings).filter(|(_, cpu)| cpu.fresh().is_some());
    let form = WorkForm {
        cost: memory
            .cost
            .cost(base)
            .filter(|_| readings.iter().filter_map(Reading::fresh).any(|cpu| cpu.has_requests)),
        threshold,
        base,
        full: mean(reporting.map(|(limit, _)| full(limit)))
            .unwrap_or(threshold / FULL_OF_THRESHOLD),
    };
    let outcome = decide(memory, view, form, &readings, &limits);
    Outcome { findings: unreachable(memory, threshold, &limits).into_iter().collect(), ..outcome }
}

fn learn_base(memory: &mut Memory, view: &View<'_>, readings: &[Reading<PodCpu>]) {
    for (pod, reading) in view.pods.iter().zip(readings) {
        if let Some(cpu) = reading.fresh() {
            memory.base.observe(pod, cpu.used, cpu.span.1);
        }
    }
}

/// Costs are learned from pods under half of their full capacity whose requests in flight hardly change: of a growing
/// queue much is half done, which makes the completed requests look dear.
fn learn_cost(
    memory: &mut Memory,
    view: &View<'_>,
    readings: &[Reading<PodCpu>],
    limits: &[Option<f64>],
    threshold: f64,
) {
    for ((pod, reading), limit) in view.pods.iter().zip(readings).zip(limits) {
        let Some(cpu) = reading.fresh() else { continue };
        let seconds = cpu.span.1.since(cpu.span.0).as_secs_f64();
        let completions = cpu.traffic.completed * seconds;
        let moved = (cpu.traffic.in_flight - cpu.traffic.in_flight_before).abs();
        let full = limit.unwrap_or(threshold / FULL_OF_THRESHOLD);
        if cpu.used < full / 2.0 && moved <= (completions / 4.0).max(1.0) {
            let sample = CostSample {
                from: cpu.span.0,
                to: cpu.span.1,
                work: cpu.used * seconds,
                completions,
                latencies: Histogram::default(),
            };
            memory.cost.learn(&pod.pod.key, &sample, view.now.monotonic);
        }
    }
}

fn decide(
    memory: &mut Memory,
    view: &View<'_>,
    form: WorkForm,
    readings: &[Reading<PodCpu>],
    limits: &[Option<f64>],
) -> Outcome {
    let has_requests = readings.iter().filter_map(Reading::fresh).any(|cpu| cpu.has_requests);
    let per_pod: Vec<Reading<Totals>> = readings
        .iter()
        .zip(limits)
        .map(|(reading, limit)| {
            reading.map(|cpu| {
                let cores = if has_requests { cpu.used } else { cpu.offered(*limit) };
                cpu.traffic.totals((cores - form.base).max(0.0))
            })
        })
        .collect();
    let shares: Vec<_> =
        per_pod.iter().map(|totals| totals.map(|totals| form.demand(totals))).collect();
    let totals: Totals = per_pod.iter().filter_map(Reading::fresh).copied().sum();
    let pods = per_pod.iter().filter_map(Reading::fresh).map(|_| 1.0).sum::<f64>();
    let measured = Measured {
        shares: &shares,
        totals,
        demand: &|totals: &Totals| form.demand(totals),
        families: &catalogue::CPU.join(", "),
    };
    let settled = settle(view, memory, &measured);
    let cores = form.steady(&totals) + form.base * pods;
    let formula = match &settled {
        Ok(settled) => format!("{} = {}", explain(&form, &totals), settled.explain(view)),
        Err(why) => format!("no demand: {why}"),
    };
    let room = form.threshold - form.base;
    Outcome {
        values: cores_per_pod(&form, &per_pod),
        amount: settled.as_ref().ok().map(|settled| cores + settled.filled * room),
        decision: SignalDecision {
            name: memory.signal.name.clone(),
            demand: settled.map(|settled| settled.demand),
            current: (pods > 0.0).then_some(cores),
            coverage: Counts::of(&shares, &view.pods).coverage(&view.pods),
            threshold: form.threshold,
            base: form.base,
            formula,
        },
        shares,
        quantile: None,
        findings: vec![],
    }
}

/// Each pod's part of the cores offered, base included.
fn cores_per_pod(form: &WorkForm, per_pod: &[Reading<Totals>]) -> Vec<Option<f64>> {
    let reporting: Vec<Totals> = per_pod.iter().filter_map(Reading::fresh).copied().collect();
    let mut parts = form.parts(&reporting).into_iter();
    let part = |totals: &Reading<Totals>| totals.fresh().and_then(|_| parts.next());
    per_pod.iter().map(part).map(|part| Some(part? + form.base)).collect()
}

/// The work form with its numbers.
pub(super) fn explain(form: &WorkForm, totals: &Totals) -> String {
    let work = match form.cost {
        Some(cost) => format!(
            "steady {} = max(used {}, arrivals {}/s x cost {} s)",
            number(form.steady(totals)),
            number(totals.work),
            number((totals.completed + totals.change).max(0.0)),
            number_small(cost)
        ),
        None => format!("steady {} used, cost of a request unknown", number(totals.work)),
    };
    format!(
        "{work}; draining {} with {} in flight; max(steady / (threshold {} - base {}), draining / (full {} - base))",
        number(form.draining(totals)),
        number(totals.in_flight),
        number(form.threshold),
        number(form.base),
        number(form.full)
    )
}

/// Costs may be microseconds.
fn number_small(seconds: f64) -> String {
    if seconds >= 0.01 { number(seconds) } else { format!("{seconds:.2e}") }
}

fn unreachable(memory: &Memory, threshold: f64, limits: &[Option<f64>]) -> Option<Finding> {
    let limit = limits.iter().flatten().copied().reduce(f64::min)?;
    (threshold > REACHABLE * limit).then(|| Finding {
        reason: "ThresholdUnreachable",
        message: format!(
            "signal {}: the threshold of {} cores is above {} of the pod's CPU limit of {} cores",
            memory.signal.name,
            number(threshold),
            number(REACHABLE),
            number(limit)
        ),
    })
}
