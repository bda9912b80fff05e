//! The machine, as far as it helps to read the other signals.
//!
//! In: sysinfo. Out: `headroom_agent_host_*`. Never: a limit; in a container these are the node's figures, and no signal is
//! computed from them.

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, System};

use super::catalogue::families;
use super::snapshot::{Snapshot, Unavailable};

/// Reads the machine.
#[derive(Debug)]
pub struct HostCollector(Option<System>);

impl Default for HostCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl HostCollector {
    /// Counts the cores once; memory is read at every collection.
    #[must_use]
    pub fn new() -> Self {
        let mut system = System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_cpu_list(CpuRefreshKind::nothing());
        }
        Self(system)
    }

    /// Adds the machine's families.
    pub fn collect(&mut self, snapshot: &mut Snapshot) {
        let Some(system) = &mut self.0 else {
            snapshot.source("host", Err(Unavailable::NotHere("sysinfo does not know this system")));
            return;
        };
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let (cores, available_bytes) = (system.cpus().len(), system.available_memory());
        let known = cores > 0 && system.total_memory() > 0;
        if known {
            snapshot.push(&families::HOST_CPU_COUNT, cores as f64);
            snapshot.push(&families::HOST_MEMORY_AVAILABLE, available_bytes as f64);
        }
        let outcome =
            if known { Ok(()) } else { Err(Unavailable::NotHere("sysinfo read nothing")) };
        snapshot.source("host", outcome);
    }
}
