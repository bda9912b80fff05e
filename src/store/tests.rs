//! Facts about windows, resets, repeated and late points, ended series and bounds.

use super::*;
use crate::sample::{CollectFailure, DropReason, Dropped, MetricName, PodKey, Sample, SeriesKey};
use crate::time::{Moment, Timestamp};

const GAP: Duration = Duration::from_millis(500);

fn endpoint_of(uid: &str) -> EndpointKey {
    let interval = Duration::from_secs(1);
    EndpointKey { pod: PodKey(uid.into()), port: 9469, path: "/metrics".into(), interval }
}

fn pod() -> EndpointKey {
    endpoint_of("uid")
}

fn sample(name: &str, labels: &[(&str, &str)], at: i64, value: f64) -> Sample {
    let series =
        SeriesKey { name: MetricName::new(name), labels: labels.iter().copied().collect() };
    Sample { series, value, at: Timestamp::from_millis(at * 1000) }
}

/// A good batch that arrives at `second`.
fn batch(second: i64, samples: Vec<Sample>) -> Batch {
    Batch {
        endpoint: pod(),
        arrived: Moment::after_start(Duration::from_secs(second.unsigned_abs())),
        arrived_at: Timestamp::from_millis(second * 1000),
        outcome: Ok(samples),
        dropped: vec![],
    }
}

fn store(batches: impl IntoIterator<Item = Batch>) -> Store {
    let mut store = Store::new(Limits { history: Duration::from_secs(60), ..Limits::default() });
    for batch in batches {
        store.record(&batch);
    }
    store
}

fn only<'a>(store: &'a Store, name: &str) -> Series<'a> {
    store.pod(&pod()).and_then(|window| window.family(name).next()).expect("the series is live").1
}

fn check_increase(readings: &[(i64, f64)], expected: Option<(f64, f64)>) {
    let store =
        store(readings.iter().map(|&(at, value)| batch(at, vec![sample("c", &[], at, value)])));
    let span = only(&store, "c").span_over(Duration::from_secs(30));
    assert_eq!(span.map(|span| (span.increase, span.seconds())), expected, "{readings:?}");
}

#[test]
fn a_counter_that_restarts_never_falls_and_never_jumps() {
    check_increase(&[(1, 100.0)], None);
    check_increase(&[(1, 100.0), (2, 130.0)], Some((30.0, 1.0)));
    check_increase(&[(1, 100.0), (2, 7.0)], Some((7.0, 1.0)));
    check_increase(&[(1, 100.0), (2, 7.0), (3, 9.0)], Some((9.0, 2.0)));
    check_increase(&[(1, 1e9), (2, 0.0), (3, 0.0)], Some((0.0, 2.0)));
}

#[test]
fn a_source_that_does_not_move_on_grows_old() {
    let same = |second| batch(second, vec![sample("g", &[], 1, 5.0)]);
    let store = store([same(1), same(2), same(9)]);
    let window = store.pod(&pod()).expect("recorded");
    assert_eq!(only(&store, "g").points().count(), 1);
    assert_eq!(
        window.newest_point().map(|seen| seen.arrived_at),
        Some(Timestamp::from_millis(1000))
    );
    assert_eq!(window.last_good().map(|seen| seen.arrived_at), Some(Timestamp::from_millis(9000)));
}

#[test]
fn a_late_point_is_dropped_and_counted() {
    let store = store([
        batch(10, vec![sample("g", &[], 10, 1.0)]),
        batch(11, vec![sample("g", &[], 9, 2.0)]),
    ]);
    assert_eq!(only(&store, "g").newest().value.to_bits(), 1.0_f64.to_bits());
    assert_eq!(store.stats().dropped.out_of_order, 1);
}

#[test]
fn a_wall_clock_that_is_set_back_starts_the_series_anew() {
    let mut set_back = batch(101, vec![sample("g", &[], 11, 2.0)]);
    set_back.arrived_at = Timestamp::from_millis(11_000);
    let store = store([batch(100, vec![sample("g", &[], 100, 1.0)]), set_back]);
    assert_eq!(only(&store, "g").newest().at, Timestamp::from_millis(11_000));
    assert_eq!(only(&store, "g").points().count(), 1);
}

