//! Which thread writes to which copy, and whether it does so alone.
//!
//! In: threads that begin and end. Out: a seat for each. Never: a seat that two living threads have alone. The threads
//! themselves are not known here: the models of `loom/` drive it with theirs.

#[cfg(loom)]
use loom::sync::Mutex;
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(not(loom))]
use std::sync::Mutex;
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Seats with one writer at most, and as many that are shared. As many are used as there are cores: more threads cannot
/// write at the same time.
pub(super) const MAX_CORES: usize = 8;

/// Who writes to a copy while the calling thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// Nobody else.
    Alone,
    /// Other threads, perhaps.
    Several,
}

impl Writers {
    pub(super) const fn of(seat: usize) -> Self {
        if seat < MAX_CORES { Self::Alone } else { Self::Several }
    }

    /// Adds to a number of the copy; wraps around.
    #[inline(always)]
    pub fn add(self, number: &AtomicU64, more: u64) {
        match self {
            Self::Alone => {
                let sum = number.load(Ordering::Relaxed).wrapping_add(more);
                number.store(sum, Ordering::Relaxed);
            }
            Self::Several => {
                number.fetch_add(more, Ordering::Relaxed);
            }
        }
    }
}

/// The seats of a program with so many cores, at most [`MAX_CORES`].
#[derive(Debug)]
pub(super) struct Seats {
    cores: usize,
    /// Given back. The lock makes the last writes of the former holder visible to the next.
    free: Mutex<Vec<usize>>,
    leased: AtomicUsize,
    shared: AtomicUsize,
}

impl Seats {
    pub(super) fn new(cores: usize) -> Self {
        let (leased, shared) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { cores: cores.clamp(1, MAX_CORES), free: Mutex::new(Vec::new()), leased, shared }
    }

    /// A seat that nobody else has until it is given back, if there is one.
    pub(super) fn lease(&self) -> Option<usize> {
        let given_back = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        given_back.or_else(|| {
            let next = |leased| (leased < self.cores).then_some(leased + 1);
            self.leased.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
        })
    }

    /// Ends a lease; of a shared seat, nothing.
    pub(super) fn give_back(&self, seat: usize) {
        if Writers::of(seat) == Writers::Alone {
            self.free.lock().unwrap_or_else(PoisonError::into_inner).push(seat);
        }
    }

    /// Round robin, so that the workers of a runtime, started one after the other, meet in few copies.
    pub(super) fn shared(&self) -> usize {
        MAX_CORES + self.shared.fetch_add(1, Ordering::Relaxed) % self.cores
    }
}
