//! Pressure stall information: how long tasks waited for CPU, memory or I/O.
//!
//! In: `cpu.pressure`, `memory.pressure` and `io.pressure` of the cgroup (v2), else `/proc/pressure`. Out:
//! `pressure_stall_seconds_total`. Never: a zero where the kernel keeps no PSI (`psi=0`, gVisor, some node images); never the
//! kernel's averages, which lag by up to 2 s.
//!
//! Format: Documentation/accounting/psi.rst. Older kernels write no `full` line for the CPU.

use std::path::{Path, PathBuf};

use super::catalogue::families;
use super::kernel_file;
use super::snapshot::{Snapshot, Unavailable};

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
            let stalls = read(|resource| cgroup.join(format!("{resource}.pressure")));
            if publish("psi_cgroup", stalls, snapshot) {
                return;
            }
        }
        publish("psi_machine", read(|resource| self.machine.join(resource)), snapshot);
    }
}

/// One line of one file.
#[derive(Debug)]
struct Stall {
    resource: &'static str,
    kind: &'static str,
    total_micros: u64,
}

/// All three files, or the first thing that was wrong with one of them.
fn read(file_of: impl Fn(&str) -> PathBuf) -> Result<Vec<Stall>, Unavailable> {
    let mut stalls = Vec::new();
    for resource in RESOURCES {
        let path = file_of(resource);
        let text = kernel_file::read(&path)?;
        let totals = parse(&text).ok_or(Unavailable::Malformed { path })?;
        stalls.extend(totals.into_iter().map(|(kind, total_micros)| Stall {
            resource,
            kind,
            total_micros,
        }));
    }
    Ok(stalls)
}

/// Adds what was read and says whether there was something.
fn publish(
    source: &'static str,
    stalls: Result<Vec<Stall>, Unavailable>,
    snapshot: &mut Snapshot,
) -> bool {
    for stall in stalls.iter().flatten() {
        let seconds = stall.total_micros as f64 / 1e6;
        snapshot.push_labelled(&families::PRESSURE_STALL, &[stall.resource, stall.kind], seconds);
    }
    let found = stalls.is_ok();
    snapshot.source(source, stalls.map(drop));
    found
}

/// The `total` of each line, in microseconds; `None` if a line has none.
fn parse(text: &str) -> Option<Vec<(&'static str, u64)>> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let kind = match fields.next()? {
            "some" => "some",
            "full" => "full",
            _ => return None,
        };
        let total = fields.find_map(|field| field.strip_prefix("total="))?;
        Some((kind, total.parse().ok()?))
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&[(&'static str, u64)]>) {
        assert_eq!(parse(text).as_deref(), expected, "{text:?}");
    }

    #[test]
    fn totals_are_read_with_and_without_a_full_line() {
        // Linux 6.18, /proc/pressure/cpu.
        let both = "some avg10=12.26 avg60=8.26 avg300=38.18 total=599309266\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        check(both, Some(&[("some", 599_309_266), ("full", 0)]));
        check("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n", Some(&[("some", 7)]));
        check("some avg10=0.00\n", None);
    }

    #[test]
    fn no_pressure_files_is_a_reason_and_no_value() {
        let empty = tempfile::tempdir().expect("a temporary directory");
        let mut snapshot = Snapshot::default();
        PsiCollector::new(empty.path()).collect(None, &mut snapshot);
        assert!(snapshot.readings().is_empty());
        assert!(matches!(snapshot.sources(), [("psi_machine", Err(Unavailable::Read { .. }))]));
    }
}
