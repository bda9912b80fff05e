//! What the store says that it holds, against what the allocator gave it. A program of its own, so that nobody else allocates.

use std::time::Duration;

use headroom::sample::{Batch, EndpointKey, MetricName, PodKey, Sample, SeriesKey};
use headroom::store::{Limits, Store};
use headroom::time::{Moment, Timestamp};
use tikv_jemalloc_ctl::thread::{ThreadLocal, allocatedp, deallocatedp};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What this thread allocated and did not free.
fn held_by_this_thread() -> u64 {
    let allocated = allocatedp::read().map(ThreadLocal::get).expect("jemalloc counts");
    allocated - deallocatedp::read().map(ThreadLocal::get).expect("jemalloc counts")
}

/// A pod's answer as a scrape reads it: every name and label is made anew.
fn scraped(pod: usize, round: u32) -> Batch {
    let at = Timestamp::from_millis(i64::from(round) * 5000);
    let reading = |index: u32| {
        let (index_text, step) = (index.to_string(), f64::from(index * index));
        let labels = [("endpoint", "POST /checkout"), ("le", index_text.as_str())];
        let series =
            SeriesKey { name: MetricName::new("c_bucket"), labels: labels.into_iter().collect() };
        // A third are no whole numbers, as sums of seconds are.
        let value = f64::from(round) * if index.is_multiple_of(3) { step * 0.1 } else { step };
        Sample { series, value, at }
    };
    Batch {
        endpoint: EndpointKey {
            pod: PodKey(format!("{pod:036}").into()),
            port: 9469,
            path: "/metrics".into(),
            interval: Duration::from_secs(5),
        },
        arrived: Moment::after_start(Duration::from_secs(u64::from(round) * 5)),
        arrived_at: at,
        outcome: Ok((0..27).map(reading).collect()),
        dropped: Vec::new(),
    }
}

#[test]
fn the_store_counts_the_bytes_that_the_allocator_gave_it() {
    let before = held_by_this_thread();
    let limits = Limits { history: Duration::from_secs(100), ..Limits::default() };
    let mut store = Store::new(limits);
    for rounds in [1..2, 2..10, 10..30] {
        for (round, pod) in rounds.flat_map(|round| (0..1000).map(move |pod| (round, pod))) {
            store.record(&scraped(pod, round));
        }
        let counted = u32::try_from(store.stats().bytes).expect("some megabytes");
        let held = u32::try_from(held_by_this_thread() - before).expect("some megabytes");
        let ratio = f64::from(counted) / f64::from(held);
        assert!((0.75..1.25).contains(&ratio), "counted {counted} of {held}");
    }
}
