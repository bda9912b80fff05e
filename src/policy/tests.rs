//! The rules of demand, each with numbers: cases are data, one check per family of rules.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::scenario::*;
use super::*;
use crate::sample::{DropReason, MetricName, SeriesKey};
use crate::units::{CpuCores, Measure, Ratio};

type Readings = Vec<(SeriesKey, f64)>;

fn tasks(per_pod: f64) -> Signal {
    signal("tasks", SignalKind::Tasks(threshold(per_pod)))
}

fn heap(per_pod: f64, base: Option<f64>) -> Signal {
    Signal { base, ..signal("heap", SignalKind::Heap(threshold(per_pod))) }
}

fn allocation(per_pod: f64) -> Signal {
    signal("alloc", SignalKind::AllocationRate(threshold(per_pod)))
}

fn cpu(per_pod: f64) -> Signal {
    signal("cpu", SignalKind::Cpu(threshold(per_pod)))
}

fn live(value: f64) -> Readings {
    vec![reading("tokio_alive_tasks", &[], value)]
}

// Plain signals: where they are read, and how pods add up.

/// Two pods report `first`, and 5 s later `second`.
fn check_plain(
    what: &str,
    signal: Signal,
    first: &Readings,
    second: &Readings,
    expected: Result<f64, &str>,
) {
    let mut scene = Scene::new(policy(vec![signal]), 2);
    scene.report_each(2, first);
    scene.decide();
    scene.pass(5.0);
    scene.report_each(2, second);
    assert_demand(what, &scene.decide(), expected);
}

fn check_gauge(what: &str, signal: Signal, readings: &Readings, expected: Result<f64, &str>) {
    check_plain(what, signal, readings, readings, expected);
}

#[test]
fn a_gauge_is_summed_over_pods_and_divided_by_the_threshold() {
    check_gauge("tasks", tasks(100.0), &live(280.0), Ok(5.6));
    check_gauge("idle is a value", tasks(100.0), &live(0.0), Ok(0.0));
    check_gauge(
        "heap over a base",
        heap(150.0, Some(50.0)),
        &vec![reading("heap_allocated_bytes", &[], 330.0)],
        Ok(5.6),
    );
    check_gauge(
        "never under a base",
        heap(150.0, Some(50.0)),
        &vec![reading("heap_allocated_bytes", &[], 20.0)],
        Ok(0.0),
    );
    let queues =
        vec![reading("depth", &[("queue", "a")], 20.0), reading("depth", &[("queue", "b")], 8.0)];
    check_gauge("sum of series and pods", metric("depth", Aggregate::Sum, 10.0), &queues, Ok(5.6));
    check_gauge("max of pods", metric("depth", Aggregate::Max, 10.0), &queues, Ok(2.8));
}

#[test]
fn the_first_family_that_a_pod_serves_counts_and_no_other() {
    let go = vec![reading("go_goroutines", &[], 150.0)];
    check_gauge("go", tasks(100.0), &go, Ok(3.0));
    let both = vec![reading("go_goroutines", &[], 150.0), reading("tokio_alive_tasks", &[], 50.0)];
    check_gauge("both", tasks(100.0), &both, Ok(1.0));
    let jvm = vec![
        reading("jvm_memory_used_bytes", &[("area", "heap"), ("id", "eden")], 100.0),
        reading("jvm_memory_used_bytes", &[("area", "heap"), ("id", "old")], 50.0),
        reading("jvm_memory_used_bytes", &[("area", "nonheap"), ("id", "code")], 999.0),
        reading("process_resident_memory_bytes", &[], 5000.0),
    ];
    check_gauge("jvm heap only", heap(100.0, None), &jvm, Ok(3.0));
    check_gauge(
        "nothing of it",
        tasks(100.0),
        &vec![reading("other", &[], 1.0)],
        Err("MetricNotServed"),
    );
}

#[test]
fn a_counter_counts_from_its_second_sample_by_its_own_time() {
    let allocated = |bytes| vec![reading("heap_allocation_bytes_total", &[], bytes)];
    check_plain(
        "28 MB/s each",
        allocation(10e6),
        &allocated(5e9),
        &allocated(5e9 + 140e6),
        Ok(5.6),
    );
    check_plain("restarted", allocation(10e6), &allocated(5e9), &allocated(50e6), Ok(2.0));
    let pools = |bytes| {
        vec![
            reading("jvm_memory_pool_allocated_bytes_total", &[("pool", "a")], bytes),
            reading("jvm_memory_pool_allocated_bytes_total", &[("pool", "b")], bytes),
        ]
    };
    check_plain("pools add up", allocation(10.0), &pools(0.0), &pools(25.0), Ok(2.0));
}

#[test]
fn a_base_that_leaves_no_room_is_a_finding_and_no_number() {
    let mut scene = Scene::new(policy(vec![heap(100.0, Some(100.0))]), 1);
    let decision = scene.settle(1, &[reading("heap_allocated_bytes", &[], 500.0)]);
    assert_demand("base = threshold", &decision, Err("BaseNotBelowThreshold"));
    assert_eq!(
        decision.findings.iter().map(|found| found.reason).collect::<Vec<_>>(),
        ["BaseNotBelowThreshold"]
    );
}

