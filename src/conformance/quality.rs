//! Cases 39 to 42: what an adapter says when it does not know.

use std::time::Duration;

use super::case::{Case, Check, Outcome, Passed, Stop, expect};
use super::fixture::Backend;
use super::reading;
use super::routing::QPS;
use super::suite::Suite;
use super::wire::Answer;

/// Older than [`super::fixture::STALE_AFTER_SECONDS`].
const OLD_SECONDS: u64 = 47;
/// An HPA's worker waits for the answer, and there are five of them for a whole cluster.
const SOON: Duration = Duration::from_secs(1);

pub(super) const CASES: [Case; 4] = [
    Case {
        number: 39,
        name: "a source silent past its limit is an error, not a number",
        what: "The newest sample is 47 s old, the limit 20 s: 404 or 503 with a `metav1.Status`; not the last value, not 0, not an empty list.",
        consequence_for_hpa: "it scales on the last value for ever, with ScalingActive=True",
        check: Check::OnTheWire(|suite| Box::pin(stale(suite))),
    },
    Case {
        number: 40,
        name: "a total that lacks silent pods is made up for, or an error",
        what: "10 series at 0.5, 3 of them silent: at least 3.5 + 3 in sum, or an error. Never 3.5.",
        consequence_for_hpa: "it removes pods because some do not answer",
        check: Check::OnTheWire(|suite| Box::pin(silent_pods(suite))),
    },
    Case {
        number: 41,
        name: "a pod that is gone is not in the list",
        what: "A pod was deleted, its last sample is still known: no item for it.",
        consequence_for_hpa: "it averages the pod in that is gone: too many replicas",
        check: Check::OnTheWire(|suite| Box::pin(gone(suite))),
    },
    Case {
        number: 42,
        name: "a slow or lost backend is answered within 1 s, never Retry-After",
        what: "Backend slow, then down: an answer or 503 within 1 s, without `Retry-After`; while it is down, `/readyz` is not 200.",
        consequence_for_hpa: "one of its 5 workers waits, or sleeps and retries 10 times",
        check: Check::OnTheWire(|suite| Box::pin(slow(suite))),
    },
];

async fn read(suite: &Suite) -> Result<Answer, Stop> {
    suite.get(suite.external_path(suite.queue(), "")).send().await
}

async fn stale(suite: &Suite) -> Outcome {
    let fresh = suite.fixture().external(suite.queue(), &[], "42");
    suite.stage(&fresh).await?;
    let items = reading::external(&read(suite).await?)?;
    let known = items.len() == 1 && items[0].milli() == 42_000;
    expect(known, "1 items: 42, while it is fresh", reading::shown(&items))?;
    suite.stage(&fresh.last(OLD_SECONDS, &[])).await?;
    read(suite).await?.is_refusal(&[404, 503])?;
    Ok(Passed::Wholly)
}

async fn silent_pods(suite: &Suite) -> Outcome {
    let name = suite.name("conformance_load");
    let ten = (0..10).fold(suite.fixture(), |fixture, index| {
        let age = if index < 3 { OLD_SECONDS } else { 0 };
        let pod = format!("conformance-pod-{index}");
        fixture.external(name, &[(suite.label(0, "pod"), &pod)], "0.5").last(age, &[])
    });
    suite.stage(&ten).await?;
    let answer = suite.get(suite.external_path(name, "")).send().await?;
    if answer.status >= 400 {
        answer.is_refusal(&[404, 503])?;
        return Ok(Passed::Wholly);
    }
    let items = reading::external(&answer)?;
    let sum: i64 = reading::milli_values(&items).iter().sum();
    expect(sum >= 6_500, "at least 6500m in sum, or an error", reading::shown(&items))?;
    Ok(Passed::Wholly)
}

async fn gone(suite: &Suite) -> Outcome {
    let pods = ["a", "b", "c", "gone"].iter().fold(suite.fixture(), |fixture, pod| {
        let fixture = fixture.of_object("pods", pod, QPS, "5");
        if *pod == "gone" { fixture } else { fixture.object("pods", pod, &[]) }
    });
    suite.stage(&pods).await?;
    let path = suite.custom_path(&format!("pods/%2A/{QPS}"), "");
    let items = reading::custom(&suite.get(path).send().await?, "v1beta2")?;
    let names: Vec<&str> = items.iter().map(|item| item.object.as_str()).collect();
    let right = items.len() == 3 && !names.contains(&"gone");
    expect(right, "the pods a, b and c", format!("{names:?}"))?;
    Ok(Passed::Wholly)
}

async fn slow(suite: &Suite) -> Outcome {
    let fixture = suite.fixture().external(suite.queue(), &[], "42");
    suite.stage(&fixture.clone().backend(Backend::Slow)).await?;
    is_soon(&read(suite).await?)?;
    let down = fixture.last(OLD_SECONDS, &[]).backend(Backend::Down);
    let staged = suite.stage(&down).await?;
    is_soon(&read(suite).await?)?;
    if suite.options.through_apiserver {
        return Ok(Passed::Without("/readyz: needs the adapter's own --url"));
    }
    if staged.lacks("readiness") {
        return Ok(Passed::Without("/readyz: no one backend is behind all its metrics"));
    }
    let ready = suite.get("/readyz").send().await?;
    expect(ready.status != 200, "not 200 while the backend is down", ready)?;
    Ok(Passed::Wholly)
}

fn is_soon(answer: &Answer) -> Result<(), Stop> {
    let got = format!("after {:.1} s: {answer}", answer.took.as_secs_f64());
    let usable = [200, 503].contains(&answer.status);
    expect(usable && answer.took < SOON, "200 or 503 within 1 s", got)?;
    expect(answer.header("retry-after").is_none(), "no Retry-After", answer)
}
