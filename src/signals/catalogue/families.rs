//! The families of the catalogue, one constant each.

use super::{Family, FamilyKind};

/// Every family below, in order.
pub(super) const ALL: &[Family] = &[
    TOKIO_ALIVE_TASKS,
    TOKIO_WORKERS,
    TOKIO_GLOBAL_QUEUE_DEPTH,
    TOKIO_SATURATION_RATIO,
    TOKIO_BLOCKED_WORKERS,
    TOKIO_SCHEDULING_DELAY,
    TOKIO_WORKER_BUSY,
    TOKIO_WORKER_CPU,
    TOKIO_WORKER_RUNQUEUE_WAIT,
    HEAP_ALLOCATED,
    HEAP_ACTIVE,
    HEAP_RESIDENT,
    HEAP_ALLOCATION_BYTES,
    HEAP_ALLOCATIONS,
    PROCESS_CPU,
    PROCESS_RESIDENT_MEMORY,
    PROCESS_VIRTUAL_MEMORY,
    PROCESS_VIRTUAL_MEMORY_MAX,
    PROCESS_OPEN_FDS,
    PROCESS_MAX_FDS,
    PROCESS_START_TIME,
    PROCESS_THREADS,
    PROCESS_RUNQUEUE_WAIT,
    CGROUP_CPU_USAGE,
    CGROUP_CPU_THROTTLED,
    CGROUP_CPU_PERIODS,
    CGROUP_CPU_THROTTLED_PERIODS,
    CGROUP_CPU_LIMIT,
    CGROUP_MEMORY_WORKING_SET,
    CGROUP_MEMORY_LIMIT,
    CGROUP_MEMORY_EVENTS,
    PRESSURE_STALL,
    REQUEST_DURATION,
    REQUEST_DURATION_QUANTILE,
    REQUESTS_IN_FLIGHT,
    REQUESTS_STARTED,
    REQUEST_BUSY,
    AGENT_INFO,
    AGENT_SOURCE_AVAILABLE,
    AGENT_COLLECTION_SECONDS,
    AGENT_REQUESTS_FOLDED,
    AGENT_CONNECTIONS_EVICTED,
    AGENT_PROFILE_SAMPLES_LOST,
    AGENT_TARGET_UP,
    HOST_MEMORY_AVAILABLE,
    HOST_CPU_COUNT,
];

/// Tasks of the service's tokio runtime that have not ended.
pub const TOKIO_ALIVE_TASKS: Family = Family {
    name: "tokio_alive_tasks",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Tasks of the service's tokio runtime that have not ended",
    source: "tokio RuntimeMetrics::num_alive_tasks",
};

/// Worker threads of the service's tokio runtime.
pub const TOKIO_WORKERS: Family = Family {
    name: "tokio_workers",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Worker threads of the service's tokio runtime",
    source: "tokio RuntimeMetrics::num_workers",
};

/// Tasks in the runtime's injection queue, workers' own queues not included.
pub const TOKIO_GLOBAL_QUEUE_DEPTH: Family = Family {
    name: "tokio_global_queue_depth",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Tasks in the runtime's injection queue, workers' own queues not included",
    source: "tokio RuntimeMetrics::global_queue_depth",
};

/// Share of the workers' time in use over the last second, a blocked worker counted as in use.
pub const TOKIO_SATURATION_RATIO: Family = Family {
    name: "tokio_saturation_ratio",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Share of the workers' time in use over the last second, a blocked worker counted as in use",
    source: "tokio worker_total_busy_duration and worker_park_unpark_count, sampled every second",
};

/// Workers that one poll has kept for the whole last second.
pub const TOKIO_BLOCKED_WORKERS: Family = Family {
    name: "tokio_blocked_workers",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Workers that one poll has kept for the whole last second",
    source: "tokio worker_total_busy_duration and worker_park_unpark_count, sampled every second",
};

/// Worst lateness of a task woken every 100 ms (10 ms while saturated, 1 s while idle) over the last 5 seconds, overdue wakes included.
pub const TOKIO_SCHEDULING_DELAY: Family = Family {
    name: "tokio_scheduling_delay_seconds",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Worst lateness of a task woken every 100 ms (10 ms while saturated, 1 s while idle) over the last 5 seconds, overdue wakes included",
    source: "a task on the service's runtime",
};