#[test]
fn after_a_restart_there_is_no_number_until_the_second_sample() {
    for (signal, readings) in [
        (tasks(100.0), live(50.0)),
        (allocation(1.0), vec![reading("heap_allocation_bytes_total", &[], 9e9)]),
        (metric("depth", Aggregate::Max, 1.0), vec![reading("depth", &[], 5.0)]),
    ] {
        let mut scene = Scene::new(policy(vec![signal.clone()]), 2);
        scene.report_each(2, &readings);
        assert_demand(&signal.name, &scene.decide(), Err("AwaitingSecondSample"));
        scene.pass(5.0);
        scene.report_each(2, &readings);
        assert!(scene.decide().demand.is_ok(), "{}", signal.name);
    }
}

/// The second batch of a single pod lost a sample of `lost`.
fn check_partial(
    what: &str,
    signal: Signal,
    (first, second): (Readings, Readings),
    lost: &str,
    expected: Result<f64, &str>,
) {
    let mut scene = Scene::new(policy(vec![signal.clone()]), 1);
    scene.report(0, first);
    scene.decide();
    scene.pass(5.0);
    scene.report_part(0, second, lost, DropReason::TooManySeries);
    let decision = scene.decide();
    assert_demand(what, &decision, expected);
    if let Err(error) = &decision.demand {
        assert!(error.message.contains(lost), "{what}: {error}");
        let reason =
            LeftOutReason::PartialFamily { signal: signal.name, family: MetricName::new(lost) };
        assert!(decision.left_out.iter().any(|pod| pod.reason == reason), "{what}");
    }
}

#[test]
fn a_family_of_which_samples_were_lost_is_no_value() {
    let same = |readings: Readings| (readings.clone(), readings);
    let incomplete = Err("MetricIncomplete");
    let tokio = "tokio_alive_tasks";
    check_partial("gauge", tasks(100.0), same(live(280.0)), tokio, incomplete);
    let go = vec![reading("go_goroutines", &[], 150.0)];
    check_partial("all of the first family", tasks(100.0), same(go), tokio, incomplete);
    check_partial("another family", tasks(100.0), same(live(280.0)), "go_goroutines", Ok(2.8));
    let rates = |name: &str| (vec![reading(name, &[], 0.0)], vec![reading(name, &[], 10.0)]);
    let allocated = "heap_allocation_bytes_total";
    check_partial("counter", allocation(1.0), rates(allocated), allocated, incomplete);
    let used = "process_cpu_seconds_total";
    check_partial("cores", cpu(0.8), rates(used), used, incomplete);
    let count = "http_server_request_duration_seconds_count";
    check_partial("cores, of requests", cpu(0.8), rates(used), count, Ok(2.5));
    let calls = || same(requests("POST /checkout", 1000.0, 8.0));
    let checkout = || latency(0.15, Some(0.1));
    check_partial("requests", checkout(), calls(), count, incomplete);
    let in_flight = "http_server_requests_in_flight";
    check_partial("requests in flight", checkout(), calls(), in_flight, incomplete);
    let none = same(vec![reading("tokio_workers", &[], 8.0)]);
    check_partial("all request counts", checkout(), none, count, incomplete);
}

#[test]
fn a_histogram_that_lost_buckets_has_no_quantile() {
    let mut scene = Scene::new(policy(vec![latency(0.15, Some(0.1))]), 1);
    scene.report(0, requests("POST /checkout", 1000.0, 1.0));
    scene.decide();
    scene.pass(5.0);
    let bucket = "http_server_request_duration_seconds_bucket";
    scene.report_part(0, requests("POST /checkout", 1100.0, 1.0), bucket, DropReason::Duplicate);
    let decision = scene.decide();
    assert_eq!(decision.quantiles[0].seconds, None);
    assert_demand("by counts", &decision, Ok(2.0 / (8.0 * 0.652_105)));
}

// The two windows.

#[test]
fn demand_is_the_larger_of_now_and_the_mean_over_the_window() {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 2);
    assert_demand("steady", &scene.settle(2, &live(200.0)), Ok(4.0));
    let means = [(4.0 + 8.0) / 2.0, (4.0 + 8.0 + 2.0) / 3.0, (8.0 + 2.0 + 2.0) / 3.0];
    for (value, demand) in
        [(400.0, 8.0), (100.0, means[0]), (100.0, means[1]), (100.0, means[2]), (100.0, 2.0)]
    {
        scene.pass(5.0);
        scene.report_each(2, &live(value));
        assert_demand("then", &scene.decide(), Ok(demand));
    }
}

#[test]
fn totals_already_taken_keep_pods_deleted_since() {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 2);
    scene.settle(2, &live(200.0));
    scene.pass(5.0);
    scene.workload.pods.remove(1);
    scene.report(0, live(200.0));
    assert_demand("one of two is gone", &scene.decide(), Ok(4.0));
}

// Missing pods, coverage, young and ended pods, zero.

/// How the third and later pods of ten are, at 0.5 pod's worth or more each of the reporting.
struct Fleet {
    what: &'static str,
    /// Pods that keep reporting, and the share of each.
    reporting: (usize, f64),
    /// What the pods that fall silent showed last.
    last: f64,
    /// Changes the pods before the decision.
    change: fn(&mut Scene),
    replicas: (u32, u32),
    expected: Result<f64, &'static str>,
}

