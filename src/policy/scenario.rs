//! Builds the inputs of a decision for tests: a policy, pods, and what they report when.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::sample::{
    Batch, CollectFailure, DropReason, Dropped, Labels, MetricName, PodKey, Sample, SeriesKey,
};
use crate::store::{Limits, Store};
use crate::time::{Moment, Now, Timestamp};
use crate::units::Measure;

/// The labels of a series.
pub(super) type LabelPairs<'a> = &'a [(&'a str, &'a str)];

/// The start of every scene: long after the program's and every pod's start.
pub(super) fn start() -> Now {
    Now {
        monotonic: Moment::after_start(Duration::from_secs(10_000)),
        wall: Timestamp::from_millis(1_800_000_000_000),
    }
}

pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A threshold from a bare number.
pub(super) fn threshold<T: Measure>(value: f64) -> Threshold<T> {
    Threshold::new(value).expect("a threshold of more than zero")
}

/// One sample at the time of its batch.
pub(super) fn reading(name: &str, labels: LabelPairs<'_>, value: f64) -> (SeriesKey, f64) {
    (SeriesKey { name: MetricName::new(name), labels: labels.iter().copied().collect() }, value)
}

pub(super) fn signal(name: &str, kind: SignalKind) -> Signal {
    Signal { name: name.into(), kind, base: None }
}

pub(super) fn metric(name: &str, aggregate: Aggregate, per_pod: f64) -> Signal {
    signal(
        name,
        SignalKind::Metric {
            name: name.into(),
            aggregate,
            threshold: threshold(per_pod),
            describes: None,
        },
    )
}

/// Window 15 s, scraped every 5 s, stale after 20 s.
pub(super) fn policy(signals: Vec<Signal>) -> Policy {
    let id = PolicyId { namespace: "shop".into(), name: "checkout".into() };
    Policy {
        window: Duration::from_secs(15),
        signals,
        min_replicas: Some(1),
        ..Policy::example(id)
    }
}

/// A Ready pod that started an hour before the scene.
pub(super) fn old_pod(index: usize) -> Pod {
    let hour_ago = Timestamp::from_millis(start().wall.as_millis() - 3_600_000);
    Pod {
        key: PodKey(format!("uid-{index}").into()),
        name: format!("pod-{index}").into(),
        ip: Some("10.0.0.1".parse().expect("an address")),
        port: Some(9469),
        started_at: Some(hour_ago),
        ready_since: Some(hour_ago),
        ended: false,
        cpu_limit: None,
        labels: Labels::default(),
        container: None,
    }
}

/// A policy at work on a workload.
pub(super) struct Scene {
    pub(super) store: Store,
    pub(super) decider: Decider,
    pub(super) workload: Workload,
    pub(super) now: Now,
}

impl Scene {
    /// `pods` old pods, as many replicas, nothing reported yet.
    pub(super) fn new(policy: Policy, pods: u32) -> Self {
        let limits = Limits { history: policy.history(), ..Limits::default() };
        let workload = Workload {
            spec_replicas: pods,
            status_replicas: pods,
            resource: "deployments".into(),
            pods: (0..pods as usize).map(old_pod).collect(),
            ..Workload::default()
        };
        Self {
            store: Store::new(limits),
            decider: Decider::new(Arc::new(policy)),
            workload,
            now: start(),
        }
    }

    pub(super) fn pass(&mut self, seconds_passed: f64) {
        self.now = self.now + seconds(seconds_passed);
    }

    /// A good batch of one pod, now.
    pub(super) fn report(&mut self, pod: usize, readings: Vec<(SeriesKey, f64)>) {
        let at = self.now.wall;
        self.report_at(pod, at, readings);
    }

    /// A good batch whose samples carry a time of their own.
    pub(super) fn report_at(&mut self, pod: usize, at: Timestamp, readings: Vec<(SeriesKey, f64)>) {
        let samples =
            readings.into_iter().map(|(series, value)| Sample { series, value, at }).collect();
        self.record(pod, Ok(samples), vec![]);
    }

    /// A good batch of one pod, now, of which one sample of a family was not kept.
    pub(super) fn report_part(
        &mut self,
        pod: usize,
        readings: Vec<(SeriesKey, f64)>,
        lost: &str,
        reason: DropReason,
    ) {
        let at = self.now.wall;
        let samples =
            readings.into_iter().map(|(series, value)| Sample { series, value, at }).collect();
        let lost = Dropped { name: MetricName::new(lost), reason, samples: 1 };
        self.record(pod, Ok(samples), vec![lost]);
    }

    pub(super) fn fail(&mut self, pod: usize) {
        self.record(pod, Err(CollectFailure::Status(503)), vec![]);
    }

    fn record(
        &mut self,
        pod: usize,
        outcome: Result<Vec<Sample>, CollectFailure>,
        dropped: Vec<Dropped>,
    ) {
        self.store.record(&Batch {
            endpoint: self
                .decider
                .policy()
                .endpoint
                .on(&self.workload.pods[pod])
                .expect("the pod has the port"),
            arrived: self.now.monotonic,
            arrived_at: self.now.wall,
            outcome,
            dropped,
        });
    }

    /// The same batch of each of the first pods.
    pub(super) fn report_each(&mut self, pods: usize, readings: &[(SeriesKey, f64)]) {
        for pod in 0..pods {
            self.report(pod, readings.to_vec());
        }
    }

    /// Two rounds of the same gauges of each of the first pods, an interval apart, decided after each.
    pub(super) fn settle(&mut self, pods: usize, readings: &[(SeriesKey, f64)]) -> Decision {
        self.report_each(pods, readings);
        self.decide();
        self.pass(5.0);
        self.report_each(pods, readings);
        self.decide()
    }

    pub(super) fn decide(&mut self) -> Decision {
        self.decider.decide(&self.store, &self.workload, self.now)
    }
}

/// A demand to a thousandth, or the reason for none.
pub(super) fn assert_demand(what: &str, decision: &Decision, expected: Result<f64, &str>) {
    match (&decision.demand, expected) {
        (Ok(got), Ok(expected)) => {
            let lines: Vec<_> = decision.signals.iter().map(|signal| &signal.formula).collect();
            assert!((got - expected).abs() < 1e-3, "{what}: {got}, expected {expected}: {lines:?}");
        }
        (Err(got), Err(expected)) => assert_eq!(got.reason, expected, "{what}: {got}"),
        (got, expected) => panic!("{what}: {got:?}, expected {expected:?}"),
    }
}
