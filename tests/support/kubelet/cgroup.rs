//! CPU and memory limits of pods, as the kernel's cgroups enforce them, version 1 or 2.
//!
//! In: a pod's limits. Out: a cgroup to start it in. Never: silence where no cgroup can be written.
//!
//! `HEADROOM_IT_CGROUPS=off` takes this machine for one where none can be written: what the tests do there can then be
//! run anywhere.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use anyhow::{Context as _, Result, bail};

/// Whether limits are enforced on this machine.
#[derive(Clone, Debug)]
pub(crate) enum CgroupSupport {
    /// Pods get a cgroup each, below these directories.
    Enforced {
        /// One per hierarchy: version 1 has one for each controller.
        roots: Vec<Root>,
    },
    /// They are not, for this reason.
    Unavailable(String),
}

/// A directory below which pods get their cgroups.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    version: Version,
    path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// The hierarchy of one controller.
    One(Controller),
    /// The unified hierarchy.
    Two,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Cpu,
    CpuAccounting,
    Memory,
}

/// What a container may use at most.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// In cores.
    pub(crate) cpu_cores: Option<f64>,
    /// In bytes.
    pub(crate) memory_bytes: Option<f64>,
}

/// The cgroups of one pod; removed when dropped, after its processes.
#[derive(Debug)]
pub(crate) struct PodCgroup {
    directories: Vec<PathBuf>,
}

const SWITCH: &str = "HEADROOM_IT_CGROUPS";

/// The kernel's default, which a kubelet leaves alone.
const PERIOD_MICROSECONDS: f64 = 100_000.0;

impl CgroupSupport {
    /// Tries what a pod will need.
    pub(crate) fn detect() -> Self {
        if std::env::var_os(SWITCH).is_some_and(|text| text == "off") {
            return Self::Unavailable(format!("{SWITCH}=off"));
        }
        match roots() {
            Ok(roots) => Self::Enforced { roots },
            Err(error) => Self::Unavailable(format!("{error:#}")),
        }
    }

    /// Makes a pod's cgroup; `None` where limits are not enforced.
    ///
    /// # Errors
    /// The kernel refuses a limit.
    pub(super) fn create(&self, pod: &str, limits: Limits) -> Result<Option<PodCgroup>> {
        let Self::Enforced { roots } = self else { return Ok(None) };
        let mut cgroup = PodCgroup { directories: Vec::new() };
        for root in roots {
            let directory = root.path.join(pod);
            fs::create_dir(&directory).with_context(|| format!("{}", directory.display()))?;
            cgroup.directories.push(directory.clone());
            for (file, text) in root.version.settings(limits) {
                let path = directory.join(file);
                fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
            }
        }
        Ok(Some(cgroup))
    }

    /// Removes the directories above the pods'.
    pub(super) fn remove(&self) {
        let Self::Enforced { roots } = self else { return };
        for root in roots {
            remove_tree(&root.path);
        }
    }
}

impl fmt::Display for CgroupSupport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforced { roots } => {
                f.write_str("enforced by")?;
                roots.iter().try_for_each(|root| write!(f, " {}", root.path.display()))
            }
            Self::Unavailable(reason) => write!(f, "not enforced: {reason}"),
        }
    }
}

impl PodCgroup {
    /// The files by which a process joins.
    ///
    /// # Errors
    /// They cannot be opened.
    pub(super) fn procs(&self) -> io::Result<Vec<File>> {
        let open = |directory: &PathBuf| {
            OpenOptions::new().write(true).open(directory.join("cgroup.procs"))
        };
        self.directories.iter().map(open).collect()
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        for directory in &self.directories {
            // Busy while a killed process is being taken down; the next run removes it.
            let _left = fs::remove_dir(directory);
        }
    }
}

