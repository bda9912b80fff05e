//! The catalogue of signals, and the collectors that read them from this process and its host.
//!
//! In: the kernel's files, tokio, the allocator. Out: a [`Snapshot`] of values under the names of [`CATALOGUE`]. Never: a
//! clock, HTTP or Kubernetes in the catalogue; an absent source is a reason, never a zero.
//!
//! Counters and gauges are read when a snapshot is taken. What has to be watched over time (saturation) is sampled by
//! [`Collectors::tick`] and carries the time of its sample.

use tokio::runtime::Handle;

use crate::time::{Clock, Now};

pub mod allocator;
pub mod canary;
pub mod catalogue;
pub mod cgroup;
pub mod exponential;
pub mod host;
mod kernel_file;
pub mod process;
pub mod psi;
pub mod runtime;
pub mod saturation;
pub mod sharded;
mod snapshot;
mod sys;

pub use catalogue::{CATALOGUE, Family, FamilyKind};
pub use snapshot::{Reading, Snapshot, Unavailable};

/// Every collector of this process, each with the state it needs between two readings.
#[derive(Debug)]
pub struct Collectors {
    runtime: runtime::RuntimeCollector,
    canary: canary::Canary,
    allocator: allocator::AllocatorCollector,
    process: process::ProcessCollector,
    cgroup: cgroup::CgroupCollector,
    psi: psi::PsiCollector,
    host: host::HostCollector,
}

impl Collectors {
    /// Finds what this process can be asked. Spawns the canary task on the service's runtime; it ends with the value.
    #[must_use]
    pub fn start(service_runtime: &Handle, clock: Clock) -> Self {
        Self {
            runtime: runtime::RuntimeCollector::new(service_runtime.clone(), clock.now()),
            canary: canary::Canary::spawn(service_runtime, clock),
            allocator: allocator::AllocatorCollector::detect(),
            process: process::ProcessCollector::new(),
            cgroup: cgroup::CgroupCollector::new("/"),
            psi: psi::PsiCollector::new("/"),
            host: host::HostCollector::new(),
        }
    }

    /// Samples what is only visible over time. Once per second; costs well under a microsecond per worker.
    pub fn tick(&mut self, now: Now) {
        self.runtime.tick(now);
    }

    /// Reads everything now.
    #[must_use]
    pub fn collect(&mut self, now: Now) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.runtime.collect(self.canary.tasks(), &mut snapshot);
        self.canary.collect(now.monotonic, &mut snapshot);
        self.allocator.collect(&mut snapshot);
        self.process.collect(&mut snapshot);
        self.cgroup.collect(&mut snapshot);
        self.psi.collect(self.cgroup.unified_directory(), &mut snapshot);
        self.host.collect(&mut snapshot);
        snapshot
    }
}