#[test]
fn a_series_that_a_later_good_batch_lacks_is_gone_but_a_failure_keeps_it() {
    let mut store = store([batch(1, vec![sample("a", &[], 1, 1.0), sample("b", &[], 1, 1.0)])]);
    let failure = CollectFailure::Status(503);
    store.record(&Batch { outcome: Err(failure.clone()), ..batch(2, vec![]) });
    let window = store.pod(&pod()).expect("recorded");
    assert!(window.serves("b"));
    assert_eq!(window.last_failure().map(|last| &last.failure), Some(&failure));
    store.record(&batch(3, vec![sample("a", &[], 3, 1.0)]));
    let window = store.pod(&pod()).expect("recorded");
    assert!(window.serves("a") && !window.serves("b"));
    assert_eq!(window.last_failure(), None);
}

#[test]
fn a_new_label_set_beside_siblings_counted_zero_before() {
    let ok = |at, value| sample("c", &[("status", "200")], at, value);
    let failed = |at, value| sample("c", &[("status", "500")], at, value);
    let store =
        store([batch(1, vec![ok(1, 1000.0)]), batch(2, vec![ok(2, 1010.0), failed(2, 4.0)])]);
    let window = store.pod(&pod()).expect("recorded");
    let increases: Vec<_> =
        window.family("c").map(|(_, series)| series.span(GAP).map(|span| span.increase)).collect();
    assert_eq!(increases, [Some(10.0), Some(4.0)]);
}

#[test]
fn a_family_that_appears_has_no_increase_yet() {
    let store = store([
        batch(1, vec![sample("a", &[], 1, 1.0)]),
        batch(2, vec![sample("a", &[], 2, 1.0), sample("cpu", &[], 2, 1e6)]),
    ]);
    assert_eq!(only(&store, "cpu").span(GAP), None);
}

#[test]
fn a_label_set_that_was_left_out_before_is_no_jump_when_it_returns() {
    let ok = |at| sample("c", &[("status", "200")], at, 1.0);
    let cut = Batch {
        dropped: vec![Dropped {
            name: MetricName::new("c"),
            reason: DropReason::TooManySeries,
            samples: 1,
        }],
        ..batch(1, vec![ok(1)])
    };
    let store = store([cut, batch(2, vec![ok(2), sample("c", &[("status", "500")], 2, 1e9)])]);
    let window = store.pod(&pod()).expect("recorded");
    let jump = window
        .family("c")
        .filter_map(|(_, series)| series.span(GAP))
        .any(|span| span.increase > 1.0);
    assert!(!jump);
}

#[test]
fn a_family_that_lost_samples_is_not_complete_until_a_batch_keeps_them_all() {
    let lost = Dropped { name: MetricName::new("c"), reason: DropReason::Duplicate, samples: 2 };
    let cut = Batch {
        dropped: vec![lost],
        ..batch(1, vec![sample("c", &[], 1, 1.0), sample("d", &[], 1, 1.0)])
    };
    let mut limited = Store::new(Limits { series_per_pod: 1, ..Limits::default() });
    limited.record(&batch(1, vec![sample("c", &[], 1, 1.0), sample("d", &[], 1, 1.0)]));
    let window = limited.pod(&pod()).expect("recorded");
    assert!(window.is_complete("c") && !window.is_complete("d"), "over the limit");
    let mut store = store([cut]);
    let window = store.pod(&pod()).expect("recorded");
    assert!(!window.is_complete("c") && window.is_complete("d"), "dropped by the source");
    store.record(&batch(2, vec![sample("c", &[], 2, 1.0)]));
    assert!(store.pod(&pod()).expect("recorded").is_complete("c"));
}

#[test]
fn a_series_that_flaps_is_no_jump_when_it_returns() {
    let two = |at, value| {
        vec![sample("c", &[("x", "1")], at, 1.0), sample("c", &[("x", "2")], at, value)]
    };
    let one = |at| vec![sample("c", &[("x", "1")], at, 1.0)];
    let store = store([batch(1, two(1, 500.0)), batch(2, one(2)), batch(3, two(3, 510.0))]);
    let window = store.pod(&pod()).expect("recorded");
    let returned = window.family("c").nth(1).and_then(|(_, series)| series.span(GAP));
    assert_eq!(returned.map(|span| (span.increase, span.seconds())), Some((10.0, 2.0)));
}

#[test]
fn a_span_is_divided_by_its_own_time() {
    let readings = [(1, 0.0), (2, 10.0), (3, 30.0), (13, 40.0)];
    let store = store(readings.map(|(at, value)| batch(at, vec![sample("c", &[], at, value)])));
    let rate = |gap| only(&store, "c").span(Duration::from_secs(gap)).map(|span| span.rate());
    assert_eq!(rate(1), Some(1.0));
    assert_eq!(rate(11), Some(30.0 / 11.0));
    assert_eq!(rate(13), None);
}

