//! Every metric the agent exposes, and where a policy reads a signal from.
//!
//! Exposition, policy, dashboards and docs take names from here.
//!
#![doc = include_str!("../../docs/signals.md")]

#[cfg(test)]
mod docs;
pub mod families;
pub mod notes;

/// How a family's value behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyKind {
    /// Goes up and down.
    Gauge,
    /// Only grows; a smaller value is a restart.
    Counter,
    /// Cumulative buckets, `_sum` and `_count`.
    Histogram,
}

/// One metric of the agent.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name; counters end in `_total`.
    pub name: &'static str,
    /// How it behaves.
    pub kind: FamilyKind,
    /// Its label names.
    pub labels: &'static [&'static str],
    /// What it is, with unit, as the `# HELP` text.
    pub help: &'static str,
    /// Where the value comes from.
    pub source: &'static str,
}

/// Where demand reads live tasks: the first family that a pod serves. All are gauges.
pub const TASKS: &[&str] = &[
    "tokio_alive_tasks",
    "go_goroutines",
    "jvm_threads_live_threads",
    "jvm_threads_current",
    "nodejs_active_handles_total",
];

/// Where demand reads heap bytes in use. All are gauges.
pub const HEAP: &[&str] = &[
    "heap_allocated_bytes",
    "go_memstats_heap_inuse_bytes",
    "jvm_memory_used_bytes",
    "jvm_memory_bytes_used",
    "nodejs_heap_size_used_bytes",
    "process_resident_memory_bytes",
];

/// Where demand reads allocated bytes. All are counters.
pub const ALLOCATION: &[&str] = &[
    "heap_allocation_bytes_total",
    "go_memstats_alloc_bytes_total",
    "jvm_gc_memory_allocated_bytes_total",
    "jvm_memory_pool_allocated_bytes_total",
];

/// Where demand reads CPU seconds. All are counters.
pub const CPU: &[&str] = &["process_cpu_seconds_total"];

/// Where a pod's CPU in use is read, in seconds: of the container, else of the process. All are counters.
pub const USAGE_CPU: &[&str] = &["cgroup_cpu_usage_seconds_total", "process_cpu_seconds_total"];
/// Where a pod's memory in use is read: the container's working set, else what is resident of the process. All are
/// gauges.
pub const USAGE_MEMORY: &[&str] =
    &["cgroup_memory_working_set_bytes", "process_resident_memory_bytes"];

/// Seconds that the process's threads waited for a core (counter).
pub const RUNQUEUE_WAIT: &str = "process_runqueue_wait_seconds_total";
/// Seconds that the cgroup was throttled (counter).
pub const CGROUP_THROTTLED: &str = "cgroup_cpu_throttled_seconds_total";
/// CFS periods in which the cgroup was throttled (counter).
pub const CGROUP_THROTTLED_PERIODS: &str = "cgroup_cpu_throttled_periods_total";
/// CFS periods that have passed (counter).
pub const CGROUP_PERIODS: &str = "cgroup_cpu_periods_total";
/// The cgroup's CPU quota in cores (gauge); absent without one.
pub const CGROUP_CPU_LIMIT: &str = "cgroup_cpu_limit_cores";
/// Request latency (histogram; labels endpoint, status_code, error_type).
pub const REQUEST_DURATION: &str = "http_server_request_duration_seconds";
/// Requests in flight (gauge; label endpoint).
pub const REQUESTS_IN_FLIGHT: &str = "http_server_requests_in_flight";
/// Seconds that polls of requests kept a worker (counter; label endpoint).
pub const REQUEST_BUSY: &str = "http_server_request_busy_seconds_total";
/// Workers of the tokio runtime (gauge).
pub const WORKERS: &str = "tokio_workers";

/// All families of the agent, in the order of the docs.
pub const CATALOGUE: &[Family] = families::ALL;

/// The family of that name.
#[must_use]
pub fn family(name: &str) -> Option<&'static Family> {
    CATALOGUE.iter().find(|family| family.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_kind_and_unit() {
        let names: HashSet<_> = CATALOGUE.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), CATALOGUE.len());
        for Family { name, kind, help, source, labels } in CATALOGUE {
            assert_eq!(name.ends_with("_total"), *kind == FamilyKind::Counter, "{name}");
            assert!(!help.is_empty() && !help.ends_with('.') && !source.is_empty(), "{name}");
            assert!(labels.iter().all(|label| !label.is_empty()), "{name}");
            assert!(labels.len() <= crate::signals::snapshot::MAX_LABELS, "{name}");
        }
    }

    #[test]
    fn what_a_policy_reads_by_name_is_in_the_catalogue() {
        let first = [TASKS[0], HEAP[0], ALLOCATION[0], CPU[0]];
        let single = [
            RUNQUEUE_WAIT,
            CGROUP_THROTTLED,
            CGROUP_THROTTLED_PERIODS,
            CGROUP_PERIODS,
            CGROUP_CPU_LIMIT,
            REQUEST_DURATION,
            REQUESTS_IN_FLIGHT,
            REQUEST_BUSY,
            WORKERS,
        ];
        let usage = USAGE_CPU.iter().chain(USAGE_MEMORY).copied();
        for name in first.into_iter().chain(single).chain(usage) {
            assert!(family(name).is_some(), "{name}");
        }
    }
}
