//! What pods and objects show, with numbers. The cases with a number are those of the wire's conformance list that a
//! decision answers for.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::policy::hpa::{self, HpaPod, HpaPodPhase, ScaleState, Tolerance};
use crate::policy::scenario::*;
use crate::policy::{
    Aggregate, Decision, DescribedObject, LearnedSignal, ObjectReading, PodReading, Policy, Signal,
    SignalKind, TargetRef, Unserved,
};
use crate::sample::{DropReason, Labels, MetricName, Selector, SeriesKey};
use crate::units::Measure;

type Readings = Vec<(SeriesKey, f64)>;

fn qps() -> Signal {
    metric("qps", Aggregate::Sum, 10.0)
}

fn gauge(value: f64) -> Readings {
    vec![reading("qps", &[], value)]
}

/// Two rounds, 5 s apart, of what each pod of `rounds` shows in the first and in the second.
fn two_rounds(scene: &mut Scene, rounds: &[(Readings, Readings)]) -> Decision {
    for (pod, (first, _)) in rounds.iter().enumerate() {
        scene.report(pod, first.clone());
    }
    scene.decide();
    scene.pass(5.0);
    for (pod, (_, second)) in rounds.iter().enumerate() {
        scene.report(pod, second.clone());
    }
    scene.decide()
}

/// Pods that show these values of the one signal, in both rounds.
fn showing(values: &[f64]) -> (Scene, Decision) {
    let pods = u32::try_from(values.len()).expect("few pods");
    let mut scene = Scene::new(policy(vec![qps()]), pods);
    let rounds: Vec<_> = values.iter().map(|&value| (gauge(value), gauge(value))).collect();
    let decision = two_rounds(&mut scene, &rounds);
    (scene, decision)
}

fn value(pod: &PodReading, metric: &str) -> Option<f64> {
    pod.values.iter().find(|(name, _)| &**name == metric).map(|(_, value)| *value)
}

/// Each pod's value of one metric, to a millionth; and where all report, that they add up to the total.
fn check_values(decision: &Decision, metric: &str, expected: &[Option<f64>]) {
    let values: Vec<_> = decision.pods.iter().map(|pod| value(pod, metric)).collect();
    let close = |(got, expected): (&Option<f64>, &Option<f64>)| match (got, expected) {
        (Some(got), Some(expected)) => (got - expected).abs() < 1e-6,
        (got, expected) => got.is_none() && expected.is_none(),
    };
    assert!(
        values.len() == expected.len() && values.iter().zip(expected).all(close),
        "{metric}: {values:?}, expected {expected:?}"
    );
    let Some(total) = decision.totals.iter().find(|total| total.kind.name() == metric) else {
        return;
    };
    if decision.whole(&total.signal).is_ok() {
        let sum: f64 = values.iter().flatten().sum();
        assert!((sum - total.value).abs() < 1e-6, "{metric}: {sum}, total {}", total.value);
    }
}

// Pods.

#[test]
fn each_signal_shows_its_value_on_each_pod_and_they_add_up_to_the_total() {
    let signals = vec![
        signal("tasks", SignalKind::Tasks(threshold(100.0))),
        Signal { base: Some(10.0), ..signal("heap", SignalKind::Heap(threshold(1e6))) },
        signal("alloc", SignalKind::AllocationRate(threshold(1e6))),
        signal("cpu", SignalKind::Cpu(threshold(0.8))),
        qps(),
    ];
    let mut scene = Scene::new(policy(signals), 2);
    let round = |tasks, heap, allocated, cpu, qps| {
        vec![
            reading("tokio_alive_tasks", &[], tasks),
            reading("heap_allocated_bytes", &[], heap),
            reading("heap_allocation_bytes_total", &[], allocated),
            reading("process_cpu_seconds_total", &[], cpu),
            reading("qps", &[("route", "a")], qps),
            reading("qps", &[("route", "b")], 1.0),
        ]
    };
    let decision = two_rounds(
        &mut scene,
        &[
            (round(70.0, 500.0, 1e6, 3.0, 4.0), round(60.0, 400.0, 2e6, 5.0, 7.0)),
            (round(20.0, 900.0, 0.0, 9.0, 2.0), round(30.0, 4.0, 5e5, 10.0, 3.0)),
        ],
    );
    check_values(&decision, "headroom_tasks", &[Some(60.0), Some(30.0)]);
    check_values(&decision, "headroom_heap_bytes", &[Some(400.0), Some(4.0)]);
    check_values(&decision, "headroom_allocation_bytes_per_second", &[Some(2e5), Some(1e5)]);
    check_values(&decision, "headroom_cpu_cores", &[Some(0.4), Some(0.2)]);
    check_values(&decision, "qps", &[Some(8.0), Some(4.0)]);
    assert_eq!(decision.totals.len(), 4);
}

