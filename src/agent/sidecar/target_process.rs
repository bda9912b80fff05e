//! The service's process, found and read through a shared PID namespace.
//!
//! In: which process is meant, and procfs. Out: its `process_*`, `cgroup_*` and pressure families. Never: another process's
//! figures under the service's name: when it is not clear which one it is, there are none, and the reason names the setting.

use std::collections::HashSet;
use std::io::ErrorKind;

use procfs::ProcError;
use procfs::net::TcpState;
use procfs::process::{FDTarget, Process, all_processes};

use crate::config::{ProcessChoice, TargetConfig};
use crate::signals::cgroup::CgroupCollector;
use crate::signals::process::ProcessCollector;
use crate::signals::psi::PsiCollector;
use crate::signals::{Snapshot, Unavailable};

/// What lets one container see into another, in the words of a pod's spec.
const SAME_USER: &str =
    "run the sidecar with the service's runAsUser, or with the capability SYS_PTRACE";

/// Why it is not known which process is the service.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FindError {
    #[error("no other process is visible: set shareProcessNamespace: true in the pod's spec")]
    Alone,
    #[error("no process has the id {0} (agent.target.pid)")]
    NoPid(i32),
    #[error("no process is named {name:?} (agent.target.process); visible: {visible}")]
    NoName { name: String, visible: String },
    #[error(
        "several processes: {visible}; name the service's with agent.target.process or agent.target.pid"
    )]
    Several { visible: String },
    #[error(
        "several processes: {visible}; which one listens on port {port} may not be read: {SAME_USER}, or name it with agent.target.process"
    )]
    Unseen { visible: String, port: u16 },
    #[error("cannot read /proc")]
    Procfs(String),
}

/// A process beside this one.
#[derive(Clone, Debug)]
struct Neighbour {
    pid: i32,
    name: String,
}

/// The service's process and the state of its collectors.
#[derive(Debug)]
pub(super) struct TargetProcess {
    reading: Option<Reading>,
    psi: PsiCollector,
}

#[derive(Debug)]
struct Reading {
    pid: i32,
    how: Wanted,
    process: ProcessCollector,
    cgroup: CgroupCollector,
}

/// What was asked for when the process was found; another wish needs another search.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    choice: ProcessChoice,
    port: Option<u16>,
}

impl Wanted {
    fn of(target: &TargetConfig) -> Self {
        let local = target.metrics.as_ref().filter(|url| url.is_local());
        Self { choice: target.process.clone(), port: local.map(|url| url.port()) }
    }
}

impl TargetProcess {
    pub(super) fn new() -> Self {
        Self { reading: None, psi: PsiCollector::new("/") }
    }

    /// The process that was read last.
    pub(super) fn pid(&self) -> Option<i32> {
        self.reading.as_ref().map(|reading| reading.pid)
    }

    /// Adds the families of the process, of its cgroup and its pressure. Searches when it has none, or when it has ended.
    pub(super) fn collect(&mut self, target: &TargetConfig, snapshot: &mut Snapshot) {
        let wanted = Wanted::of(target);
        let stays = |reading: &Reading| reading.how == wanted && reading.process.is_alive();
        if !self.reading.as_ref().is_some_and(stays) {
            self.reading = match find(&wanted) {
                Ok(pid) => Some(Reading {
                    pid,
                    how: wanted,
                    process: ProcessCollector::of(pid),
                    cgroup: CgroupCollector::of(pid),
                }),
                Err(error) => {
                    self.reading = None;
                    snapshot.source("process", Err(Unavailable::Beside(error.to_string())));
                    return;
                }
            };
        }
        if let Some(reading) = &mut self.reading {
            reading.process.collect(snapshot);
            reading.cgroup.collect(snapshot);
            self.psi.collect(reading.cgroup.unified_directory(), snapshot);
        }
    }
}

/// The setting that grants what was refused.
pub(super) fn grant(unavailable: &Unavailable) -> Option<&'static str> {
    let refused = match unavailable {
        Unavailable::Read { source, .. } => source.kind() == ErrorKind::PermissionDenied,
        Unavailable::Procfs(ProcError::PermissionDenied(_)) => true,
        Unavailable::Procfs(ProcError::Io(error, _)) => error.kind() == ErrorKind::PermissionDenied,
        _ => false,
    };
    refused.then_some(SAME_USER)
}

fn find(wanted: &Wanted) -> Result<i32, FindError> {
    if let ProcessChoice::Pid(pid) = wanted.choice {
        return Process::new(pid).map(|found| found.pid).map_err(|_| FindError::NoPid(pid));
    }
    let neighbours = neighbours()?;
    match (&wanted.choice, neighbours.as_slice()) {
        (_, []) => Err(FindError::Alone),
        (ProcessChoice::Named(name), visible) => named(name, visible),
        (_, [only]) if wanted.port.is_none() => Ok(only.pid),
        (_, visible) => match wanted.port.map(|port| (port, listener(port, visible))) {
            Some((_, Listener::Found(pid))) => Ok(pid),
            // One that is seen to listen on nothing is not the service, so only the unseen may be guessed.
            Some((_, Listener::Hidden)) if visible.len() == 1 => Ok(visible[0].pid),
            Some((port, Listener::Hidden)) => {
                Err(FindError::Unseen { visible: list(visible), port })
            }
            Some((_, Listener::None)) if visible.len() == 1 => Ok(visible[0].pid),
            _ => Err(FindError::Several { visible: list(visible) }),
        },
    }
}

