//! The heap of a service whose global allocator is jemalloc.
//!
//! In: jemalloc's statistics, and what [`Jemalloc`] counts. Out: the `heap_*` families. Never: figures of a jemalloc that is
//! linked but not used; a service with another allocator has no such families, and the reason says so.
//!
//! The counters come from [`Jemalloc`]. In a service that uses `tikv_jemallocator` directly they are jemalloc's own requests
//! per size class, which come late from threads that allocate and free one size over and over. A reading costs about 60
//! microseconds, most of it the refresh of jemalloc's epoch.

use std::fmt;
use std::hint::black_box;

use tikv_jemalloc_ctl::thread::ThreadLocal;
use tikv_jemalloc_ctl::{epoch, epoch_mib, stats, thread};

use super::catalogue::families;
use super::snapshot::{Snapshot, Unavailable};

pub use super::sys::counting::Jemalloc;
use super::sys::size_classes::SizeClasses;

/// Reads jemalloc, if the service allocates through it.
#[derive(Debug)]
pub struct AllocatorCollector(Option<Statistics>);

impl AllocatorCollector {
    /// Allocates once and looks whether jemalloc counted it.
    #[must_use]
    pub fn detect() -> Self {
        let through_global_allocator = || drop(black_box(Vec::<u8>::with_capacity(PROBE_BYTES)));
        if !counts(through_global_allocator) {
            return Self(None);
        }
        // The probe is as large as what a thread hands over at once.
        let counter = if Jemalloc::counted().0 > 0 {
            Ok(Counter::Allocator)
        } else {
            SizeClasses::new().map(Counter::SizeClasses)
        };
        let no_statistics = |error: &_| tracing::debug!(%error, "jemalloc has no statistics");
        Self(counter.and_then(Statistics::new).inspect_err(no_statistics).ok())
    }

    /// Adds the heap families.
    pub fn collect(&self, snapshot: &mut Snapshot) {
        const NOT_JEMALLOC: &str = "the global allocator is not jemalloc with statistics";
        let (sizes, counts) = match &self.0 {
            None => {
                (Err(Unavailable::NotHere(NOT_JEMALLOC)), Err(Unavailable::NotHere(NOT_JEMALLOC)))
            }
            Some(statistics) => {
                (statistics.collect_sizes(snapshot), statistics.collect_counts(snapshot))
            }
        };
        snapshot.source("allocator", sizes);
        snapshot.source("allocator_counts", counts);
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
struct Statistics {
    epoch: epoch_mib,
    allocated: stats::allocated_mib,
    active: stats::active_mib,
    resident: stats::resident_mib,
    counter: Counter,
}

/// Who counts allocations.
enum Counter {
    /// [`Jemalloc`], which is the global allocator.
    Allocator,
    /// jemalloc itself.
    SizeClasses(SizeClasses),
}

impl fmt::Debug for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statistics").finish_non_exhaustive()
    }
}

impl Statistics {
    fn new(counter: Counter) -> Result<Self, tikv_jemalloc_ctl::Error> {
        Ok(Self {
            epoch: epoch::mib()?,
            allocated: stats::allocated::mib()?,
            active: stats::active::mib()?,
            resident: stats::resident::mib()?,
            counter,
        })
    }

    fn collect_sizes(&self, snapshot: &mut Snapshot) -> Result<(), Unavailable> {
        // Statistics stand still until the epoch is advanced.
        self.epoch.advance()?;
        snapshot.push(&families::HEAP_ALLOCATED, self.allocated.read()? as f64);
        snapshot.push(&families::HEAP_ACTIVE, self.active.read()? as f64);
        snapshot.push(&families::HEAP_RESIDENT, self.resident.read()? as f64);
        Ok(())
    }

    /// As of the epoch that [`Statistics::collect_sizes`] advanced.
    fn collect_counts(&self, snapshot: &mut Snapshot) -> Result<(), Unavailable> {
        let (allocations, bytes) = match &self.counter {
            Counter::Allocator => Jemalloc::counted(),
            Counter::SizeClasses(classes) => classes.counted()?,
        };
        snapshot.push(&families::HEAP_ALLOCATION_BYTES, bytes as f64);
        snapshot.push(&families::HEAP_ALLOCATIONS, allocations as f64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jemalloc_without_the_counting_allocator_counts_by_size_class() {
        let classes = SizeClasses::new().expect("jemalloc has statistics");
        let statistics = Statistics::new(Counter::SizeClasses(classes)).expect("statistics");
        let mut snapshot = Snapshot::default();
        statistics.collect_sizes(&mut snapshot).expect("statistics");
        statistics.collect_counts(&mut snapshot).expect("statistics");
        let names: Vec<_> = snapshot.readings().iter().map(|reading| reading.family.name).collect();
        assert!(names.contains(&"heap_allocation_bytes_total"), "{names:?}");
        assert!(names.contains(&"heap_allocations_total"), "{names:?}");
    }

    #[test]
    fn an_allocator_that_jemalloc_does_not_see_is_not_jemalloc() {
        assert!(!counts(|| {}));
    }
}
