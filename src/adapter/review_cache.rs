//! Answers of the API server that may be used again for a short time.
//!
//! In: an answer under the SHA-256 of its question. Out: the answer, until its time is over. Never: more entries than the
//! bound, and never the question itself, which can hold a token.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// The SHA-256 of a question.
pub(super) type ReviewKey = [u8; 32];

/// A bounded map of answers with an end.
#[derive(Debug)]
pub(super) struct ReviewCache<V> {
    capacity: usize,
    entries: Mutex<HashMap<ReviewKey, Entry<V>>>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    ends: Instant,
}

/// The key of a question.
pub(super) fn key_of(question: &[u8]) -> ReviewKey {
    Sha256::digest(question).into()
}

impl<V: Clone> ReviewCache<V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, entries: Mutex::default() }
    }

    /// The answer, if its time is not over at `now`.
    pub(super) fn get(&self, key: &ReviewKey, now: Instant) -> Option<V> {
        self.entries.lock().get(key).filter(|entry| now < entry.ends).map(|e| e.value.clone())
    }

    /// Keeps an answer from `now` on. At the bound, those whose time is over make room, else the one that ends first.
    pub(super) fn put(&self, key: ReviewKey, value: V, now: Instant, keep_for: Duration) {
        let mut entries = self.entries.lock();
        if entries.len() >= self.capacity {
            entries.retain(|_, entry| now < entry.ends);
        }
        if entries.len() >= self.capacity
            && let Some(first) = entries.iter().min_by_key(|(_, e)| e.ends).map(|(key, _)| *key)
        {
            entries.remove(&first);
        }
        entries.insert(key, Entry { value, ends: now + keep_for });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_its_time() {
        let cache = ReviewCache::new(2);
        let start = Instant::now();
        let key = key_of(b"a");
        cache.put(key, 1, start, Duration::from_secs(10));
        assert_eq!(cache.get(&key, start + Duration::from_millis(9_999)), Some(1));
        assert_eq!(cache.get(&key, start + Duration::from_secs(10)), None);
    }

    #[test]
    fn the_bound_holds_and_the_first_to_end_goes() {
        let cache = ReviewCache::new(2);
        let start = Instant::now();
        for (name, seconds) in [("a", 5), ("b", 9), ("c", 9)] {
            cache.put(key_of(name.as_bytes()), name, start, Duration::from_secs(seconds));
        }
        assert_eq!(cache.get(&key_of(b"a"), start), None);
        assert_eq!(cache.get(&key_of(b"b"), start), Some("b"));
        assert_eq!(cache.entries.lock().len(), 2);
    }
}
