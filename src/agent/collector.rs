//! The signals as a Prometheus collector: read when the registry is asked.
//!
//! In: snapshots of `signals`. Out: metric families under the names of the catalogue, and the agent's own. Never: a family
//! without values; a source that has none shows as 0 in `headroom_agent_source_available`, its reason in the log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::http_layer;
use crate::pprof;
use crate::signals::catalogue::families;
use crate::signals::{CATALOGUE, Collectors, Family, FamilyKind, Snapshot, Unavailable};
use crate::telemetry::error_chain;
use crate::time::{Clock, Timestamp};

/// Reads all sources at every gather.
#[derive(Debug)]
pub(crate) struct SignalCollector {
    service: String,
    clock: Clock,
    collectors: Arc<Mutex<Collectors>>,
    descriptions: Vec<Desc>,
    reasons: KnownReasons,
}

/// Families that other parts of the agent register themselves.
fn is_registered_apart(family: &Family) -> bool {
    let of_requests = http_layer::FAMILIES.iter().any(|apart| apart.name == family.name);
    of_requests || family.name == families::AGENT_CONNECTIONS_EVICTED.name
}

impl SignalCollector {
    /// All families of the catalogue that no other part registers.
    pub(crate) fn new(
        service: &str,
        clock: Clock,
        collectors: Arc<Mutex<Collectors>>,
    ) -> Result<Self, prometheus::Error> {
        let descriptions = CATALOGUE
            .iter()
            .filter(|family| !is_registered_apart(family))
            .map(describe)
            .collect::<Result<_, _>>()?;
        let reasons = KnownReasons::default();
        Ok(Self { service: service.to_owned(), clock, collectors, descriptions, reasons })
    }
}

/// The reason of each source that had no values when it was last read.
#[derive(Debug, Default)]
pub(super) struct KnownReasons(Mutex<HashMap<&'static str, String>>);

impl KnownReasons {
    /// Calls `tell` with a source and its reason when that is new, and with `None` at a recovery.
    pub(super) fn update(
        &self,
        snapshot: &Snapshot,
        reason: fn(&Unavailable) -> String,
        tell: fn(&str, Option<&str>),
    ) {
        let mut known = self.0.lock();
        for (source, outcome) in snapshot.sources() {
            let reason = outcome.as_ref().err().map(reason);
            if known.get(source) != reason.as_ref() {
                tell(source, reason.as_deref());
                match reason {
                    Some(reason) => known.insert(source, reason),
                    None => known.remove(source),
                };
            }
        }
    }
}

impl Collector for SignalCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = self.clock.now();
        let snapshot = self.collectors.lock().collect(now);
        let reason = |error: &Unavailable| error_chain(error);
        self.reasons.update(&snapshot, reason, |source, reason| match reason {
            Some(error) => tracing::debug!(source, error, "source is not available"),
            None => tracing::debug!(source, "source is available again"),
        });
        let took = self.clock.now().monotonic.since(now.monotonic);
        metric_families(&snapshot, &self.service, took)
    }
}

/// A snapshot as metric families, with which sources it had and how long it took.
pub(super) fn metric_families(
    snapshot: &Snapshot,
    service: &str,
    took: Duration,
) -> Vec<MetricFamily> {
    let mut found = FamilySet::default();
    for reading in snapshot.readings() {
        found.add(reading.family, &reading.labels, reading.value, reading.at);
    }
    for (source, outcome) in snapshot.sources() {
        let available = f64::from(u8::from(outcome.is_ok()));
        found.add(&families::AGENT_SOURCE_AVAILABLE, &[source], available, None);
    }
    for (reason, lost) in pprof::samples_lost() {
        found.add(&families::AGENT_PROFILE_SAMPLES_LOST, &[reason], lost as f64, None);
    }
    found.add(&families::AGENT_INFO, &[service, env!("CARGO_PKG_VERSION")], 1.0, None);
    found.add(&families::AGENT_COLLECTION_SECONDS, &[], took.as_secs_f64(), None);
    found.0
}

/// The options of a metric that is registered on its own, as the catalogue describes it.
pub(super) fn options(family: &Family) -> prometheus::Opts {
    prometheus::Opts::new(family.name, family.help)
}

pub(super) fn describe(family: &Family) -> Result<Desc, prometheus::Error> {
    let labels = family.labels.iter().map(|&label| label.to_owned()).collect();
    Desc::new(family.name.to_owned(), family.help.to_owned(), labels, HashMap::new())
}

/// Metric families under construction. Series of one family come one after the other.
#[derive(Default)]
struct FamilySet(Vec<MetricFamily>);

impl FamilySet {
    fn add(&mut self, family: &Family, labels: &[&str], value: f64, at: Option<Timestamp>) {
        let mut metric = Metric::from_label(label_pairs(family, labels));
        match family.kind {
            FamilyKind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            FamilyKind::Gauge | FamilyKind::Histogram => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        if let Some(at) = at {
            metric.set_timestamp_ms(at.as_millis());
        }
        match self.0.last_mut() {
            Some(last) if last.name() == family.name => last.mut_metric().push(metric),
            _ => self.0.push(family_of(family, metric)),
        }
    }
}

fn family_of(family: &Family, metric: Metric) -> MetricFamily {
    let mut started = MetricFamily::default();
    started.set_name(family.name.to_owned());
    started.set_help(family.help.to_owned());
    started.set_field_type(match family.kind {
        FamilyKind::Counter => MetricType::COUNTER,
        FamilyKind::Gauge | FamilyKind::Histogram => MetricType::GAUGE,
    });
    started.set_metric(vec![metric]);
    started
}

fn label_pairs(family: &Family, values: &[&str]) -> Vec<LabelPair> {
    let pair = |(name, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    family.labels.iter().zip(values).map(pair).collect()
}
