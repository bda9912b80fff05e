//! The pipeline's own metrics. Series per policy go when the policy goes; a demand that is not served has no series, never 0.

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::seat::Panicked;
use crate::policy::{Decision, PolicyId};
use crate::store::Stats;
use crate::units::Measure;

#[derive(Debug)]
pub(super) struct PipelineMetrics {
    decisions: IntCounterVec,
    policies: IntGaugeVec,
    coverage: GaugeVec,
    demand: GaugeVec,
    series: IntGauge,
    store_dropped: IntCounterVec,
    pub(super) decide_duration: Histogram,
}

impl PipelineMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let policy = &["namespace", "policy"];
        let metrics = Self {
            decisions: IntCounterVec::new(
                Opts::new("headroom_adapter_decisions_total", "Decisions, by outcome."),
                &["outcome"],
            )?,
            policies: IntGaugeVec::new(
                Opts::new("headroom_adapter_policies", "Policies known, by state."),
                &["state"],
            )?,
            coverage: GaugeVec::new(
                Opts::new(
                    "headroom_adapter_coverage_ratio",
                    "Pods that report, of those that should.",
                ),
                policy,
            )?,
            demand: GaugeVec::new(
                Opts::new(
                    "headroom_adapter_demand",
                    "Pods' worth of work demanded; absent while not served.",
                ),
                policy,
            )?,
            series: IntGauge::new("headroom_adapter_series", "Series kept, over all pods.")?,
            store_dropped: IntCounterVec::new(
                Opts::new(
                    "headroom_adapter_store_dropped_total",
                    "What the store did not keep, by reason.",
                ),
                &["reason"],
            )?,
            decide_duration: Histogram::with_opts(
                HistogramOpts::new(
                    "headroom_adapter_decide_duration_seconds",
                    "Time to decide one policy.",
                )
                .buckets(vec![0.00001, 0.0001, 0.001, 0.01, 0.1, 1.0]),
            )?,
        };
        registry.register(Box::new(metrics.decisions.clone()))?;
        registry.register(Box::new(metrics.policies.clone()))?;
        registry.register(Box::new(metrics.coverage.clone()))?;
        registry.register(Box::new(metrics.demand.clone()))?;
        registry.register(Box::new(metrics.series.clone()))?;
        registry.register(Box::new(metrics.store_dropped.clone()))?;
        registry.register(Box::new(metrics.decide_duration.clone()))?;
        Ok(metrics)
    }

    pub(super) fn count_policies(&self, active: usize, refused: usize) {
        for (state, count) in [("active", active), ("refused", refused)] {
            self.policies.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn observe(&self, id: &PolicyId, outcome: &Result<Decision, Panicked>) {
        let decision = outcome.as_ref().ok();
        let demand = decision.and_then(|decision| decision.demand.as_ref().ok().copied());
        set_or_remove(&self.demand, id, demand);
        let coverage = decision.and_then(|decision| decision.coverage.ratio()).map(Measure::get);
        set_or_remove(&self.coverage, id, coverage);
        let label = match (decision, demand) {
            (None, _) => "panicked",
            (Some(_), None) => "unserved",
            (Some(_), Some(_)) => "served",
        };
        self.decisions.with_label_values(&[label]).inc();
    }

    /// The store counts from its start, as the counter does.
    pub(super) fn observe_store(&self, stats: &Stats) {
        self.series.set(i64::try_from(stats.series).unwrap_or(i64::MAX));
        let dropped = &stats.dropped;
        for (reason, total) in [
            ("pod_limit", dropped.pod_limit),
            ("series_limit", dropped.series_limit),
            ("out_of_order", dropped.out_of_order),
        ] {
            let counter = self.store_dropped.with_label_values(&[reason]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    pub(super) fn forget(&self, id: &PolicyId) {
        set_or_remove(&self.demand, id, None);
        set_or_remove(&self.coverage, id, None);
    }
}

fn set_or_remove(gauges: &GaugeVec, id: &PolicyId, value: Option<f64>) {
    let labels = [&*id.namespace, &*id.name];
    match value {
        Some(value) => gauges.with_label_values(&labels).set(value),
        // An error only says that there is no such series.
        None => drop(gauges.remove_label_values(&labels)),
    }
}
