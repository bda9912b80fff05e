//! The pipeline's own metrics. Those of each policy are in [`super::policy_metrics`].

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::seat::Panicked;
use crate::policy::Decision;
use crate::store::Stats;

#[derive(Debug)]
pub(super) struct PipelineMetrics {
    decisions: IntCounterVec,
    policies: IntGaugeVec,
    series: IntGauge,
    store_bytes: IntGauge,
    store_dropped: IntCounterVec,
    pub(super) decide_duration: Histogram,
}

impl PipelineMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            decisions: IntCounterVec::new(
                Opts::new("headroom_adapter_decisions_total", "Decisions, by outcome."),
                &["outcome"],
            )?,
            policies: IntGaugeVec::new(
                Opts::new("headroom_adapter_policies", "Policies known, by state."),
                &["state"],
            )?,
            series: IntGauge::new("headroom_adapter_series", "Series kept, over all pods.")?,
            store_bytes: IntGauge::new(
                "headroom_adapter_store_bytes",
                "Memory that the kept series take, as the store counts it.",
            )?,
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
        registry.register(Box::new(metrics.series.clone()))?;
        registry.register(Box::new(metrics.store_bytes.clone()))?;
        registry.register(Box::new(metrics.store_dropped.clone()))?;
        registry.register(Box::new(metrics.decide_duration.clone()))?;
        for reason in ["pod_limit", "series_limit", "out_of_order"] {
            metrics.store_dropped.with_label_values(&[reason]);
        }
        for outcome in ["served", "unserved", "panicked"] {
            metrics.decisions.with_label_values(&[outcome]);
        }
        Ok(metrics)
    }

    pub(super) fn count_policies(&self, active: usize, refused: usize) {
        for (state, count) in [("active", active), ("refused", refused)] {
            self.policies.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn observe(&self, outcome: &Result<Decision, Panicked>) {
        let label = match outcome {
            Err(_) => "panicked",
            Ok(decision) if decision.demand.is_err() => "unserved",
            Ok(_) => "served",
        };
        self.decisions.with_label_values(&[label]).inc();
    }

    /// The store counts from its start, as the counter does.
    pub(super) fn observe_store(&self, stats: &Stats) {
        self.series.set(i64::try_from(stats.series).unwrap_or(i64::MAX));
        self.store_bytes.set(i64::try_from(stats.bytes).unwrap_or(i64::MAX));
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
}