/// Pods that got 0.6 cores each, while one was asked for 1 core and the other for 3.
#[test]
fn cores_of_a_pod_are_those_its_requests_need_where_arrivals_lead() {
    let cpu = signal("cpu", SignalKind::Cpu(threshold(0.8)));
    let mut policy = policy(vec![cpu.clone()]);
    policy.learned.signals = vec![LearnedSignal {
        name: "cpu".into(),
        of: cpu.subject(&policy.target),
        at: start().wall,
        base: None,
        cost_seconds: Some(0.05),
        service_time_seconds: None,
        quantile_seconds: None,
    }];
    let round = |cpu, requests| {
        let endpoint = &[("endpoint", "POST /checkout")][..];
        vec![
            reading("process_cpu_seconds_total", &[], cpu),
            reading("http_server_request_duration_seconds_count", endpoint, requests),
            reading("http_server_request_duration_seconds_sum", endpoint, requests * 0.1),
        ]
    };
    let decision = two_rounds(
        &mut Scene::new(policy, 2),
        &[(round(5.0, 1000.0), round(8.0, 1100.0)), (round(5.0, 1000.0), round(8.0, 1300.0))],
    );
    check_values(&decision, "headroom_cpu_cores", &[Some(1.0), Some(3.0)]);
    assert_eq!(decision.totals.len(), 1);
}

#[test]
fn a_latency_shows_no_value_of_a_single_pod() {
    let latency = crate::policy::LatencyTarget {
        quantile: crate::units::Ratio::new(0.95).expect("a share"),
        target: threshold(0.15),
        endpoint: None,
        concurrency: std::num::NonZeroU32::new(8),
        service_time: Some(seconds(0.05)),
    };
    let mut scene = Scene::new(policy(vec![signal("latency", SignalKind::Latency(latency))]), 1);
    let requests = |count| vec![reading("http_server_request_duration_seconds_count", &[], count)];
    let decision = two_rounds(&mut scene, &[(requests(10.0), requests(20.0))]);
    assert_eq!(decision.pods.len(), 1, "it has a pressure");
    assert!(decision.pods[0].pressure.is_some());
    assert_eq!(decision.pods[0].values, []);
}

#[test]
fn of_two_signals_that_measure_the_same_a_pod_shows_one_value() {
    let again = Signal { name: "again".into(), ..metric("qps", Aggregate::Max, 5.0) };
    let tasks = |name| signal(name, SignalKind::Tasks(threshold(100.0)));
    let mut scene = Scene::new(policy(vec![qps(), tasks("a"), again, tasks("b")]), 1);
    let readings = [reading("qps", &[], 4.0), reading("tokio_alive_tasks", &[], 30.0)];
    let decision = scene.settle(1, &readings);
    let expected = [("qps".into(), 4.0), ("headroom_tasks".into(), 30.0)];
    assert_eq!(decision.pods[0].values, expected);
}

#[test]
fn a_pod_shows_its_newest_sample_and_none_once_it_is_silent() {
    let (mut scene, decision) = showing(&[8.0, 8.0]);
    check_values(&decision, "qps", &[Some(8.0), Some(8.0)]);
    scene.pass(5.0);
    scene.report(0, gauge(2.0));
    check_values(&scene.decide(), "qps", &[Some(2.0), Some(8.0)]);
    assert_eq!(scene.decide().pods[0].sampled_at, scene.now.wall);
    scene.pass(15.0);
    scene.report(0, gauge(3.0));
    let decision = scene.decide();
    check_values(&decision, "qps", &[Some(3.0)]);
    assert_eq!(&*decision.pods[0].name, "pod-0");
}