fn check_fleet(case: &Fleet) {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 10);
    let (reporting, share) = case.reporting;
    scene.report_each(10, &live(case.last * 100.0));
    scene.pass(5.0);
    scene.report_each(10, &live(case.last * 100.0));
    // The first decision is later than a window after this, so that only the newest totals count.
    for _ in 0..6 {
        scene.pass(5.0);
        scene.report_each(reporting, &live(share * 100.0));
    }
    (scene.workload.spec_replicas, scene.workload.status_replicas) = case.replicas;
    (case.change)(&mut scene);
    assert_demand(case.what, &scene.decide(), case.expected);
}

#[test]
fn silent_pods_are_imputed_by_direction_or_refused_under_the_floor() {
    let case = |what, reporting, last, replicas, expected| Fleet {
        what,
        reporting,
        last,
        change: |_| {},
        replicas,
        expected,
    };
    check_fleet(&case("all report", (10, 0.5), 0.5, (10, 10), Ok(5.0)));
    check_fleet(&case("3 of 10 silent, down", (7, 0.5), 0.2, (10, 10), Ok(6.5)));
    check_fleet(&case("silent with a high last value, down", (7, 0.5), 1.2, (10, 10), Ok(7.1)));
    check_fleet(&case("never across the replicas", (7, 1.2), 5.0, (10, 10), Ok(10.0)));
    check_fleet(&case("2 of 10 silent, up", (8, 1.6), 9.0, (10, 10), Ok(16.0)));
    check_fleet(&case(
        "under the floor, would lower",
        (5, 1.0),
        1.0,
        (10, 10),
        Err("CoverageTooLow"),
    ));
    check_fleet(&case("under the floor, raises", (5, 2.2), 1.0, (10, 10), Ok(11.0)));
    check_fleet(&case("at the floor", (6, 0.5), 0.5, (10, 10), Ok(7.0)));
    check_fleet(&case("none reports", (0, 0.0), 1.0, (10, 10), Err("PodsSilent")));
}

fn young(pod: &mut Pod) {
    pod.key = crate::sample::PodKey(format!("{}-new", pod.key.0).into());
    pod.started_at = Some(start().wall + seconds(30.0));
    pod.ready_since = None;
}

#[test]
fn young_restarted_and_ended_pods_count_by_their_standing() {
    let case = |what, reporting, change, expected| Fleet {
        what,
        reporting,
        last: 0.5,
        change,
        replicas: (10, 10),
        expected,
    };
    let make_young: fn(&mut Scene) = |scene| scene.workload.pods[5..].iter_mut().for_each(young);
    check_fleet(&case("young pods, down: their threshold", (5, 0.5), make_young, Ok(7.5)));
    check_fleet(&case("young pods, up: nothing", (5, 2.4), make_young, Ok(12.0)));
    let make_due: fn(&mut Scene) = |scene| {
        for pod in &mut scene.workload.pods[5..] {
            young(pod);
            pod.ready_since = Some(start().wall);
        }
    };
    check_fleet(&case(
        "Ready for over the grace: expected",
        (5, 0.5),
        make_due,
        Err("CoverageTooLow"),
    ));
    let end: fn(&mut Scene) =
        |scene| scene.workload.pods[5..].iter_mut().for_each(|pod| pod.ended = true);
    check_fleet(&case("ended pods leave at once", (5, 0.5), end, Ok(2.5)));
    check_fleet(&case("ended pods leave although they report", (10, 0.5), end, Ok(2.5)));
    let all_young: fn(&mut Scene) = |scene| scene.workload.pods.iter_mut().for_each(young);
    check_fleet(&case("0/0", (10, 0.5), all_young, Err("NoPods")));
    let gone: fn(&mut Scene) = |scene| {
        scene.workload = Workload::default();
    };
    check_fleet(&case("zero replicas", (10, 0.5), gone, Err("ScaledToZero")));
}

#[test]
fn a_restarted_container_counts_as_young_until_it_reports_again() {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 2);
    scene.settle(2, &live(50.0));
    scene.workload.pods[1].started_at = Some(scene.now.wall + seconds(1.0));
    scene.workload.pods[1].ready_since = None;
    for _ in 0..5 {
        scene.pass(5.0);
        scene.report(0, live(50.0));
        scene.fail(1);
    }
    let decision = scene.decide();
    assert_eq!((decision.coverage.reporting, decision.coverage.expected), (1, 1));
    assert_demand("the other is young", &decision, Ok(1.5));
}

#[test]
fn a_frozen_agent_grows_stale_although_it_answers() {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 1);
    scene.settle(1, &live(50.0));
    let frozen = scene.now.wall;
    for _ in 0..4 {
        scene.pass(5.0);
        scene.report_at(0, frozen, live(50.0));
    }
    let decision = scene.decide();
    assert_demand("frozen", &decision, Err("PodsSilent"));
    assert_eq!(decision.left_out[0].reason, LeftOutReason::Stale);
    assert_eq!(decision.left_out[0].silent_for, Some(Duration::from_secs(20)));
}

#[test]
fn an_error_says_what_is_missing_and_since_when() {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 1);
    scene.settle(1, &live(50.0));
    scene.pass(23.0);
    scene.fail(0);
    let error = scene.decide().demand.expect_err("silent");
    assert_eq!(
        error.message,
        "signal tasks: none of 1 pods reports, the newest sample is of 2027-01-15T08:00:05Z, 23 s ago; pod-0: answered with HTTP status 503"
    );
}

// Several signals.

