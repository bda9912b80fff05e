//! The machine, as far as it helps to read the other signals.
//!
//! In: sysinfo for its cores, `/proc/meminfo` for its memory. Out: `headroom_agent_host_*`. Never: a limit; in a container these
//! are the node's figures, and no signal is computed from them.

use std::path::Path;

use sysinfo::{CpuRefreshKind, System};

use super::catalogue::families;
use super::kernel_file::KernelFiles;
use super::snapshot::{Snapshot, Unavailable};
use super::text;

/// Reads the machine.
#[derive(Debug)]
pub struct HostCollector {
    /// 0 where sysinfo does not know the system.
    cores: usize,
    files: KernelFiles,
}

impl Default for HostCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl HostCollector {
    /// Counts the cores, once. Memory is read at every collection, by ourselves: sysinfo takes new memory for each.
    #[must_use]
    pub fn new() -> Self {
        let cores = System::new().map_or(0, |mut system| {
            system.refresh_cpu_list(CpuRefreshKind::nothing());
            system.cpus().len()
        });
        Self { cores, files: KernelFiles::default() }
    }

    /// Adds the machine's families.
    pub fn collect(&mut self, snapshot: &mut Snapshot) {
        let outcome = self.read(snapshot);
        snapshot.source("host", outcome);
    }

    fn read(&mut self, snapshot: &mut Snapshot) -> Result<(), Unavailable> {
        let available_bytes =
            self.files.parse(Path::new("/proc"), "meminfo", text::available_memory)?;
        snapshot.push(&families::HOST_MEMORY_AVAILABLE, available_bytes as f64);
        if self.cores == 0 {
            return Err(Unavailable::NotHere("sysinfo does not know this system's cores"));
        }
        snapshot.push(&families::HOST_CPU_COUNT, self.cores as f64);
        Ok(())
    }
}