#[test]
fn a_pod_without_the_family_or_with_a_part_of_it_has_no_value() {
    let mut scene =
        Scene::new(policy(vec![qps(), signal("tasks", SignalKind::Tasks(threshold(100.0)))]), 3);
    for _ in 0..2 {
        scene.pass(5.0);
        scene.report(0, vec![reading("qps", &[], 8.0), reading("tokio_alive_tasks", &[], 30.0)]);
        scene.report(1, vec![reading("tokio_alive_tasks", &[], 20.0)]);
        let part = vec![reading("qps", &[], 8.0), reading("tokio_alive_tasks", &[], 10.0)];
        scene.report_part(2, part, "qps", DropReason::TooManySeries);
        scene.decide();
    }
    let decision = scene.decide();
    check_values(&decision, "qps", &[Some(8.0), None, None]);
    check_values(&decision, "headroom_tasks", &[Some(30.0), Some(20.0), Some(10.0)]);
}

#[test]
fn a_pod_has_values_where_no_pressure_can_be_said() {
    let heap = Signal { base: Some(100.0), ..signal("heap", SignalKind::Heap(threshold(100.0))) };
    let mut scene = Scene::new(policy(vec![heap]), 1);
    let decision = scene.settle(1, &[reading("heap_allocated_bytes", &[], 500.0)]);
    assert_demand("base = threshold", &decision, Err("BaseNotBelowThreshold"));
    check_values(&decision, "headroom_heap_bytes", &[Some(500.0)]);
    assert_eq!(decision.pods[0].pressure, None);
}

#[test]
fn case_21_a_pod_is_there_once() {
    let (_, decision) = showing(&[5.0, 6.0, 7.0]);
    let named = |name: &str| decision.pods.iter().filter(|pod| &*pod.name == name).count();
    assert_eq!((named("pod-0"), named("pod-1"), named("pod-9")), (1, 1, 0));
}

#[test]
fn case_25_pods_have_the_labels_they_are_selected_by() {
    let mut scene = Scene::new(policy(vec![qps()]), 16);
    for (index, pod) in scene.workload.pods.iter_mut().enumerate() {
        let value = if index % 2 == 0 { "bar" } else { "baz" };
        pod.labels = Labels::from_iter([("app", "checkout"), ("foo", value)]);
    }
    let decision = scene.settle(16, &gauge(5.0));
    let selector = Selector::parse("foo=bar").expect("a selector");
    assert_eq!(decision.pods.iter().filter(|pod| selector.matches(&pod.labels)).count(), 8);
}

#[test]
fn case_40_pods_that_fall_silent_show_nothing_and_the_total_is_refused() {
    let tasks = signal("tasks", SignalKind::Tasks(threshold(100.0)));
    let mut scene = Scene::new(policy(vec![tasks]), 10);
    let half = [reading("tokio_alive_tasks", &[], 50.0)];
    scene.settle(10, &half);
    for _ in 0..6 {
        scene.pass(5.0);
        scene.report_each(7, &half);
        scene.decide();
    }
    let decision = scene.decide();
    assert_demand("3.5 and a threshold for each of three", &decision, Ok(6.5));
    check_values(&decision, "headroom_tasks", &[Some(50.0); 7]);
    let why = decision.whole("tasks").expect_err("three are silent");
    assert_eq!(why.reason, "PodsMissing");
    assert!(why.message.starts_with("7 of 10 pods report signal tasks"), "{why}");
}

#[test]
fn case_41_a_pod_that_is_deleted_or_failed_is_not_there_at_once() {
    let (mut scene, _) = showing(&[5.0, 6.0, 7.0]);
    scene.workload.pods[1].ended = true;
    check_values(&scene.decide(), "qps", &[Some(5.0), Some(7.0)]);
    scene.workload.pods.remove(0);
    check_values(&scene.decide(), "qps", &[Some(7.0)]);
}

/// The replicas that an HPA with a Pods metric chooses on what the first pods show; `(spec.replicas, pods)`.
fn check_replicas(values: &[f64], target: f64, (spec, pods): (u32, u32), expected: u32) {
    let mut scene = Scene::new(policy(vec![qps()]), pods);
    for _ in 0..2 {
        for (pod, &value) in values.iter().enumerate() {
            scene.report(pod, gauge(value));
        }
        scene.decide();
        scene.pass(5.0);
    }
    let decision = scene.decide();
    let milli = |value: f64| crate::quantity::Quantity::from_served(value).expect("a number");
    let milli = |value| i64::try_from(milli(value).milli_ceil()).expect("small");
    let shown = |pod: &PodReading| Some((pod.name.clone(), milli(value(pod, "qps")?)));
    let values_milli: BTreeMap<Arc<str>, i64> = decision.pods.iter().filter_map(shown).collect();
    let metric = hpa::Metric::Pods { values_milli, target_milli: milli(target) };
    let names = scene.workload.pods.iter().map(|pod| pod.name.clone());
    let scale = ScaleState {
        spec_replicas: spec,
        status_replicas: pods,
        pods: names.map(|name| HpaPod { name, phase: HpaPodPhase::Ready }).collect(),
    };
    let proposal = hpa::desired_replicas(&metric, &scale, Tolerance::default());
    assert_eq!(proposal.map(|proposal| proposal.replicas), Ok(expected), "{values:?}");
}

