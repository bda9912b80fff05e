//! Cases 43 to 60: the replicas that come of an adapter's answers.
//!
//! The calculator is the port in [`crate::policy::hpa`], fed with what the adapter serves of a fixture. What takes a running
//! controller is listed and not run.

use std::sync::Arc;
use std::time::Duration;

use super::case::{Case, Check, Outcome, Passed, Stop, expect};
use super::fixture::Fixture;
use super::reading;
use super::routing::QPS;
use super::suite::Suite;
use crate::policy::hpa::{
    Behavior, HpaPod, HpaPodPhase, Metric, Normalizer, Proposal, ScaleState, Tolerance,
    desired_replicas,
};
use crate::quantity::Quantity;
use crate::time::Moment;

pub(super) const CASES: [Case; 18] = [
    Case {
        number: 43,
        name: "AverageValue: a total of 8.6 at 2.15 a pod makes 3 pods 4",
        what: "External, 3 replicas: 4, and the status shows 2867m.",
        consequence_for_hpa: "wrong replicas",
        check: Check::OnTheWire(|suite| Box::pin(average(suite, "2.15", 3, 4, Some(2867)))),
    },
    Case {
        number: 44,
        name: "AverageValue: a total of 8.6 at 2.867 a pod makes 5 pods 3",
        what: "External, 5 replicas: 3, and the status shows 1720m.",
        consequence_for_hpa: "wrong replicas",
        check: Check::OnTheWire(|suite| Box::pin(average(suite, "2.867", 5, 3, Some(1720)))),
    },
    Case {
        number: 45,
        name: "AverageValue: a total of 8.6 at 2.9 a pod leaves 3 pods",
        what: "External, 3 replicas: 3, within the tolerance; with 1 % and a target of 2.8: 4.",
        consequence_for_hpa: "it scales to and fro on rounding errors",
        check: Check::OnTheWire(|suite| Box::pin(tolerance(suite))),
    },
    Case {
        number: 46,
        name: "Value: 8.6 at 4.4 with 1 of 3 pods Ready makes 2",
        what: "External, 3 replicas of which 1 is Ready: ceil(8.6/4.4 x 1) = 2.",
        consequence_for_hpa: "wrong replicas",
        check: Check::OnTheWire(|suite| Box::pin(value(suite, "4.4", (3, 1), 2))),
    },
    Case {
        number: 47,
        name: "Value: 8.6 at 14.334 makes 5 pods 3",
        what: "External, 5 replicas, all Ready: 3.",
        consequence_for_hpa: "wrong replicas",
        check: Check::OnTheWire(|suite| Box::pin(value(suite, "14.334", (5, 5), 3))),
    },
    Case {
        number: 48,
        name: "Pods: 20, 10 and 30 at 15 make 3 pods 4",
        what: "Custom, 3 replicas: 4, and the status shows 20.",
        consequence_for_hpa: "wrong replicas",
        check: Check::OnTheWire(|suite| Box::pin(pods(suite, &[20, 10, 30], 15, (3, 3), 4))),
    },
    Case {
        number: 49,
        name: "Pods: 20, 19 and 21 of 5 pods at 20 leave 5",
        what: "Custom, 5 pods of which 2 report nothing: the missing change nothing.",
        consequence_for_hpa: "it takes silent pods for idle ones",
        check: Check::OnTheWire(|suite| Box::pin(pods(suite, &[20, 19, 21], 20, (5, 5), 5))),
    },
    Case {
        number: 50,
        name: "Pods: 10 and 10 of 3 running pods at 17 leave 2",
        what: "Custom, 2 replicas and one more pod of a rollout: 2.",
        consequence_for_hpa: "rollouts change the replicas",
        check: Check::OnTheWire(|suite| Box::pin(pods(suite, &[10, 10], 17, (2, 3), 2))),
    },
    Case {
        number: 51,
        name: "a negative item does not send the replicas to the maximum",
        what: "External, AverageValue, one item of -1: an error, no item, or 0. (The HPA takes a negative sum for an overflow.)",
        consequence_for_hpa: "it scales to maxReplicas",
        check: Check::OnTheWire(|suite| Box::pin(negative(suite))),
    },
    Case {
        number: 52,
        name: "another metric still scales up while this one fails",
        what: "CPU asks for 4, the external metric fails, 3 replicas: 4, event FailedGetExternalMetric.",
        consequence_for_hpa: "the error of one metric blocks every rise",
        check: Check::InCluster,
    },
    Case {
        number: 53,
        name: "no metric scales down while this one fails",
        what: "CPU asks for less, the external metric fails, 5 replicas: 5, ScalingActive=False.",
        consequence_for_hpa: "it removes pods that the failing metric may need",
        check: Check::InCluster,
    },
    Case {
        number: 54,
        name: "the replicas stay while every metric fails",
        what: "Only failing metrics: unchanged, with the reason of each type.",
        consequence_for_hpa: "it scales without a number",
        check: Check::InCluster,
    },
    Case {
        number: 55,
        name: "upstream's end-to-end test of external metrics passes",
        what: "`queue_messages_ready` = 100 with Value 50 and 1 to 3 replicas: 3; then 0: 1.",
        consequence_for_hpa: "it does not scale",
        check: Check::InCluster,
    },
    Case {
        number: 56,
        name: "zero is a value: 500, 0, 400 at 100 a pod ask for 5, 0, 4",
        what: "External, AverageValue 100, minReplicas 0: 5, then 0, then 4 from none.",
        consequence_for_hpa: "an idle workload never reaches zero, or never wakes",
        check: Check::OnTheWire(|suite| Box::pin(zero(suite))),
    },
    Case {
        number: 57,
        name: "minReplicas 0 with resource metrics alone is refused",
        what: "`at least one Object or External metric` is the API server's answer.",
        consequence_for_hpa: "it could never wake the workload",
        check: Check::InCluster,
    },
    Case {
        number: 58,
        name: "replicas set to 0 by hand pause the HPA",
        what: "ScalingActive=False, ScalingDisabled; the adapter is not asked.",
        consequence_for_hpa: "it wakes what somebody switched off",
        check: Check::InCluster,
    },
    Case {
        number: 59,
        name: "ten pods at 1.6 ask for 16: no mean is served as the total",
        what: "External, ten series of 1.6, AverageValue 1, 10 replicas: 16. Their mean would ask for 2.",
        consequence_for_hpa: "it removes 8 of 10 overloaded pods",
        check: Check::OnTheWire(|suite| Box::pin(total(suite))),
    },
    Case {
        number: 60,
        name: "a doubled load overshoots by a tenth at most",
        what: "A load of 10 pods doubles, pods are Ready after 30 s, the HPA looks every 15 s: at most 22 replicas, and 20 in the end.",
        consequence_for_hpa: "it starts up to three times the pods that are needed",
        check: Check::OnTheWire(|suite| Box::pin(step(suite))),
    },
];