fn named(name: &str, visible: &[Neighbour]) -> Result<i32, FindError> {
    let same: Vec<_> = visible.iter().filter(|found| found.name == name).cloned().collect();
    match same.as_slice() {
        [] => Err(FindError::NoName { name: name.to_owned(), visible: list(visible) }),
        [found] => Ok(found.pid),
        several => Err(FindError::Several { visible: list(several) }),
    }
}

/// At most this many are named in a reason.
const NAMED_AT_MOST: usize = 8;

fn list(neighbours: &[Neighbour]) -> String {
    let shown = neighbours.iter().take(NAMED_AT_MOST);
    let mut names: Vec<_> = shown.map(|found| format!("{} ({})", found.name, found.pid)).collect();
    if neighbours.len() > NAMED_AT_MOST {
        names.push(format!("and {} more", neighbours.len() - NAMED_AT_MOST));
    }
    names.join(", ")
}

/// Every process but this one, the pod's `pause`, kernel threads and what has ended; by id.
fn neighbours() -> Result<Vec<Neighbour>, FindError> {
    let own = std::process::id();
    let processes = all_processes().map_err(|error| FindError::Procfs(error.to_string()))?;
    let neighbour = |process: Process| {
        let stat = process.stat().ok()?;
        // Only kernel threads and zombies have no command line.
        let command = process.cmdline().ok().filter(|words| !words.is_empty())?;
        let is_other = u32::try_from(process.pid) != Ok(own) && stat.comm != "pause";
        // `comm` is cut at 15 bytes, and may be the name of a thread.
        let program = command[0].rsplit('/').next().unwrap_or_default();
        let name = if program.starts_with(&stat.comm) { program } else { &stat.comm };
        is_other.then(|| Neighbour { pid: process.pid, name: name.to_owned() })
    };
    let mut found: Vec<_> = processes.filter_map(Result::ok).filter_map(neighbour).collect();
    found.sort_by_key(|neighbour| neighbour.pid);
    Ok(found)
}

enum Listener {
    Found(i32),
    /// Somebody listens, and some processes do not show their descriptors.
    Hidden,
    None,
}

/// The process that listens on a port; of several with the same socket the first, which made it.
fn listener(port: u16, visible: &[Neighbour]) -> Listener {
    let entries = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let listens = entries
        .filter(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port);
    let inodes: HashSet<u64> = listens.map(|entry| entry.inode).collect();
    if inodes.is_empty() {
        return Listener::None;
    }
    let mut hidden = false;
    for neighbour in visible {
        match Process::new(neighbour.pid).and_then(|process| process.fd()) {
            Ok(descriptors) => {
                let is_one = |target: FDTarget| matches!(target, FDTarget::Socket(inode) if inodes.contains(&inode));
                if descriptors.filter_map(Result::ok).any(|descriptor| is_one(descriptor.target)) {
                    return Listener::Found(neighbour.pid);
                }
            }
            Err(ProcError::PermissionDenied(_)) => hidden = true,
            Err(_) => {}
        }
    }
    if hidden { Listener::Hidden } else { Listener::None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            // It may have ended already.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper() -> Ended {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null());
        Ended(command.spawn().expect("sleep is everywhere"))
    }

    fn pid(child: &Ended) -> i32 {
        i32::try_from(child.0.id()).expect("a pid")
    }

    #[test]
    fn a_process_by_id_is_read_and_one_that_ended_is_not() {
        let child = sleeper();
        let pid = pid(&child);
        let wanted = Wanted { choice: ProcessChoice::Pid(pid), port: None };
        assert_eq!(find(&wanted), Ok(pid));
        let mut collector = ProcessCollector::of(pid);
        let mut snapshot = Snapshot::default();
        collector.collect(&mut snapshot);
        let threads = snapshot.readings().iter().find(|r| r.family.name == "process_threads");
        assert_eq!(threads.map(|reading| reading.value.to_bits()), Some(1_f64.to_bits()));
        drop(child);
        assert!(!collector.is_alive());
        assert_eq!(find(&wanted), Err(FindError::NoPid(pid)));
    }

    #[test]
    fn a_name_that_is_shared_or_unknown_is_a_reason() {
        let (one, two) = (sleeper(), sleeper());
        let visible = [
            Neighbour { pid: pid(&one), name: "sleep".to_owned() },
            Neighbour { pid: pid(&two), name: "sleep".to_owned() },
        ];
        assert!(matches!(named("sleep", &visible), Err(FindError::Several { .. })));
        assert!(matches!(named("shop", &visible), Err(FindError::NoName { .. })));
        assert_eq!(named("sleep", &visible[..1]), Ok(pid(&one)));
        let seen = neighbours().expect("procfs");
        assert!(seen.iter().any(|found| found.pid == pid(&one) && found.name == "sleep"));
        assert!(!seen.iter().any(|found| u32::try_from(found.pid) == Ok(std::process::id())));
    }

    #[test]
    fn the_settings_that_grant_are_named() {
        let refused = Unavailable::Procfs(ProcError::PermissionDenied(None));
        assert!(grant(&refused).is_some_and(|grant| grant.contains("runAsUser")));
        assert!(FindError::Alone.to_string().contains("shareProcessNamespace: true"));
        assert_eq!(grant(&Unavailable::NotHere("no")), None);
    }
}
