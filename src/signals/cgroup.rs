//! CPU and memory of this process's cgroup: use, limits, throttling.
//!
//! In: `/proc/self/cgroup`, `/proc/self/mountinfo` and the cgroup's files, v2 or v1 (also mixed). Out: the `cgroup_*` families.
//! Never: a guess, 0 for "no limit", or the machine's figures under the workload's name: the root cgroup is left out.
//!
//! A limit may sit on an ancestor (a pod's on the pod, not on its container), and there too is the throttling counted: the
//! cgroup below it reads 0 throttled periods. So ancestors are asked as far as they are visible, which in a cgroup namespace,
//! the default of containers on v2, they are not.
//!
//! Files: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, scheduler/sched-bwc.rst.

use std::path::{Path, PathBuf};

use super::catalogue::families;
use super::kernel_file::KernelFiles;
use super::snapshot::{Snapshot, Unavailable};
use super::text::{self, Keyed};

mod location;
use location::{Controller, Location};

/// The events that are counted; others are left out, so that the label stays a closed set.
const EVENTS: [&str; 6] = ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"];

/// Ancestors that are asked for a tighter limit. Kubernetes nests four deep.
const MAX_ANCESTORS: usize = 16;

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
    files: KernelFiles,
}

impl CgroupCollector {
    /// `root` is `/`, or a directory with a copy of the files below it.
    #[must_use]
    pub fn new(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref().to_owned();
        let process = root.join("proc/self");
        Self::at(root, process)
    }

    /// The cgroup of another process, through the file system that it sees: a container's own cgroup is mounted nowhere else.
    /// The kernel lets its own user in, and those who may trace it (ptrace(2), access mode READ).
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let root = process.join("root");
        Self::at(root, process)
    }

    fn at(root: PathBuf, process: PathBuf) -> Self {
        let (location, files) = (Location::default(), KernelFiles::default());
        Self { root, process, membership: String::new(), location, files }
    }

    /// Adds the cgroup families.
    pub fn collect(&mut self, snapshot: &mut Snapshot) {
        let located = self.locate();
        let Self { location, files, .. } = self;
        let (cpu, memory) = match located {
            Ok(()) => {
                (collect_cpu(location, files, snapshot), collect_memory(location, files, snapshot))
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
        let membership = self.files.read(&self.process, "cgroup")?;
        if membership != self.membership {
            let membership = membership.to_owned();
            // What may not be looked into would read as a cgroup that is not there.
            if let Err(source) = std::fs::metadata(&self.root) {
                return Err(Unavailable::Read { path: self.root.clone(), source });
            }
            let mounts = self.files.read(&self.process, "mountinfo")?;
            self.location = Location::find(&membership, mounts, &self.root, is_root);
            self.membership = membership;
        }
        Ok(())
    }
}

fn collect_cpu(
    location: &Location,
    files: &mut KernelFiles,
    snapshot: &mut Snapshot,
) -> Result<(), Unavailable> {
    let Some(cpu) = &location.cpu else {
        return Err(Unavailable::NotHere("no cgroup has the cpu controller"));
    };
    if cpu.is_root {
        return Err(ROOT);
    }
    let (binding, limit) = least_quota(cpu, files)?;
    if let Some(cores) = limit {
        snapshot.push(&families::CGROUP_CPU_LIMIT, cores);
    }
    // cpuacct may be mounted apart from cpu; where the process is in its root, use is not known.
    let cpuacct = location.cpuacct.as_ref().filter(|found| !found.is_root && !found.unified);
    if let Some(cpuacct) = cpuacct {
        let usage = files.parse(&cpuacct.directory, "cpuacct.usage", text::number)?;
        push_if(snapshot, &families::CGROUP_CPU_USAGE, Some(usage), 1e9);
    }
    if cpu.unified {
        let own = Keyed::new(files.read(&cpu.directory, "cpu.stat")?);
        push_if(snapshot, &families::CGROUP_CPU_USAGE, own.get("usage_usec"), 1e6);
    }
    let (throttled, per_second) =
        if cpu.unified { ("throttled_usec", 1e6) } else { ("throttled_time", 1e9) };
    let stat = Keyed::new(files.read(binding, "cpu.stat")?);
    push_if(snapshot, &families::CGROUP_CPU_THROTTLED, stat.get(throttled), per_second);
    push_if(snapshot, &families::CGROUP_CPU_PERIODS, stat.get("nr_periods"), 1.0);
    push_if(snapshot, &families::CGROUP_CPU_THROTTLED_PERIODS, stat.get("nr_throttled"), 1.0);
    Ok(())
}

/// The cgroup whose quota is the least, and that quota in cores: this one or a visible ancestor. Without any, this one.
fn least_quota<'a>(
    cpu: &'a Controller,
    files: &mut KernelFiles,
) -> Result<(&'a Path, Option<f64>), Unavailable> {
    let own = (cpu.directory.as_path(), cpu_quota(&cpu.directory, cpu.unified, files)?);
    let quotas = cpu.ancestors().take(MAX_ANCESTORS).filter_map(|directory| {
        Some((directory, cpu_quota(directory, cpu.unified, files).ok().flatten()?))
    });
    Ok(quotas.fold(own, |(binding, least), (directory, quota)| match least {
        Some(least) if least <= quota => (binding, Some(least)),
        _ => (directory, Some(quota)),
    }))
}