#[test]
fn cases_48_to_50_an_hpa_with_a_pods_metric_chooses_the_replicas_of_its_rules() {
    check_replicas(&[20.0, 10.0, 30.0], 15.0, (3, 3), 4);
    check_replicas(&[20.0, 19.0, 21.0], 20.0, (5, 5), 5);
    check_replicas(&[10.0, 10.0], 17.0, (2, 3), 2);
}

// Usage.

/// What a pod uses after two rounds: (container, cores, bytes, seconds).
fn check_usage(
    policy: Policy,
    container: Option<&str>,
    rounds: (Readings, Readings),
    expected: Option<(&str, f64, f64, f64)>,
) {
    let mut scene = Scene::new(policy, 1);
    scene.workload.pods[0].container = container.map(Arc::from);
    let decision = two_rounds(&mut scene, &[rounds]);
    let usage = decision.pods.first().and_then(|pod| pod.usage.as_ref());
    let usage = usage.map(|usage| {
        (&*usage.container, usage.cpu.get(), usage.memory.get(), usage.window.as_secs_f64())
    });
    assert_eq!(usage, expected);
}

fn asking() -> Policy {
    Policy { wants_usage: true, ..policy(vec![qps()]) }
}

#[test]
fn usage_is_the_containers_and_else_the_processs_and_both_or_nothing() {
    let of = |families: [&str; 2], values: [f64; 2]| -> Readings {
        families.iter().zip(values).map(|(name, value)| reading(name, &[], value)).collect()
    };
    let process = ["process_cpu_seconds_total", "process_resident_memory_bytes"];
    let cgroup = ["cgroup_cpu_usage_seconds_total", "cgroup_memory_working_set_bytes"];
    let rounds = |families| (of(families, [10.0, 5e6]), of(families, [12.5, 6e6]));
    check_usage(asking(), Some("app"), rounds(process), Some(("app", 0.5, 6e6, 5.0)));
    check_usage(asking(), None, rounds(process), Some(("pod-0", 0.5, 6e6, 5.0)));
    let both = |values: [f64; 2]| [of(cgroup, values), of(process, [1.0, 1.0])].concat();
    let rounds_of_both = (both([20.0, 9e6]), both([24.0, 8e6]));
    check_usage(asking(), Some("app"), rounds_of_both, Some(("app", 0.8, 8e6, 5.0)));
    let cpu_alone =
        (of(process, [10.0, 5e6])[..1].to_vec(), of(process, [12.5, 6e6])[..1].to_vec());
    check_usage(asking(), Some("app"), cpu_alone, None);
    check_usage(policy(vec![qps()]), Some("app"), rounds(process), None);
}

#[test]
fn usage_of_cpu_is_a_mean_over_the_window_and_needs_two_samples() {
    let mut scene = Scene::new(asking(), 1);
    let report = |scene: &mut Scene, cpu| {
        let memory = reading("process_resident_memory_bytes", &[], 1e6);
        scene.report(0, vec![reading("process_cpu_seconds_total", &[], cpu), memory]);
        let decision = scene.decide();
        scene.pass(5.0);
        let usage = decision.pods.first().and_then(|pod| pod.usage.clone());
        usage.map(|usage| (usage.cpu.get(), usage.window.as_secs()))
    };
    let seen: Vec<_> =
        [0.0, 1.0, 4.0, 6.0, 6.0].map(|cpu| report(&mut scene, cpu)).into_iter().collect();
    let expected = [None, Some((0.2, 5)), Some((0.4, 10)), Some((0.4, 15)), Some((5.0 / 15.0, 15))];
    assert_eq!(seen, expected);
}

