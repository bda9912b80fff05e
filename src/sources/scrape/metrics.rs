//! The scraper's own metrics. Label values are closed sets: never a pod, never an address.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

use crate::sample::{CollectFailure, DropReason};
use crate::sources::Parsed;

/// What becomes of a scrape.
const OUTCOMES: [&str; 7] =
    ["ok", "connect", "timeout", "status", "interrupted", "too_large", "malformed"];

#[derive(Debug)]
pub(super) struct ScrapeMetrics {
    scrapes: IntCounterVec,
    duration: Histogram,
    dropped: IntCounterVec,
    pub(super) targets: IntGauge,
}

impl ScrapeMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            scrapes: IntCounterVec::new(
                Opts::new(
                    "headroom_adapter_scrapes_total",
                    "Attempts to scrape a pod, by outcome.",
                ),
                &["outcome"],
            )?,
            duration: Histogram::with_opts(
                HistogramOpts::new(
                    "headroom_adapter_scrape_duration_seconds",
                    "Time from the start of a scrape to its parsed answer or its failure.",
                )
                .buckets(vec![
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                ]),
            )?,
            dropped: IntCounterVec::new(
                Opts::new(
                    "headroom_adapter_dropped_samples_total",
                    "Wanted samples left out of good answers, by reason.",
                ),
                &["reason"],
            )?,
            targets: IntGauge::new(
                "headroom_adapter_scrape_targets",
                "Pod endpoints being scraped.",
            )?,
        };
        registry.register(Box::new(metrics.scrapes.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.dropped.clone()))?;
        registry.register(Box::new(metrics.targets.clone()))?;
        for outcome in OUTCOMES {
            metrics.scrapes.with_label_values(&[outcome]);
        }
        for reason in DropReason::ALL {
            metrics.dropped.with_label_values(&[reason.as_str()]);
        }
        Ok(metrics)
    }

    pub(super) fn observe(&self, outcome: &Result<Parsed, CollectFailure>, elapsed: Duration) {
        self.duration.observe(elapsed.as_secs_f64());
        let label = match outcome {
            Ok(parsed) => {
                for dropped in &parsed.dropped {
                    self.dropped
                        .with_label_values(&[dropped.reason.as_str()])
                        .inc_by(dropped.samples);
                }
                "ok"
            }
            Err(CollectFailure::Connect(_)) => "connect",
            Err(CollectFailure::Timeout(_)) => "timeout",
            Err(CollectFailure::Status(_)) => "status",
            Err(CollectFailure::Interrupted(_)) => "interrupted",
            Err(CollectFailure::TooLarge { .. }) => "too_large",
            Err(CollectFailure::Malformed { .. }) => "malformed",
        };
        self.scrapes.with_label_values(&[label]).inc();
    }
}
