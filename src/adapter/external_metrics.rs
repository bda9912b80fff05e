//! `external.metrics.k8s.io/v1beta1`: the numbers that an HPA scales on.
//!
//! In: the board, and per request a namespace, a metric's name and a selector. Out: every item that the selector picks, or one
//! error that names what is missing. Never: some of the items (an HPA adds them up, and half a sum scales down), a value
//! older than its policy's `staleAfter`, or a network. Source: metrics `pkg/apis/external_metrics/v1beta1/types.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::own_metrics::OwnMetrics;
use super::status::{ApiStatus, Cause, Details};
use super::trace;
use crate::policy::{
    Board, Coverage, DEMAND_METRIC, Decision, EntryState, LeftOut, LeftOutReason, POLICY_LABEL,
    Policy, PolicyId, SignalKind, TotalKind, Unserved,
};
use crate::quantity::Quantity;
use crate::sample::{Labels, Selector};
use crate::time::{Clock, Now, Timestamp};
use crate::units::Measure;

/// The API group.
const GROUP: &str = "external.metrics.k8s.io";
/// Policies that an error names before it says "and N more".
const POLICIES_NAMED: usize = 20;

/// Pods that an error names before it says "and N more".
const PODS_NAMED: usize = 3;

/// The metrics that exist; their names are a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    Demand,
    SignalDemand,
    Total(TotalKind),
    Latency,
}

const METRICS: [(&str, Metric); 7] = [
    (DEMAND_METRIC, Metric::Demand),
    ("headroom_signal_demand", Metric::SignalDemand),
    ("headroom_tasks", Metric::Total(TotalKind::Tasks)),
    ("headroom_heap_bytes", Metric::Total(TotalKind::HeapBytes)),
    ("headroom_allocation_bytes_per_second", Metric::Total(TotalKind::AllocationBytesPerSecond)),
    ("headroom_cpu_cores", Metric::Total(TotalKind::CpuCores)),
    ("headroom_latency_seconds", Metric::Latency),
];

impl Metric {
    fn named(name: &str) -> Option<Self> {
        METRICS.iter().find(|(known, _)| *known == name).map(|(_, metric)| *metric)
    }

    /// Labels of its items besides `policy`, whose values only a decision tells.
    const fn own_labels(self) -> &'static [&'static str] {
        match self {
            Self::Demand | Self::Total(_) => &[],
            Self::SignalDemand => &["signal"],
            Self::Latency => &["signal", "quantile"],
        }
    }
}

/// The wire form of an answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExternalMetricValueList {
    kind: &'static str,
    api_version: &'static str,
    metadata: BTreeMap<String, String>,
    items: Vec<ExternalMetricValue>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalMetricValue {
    metric_name: String,
    metric_labels: BTreeMap<String, String>,
    timestamp: String,
    /// Whole seconds.
    window: u64,
    value: String,
}

/// Answers from the board.
#[derive(Clone, Debug)]
pub(super) struct ExternalMetrics {
    pub(super) board: Arc<Board>,
    pub(super) clock: Clock,
    pub(super) metrics: OwnMetrics,
}

/// A policy that cannot be said, of those that a request is about.
struct Failure {
    policy: Arc<str>,
    why: Unserved,
}

impl ExternalMetrics {
    /// The items of `metric` in `namespace` that the selector picks; at least one.
    ///
    /// # Errors
    /// 400 for a malformed selector, 404 if there is no such metric or item, 503 if one of the items cannot be said now.
    pub(super) fn list(
        &self,
        namespace: &str,
        metric: &str,
        selector: &str,
    ) -> Result<ExternalMetricValueList, ApiStatus> {
        let now = self.clock.now();
        let kind = Metric::named(metric).ok_or_else(|| unknown_metric(metric))?;
        let picks = Selector::parse(selector).map_err(|error| {
            ApiStatus::bad_request(format!("labelSelector {selector:?}: {error}"))
        })?;
        let mut items = Vec::new();
        let mut failures = Vec::new();
        for (id, state) in self.candidates(namespace, &picks) {
            trace::read(&id, &state);
            match read(kind, &id, &state, &picks, now) {
                Ok(readings) => items.extend(readings),
                Err(why) => failures.push(Failure { policy: id.name, why }),
            }
        }
        if !failures.is_empty() {
            return Err(unserved(namespace, metric, failures));
        }
        if items.is_empty() {
            return Err(self.nothing_picked(namespace, metric, selector));
        }
        for item in &items {
            self.metrics.served(now.wall.since(item.sampled_at));
        }
        let items = items.into_iter().map(|item| item.named(metric)).collect();
        Ok(ExternalMetricValueList {
            kind: "ExternalMetricValueList",
            api_version: "external.metrics.k8s.io/v1beta1",
            metadata: BTreeMap::new(),
            items,
        })
    }

