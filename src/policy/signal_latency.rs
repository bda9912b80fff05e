//! Latency as a signal: the pods that keep the wanted quantile of the wait within what the target leaves.
//!
//! In: the request layer of each pod. Out: an [`Outcome`] by the work form, and the merged quantile. Never: the latency
//! itself as demand: it oscillates.

use super::coverage::Counts;
use super::learning::CostSample;
use super::memory::{Memory, Outcome};
use super::observe::{Observed, Reading, View};
use super::refusal::{self, number};
use super::settle::{Measured, settle};
use super::signal_cpu::{explain, mean};
use super::traffic::{Requests, Traffic, endpoints_seen};
use super::window::Totals;
use super::work_form::WorkForm;
use super::{Finding, LatencyTarget, Quantile, SignalDecision, Unserved, erlang};
use crate::signals::catalogue;
use crate::store::Histogram;
use crate::units::Measure;

/// The families as an error names them.
const FAMILIES: &str = catalogue::REQUEST_DURATION;

/// Endpoints that are named beside one that was never seen.
const ENDPOINTS_NAMED: usize = 5;

/// Requests one pod serves at once: the stated concurrency, else its workers within its CPU limit.
fn capacity(pod: &Observed<'_>, target: &LatencyTarget) -> Option<f64> {
    if let Some(concurrency) = target.concurrency {
        return Some(f64::from(concurrency.get()));
    }
    let newest = |family| {
        let series = pod.window?.family(family);
        series
            .map(|(_, series)| series.newest().value)
            .reduce(f64::max)
            .filter(|&value| value > 0.0)
    };
    match (newest(catalogue::WORKERS), pod.cpu_limit()) {
        (Some(workers), Some(limit)) => Some(workers.min(limit)),
        (workers, limit) => workers.or(limit),
    }
}

/// Evaluates a latency signal.
pub(super) fn evaluate(memory: &mut Memory, view: &View<'_>, target: &LatencyTarget) -> Outcome {
    let requests = Requests::new(view, target.endpoint.as_deref(), &mut memory.short_endpoints);
    let readings = view.read(|window| requests.find(window, view.gap));
    let capacities: Vec<_> = view.pods.iter().map(|pod| capacity(pod, target)).collect();
    learn(memory, view, target, &requests, &readings, &capacities);
    let quantile = served_quantile(memory, view, target, &requests, &readings);
    let idle = is_idle(memory, view, &requests, &readings);
    let never_seen =
        target.endpoint.as_deref().and_then(|endpoint| never_seen(memory, view, endpoint));
    let mut outcome = match form(memory, target, &readings, &capacities, idle) {
        Ok(form) => decide(memory, view, target, form, &readings),
        Err((finding, why)) => {
            let coverage = Counts::of(&readings, &view.pods).coverage(&view.pods);
            let outcome = memory.unserved(coverage, target.target.threshold().get(), why);
            Outcome { findings: finding.into_iter().collect(), ..outcome }
        }
    };
    outcome.findings.extend(never_seen);
    Outcome { quantile: Some(quantile), ..outcome }
}

/// A misspelled endpoint reads as one without requests. Before there is any request at all, every endpoint does.
fn never_seen(memory: &mut Memory, view: &View<'_>, wanted: &str) -> Option<Finding> {
    let seen = endpoints_seen(view);
    memory.endpoint_seen |= seen.contains(wanted);
    if memory.endpoint_seen || seen.is_empty() {
        return None;
    }
    let named: Vec<String> =
        seen.iter().take(ENDPOINTS_NAMED).map(|seen| format!("{seen:?}")).collect();
    let more = match seen.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(Finding {
        reason: "EndpointNeverSeen",
        message: format!(
            "signal {}: no pod has shown a request of endpoint {wanted:?}, which counts as 0 requests; endpoints seen: {}{more}",
            memory.signal.name,
            named.join(", ")
        ),
    })
}

