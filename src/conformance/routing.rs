//! Cases 18 to 30: which path reads what.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::Value;

use super::case::{Case, Check, Outcome, Passed, Stop, expect};
use super::fixture::Fixture;
use super::reading::{self, Reading};
use super::suite::{QUEUES, Suite};

/// The custom metric of most fixtures.
pub(super) const QPS: &str = "conformance_qps";
/// Pods of [`pods`], of which the first half has the label `foo=bar`.
const PODS: usize = 16;
const NODES: usize = 4;

pub(super) const CASES: [Case; 13] = [
    Case {
        number: 18,
        name: "an external metric's name is found lower-cased",
        what: "The path of an HPA's metric `Pressure` ends in `pressure`: 200.",
        consequence_for_hpa: "FailedGetExternalMetric: client-go lower-cases every name",
        check: Check::OnTheWire(|suite| Box::pin(lower_case(suite))),
    },
    Case {
        number: 19,
        name: "external paths of any other shape are 404",
        what: "`…/v1beta1/METRIC` without a namespace, `…/namespaces/NS` and `…/namespaces/NS/a/b`: 404.",
        consequence_for_hpa: "none; a wrong path looks like a metric to people",
        check: Check::OnTheWire(|suite| Box::pin(other_shapes(suite))),
    },
    Case {
        number: 20,
        name: "pods/* is one list, whether the star is encoded or not",
        what: "`pods/%2A/METRIC` (as Go sends it) and `pods/*/METRIC`: 200 with the same items.",
        consequence_for_hpa: "FailedGetPodsMetric: every Pods metric is read by `%2A`",
        check: Check::OnTheWire(|suite| Box::pin(star(suite))),
    },
    Case {
        number: 21,
        name: "one object by name is exactly one item",
        what: "`pods/NAME/METRIC`: one item. Two series of one pod: their sum or an error, never one of them.",
        consequence_for_hpa: "Object metrics fail on any other count; half a load scales down",
        check: Check::OnTheWire(|suite| Box::pin(by_name(suite))),
    },
    Case {
        number: 22,
        name: "a namespace's own metric is one item about the Namespace",
        what: "`namespaces/NS/metrics/METRIC`: one item whose `describedObject` is the Namespace.",
        consequence_for_hpa: "FailedGetObjectMetric for metrics of kind Namespace",
        check: Check::OnTheWire(|suite| Box::pin(of_namespace(suite))),
    },
    Case {
        number: 23,
        name: "objects outside namespaces are read by star and by name",
        what: "`nodes/*/METRIC`: one item per node. `nodes/NAME/METRIC`: one.",
        consequence_for_hpa: "none; HPAs read namespaced objects only",
        check: Check::OnTheWire(|suite| Box::pin(nodes(suite))),
    },
    Case {
        number: 24,
        name: "a path without a metric is 404",
        what: "`nodes/NAME` and `pods/NAME`: 404.",
        consequence_for_hpa: "none; a wrong path looks like a metric to people",
        check: Check::OnTheWire(|suite| Box::pin(no_metric(suite))),
    },
    Case {
        number: 25,
        name: "labelSelector picks pods by their labels",
        what: "`pods/*/METRIC?labelSelector=foo%3Dbar`: the pods that have the label, and no other.",
        consequence_for_hpa: "pods of other workloads are averaged in: wrong replicas",
        check: Check::OnTheWire(|suite| Box::pin(pod_labels(suite))),
    },
    Case {
        number: 26,
        name: "an external metric has one item per series",
        what: "Two series, `foo=bar` and `foo=baz`: two items without a selector, one with `foo=bar`.",
        consequence_for_hpa: "it adds the items up: a lost series lowers the replicas",
        check: Check::OnTheWire(|suite| Box::pin(series(suite))),
    },
    Case {
        number: 27,
        name: "every operator of label selectors works",
        what: "`a in (x,y)`, `a notin (x)`, `a!=x`, `a`, `!a`, with spaces sent as `+`, and values beside each other.",
        consequence_for_hpa: "it sums series that its selector excludes",
        check: Check::OnTheWire(|suite| Box::pin(operators(suite))),
    },
    Case {
        number: 28,
        name: "a malformed selector is 400",
        what: "`labelSelector=a in (`: 400 with a `metav1.Status`, not 500 and not everything.",
        consequence_for_hpa: "FailedGetExternalMetric without the reason; or all series",
        check: Check::OnTheWire(|suite| Box::pin(malformed(suite))),
    },
    Case {
        number: 29,
        name: "an unknown external metric is 404, or an empty list",
        what: "A metric that does not exist: 404 with a `metav1.Status` (better), or 200 without items.",
        consequence_for_hpa: "any value for it is scaled on",
        check: Check::OnTheWire(|suite| Box::pin(unknown(suite))),
    },
    Case {
        number: 30,
        name: "methods that write are refused, without a redirect",
        what: "`POST` and `DELETE` of a metric's path: 403, 404 or 405.",
        consequence_for_hpa: "none; a redirect is a 502 for every client of the API server",
        check: Check::OnTheWire(|suite| Box::pin(writing(suite))),
    },
];

