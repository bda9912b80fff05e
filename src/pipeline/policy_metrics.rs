//! What is known of each policy, as metrics: what dashboards and alerts of a workload are made from.
//!
//! In: every policy's newest decision with its workload. Out: families that are made when somebody scrapes, so that ages are
//! those of that moment. Never: a series of a policy that is gone, a 0 for a number that is not served, or more than a fixed
//! number of series per signal and policy.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Error, Registry};

use crate::policy::{Decision, LeftOutReason, Policy, PolicyId, Workload, reason};
use crate::sample::CollectFailure;
use crate::time::{Clock, Now};
use crate::units::Measure;

/// What a policy's last decision came to.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Decided; the demand may be an error all the same.
    Decided { policy: Arc<Policy>, workload: Arc<Workload>, decision: Arc<Decision> },
    /// Not decided, for this reason.
    Unserved(&'static str),
}

/// The table of all policies. Cheap to clone; every clone sees the same.
#[derive(Clone, Debug)]
pub(super) struct PolicyMetrics {
    clock: Clock,
    rows: Arc<Mutex<BTreeMap<PolicyId, Known>>>,
    descriptions: Arc<Vec<Desc>>,
}

/// A family: its name, its help, and its labels after `namespace` and `policy`.
struct Shape(&'static str, &'static str, &'static [&'static str]);

const DEMAND: Shape = Shape(
    "headroom_adapter_policy_demand",
    "Pods' worth of work demanded, as headroom_demand serves it; absent while it is not served",
    &[],
);
const UNSERVED: Shape = Shape(
    "headroom_adapter_policy_unserved",
    "1 while the demand of the policy is not served, by reason; absent while it is",
    &["reason"],
);
const SIGNAL_DEMAND: Shape = Shape(
    "headroom_adapter_policy_signal_demand",
    "Pods' worth of work that one signal demands; absent while it cannot be said",
    &["signal"],
);
const SIGNAL_UNSERVED: Shape = Shape(
    "headroom_adapter_policy_signal_unserved",
    "1 while the signal has no demand, by reason; absent while it has one",
    &["signal", "reason"],
);
const DRIVER: Shape = Shape(
    "headroom_adapter_policy_driver",
    "1 for the signal whose demand is the largest; absent while none is known",
    &["signal"],
);
const COVERAGE: Shape = Shape(
    "headroom_adapter_policy_coverage_ratio",
    "Pods that report, of those that should; absent while none should",
    &[],
);
const PODS: Shape = Shape(
    "headroom_adapter_policy_pods",
    "Pods of the workload: matched are all that have not ended, expected should report, reporting do",
    &["state"],
);
const LEFT_OUT: Shape = Shape(
    "headroom_adapter_policy_pods_left_out",
    "Pods that did not count as they should in the last decision, by reason; one may be left out of several signals",
    &["reason"],
);
const REPLICAS: Shape = Shape(
    "headroom_adapter_policy_replicas",
    "Replicas of the target: spec and status of its scale, min and max of the policy's autoscaler where it has one",
    &["kind"],
);
const DECISION_AGE: Shape = Shape(
    "headroom_adapter_policy_decision_age_seconds",
    "Time since the policy's newest decision; over staleAfter it is not served",
    &[],
);
const SAMPLE_AGE: Shape = Shape(
    "headroom_adapter_policy_oldest_sample_age_seconds",
    "Age of the oldest newest-sample of a reporting pod behind the newest decision; absent while no pod reports",
    &[],
);

const SHAPES: [&Shape; 11] = [
    &DEMAND,
    &UNSERVED,
    &SIGNAL_DEMAND,
    &SIGNAL_UNSERVED,
    &DRIVER,
    &COVERAGE,
    &PODS,
    &LEFT_OUT,
    &REPLICAS,
    &DECISION_AGE,
    &SAMPLE_AGE,
];

impl PolicyMetrics {
    /// An empty table in `registry`.
    ///
    /// # Errors
    /// If one of the names is taken in it.
    pub(super) fn register(registry: &Registry, clock: Clock) -> Result<Self, Error> {
        let describe = |shape: &&Shape| {
            let labels = ["namespace", "policy"].iter().chain(shape.2);
            let labels = labels.map(|&label| label.to_owned()).collect();
            Desc::new(shape.0.to_owned(), shape.1.to_owned(), labels, HashMap::new())
        };
        let descriptions = SHAPES.iter().map(describe).collect::<Result<_, _>>()?;
        let metrics = Self { clock, rows: Arc::default(), descriptions: Arc::new(descriptions) };
        registry.register(Box::new(metrics.clone()))?;
        Ok(metrics)
    }

    /// Replaces what is known of one policy.
    pub(super) fn know(&self, id: &PolicyId, known: Known) {
        let mut rows = self.rows.lock();
        match rows.get_mut(id) {
            Some(row) => *row = known,
            None => drop(rows.insert(id.clone(), known)),
        }
    }

