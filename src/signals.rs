//! The catalogue of signals, and the collectors that read them from this process and its host.
//!
//! In: the kernel's files, tokio, the allocator. Out: a [`Snapshot`] of values under the names of [`CATALOGUE`]. Never: a
//! clock, HTTP or Kubernetes in the catalogue; an absent source is a reason, never a zero.
//!
//! Counters and gauges are read when a snapshot is taken. What has to be watched over time (saturation) is sampled by
//! [`Collectors::tick`] and carries the time of its sample.

use std::collections::BTreeMap;

use tokio::runtime::Handle;

use crate::telemetry::error_chain;
use crate::time::{Clock, Now};

pub mod allocator;
pub mod canary;
pub mod catalogue;
pub mod cgroup;
pub mod exponential;
pub mod host;
mod kernel_file;
#[cfg(test)]
mod platforms;
pub mod process;
pub mod psi;
pub mod runtime;
pub mod saturation;
pub(crate) mod seats;
pub mod sharded;
mod snapshot;
mod sys;
#[doc(hidden)]
pub mod text;
mod threads;
pub mod workers;

pub use catalogue::{CATALOGUE, Family, FamilyKind};
pub use snapshot::{Reading, Snapshot, Unavailable};
#[cfg(feature = "agent")]
pub(crate) use sys::process_cpu_time;
pub(crate) use sys::read_clock;

/// Every collector of this process, each with the state it needs between two readings.
#[derive(Debug)]
pub struct Collectors {
    runtime: runtime::RuntimeCollector,
    workers: workers::WorkerCollector,
    canary: canary::Canary,
    allocator: allocator::AllocatorCollector,
    process: process::ProcessCollector,
    cgroup: cgroup::CgroupCollector,
    psi: psi::PsiCollector,
    host: host::HostCollector,
}

/// Each source by name, and why it has no values if it has none.
pub type SourceReasons = BTreeMap<&'static str, Option<String>>;

impl Collectors {
    /// Finds what this process can be asked. Spawns the canary task on the service's runtime; it ends with the value.
    #[must_use]
    pub fn start(service_runtime: &Handle, clock: Clock) -> Self {
        let workers = workers::WorkerCollector::new(service_runtime.clone());
        Self {
            runtime: runtime::RuntimeCollector::new(service_runtime.clone(), clock.now()),
            canary: canary::Canary::spawn(service_runtime, clock),
            workers,
            allocator: allocator::AllocatorCollector::detect(),
            process: process::ProcessCollector::new(),
            cgroup: cgroup::CgroupCollector::new("/"),
            psi: psi::PsiCollector::new("/"),
            host: host::HostCollector::new(),
        }
    }

    /// Samples what is only visible over time. Once per second; costs well under a microsecond per worker. What is asked of an
    /// idle process is less.
    pub fn tick(&mut self, now: Now, process_is_idle: bool) {
        self.runtime.tick(now);
        // A blocked worker need not use any CPU.
        self.canary.tick(match (self.runtime.is_saturated(), process_is_idle) {
            (true, _) => canary::Pace::Saturated,
            (false, true) => canary::Pace::Idle,
            (false, false) => canary::Pace::Awake,
        });
        self.workers.tick(self.runtime.active_workers());
    }

    /// Reads everything now, for what was not there and why.
    #[must_use]
    pub fn reasons(&mut self, now: Now) -> SourceReasons {
        let mut snapshot = Snapshot::default();
        self.collect(now, &mut snapshot);
        let reason = |outcome: &Result<(), Unavailable>| {
            outcome.as_ref().err().map(|error| error_chain(error))
        };
        snapshot.sources().iter().map(|(source, outcome)| (*source, reason(outcome))).collect()
    }

    /// The reasons as text for people, a line per source.
    #[must_use]
    pub fn reasons_text(&mut self, now: Now) -> String {
        let line = |(source, reason): (&str, Option<String>)| match reason {
            None => format!("{source:<24} available\n"),
            Some(reason) => format!("{source:<24} not available: {reason}\n"),
        };
        self.reasons(now).into_iter().map(line).collect()
    }

    /// Reads everything now. What the snapshot held before is gone.
    pub fn collect(&mut self, now: Now, snapshot: &mut Snapshot) {
        snapshot.clear();
        self.runtime.collect(self.canary.tasks() + self.workers.tasks(), snapshot);
        self.canary.collect(now.monotonic, snapshot);
        self.allocator.collect(snapshot);
        self.process.collect(snapshot);
        self.workers.collect(self.process.threads(), snapshot);
        self.cgroup.collect(snapshot);
        self.psi.collect(self.cgroup.unified_directory(), snapshot);
        self.host.collect(snapshot);
    }
}

/// Reads `text` as every kind of kernel file. For fuzzing: whatever the text is, this returns.
#[doc(hidden)]
pub fn read_any_text(text: &str) {
    let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
    let _ =
        (text::cpu_max(text), text::cfs_quota(first, second.len() as u64), text::memory_max(text));
    let _ = (text::number(text), text::schedstat(text), text::stalls(text));
    let _ = (text::process_stat(text), text::soft_limit(text, "Max open files"));
    let _ = text::available_memory(text);
    let _ = text::Keyed::new(text).get(first);
    cgroup::locate_any_text(first, second);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_source_that_has_no_values_says_why_in_words() {
        let clock = Clock::start();
        let mut collectors = Collectors::start(&Handle::current(), clock);
        let reasons = collectors.reasons(clock.now());
        // The test's allocator is the system's, and no second has passed.
        for absent in ["allocator", "tokio_saturation"] {
            assert!(reasons[absent].is_some(), "{reasons:?}");
        }
        assert_eq!(reasons["process"], None);
        let text = collectors.reasons_text(clock.now());
        assert_eq!(text.lines().count(), reasons.len());
        let line = "not available: the global allocator is not jemalloc with statistics";
        assert!(text.lines().any(|found| found.starts_with("allocator ") && found.ends_with(line)));
    }
}
