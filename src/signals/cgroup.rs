//! CPU and memory of this process's cgroup: use, limits, throttling.
//!
//! In: `/proc/self/cgroup`, `/proc/self/mountinfo` and the cgroup's files, v2 or v1 (also mixed). Out: the `cgroup_*` families.
//! Never: a guess, 0 for "no limit", or the machine's figures under the workload's name: the root cgroup is left out.
//!
//! A limit that only an ancestor sets is not seen: in a cgroup namespace it cannot be.
//!
//! Files: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, scheduler/sched-bwc.rst.

use std::path::{Path, PathBuf};

use super::catalogue::families;
use super::kernel_file::read;
use super::snapshot::{Snapshot, Unavailable};

mod location;
use location::{Controller, Location};

/// The events that are counted; others are left out, so that the label stays a closed set.
const EVENTS: [&str; 6] = ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"];

/// v1 writes the largest multiple of the page size for "no limit"; nothing real comes near.
const V1_NO_MEMORY_LIMIT: u64 = 1 << 62;

/// Reads the cgroup. Where it lies is looked up again when `/proc/self/cgroup` changes.
#[derive(Debug)]
pub struct CgroupCollector {
    root: PathBuf,
    /// The procfs directory of the process.
    process: PathBuf,
    membership: String,
    location: Location,
}

impl CgroupCollector {
    /// `root` is `/`, or a directory with a copy of the files below it.
    #[must_use]
    pub fn new(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref().to_owned();
        let process = root.join("proc/self");
        Self { root, process, membership: String::new(), location: Location::default() }
    }

    /// The cgroup of another process, through the file system that it sees: a container's own cgroup is mounted nowhere else.
    /// The kernel lets its own user in, and those who may trace it (ptrace(2), access mode READ).
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let root = process.join("root");
        Self { root, process, membership: String::new(), location: Location::default() }
    }

    /// Adds the cgroup families.
    pub fn collect(&mut self, snapshot: &mut Snapshot) {
        let located = self.locate();
        let (cpu, memory) = match located {
            Ok(()) => {
                (collect_cpu(&self.location, snapshot), collect_memory(&self.location, snapshot))
            }
            Err(error) => (Err(error), Err(Unavailable::NotHere("the cgroup is not known"))),
        };
        snapshot.source("cgroup_cpu", cpu);
        snapshot.source("cgroup_memory", memory);
    }

    /// The cgroup's v2 directory as of the last collection, unless it is the root cgroup.
    #[must_use]
    pub fn unified_directory(&self) -> Option<&Path> {
        let unified = self.location.unified.as_ref().filter(|found| !found.is_root)?;
        Some(&unified.directory)
    }

    fn locate(&mut self) -> Result<(), Unavailable> {
        let membership = read(&self.process.join("cgroup"))?;
        if membership != self.membership {
            // What may not be looked into would read as a cgroup that is not there.
            if let Err(source) = std::fs::metadata(&self.root) {
                return Err(Unavailable::Read { path: self.root.clone(), source });
            }
            let mounts = read(&self.process.join("mountinfo"))?;
            self.location = Location::find(&membership, &mounts, &self.root, is_root);
            self.membership = membership;
        }
        Ok(())
    }
}

fn collect_cpu(location: &Location, snapshot: &mut Snapshot) -> Result<(), Unavailable> {
    match &location.cpu {
        None => Err(Unavailable::NotHere("no cgroup has the cpu controller")),
        Some(Controller { is_root: true, .. }) => Err(ROOT),
        Some(Controller { directory, unified: true, .. }) => {
            let stat = KeyedFile::read(&directory.join("cpu.stat"))?;
            push_if(snapshot, &families::CGROUP_CPU_USAGE, stat.get("usage_usec"), 1e6);
            push_throttling(&stat, stat.get("throttled_usec"), 1e6, snapshot);
            push_if(
                snapshot,
                &families::CGROUP_CPU_LIMIT,
                cpu_max(&directory.join("cpu.max"))?,
                1.0,
            );
            Ok(())
        }
        Some(Controller { directory, unified: false, .. }) => {
            let stat = KeyedFile::read(&directory.join("cpu.stat"))?;
            push_throttling(&stat, stat.get("throttled_time"), 1e9, snapshot);
            push_if(snapshot, &families::CGROUP_CPU_LIMIT, cfs_quota(directory)?, 1.0);
            // cpuacct may be mounted apart from cpu; where the process is in its root, use is not known.
            if let Some(cpuacct) = location.cpuacct.as_ref().filter(|found| !found.is_root) {
                let usage = number(&cpuacct.directory.join("cpuacct.usage"))?;
                push_if(snapshot, &families::CGROUP_CPU_USAGE, Some(usage as f64), 1e9);
            }
            Ok(())
        }
    }
}

