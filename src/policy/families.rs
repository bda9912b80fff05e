//! Which families a policy reads, so that a scrape keeps those and nothing else.
//!
//! In: the policy's signals. Out: metric names as they stand in the exposition. Never: a name that the catalogue lacks.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Policy, SignalKind};
use crate::sample::MetricName;
use crate::signals::catalogue;

/// Cumulative buckets of the request latency.
pub(super) const REQUEST_BUCKET: &str = "http_server_request_duration_seconds_bucket";
/// Sum of the request latency in seconds.
pub(super) const REQUEST_SUM: &str = "http_server_request_duration_seconds_sum";
/// Completed requests.
pub(super) const REQUEST_COUNT: &str = "http_server_request_duration_seconds_count";

/// Served by the agent even while there is no request: who serves one of these had 0 requests, not unknown ones.
pub(super) const AGENT_EVIDENCE: &[&str] = &[
    catalogue::REQUESTS_IN_FLIGHT,
    catalogue::REQUEST_BUSY,
    catalogue::WORKERS,
    catalogue::RUNQUEUE_WAIT,
];

/// What a pod's traffic is added up from.
pub(super) const TRAFFIC: &[&str] =
    &[REQUEST_COUNT, REQUEST_SUM, catalogue::REQUEST_BUSY, catalogue::REQUESTS_IN_FLIGHT];

const REQUEST_FAMILIES: &[&str] = &[REQUEST_BUCKET, REQUEST_SUM, REQUEST_COUNT];

const CGROUP_CPU: &[&str] = &[
    catalogue::CGROUP_THROTTLED,
    catalogue::CGROUP_THROTTLED_PERIODS,
    catalogue::CGROUP_PERIODS,
    catalogue::CGROUP_CPU_LIMIT,
];

/// Time that a point is kept beyond the moment at which nothing reads it any more.
const SLACK: Duration = Duration::from_secs(10);

impl Policy {
    /// The families that this policy reads, each once: a histogram as its three names.
    pub fn wanted(&self) -> impl Iterator<Item = MetricName> {
        let usage: &[&[&str]] =
            if self.wants_usage { &[catalogue::USAGE_CPU, catalogue::USAGE_MEMORY] } else { &[] };
        let usage = usage.iter().copied().flatten().map(|name| MetricName::new(name));
        let signals = self.signals.iter().flat_map(|signal| kind_families(&signal.kind));
        let names: BTreeSet<MetricName> = signals.chain(usage).collect();
        names.into_iter()
    }

    /// How long the store must keep points for this policy.
    #[must_use]
    pub fn history(&self) -> Duration {
        self.window + self.stale_after + self.endpoint.interval * 2 + SLACK
    }
}

/// The families that a signal adds up over series: of those, a part is no value.
pub(super) fn summed_families(kind: &SignalKind) -> Vec<&str> {
    match kind {
        SignalKind::Tasks(_) => catalogue::TASKS.to_vec(),
        SignalKind::Heap(_) => catalogue::HEAP.to_vec(),
        SignalKind::AllocationRate(_) => catalogue::ALLOCATION.to_vec(),
        SignalKind::Cpu(_) => catalogue::CPU.to_vec(),
        SignalKind::Latency(_) => TRAFFIC.to_vec(),
        SignalKind::Metric { name, .. } => vec![&**name],
    }
}

fn kind_families(kind: &SignalKind) -> Vec<MetricName> {
    let lists: &[&[&str]] = match kind {
        SignalKind::Tasks(_) => &[catalogue::TASKS],
        SignalKind::Heap(_) => &[catalogue::HEAP],
        SignalKind::AllocationRate(_) => &[catalogue::ALLOCATION],
        SignalKind::Cpu(_) => &[catalogue::CPU, CGROUP_CPU, AGENT_EVIDENCE, REQUEST_FAMILIES],
        SignalKind::Latency(_) => &[CGROUP_CPU, AGENT_EVIDENCE, REQUEST_FAMILIES],
        SignalKind::Metric { name, .. } => return vec![MetricName::new(name)],
    };
    lists.iter().copied().flatten().map(|name| MetricName::new(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_names_belong_to_the_catalogue_family() {
        for name in REQUEST_FAMILIES {
            assert!(name.starts_with(catalogue::REQUEST_DURATION), "{name}");
        }
    }
}