/// Whether there was no request in the whole window. The short span alone says little: at night it is empty between most
/// requests, and a demand of 0 for each such gap would be all that is ever served while the service time is unknown.
fn is_idle(
    memory: &mut Memory,
    view: &View<'_>,
    requests: &Requests<'_>,
    readings: &[Reading<Traffic>],
) -> bool {
    let (now, window) = (view.now.monotonic, view.policy.window);
    let mut traffic = readings.iter().filter_map(Reading::fresh);
    if traffic.any(|traffic| traffic.completed + traffic.in_flight > 0.0) {
        memory.last_busy = Some(now);
    }
    let mut heard = view.pods.iter().zip(readings).filter(|(_, reading)| reading.fresh().is_some());
    let had_any = heard.any(|(pod, _)| pod.window.is_some_and(|pod| requests.had_any(pod, window)));
    // A pod that is gone took its completions with it, so that it was busy is remembered.
    !had_any && memory.last_busy.is_none_or(|last| now.since(last) >= window)
}

/// Learns from pods that are under half of their capacity by their busy workers, or by their requests.
fn learn(
    memory: &mut Memory,
    view: &View<'_>,
    target: &LatencyTarget,
    requests: &Requests<'_>,
    readings: &[Reading<Traffic>],
    capacities: &[Option<f64>],
) {
    for ((pod, reading), capacity) in view.pods.iter().zip(readings).zip(capacities) {
        let (Some(traffic), Some(window), Some(full)) = (reading.fresh(), pod.window, capacity)
        else {
            continue;
        };
        let Some((from, to)) = traffic.span else { continue };
        let by_wall_time = target.concurrency.is_some();
        let Some(busy) = (if by_wall_time { Some(traffic.latency) } else { traffic.busy }) else {
            continue;
        };
        let most = if by_wall_time {
            busy.max(traffic.in_flight).max(traffic.in_flight_before)
        } else {
            busy
        };
        if most >= full / 2.0 {
            continue;
        }
        let seconds = to.since(from).as_secs_f64();
        let sample = CostSample {
            from,
            to,
            work: busy * seconds,
            completions: traffic.completed * seconds,
            latencies: requests.latencies(window, |series| series.span(view.gap)),
        };
        memory.cost.learn(&pod.pod.key, &sample, view.now.monotonic);
    }
}

/// The quantile over `window` of what the reporting pods served, from their merged histograms.
fn served_quantile(
    memory: &Memory,
    view: &View<'_>,
    target: &LatencyTarget,
    requests: &Requests<'_>,
    readings: &[Reading<Traffic>],
) -> Quantile {
    let mut merged = Histogram::default();
    for (pod, reading) in view.pods.iter().zip(readings) {
        if let (Some(_), Some(window)) = (reading.fresh(), pod.window) {
            merged
                .merge(&requests.latencies(window, |series| series.span_over(view.policy.window)));
        }
    }
    Quantile {
        signal: memory.signal.name.clone(),
        quantile: target.quantile,
        seconds: merged.quantile(target.quantile.get()),
    }
}

/// What one pod should carry, in busy workers; or why that is unknown.
fn form(
    memory: &Memory,
    target: &LatencyTarget,
    readings: &[Reading<Traffic>],
    capacities: &[Option<f64>],
    idle: bool,
) -> Result<WorkForm, (Option<Finding>, Unserved)> {
    let name = &memory.signal.name;
    let base = memory.signal.base.unwrap_or(0.0);
    let heard = capacities.iter().zip(readings).filter(|(_, reading)| reading.fresh().is_some());
    let Some(full) = mean(heard.filter_map(|(capacity, _)| *capacity)) else {
        return unknown_capacity(name, readings);
    };
    let stated =
        target.service_time.map(|time| time.as_secs_f64()).filter(|&seconds| seconds > 0.0);
    let Some(service) = stated.or_else(|| memory.cost.cost(0.0)).filter(|&seconds| seconds > 0.0)
    else {
        // Without a request nothing is demanded, whatever a request costs.
        let threshold = full * erlang::RHO_MIN;
        return if idle {
            Ok(WorkForm { cost: None, threshold, base, full })
        } else {
            Err(unknown_service_time(name))
        };
    };
    let q = target.quantile.get();
    // Until it is measured, the no-load quantile is at least the service time.
    let no_load = memory.cost.quantile(q).unwrap_or(service);
    let wanted = target.target.threshold().get();
    if wanted <= no_load {
        let message = format!(
            "signal {name}: the target of {} s is not above the {} s that the quantile takes without load",
            number(wanted),
            number(no_load)
        );
        let (finding, why) = refusal::finding_and_refusal("TargetBelowServiceTime", message);
        return Err((Some(finding), why));
    }
    let rho = erlang::target_utilisation(whole_servers(full), q, (wanted - no_load) / service);
    let threshold = full * rho;
    if base >= threshold {
        let (finding, why) = refusal::base_not_below_threshold(name, base, threshold);
        return Err((Some(finding), why));
    }
    Ok(WorkForm { cost: Some(service), threshold, base, full })
}

