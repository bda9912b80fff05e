//! Answers of the API server that may be used again for a short time.
//!
//! In: an answer under a key of its question. Out: the answer, until its time is over. Never: more entries than the bound,
//! and never the question itself, which can hold a token or the groups of a user.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A bounded map of answers with an end.
#[derive(Debug)]
pub(super) struct ReviewCache<K, V> {
    capacity: usize,
    entries: Mutex<HashMap<K, Entry<V>>>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    ends: Instant,
}

impl<K: Copy + Eq + Hash, V: Clone> ReviewCache<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, entries: Mutex::default() }
    }

    /// The answer, if its time is not over at `now`.
    pub(super) fn get(&self, key: &K, now: Instant) -> Option<V> {
        self.entries.lock().get(key).filter(|entry| now < entry.ends).map(|e| e.value.clone())
    }

    /// Keeps an answer from `now` on. At the bound, those whose time is over make room, else the one that ends first.
    pub(super) fn put(&self, key: K, value: V, now: Instant, keep_for: Duration) {
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

/// Makes keys of questions that need not be secret, without a copy of them.
///
/// 128 bits of two SipHashes whose keys nobody outside knows: who may choose the question cannot find a second one with the
/// same key, and by chance it happens once in 10^30 for as many answers as are kept.
#[derive(Debug, Default)]
pub(super) struct Keys(RandomState, RandomState);

/// The key of a question.
pub(super) type Key = (u64, u64);

impl Keys {
    pub(super) fn of(&self, question: &impl Hash) -> Key {
        (self.0.hash_one(question), self.1.hash_one(question))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_its_time() {
        let cache = ReviewCache::new(2);
        let start = Instant::now();
        let key = "a";
        cache.put(key, 1, start, Duration::from_secs(10));
        assert_eq!(cache.get(&key, start + Duration::from_millis(9_999)), Some(1));
        assert_eq!(cache.get(&key, start + Duration::from_secs(10)), None);
    }

    #[test]
    fn the_bound_holds_and_the_first_to_end_goes() {
        let cache = ReviewCache::new(2);
        let start = Instant::now();
        for (name, seconds) in [("a", 5), ("b", 9), ("c", 9)] {
            cache.put(name, name, start, Duration::from_secs(seconds));
        }
        assert_eq!(cache.get(&"a", start), None);
        assert_eq!(cache.get(&"b", start), Some("b"));
        assert_eq!(cache.entries.lock().len(), 2);
    }

    #[test]
    fn questions_whose_words_are_cut_differently_have_different_keys() {
        let keys = Keys::default();
        assert_eq!(keys.of(&("ab", "c")), keys.of(&("ab", "c")));
        assert_ne!(keys.of(&("ab", "c")), keys.of(&("a", "bc")));
        assert_ne!(keys.of(&vec!["a", "b"]), keys.of(&vec!["ab"]));
        assert_ne!(
            keys.of(&("ab", "c")),
            Keys::default().of(&("ab", "c")),
            "keys are of one process"
        );
    }
}
