//! jemalloc that counts what is asked of it.
//!
//! In: every allocation of the program. Out: how many there were, and of how many bytes. Never: a lock, or an allocation of
//! its own.
//!
//! Why not jemalloc's own counters: `stats.arenas.*.nrequests` is merged only when a thread's cache is filled or flushed. A
//! thread that allocates and frees the same size class over and over does neither, and its allocations stay uncounted for as
//! long as it runs (jemalloc 5.3.1: 400 MB per round in 4 KiB blocks counted as 0, rounds on end).

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::apart;

/// The allocator to declare as `#[global_allocator]`; `headroom::profiled_jemalloc!()` does that.
///
/// Each thread adds up its allocations and hands them over every `BATCH_BYTES` or `BATCH_ALLOCATIONS`, so a thread that
/// ends, or stops allocating, leaves less than that uncounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jemalloc;

const BATCH_BYTES: u64 = 64 * 1024;
const BATCH_ALLOCATIONS: u64 = 64;

/// Threads share these round robin, so that few of them meet in one.
static TOTALS: [Totals; 16] =
    [const { Totals { allocations: AtomicU64::new(0), bytes: AtomicU64::new(0) } }; 16];
/// What nobody reads: the allocations of threads that serve the signals and profiles of the others.
static UNCOUNTED: Totals = Totals { allocations: AtomicU64::new(0), bytes: AtomicU64::new(0) };
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Two cache lines, so that neighbours do not slow each other down.
#[repr(align(128))]
struct Totals {
    allocations: AtomicU64,
    bytes: AtomicU64,
}

/// What a thread has not handed over yet. It has no destructor: the allocator is used until the thread's very end.
struct Pending {
    allocations: Cell<u64>,
    bytes: Cell<u64>,
    totals: Cell<Option<&'static Totals>>,
}

thread_local! {
    static PENDING: Pending =
        const { Pending { allocations: Cell::new(0), bytes: Cell::new(0), totals: Cell::new(None) } };
}

impl Jemalloc {
    /// Allocations and bytes asked for so far. Both only grow, and stay 0 if this is not the program's allocator.
    pub(in crate::signals) fn counted() -> (u64, u64) {
        TOTALS.iter().fold((0, 0), |(allocations, bytes), totals| {
            let more = totals.allocations.load(Ordering::Relaxed);
            (allocations + more, bytes + totals.bytes.load(Ordering::Relaxed))
        })
    }

    /// From now on this thread's allocations are not counted: a service is not scaled on being looked at. One profile
    /// with line numbers allocates as much as a busy second of a small service (118 MB). Nor do they lie among those of the
    /// service, where an agent runs: what it has freed goes back to the kernel.
    pub(crate) fn set_this_thread_apart() {
        apart::enter();
        PENDING.with(|pending| pending.totals.set(Some(&UNCOUNTED)));
    }

    /// The same for a thread of many that come and go: heap profiles do not show it either, whose tables would stay.
    pub(crate) fn set_passing_thread_apart() {
        apart::leave_unsampled();
        Self::set_this_thread_apart();
    }

    /// Has the threads that are set apart from now on allocate in an arena of their own. For whoever calls
    /// [`Jemalloc::give_back`].
    #[cfg(feature = "agent")]
    pub(crate) fn open_arena() {
        apart::open();
    }

    /// Gives back what the threads that are set apart have freed, if it has not been used for a while. Once per tick.
    #[cfg(feature = "agent")]
    pub(crate) fn give_back() {
        apart::give_back();
    }
}