#[test]
fn usage_that_is_asked_for_is_scraped() {
    let wanted = |policy: &Policy| {
        policy.wanted().map(|name: MetricName| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(wanted(&policy(vec![qps()])), ["qps"]);
    let with_usage = [
        "cgroup_cpu_usage_seconds_total",
        "cgroup_memory_working_set_bytes",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "qps",
    ];
    assert_eq!(wanted(&asking()), with_usage);
}

// Objects.

fn ingress() -> TargetRef {
    TargetRef {
        api_version: "networking.k8s.io/v1".into(),
        kind: "Ingress".into(),
        name: "main".into(),
    }
}

fn placed(resource: &str) -> DescribedObject {
    let TargetRef { api_version, kind, name } = ingress();
    let namespace = Some("shop".into());
    DescribedObject { api_version, kind, resource: resource.into(), namespace, name }
}

fn about_ingress(aggregate: Aggregate) -> Signal {
    let kind = SignalKind::Metric {
        name: "qps".into(),
        aggregate,
        threshold: threshold(10.0),
        describes: Some(ingress()),
    };
    signal("ingress", kind)
}

fn scene_of(signals: Vec<Signal>, place: Option<Result<DescribedObject, Unserved>>) -> Scene {
    let mut scene = Scene::new(policy(signals), 3);
    scene.workload.described.extend(place.map(|place| (ingress(), place)));
    scene
}

/// What the object shows, or the reason why not.
fn shown(decision: &Decision) -> Vec<Result<f64, &'static str>> {
    let value = |reading: &ObjectReading| reading.value.as_ref().copied().map_err(|why| why.reason);
    decision.objects.iter().map(value).collect()
}

#[test]
fn an_object_shows_the_sum_of_all_pods_or_the_largest_of_any() {
    for (aggregate, all, without_one) in
        [(Aggregate::Sum, 12.0, Err("PodsMissing")), (Aggregate::Max, 6.0, Ok(4.0))]
    {
        let mut scene = scene_of(vec![about_ingress(aggregate)], Some(Ok(placed("ingresses"))));
        let show = |values: &[f64], scene: &mut Scene| {
            for (pod, &value) in values.iter().enumerate() {
                scene.report(pod, gauge(value));
            }
        };
        show(&[2.0, 4.0, 6.0], &mut scene);
        assert_eq!(shown(&scene.decide()), [Err("AwaitingSecondSample")]);
        scene.pass(5.0);
        show(&[2.0, 4.0, 6.0], &mut scene);
        let decision = scene.decide();
        assert_eq!(shown(&decision), [Ok(all)]);
        assert_eq!(decision.objects[0].object, placed("ingresses"));
        assert_eq!(&*decision.objects[0].metric, "qps");
        for _ in 0..5 {
            scene.pass(5.0);
            show(&[2.0, 4.0], &mut scene);
        }
        assert_eq!(shown(&scene.decide()), [without_one], "{aggregate:?} with one silent");
    }
}

#[test]
fn an_object_of_a_kind_that_is_not_served_has_no_value_and_other_signals_go_on() {
    let tasks = signal("tasks", SignalKind::Tasks(threshold(100.0)));
    let why = || Unserved {
        reason: "DescribedKindNotServed",
        message: "no kind Ingress in networking.k8s.io/v1 is served".to_owned(),
    };
    let signals = || vec![about_ingress(Aggregate::Sum), tasks.clone()];
    let readings = [reading("qps", &[], 4.0), reading("tokio_alive_tasks", &[], 200.0)];
    let mut scene = scene_of(signals(), Some(Err(why())));
    let decision = scene.settle(3, &readings);
    assert_eq!(shown(&decision), [Err("DescribedKindNotServed")]);
    assert_eq!(decision.objects[0].object, placed(""));
    let finding = &decision.findings[0];
    assert_eq!(finding.reason, "DescribedKindNotServed");
    assert_eq!(
        finding.message,
        "signal ingress: no kind Ingress in networking.k8s.io/v1 is served"
    );
    assert_demand("tasks drive", &decision, Ok(6.0));
    let decision = scene_of(signals(), None).settle(3, &readings);
    assert_eq!(shown(&decision), [Err("DescribedKindPending")]);
    assert_eq!(decision.findings, []);
}

#[test]
fn each_metric_of_an_object_is_shown_once() {
    let again = Signal { name: "again".into(), ..about_ingress(Aggregate::Max) };
    let mut scene =
        scene_of(vec![about_ingress(Aggregate::Sum), again], Some(Ok(placed("ingresses"))));
    assert_eq!(shown(&scene.settle(3, &gauge(4.0))), [Ok(12.0)]);
    let mut plain = scene_of(vec![qps()], None);
    assert_eq!(shown(&plain.settle(3, &gauge(4.0))), []);
}