/// Seconds that the worker was busy since the agent started, a poll that still runs included.
pub const TOKIO_WORKER_BUSY: Family = Family {
    name: "tokio_worker_busy_seconds_total",
    kind: FamilyKind::Counter,
    labels: &["worker"],
    help: "Seconds that the worker was busy since the agent started, a poll that still runs included",
    source: "tokio worker_total_busy_duration and worker_park_unpark_count, sampled every second",
};

/// Seconds that the worker's thread was on a core.
pub const TOKIO_WORKER_CPU: Family = Family {
    name: "tokio_worker_cpu_seconds_total",
    kind: FamilyKind::Counter,
    labels: &["worker"],
    help: "Seconds that the worker's thread was on a core",
    source: "/proc/self/task/*/schedstat, first field",
};

/// Seconds that the worker's thread was ready to run and waited for a core.
pub const TOKIO_WORKER_RUNQUEUE_WAIT: Family = Family {
    name: "tokio_worker_runqueue_wait_seconds_total",
    kind: FamilyKind::Counter,
    labels: &["worker"],
    help: "Seconds that the worker's thread was ready to run and waited for a core",
    source: "/proc/self/task/*/schedstat, second field",
};

/// Bytes that the service has allocated and not freed.
pub const HEAP_ALLOCATED: Family = Family {
    name: "heap_allocated_bytes",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Bytes that the service has allocated and not freed",
    source: "jemalloc stats.allocated",
};

/// Bytes of the pages that hold allocations.
pub const HEAP_ACTIVE: Family = Family {
    name: "heap_active_bytes",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Bytes of the pages that hold allocations",
    source: "jemalloc stats.active",
};

/// Bytes that the allocator keeps in memory, its own data and unused pages included.
pub const HEAP_RESIDENT: Family = Family {
    name: "heap_resident_bytes",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Bytes that the allocator keeps in memory, its own data and unused pages included",
    source: "jemalloc stats.resident",
};

/// Bytes that the service has asked its allocator for since start.
pub const HEAP_ALLOCATION_BYTES: Family = Family {
    name: "heap_allocation_bytes_total",
    kind: FamilyKind::Counter,
    labels: &[],
    help: "Bytes that the service has asked its allocator for since start",
    source: "headroom::agent::Jemalloc as global allocator, else jemalloc's nrequests of each size class",
};

/// Allocations since start.
pub const HEAP_ALLOCATIONS: Family = Family {
    name: "heap_allocations_total",
    kind: FamilyKind::Counter,
    labels: &[],
    help: "Allocations since start",
    source: "headroom::agent::Jemalloc as global allocator, else jemalloc's nrequests of each size class",
};

/// CPU time of the process, user and system, in seconds.
pub const PROCESS_CPU: Family = Family {
    name: "process_cpu_seconds_total",
    kind: FamilyKind::Counter,
    labels: &[],
    help: "CPU time of the process, user and system, in seconds",
    source: "clock_gettime(CLOCK_PROCESS_CPUTIME_ID)",
};

/// Resident memory of the process in bytes.
pub const PROCESS_RESIDENT_MEMORY: Family = Family {
    name: "process_resident_memory_bytes",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Resident memory of the process in bytes",
    source: "/proc/self/stat",
};

/// Virtual memory of the process in bytes.
pub const PROCESS_VIRTUAL_MEMORY: Family = Family {
    name: "process_virtual_memory_bytes",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Virtual memory of the process in bytes",
    source: "/proc/self/stat",
};

/// Limit of virtual memory in bytes, absent without one.
pub const PROCESS_VIRTUAL_MEMORY_MAX: Family = Family {
    name: "process_virtual_memory_max_bytes",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Limit of virtual memory in bytes, absent without one",
    source: "/proc/self/limits",
};

/// Open file descriptors.
pub const PROCESS_OPEN_FDS: Family = Family {
    name: "process_open_fds",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Open file descriptors",
    source: "/proc/self/fd",
};

/// Limit of open file descriptors.
pub const PROCESS_MAX_FDS: Family = Family {
    name: "process_max_fds",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Limit of open file descriptors",
    source: "/proc/self/limits",
};

/// Start of the process in seconds since the Unix epoch.
pub const PROCESS_START_TIME: Family = Family {
    name: "process_start_time_seconds",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Start of the process in seconds since the Unix epoch",
    source: "/proc/self/stat, /proc/stat",
};

/// Threads of the process.
pub const PROCESS_THREADS: Family = Family {
    name: "process_threads",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Threads of the process",
    source: "/proc/self/stat",
};