fn milli(target: &str) -> i64 {
    let quantity: Quantity = target.parse().unwrap_or_default();
    i64::try_from(quantity.milli_ceil()).unwrap_or(i64::MAX)
}

fn name(index: u32) -> Arc<str> {
    format!("conformance-pod-{index}").into()
}

/// So many replicas wanted, so many pods running, of which the first are Ready.
fn scale(replicas: u32, running: u32, ready: u32) -> ScaleState {
    let phase = |index| if index < ready { HpaPodPhase::Ready } else { HpaPodPhase::Unready };
    let pods = (0..running).map(|index| HpaPod { name: name(index), phase: phase(index) });
    ScaleState { spec_replicas: replicas, status_replicas: replicas, pods: pods.collect() }
}

/// The values of the queue, as an HPA decodes them.
async fn items(suite: &Suite, fixture: &Fixture) -> Result<Vec<i64>, Stop> {
    suite.stage(fixture).await?;
    let answer = suite.get(suite.external_path(suite.queue(), "")).send().await?;
    Ok(reading::milli_values(&reading::external(&answer)?))
}

fn queue(suite: &Suite, value: &str) -> Fixture {
    suite.fixture().external(suite.queue(), &[], value)
}

/// What the calculator makes of the metric must be `expected`.
fn propose(
    metric: &Metric,
    scale: &ScaleState,
    tolerance: Tolerance,
    expected: u32,
) -> Result<Proposal, Stop> {
    let wanted = format!("{expected} replicas");
    let proposal = desired_replicas(metric, scale, tolerance)
        .map_err(|error| Stop::fail(&wanted, format!("{error}, of {metric:?}")))?;
    let got = format!("{} replicas, of {metric:?}", proposal.replicas);
    expect(proposal.replicas == expected, wanted, got)?;
    Ok(proposal)
}

async fn average(
    suite: &Suite,
    target: &str,
    replicas: u32,
    expected: u32,
    status_milli: Option<i64>,
) -> Outcome {
    let items_milli = items(suite, &queue(suite, "8.6")).await?;
    let metric = Metric::ExternalAverageValue { items_milli, target_milli: milli(target) };
    let scale = scale(replicas, replicas, replicas);
    let proposal = propose(&metric, &scale, Tolerance::default(), expected)?;
    if let Some(expected) = status_milli {
        let got = format!("{}m", proposal.status_milli);
        expect(proposal.status_milli == expected, format!("{expected}m in the status"), got)?;
    }
    Ok(Passed::Wholly)
}

async fn tolerance(suite: &Suite) -> Outcome {
    let items_milli = items(suite, &queue(suite, "8.6")).await?;
    let one_percent = Tolerance { up: 0.01, ..Tolerance::default() };
    for (target, tolerance, expected) in [("2.9", Tolerance::default(), 3), ("2.8", one_percent, 4)]
    {
        let items_milli = items_milli.clone();
        let metric = Metric::ExternalAverageValue { items_milli, target_milli: milli(target) };
        propose(&metric, &scale(3, 3, 3), tolerance, expected)?;
    }
    Ok(Passed::Wholly)
}