/// Servers of M/M/c: whole ones, at least one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 1 to 100000"
)]
fn whole_servers(full: f64) -> u32 {
    full.floor().clamp(1.0, 100_000.0) as u32
}

fn unknown_capacity(
    name: &str,
    readings: &[Reading<Traffic>],
) -> Result<WorkForm, (Option<Finding>, Unserved)> {
    if readings.iter().all(|reading| reading.fresh().is_none()) {
        // Nothing reports, which says more than the capacity; the numbers are not used.
        return Ok(WorkForm { cost: None, threshold: 1.0, base: 0.0, full: 1.0 });
    }
    let message = format!(
        "signal {name}: no pod serves {} or has a CPU limit; state latency.concurrency",
        catalogue::WORKERS
    );
    Err((None, Unserved { reason: "CapacityUnknown", message }))
}

fn unknown_service_time(name: &str) -> (Option<Finding>, Unserved) {
    let message = format!(
        "signal {name}: the service time is not known yet: it is learned from 100 requests to pods under half of their \
         capacity, or stated as latency.serviceTime"
    );
    (None, Unserved { reason: "ServiceTimeUnknown", message })
}

fn decide(
    memory: &mut Memory,
    view: &View<'_>,
    target: &LatencyTarget,
    form: WorkForm,
    readings: &[Reading<Traffic>],
) -> Outcome {
    // Wall time holds the wait, so only arrivals count there; busy workers are never more than there are.
    let by_wall_time = target.concurrency.is_some();
    let work = |traffic: &Traffic| if by_wall_time { 0.0 } else { traffic.busy.unwrap_or(0.0) };
    let per_pod: Vec<Reading<Totals>> = readings
        .iter()
        .map(|reading| reading.map(|traffic| traffic.totals((work(traffic) - form.base).max(0.0))))
        .collect();
    let shares: Vec<_> =
        per_pod.iter().map(|totals| totals.map(|totals| form.demand(totals))).collect();
    let totals: Totals = per_pod.iter().filter_map(Reading::fresh).copied().sum();
    let measured = Measured {
        shares: &shares,
        totals,
        demand: &|totals: &Totals| form.demand(totals),
        families: FAMILIES,
    };
    let settled = settle(view, memory, &measured);
    let formula = match &settled {
        Ok(settled) => format!("{} = {}", explain(&form, &totals), settled.explain(view)),
        Err(why) => format!("no demand: {why}"),
    };
    let reports = per_pod.iter().any(|totals| totals.fresh().is_some());
    Outcome {
        decision: SignalDecision {
            name: memory.signal.name.clone(),
            demand: settled.map(|settled| settled.demand),
            current: reports.then(|| form.steady(&totals)),
            coverage: Counts::of(&shares, &view.pods).coverage(&view.pods),
            threshold: form.threshold,
            base: form.base,
            formula,
        },
        shares,
        // No percentile is one pod's.
        values: vec![],
        amount: None,
        quantile: None,
        findings: vec![],
    }
}
