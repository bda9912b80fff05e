//! State that many threads write at once: each thread has a copy that it shares with few others.
//!
//! In: writes with relaxed atomics, to the calling thread's copy. Out: all copies, to be added up when they are read. Never: a
//! lock, and never two copies on one cache line.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Copies at most. As many are used as there are cores: more threads cannot write at the same time.
const MAX_SHARDS: usize = 8;

/// Up to eight copies of `T`, each made with the first write of a thread that uses it.
#[derive(Debug)]
pub struct Sharded<T> {
    shards: [OnceLock<Box<Shard<T>>>; MAX_SHARDS],
}

/// Two cache lines apart, because processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard<T>(T);

impl<T> Default for Sharded<T> {
    fn default() -> Self {
        Self { shards: [const { OnceLock::new() }; MAX_SHARDS] }
    }
}

impl<T: Default> Sharded<T> {
    /// The copy of the calling thread.
    #[inline]
    pub fn own(&self) -> &T {
        let shard = &self.shards[own_shard() % MAX_SHARDS];
        match shard.get() {
            Some(shard) => &shard.0,
            None => &shard.get_or_init(Box::default).0,
        }
    }

    /// All copies that were written to.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.shards.iter().filter_map(OnceLock::get).map(|shard| &shard.0)
    }
}

const UNASSIGNED: usize = usize::MAX;

thread_local! {
    static OWN: Cell<usize> = const { Cell::new(UNASSIGNED) };
}

#[inline]
fn own_shard() -> usize {
    match OWN.get() {
        UNASSIGNED => assign(),
        shard => shard,
    }
}

/// Round robin, so that the workers of a runtime, started one after the other, meet in few shards.
#[cold]
fn assign() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static SHARDS: OnceLock<usize> = OnceLock::new();
    let shards = SHARDS.get_or_init(|| {
        std::thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS)
    });
    let shard = NEXT.fetch_add(1, Ordering::Relaxed) % shards;
    OWN.set(shard);
    shard
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn what_many_threads_write_adds_up() {
        let counter = Sharded::<AtomicU64>::default();
        assert_eq!(counter.iter().count(), 0);
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        counter.own().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let total: u64 = counter.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        assert_eq!(total, 20_000);
        assert!(counter.iter().count() <= MAX_SHARDS);
    }

    #[test]
    fn copies_lie_on_lines_of_their_own() {
        assert_eq!(align_of::<Shard<u8>>(), 128);
        assert_eq!(size_of::<Shard<u8>>(), 128);
    }
}