fn pod(index: usize) -> String {
    format!("conformance-pod-{index}")
}

fn node(index: usize) -> String {
    format!("conformance-node-{index}")
}

/// Pods with a metric each; half of them have `foo=bar`, the others `foo=baz`.
fn pods(suite: &Suite) -> Fixture {
    (0..PODS).fold(suite.fixture(), |fixture, index| {
        let half = if index < PODS / 2 { "bar" } else { "baz" };
        let fixture = fixture.object("pods", &pod(index), &[("foo", half)]);
        fixture.of_object("pods", &pod(index), QPS, &(index + 1).to_string())
    })
}

async fn custom(suite: &Suite, rest: &str, selector: &str) -> Result<Vec<Reading>, Stop> {
    let answer = suite.get(suite.custom_path(rest, selector)).send().await?;
    reading::custom(&answer, "v1beta2")
}

fn objects(readings: &[Reading]) -> BTreeSet<&str> {
    readings.iter().map(|reading| reading.object.as_str()).collect()
}

fn count(readings: &[Reading], expected: usize, what: &str) -> Result<(), Stop> {
    let got = reading::shown(readings);
    expect(readings.len() == expected, format!("{expected} items: {what}"), got)
}

async fn lower_case(suite: &Suite) -> Outcome {
    if suite.has_control() {
        let name = suite.name("Conformance_Pressure");
        let fixture = suite.fixture().external(name, &[], "42");
        suite.stage(&fixture).await?;
        let path = suite.external_path(name, "");
        let items = reading::external(&suite.get(path).send().await?)?;
        let right = items.len() == 1 && items[0].milli() == 42_000;
        expect(right, format!("1 items: 42, of {name}"), reading::shown(&items))?;
        return Ok(Passed::Wholly);
    }
    let metric = suite.known_external().await?;
    let path = suite.external_path(&metric.name, &metric.selector);
    reading::external(&suite.get(path).send().await?)?;
    Ok(Passed::Wholly)
}

async fn other_shapes(suite: &Suite) -> Outcome {
    let namespace = &suite.options.namespace;
    for rest in [
        suite.queue().to_owned(),
        format!("namespaces/{namespace}"),
        format!("namespaces/{namespace}/{}/b", suite.queue()),
    ] {
        let path = format!("/apis/external.metrics.k8s.io/v1beta1/{rest}");
        suite.get(path).send().await?.has_status(404)?;
    }
    Ok(Passed::Wholly)
}

async fn star(suite: &Suite) -> Outcome {
    let metric = if suite.has_control() {
        suite.stage(&pods(suite)).await?;
        QPS
    } else {
        &suite.known_object("pods")?.metric
    };
    let selector = suite.options.pods_selector.as_deref().filter(|_| !suite.has_control());
    let selector = selector.unwrap_or_default();
    let encoded = custom(suite, &format!("pods/%2A/{metric}"), selector).await?;
    let plain = custom(suite, &format!("pods/*/{metric}"), selector).await?;
    expect(!encoded.is_empty(), "at least one item", reading::shown(&encoded))?;
    let got = format!("{} and {} items", encoded.len(), plain.len());
    expect(objects(&encoded) == objects(&plain), "the same objects in both", got)?;
    if suite.has_control() {
        count(&encoded, PODS, "one per pod")?;
    }
    Ok(Passed::Wholly)
}