    /// The policies whose items the selector could pick: one look-up if it names the policy, as generated HPAs do.
    fn candidates(&self, namespace: &str, picks: &Selector) -> Vec<(PolicyId, Arc<EntryState>)> {
        match picks.only_value(POLICY_LABEL) {
            None => self.board.in_namespace(namespace),
            Some(name) => {
                let id = PolicyId { namespace: namespace.into(), name: name.into() };
                self.board.get(&id).map(|state| (id, state)).into_iter().collect()
            }
        }
    }

    fn nothing_picked(&self, namespace: &str, metric: &str, selector: &str) -> ApiStatus {
        let policies = self.board.in_namespace(namespace);
        if policies.is_empty() {
            let message = format!("{metric}: there is no ScalingPolicy in namespace {namespace:?}");
            return ApiStatus::not_found(message).about(details(metric));
        }
        let mut names: Vec<&str> = policies.iter().map(|(id, _)| &*id.name).collect();
        let more = names.len().saturating_sub(POLICIES_NAMED);
        names.truncate(POLICIES_NAMED);
        let mut known = names.join(", ");
        if more > 0 {
            known.push_str(&format!(" and {more} more"));
        }
        let what = match selector.trim() {
            "" => "no policy has it".to_owned(),
            selector => format!("the selector {selector:?} picks nothing"),
        };
        let message =
            format!("{metric}: {what} in namespace {namespace:?}; policies there: {known}");
        ApiStatus::not_found(message).about(details(metric))
    }
}

/// An item before it has the metric's name and the wire's types.
#[derive(Debug)]
struct Item {
    labels: Labels,
    value: Quantity,
    sampled_at: Timestamp,
    window: Duration,
}

impl Item {
    fn named(self, metric: &str) -> ExternalMetricValue {
        ExternalMetricValue {
            metric_name: metric.to_owned(),
            metric_labels: self
                .labels
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            timestamp: self.sampled_at.to_string(),
            window: self.window.as_secs(),
            value: self.value.to_string(),
        }
    }
}

/// The items of one policy that the selector picks, or why one of them cannot be said.
fn read(
    metric: Metric,
    id: &PolicyId,
    state: &EntryState,
    picks: &Selector,
    now: Now,
) -> Result<Vec<Item>, Unserved> {
    let (policy, decision) = match state {
        EntryState::Decided { policy, decision } => (policy, decision),
        EntryState::Unserved(why) => {
            let known = labels(&id.name, &[]);
            let concerned = picks.may_match(&known, metric.own_labels());
            return if concerned { Err(why.clone()) } else { Ok(Vec::new()) };
        }
    };
    let mut items = Vec::new();
    for (own_labels, value) in readings(metric, policy, decision) {
        let labels = labels(&id.name, &own_labels);
        if !picks.matches(&labels) {
            continue;
        }
        fresh(decision, now)?;
        let value = Quantity::from_served(value?).ok_or_else(|| Unserved {
            reason: "NotANumber",
            message: "the value is not a number".to_owned(),
        })?;
        items.push(Item {
            labels,
            value,
            sampled_at: decision.sampled_at,
            window: decision.window,
        });
    }
    Ok(items)
}

/// A decision stands for `staleAfter`: the HPA only logs timestamps (kubernetes
/// `pkg/controller/podautoscaler/horizontal.go`), so that age must become an error.
fn fresh(decision: &Decision, now: Now) -> Result<(), Unserved> {
    let age = now.monotonic.since(decision.decided);
    if age <= decision.stale_after {
        return Ok(());
    }
    Err(Unserved {
        reason: "Stale",
        message: format!(
            "stale: last decided {:.0} s ago, staleAfter is {:.0} s; last sample at {}",
            age.as_secs_f64(),
            decision.stale_after.as_secs_f64(),
            decision.sampled_at
        ),
    })
}

