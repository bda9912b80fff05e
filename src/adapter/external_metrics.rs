//! `external.metrics.k8s.io/v1beta1`: the numbers that an HPA scales on.
//!
//! In: the board, and per request a namespace, a metric's name and a selector. Out: every item that the selector picks, or one
//! error that names what is missing. Never: some of the items (an HPA adds them up, and half a sum scales down), a value
//! older than its policy's `staleAfter`, or a network. Source: metrics `pkg/apis/external_metrics/v1beta1/types.go`.

use bytes::Bytes;

use super::answers::{
    self, Answers, ExternalAnswer, Failure, Metrics, Reading, decided, fresh, labels,
    policies_named, unserved,
};
use super::status::{ApiStatus, Details};
use super::trace;
use super::wire::{self, Encoding, ExternalItem};
use crate::policy::{
    DEMAND_METRIC, Decision, Entry, POLICY_LABEL, Policy, SignalKind, TotalKind, Unserved,
};
use crate::sample::Selector;
use crate::time::Now;
use crate::units::Measure;

/// The API group.
const GROUP: &str = "external.metrics.k8s.io";

/// The metrics that exist; their names are a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    Demand,
    SignalDemand,
    Total(TotalKind),
    Latency,
}

pub(super) const METRICS: [(&str, Metric); 7] = [
    (DEMAND_METRIC, Metric::Demand),
    ("headroom_signal_demand", Metric::SignalDemand),
    (TotalKind::Tasks.name(), Metric::Total(TotalKind::Tasks)),
    (TotalKind::HeapBytes.name(), Metric::Total(TotalKind::HeapBytes)),
    (
        TotalKind::AllocationBytesPerSecond.name(),
        Metric::Total(TotalKind::AllocationBytesPerSecond),
    ),
    (TotalKind::CpuCores.name(), Metric::Total(TotalKind::CpuCores)),
    ("headroom_latency_seconds", Metric::Latency),
];

impl Metric {
    /// The metric and its place among all.
    fn named(name: &str) -> Option<(usize, Self)> {
        let place = METRICS.iter().position(|(known, _)| *known == name)?;
        Some((place, METRICS[place].1))
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

/// Answers from the board.
#[derive(Debug)]
pub(super) struct ExternalMetrics(pub(super) Metrics);

/// A request.
struct Asked {
    /// Its place in [`METRICS`], and itself.
    metric: (usize, Metric),
    picks: Selector,
    encoding: Encoding,
    now: Now,
}

/// What a request picked.
#[derive(Default)]
struct Picked {
    items: Vec<Bytes>,
    /// The list of the first item.
    alone: Option<Bytes>,
    failures: Vec<Failure>,
}

impl ExternalMetrics {
    /// The items of `metric` in `namespace` that the selector picks, at least one, as a list.
    ///
    /// # Errors
    /// 400 for a malformed selector, 404 if there is no such metric or item, 503 if one of the items cannot be said now.
    pub(super) fn list(
        &self,
        namespace: &str,
        metric: &str,
        selector: &str,
        encoding: Encoding,
    ) -> Result<Bytes, ApiStatus> {
        let asked = Asked {
            metric: Metric::named(metric).ok_or_else(|| unknown_metric(metric))?,
            picks: answers::selector("labelSelector", selector)?,
            encoding,
            now: self.0.clock.now(),
        };
        let mut picked = Picked::default();
        if let Some(policies) = self.0.board.namespace(namespace) {
            match asked.picks.only_value(POLICY_LABEL) {
                Some(name) => {
                    policies
                        .get(name)
                        .into_iter()
                        .for_each(|entry| self.pick(&asked, entry, &mut picked));
                }
                None => policies.iter().for_each(|entry| self.pick(&asked, entry, &mut picked)),
            }
        }
        if !picked.failures.is_empty() {
            return Err(unserved(namespace, details(metric), picked.failures));
        }
        if picked.items.is_empty() {
            return Err(self.nothing_picked(namespace, metric, selector));
        }
        Ok(match picked.alone {
            Some(list) if picked.items.len() == 1 => list,
            _ => {
                let items = picked.items.iter().map(|item| &item[..]);
                wire::list(ExternalItem::LIST, encoding, items)
            }
        })
    }

    /// The items of one policy that the selector picks, or why one of them cannot be said.
    fn pick(&self, asked: &Asked, entry: &Entry, picked: &mut Picked) {
        let (standing, name) = (entry.load(), &entry.id.name);
        trace::read(&entry.id, standing.state());
        let failed = |why| Failure { policy: name.clone(), why };
        let (policy, decision) = match decided(&standing) {
            Ok(decided) => decided,
            Err(why) => {
                let known = labels(name, &[]);
                if asked.picks.may_match(&known, asked.metric.1.own_labels()) {
                    picked.failures.push(failed(why.clone()));
                }
                return;
            }
        };
        let (place, _) = asked.metric;
        standing.made(|answers: &Answers| {
            let answers = answers.external(place, policy, decision).iter();
            for answer in answers.filter(|answer| asked.picks.matches(&answer.labels)) {
                match fresh(decision, asked.now)
                    .and(answer.value.as_ref().copied().map_err(Unserved::clone))
                {
                    Ok(reading) => {
                        self.0.metrics.served(asked.now.wall.since(reading.sampled_at));
                        let of = (METRICS[place].0, reading, asked.encoding);
                        if picked.items.is_empty() {
                            picked.alone = Some(answer.alone(of.0, of.1, of.2).clone());
                        }
                        picked.items.push(answer.encoded(of.0, of.1, of.2).clone());
                    }
                    Err(why) => return picked.failures.push(failed(why)),
                }
            }
        });
    }

    fn nothing_picked(&self, namespace: &str, metric: &str, selector: &str) -> ApiStatus {
        let Some(policies) = self.0.board.namespace(namespace) else {
            return answers::no_policy(namespace, details(metric));
        };
        let known = policies_named(&policies);
        let what = match selector.trim() {
            "" => "no policy has it".to_owned(),
            selector => format!("the selector {selector:?} picks nothing"),
        };
        let message =
            format!("{metric}: {what} in namespace {namespace:?}; policies there: {known}");
        ApiStatus::not_found(message).about(details(metric))
    }
}

/// All answers of a decided policy to a metric.
pub(super) fn answers(metric: Metric, policy: &Policy, decision: &Decision) -> Vec<ExternalAnswer> {
    let answer = |(own, value): (OwnLabels, Result<f64, Unserved>)| {
        let reading = |value| Reading::new(value, decision.sampled_at, decision.window);
        ExternalAnswer::new(labels(&policy.id.name, &own), value.and_then(reading))
    };
    readings(metric, policy, decision).into_iter().map(answer).collect()
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
    let Some(total) = decision.totals.iter().find(|total| total.kind == kind) else {
        let signal = policy.signals.iter().find(|signal| signal.kind.total_kind() == Some(kind))?;
        return Some(Err(missing_signal(decision, &signal.name)));
    };
    Some(decision.whole(&total.signal).map(|()| total.value))
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

fn details(metric: &str) -> Details {
    Details { kind: metric.to_owned(), group: GROUP.to_owned(), ..Details::default() }
}

fn unknown_metric(metric: &str) -> ApiStatus {
    let known: Vec<&str> = METRICS.iter().map(|(name, _)| *name).collect();
    let message =
        format!("there is no external metric {metric:?}; there are: {}", known.join(", "));
    ApiStatus::not_found(message).about(details(metric))
}