#[test]
fn a_missing_signal_of_several_never_lowers_replicas() {
    let two = || policy(vec![tasks(100.0), metric("depth", Aggregate::Sum, 10.0)]);
    let check = |what, tasks_each: f64, spec, expected| {
        let mut scene = Scene::new(two(), 2);
        scene.workload.spec_replicas = spec;
        assert_demand(what, &scene.settle(2, &live(tasks_each)), expected);
    };
    check("the rest raises", 280.0, 4, Ok(5.6));
    check("the rest keeps", 200.0, 4, Ok(4.0));
    check("its ceiling keeps", 151.0, 4, Ok(3.02));
    check("the rest would lower", 149.0, 4, Err("SignalMissing"));
    let mut scene = Scene::new(two(), 2);
    scene.workload.spec_replicas = 9;
    let error = scene.settle(2, &live(100.0)).demand.expect_err("depth is missing");
    assert!(error.message.starts_with("missing depth (MetricNotServed): "), "{error}");
}

#[test]
fn the_largest_signal_drives_and_totals_are_per_kind_once() {
    let mut second = tasks(50.0);
    second.name = "more".into();
    let mut scene =
        Scene::new(policy(vec![tasks(100.0), second, metric("depth", Aggregate::Sum, 10.0)]), 2);
    let readings = [reading("tokio_alive_tasks", &[], 60.0), reading("depth", &[], 4.0)];
    let decision = scene.settle(2, &readings);
    assert_demand("largest", &decision, Ok(2.4));
    assert_eq!(decision.driver.as_deref(), Some("more"));
    assert_eq!(
        decision.totals,
        [Total { kind: TotalKind::Tasks, signal: "tasks".into(), value: 120.0 }]
    );
    let pressures: Vec<_> = decision.pods.iter().map(|pod| (&*pod.name, pod.pressure)).collect();
    assert_eq!(pressures, [("pod-0", Some(1.2)), ("pod-1", Some(1.2))]);
    assert_eq!(
        decision.signals[0].formula,
        "sum 120 / threshold 100 = 1.2 now, 1.2 over 15 s; demand 1.2"
    );
}

#[test]
fn a_total_is_not_served_short_of_silent_pods() {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 10);
    scene.settle(10, &live(50.0));
    for _ in 0..6 {
        scene.pass(5.0);
        scene.report_each(7, &live(50.0));
        scene.decide();
    }
    let decision = scene.decide();
    assert_demand("imputed", &decision, Ok(6.5));
    assert_eq!(
        decision.totals,
        [Total { kind: TotalKind::Tasks, signal: "tasks".into(), value: 650.0 }]
    );
    assert_eq!(decision.signals[0].current, Some(350.0));
    assert_eq!(decision.left_out.len(), 3);
}

#[test]
fn a_pod_without_the_family_is_left_out_by_name() {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 3);
    for _ in 0..2 {
        scene.report_each(2, &live(200.0));
        scene.report(2, vec![reading("other", &[], 1.0)]);
        scene.decide();
        scene.pass(5.0);
    }
    let decision = scene.decide();
    assert_eq!(
        decision.left_out[0].reason,
        LeftOutReason::MissingFamily { signal: "tasks".into() }
    );
    assert_demand("up: nothing is filled in for it", &decision, Ok(4.0));
    assert_eq!(decision.coverage, Coverage { matched: 3, reporting: 3, expected: 3 });
    let of_signal = Coverage { matched: 3, reporting: 2, expected: 3 };
    assert_eq!(decision.signals[0].coverage, of_signal, "it answers, but not with the signal");
}

#[test]
fn min_replicas_zero_with_pod_signals_alone_is_a_finding() {
    let mut scene = Scene::new(Policy { min_replicas: Some(0), ..policy(vec![tasks(100.0)]) }, 1);
    let decision = scene.settle(1, &live(50.0));
    assert_eq!(decision.findings[0].reason, "CannotWake");
    assert_demand("and is served", &decision, Ok(0.5));
}

#[test]
fn a_changed_threshold_keeps_what_was_learned_and_an_unchanged_signal_keeps_its_window() {
    let learned = LearnedSignal {
        name: "tasks".into(),
        of: "tasks of apps/v1 Deployment checkout".into(),
        at: start().wall,
        base: Some(20.0),
        cost_seconds: None,
        service_time_seconds: None,
        quantile_seconds: None,
    };
    let first = Policy {
        learned: Learned { signals: vec![learned.clone()] },
        ..policy(vec![tasks(100.0), metric("depth", Aggregate::Sum, 10.0)])
    };
    let mut scene = Scene::new(first, 1);
    let readings =
        |tasks, depth| [reading("tokio_alive_tasks", &[], tasks), reading("depth", &[], depth)];
    scene.settle(1, &readings(100.0, 30.0));
    scene
        .decider
        .update(Arc::new(policy(vec![metric("depth", Aggregate::Sum, 10.0), tasks(60.0)])));
    scene.pass(5.0);
    scene.report_each(1, &readings(100.0, 10.0));
    let decision = scene.decide();
    let demands: Vec<_> = decision.signals.iter().map(|signal| signal.demand.clone()).collect();
    assert_eq!(demands, [Ok(3.0), Ok(2.0)]);
    assert_eq!(decision.learned.signals, [learned]);
}

fn other_target(policy: Policy) -> Policy {
    let target = TargetRef { name: "other".into(), ..policy.target.clone() };
    Policy { target, ..policy }
}

