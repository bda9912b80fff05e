//! Cases of the real calculator's tests, and of its normalisation.

use std::time::Duration;

use super::*;
use crate::quantity::Quantity;
use crate::time::Moment;

fn milli_of(text: &str) -> i64 {
    let quantity: Quantity = text.parse().expect("a quantity");
    i64::try_from(quantity.milli_ceil()).expect("a small quantity")
}

fn average(items: &[&str], target: &str) -> Metric {
    let items_milli = items.iter().map(|item| milli_of(item)).collect();
    Metric::ExternalAverageValue { items_milli, target_milli: milli_of(target) }
}

fn value(items: &[&str], target: &str) -> Metric {
    let items_milli = items.iter().map(|item| milli_of(item)).collect();
    Metric::ExternalValue { items_milli, target_milli: milli_of(target) }
}

fn pods(values: &[i64], target: i64) -> Metric {
    let named = values.iter().enumerate().map(|(index, value)| (name(index), value * 1000));
    Metric::Pods { values_milli: named.collect(), target_milli: target * 1000 }
}

fn name(index: usize) -> Arc<str> {
    format!("pod-{index}").into()
}

/// `replicas` in spec and status, of which `ready` pods are Ready and the others run.
fn scale(replicas: u32, running: usize, ready: usize) -> ScaleState {
    let phase = |index| if index < ready { HpaPodPhase::Ready } else { HpaPodPhase::Unready };
    let pods =
        (0..running).map(|index| HpaPod { name: name(index), phase: phase(index) }).collect();
    ScaleState { spec_replicas: replicas, status_replicas: replicas, pods }
}

fn check(case: &str, metric: &Metric, scale: &ScaleState, up: f64, expected: (u32, Option<&str>)) {
    let tolerance = Tolerance { up, ..Tolerance::default() };
    let got = desired_replicas(metric, scale, tolerance).expect("the metric is there");
    assert_eq!(got.replicas, expected.0, "{case}");
    if let Some(status) = expected.1 {
        assert_eq!(got.status_milli, milli_of(status), "{case}");
    }
}

#[test]
fn the_calculator_agrees_with_the_tests_of_kubernetes() {
    let three = scale(3, 3, 3);
    let five = scale(5, 5, 5);
    check("43", &average(&["8.6"], "2.15"), &three, 0.1, (4, Some("2867m")));
    check("44", &average(&["8.6"], "2.867"), &five, 0.1, (3, Some("1720m")));
    check("45", &average(&["8.6"], "2.9"), &three, 0.1, (3, None));
    check("45 with tolerance", &average(&["8.6"], "2.8"), &three, 0.01, (4, None));
    check("46", &value(&["8.6"], "4.4"), &scale(3, 3, 1), 0.1, (2, Some("8600m")));
    check("47", &value(&["8.6"], "14.334"), &five, 0.1, (3, Some("8600m")));
    check("48", &pods(&[20, 10, 30], 15), &three, 0.1, (4, Some("20")));
    check("49", &pods(&[20, 19, 21], 20), &five, 0.1, (5, Some("20")));
    check("50", &pods(&[10, 10], 17), &scale(2, 3, 3), 0.1, (2, Some("10")));
    check("51", &average(&["-1"], "1"), &three, 0.1, (i32::MAX.unsigned_abs(), None));
}

#[test]
fn the_sum_of_items_reads_as_the_reference_table_says() {
    let ten = scale(10, 10, 10);
    check("mean as average", &average(&["1.6"], "1"), &ten, 0.1, (2, None));
    check("total as average", &average(&["16"], "1"), &ten, 0.1, (16, None));
    check("per pod as average", &average(&["1.6"; 10], "1"), &ten, 0.1, (16, None));
    check("mean as value", &value(&["1.6"], "1"), &ten, 0.1, (16, None));
    check("per pod as value", &value(&["1.6"; 10], "1"), &ten, 0.1, (160, None));
    check("half unready as value", &value(&["1.6"], "1"), &scale(10, 10, 5), 0.1, (8, None));
}

#[test]
fn an_empty_answer_is_an_error_and_no_zero() {
    let got = desired_replicas(&average(&[], "1"), &scale(3, 3, 3), Tolerance::default());
    assert_eq!(got, Err(HpaError::NoItems));
}

/// Proposals of passes at 15 s, from `start` replicas, with a down window.
fn check_normal(start: u32, down_window: u64, proposals: &[u32], expected: &[u32]) {
    let mut behavior = Behavior::default();
    behavior.down.stabilization = Duration::from_secs(down_window);
    let mut normalizer = Normalizer::new(1, 40, behavior);
    let mut current = start;
    let got: Vec<u32> = (0_u64..)
        .zip(proposals)
        .map(|(pass, &proposed)| {
            current = normalizer.next(
                Moment::after_start(Duration::from_secs(15 * pass)),
                current,
                proposed,
            );
            current
        })
        .collect();
    assert_eq!(got, expected, "{proposals:?}");
}

#[test]
fn a_rise_is_limited_to_four_pods_or_a_doubling_per_period() {
    check_normal(1, 300, &[20, 20, 20, 20], &[5, 10, 20, 20]);
    check_normal(1, 300, &[100; 5], &[5, 10, 20, 40, 40]);
}

#[test]
fn a_fall_waits_for_the_window() {
    check_normal(10, 30, &[2, 2, 2, 2], &[10, 10, 2, 2]);
    check_normal(10, 0, &[0], &[1]);
    check_normal(10, 30, &[10, 2, 9, 2, 2, 2], &[10, 10, 9, 9, 2, 2]);
}
