//! The signals of a process as a scrape gets them.
//!
//! In: snapshots of `signals`. Out: series under the names of the catalogue, and the agent's own. Never: a family without
//! values; a source that has none shows as 0 in `headroom_agent_source_available`, its reason in the log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::exposition::Sink;
use super::server::Evicted;
use crate::pprof;
use crate::signals::catalogue::families;
use crate::signals::{CATALOGUE, Collectors, Snapshot, Unavailable};
use crate::telemetry::write_error_chain;
use crate::time::Clock;

/// Reads all sources at every scrape.
#[derive(Debug)]
pub(super) struct SignalCollector {
    service: String,
    clock: Clock,
    collectors: Arc<Mutex<Collectors>>,
    evicted: Evicted,
    reasons: KnownReasons,
    /// Only its memory is used again.
    snapshot: Snapshot,
}

impl SignalCollector {
    pub(super) fn new(
        service: String,
        clock: Clock,
        collectors: Arc<Mutex<Collectors>>,
        evicted: Evicted,
    ) -> Self {
        let (reasons, snapshot) = (KnownReasons::default(), Snapshot::default());
        Self { service, clock, collectors, evicted, reasons, snapshot }
    }

    /// Reads, and writes every family that has values.
    pub(super) fn write(&mut self, sink: &mut impl Sink) {
        let now = self.clock.now();
        self.collectors.lock().collect(now, &mut self.snapshot);
        let reason = |error: &Unavailable, text: &mut String| write_error_chain(error, text);
        self.reasons.update(&self.snapshot, reason, |source, reason| match reason {
            Some(error) => tracing::debug!(source, error, "source is not available"),
            None => tracing::debug!(source, "source is available again"),
        });
        self.evicted.collect(&mut self.snapshot);
        let took = self.clock.now().monotonic.since(now.monotonic);
        write(&self.snapshot, &self.service, took, sink);
    }
}

/// Writes a snapshot, which sources it had and how long it took.
pub(super) fn write(snapshot: &Snapshot, service: &str, took: Duration, sink: &mut impl Sink) {
    for reading in snapshot.readings() {
        sink.number(reading.family, reading.labels(), reading.value, reading.at);
    }
    for (source, outcome) in snapshot.sources() {
        let available = f64::from(u8::from(outcome.is_ok()));
        sink.number(&families::AGENT_SOURCE_AVAILABLE, &[source], available, None);
    }
    for (reason, lost) in pprof::samples_lost() {
        sink.number(&families::AGENT_PROFILE_SAMPLES_LOST, &[reason], lost as f64, None);
    }
    let version = env!("CARGO_PKG_VERSION");
    sink.number(&families::AGENT_INFO, &[service, version], 1.0, None);
    sink.number(&families::AGENT_COLLECTION_SECONDS, &[], took.as_secs_f64(), None);
}

/// The reason of each source that had no values when it was last read.
#[derive(Debug, Default)]
pub(super) struct KnownReasons {
    known: HashMap<&'static str, String>,
    /// The one that is looked at.
    text: String,
}

impl KnownReasons {
    /// Calls `tell` with a source and its reason when that is new, and with `None` at a recovery.
    pub(super) fn update(
        &mut self,
        snapshot: &Snapshot,
        reason: fn(&Unavailable, &mut String),
        tell: fn(&str, Option<&str>),
    ) {
        for (source, outcome) in snapshot.sources() {
            match outcome {
                Ok(()) => {
                    if self.known.remove(source).is_some() {
                        tell(source, None);
                    }
                }
                Err(error) => {
                    self.text.clear();
                    reason(error, &mut self.text);
                    if self.known.get(source) != Some(&self.text) {
                        tell(source, Some(&self.text));
                        self.known.insert(source, self.text.clone());
                    }
                }
            }
        }
    }
}

/// Keeps the names of the catalogue from being registered by the service. The registry itself is not asked for these families:
/// it knows no native histograms and no exemplars, and each scrape would allocate every name and label.
pub(super) struct Reserved(Vec<Desc>);

impl Reserved {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let description = |family: &crate::signals::Family| {
            let labels = family.labels.iter().map(|&label| label.to_owned()).collect();
            Desc::new(family.name.to_owned(), family.help.to_owned(), labels, HashMap::new())
        };
        CATALOGUE.iter().map(description).collect::<Result<_, _>>().map(Self)
    }
}

impl Collector for Reserved {
    fn desc(&self) -> Vec<&Desc> {
        self.0.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        Vec::new()
    }
}

/// The signals in a registry, for a program that has one `/metrics` for all it says of itself.
#[cfg(feature = "adapter")]
pub(crate) struct Registered {
    signals: Mutex<SignalCollector>,
    reserved: Reserved,
}

#[cfg(feature = "adapter")]
impl Registered {
    pub(crate) fn new(
        service: &str,
        clock: Clock,
        collectors: Arc<Mutex<Collectors>>,
    ) -> Result<Self, prometheus::Error> {
        let evicted = Evicted::default();
        let signals = SignalCollector::new(service.to_owned(), clock, collectors, evicted);
        Ok(Self { signals: Mutex::new(signals), reserved: Reserved::new()? })
    }
}

#[cfg(feature = "adapter")]
impl Collector for Registered {
    fn desc(&self) -> Vec<&Desc> {
        self.reserved.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = super::exposition::FamilySet::default();
        self.signals.lock().write(&mut families);
        families.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_cannot_register_a_family_of_the_agent() {
        let registry = prometheus::Registry::new();
        registry.register(Box::new(Reserved::new().expect("valid names"))).expect("it is empty");
        for family in CATALOGUE {
            let own = prometheus::IntGauge::new(family.name, "The service's own");
            let own = Box::new(own.expect("a valid name"));
            assert!(registry.register(own).is_err(), "{}", family.name);
        }
        assert_eq!(registry.gather(), []);
    }

    #[test]
    fn a_reason_is_told_once_and_again_when_it_changes_or_ends() {
        static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let mut known = KnownReasons::default();
        let outcomes = [
            Err(Unavailable::NotHere("first")),
            Err(Unavailable::NotHere("first")),
            Err(Unavailable::NotHere("second")),
            Ok(()),
            Ok(()),
        ];
        for outcome in outcomes {
            let mut snapshot = Snapshot::default();
            snapshot.source("psi", outcome);
            let reason = |error: &Unavailable, text: &mut String| write_error_chain(error, text);
            known.update(&snapshot, reason, |source, reason| {
                TOLD.lock().push(format!("{source} {reason:?}"));
            });
        }
        let expected = ["psi Some(\"first\")", "psi Some(\"second\")", "psi None"];
        assert_eq!(*TOLD.lock(), expected);
    }
}