fn collect_memory(location: &Location, snapshot: &mut Snapshot) -> Result<(), Unavailable> {
    let Some(Controller { directory, unified, is_root }) = &location.memory else {
        return Err(Unavailable::NotHere("no cgroup has the memory controller"));
    };
    if *is_root {
        return Err(ROOT);
    }
    let (current, inactive, limit) = if *unified {
        ("memory.current", "inactive_file", memory_max(&directory.join("memory.max"))?)
    } else {
        let limit = number(&directory.join("memory.limit_in_bytes"))?;
        let limit = (limit < V1_NO_MEMORY_LIMIT).then_some(limit);
        ("memory.usage_in_bytes", "total_inactive_file", limit)
    };
    let current = number(&directory.join(current))?;
    let stat = directory.join("memory.stat");
    let inactive_bytes =
        KeyedFile::read(&stat)?.get(inactive).ok_or(Unavailable::Malformed { path: stat })?;
    let working_set = (current as f64 - inactive_bytes).max(0.0);
    push_if(snapshot, &families::CGROUP_MEMORY_WORKING_SET, Some(working_set), 1.0);
    push_if(snapshot, &families::CGROUP_MEMORY_LIMIT, limit.map(|bytes| bytes as f64), 1.0);
    let events = if *unified {
        KeyedFile::read(&directory.join("memory.events"))?
    } else {
        push_event(snapshot, "max", Some(number(&directory.join("memory.failcnt"))? as f64));
        KeyedFile::read(&directory.join("memory.oom_control"))?
    };
    for event in EVENTS {
        push_event(snapshot, event, events.get(event));
    }
    Ok(())
}

const ROOT: Unavailable =
    Unavailable::NotHere("the process is in the root cgroup, whose figures are the machine's");

/// Only a root cgroup has `release_agent` (v1), and only a root has no `cgroup.events` (v2). A cgroup namespace does not hide
/// that: what looks like the root in it has the files of an ordinary cgroup.
fn is_root(directory: &Path, unified: bool) -> bool {
    if unified {
        !directory.join("cgroup.events").exists()
    } else {
        directory.join("release_agent").exists()
    }
}

fn push_throttling(
    stat: &KeyedFile,
    throttled: Option<f64>,
    per_second: f64,
    snapshot: &mut Snapshot,
) {
    push_if(snapshot, &families::CGROUP_CPU_THROTTLED, throttled, per_second);
    push_if(snapshot, &families::CGROUP_CPU_PERIODS, stat.get("nr_periods"), 1.0);
    push_if(snapshot, &families::CGROUP_CPU_THROTTLED_PERIODS, stat.get("nr_throttled"), 1.0);
}

fn push_if(
    snapshot: &mut Snapshot,
    family: &'static super::Family,
    value: Option<f64>,
    divisor: f64,
) {
    if let Some(value) = value {
        snapshot.push(family, value / divisor);
    }
}

fn push_event(snapshot: &mut Snapshot, event: &'static str, count: Option<f64>) {
    if let Some(count) = count {
        snapshot.push_labelled(&families::CGROUP_MEMORY_EVENTS, &[event], count);
    }
}

/// `cpu.max`: `$MAX $PERIOD` in microseconds, or `max $PERIOD`. In cores.
fn cpu_max(file: &Path) -> Result<Option<f64>, Unavailable> {
    let text = read(file)?;
    let malformed = || Unavailable::Malformed { path: file.to_owned() };
    let (quota, period) = text.trim_end().split_once(' ').ok_or_else(malformed)?;
    if quota == "max" {
        return Ok(None);
    }
    let quota: u64 = quota.parse().map_err(|_| malformed())?;
    let period: u64 = period.parse().map_err(|_| malformed())?;
    if period == 0 { Err(malformed()) } else { Ok(Some(quota as f64 / period as f64)) }
}