async fn value(
    suite: &Suite,
    target: &str,
    (replicas, ready): (u32, u32),
    expected: u32,
) -> Outcome {
    let items_milli = items(suite, &queue(suite, "8.6")).await?;
    let metric = Metric::ExternalValue { items_milli, target_milli: milli(target) };
    propose(&metric, &scale(replicas, replicas, ready), Tolerance::default(), expected)?;
    Ok(Passed::Wholly)
}

async fn pods(
    suite: &Suite,
    values: &[u32],
    target: i64,
    (replicas, running): (u32, u32),
    expected: u32,
) -> Outcome {
    let exist = (0..running)
        .fold(suite.fixture(), |fixture, index| fixture.object("pods", &name(index), &[]));
    let fixture = (0_u32..).zip(values).fold(exist, |fixture, (index, value)| {
        fixture.of_object("pods", &name(index), QPS, &value.to_string())
    });
    suite.stage(&fixture).await?;
    let path = suite.custom_path(&format!("pods/%2A/{QPS}"), "");
    let items = reading::custom(&suite.get(path).send().await?, "v1beta2")?;
    let values_milli = reading::by_object(&items);
    let metric = Metric::Pods { values_milli, target_milli: target * 1000 };
    propose(&metric, &scale(replicas, running, running), Tolerance::default(), expected)?;
    Ok(Passed::Wholly)
}

async fn negative(suite: &Suite) -> Outcome {
    suite.stage(&queue(suite, "-1")).await?;
    let answer = suite.get(suite.external_path(suite.queue(), "")).send().await?;
    if answer.status >= 400 {
        return Ok(Passed::Wholly);
    }
    let items = reading::external(&answer)?;
    let items_milli = reading::milli_values(&items);
    let metric = Metric::ExternalAverageValue { items_milli, target_milli: 1000 };
    let expected = "an error, no item, or 0 and so no replica";
    if let Ok(proposal) = desired_replicas(&metric, &scale(3, 3, 3), Tolerance::default()) {
        let got = format!("{} replicas, of {}", proposal.replicas, reading::shown(&items));
        expect(proposal.replicas == 0, expected, got)?;
    }
    Ok(Passed::Wholly)
}

async fn zero(suite: &Suite) -> Outcome {
    let mut replicas = 1;
    for (value, expected) in [("500", 5), ("0", 0), ("400", 4)] {
        let items_milli = items(suite, &queue(suite, value)).await?;
        let metric = Metric::ExternalAverageValue { items_milli, target_milli: milli("100") };
        let scale = scale(replicas, replicas, replicas);
        replicas = propose(&metric, &scale, Tolerance::default(), expected)?.replicas;
    }
    Ok(Passed::Wholly)
}

/// A series per pod, each with its share of the load.
fn shares(suite: &Suite, pods: u32, each: f64) -> Fixture {
    (0..pods).fold(suite.fixture(), |fixture, index| {
        fixture.external(suite.queue(), &[(suite.label(0, "pod"), &name(index))], &each.to_string())
    })
}

async fn total(suite: &Suite) -> Outcome {
    let items_milli = items(suite, &shares(suite, 10, 1.6)).await?;
    let metric = Metric::ExternalAverageValue { items_milli, target_milli: 1000 };
    propose(&metric, &scale(10, 10, 10), Tolerance::default(), 16)?;
    Ok(Passed::Wholly)
}

/// Passes of the HPA after the load doubled, 15 s apart; a pod started in one is Ready two later.
const PASSES: u32 = 12;
const DOUBLED_AT: u32 = 2;
const PASSES_TO_READY: u32 = 2;

async fn step(suite: &Suite) -> Outcome {
    let mut normalizer = Normalizer::new(1, 400, Behavior::default());
    let mut replicas_after: Vec<u32> = Vec::new();
    let mut replicas = 10;
    for pass in 0..PASSES {
        let load = if pass < DOUBLED_AT { 10.0 } else { 20.0 };
        // Scaling up alone: who is Ready now was wanted two passes ago.
        let ready = pass.checked_sub(PASSES_TO_READY + 1).map_or(10, |then| {
            let index = usize::try_from(then).unwrap_or(usize::MAX);
            replicas_after.get(index).copied().unwrap_or(10)
        });
        let ready = ready.clamp(1, replicas);
        let items_milli = items(suite, &shares(suite, ready, load / f64::from(ready))).await?;
        let metric = Metric::ExternalAverageValue { items_milli, target_milli: 1000 };
        let scale = scale(replicas, replicas, ready);
        let proposal = desired_replicas(&metric, &scale, Tolerance::default())
            .map_err(|error| Stop::fail("a proposal", error))?;
        let at = Moment::after_start(Duration::from_secs(15) * pass);
        replicas = normalizer.next(at, replicas, proposal.replicas);
        replicas_after.push(replicas);
    }
    let peak = replicas_after.iter().max().copied().unwrap_or_default();
    let right = peak <= 22 && replicas >= 20;
    expect(right, "at most 22 replicas, and 20 in the end", format!("{replicas_after:?}"))?;
    Ok(Passed::Wholly)
}