/// Seconds that the process's threads were ready to run and waited for a core.
pub const PROCESS_RUNQUEUE_WAIT: Family = Family {
    name: super::RUNQUEUE_WAIT,
    kind: FamilyKind::Counter,
    labels: &[],
    help: "Seconds that the process's threads were ready to run and waited for a core",
    source: "/proc/self/task/*/schedstat",
};

/// CPU time of the cgroup in seconds.
pub const CGROUP_CPU_USAGE: Family = Family {
    name: "cgroup_cpu_usage_seconds_total",
    kind: FamilyKind::Counter,
    labels: &[],
    help: "CPU time of the cgroup in seconds",
    source: "cpu.stat usage_usec (v2), cpuacct.usage (v1)",
};

/// Seconds that threads were throttled in the cgroup with the least quota, summed over cores.
pub const CGROUP_CPU_THROTTLED: Family = Family {
    name: super::CGROUP_THROTTLED,
    kind: FamilyKind::Counter,
    labels: &[],
    help: "Seconds that threads were throttled in the cgroup with the least quota, summed over cores",
    source: "cpu.stat throttled_usec (v2), throttled_time (v1)",
};

/// Enforcement periods of the least CPU quota that have passed.
pub const CGROUP_CPU_PERIODS: Family = Family {
    name: super::CGROUP_PERIODS,
    kind: FamilyKind::Counter,
    labels: &[],
    help: "Enforcement periods of the least CPU quota that have passed",
    source: "cpu.stat nr_periods",
};

/// Enforcement periods in which the cgroup with the least quota was throttled.
pub const CGROUP_CPU_THROTTLED_PERIODS: Family = Family {
    name: super::CGROUP_THROTTLED_PERIODS,
    kind: FamilyKind::Counter,
    labels: &[],
    help: "Enforcement periods in which the cgroup with the least quota was throttled",
    source: "cpu.stat nr_throttled",
};

/// Least CPU quota of the cgroup and its visible ancestors in cores, absent without one.
pub const CGROUP_CPU_LIMIT: Family = Family {
    name: super::CGROUP_CPU_LIMIT,
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Least CPU quota of the cgroup and its visible ancestors in cores, absent without one",
    source: "cpu.max (v2), cpu.cfs_quota_us and cpu.cfs_period_us (v1)",
};

/// Memory of the cgroup without inactive page cache, as the kubelet counts it, in bytes.
pub const CGROUP_MEMORY_WORKING_SET: Family = Family {
    name: "cgroup_memory_working_set_bytes",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Memory of the cgroup without inactive page cache, as the kubelet counts it, in bytes",
    source: "memory.current (v2), memory.usage_in_bytes (v1), memory.stat",
};

/// Least memory limit of the cgroup and its visible ancestors in bytes, absent without one.
pub const CGROUP_MEMORY_LIMIT: Family = Family {
    name: "cgroup_memory_limit_bytes",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Least memory limit of the cgroup and its visible ancestors in bytes, absent without one",
    source: "memory.max (v2), memory.stat hierarchical_memory_limit (v1)",
};

/// Times that the cgroup's memory met a boundary, by event: low, high, max, oom, oom_kill, oom_group_kill.
pub const CGROUP_MEMORY_EVENTS: Family = Family {
    name: "cgroup_memory_events_total",
    kind: FamilyKind::Counter,
    labels: &["event"],
    help: "Times that the cgroup's memory met a boundary, by event: low, high, max, oom, oom_kill, oom_group_kill",
    source: "memory.events (v2), memory.failcnt and memory.oom_control (v1)",
};

/// Seconds that some or all (full) tasks waited for the resource.
pub const PRESSURE_STALL: Family = Family {
    name: "pressure_stall_seconds_total",
    kind: FamilyKind::Counter,
    labels: &["resource", "kind"],
    help: "Seconds that some or all (full) tasks waited for the resource",
    source: "{cpu,memory,io}.pressure of the cgroup (v2), else /proc/pressure",
};

/// Seconds from a request's arrival to the head of its response; an empty error_type is success.
pub const REQUEST_DURATION: Family = Family {
    name: super::REQUEST_DURATION,
    kind: FamilyKind::Histogram,
    labels: &["endpoint", "error_type", "status_code"],
    help: "Seconds from a request's arrival to the head of its response; an empty error_type is success",
    source: "HttpLayer",
};