async fn by_name(suite: &Suite) -> Outcome {
    if !suite.has_control() {
        let known = suite.known_object("pods")?;
        let items = custom(suite, &format!("pods/{}/{}", known.name, known.metric), "").await?;
        count(&items, 1, "the one of the name")?;
        return Ok(Passed::Without("two series of one pod: needs --control-url"));
    }
    let twice = pods(suite)
        .of_object("pods", &pod(3), "conformance_twice", "10")
        .last(0, &[("shard", "a")])
        .of_object("pods", &pod(3), "conformance_twice", "20")
        .last(0, &[("shard", "b")]);
    suite.stage(&twice).await?;
    let items = custom(suite, &format!("pods/{}/{QPS}", pod(3)), "").await?;
    count(&items, 1, "the one of the name")?;
    expect(items[0].milli() == 4000, "the pod's own value, 4", reading::shown(&items))?;
    let path = suite.custom_path(&format!("pods/{}/conformance_twice", pod(3)), "");
    let answer = suite.get(path).send().await?;
    if answer.status == 200 {
        let items = reading::custom(&answer, "v1beta2")?;
        let expected = "30 or an error, of two series with 10 and 20";
        let sum = items.len() == 1 && items[0].milli() == 30_000;
        expect(sum, expected, reading::shown(&items))?;
    }
    Ok(Passed::Wholly)
}

async fn of_namespace(suite: &Suite) -> Outcome {
    let namespace = suite.options.namespace.clone();
    let metric = if suite.has_control() {
        let fixture = suite.fixture().object("namespaces", &namespace, &[]);
        suite.stage(&fixture.of_object("namespaces", &namespace, QPS, "7")).await?;
        QPS.to_owned()
    } else {
        suite.known_object("namespaces")?.metric.clone()
    };
    let items = custom(suite, &format!("metrics/{metric}"), "").await?;
    count(&items, 1, "the namespace")?;
    let described = &items[0].raw["describedObject"];
    let right = described["kind"] == "Namespace" && described["name"] == *namespace;
    expect(right, format!("describedObject is Namespace {namespace}"), described)?;
    Ok(Passed::Wholly)
}

async fn nodes(suite: &Suite) -> Outcome {
    let (metric, name) = if suite.has_control() {
        let nodes = (0..NODES).fold(suite.fixture(), |fixture, index| {
            let fixture = fixture.object("nodes", &node(index), &[]);
            fixture.of_object("nodes", &node(index), QPS, "7")
        });
        suite.stage(&nodes).await?;
        (QPS.to_owned(), node(2))
    } else {
        let known = suite.known_object("nodes")?;
        (known.metric.clone(), known.name.clone())
    };
    let read = async |object: &str| {
        let path = format!("/apis/custom.metrics.k8s.io/v1beta2/nodes/{object}/{metric}");
        reading::custom(&suite.get(path).send().await?, "v1beta2")
    };
    let all = read("*").await?;
    let expected = if suite.has_control() { NODES } else { all.len().max(1) };
    count(&all, expected, "one per node")?;
    count(&read(&name).await?, 1, "the one of the name")?;
    Ok(Passed::Wholly)
}

async fn no_metric(suite: &Suite) -> Outcome {
    if !suite.has_control() && suite.options.custom_metrics.is_empty() {
        return Err(Stop::skip("needs --custom-metric RESOURCE/NAME/METRIC, or --control-url"));
    }
    if suite.has_control() {
        suite.stage(&pods(suite)).await?;
    }
    let nodes = "/apis/custom.metrics.k8s.io/v1beta2/nodes/foo".to_owned();
    for path in [nodes, suite.custom_path("pods/bar", "")] {
        suite.get(path).send().await?.has_status(404)?;
    }
    Ok(Passed::Wholly)
}

async fn pod_labels(suite: &Suite) -> Outcome {
    if suite.has_control() {
        suite.stage(&pods(suite)).await?;
        let items = custom(suite, &format!("pods/%2A/{QPS}"), "foo=bar").await?;
        count(&items, PODS / 2, "the pods with foo=bar")?;
        let names: Vec<String> = (0..PODS / 2).map(pod).collect();
        let right = objects(&items) == names.iter().map(String::as_str).collect();
        expect(right, "the pods with foo=bar", format!("{:?}", objects(&items)))?;
        return Ok(Passed::Wholly);
    }
    let metric = &suite.known_object("pods")?.metric;
    let reason = "needs --pods-selector, or --control-url";
    let selector = suite.options.pods_selector.as_ref().ok_or_else(|| Stop::skip(reason))?;
    let rest = format!("pods/%2A/{metric}");
    let picked = custom(suite, &rest, selector).await?;
    expect(!picked.is_empty(), "some pods", reading::shown(&picked))?;
    let none = suite.get(suite.custom_path(&rest, "headroom-conformance=none")).send().await?;
    if none.status == 200 {
        count(&reading::custom(&none, "v1beta2")?, 0, "no pod has that label")?;
    }
    Ok(Passed::Wholly)
}