/// The quota that one cgroup sets, in cores.
fn cpu_quota(
    directory: &Path,
    unified: bool,
    files: &mut KernelFiles,
) -> Result<Option<f64>, Unavailable> {
    let limit = if unified {
        files.parse(directory, "cpu.max", text::cpu_max)
    } else {
        let period = files.parse(directory, "cpu.cfs_period_us", text::number)?;
        files.parse(directory, "cpu.cfs_quota_us", |quota| text::cfs_quota(quota, period))
    };
    limit.map(text::Limit::get)
}

fn collect_memory(
    location: &Location,
    files: &mut KernelFiles,
    snapshot: &mut Snapshot,
) -> Result<(), Unavailable> {
    let Some(memory) = &location.memory else {
        return Err(Unavailable::NotHere("no cgroup has the memory controller"));
    };
    if memory.is_root {
        return Err(ROOT);
    }
    let directory = &memory.directory;
    let (current, inactive) = if memory.unified {
        ("memory.current", "inactive_file")
    } else {
        ("memory.usage_in_bytes", "total_inactive_file")
    };
    let current = files.parse(directory, current, text::number)?;
    let (inactive_bytes, hierarchical) = files.parse(directory, "memory.stat", |text| {
        let stat = Keyed::new(text);
        Some((stat.get(inactive)?, stat.get("hierarchical_memory_limit")))
    })?;
    let limit = if memory.unified {
        memory_max(memory, files)?
    } else {
        memory_limit(memory, hierarchical, files)?
    };
    let working_set = current.saturating_sub(inactive_bytes);
    push_if(snapshot, &families::CGROUP_MEMORY_WORKING_SET, Some(working_set), 1.0);
    push_if(snapshot, &families::CGROUP_MEMORY_LIMIT, limit, 1.0);
    let events = if memory.unified {
        files.read(directory, "memory.events")?
    } else {
        let failures = files.parse(directory, "memory.failcnt", text::number)?;
        push_event(snapshot, "max", Some(failures));
        files.read(directory, "memory.oom_control")?
    };
    for event in EVENTS {
        push_event(snapshot, event, Keyed::new(events).get(event));
    }
    Ok(())
}

/// The least `memory.max` of the cgroup and its visible ancestors (v2).
fn memory_max(memory: &Controller, files: &mut KernelFiles) -> Result<Option<u64>, Unavailable> {
    let mut limit = |directory: &Path| {
        files.parse(directory, "memory.max", text::memory_max).map(text::Limit::get)
    };
    let own = limit(&memory.directory)?;
    let ancestors = memory.ancestors().take(MAX_ANCESTORS);
    Ok(ancestors.filter_map(|directory| limit(directory).ok().flatten()).chain(own).min())
}

/// The kernel's own minimum over the ancestors, hidden ones too; kernels without hierarchy have only the own limit (v1).
fn memory_limit(
    memory: &Controller,
    hierarchical: Option<u64>,
    files: &mut KernelFiles,
) -> Result<Option<u64>, Unavailable> {
    let limit = match hierarchical {
        Some(limit) => limit,
        None => files.parse(&memory.directory, "memory.limit_in_bytes", text::number)?,
    };
    Ok((limit < V1_NO_MEMORY_LIMIT).then_some(limit))
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

fn push_if(
    snapshot: &mut Snapshot,
    family: &'static super::Family,
    value: Option<u64>,
    divisor: f64,
) {
    if let Some(value) = value {
        snapshot.push(family, value as f64 / divisor);
    }
}

fn push_event(snapshot: &mut Snapshot, event: &'static str, count: Option<u64>) {
    if let Some(count) = count {
        snapshot.push_labelled(&families::CGROUP_MEMORY_EVENTS, &[event], count as f64);
    }
}

/// For fuzzing: looks for cgroups in any two texts.
pub(super) fn locate_any_text(membership: &str, mounts: &str) {
    drop(Location::find(membership, mounts, Path::new("/"), |_, _| false));
}