fn endpoint_of(mut signal: Signal, endpoint: &str) -> Signal {
    if let SignalKind::Latency(target) = &mut signal.kind {
        target.endpoint = Some(endpoint.into());
    }
    signal
}

/// An earlier run learned `of` under the name of the signal; whether a run with `policy` starts with it, and whether it
/// keeps it when it takes `policy` over from one whose subject that was.
fn check_learned(what: &str, of: &str, before: Policy, policy: Policy, expected: bool) {
    let learned = LearnedSignal {
        name: policy.signals[0].name.clone(),
        of: of.into(),
        at: start().wall,
        base: Some(20.0),
        cost_seconds: None,
        service_time_seconds: None,
        quantile_seconds: None,
    };
    let status = Learned { signals: vec![learned.clone()] };
    let with_status = |policy| Policy { learned: status.clone(), ..policy };
    let restarted = Scene::new(with_status(policy.clone()), 1).decide().learned.signals;
    let mut scene = Scene::new(with_status(before), 1);
    let at_first: Vec<_> = scene.decide().learned.signals.iter().map(|l| l.of.clone()).collect();
    assert_eq!(at_first, [of.into()], "{what}");
    scene.decider.update(Arc::new(with_status(policy)));
    let updated = scene.decide().learned.signals;
    let expected: &[LearnedSignal] = if expected { &[learned] } else { &[] };
    assert_eq!((&*restarted, &*updated), (expected, expected), "{what}");
}

#[test]
fn what_was_learned_counts_only_for_what_it_was_learned_of() {
    let one = |signal| policy(vec![signal]);
    let named = |signal| Signal { name: "s".into(), ..signal };
    let of_tasks = "tasks of apps/v1 Deployment checkout";
    let of_checkout = "latency POST /checkout of apps/v1 Deployment checkout";
    let of_cpu = "cpu of apps/v1 Deployment checkout";
    let checkout = || latency(0.15, None);
    check_learned("threshold", of_tasks, one(tasks(100.0)), one(tasks(60.0)), true);
    check_learned("target", of_tasks, one(tasks(9.0)), other_target(one(tasks(9.0))), false);
    check_learned("kind", of_cpu, one(named(cpu(200.0))), one(named(checkout())), false);
    let cart = endpoint_of(checkout(), "GET /cart");
    check_learned("endpoint", of_checkout, one(checkout()), one(cart), false);
    let metric = |name| named(metric(name, Aggregate::Sum, 10.0));
    check_learned(
        "metric",
        "metric a of apps/v1 Deployment checkout",
        one(metric("a")),
        one(metric("b")),
        false,
    );
}

// Learned bases.

/// A pod of a few seconds; `ready` is when it becomes Ready, in seconds from its start. Values are (second, live tasks).
fn check_base(what: &str, ready: f64, values: &[(f64, f64)], expected: Option<f64>) {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 1);
    scene.workload.pods[0].started_at = Some(start().wall);
    scene.workload.pods[0].ready_since = None;
    let mut decision = scene.decide();
    for &(at, value) in values {
        scene.now = start() + seconds(at);
        scene.workload.pods[0].ready_since = (at >= ready).then(|| start().wall + seconds(ready));
        scene.report(0, live(value));
        decision = scene.decide();
    }
    assert_eq!(
        decision.learned.signals.first().and_then(|learned| learned.base),
        expected,
        "{what}"
    );
}

#[test]
fn a_base_is_a_pods_least_value_before_load_could_reach_it() {
    check_base(
        "idle, then loaded",
        10.0,
        &[(3.0, 9.0), (8.0, 5.0), (13.0, 80.0), (63.0, 80.0)],
        Some(5.0),
    );
    check_base("not known within the minute", 10.0, &[(3.0, 9.0), (8.0, 5.0), (58.0, 80.0)], None);
    check_base("loaded from the start", 0.0, &[(5.0, 80.0), (30.0, 90.0), (63.0, 80.0)], None);
    check_base("first seen later", 10.0, &[(70.0, 80.0), (75.0, 80.0)], None);
}

#[test]
fn a_pod_that_was_ready_is_not_idle_when_it_loses_readiness() {
    // (second, Ready since, live tasks)
    let check = |what, values: &[(f64, Option<f64>, f64)], expected| {
        let mut scene = Scene::new(policy(vec![tasks(100.0)]), 1);
        scene.workload.pods[0].started_at = Some(start().wall);
        let mut learned = vec![];
        for &(at, ready, value) in values {
            scene.now = start() + seconds(at);
            scene.workload.pods[0].ready_since = ready.map(|since| start().wall + seconds(since));
            scene.report(0, live(value));
            learned = scene.decide().learned.signals;
        }
        assert_eq!(learned.first().and_then(|learned| learned.base), expected, "{what}");
    };
    let (loaded, lost) = ((10.0, Some(5.0), 80.0), (20.0, None, 7.0));
    let (anew, over) = ((23.0, Some(22.0), 6.0), (63.0, Some(22.0), 80.0));
    check("idle first", &[(3.0, None, 9.0), loaded, lost, over], Some(9.0));
    check("never seen idle", &[loaded, lost, over], None);
    check("Ready anew", &[loaded, lost, anew, over], None);
}

// CPU.