async fn series(suite: &Suite) -> Outcome {
    let metric = suite.known_external().await?;
    let read = async |selector: &str| {
        let path = suite.external_path(&metric.name, selector);
        reading::external(&suite.get(path).send().await?)
    };
    if !metric.staged {
        let items = read(&metric.selector).await?;
        expect(!items.is_empty(), "at least one item", reading::shown(&items))?;
        return Ok(Passed::Without("that no series is lost: needs --control-url"));
    }
    let all = read("").await?;
    count(&all, QUEUES.len(), "one per series")?;
    let sum: i64 = reading::milli_values(&all).iter().sum();
    expect(sum == 85_000, "42 and 43", reading::shown(&all))?;
    let bar = read(&format!("{}=bar", suite.label(0, "foo"))).await?;
    count(&bar, 1, "foo=bar")?;
    expect(bar[0].milli() == 42_000, "42", reading::shown(&bar))?;
    Ok(Passed::Wholly)
}

/// What selectors pick of four series with the values 1 to 4.
type Picks = Vec<(String, &'static [i64])>;

/// Selectors by the two labels of the first three series, whatever the fourth one has.
fn picks(a: &str, b: &str) -> Picks {
    vec![
        (format!("{a} in (x,y)"), &[1, 2]),
        (format!("{a} notin (x)"), &[2, 3, 4]),
        (format!("{a}!=x"), &[2, 3, 4]),
        (format!("{a}=x"), &[1]),
        (format!("{a}==z"), &[3]),
        (format!("{b}=1,{a} in (x, z)"), &[1]),
        (format!("{b}=2"), &[2, 3]),
    ]
}

async fn operators(suite: &Suite) -> Outcome {
    let (a, b) = (suite.label(0, "a"), suite.label(1, "b"));
    let name = suite.queue();
    let three = suite
        .fixture()
        .external(name, &[(a, "x"), (b, "1")], "1")
        .external(name, &[(a, "y"), (b, "2")], "2")
        .external(name, &[(a, "z"), (b, "2")], "3");
    let mut picks = picks(a, b);
    let fixture = if suite.has_fixed_labels() {
        picks.extend([(a.to_owned(), &[1, 2, 3, 4][..]), ("!c".to_owned(), &[1, 2, 3, 4])]);
        three.external(name, &[(a, "w"), (b, "3")], "4")
    } else {
        picks.extend([(a.to_owned(), &[1, 2, 3][..]), (format!("!{a}"), &[4])]);
        three.external(name, &[("c", "x")], "4")
    };
    suite.stage(&fixture).await?;
    for (selector, expected) in picks {
        let answer = suite.get(suite.external_path(name, &selector)).send().await?;
        let items = reading::external(&answer)?;
        let mut got = reading::milli_values(&items);
        got.sort_unstable();
        let milli: Vec<i64> = expected.iter().map(|value| value * 1000).collect();
        let expected = format!("the series {expected:?} for the selector {selector}");
        expect(got == milli, expected, reading::shown(&items))?;
    }
    let without = Passed::Without("a series without the label: each has all of them");
    Ok(if suite.has_fixed_labels() { without } else { Passed::Wholly })
}

async fn malformed(suite: &Suite) -> Outcome {
    let name = suite.known_external().await?.name;
    for selector in ["a in (", "a b c", "=x"] {
        let path = suite.external_path(&name, selector);
        suite.get(path).send().await?.is_refusal(&[400])?;
    }
    Ok(Passed::Wholly)
}

async fn unknown(suite: &Suite) -> Outcome {
    let path = suite.external_path("conformance_no_such_metric", "");
    let answer = suite.get(path).send().await?;
    if answer.status == 200 {
        let body: Value = answer.json()?;
        let empty = body["items"].as_array().is_none_or(Vec::is_empty);
        expect(empty && body["kind"] != "Status", "404, or no items", &answer)?;
        return Ok(Passed::Wholly);
    }
    answer.is_refusal(&[404])?;
    Ok(Passed::Wholly)
}

async fn writing(suite: &Suite) -> Outcome {
    for method in [Method::POST, Method::DELETE] {
        let ask = suite.get(suite.external_path(suite.queue(), "")).method(method);
        let answer = ask.send().await?;
        let refused = [403, 404, 405].contains(&answer.status);
        expect(refused, "403, 404 or 405", &answer)?;
    }
    Ok(Passed::Wholly)
}
