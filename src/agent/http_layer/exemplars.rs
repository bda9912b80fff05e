//! For each bucket of a latency series one request that can be looked up.
//!
//! In: requests of sampled traces. Out: the newest of each classic bucket. Never: a wait when a request is recorded; one that
//! meets another at the same bucket is not kept.

use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;

use super::trace_context::TraceContext;
use crate::signals::exponential::{CLASSIC_BUCKETS, classic_bucket};
use crate::time::Timestamp;

/// A request with its trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::agent) struct Exemplar {
    pub(in crate::agent) trace: u128,
    pub(in crate::agent) span: u64,
    pub(in crate::agent) duration: Duration,
    pub(in crate::agent) at: Timestamp,
}

type Buckets = [Mutex<Option<Exemplar>>; CLASSIC_BUCKETS + 1];

/// At most one exemplar per classic bucket, the last for what is over all bounds. Takes memory with the first.
#[derive(Debug, Default)]
pub(in crate::agent) struct Exemplars(OnceLock<Box<Buckets>>);

impl Exemplars {
    pub(super) fn offer(&self, context: TraceContext, duration: Duration, at: Timestamp) {
        let buckets = self.0.get_or_init(|| Box::new([const { Mutex::new(None) }; _]));
        if let Some(mut kept) = buckets[classic_bucket(duration)].try_lock() {
            *kept = Some(Exemplar { trace: context.trace, span: context.span, duration, at });
        }
    }

    /// The exemplar of a classic bucket.
    pub(in crate::agent) fn of(&self, bucket: usize) -> Option<Exemplar> {
        *self.0.get()?.get(bucket)?.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_keeps_its_newest_and_a_busy_bucket_is_not_waited_for() {
        let exemplars = Exemplars::default();
        assert_eq!(exemplars.of(0), None);
        let context = |trace| TraceContext { trace, span: 7, sampled: true };
        let (second, at) = (Duration::from_secs(1), Timestamp::from_millis(5));
        exemplars.offer(context(1), second, at);
        exemplars.offer(context(2), second, at);
        let bucket = classic_bucket(second);
        assert_eq!(exemplars.of(bucket).map(|kept| kept.trace), Some(2));
        let buckets = exemplars.0.get().expect("there are exemplars");
        let busy = buckets[bucket].lock();
        exemplars.offer(context(3), second, at);
        drop(busy);
        assert_eq!(exemplars.of(bucket).map(|kept| kept.trace), Some(2));
        exemplars.offer(context(4), Duration::from_secs(1_000), at);
        assert_eq!(exemplars.of(CLASSIC_BUCKETS).map(|kept| kept.trace), Some(4));
    }
}
