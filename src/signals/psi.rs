//! Pressure stall information: how long tasks waited for CPU, memory or I/O.
//!
//! In: `cpu.pressure`, `memory.pressure` and `io.pressure` of the cgroup (v2), else `/proc/pressure`. Out:
//! `pressure_stall_seconds_total`. Never: a zero where the kernel keeps no PSI (`psi=0`, gVisor, some node images); never the
//! kernel's averages, which lag by up to 2 s; never figures of the cgroup and of the machine together.

use std::path::{Path, PathBuf};

use super::catalogue::families;
use super::kernel_file::KernelFiles;
use super::snapshot::{Snapshot, Unavailable};
use super::text::{Stalls, stalls};

/// Each with the names of its file in a cgroup and in the machine's directory.
const RESOURCES: [(&str, &str, &str); 3] = [
    ("cpu", "cpu.pressure", "cpu"),
    ("memory", "memory.pressure", "memory"),
    ("io", "io.pressure", "io"),
];

/// Reads the pressure of the cgroup, or of the machine where the cgroup has none.
#[derive(Debug)]
pub struct PsiCollector {
    machine: PathBuf,
    files: KernelFiles,
}

impl PsiCollector {
    /// `root` is `/`, or a directory with a copy of its `proc`.
    #[must_use]
    pub fn new(root: impl AsRef<Path>) -> Self {
        Self { machine: root.as_ref().join("proc/pressure"), files: KernelFiles::default() }
    }

    /// Adds the pressure families. `cgroup` is the process's cgroup v2 directory, if it has one that is not the root.
    pub fn collect(&mut self, cgroup: Option<&Path>, snapshot: &mut Snapshot) {
        let Self { machine, files } = self;
        if let Some(cgroup) = cgroup {
            let found =
                RESOURCES.map(|(resource, file, _)| (resource, files.parse(cgroup, file, stalls)));
            let has_some = found.iter().any(|(_, stalls)| stalls.is_ok());
            let outcome = publish(found, snapshot);
            snapshot.source("psi_cgroup", outcome);
            if has_some {
                return;
            }
        }
        let found = RESOURCES.map(|(resource, _, file)| {
            let mut stalls = files.parse(machine, file, stalls);
            // Of the whole machine that line is always 0: some task runs on every core.
            if resource == "cpu"
                && let Ok(stalls) = &mut stalls
            {
                stalls.full = None;
            }
            (resource, stalls)
        });
        let outcome = publish(found, snapshot);
        snapshot.source("psi_machine", outcome);
    }
}

/// Adds what the files hold. Returns the first thing that was wrong with one of them.
fn publish(
    found: [(&'static str, Result<Stalls, Unavailable>); RESOURCES.len()],
    snapshot: &mut Snapshot,
) -> Result<(), Unavailable> {
    let mut outcome = Ok(());
    for (resource, stalls) in found {
        match stalls {
            Ok(Stalls { some, full }) => {
                for (kind, total_micros) in [("some", some), ("full", full)] {
                    let Some(total_micros) = total_micros else { continue };
                    let seconds = total_micros as f64 / 1e6;
                    snapshot.push_labelled(&families::PRESSURE_STALL, &[resource, kind], seconds);
                }
            }
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome
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