    /// Forgets every policy that `keep` refuses.
    pub(super) fn retain(&self, keep: impl Fn(&PolicyId) -> bool) {
        self.rows.lock().retain(|id, _| keep(id));
    }
}

impl Collector for PolicyMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Held only for as long as it takes to count references: the pipeline waits for it.
        let rows = self.rows.lock().clone();
        let now = self.clock.now();
        let mut families = Families::default();
        for (id, known) in &rows {
            match known {
                Known::Unserved(reason) => families.add(&UNSERVED, id, &[reason], 1.0),
                Known::Decided { policy, workload, decision } => {
                    add_demand(&mut families, id, decision, now);
                    add_pods(&mut families, id, decision, now);
                    add_replicas(&mut families, id, policy, workload);
                }
            }
        }
        families.finish()
    }
}

fn add_demand(families: &mut Families, id: &PolicyId, decision: &Decision, now: Now) {
    let age = decision.age(now.monotonic);
    families.add(&DECISION_AGE, id, &[], age.as_secs_f64());
    if decision.is_stale(now.monotonic) {
        // As a request is answered.
        return families.add(&UNSERVED, id, &[reason::STALE], 1.0);
    }
    match &decision.demand {
        Ok(demand) => families.add(&DEMAND, id, &[], *demand),
        Err(why) => families.add(&UNSERVED, id, &[why.reason], 1.0),
    }
    for signal in &decision.signals {
        match &signal.demand {
            Ok(demand) => families.add(&SIGNAL_DEMAND, id, &[&signal.name], *demand),
            Err(why) => families.add(&SIGNAL_UNSERVED, id, &[&signal.name, why.reason], 1.0),
        }
    }
    if let Some(driver) = &decision.driver {
        families.add(&DRIVER, id, &[driver], 1.0);
    }
}

fn add_pods(families: &mut Families, id: &PolicyId, decision: &Decision, now: Now) {
    let coverage = decision.coverage;
    for (state, count) in [
        ("matched", coverage.matched),
        ("expected", coverage.expected),
        ("reporting", coverage.reporting),
    ] {
        families.add(&PODS, id, &[state], f64::from(count));
    }
    if let Some(ratio) = coverage.ratio() {
        families.add(&COVERAGE, id, &[], ratio.get());
    }
    if coverage.reporting > 0 {
        let age = now.wall.since(decision.sampled_at);
        families.add(&SAMPLE_AGE, id, &[], age.as_secs_f64());
    }
    let mut left_out = BTreeMap::<&str, f64>::new();
    for pod in &decision.left_out {
        *left_out.entry(left_out_label(&pod.reason)).or_default() += 1.0;
    }
    for (reason, count) in left_out {
        families.add(&LEFT_OUT, id, &[reason], count);
    }
}

fn add_replicas(families: &mut Families, id: &PolicyId, policy: &Policy, workload: &Workload) {
    for (kind, count) in [
        ("spec", Some(workload.spec_replicas)),
        ("status", Some(workload.status_replicas)),
        ("min", policy.min_replicas.filter(|_| policy.max_replicas.is_some())),
        ("max", policy.max_replicas),
    ] {
        if let Some(count) = count {
            families.add(&REPLICAS, id, &[kind], f64::from(count));
        }
    }
}

const fn left_out_label(reason: &LeftOutReason) -> &'static str {
    match reason {
        LeftOutReason::Failed(CollectFailure::Connect(_)) => "connect",
        LeftOutReason::Failed(CollectFailure::Timeout(_)) => "timeout",
        LeftOutReason::Failed(CollectFailure::Status(_)) => "status",
        LeftOutReason::Failed(CollectFailure::Interrupted(_)) => "interrupted",
        LeftOutReason::Failed(CollectFailure::TooLarge { .. }) => "too_large",
        LeftOutReason::Failed(CollectFailure::Malformed { .. }) => "malformed",
        LeftOutReason::NotYetReported => "not_yet_reported",
        LeftOutReason::Stale => "stale",
        LeftOutReason::NoEndpoint => "no_endpoint",
        LeftOutReason::MissingFamily { .. } => "missing_family",
        LeftOutReason::PartialFamily { .. } => "partial_family",
    }
}

/// Families under construction, by name.
#[derive(Default)]
struct Families(BTreeMap<&'static str, (&'static str, Vec<Metric>)>);

impl Families {
    fn add(&mut self, shape: &Shape, id: &PolicyId, values: &[&str], value: f64) {
        let own = shape.2.iter().copied().zip(values.iter().copied());
        let labels = [("namespace", &*id.namespace), ("policy", &*id.name)].into_iter().chain(own);
        let pairs = labels.map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
        self.0.entry(shape.0).or_insert_with(|| (shape.1, Vec::new())).1.push(metric);
    }

    fn finish(self) -> Vec<MetricFamily> {
        let family = |(name, (help, metrics)): (&str, (&str, Vec<Metric>))| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(MetricType::GAUGE);
            family.set_metric(metrics);
            family
        };
        self.0.into_iter().map(family).collect()
    }
}