/// Quantiles of the request durations of the last 50 to 60 s, for people; absent without a request in them.
pub const REQUEST_DURATION_QUANTILE: Family = Family {
    name: "http_server_request_duration_quantile_seconds",
    kind: FamilyKind::Gauge,
    labels: &["endpoint", "quantile"],
    help: "Quantiles of this process's request durations of the last 50 to 60 s, all outcomes; absent without a request in them, not to be averaged over processes",
    source: "HttpLayer",
};

/// Requests that have arrived and not been answered.
pub const REQUESTS_IN_FLIGHT: Family = Family {
    name: super::REQUESTS_IN_FLIGHT,
    kind: FamilyKind::Gauge,
    labels: &["endpoint"],
    help: "Requests that have arrived and not been answered",
    source: "HttpLayer",
};

/// Requests that have arrived; their rate is the arrival rate.
pub const REQUESTS_STARTED: Family = Family {
    name: "http_server_requests_started_total",
    kind: FamilyKind::Counter,
    labels: &["endpoint"],
    help: "Requests that have arrived; their rate is the arrival rate",
    source: "HttpLayer",
};

/// Seconds that workers spent inside polls of requests.
pub const REQUEST_BUSY: Family = Family {
    name: super::REQUEST_BUSY,
    kind: FamilyKind::Counter,
    labels: &["endpoint"],
    help: "Seconds that workers spent inside polls of requests",
    source: "HttpLayer",
};

/// Always 1; which service this is, and the version of the agent in it.
pub const AGENT_INFO: Family = Family {
    name: "headroom_agent_info",
    kind: FamilyKind::Gauge,
    labels: &["service", "version"],
    help: "Always 1; which service this is, and the version of the agent in it",
    source: "the builder",
};

/// 1 if the source could be read at this scrape, 0 if not; the reason is in the log at level debug.
pub const AGENT_SOURCE_AVAILABLE: Family = Family {
    name: "headroom_agent_source_available",
    kind: FamilyKind::Gauge,
    labels: &["source"],
    help: "1 if the source could be read at this scrape, 0 if not; the reason is in the log at level debug",
    source: "the collectors",
};

/// Seconds that the last reading of all sources took.
pub const AGENT_COLLECTION_SECONDS: Family = Family {
    name: "headroom_agent_collection_seconds",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Seconds that the last reading of all sources took",
    source: "the agent",
};

/// Requests recorded under the endpoint other, because the limit of endpoints or histograms was reached.
pub const AGENT_REQUESTS_FOLDED: Family = Family {
    name: "headroom_agent_http_requests_folded_total",
    kind: FamilyKind::Counter,
    labels: &[],
    help: "Requests recorded under the endpoint other, because the limit of endpoints or histograms was reached",
    source: "HttpLayer",
};

/// Connections to the agent closed to make room for a new one.
pub const AGENT_CONNECTIONS_EVICTED: Family = Family {
    name: "headroom_agent_connections_evicted_total",
    kind: FamilyKind::Counter,
    labels: &[],
    help: "Connections to the agent closed to make room for a new one",
    source: "the agent",
};

/// CPU samples that no profile has or that are not whole, by reason.
pub const AGENT_PROFILE_SAMPLES_LOST: Family = Family {
    name: "headroom_agent_profile_samples_lost_total",
    kind: FamilyKind::Counter,
    labels: &["reason"],
    help: "CPU samples that no profile has (ring_full, stacks_full, no_timer, thread_unseen) or that are not whole (callers_unknown, stack_cut, walk_broken, untraced)",
    source: "the CPU sampler",
};

/// Sidecar only: 1 if the service beside it answered this scrape with its metrics, 0 if not.
pub const AGENT_TARGET_UP: Family = Family {
    name: "headroom_agent_target_up",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Sidecar only: 1 if the service beside it answered this scrape with its metrics, 0 if not",
    source: "the sidecar",
};

/// Memory of the machine that can be had without swapping, in bytes.
pub const HOST_MEMORY_AVAILABLE: Family = Family {
    name: "headroom_agent_host_memory_available_bytes",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "Memory of the machine that can be had without swapping, in bytes",
    source: "/proc/meminfo MemAvailable",
};

/// CPUs of the machine.
pub const HOST_CPU_COUNT: Family = Family {
    name: "headroom_agent_host_cpu_count",
    kind: FamilyKind::Gauge,
    labels: &[],
    help: "CPUs of the machine",
    source: "sysinfo",
};
