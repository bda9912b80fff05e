//! When the good batches of one endpoint arrived: kept once per batch, not once per point.
//!
//! In: a batch's times. Out: those of a batch by its number. Never: more batches than the history and the limit allow.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::{Moment, Timestamp};

/// Batches that the ring makes room for at a time: it grows to what is needed and little more.
const ROOM: usize = 2;

#[derive(Clone, Copy, Debug)]
struct BatchTimes {
    /// Nanoseconds since the program started, for 584 years: half the size of a [`Moment`].
    arrived_nanos: u64,
    /// The source time of its first sample, which mostly is that of all.
    at: Timestamp,
}

/// The times of the last good batches, which are numbered from 1 without gaps.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    ring: VecDeque<BatchTimes>,
    last: u32,
}

impl Times {
    /// The number of the last good batch; 0 before the first.
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    /// Takes the next good batch and numbers it.
    pub(super) fn push(&mut self, arrived: Moment, at: Timestamp) -> u32 {
        let nanos = arrived.since(Moment::default()).as_nanos();
        let arrived_nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        if self.ring.len() == self.ring.capacity() {
            self.ring.reserve_exact(ROOM);
        }
        self.ring.push_back(BatchTimes { arrived_nanos, at });
        self.last = self.last.saturating_add(1);
        self.last
    }

    fn get(&self, number: u32) -> Option<BatchTimes> {
        let back = usize::try_from(self.last.checked_sub(number)?).ok()?;
        let index = self.ring.len().checked_sub(back)?.checked_sub(1)?;
        self.ring.get(index).copied()
    }

    /// When a batch arrived, while it is kept.
    pub(super) fn arrived(&self, number: u32) -> Option<Moment> {
        let nanos = self.get(number)?.arrived_nanos;
        Some(Moment::after_start(Duration::from_nanos(nanos)))
    }

    /// The source time of a batch's first sample, while it is kept.
    pub(super) fn at(&self, number: u32) -> Option<Timestamp> {
        Some(self.get(number)?.at)
    }

    /// The oldest batch to keep: not more than `history` before `now`, and one of the last `max`. The last one stays.
    pub(super) fn oldest_wanted(&self, now: Moment, history: Duration, max: usize) -> u32 {
        let mut oldest = self.last;
        for number in (0..self.last).rev().take(max.saturating_sub(1)) {
            match self.arrived(number) {
                Some(arrived) if now.since(arrived) <= history => oldest = number,
                _ => break,
            }
        }
        oldest
    }

    /// Forgets the batches before `oldest`.
    pub(super) fn forget_before(&mut self, oldest: u32) {
        let wanted = self.last.saturating_sub(oldest).saturating_add(1);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        self.ring.drain(..self.ring.len().saturating_sub(wanted));
        if self.ring.capacity() > 2 * self.ring.len() + ROOM {
            self.ring.shrink_to(self.ring.len() + ROOM);
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.ring.capacity() * size_of::<BatchTimes>()
    }
}
