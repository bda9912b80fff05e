//! What the cgroup and pressure collectors read on each platform of tests/fixtures/kernel, and why they read no more.

use std::path::PathBuf;

use super::cgroup::CgroupCollector;
use super::psi::PsiCollector;
use super::snapshot::Snapshot;
use super::text::Schedstat;
use super::threads::Threads;
use crate::telemetry::error_chain;

fn tree(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kernel").join(name)
}

/// Compares `name{label,label} value` of every series, and `source: reason` of every source without values. In a reason `/`
/// stands for the root of the tree.
fn check(platform: &str, values: &[&str], reasons: &[&str]) {
    let root = tree(platform);
    let mut snapshot = Snapshot::default();
    let mut cgroup = CgroupCollector::new(&root);
    cgroup.collect(&mut snapshot);
    PsiCollector::new(&root).collect(cgroup.unified_directory(), &mut snapshot);
    let series = snapshot.readings().iter().map(|reading| {
        let labels = match reading.labels().join(",") {
            labels if labels.is_empty() => labels,
            labels => format!("{{{labels}}}"),
        };
        format!("{}{labels} {}", reading.family.name, reading.value)
    });
    assert_eq!(series.collect::<Vec<_>>(), values, "{platform}");
    let reason = |(source, outcome): &(&str, Result<(), super::Unavailable>)| {
        let error = outcome.as_ref().err()?;
        let text = error_chain(error).replace(&root.display().to_string(), "");
        Some(format!("{source}: {text}"))
    };
    let missing: Vec<_> = snapshot.sources().iter().filter_map(reason).collect();
    assert_eq!(missing, reasons, "{platform}");
}

#[test]
fn a_pod_on_v2_with_its_own_limits_and_pressure() {
    check(
        "pod-v2",
        &[
            "cgroup_cpu_limit_cores 0.2",
            "cgroup_cpu_usage_seconds_total 2.5",
            "cgroup_cpu_throttled_seconds_total 1.25",
            "cgroup_cpu_periods_total 40",
            "cgroup_cpu_throttled_periods_total 10",
            "cgroup_memory_working_set_bytes 50000000",
            "cgroup_memory_limit_bytes 268435456",
            "cgroup_memory_events_total{low} 0",
            "cgroup_memory_events_total{high} 0",
            "cgroup_memory_events_total{max} 3",
            "cgroup_memory_events_total{oom} 1",
            "cgroup_memory_events_total{oom_kill} 1",
            "cgroup_memory_events_total{oom_group_kill} 0",
            "pressure_stall_seconds_total{cpu,some} 1.5",
            "pressure_stall_seconds_total{cpu,full} 1.4",
            "pressure_stall_seconds_total{memory,some} 0",
            "pressure_stall_seconds_total{memory,full} 0",
            "pressure_stall_seconds_total{io,some} 0.25",
            "pressure_stall_seconds_total{io,full} 0.2",
        ],
        &[],
    );
}

#[test]
fn a_service_in_a_slice_has_the_slice_s_tighter_limits_and_throttling_and_its_own_use() {
    check(
        "systemd-v2",
        &[
            "cgroup_cpu_limit_cores 1.5",
            "cgroup_cpu_usage_seconds_total 1",
            "cgroup_cpu_throttled_seconds_total 4",
            "cgroup_cpu_periods_total 50",
            "cgroup_cpu_throttled_periods_total 20",
            "cgroup_memory_working_set_bytes 5000000",
            "cgroup_memory_limit_bytes 1073741824",
            "cgroup_memory_events_total{low} 0",
            "cgroup_memory_events_total{high} 0",
            "cgroup_memory_events_total{max} 0",
            "cgroup_memory_events_total{oom} 0",
            "cgroup_memory_events_total{oom_kill} 0",
            "cgroup_memory_events_total{oom_group_kill} 0",
            "pressure_stall_seconds_total{cpu,some} 0.00007",
            "pressure_stall_seconds_total{cpu,full} 0.00006",
            "pressure_stall_seconds_total{memory,some} 0",
            "pressure_stall_seconds_total{memory,full} 0",
            "pressure_stall_seconds_total{io,some} 0",
            "pressure_stall_seconds_total{io,full} 0",
        ],
        &[],
    );
}

