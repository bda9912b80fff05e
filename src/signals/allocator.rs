//! The heap of a service whose global allocator is jemalloc.
//!
//! In: jemalloc's statistics. Out: the `heap_*` families. Never: figures of a jemalloc that is linked but not used; a service
//! with another allocator has no such families, and the reason says so.
//!
//! Allocated bytes have no counter of their own. They are the sum over size classes of requests times class size; `nmalloc`
//! would be wrong, as it counts the fills of thread caches. A reading costs about 60 microseconds, most of it the refresh of
//! jemalloc's epoch.

use std::fmt;
use std::hint::black_box;

use tikv_jemalloc_ctl::thread::ThreadLocal;
use tikv_jemalloc_ctl::{epoch, epoch_mib, stats, thread};

use super::catalogue::families;
use super::snapshot::{Snapshot, Unavailable};
use super::sys::{self, SizeClass};

/// Reads jemalloc, if the service allocates through it.
#[derive(Debug)]
pub struct AllocatorCollector(Option<Jemalloc>);

impl AllocatorCollector {
    /// Allocates once and looks whether jemalloc counted it.
    #[must_use]
    pub fn detect() -> Self {
        let through_global_allocator = || drop(black_box(Vec::<u8>::with_capacity(PROBE_BYTES)));
        if !counts(through_global_allocator) {
            return Self(None);
        }
        let no_statistics = |error: &_| tracing::debug!(%error, "jemalloc has no statistics");
        Self(Jemalloc::new().inspect_err(no_statistics).ok())
    }

    /// Adds the heap families.
    pub fn collect(&self, snapshot: &mut Snapshot) {
        let outcome = match &self.0 {
            None => Err(Unavailable::NotHere("the global allocator is not jemalloc with statistics")),
            Some(jemalloc) => jemalloc.collect(snapshot),
        };
        snapshot.source("allocator", outcome);
    }
}

/// Large enough that other allocations of this thread do not look like it.
const PROBE_BYTES: usize = 1 << 16;

/// Whether jemalloc sees what `allocate` allocates on this thread.
fn counts(allocate: impl FnOnce()) -> bool {
    let allocated = || thread::allocatedp::read().map(ThreadLocal::get);
    let Ok(before) = allocated() else { return false };
    allocate();
    allocated().is_ok_and(|after| after.wrapping_sub(before) >= PROBE_BYTES as u64)
}

/// Names resolved once.
struct Jemalloc {
    epoch: epoch_mib,
    allocated: stats::allocated_mib,
    active: stats::active_mib,
    resident: stats::resident_mib,
    classes: Vec<SizeClass>,
}

impl fmt::Debug for Jemalloc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jemalloc").field("classes", &self.classes.len()).finish_non_exhaustive()
    }
}

impl Jemalloc {
    fn new() -> Result<Self, tikv_jemalloc_ctl::Error> {
        Ok(Self {
            epoch: epoch::mib()?,
            allocated: stats::allocated::mib()?,
            active: stats::active::mib()?,
            resident: stats::resident::mib()?,
            classes: sys::size_classes()?,
        })
    }

    fn collect(&self, snapshot: &mut Snapshot) -> Result<(), Unavailable> {
        self.epoch.advance()?;
        let (requests, bytes) = self.requested()?;
        snapshot.push(&families::HEAP_ALLOCATED, self.allocated.read()? as f64);
        snapshot.push(&families::HEAP_ACTIVE, self.active.read()? as f64);
        snapshot.push(&families::HEAP_RESIDENT, self.resident.read()? as f64);
        snapshot.push(&families::HEAP_ALLOCATION_BYTES, bytes as f64);
        snapshot.push(&families::HEAP_ALLOCATIONS, requests as f64);
        Ok(())
    }

    /// Allocations so far and their bytes, rounded up to size classes.
    fn requested(&self) -> Result<(u64, u64), tikv_jemalloc_ctl::Error> {
        self.classes.iter().try_fold((0, 0), |(requests, bytes): (u64, u64), class| {
            let new = class.requests()?;
            Ok((requests + new, bytes + new.wrapping_mul(class.bytes())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jemalloc_is_recognised_by_what_it_counts() {
        assert!(counts(|| sys::allocate_and_free(PROBE_BYTES, 1)));
        assert!(!counts(|| {}));
    }

    #[test]
    fn allocated_bytes_are_requests_times_class_size() {
        let jemalloc = Jemalloc::new().expect("jemalloc is linked");
        let requested = || {
            jemalloc.epoch.advance().expect("the epoch can be advanced");
            jemalloc.requested().expect("counters can be read")
        };
        let (small, large) = ((4_096, 50_000), (1 << 20, 200));
        let before = requested();
        sys::allocate_and_free(small.0, small.1);
        sys::allocate_and_free(large.0, large.1);
        let after = requested();
        let bytes = (small.0 * small.1 + large.0 * large.1) as f64;
        let counted = (after.1 - before.1) as f64;
        // Requests of the last fill of a thread cache are counted when it is flushed; other tests may allocate too.
        assert!(counted > 0.99 * bytes, "{counted} of {bytes}");
        assert!((after.0 - before.0) as f64 > 0.99 * (small.1 + large.1) as f64);
    }
}