/// One pod's counters per second, as they grow; 5 s apart.
struct Cpu {
    what: &'static str,
    used: f64,
    wait: f64,
    throttled: f64,
    /// Throttled periods of 10 per second.
    throttled_periods: f64,
    limit: Option<f64>,
    expected: f64,
}

fn check_cpu_without_requests(case: &Cpu) {
    let mut scene = Scene::new(policy(vec![cpu(0.8)]), 1);
    scene.workload.pods[0].cpu_limit =
        case.limit.map(|limit| CpuCores::new(limit).expect("a limit"));
    let mut decision = scene.decide();
    for second in [0.0, 5.0] {
        let counter = |name, rate: f64| reading(name, &[], 1000.0 + rate * second);
        scene.now = start() + seconds(second);
        scene.report(
            0,
            vec![
                counter("process_cpu_seconds_total", case.used),
                counter("process_runqueue_wait_seconds_total", case.wait),
                counter("cgroup_cpu_throttled_seconds_total", case.throttled),
                counter("cgroup_cpu_throttled_periods_total", case.throttled_periods),
                counter("cgroup_cpu_periods_total", 10.0),
            ],
        );
        decision = scene.decide();
    }
    assert_demand(case.what, &decision, Ok(case.expected));
}

#[test]
fn without_a_request_layer_waiting_counts_only_while_saturated_and_at_most_doubles() {
    let case = |what, used, wait, throttled, throttled_periods, limit, expected| Cpu {
        what,
        used,
        wait,
        throttled,
        throttled_periods,
        limit,
        expected,
    };
    check_cpu_without_requests(&case("below saturation", 0.4, 3.0, 0.0, 0.0, Some(1.0), 0.5));
    check_cpu_without_requests(&case("at its limit", 1.0, 0.4, 0.0, 0.0, Some(1.0), 1.75));
    check_cpu_without_requests(&case("the larger of the two", 1.0, 0.4, 0.6, 0.0, Some(1.0), 2.0));
    check_cpu_without_requests(&case("at most twice", 1.0, 30.0, 0.0, 0.0, Some(1.0), 2.5));
    check_cpu_without_requests(&case(
        "throttled in half of its periods",
        0.4,
        0.0,
        0.2,
        5.0,
        Some(1.0),
        0.75,
    ));
    check_cpu_without_requests(&case("throttled in fewer", 0.4, 0.0, 0.2, 4.9, Some(1.0), 0.5));
    check_cpu_without_requests(&case("no limit known", 1.0, 30.0, 0.0, 0.0, None, 1.25));
}

#[test]
fn a_threshold_near_the_limit_is_a_finding() {
    for (limit, expected) in [(0.88, vec!["ThresholdUnreachable"]), (0.9, vec![])] {
        let mut scene = Scene::new(policy(vec![cpu(0.8)]), 1);
        scene.workload.pods[0].cpu_limit = Some(CpuCores::new(limit).expect("a limit"));
        let decision = scene.settle(1, &[reading("process_cpu_seconds_total", &[], 1.0)]);
        let reasons: Vec<_> = decision.findings.iter().map(|found| found.reason).collect();
        assert_eq!(reasons, expected, "{limit}");
    }
}

#[test]
fn a_process_is_full_at_what_its_own_cgroup_allows_and_else_at_what_the_spec_says() {
    let findings = |stated: Option<f64>, reported: Option<f64>| {
        let mut scene = Scene::new(policy(vec![cpu(0.8)]), 1);
        scene.workload.pods[0].cpu_limit =
            stated.map(|limit| CpuCores::new(limit).expect("a limit"));
        let mut readings = vec![reading("process_cpu_seconds_total", &[], 1.0)];
        readings.extend(reported.map(|cores| reading("cgroup_cpu_limit_cores", &[], cores)));
        scene.settle(1, &readings).findings.iter().map(|found| found.reason).collect::<Vec<_>>()
    };
    assert_eq!(findings(Some(4.0), Some(0.5)), ["ThresholdUnreachable"], "its cgroup allows less");
    assert!(findings(Some(0.1), Some(4.0)).is_empty(), "the endpoint is that of a small sidecar");
    assert_eq!(findings(Some(0.5), None), ["ThresholdUnreachable"], "only the spec says something");
    assert_eq!(findings(None, Some(0.5)), ["ThresholdUnreachable"], "its spec says nothing");
}

// Latency.

fn latency(target_seconds: f64, service_time: Option<f64>) -> Signal {
    signal(
        "latency",
        SignalKind::Latency(LatencyTarget {
            quantile: Ratio::new(0.95).expect("a share"),
            target: threshold(target_seconds),
            endpoint: Some("POST /checkout".into()),
            concurrency: NonZeroU32::new(8),
            service_time: service_time.map(Duration::from_secs_f64),
        }),
    )
}

/// `completed` requests of 0.1 s each so far, and those in flight now.
fn requests(endpoint: &str, completed: f64, in_flight: f64) -> Readings {
    let labels = [("endpoint", endpoint), ("status_code", "200")];
    let bucket = |le, count| {
        reading(
            "http_server_request_duration_seconds_bucket",
            &[("endpoint", endpoint), ("le", le)],
            count,
        )
    };
    vec![
        reading("http_server_request_duration_seconds_count", &labels, completed),
        reading("http_server_request_duration_seconds_sum", &labels, completed * 0.1),
        bucket("0.05", 0.0),
        bucket("0.1", completed),
        bucket("+Inf", completed),
        reading("http_server_requests_in_flight", &[("endpoint", endpoint)], in_flight),
    ]
}