#[test]
fn a_pod_on_v1_without_a_cgroup_namespace_reads_the_machine_s_pressure() {
    check(
        "pod-v1",
        &[
            "cgroup_cpu_limit_cores 0.5",
            "cgroup_cpu_usage_seconds_total 6",
            "cgroup_cpu_throttled_seconds_total 2.5",
            "cgroup_cpu_periods_total 120",
            "cgroup_cpu_throttled_periods_total 30",
            "cgroup_memory_working_set_bytes 600000",
            "cgroup_memory_limit_bytes 536870912",
            "cgroup_memory_events_total{max} 6",
            "cgroup_memory_events_total{oom_kill} 2",
            "pressure_stall_seconds_total{cpu,some} 7",
            "pressure_stall_seconds_total{memory,some} 0",
            "pressure_stall_seconds_total{memory,full} 0",
            "pressure_stall_seconds_total{io,some} 0",
            "pressure_stall_seconds_total{io,full} 0",
        ],
        &[],
    );
}

#[test]
fn an_unlimited_v1_cgroup_in_a_limited_one_has_the_limits_of_that_one() {
    check(
        "linux-6.18-hybrid",
        &[
            "cgroup_cpu_limit_cores 0.2",
            "cgroup_cpu_usage_seconds_total 0.238918454",
            "cgroup_cpu_throttled_seconds_total 0.88129495",
            "cgroup_cpu_periods_total 12",
            "cgroup_cpu_throttled_periods_total 11",
            "cgroup_memory_working_set_bytes 548864",
            "cgroup_memory_limit_bytes 268435456",
            "cgroup_memory_events_total{max} 0",
            "cgroup_memory_events_total{oom_kill} 0",
            "pressure_stall_seconds_total{cpu,some} 0.730888",
            "pressure_stall_seconds_total{cpu,full} 0.730764",
            "pressure_stall_seconds_total{memory,some} 0",
            "pressure_stall_seconds_total{memory,full} 0",
            "pressure_stall_seconds_total{io,some} 0.000054",
            "pressure_stall_seconds_total{io,full} 0.000054",
        ],
        &[],
    );
}

#[test]
fn gvisor_shows_a_quota_and_usage_and_a_reason_for_what_it_lacks() {
    check(
        "gvisor",
        &["cgroup_cpu_limit_cores 0.25", "cgroup_cpu_usage_seconds_total 1.5"],
        &[
            "cgroup_cpu: cannot read /sys/fs/cgroup/cpu/cpu.stat: No such file or directory (os error 2)",
            "cgroup_memory: cannot read /sys/fs/cgroup/memory/memory.stat: No such file or directory (os error 2)",
            "psi_machine: cannot read /proc/pressure/cpu: No such file or directory (os error 2)",
        ],
    );
}

#[test]
fn the_root_cgroup_is_the_machine_and_is_left_out() {
    check(
        "root-v2",
        &[
            "pressure_stall_seconds_total{cpu,some} 0.000005",
            "pressure_stall_seconds_total{memory,some} 0.000003",
            "pressure_stall_seconds_total{memory,full} 0.000002",
            "pressure_stall_seconds_total{io,some} 0.000004",
            "pressure_stall_seconds_total{io,full} 0.000001",
        ],
        &[
            "cgroup_cpu: the process is in the root cgroup, whose figures are the machine's",
            "cgroup_memory: the process is in the root cgroup, whose figures are the machine's",
        ],
    );
}

#[test]
fn a_system_without_cgroups_has_reasons_and_no_values() {
    check(
        "no-cgroups",
        &[],
        &[
            "cgroup_cpu: no cgroup has the cpu controller",
            "cgroup_memory: no cgroup has the memory controller",
            "psi_machine: cannot read /proc/pressure/cpu: No such file or directory (os error 2)",
        ],
    );
}

#[test]
fn threads_are_found_with_what_the_scheduler_counted() {
    let mut threads = Threads::of(&tree("linux-6.18-hybrid").join("proc/self"));
    let found = threads.read_all().expect("a captured thread");
    assert_eq!(found.counted, [(13_713, Schedstat { on_cpu_nanos: 0, waiting_nanos: 41_923 })]);
    assert!(Threads::of(&tree("gvisor").join("proc/self")).read_all().is_err());
}
