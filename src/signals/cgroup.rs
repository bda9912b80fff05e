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
use super::kernel_file::read;
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
    membership: String,
    location: Location,
}

impl CgroupCollector {
    /// `root` is `/`, or a directory with a copy of the files below it.
    #[must_use]
    pub fn new(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref().to_owned();
        Self { root, membership: String::new(), location: Location::default() }
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
        let membership = read(&self.root.join("proc/self/cgroup"))?;
        if membership != self.membership {
            let mounts = read(&self.root.join("proc/self/mountinfo"))?;
            self.location = Location::find(&membership, &mounts, &self.root, is_root);
            self.membership = membership;
        }
        Ok(())
    }
}

fn collect_cpu(location: &Location, snapshot: &mut Snapshot) -> Result<(), Unavailable> {
    let Some(cpu) = &location.cpu else {
        return Err(Unavailable::NotHere("no cgroup has the cpu controller"));
    };
    if cpu.is_root {
        return Err(ROOT);
    }
    let (binding, limit) = least_quota(cpu)?;
    if let Some(cores) = limit {
        snapshot.push(&families::CGROUP_CPU_LIMIT, cores);
    }
    // cpuacct may be mounted apart from cpu; where the process is in its root, use is not known.
    let cpuacct = location.cpuacct.as_ref().filter(|found| !found.is_root && !found.unified);
    if let Some(cpuacct) = cpuacct {
        let usage = number(&cpuacct.directory.join("cpuacct.usage"))?;
        push_if(snapshot, &families::CGROUP_CPU_USAGE, Some(usage), 1e9);
    }
    let text = read(&binding.join("cpu.stat"))?;
    let stat = Keyed::new(&text);
    let (throttled, per_second) =
        if cpu.unified { ("throttled_usec", 1e6) } else { ("throttled_time", 1e9) };
    if cpu.unified && binding == cpu.directory {
        push_if(snapshot, &families::CGROUP_CPU_USAGE, stat.get("usage_usec"), 1e6);
    } else if cpu.unified {
        let own = read(&cpu.directory.join("cpu.stat"))?;
        push_if(snapshot, &families::CGROUP_CPU_USAGE, Keyed::new(&own).get("usage_usec"), 1e6);
    }
    push_if(snapshot, &families::CGROUP_CPU_THROTTLED, stat.get(throttled), per_second);
    push_if(snapshot, &families::CGROUP_CPU_PERIODS, stat.get("nr_periods"), 1.0);
    push_if(snapshot, &families::CGROUP_CPU_THROTTLED_PERIODS, stat.get("nr_throttled"), 1.0);
    Ok(())
}

/// The cgroup whose quota is the least, and that quota in cores: this one or a visible ancestor. Without any, this one.
fn least_quota(cpu: &Controller) -> Result<(&Path, Option<f64>), Unavailable> {
    let own = (cpu.directory.as_path(), cpu_quota(&cpu.directory, cpu.unified)?);
    let quotas = cpu.ancestors().take(MAX_ANCESTORS).filter_map(|directory| {
        Some((directory, cpu_quota(directory, cpu.unified).ok().flatten()?))
    });
    Ok(quotas.fold(own, |(binding, least), (directory, quota)| match least {
        Some(least) if least <= quota => (binding, Some(least)),
        _ => (directory, Some(quota)),
    }))
}

/// The quota that one cgroup sets, in cores.
fn cpu_quota(directory: &Path, unified: bool) -> Result<Option<f64>, Unavailable> {
    if unified {
        let file = directory.join("cpu.max");
        understood(text::cpu_max(&read(&file)?), file).map(text::Limit::get)
    } else {
        let file = directory.join("cpu.cfs_quota_us");
        let period = read(&directory.join("cpu.cfs_period_us"))?;
        understood(text::cfs_quota(&read(&file)?, &period), file).map(text::Limit::get)
    }
}

fn collect_memory(location: &Location, snapshot: &mut Snapshot) -> Result<(), Unavailable> {
    let Some(memory) = &location.memory else {
        return Err(Unavailable::NotHere("no cgroup has the memory controller"));
    };
    if memory.is_root {
        return Err(ROOT);
    }
    let file = |name: &str| memory.directory.join(name);
    let (current, inactive) = if memory.unified {
        ("memory.current", "inactive_file")
    } else {
        ("memory.usage_in_bytes", "total_inactive_file")
    };
    let current = number(&file(current))?;
    let stat = read(&file("memory.stat"))?;
    let inactive_bytes = understood(Keyed::new(&stat).get(inactive), file("memory.stat"))?;
    let limit = if memory.unified { memory_max(memory)? } else { memory_limit(memory, &stat)? };
    let working_set = current.saturating_sub(inactive_bytes);
    push_if(snapshot, &families::CGROUP_MEMORY_WORKING_SET, Some(working_set), 1.0);
    push_if(snapshot, &families::CGROUP_MEMORY_LIMIT, limit, 1.0);
    let events = if memory.unified {
        read(&file("memory.events"))?
    } else {
        push_event(snapshot, "max", Some(number(&file("memory.failcnt"))?));
        read(&file("memory.oom_control"))?
    };
    for event in EVENTS {
        push_event(snapshot, event, Keyed::new(&events).get(event));
    }
    Ok(())
}

/// The least `memory.max` of the cgroup and its visible ancestors (v2).
fn memory_max(memory: &Controller) -> Result<Option<u64>, Unavailable> {
    let limit = |directory: &Path| {
        let file = directory.join("memory.max");
        understood(text::memory_max(&read(&file)?), file).map(text::Limit::get)
    };
    let own = limit(&memory.directory)?;
    let ancestors = memory.ancestors().take(MAX_ANCESTORS);
    Ok(ancestors.filter_map(|directory| limit(directory).ok().flatten()).chain(own).min())
}

/// The kernel's own minimum over the ancestors, hidden ones too; kernels without hierarchy have only the own limit (v1).
fn memory_limit(memory: &Controller, stat: &str) -> Result<Option<u64>, Unavailable> {
    let limit = match Keyed::new(stat).get("hierarchical_memory_limit") {
        Some(limit) => limit,
        None => number(&memory.directory.join("memory.limit_in_bytes"))?,
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

fn understood<T>(value: Option<T>, path: PathBuf) -> Result<T, Unavailable> {
    value.ok_or(Unavailable::Malformed { path })
}

fn number(file: &Path) -> Result<u64, Unavailable> {
    understood(text::number(&read(file)?), file.to_owned())
}

/// For fuzzing: looks for cgroups in any two texts.
pub(super) fn locate_any_text(membership: &str, mounts: &str) {
    drop(Location::find(membership, mounts, Path::new("/"), |_, _| false));
}