struct Latency {
    what: &'static str,
    signal: Signal,
    /// Requests per second of each of two pods, and in flight at the first and second sample.
    rate: f64,
    in_flight: (f64, f64),
    expected: Result<f64, &'static str>,
}

fn check_latency(case: &Latency) {
    let mut scene = Scene::new(policy(vec![case.signal.clone()]), 2);
    scene.report_each(2, &requests("POST /checkout", 1000.0, case.in_flight.0));
    scene.decide();
    scene.pass(5.0);
    scene.report_each(2, &requests("POST /checkout", 1000.0 + 5.0 * case.rate, case.in_flight.1));
    assert_demand(case.what, &scene.decide(), case.expected);
}

#[test]
fn latency_demand_is_arrivals_by_service_time_over_the_utilisation_that_the_target_allows() {
    // c = 8, a wait of half the service time: 0.652 of 8.
    let allowed = 8.0 * 0.652_105;
    let case = |what, signal, rate, in_flight, expected| Latency {
        what,
        signal,
        rate,
        in_flight,
        expected,
    };
    check_latency(&case(
        "stated service time",
        latency(0.15, Some(0.1)),
        80.0,
        (8.0, 8.0),
        Ok(16.0 / allowed),
    ));
    check_latency(&case(
        "a growing queue is arrivals",
        latency(0.15, Some(0.1)),
        80.0,
        (8.0, 808.0),
        Ok(48.0 / allowed),
    ));
    check_latency(&case(
        "a draining queue is not",
        latency(0.15, Some(0.1)),
        80.0,
        (400.0, 200.0),
        Ok(8.0 / allowed),
    ));
    check_latency(&case(
        "a lower target asks for more",
        latency(0.11, Some(0.1)),
        80.0,
        (8.0, 8.0),
        Ok(16.0 / (8.0 * 0.522_560)),
    ));
    check_latency(&case(
        "within the clamp",
        latency(9.0, Some(0.1)),
        80.0,
        (8.0, 8.0),
        Ok(16.0 / (8.0 * 0.85)),
    ));
    check_latency(&case(
        "learned under half of the capacity",
        latency(0.15, None),
        38.0,
        (3.0, 3.0),
        Ok(7.6 / allowed),
    ));
    check_latency(&case(
        "not learned above",
        latency(0.15, None),
        41.0,
        (4.0, 4.0),
        Err("ServiceTimeUnknown"),
    ));
    check_latency(&case(
        "not learned with a queue",
        latency(0.15, None),
        30.0,
        (3.0, 4.0),
        Err("ServiceTimeUnknown"),
    ));
    check_latency(&case(
        "no traffic needs no service time",
        latency(0.15, None),
        0.0,
        (0.0, 0.0),
        Ok(0.0),
    ));
    check_latency(&case(
        "a target below the service time",
        latency(0.1, Some(0.1)),
        80.0,
        (8.0, 8.0),
        Err("TargetBelowServiceTime"),
    ));
}

#[test]
fn a_quiet_gap_between_requests_is_no_demand_of_zero_while_the_service_time_is_unknown() {
    let mut scene = Scene::new(policy(vec![latency(0.15, None)]), 1);
    let mut report = |completed, in_flight, what: &str, expected| {
        scene.report(0, requests("POST /checkout", completed, in_flight));
        assert_demand(what, &scene.decide(), expected);
        scene.pass(5.0);
    };
    report(1000.0, 4.0, "one sample", Err("AwaitingSecondSample"));
    report(1205.0, 4.0, "busy, too much to learn from", Err("ServiceTimeUnknown"));
    report(1205.0, 0.0, "quiet for 5 s", Err("ServiceTimeUnknown"));
    report(1205.0, 0.0, "quiet for 10 s", Err("ServiceTimeUnknown"));
    report(1205.0, 0.0, "quiet for the window of 15 s", Ok(0.0));
    report(1205.0, 1.0, "one in flight", Err("ServiceTimeUnknown"));
}

#[test]
fn requests_that_are_asked_for_only_now_are_unknown_and_not_none() {
    let mut scene = Scene::new(policy(vec![tasks(100.0)]), 1);
    scene.settle(1, &live(50.0));
    scene.decider.update(Arc::new(policy(vec![latency(0.15, Some(0.1))])));
    scene.pass(5.0);
    scene.report(0, requests("POST /checkout", 1000.0, 8.0));
    assert_demand("the first count", &scene.decide(), Err("AwaitingSecondSample"));
    scene.pass(5.0);
    scene.report(0, requests("POST /checkout", 1400.0, 8.0));
    assert_demand("the second", &scene.decide(), Ok(8.0 / (8.0 * 0.652_105)));
}

#[test]
fn a_label_set_that_appears_beside_known_ones_counts_from_zero() {
    let mut scene = Scene::new(policy(vec![latency(0.15, Some(0.1))]), 1);
    scene.settle(1, &requests("POST /checkout", 1000.0, 0.0));
    let failed = reading(
        "http_server_request_duration_seconds_count",
        &[("endpoint", "POST /checkout"), ("status_code", "500")],
        400.0,
    );
    scene.pass(5.0);
    scene.report(0, [requests("POST /checkout", 1000.0, 0.0), vec![failed]].concat());
    assert_demand("80 failures a second", &scene.decide(), Ok(8.0 / (8.0 * 0.652_105)));
}

