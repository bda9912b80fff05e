//! Fair parts of something bounded: requests, connections, reviews.
//!
//! In: who wants one more. Out: a [`Share`] that is given back when it is dropped, or none. Never: the last of a bound to one who
//! holds others. Source of the rule: dynamic queue thresholds (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2),
//! 1998) with a factor of 1.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A bound that is shared fairly: each may hold as many as are still free. One alone gets half of it, two get a third each; what
/// remains is for the next, however much the others want.
#[derive(Debug)]
pub(super) struct Shares {
    limit: usize,
    hasher: RandomState,
    held: Mutex<Held>,
    given_back: Notify,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    /// By the hash of who holds them, so that a name is not copied at each request. It has no more entries than `total`.
    by: HashMap<u64, usize>,
}

/// One part of the bound.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    who: u64,
}

impl Shares {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let (held, given_back) = (Mutex::default(), Notify::new());
        Arc::new(Self { limit, hasher: RandomState::new(), held, given_back })
    }

    /// One more for `who`, if they hold fewer than are free.
    pub(super) fn take(self: &Arc<Self>, who: &impl Hash) -> Option<Share> {
        let who = self.hasher.hash_one(who);
        let mut held = self.held.lock();
        let free = self.limit - held.total;
        if held.by.get(&who).copied().unwrap_or_default() >= free {
            return None;
        }
        *held.by.entry(who).or_default() += 1;
        held.total += 1;
        Some(Share { shares: self.clone(), who })
    }

    /// As [`Shares::take`], as soon as it is possible.
    pub(super) async fn wait(self: &Arc<Self>, who: &impl Hash) -> Share {
        loop {
            // It hears of what is given back from here on.
            let given_back = self.given_back.notified();
            if let Some(share) = self.take(who) {
                return share;
            }
            given_back.await;
        }
    }

    /// Whether less than half of the bound is free.
    pub(super) fn scarce(&self) -> bool {
        self.held.lock().total * 2 > self.limit
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        held.total -= 1;
        if let Some(count) = held.by.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                held.by.remove(&self.who);
            }
        }
        drop(held);
        self.shares.given_back.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn as_many_as_possible(shares: &Arc<Shares>, who: &str) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(&who)).collect()
    }

    #[test]
    fn one_gets_half_two_a_third_each_and_a_part_is_left_for_the_next() {
        let shares = Shares::new(12);
        let first = as_many_as_possible(&shares, "first");
        assert_eq!(first.len(), 6);
        let second = as_many_as_possible(&shares, "second");
        assert_eq!(second.len(), 3);
        assert_eq!(
            as_many_as_possible(&shares, "third").len(),
            2,
            "the third gives them back here"
        );
        drop(first);
        assert_eq!(as_many_as_possible(&shares, "third").len(), 5);
        drop(second);
        let held = shares.held.lock();
        assert_eq!((held.total, held.by.len()), (0, 0), "nothing is kept of those who are gone");
    }

    #[test]
    fn even_a_bound_of_one_can_be_used() {
        let shares = Shares::new(1);
        let share = shares.take(&"a");
        assert!(share.is_some() && shares.take(&"b").is_none());
        drop(share);
        assert!(shares.take(&"b").is_some());
    }

    #[tokio::test]
    async fn who_waits_gets_what_another_gives_back() {
        let shares = Shares::new(2);
        let (first, second) = (shares.wait(&"a").await, shares.wait(&"b").await);
        let mut waiting = std::pin::pin!(shares.wait(&"c"));
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        drop(waiting.await);
        drop(second);
    }
}