/// `cpu.cfs_quota_us` (-1: none) over `cpu.cfs_period_us`. In cores.
fn cfs_quota(directory: &Path) -> Result<Option<f64>, Unavailable> {
    let file = directory.join("cpu.cfs_quota_us");
    if read(&file)?.trim_end() == "-1" {
        return Ok(None);
    }
    let period = directory.join("cpu.cfs_period_us");
    match number(&period)? {
        0 => Err(Unavailable::Malformed { path: period }),
        period_micros => Ok(Some(number(&file)? as f64 / period_micros as f64)),
    }
}

/// `memory.max`: bytes, or `max` for no limit.
fn memory_max(file: &Path) -> Result<Option<u64>, Unavailable> {
    if read(file)?.trim_end() == "max" { Ok(None) } else { number(file).map(Some) }
}

fn number(file: &Path) -> Result<u64, Unavailable> {
    let malformed = |_| Unavailable::Malformed { path: file.to_owned() };
    read(file)?.trim_end().parse().map_err(malformed)
}

/// A file of `key value` lines. Kernels add keys; a key that is not there has no value.
struct KeyedFile(String);

impl KeyedFile {
    fn read(file: &Path) -> Result<Self, Unavailable> {
        read(file).map(Self)
    }

    fn get(&self, key: &str) -> Option<f64> {
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            (name == key).then_some(value)?.trim_end().parse::<u64>().ok()
        };
        self.0.lines().find_map(pair).map(|value| value as f64)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Writes `files` below a root, collects, and compares `name{label} value` lines of the families.
    fn check(files: &[(&str, &str)], expected: &[&str], unavailable: &[&str]) {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("a file has a parent")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        let mut snapshot = Snapshot::default();
        CgroupCollector::new(root.path()).collect(&mut snapshot);
        let lines: Vec<String> = snapshot
            .readings()
            .iter()
            .map(|reading| {
                format!("{} {} {}", reading.family.name, reading.labels.join(","), reading.value)
            })
            .collect();
        assert_eq!(lines, expected);
        let missing = snapshot.sources().iter().filter(|(_, outcome)| outcome.is_err());
        assert_eq!(missing.map(|(source, _)| *source).collect::<Vec<_>>(), unavailable);
    }

    const V2_MOUNT: &str = "1490 1483 0:31 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n";

    #[test]
    fn a_container_with_limits_on_v2() {
        // cgroup v2 as a pod with `cpu: 200m, memory: 256Mi` sees it; keys as Linux 6.18 writes them.
        check(
            &[
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mountinfo", V2_MOUNT),
                ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
                ("sys/fs/cgroup/cgroup.events", "populated 1\nfrozen 0\n"),
                (
                    "sys/fs/cgroup/cpu.stat",
                    "usage_usec 2500000\nuser_usec 1\nsystem_usec 2\nnice_usec 0\nnr_periods 40\nnr_throttled 10\n\
                     throttled_usec 1250000\nnr_bursts 0\nburst_usec 0\n",
                ),
                ("sys/fs/cgroup/cpu.max", "20000 100000\n"),
                ("sys/fs/cgroup/memory.current", "52428800\n"),
                ("sys/fs/cgroup/memory.max", "268435456\n"),
                ("sys/fs/cgroup/memory.stat", "anon 1\ninactive_anon 7\ninactive_file 2428800\n"),
                (
                    "sys/fs/cgroup/memory.events",
                    "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\nsock_throttled 9\n",
                ),
            ],
            &[
                "cgroup_cpu_usage_seconds_total  2.5",
                "cgroup_cpu_throttled_seconds_total  1.25",
                "cgroup_cpu_periods_total  40",
                "cgroup_cpu_throttled_periods_total  10",
                "cgroup_cpu_limit_cores  0.2",
                "cgroup_memory_working_set_bytes  50000000",
                "cgroup_memory_limit_bytes  268435456",
                "cgroup_memory_events_total low 0",
                "cgroup_memory_events_total high 0",
                "cgroup_memory_events_total max 3",
                "cgroup_memory_events_total oom 1",
                "cgroup_memory_events_total oom_kill 1",
                "cgroup_memory_events_total oom_group_kill 0",
            ],
            &[],
        );
    }