impl Version {
    fn settings(self, limits: Limits) -> Vec<(&'static str, String)> {
        let quota = limits.cpu_cores.map(|cores| format!("{:.0}", cores * PERIOD_MICROSECONDS));
        let period = format!("{PERIOD_MICROSECONDS:.0}");
        let memory = limits.memory_bytes.map(|bytes| format!("{bytes:.0}"));
        match self {
            Self::One(Controller::Cpu) => quota
                .map(|quota| vec![("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota)])
                .unwrap_or_default(),
            Self::One(Controller::Memory) => {
                memory.map(|bytes| ("memory.limit_in_bytes", bytes)).into_iter().collect()
            }
            Self::One(Controller::CpuAccounting) => Vec::new(),
            Self::Two => {
                let quota = quota.map(|quota| ("cpu.max", format!("{quota} {period}")));
                quota.into_iter().chain(memory.map(|bytes| ("memory.max", bytes))).collect()
            }
        }
    }
}

const PREFIX: &str = "headroom-it-";

fn roots() -> Result<Vec<Root>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let mut roots = Vec::new();
    for (controller, name, needed) in [
        (Controller::Cpu, "cpu", true),
        (Controller::CpuAccounting, "cpuacct", false),
        (Controller::Memory, "memory", false),
    ] {
        let Some(base) = version_1_directory(&mounts, &own, name) else { continue };
        match make_root(&base) {
            // One directory may serve two controllers (cpu,cpuacct).
            Ok(path) if roots.iter().any(|root: &Root| root.path == path) => {}
            Ok(path) => roots.push(Root { version: Version::One(controller), path }),
            Err(error) if needed => {
                return Err(error).with_context(|| format!("{}", base.display()));
            }
            Err(_) => {}
        }
    }
    if !roots.is_empty() {
        return Ok(roots);
    }
    let Some(mount) = mount_point(&mounts, |kind, _| kind == "cgroup2") else {
        bail!("no cgroup file system is mounted");
    };
    let path = make_root(&mount).with_context(|| format!("{}", mount.display()))?;
    // A cgroup hands controllers down only where its parent did the same.
    for directory in [&mount, &path] {
        let file = directory.join("cgroup.subtree_control");
        fs::write(&file, "+cpu +memory").with_context(|| format!("{}", file.display()))?;
    }
    Ok(vec![Root { version: Version::Two, path }])
}

/// Makes this process's directory below `base`, and removes those of processes that are gone.
fn make_root(base: &Path) -> io::Result<PathBuf> {
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let owner = owner.split('-').next().unwrap_or(owner);
        if Path::new("/proc").join(owner).exists() {
            continue;
        }
        remove_tree(&entry.path());
    }
    let unique =
        format!("{PREFIX}{}-{}", std::process::id(), jiff::Timestamp::now().as_millisecond());
    let path = base.join(unique);
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(path),
    }
}

/// Removes a process's directory and those of its pods. One that a killed process has not left yet is
/// busy: the next run removes it.
fn remove_tree(root: &Path) {
    for pod in fs::read_dir(root).into_iter().flatten().flatten() {
        // The kernel's own files cannot be removed and go with the directory.
        let _file = fs::remove_dir(pod.path());
    }
    let _busy = fs::remove_dir(root);
}

fn version_1_directory(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let listed = |list: &str| list.split(',').any(|entry| entry == controller);
    let mount = mount_point(mounts, |kind, options| kind == "cgroup" && listed(options))?;
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        listed(controllers).then_some(path)
    })?;
    Some(mount.join(path.trim_start_matches('/')))
}

/// A line of /proc/self/mounts: device, mount point, file system, options.
fn mount_point(mounts: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, point, kind, options, ..] = fields.as_slice() else { return None };
        wanted(kind, options).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_1_controller_is_found_below_our_own_cgroup() {
        let mounts = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let own = "2:cpu,cpuacct:/kubepods/a\n0::/\n";
        let found = version_1_directory(mounts, own, "cpu");
        assert_eq!(found, Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/kubepods/a")));
        assert_eq!(version_1_directory(mounts, own, "memory"), None);
    }

    #[test]
    fn half_a_core_is_half_of_the_period() {
        let limits = Limits { cpu_cores: Some(0.5), memory_bytes: None };
        assert_eq!(
            Version::One(Controller::Cpu).settings(limits),
            [("cpu.cfs_period_us", "100000".to_owned()), ("cpu.cfs_quota_us", "50000".to_owned())]
        );
        assert_eq!(Version::Two.settings(limits), [("cpu.max", "50000 100000".to_owned())]);
    }
}
