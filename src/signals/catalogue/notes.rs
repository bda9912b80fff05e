//! How to read each family, and when it misleads: what its help text has no room for.
//!
//! In: nothing. Out: one [`Note`] per family of the catalogue, in its order. Never: a family without a note; a test holds it,
//! and generates docs/signals.md from both.

/// What a person should know before a threshold or an alert is put on a family.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// The family's name.
    pub family: &'static str,
    /// What a value tells, and what to compare it with.
    pub reading: &'static str,
    /// When it says something else than it seems to.
    pub misleads: &'static str,
}

const fn note(family: &'static str, reading: &'static str, misleads: &'static str) -> Note {
    Note { family, reading, misleads }
}

/// One note per family.
pub const NOTES: &[Note] = &[
    note(
        "tokio_alive_tasks",
        "Work that the service holds: connections, requests, background loops. Compare it with its value without load (`base` in a policy). It grows with a queue.",
        "Idle connections are tasks too, so a service with long-lived clients has many without working. Tasks of other runtimes in the process are not in it, nor are the agent's.",
    ),
    note(
        "tokio_workers",
        "The most that `tokio_saturation_ratio` and `tokio_blocked_workers` speak of. Set it near the CPU limit.",
        "In a container without `worker_threads` set it follows the machine's cores or the quota, whichever the standard library sees.",
    ),
    note(
        "tokio_global_queue_depth",
        "Over 0 for more than a moment: tasks spawned from outside the runtime arrive faster than workers take them.",
        "Work waits in the workers' own queues first, so a saturated runtime may well read 0. Use saturation and delay instead.",
    ),
    note(
        "tokio_saturation_ratio",
        "0 is idle, 1 is every worker in use for the whole second. From 0.9 on requests wait for a worker. A worker that one poll holds counts as in use from the first tick after the poll began, the second at the latest.",
        "In use is wall time inside polls: a worker that sleeps in a blocking call, or waits for a core, is in use. Compare it with `tokio_worker_cpu_seconds_total`. After a burst it may read low for one or two ticks.",
    ),
    note(
        "tokio_blocked_workers",
        "Over 0: a poll has run for a second or more without an await. Something computes or blocks in async code; `/debug/pprof/profile` shows which, if it computes.",
        "A poll of just under a second can fall between two ticks. A worker that the machine gives no core reads as blocked as well.",
    ),
    note(
        "tokio_scheduling_delay_seconds",
        "What a request waits before its first poll, at worst. Under a millisecond is normal, tens of milliseconds are overload or blocking polls.",
        "It is the worst of a window, not an average, and not to be averaged across pods. It stays up for 5 s after one late wake. While the runtime is saturated ten times as many wakes are looked at, so it finds rarer ones. While the process uses less than a hundredth of a core only one a second is: nothing waits there but what a busy neighbour on the machine delays, and a stall of under a second may pass unseen.",
    ),
    note(
        "tokio_worker_busy_seconds_total",
        "The rate is the share of time that the worker was in use. Workers that differ much have few, long tasks.",
        "Wall time, as in `tokio_saturation_ratio`. It is sampled once a second and carries that time. Workers from the 65th on share the label value `other`.",
    ),
    note(
        "tokio_worker_cpu_seconds_total",
        "The rate is the cores that the worker used. Busy minus this minus the run-queue wait is time blocked in system calls, or throttled.",
        "Absent until a task of the agent has run on that worker; an idle worker may never be met. After `block_in_place` the worker has another thread, found within 30 s; what it does until then is not counted.",
    ),
    note(
        "tokio_worker_runqueue_wait_seconds_total",
        "The rate is the share of time in which the worker wanted a core and had none: too many threads for the cores, or neighbours on the machine.",
        "Time under CFS throttling is not in it on every kernel; `cgroup_cpu_throttled_seconds_total` has that. Absent as its sibling is.",
    ),
    note(
        "heap_allocated_bytes",
        "What the service holds. A rise without load is a leak; `/debug/pprof/heap` names who allocated it.",
        "Stacks, mapped files and memory of C libraries are not in it. What jemalloc keeps for heap profiles is: some kilobytes for each thread that was sampled, also when it has ended, so a service that starts threads without end grows by that.",
    ),
    note(
        "heap_active_bytes",
        "Much more than `heap_allocated_bytes`: the heap is fragmented.",
        "Whole pages, so it is never less than the allocated bytes.",
    ),
    note(
        "heap_resident_bytes",
        "What the allocator costs the memory limit. jemalloc gives unused pages back over about 10 s.",
        "With transparent huge pages it can be less than what the kernel counts.",
    ),
    note(
        "heap_allocation_bytes_total",
        "The rate is work for the allocator, and follows the requests served. It can rise while the heap does not.",
        "Bytes asked for, with `profiled_jemalloc!`. With plain `tikv_jemallocator` jemalloc's own counts stand in: sizes rounded up to their class, and a thread that allocates and frees one size over and over adds its allocations late, in one step. With another allocator it is absent.",
    ),
    note(
        "heap_allocations_total",
        "Bytes over allocations is the mean size; many small ones cost more CPU than few large.",
        "As `heap_allocation_bytes_total`. A `realloc` counts as one.",
    ),
    note(
        "process_cpu_seconds_total",
        "The rate is the cores in use. Compare it with `cgroup_cpu_limit_cores`.",
        "Used cores say nothing of a wish for more: at the limit they stand still. Child processes are not in it; `cgroup_cpu_usage_seconds_total` has them.",
    ),
    note(
        "process_resident_memory_bytes",
        "Memory of this process in RAM.",
        "Pages of files count, and pages shared with other processes in each. The kernel kills by the cgroup's memory, so compare `cgroup_memory_working_set_bytes` with the limit. The kernel updates it per thread, and it may lag by some pages.",
    ),
    note(
        "process_virtual_memory_bytes",
        "Address space. Of use only beside `process_virtual_memory_max_bytes`.",
        "Allocators reserve far more than they use.",
    ),
    note(
        "process_virtual_memory_max_bytes",
        "Allocation fails when `process_virtual_memory_bytes` reaches it.",
        "Usually absent, since usually there is no such limit (`ulimit -v`).",
    ),
    note(
        "process_open_fds",
        "Near `process_max_fds` new connections fail. A rise without load is a leak.",
        "The agent's own sockets and profiles are in it.",
    ),
    note(
        "process_max_fds",
        "The soft limit (`ulimit -n`).",
        "The service may raise it up to its hard limit; the value is read at each scrape.",
    ),
    note(
        "process_start_time_seconds",
        "A change is a restart, after which counters begin at 0.",
        "Derived from the boot time, which moves when the machine's clock is set.",
    ),
    note(
        "process_threads",
        "Workers, blocking threads and the agent's. Growth is blocking work that does not end.",
        "tokio keeps idle blocking threads for 10 s.",
    ),
    note(
        "process_runqueue_wait_seconds_total",
        "The rate is the number of threads that wanted a core and had none, on average.",
        "It measures queue length and noisy neighbours, not demand: below the CPU limit a policy does not count it. Absent from 512 threads on, and where the kernel keeps no schedstat (gVisor). What a thread waited between the last scrape and its end is lost.",
    ),
    note(
        "cgroup_cpu_usage_seconds_total",
        "As `process_cpu_seconds_total`, with every process of the container.",
        "Absent in a root cgroup, where it would be the machine's.",
    ),
    note(
        "cgroup_cpu_throttled_seconds_total",
        "The rate is how many threads stood still because the quota of the period was used up. Over 0: the service wants more than its limit.",
        "Summed over cores, so it can exceed the time that passed. Where an ancestor's quota is the least it is that cgroup's, other containers included. Inside a cgroup namespace ancestors are invisible, and a throttled container then reads 0.",
    ),
    note(
        "cgroup_cpu_periods_total",
        "The denominator of the throttled share. A period is 100 ms unless set otherwise.",
        "It advances only while something in the cgroup runs.",
    ),
    note(
        "cgroup_cpu_throttled_periods_total",
        "Its rate over the rate of `cgroup_cpu_periods_total` is the share of periods that ran into the quota. A policy takes half and more as saturation.",
        "One busy moment at the end of a period counts as much as a period without any CPU.",
    ),
    note(
        "cgroup_cpu_limit_cores",
        "What `process_cpu_seconds_total` can rise to.",
        "Absent is no limit that can be seen: an ancestor's is hidden by a cgroup namespace, the default of containers on v2. The pod's `resources.limits` then knows more.",
    ),
    note(
        "cgroup_memory_working_set_bytes",
        "What `kubectl top` shows, and what the kernel cannot reclaim easily. At `cgroup_memory_limit_bytes` the container is killed.",
        "Active page cache is in it though it can be reclaimed: a service that reads files can sit near its limit and be well.",
    ),
    note(
        "cgroup_memory_limit_bytes",
        "The least of the cgroup's and its ancestors' limits.",
        "As `cgroup_cpu_limit_cores`. On v1 the kernel itself takes hidden ancestors into account.",
    ),
    note(
        "cgroup_memory_events_total",
        "`max`: allocations had to wait for reclaim at the limit. `oom_kill`: a process was killed; if it was this one, the counter is read after the restart of the container only where the cgroup is the same. `high`: the same for `memory.high`.",
        "On v1 only `max` (failed charges) and `oom_kill` exist. Kernels add events; those outside the list are left out.",
    ),
    note(
        "pressure_stall_seconds_total",
        "The rate of `some` is the share of time in which at least one task waited for the resource, of `full` that in which nothing ran because all did. CPU `some` over 0.2 is contention, memory `full` over 0.05 is thrashing.",
        "Of the cgroup where it has pressure files (source `psi_cgroup`), else of the whole machine (source `psi_machine`), neighbours included. CPU `full` of the machine is always 0 and left out. Absent with `psi=0` and in gVisor.",
    ),
    note(
        "http_server_request_duration_seconds",
        "Latency by endpoint. Add the buckets of all pods, then take the quantile.",
        "It ends at the head of the response: the time to send a body is not in it. The agent does not see a request before the service accepts its connection.",
    ),
    note(
        "http_server_request_duration_quantile_seconds",
        "What a person wants to see of one process at a glance: half, nine tenths, 99 and 99.9 percent of the last minute's requests were at most this slow.",
        "It is this process's alone: never average it over pods, take `histogram_quantile` of the summed buckets instead. Of few requests the high quantiles are the slowest one.",
    ),
    note(
        "http_server_requests_in_flight",
        "Requests per second times mean duration, as long as the service keeps up; more is a backlog.",
        "Long polls and streams until their head are in flight without work.",
    ),
    note(
        "http_server_requests_started_total",
        "`rate()` of it is the arrival rate: what the service is asked to do, whether or not it keeps up. Above the rate of completed requests, a backlog grows.",
        "Requests that match no route count as `unmatched`; clients that retry count each time.",
    ),
    note(
        "http_server_request_busy_seconds_total",
        "Divided by the completed requests: the time that a request keeps a worker.",
        "Wall time inside polls. What a request does in spawned tasks or on blocking threads is not in it.",
    ),
    note(
        "headroom_agent_info",
        "Join it to name the service and the agent's version.",
        "The service's name is what the builder was given, not the Deployment's.",
    ),
    note(
        "headroom_agent_source_available",
        "0: the families of that source are absent from this scrape, with a reason that the agent can tell. Absent is never 0.",
        "Sources that are optional (`psi_machine` in gVisor) stay 0 for ever, and that is well.",
    ),
    note(
        "headroom_agent_collection_seconds",
        "What a scrape costs. Usually under a millisecond.",
        "Wall time: a throttled service reads high.",
    ),
    note(
        "headroom_agent_http_requests_folded_total",
        "Over 0: more endpoints than the layer keeps apart. Name routes by their pattern, not by their path.",
        "The requests are still counted, as endpoint `other`.",
    ),
    note(
        "headroom_agent_connections_evicted_total",
        "Over 0: something opens connections to the agent and keeps them.",
        "Closing an idle connection of a scraper does no harm; it opens another.",
    ),
    note(
        "headroom_agent_profile_samples_lost_total",
        "Over 0: a profile shows less than the whole, and its comments say so. `ring_full` and `stacks_full` are lack of room, `no_timer` a limit of pending signals or over 1024 threads, `thread_unseen` CPU time of threads that ended before they were looked at; of `callers_unknown`, `stack_cut` and `walk_broken` the stack is not whole, of `untraced` the trace is missing.",
        "`callers_unknown` grows in code built without frame pointers (`-C force-frame-pointers=yes`); its CPU time is still right.",
    ),
    note(
        "headroom_agent_target_up",
        "Of a sidecar: 0 means that the service beside it did not answer this scrape; its families are then absent, those of the process and cgroup are not.",
        "1 says that the metrics were served, not that the service is healthy.",
    ),
    note(
        "headroom_agent_host_memory_available_bytes",
        "Memory left on the node. Low: pods will be evicted.",
        "It is the node's. No limit of the container is in it.",
    ),
    note(
        "headroom_agent_host_cpu_count",
        "To read `tokio_workers` by.",
        "It is the node's. The container's is `cgroup_cpu_limit_cores`.",
    ),
];