impl Pending {
    fn add(&self, allocations: u64, bytes: usize) {
        let allocations = self.allocations.get() + allocations;
        let bytes = self.bytes.get().saturating_add(bytes as u64);
        if allocations < BATCH_ALLOCATIONS && bytes < BATCH_BYTES {
            self.allocations.set(allocations);
            self.bytes.set(bytes);
            return;
        }
        let totals = self.totals.get().unwrap_or_else(|| {
            let thread = THREADS.fetch_add(1, Ordering::Relaxed);
            let totals = &TOTALS[thread % TOTALS.len()];
            self.totals.set(Some(totals));
            totals
        });
        totals.allocations.fetch_add(allocations, Ordering::Relaxed);
        totals.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.allocations.set(0);
        self.bytes.set(0);
    }
}

fn count(block: *mut u8, bytes: usize) -> *mut u8 {
    if !block.is_null() {
        PENDING.with(|pending| pending.add(1, bytes));
    }
    block
}

// SAFETY: every block comes from and goes back to tikv_jemallocator, with the caller's own arguments; counting neither
// allocates nor unwinds.
unsafe impl GlobalAlloc for Jemalloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        count(unsafe { tikv_jemallocator::Jemalloc.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        count(unsafe { tikv_jemallocator::Jemalloc.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { tikv_jemallocator::Jemalloc.dealloc(block, layout) }
    }

    /// A block that moves is a new allocation of its new size; one that grows in place counts what it grew by.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        let resized = unsafe { tikv_jemallocator::Jemalloc.realloc(block, layout, new_size) };
        if resized != block {
            return count(resized, new_size);
        }
        let grown = new_size.saturating_sub(layout.size());
        PENDING.with(|pending| pending.add(0, grown));
        resized
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allocates and frees through the counting allocator, whatever the test program's own allocator is.
    fn allocate_and_free(bytes: usize, times: usize) {
        let layout = Layout::from_size_align(bytes, 8).expect("8 is a power of two");
        for _ in 0..times {
            // SAFETY: the layout is not zero-sized, and the block is freed with the layout it was allocated with.
            unsafe {
                let block = Jemalloc.alloc(layout);
                Jemalloc.dealloc(std::hint::black_box(block), layout);
            }
        }
    }

    // One test, because the counters are the program's.
    #[test]
    fn every_allocation_of_every_thread_is_counted_up_to_one_batch() {
        let before = Jemalloc::counted();
        let threads: Vec<_> =
            (0..20).map(|_| std::thread::spawn(|| allocate_and_free(4_096, 1_000))).collect();
        for thread in threads {
            thread.join().expect("allocating does not panic");
        }
        let after = Jemalloc::counted();
        let bytes = after.1 - before.1;
        assert!((20 * (4_096_000 - BATCH_BYTES)..=20 * 4_096_000).contains(&bytes), "{bytes}");
        let allocations = after.0 - before.0;
        assert!(
            (20 * (1_000 - BATCH_ALLOCATIONS)..=20_000).contains(&allocations),
            "{allocations}"
        );

        let counted = Jemalloc::counted().1;
        let own = std::thread::spawn(|| {
            Jemalloc::set_this_thread_apart();
            allocate_and_free(4_096, 10_000);
        });
        own.join().expect("the thread does not panic");
        let looked = Jemalloc::counted().1 - counted;
        assert!(looked < 1 << 20, "a thread of the agent's own counted {looked} of 40 MB");

        let after = Jemalloc::counted();
        let layout = Layout::from_size_align(1 << 20, 8).expect("8 is a power of two");
        // SAFETY: the layout is not zero-sized, and the block is resized and freed with the layout it has.
        unsafe {
            let block = Jemalloc.alloc_zeroed(layout);
            let block = Jemalloc.realloc(block, layout, 2 << 20);
            let grown = Layout::from_size_align(2 << 20, 8).expect("8 is a power of two");
            Jemalloc.dealloc(
                Jemalloc.realloc(block, grown, 4 << 20),
                Layout::from_size_align(4 << 20, 8).expect("8"),
            );
        }
        let resized = Jemalloc::counted().1 - after.1;
        assert!(
            (4 << 20..=7 << 20).contains(&resized),
            "in place: 4 MiB, always moved: 7 MiB; {resized}"
        );
    }
}
