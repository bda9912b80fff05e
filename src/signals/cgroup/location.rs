//! Where the files of this process's cgroups lie.
//!
//! In: the texts of `/proc/self/cgroup` (cgroups(7)) and `/proc/self/mountinfo` (proc(5)). Out: a directory per controller.
//! Never: a file system access; whether the directory exists shows when it is read.

use std::path::{Path, PathBuf};

/// The directories of the controllers that are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) cpu: Option<Controller>,
    pub(super) cpuacct: Option<Controller>,
    pub(super) memory: Option<Controller>,
    /// The v2 directory, whether or not it has controllers.
    pub(super) unified: Option<Controller>,
}

/// One controller's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Controller {
    pub(super) directory: PathBuf,
    /// Where the hierarchy is mounted: its root, or the root of what this process may see of it.
    pub(super) mount_point: PathBuf,
    /// Version 2: one hierarchy for all controllers.
    pub(super) unified: bool,
    /// The root of the hierarchy: the whole machine.
    pub(super) is_root: bool,
}

impl Controller {
    /// The cgroups above this one that are visible, the nearest first.
    pub(super) fn ancestors(&self) -> impl Iterator<Item = &Path> {
        let above = self.directory.ancestors().skip(1);
        above.take_while(|directory| directory.starts_with(&self.mount_point))
    }
}

impl Location {
    /// A controller with a v1 hierarchy is read there; every other one in the v2 hierarchy. `is_root` is asked once for each
    /// directory, with whether it is one of version 2.
    pub(super) fn find(
        membership: &str,
        mounts: &str,
        root: &Path,
        is_root: impl Fn(&Path, bool) -> bool,
    ) -> Self {
        let place = |(mount_point, directory): (PathBuf, PathBuf), unified| Controller {
            is_root: is_root(&directory, unified),
            directory,
            mount_point,
            unified,
        };
        let unified = membership
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .and_then(|path| mounted(mounts, path, root, |mount| mount.kind == "cgroup2"))
            .map(|found| place(found, true));
        let controller = |name: &str| {
            let listed = |list: &str| list.split(',').any(|listed| listed == name);
            let v1 = membership.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                listed(controllers).then_some(path)
            });
            match v1 {
                Some(path) => {
                    let of_controller =
                        |mount: &Mount<'_>| mount.kind == "cgroup" && listed(mount.options);
                    mounted(mounts, path, root, of_controller).map(|found| place(found, false))
                }
                None => unified.clone(),
            }
        };
        Self {
            cpu: controller("cpu"),
            cpuacct: controller("cpuacct"),
            memory: controller("memory"),
            unified,
        }
    }
}

/// One line of mountinfo.
struct Mount<'a> {
    /// The directory of the file system that is mounted.
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let (kind, options) = (file_system.next()?, file_system.nth(1)?);
        Some(Self { root, point, kind, options })
    }
}

/// The first mount that fits, and the directory of cgroup `path` below it.
fn mounted(
    mounts: &str,
    path: &str,
    root: &Path,
    fits: impl Fn(&Mount<'_>) -> bool,
) -> Option<(PathBuf, PathBuf)> {
    let mount = mounts.lines().filter_map(Mount::parse).find(fits)?;
    // Without a cgroup namespace a container sees its own cgroup mounted, and its whole path in the membership.
    let below = path.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or("");
    let point = root.join(mount.point.trim_start_matches('/'));
    let directory = match below.trim_matches('/') {
        "" => point.clone(),
        below => point.join(below),
    };
    Some((point, directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(membership: &str, mounts: &str, expected_memory: Option<(&str, bool)>) {
        let memory = Location::find(membership, mounts, Path::new("/"), |_, _| false).memory;
        let found =
            memory.as_ref().map(|found| (found.directory.to_str().expect("text"), found.unified));
        let found = found.map(|(directory, unified)| (directory.trim_end_matches('/'), unified));
        assert_eq!(found, expected_memory);
    }

    #[test]
    fn v2_with_a_cgroup_namespace_is_the_mount_point() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        check("0::/\n", mounts, Some(("/sys/fs/cgroup", true)));
        check("0::/a.slice/b\n", mounts, Some(("/sys/fs/cgroup/a.slice/b", true)));
    }

    #[test]
    fn v1_without_a_cgroup_namespace_strips_what_is_mounted() {
        let mounts =
            "9 8 0:3 /kubepods/pod1/c1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        check("7:memory:/kubepods/pod1/c1\n", mounts, Some(("/sys/fs/cgroup/memory", false)));
        check("7:memory:/kubepods/pod1/c1/x\n", mounts, Some(("/sys/fs/cgroup/memory/x", false)));
    }

    #[test]
    fn no_mount_is_no_directory() {
        check("7:memory:/a\n0::/\n", "1 1 0:1 / / rw - ext4 /dev/vda rw\n", None);
    }
}