type OwnLabels = Vec<(&'static str, String)>;

/// Everything that a decided policy has of a metric: the labels besides `policy`, and the value or why there is none.
fn readings(
    metric: Metric,
    policy: &Policy,
    decision: &Decision,
) -> Vec<(OwnLabels, Result<f64, Unserved>)> {
    match metric {
        Metric::Demand => vec![(Vec::new(), decision.demand.clone())],
        Metric::SignalDemand => decision
            .signals
            .iter()
            .map(|signal| (vec![("signal", signal.name.to_string())], signal.demand.clone()))
            .collect(),
        Metric::Total(kind) => {
            total(kind, policy, decision).map(|value| (Vec::new(), value)).into_iter().collect()
        }
        Metric::Latency => quantiles(policy, decision),
    }
}

/// `None` if the policy neither has the total nor a signal that needs it.
///
/// A total is over the pods that report its signal. While one that should is silent, or answers without it, it is only a part of the truth, and an
/// HPA would scale down on it; only the demand is imputed.
fn total(kind: TotalKind, policy: &Policy, decision: &Decision) -> Option<Result<f64, Unserved>> {
    let of_kind = |signal: &SignalKind| match kind {
        TotalKind::Tasks => matches!(signal, SignalKind::Tasks(_)),
        TotalKind::HeapBytes => matches!(signal, SignalKind::Heap(_)),
        TotalKind::AllocationBytesPerSecond => matches!(signal, SignalKind::AllocationRate(_)),
        TotalKind::CpuCores => matches!(signal, SignalKind::Cpu(_)),
    };
    let Some(total) = decision.totals.iter().find(|total| total.kind == kind) else {
        let signal = policy.signals.iter().find(|signal| of_kind(&signal.kind))?;
        return Some(Err(missing_signal(decision, &signal.name)));
    };
    let measured = decision.signals.iter().find(|signal| signal.name == total.signal);
    let coverage = measured.map_or(decision.coverage, |signal| signal.coverage);
    if coverage.reporting == 0 || coverage.reporting < coverage.expected {
        return Some(Err(part_of_a_total(decision, &total.signal, coverage)));
    }
    Some(Ok(total.value))
}

/// Says which pods a total lacks and why, young ones last: those may not be expected to report yet.
fn part_of_a_total(decision: &Decision, signal: &str, coverage: Coverage) -> Unserved {
    let Coverage { reporting, expected, .. } = coverage;
    let concerns = |reason: &LeftOutReason| match reason {
        LeftOutReason::MissingFamily { signal: of }
        | LeftOutReason::PartialFamily { signal: of, .. } => &**of == signal,
        _ => true,
    };
    let mut lacking: Vec<&LeftOut> =
        decision.left_out.iter().filter(|pod| concerns(&pod.reason)).collect();
    lacking.sort_by_key(|pod| pod.reason == LeftOutReason::NotYetReported);
    let missing = usize::try_from(expected - reporting.min(expected)).unwrap_or(usize::MAX);
    lacking.truncate(missing.min(PODS_NAMED));
    let named: String = lacking.iter().map(|pod| format!("; {pod}")).collect();
    let more = match missing.saturating_sub(lacking.len()) {
        more if more > 0 && !lacking.is_empty() => format!("; and {more} more"),
        _ => String::new(),
    };
    Unserved {
        reason: "PodsMissing",
        message: format!(
            "{reporting} of {expected} pods report signal {signal}, and a part is no total, while {DEMAND_METRIC} fills the gap{named}{more}"
        ),
    }
}

fn quantiles(policy: &Policy, decision: &Decision) -> Vec<(OwnLabels, Result<f64, Unserved>)> {
    let known = decision.quantiles.iter().map(|quantile| {
        let own = vec![
            ("signal", quantile.signal.to_string()),
            ("quantile", quantile.quantile.get().to_string()),
        ];
        let value = quantile.seconds.ok_or_else(|| Unserved {
            reason: "NoTraffic",
            message: format!("signal {:?} saw no requests in the window", quantile.signal),
        });
        (own, value)
    });
    let absent = policy.signals.iter().filter_map(|signal| {
        let SignalKind::Latency(latency) = &signal.kind else { return None };
        let is_known = decision.quantiles.iter().any(|known| known.signal == signal.name);
        (!is_known).then(|| {
            let own = vec![
                ("signal", signal.name.to_string()),
                ("quantile", latency.quantile.get().to_string()),
            ];
            (own, Err(missing_signal(decision, &signal.name)))
        })
    });
    known.chain(absent).collect()
}

/// What the decision says of a signal that should have given a value.
fn missing_signal(decision: &Decision, name: &str) -> Unserved {
    let said = decision.signals.iter().find(|signal| &*signal.name == name);
    match said.map(|signal| &signal.demand) {
        Some(Err(why)) => why.clone(),
        _ => Unserved {
            reason: "SignalMissing",
            message: format!("signal {name:?} has no value yet"),
        },
    }
}

fn labels(policy: &str, own: &[(&'static str, String)]) -> Labels {
    let own = own.iter().map(|(name, value)| (*name, value.as_str()));
    std::iter::once((POLICY_LABEL, policy)).chain(own).collect()
}

fn details(metric: &str) -> Details {
    Details { kind: metric.to_owned(), group: GROUP.to_owned(), ..Details::default() }
}

fn unknown_metric(metric: &str) -> ApiStatus {
    let known: Vec<&str> = METRICS.iter().map(|(name, _)| *name).collect();
    let message =
        format!("there is no external metric {metric:?}; there are: {}", known.join(", "));
    ApiStatus::not_found(message).about(details(metric))
}

fn unserved(namespace: &str, metric: &str, mut failures: Vec<Failure>) -> ApiStatus {
    let more = failures.len().saturating_sub(POLICIES_NAMED);
    failures.truncate(POLICIES_NAMED);
    let sentence = |failure: &Failure| {
        format!("policy {namespace}/{}: {}", failure.policy, failure.why.message)
    };
    let mut message: String =
        format!("{metric}: {}", failures.iter().map(sentence).collect::<Vec<_>>().join("; "));
    if more > 0 {
        message.push_str(&format!("; and {more} more policies"));
    }
    let causes = failures
        .into_iter()
        .map(|failure| Cause {
            reason: failure.why.reason,
            message: failure.why.message,
            field: failure.policy.to_string(),
        })
        .collect();
    ApiStatus::unavailable(message).about(Details { causes, ..details(metric) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Learned;
    use crate::time::Moment;

    /// The decision stands for 20 s; `check(age, expected message)`.
    fn check(age: Duration, expected: Option<&str>) {
        let decided = Moment::after_start(Duration::from_secs(100));
        let decision = Decision {
            policy: PolicyId { namespace: "shop".into(), name: "checkout".into() },
            generation: 1,
            decided,
            stale_after: Duration::from_secs(20),
            sampled_at: Timestamp::from_millis(1_790_000_000_999),
            window: Duration::from_secs(30),
            demand: Ok(1.0),
            driver: None,
            signals: Vec::new(),
            coverage: Coverage::default(),
            totals: Vec::new(),
            quantiles: Vec::new(),
            pods: Vec::new(),
            left_out: Vec::new(),
            findings: Vec::new(),
            learned: Learned::default(),
        };
        let now = Now { monotonic: decided + age, wall: Timestamp::default() };
        let message = fresh(&decision, now).err().map(|why| why.message);
        assert_eq!(message.as_deref(), expected, "{age:?}");
    }

    #[test]
    fn case_39_a_decision_stands_for_stale_after_and_not_a_moment_longer() {
        check(Duration::ZERO, None);
        check(Duration::from_secs(20), None);
        check(
            Duration::from_millis(20_001),
            Some(
                "stale: last decided 20 s ago, staleAfter is 20 s; last sample at 2026-09-21T14:13:20Z",
            ),
        );
        check(
            Duration::from_secs(47),
            Some(
                "stale: last decided 47 s ago, staleAfter is 20 s; last sample at 2026-09-21T14:13:20Z",
            ),
        );
    }
}