    #[test]
    fn no_quota_is_no_limit_and_not_zero() {
        check(
            &[
                ("proc/self/cgroup", "0::/user.slice/app.scope\n"),
                ("proc/self/mountinfo", V2_MOUNT),
                ("sys/fs/cgroup/user.slice/app.scope/cgroup.controllers", "cpu\n"),
                ("sys/fs/cgroup/user.slice/app.scope/cgroup.events", "populated 1\n"),
                ("sys/fs/cgroup/user.slice/app.scope/cpu.stat", "usage_usec 1000000\n"),
                ("sys/fs/cgroup/user.slice/app.scope/cpu.max", "max 100000\n"),
            ],
            &["cgroup_cpu_usage_seconds_total  1"],
            &["cgroup_memory"],
        );
    }

    #[test]
    fn a_hybrid_host_is_read_through_v1() {
        // /proc/self of a Linux 6.18 machine that mounts v1 controllers apart and v2 without controllers.
        check(
            &[
                ("proc/self/cgroup", "4:memory:/pod1\n2:cpuacct:/\n1:cpu:/pod1\n0::/\n"),
                (
                    "proc/self/mountinfo",
                    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                     33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct\n\
                     35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
                ),
                ("sys/fs/cgroup/unified/cgroup.controllers", "\n"),
                ("sys/fs/cgroup/cpuacct/release_agent", "\n"),
                ("sys/fs/cgroup/cpuacct/cpuacct.usage", "99000000000\n"),
                (
                    "sys/fs/cgroup/cpu/pod1/cpu.stat",
                    "nr_periods 4\nnr_throttled 2\nthrottled_time 500000000\n",
                ),
                ("sys/fs/cgroup/cpu/pod1/cpu.cfs_quota_us", "5000\n"),
                ("sys/fs/cgroup/cpu/pod1/cpu.cfs_period_us", "100000\n"),
                ("sys/fs/cgroup/memory/pod1/memory.usage_in_bytes", "1000000\n"),
                ("sys/fs/cgroup/memory/pod1/memory.limit_in_bytes", "9223372036854771712\n"),
                (
                    "sys/fs/cgroup/memory/pod1/memory.stat",
                    "inactive_file 5\ntotal_inactive_file 400000\n",
                ),
                ("sys/fs/cgroup/memory/pod1/memory.failcnt", "6\n"),
                (
                    "sys/fs/cgroup/memory/pod1/memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                ),
            ],
            &[
                "cgroup_cpu_throttled_seconds_total  0.5",
                "cgroup_cpu_periods_total  4",
                "cgroup_cpu_throttled_periods_total  2",
                "cgroup_cpu_limit_cores  0.05",
                "cgroup_memory_working_set_bytes  600000",
                "cgroup_memory_events_total max 6",
                "cgroup_memory_events_total oom_kill 2",
            ],
            &[],
        );
    }

    #[test]
    fn the_root_cgroup_is_the_machine_and_is_left_out() {
        check(
            &[
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mountinfo", V2_MOUNT),
                ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
                ("sys/fs/cgroup/cpu.stat", "usage_usec 2500000\n"),
            ],
            &[],
            &["cgroup_cpu", "cgroup_memory"],
        );
    }

    #[test]
    fn a_system_without_cgroups_has_a_reason_and_no_values() {
        check(&[], &[], &["cgroup_cpu", "cgroup_memory"]);
    }

    #[test]
    fn a_malformed_limit_is_a_reason() {
        let text = |quota: &str| {
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            fs::write(file.path(), quota).expect("a file");
            cpu_max(file.path()).map_err(|error| matches!(error, Unavailable::Malformed { .. }))
        };
        assert_eq!(text("max 100000\n"), Ok(None));
        assert_eq!(text("150000 100000\n"), Ok(Some(1.5)));
        for malformed in ["", "max\n", "x 100000\n", "1 0\n"] {
            assert_eq!(text(malformed), Err(true), "{malformed:?}");
        }
    }
}
