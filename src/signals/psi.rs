//! Pressure stall information: how long tasks waited for CPU, memory or I/O.
//!
//! In: `cpu.pressure`, `memory.pressure` and `io.pressure` of the cgroup (v2), else `/proc/pressure`. Out:
//! `pressure_stall_seconds_total`. Never: a zero where the kernel keeps no PSI (`psi=0`, gVisor, some node images); never the
//! kernel's averages, which lag by up to 2 s; never figures of the cgroup and of the machine together.

use std::path::{Path, PathBuf};

use super::catalogue::families;
use super::kernel_file;
use super::snapshot::{Snapshot, Unavailable};
use super::text::stalls;

const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];

/// Reads the pressure of the cgroup, or of the machine where the cgroup has none.
#[derive(Debug)]
pub struct PsiCollector {
    machine: PathBuf,
}

impl PsiCollector {
    /// `root` is `/`, or a directory with a copy of its `proc`.
    #[must_use]
    pub fn new(root: impl AsRef<Path>) -> Self {
        Self { machine: root.as_ref().join("proc/pressure") }
    }

    /// Adds the pressure families. `cgroup` is the process's cgroup v2 directory, if it has one that is not the root.
    pub fn collect(&self, cgroup: Option<&Path>, snapshot: &mut Snapshot) {
        if let Some(cgroup) = cgroup {
            let (stalls, outcome) = read(|resource| cgroup.join(format!("{resource}.pressure")));
            publish(&stalls, snapshot);
            snapshot.source("psi_cgroup", outcome);
            if !stalls.is_empty() {
                return;
            }
        }
        let (mut stalls, outcome) = read(|resource| self.machine.join(resource));
        // Of the whole machine that line is always 0: some task runs on every core.
        stalls.retain(|stall| (stall.resource, stall.kind) != ("cpu", "full"));
        publish(&stalls, snapshot);
        snapshot.source("psi_machine", outcome);
    }
}

/// What the three files hold, and the first thing that was wrong with one of them.
fn read(file_of: impl Fn(&str) -> PathBuf) -> (Vec<Stall>, Result<(), Unavailable>) {
    let (mut found, mut outcome) = (Vec::new(), Ok(()));
    for resource in RESOURCES {
        let path = file_of(resource);
        let totals = kernel_file::read(&path)
            .and_then(|text| stalls(&text).ok_or(Unavailable::Malformed { path }));
        match totals {
            Ok(totals) => found.extend(totals.into_iter().map(|(kind, total_micros)| Stall {
                resource,
                kind,
                total_micros,
            })),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    (found, outcome)
}

/// One line of one file.
#[derive(Debug)]
struct Stall {
    resource: &'static str,
    kind: &'static str,
    total_micros: u64,
}

fn publish(stalls: &[Stall], snapshot: &mut Snapshot) {
    for stall in stalls {
        let seconds = stall.total_micros as f64 / 1e6;
        snapshot.push_labelled(&families::PRESSURE_STALL, &[stall.resource, stall.kind], seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pressure_files_is_a_reason_and_no_value() {
        let empty = tempfile::tempdir().expect("a temporary directory");
        let mut snapshot = Snapshot::default();
        PsiCollector::new(empty.path()).collect(None, &mut snapshot);
        assert!(snapshot.readings().is_empty());
        assert!(matches!(snapshot.sources(), [("psi_machine", Err(Unavailable::Read { .. }))]));
    }
}