#[test]
fn everything_is_bounded_and_what_is_dropped_is_counted() {
    let limits = Limits {
        pods: 1,
        series_per_pod: 2,
        points_per_series: 3,
        history: Duration::from_secs(60),
    };
    let mut store = Store::new(limits);
    for second in 1..=9 {
        let series = ["a", "b", "c"].map(|name| sample(name, &[], second, 1.0));
        store.record(&batch(second, series.to_vec()));
    }
    store.record(&Batch {
        endpoint: endpoint_of("other"),
        ..batch(10, vec![sample("a", &[], 10, 1.0)])
    });
    let stats = store.stats();
    assert_eq!((stats.pods, stats.series, stats.points), (1, 2, 6));
    assert_eq!((stats.dropped.pod_limit, stats.dropped.series_limit), (1, 9));
    store.retain(|_| false);
    assert_eq!(store.stats().pods, 0);
}

#[test]
fn points_and_ended_series_leave_with_the_history() {
    let mut store =
        store((1..=100).map(|second| batch(second, vec![sample("a", &[], second, 1.0)])));
    assert_eq!(store.stats().points, 61);
    store.record(&batch(101, vec![sample("b", &[], 101, 1.0)]));
    assert_eq!(store.stats().series, 2);
    store.record(&batch(200, vec![sample("b", &[], 200, 1.0)]));
    assert_eq!(store.stats().series, 1);
}

#[test]
fn two_endpoints_of_one_pod_never_mix_their_series() {
    let of = |endpoint: &EndpointKey, second, value| Batch {
        endpoint: endpoint.clone(),
        ..batch(second, vec![sample("g", &[], second, value)])
    };
    let here = pod();
    let elsewhere = [
        EndpointKey { port: 8080, ..pod() },
        EndpointKey { path: "/app".into(), ..pod() },
        EndpointKey { interval: Duration::from_secs(5), ..pod() },
    ];
    let mut store = store([of(&here, 1, 1.0)]);
    for (second, other) in (2..).zip(&elsewhere) {
        store.record(&of(other, second, 100.0));
    }
    store.record(&Batch { outcome: Err(CollectFailure::Status(500)), ..of(&elsewhere[0], 9, 0.0) });
    assert_eq!(only(&store, "g").points().count(), 1);
    assert_eq!(store.pod(&here).expect("recorded").last_failure(), None);
    assert_eq!(store.stats().pods, 4);
}

/// What an agent serves by default: 5 scalars, and a histogram of 20 buckets that all have requests.
fn agent_samples(second: i64, round: f64) -> Vec<Sample> {
    fn of(le: &str) -> [(&'static str, &str); 3] {
        [("endpoint", "POST /a"), ("status_code", "200"), ("le", le)]
    }
    let mut samples = vec![
        sample("tokio_alive_tasks", &[], second, 150.0 + round % 7.0),
        sample("heap_allocated_bytes", &[], second, 40e6 + 1e5 * (round % 11.0)),
        sample("heap_allocation_bytes_total", &[], second, 60e6 * round),
        sample("tokio_workers", &[], second, 4.0),
        sample("http_server_requests_in_flight", &[("endpoint", "POST /a")], second, 2.0),
    ];
    let mut count = 0.0;
    for bucket in (1..=20_u32).rev() {
        count += round * f64::from(bucket);
        let bound = format!("{bucket}");
        let name = "http_server_request_duration_seconds_bucket";
        samples.push(sample(name, &of(&bound), second, count));
    }
    for (name, value) in [("sum", count * 0.02), ("count", count)] {
        let name = format!("http_server_request_duration_seconds_{name}");
        samples.push(sample(&name, &of("")[..2], second, value));
    }
    samples
}

#[test]
fn a_pod_of_27_series_takes_4096_bytes_at_most_for_a_window_of_a_minute() {
    // `Policy::history` of a window of 60 s that is asked every 5 s.
    let mut store = Store::new(Limits { history: Duration::from_secs(100), ..Limits::default() });
    let pods: Vec<_> = (0..100).map(|pod| endpoint_of(&format!("{pod:036}"))).collect();
    for round in 1..=30_u32 {
        for endpoint in &pods {
            let second = i64::from(round) * 5;
            let samples = agent_samples(second, f64::from(round));
            store.record(&Batch { endpoint: endpoint.clone(), ..batch(second, samples) });
        }
    }
    let stats = store.stats();
    assert_eq!((stats.series, stats.points), (27 * pods.len(), 27 * 21 * pods.len()));
    assert!(stats.bytes <= 4096 * pods.len(), "{} bytes a pod", stats.bytes / pods.len());
}