#[test]
fn a_busy_pod_that_is_gone_still_makes_the_window_busy() {
    let mut scene = Scene::new(policy(vec![latency(0.15, None)]), 2);
    for (second, completed) in [(0.0, 1000.0), (5.0, 1205.0)] {
        scene.now = start() + seconds(second);
        scene.report(0, requests("POST /checkout", 7.0, 0.0));
        scene.report(1, requests("POST /checkout", completed, 4.0));
        scene.decide();
    }
    scene.workload.pods.remove(1);
    scene.pass(5.0);
    scene.report(0, requests("POST /checkout", 7.0, 0.0));
    assert_demand("gone", &scene.decide(), Err("ServiceTimeUnknown"));
}

#[test]
fn a_pod_that_serves_the_family_but_not_the_endpoint_had_no_requests() {
    let cases: [(&str, Readings, Result<f64, &str>); 4] = [
        ("another endpoint", requests("GET /", 1e6, 9.0), Ok(0.0)),
        ("an agent metric", vec![reading("tokio_workers", &[], 8.0)], Ok(0.0)),
        ("neither", vec![reading("other", &[], 8.0)], Err("MetricNotServed")),
        (
            "in flight only",
            vec![reading("http_server_requests_in_flight", &[("endpoint", "GET /")], 0.0)],
            Ok(0.0),
        ),
    ];
    for (what, readings, expected) in cases {
        let mut scene = Scene::new(policy(vec![latency(0.15, None)]), 1);
        assert_demand(what, &scene.settle(1, &readings), expected);
    }
    let mut scene = Scene::new(policy(vec![latency(0.15, None)]), 1);
    scene.fail(0);
    assert_demand("not scraped", &scene.decide(), Err("PodsSilent"));
}

#[test]
fn an_endpoint_that_was_never_seen_beside_others_is_a_finding_until_it_is() {
    let findings = |decision: &Decision| decision.findings.clone();
    let mut scene = Scene::new(policy(vec![latency(0.15, Some(0.1))]), 1);
    let idle = [reading("tokio_workers", &[], 8.0)];
    assert_eq!(findings(&scene.settle(1, &idle)), [], "without any request nothing is misspelled");
    let others: Vec<_> =
        (0..7).flat_map(|path| requests(&format!("GET /{path}"), 1000.0, 0.0)).collect();
    scene.pass(5.0);
    let decision = scene.settle(1, &others);
    assert_demand("never seen is no traffic", &decision, Ok(0.0));
    let expected = Finding {
        reason: "EndpointNeverSeen",
        message: "signal latency: no pod has shown a request of endpoint \"POST /checkout\", which counts as 0 \
                  requests; endpoints seen: \"GET /0\", \"GET /1\", \"GET /2\", \"GET /3\", \"GET /4\" and 2 more"
            .to_owned(),
    };
    assert_eq!(findings(&decision), [expected]);
    scene.pass(5.0);
    let both = [others.clone(), requests("POST /checkout", 1.0, 0.0)].concat();
    assert_eq!(findings(&scene.settle(1, &both)), []);
    scene.pass(5.0);
    assert_eq!(findings(&scene.settle(1, &others)), [], "a restarted pod takes nothing back");
}

#[test]
fn connections_that_stay_open_by_design_are_no_backlog() {
    let mut scene = Scene::new(policy(vec![latency(0.15, Some(0.1))]), 1);
    let long = |completed: f64, in_flight| {
        let mut readings = requests("POST /checkout", completed, in_flight);
        readings[1].1 = completed * 16.0;
        readings
    };
    scene.report_each(1, &long(100.0, 0.0));
    scene.decide();
    scene.pass(5.0);
    scene.report_each(1, &long(100.0, 5000.0));
    assert_demand("16 s each", &scene.decide(), Ok(0.0));
}

#[test]
fn a_served_quantile_is_that_of_the_merged_histograms() {
    let mut scene = Scene::new(policy(vec![latency(0.15, Some(0.1))]), 2);
    scene.report_each(2, &requests("POST /checkout", 1000.0, 1.0));
    assert_eq!(scene.decide().quantiles[0].seconds, None);
    scene.pass(5.0);
    scene.report(0, requests("POST /checkout", 1100.0, 1.0));
    scene.report(1, requests("POST /checkout", 1000.0, 1.0));
    let quantile = scene.decide().quantiles[0].seconds.expect("there were requests");
    assert!((quantile - 0.0975).abs() < 1e-9, "{quantile}");
}

#[test]
fn a_policy_asks_for_each_family_it_reads_once() {
    let wanted =
        |signals| policy(signals).wanted().map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!(
        wanted(vec![metric("depth", Aggregate::Sum, 1.0), metric("depth", Aggregate::Max, 1.0)]),
        ["depth"]
    );
    let latency = wanted(vec![latency(0.15, None), cpu(0.8)]);
    for name in [
        "http_server_request_duration_seconds_bucket",
        "http_server_request_duration_seconds_count",
        "http_server_request_duration_seconds_sum",
        "http_server_requests_in_flight",
        "http_server_request_busy_seconds_total",
        "process_cpu_seconds_total",
        "cgroup_cpu_limit_cores",
        "tokio_workers",
    ] {
        assert_eq!(latency.iter().filter(|wanted| *wanted == name).count(), 1, "{name}");
    }
}
