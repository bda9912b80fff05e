//! Ring, rules and captures, without a clock.

use std::sync::Arc;

use super::capture::{Capture, Captures, File, MAX_BYTES, MAX_CAPTURES};
use super::*;
use crate::time::Moment;
use axum::http;

fn at(seconds: u64) -> Now {
    Now::default() + Duration::from_secs(seconds)
}

fn slice(second: u64, values: &[(&'static str, f64)]) -> Arc<Slice> {
    let value = |(name, value): &(&'static str, f64)| SliceValue {
        name,
        labels: Arc::from(""),
        value: *value,
    };
    let values = values.iter().map(value).collect();
    let since = at(second.saturating_sub(1)).wall;
    Arc::new(Slice::new(since, at(second), CpuSlice::default(), values))
}

fn seconds(slices: &[Arc<Slice>]) -> Vec<u64> {
    let second = |slice: &Arc<Slice>| slice.until.monotonic.since(Moment::default()).as_secs();
    slices.iter().map(second).collect()
}

#[test]
fn the_ring_keeps_its_window_and_no_more_bytes_than_it_may() {
    let mut ring =
        EvidenceRing::new(RingLimits { window: Duration::from_secs(10), bytes: 1 << 20 });
    for second in 1..=30 {
        ring.push(slice(second, &[]));
    }
    let kept = ring.last(Duration::from_secs(100), at(30));
    assert_eq!(seconds(&kept), (21..=30).collect::<Vec<_>>());
    assert_eq!(seconds(&ring.last(Duration::from_secs(3), at(30))), [28, 29, 30]);

    let large = [("tokio_alive_tasks", 1.0); 1_000];
    let one = {
        let mut ring = EvidenceRing::new(RingLimits { window: Duration::MAX, bytes: usize::MAX });
        ring.push(slice(1, &large));
        ring.bytes()
    };
    let limits = RingLimits { window: Duration::from_secs(100), bytes: 3 * one + one / 2 };
    let mut ring = EvidenceRing::new(limits);
    for second in 1..=30 {
        ring.push(slice(second, &large));
        assert!(ring.bytes() <= limits.bytes);
    }
    assert_eq!((ring.len(), ring.bytes()), (3, 3 * one));
}

fn fired(rules: &mut Rules, readings: &[(u64, &'static str, f64)]) -> Vec<(u64, String)> {
    let mut reasons = Vec::new();
    for (second, name, value) in readings {
        let fired = rules.fired(&slice(*second, &[(name, *value)]));
        reasons.extend(fired.into_iter().map(|reason| (*second, reason)));
    }
    reasons
}

fn rule(signal: &str, above: f64) -> PinRule {
    PinRule { signal: signal.to_owned(), above, cooldown: Duration::from_secs(60) }
}

#[test]
fn a_gauge_pins_when_it_crosses_and_not_while_it_stays_above() {
    const TASKS: &str = "tokio_alive_tasks";
    let mut rules = Rules::new(vec![rule(TASKS, 100.0)], 0.9);
    let readings = [
        (1, TASKS, 90.0),
        (2, TASKS, 101.0),
        (3, TASKS, 500.0),
        // Under and over again within the cooldown.
        (4, TASKS, 50.0),
        (5, TASKS, 200.0),
        (70, TASKS, 50.0),
        (71, TASKS, 200.0),
    ];
    let reason = |value| format!("tokio_alive_tasks is {value}, above 100");
    assert_eq!(fired(&mut rules, &readings), [(2, reason("101.000")), (71, reason("200.000"))]);
}

#[test]
fn a_counter_pins_by_its_rate_and_a_restart_of_it_is_no_rate() {
    const BYTES: &str = "heap_allocation_bytes_total";
    let mut rules = Rules::new(vec![rule(BYTES, 1e6)], 0.9);
    let readings = [(1, BYTES, 9e9), (2, BYTES, 9.0001e9), (3, BYTES, 5e6), (5, BYTES, 9e6)];
    let expected = "heap_allocation_bytes_total is 2000000.000 per second, above 1000000";
    assert_eq!(fired(&mut rules, &readings), [(5, expected.to_owned())]);
}

#[test]
fn memory_near_its_limit_pins_without_a_rule() {
    let mut rules = Rules::new(Vec::new(), 0.9);
    let slice = |used| {
        slice(1, &[("cgroup_memory_working_set_bytes", used), ("cgroup_memory_limit_bytes", 100.0)])
    };
    assert_eq!(rules.fired(&slice(89.0)), [""; 0]);
    assert_eq!(rules.fired(&slice(93.0)), ["memory is at 93 % of its limit"]);
    assert_eq!(rules.fired(&slice(95.0)), [""; 0]);
}

#[test]
fn a_capture_goes_on_collecting_until_its_end() {
    let mut captures = Captures::new(7);
    let past = vec![slice(9, &[]), slice(10, &[])];
    let (id, work) = captures.open("why".to_owned(), past, at(10), Duration::from_secs(2));
    assert_eq!((id, seconds(&work.slices)), (7, vec![9, 10]));
    assert!(captures.add(&slice(11, &[])).is_empty());
    let due = captures.add(&slice(12, &[]));
    assert_eq!(due.iter().map(|work| seconds(&work.slices)).collect::<Vec<_>>(), [[9, 10, 11, 12]]);
    assert!(captures.add(&slice(13, &[])).is_empty());
    assert!(captures.find(7).is_some_and(Capture::is_complete));
    assert!(captures.remove(7) && !captures.remove(7));
}

#[test]
fn captures_are_bounded_in_number_and_bytes_and_the_oldest_goes_first() {
    let mut captures = Captures::new(0);
    for _ in 0..MAX_CAPTURES + 2 {
        captures.open(String::new(), Vec::new(), at(1), Duration::ZERO);
        captures.add(&slice(2, &[]));
    }
    let ids = |captures: &Captures| captures.iter().map(|capture| capture.id).collect::<Vec<_>>();
    assert_eq!(ids(&captures).len(), MAX_CAPTURES);
    assert_eq!(ids(&captures)[0], 2);
    let newest = ids(&captures)[MAX_CAPTURES - 1];
    let put = |captures: &mut Captures, id, slices: usize, bytes| {
        let work = Work { id, slices: vec![slice(1, &[]); slices] };
        captures.put(&work, vec![File::new("heap", vec![0; bytes])], Vec::new()).is_some()
    };
    assert!(put(&mut captures, newest, 2, MAX_BYTES));
    assert!(!put(&mut captures, newest, 1, 1), "files of fewer slices replace nothing");
    assert!(put(&mut captures, 3, 1, 10));
    assert!(ids(&captures).len() < MAX_CAPTURES, "{:?}", ids(&captures));
    assert_eq!(ids(&captures).last(), Some(&newest));
}

/// Status and JSON body of a request to the routes.
async fn ask(evidence: &Evidence, method: &str, path: &str) -> (u16, serde_json::Value) {
    let request = http::Request::builder().method(method).uri(path).body(axum::body::Body::empty());
    let answer = tower::ServiceExt::oneshot(
        routes::<()>(evidence.clone()).with_state(()),
        request.expect("a valid request"),
    );
    let answer = answer.await.expect("axum is infallible");
    let status = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body in memory");
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

/// Encoding runs on another thread; it is done when the description lists files.
async fn described(evidence: &Evidence, path: &str) -> serde_json::Value {
    for _ in 0..200 {
        let (status, body) = ask(evidence, "GET", path).await;
        assert_eq!(status, 200);
        if body["files"].as_array().is_some_and(|files| !files.is_empty()) {
            return body;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no files after 10 s")
}

#[tokio::test]
async fn a_pinned_window_is_listed_read_and_outlives_a_restart_on_disk() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let directory = Some(folder.path().join("captures"));
    let options = EvidenceOptions { directory, ..EvidenceOptions::default() };
    let subject = || {
        let service = pprof::Service { name: "test".to_owned(), version: String::new() };
        Subject::Itself(service, Handle::current())
    };
    let clock = Clock::start();
    let evidence = Evidence::new(subject(), clock, options.clone());
    let mut snapshot = Snapshot::default();
    snapshot.push(&crate::signals::catalogue::families::TOKIO_ALIVE_TASKS, 42.0);
    evidence.tick(clock.now(), &snapshot, &[]);

    let (status, pinned) =
        ask(&evidence, "POST", "/debug/headroom/capture?after=0&reason=slow").await;
    assert_eq!((status, &pinned["state"]), (201, &"collecting".into()));
    let one = described(&evidence, "/debug/headroom/capture/0").await;
    assert_eq!((&one["id"], &one["reason"]), (&0.into(), &"slow".into()));
    let (_, signals) = ask(&evidence, "GET", "/debug/headroom/capture/0/signals.json").await;
    assert_eq!(signals["series"][0]["name"], "tokio_alive_tasks");
    let names: Vec<_> =
        one["files"].as_array().into_iter().flatten().map(|file| &file["name"]).collect();
    assert!(names.contains(&&"profile".into()) && names.contains(&&"tasks".into()), "{names:?}");
    assert_eq!(signals["series"][0]["points"][0][1], 42.0);
    evidence.tick(clock.now(), &snapshot, &[]);
    let (_, list) = ask(&evidence, "GET", "/debug/headroom/capture").await;
    assert_eq!(
        (&list["ring"]["slices"], &list["captures"][0]["state"]),
        (&2.into(), &"complete".into())
    );
    let (_, now) = ask(&evidence, "GET", "/debug/headroom/capture/now/signals.json").await;
    assert_eq!(now["series"][0]["points"].as_array().map(Vec::len), Some(2));

    for (method, path, expected) in [
        ("GET", "/debug/headroom/capture/0/passwd", 404),
        ("GET", "/debug/headroom/capture/9", 404),
        ("POST", "/debug/headroom/capture?after=301", 400),
        ("POST", "/debug/headroom/capture?afterwards=1", 400),
        ("DELETE", "/debug/headroom/capture/0", 204),
        ("GET", "/debug/headroom/capture/0", 404),
    ] {
        assert_eq!(ask(&evidence, method, path).await.0, expected, "{method} {path}");
    }
    let written = folder.path().join("captures/capture-0/capture.json");
    for _ in 0..200 {
        if written.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let text = std::fs::read_to_string(written).expect("the capture is on disk");
    assert!(text.contains("\"reason\":\"slow\""), "{text}");
    let restarted = Evidence::new(subject(), clock, options);
    let (_, next) = ask(&restarted, "POST", "/debug/headroom/capture?after=0").await;
    assert_eq!(next["id"], 1);
}
