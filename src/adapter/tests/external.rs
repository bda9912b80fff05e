//! Cases 18, 19, 26 to 35, 38, 39, 42: the numbers, and the errors instead of them.

use std::io::Read;

use super::*;
use crate::policy::{
    LeftOut, LeftOutReason, Quantile, Signal, SignalDecision, SignalKind, Threshold, Total,
    TotalKind,
};
use crate::units::{Ratio, TaskCount};

fn signal(name: &str, demand: Result<f64, Unserved>) -> SignalDecision {
    SignalDecision {
        name: name.into(),
        demand,
        current: None,
        coverage: Coverage { matched: 10, reporting: 10, expected: 10 },
        threshold: 1.0,
        base: 0.0,
        formula: String::new(),
    }
}

#[tokio::test]
async fn case_18_and_38_an_item_says_name_labels_sample_time_window_and_value() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 2.25);
    let answer = server.metric("shop", "headroom_demand").await;
    assert_eq!(answer.header("content-type"), "application/json");
    let expected = json!({
        "kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {},
        "items": [{"metricName": "headroom_demand", "metricLabels": {"policy": "checkout"},
            "timestamp": "2026-09-21T14:13:20Z", "window": 30, "value": "2250m"}],
    });
    assert_eq!(answer.json(), expected);
}

/// Captured from custom-metrics-apiserver (0.36 series), which knows no window.
#[tokio::test]
async fn an_answer_has_every_field_that_upstreams_has() {
    let server = Running::start().await;
    server.demand("lab", "sample", 42.0);
    let captured: Value = serde_json::from_str(
        r#"{"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1","metadata":{},
            "items":[{"metricName":"my-external-metric","metricLabels":{"foo":"bar"},
            "timestamp":"2026-11-23T19:20:38Z","value":"42"}]}"#,
    )
    .expect("the capture is JSON");
    let mut ours = server.metric("lab", "headroom_demand").await.json();
    let item = ours["items"][0].as_object_mut().expect("one item");
    assert_eq!(item.remove("window"), Some(json!(30)));
    for (name, value) in
        [("metricName", "my-external-metric"), ("timestamp", "2026-11-23T19:20:38Z")]
    {
        item.insert(name.to_owned(), json!(value));
    }
    item.insert("metricLabels".to_owned(), json!({"foo": "bar"}));
    assert_eq!(ours, captured);
}

#[tokio::test]
async fn case_19_other_paths_are_not_found() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    for path in [
        "/headroom_demand",
        "/namespaces/shop",
        "/namespaces/shop/",
        "/namespaces/shop/a/b",
        "/namespaces/shop/headroom_demand/",
        "/namespaces/shop/headroom_demand/x",
        "/namespaces/shop/status",
        "//namespaces/shop/headroom_demand",
        "x",
    ] {
        server.as_hpa(&format!("{EXTERNAL}{path}")).await.status(404, "NotFound");
    }
    for path in ["/", "/api", "/apis/external.metrics.k8s.io/v1", "/apis/metrics.k8s.io", "/apis/"]
    {
        server.as_hpa(path).await.status(404, "NotFound");
    }
}

#[tokio::test]
async fn case_26_and_27_the_selector_picks_items_by_kubernetes_rules() {
    let server = Running::start().await;
    server.demand("shop", "bar", 42.0);
    server.demand("shop", "baz", 43.0);
    server.demand("bank", "bar", 99.0);
    let (bar, baz) = ("policy=bar: 42", "policy=baz: 43");
    for (query, expected) in [
        ("", vec![bar, baz]),
        ("?labelSelector=", vec![bar, baz]),
        ("?labelSelector=policy%3Dbar", vec![bar]),
        ("?labelSelector=policy+in+%28bar%2Cbaz%29", vec![bar, baz]),
        ("?labelSelector=policy%20in%20(baz)", vec![baz]),
        ("?labelSelector=policy+notin+%28bar%29", vec![baz]),
        ("?labelSelector=policy%21%3Dbaz", vec![bar]),
        ("?labelSelector=policy", vec![bar, baz]),
        ("?labelSelector=%21signal%2Cpolicy%3D%3Dbaz", vec![baz]),
        ("?limit=500&labelSelector=policy%3Dbar&labelSelector=policy%3Dbaz", vec![bar]),
    ] {
        let answer = server.metric("shop", &format!("headroom_demand{query}")).await;
        assert_eq!(answer.items(), expected, "{query}");
    }
}

#[tokio::test]
async fn case_28_a_malformed_selector_is_400_and_says_where() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let answer = server.metric("shop", "headroom_demand?labelSelector=a+b+c").await;
    assert_eq!(
        answer.status(400, "BadRequest"),
        "labelSelector \"a b c\": cannot parse the selector at character 2: expected in, notin, =, ==, !=, > or <"
    );
}

#[tokio::test]
async fn case_29_an_unknown_metric_is_404_and_names_the_known_ones() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let message = server.metric("shop", "my-external-metric").await.status(404, "NotFound");
    assert!(
        message.starts_with(
            "there is no external metric \"my-external-metric\"; there are: headroom_demand, "
        ),
        "{message}"
    );
}

#[tokio::test]
async fn a_selector_that_picks_nothing_is_404_and_names_the_policies() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    server.demand("shop", "cart", 1.0);
    for (namespace, query, expected) in [
        (
            "shop",
            "headroom_demand?labelSelector=policy%3Dchekout",
            "headroom_demand: the selector \"policy=chekout\" picks nothing in namespace \"shop\"; policies there: cart, checkout",
        ),
        (
            "shop",
            "headroom_tasks",
            "headroom_tasks: no policy has it in namespace \"shop\"; policies there: cart, checkout",
        ),
        (
            "bank",
            "headroom_demand",
            "headroom_demand: there is no ScalingPolicy in namespace \"bank\"",
        ),
    ] {
        let answer = server.metric(namespace, query).await;
        assert_eq!(answer.status(404, "NotFound"), expected);
    }
}

#[tokio::test]
async fn case_30_other_methods_are_refused_without_a_redirect() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let headers = [("x-remote-user", "root"), ("x-remote-group", "system:masters")];
    let path = format!("{EXTERNAL}/namespaces/shop/headroom_demand");
    for method in [
        reqwest::Method::POST,
        reqwest::Method::PUT,
        reqwest::Method::PATCH,
        reqwest::Method::DELETE,
    ] {
        let answer = server.proxy().send(method, &path, &headers).await;
        answer.status(405, "MethodNotAllowed");
    }
    server
        .proxy()
        .get(&format!("{path}?watch=true"), &headers)
        .await
        .status(405, "MethodNotAllowed");
    server
        .proxy()
        .send(reqwest::Method::DELETE, "/healthz", &headers)
        .await
        .status(405, "MethodNotAllowed");
    let head = server.proxy().send(reqwest::Method::HEAD, &path, &headers).await;
    assert_eq!((head.code, head.body.len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn case_31_and_32_protobuf_where_it_is_asked_for_and_else_json() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let path = format!("{EXTERNAL}/namespaces/shop/headroom_demand");
    for accept in [
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        "application/json",
        "text/html, */*;q=0.8",
    ] {
        let answer = server.proxy().get(&path, &[("x-remote-user", HPA), ("accept", accept)]).await;
        assert_eq!(answer.header("content-type"), "application/json", "{accept}");
        assert_eq!(answer.items(), ["policy=checkout: 1"], "{accept}");
    }
    let html = [("x-remote-user", HPA), ("accept", "text/html")];
    let message = server.proxy().get(&path, &html).await.status(406, "NotAcceptable");
    assert!(message.contains("application/vnd.kubernetes.protobuf"), "{message}");
    let accept = "application/vnd.kubernetes.protobuf, */*";
    for _ in 0..2 {
        let answer = server.proxy().get(&path, &[("x-remote-user", HPA), ("accept", accept)]).await;
        assert_eq!(answer.header("content-type"), "application/vnd.kubernetes.protobuf");
        assert!(answer.body.starts_with(b"k8s\0"), "{:?}", answer.body);
    }
}

#[tokio::test]
async fn a_large_list_is_compressed_for_who_takes_gzip() {
    let server = Running::start().await;
    for policy in 0..1500 {
        server.demand("shop", &format!("policy-{policy}"), 1.0);
    }
    let path = format!("{EXTERNAL}/namespaces/shop/headroom_demand");
    let plain = server.as_hpa(&path).await;
    assert_eq!(plain.header("content-encoding"), "");
    assert!(plain.body.len() > 128 * 1024, "{} bytes", plain.body.len());
    let gzip = [("x-remote-user", HPA), ("accept-encoding", "gzip")];
    let packed = server.proxy().get(&path, &gzip).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert_eq!(packed.header("vary"), "Accept-Encoding");
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&*packed.body).read_to_end(&mut unpacked).expect("gzip");
    assert_eq!(unpacked, plain.body);
}

#[tokio::test]
async fn case_33_34_and_35_values_are_canonical_rounded_and_clamped() {
    let server = Running::start().await;
    for (value, expected) in [
        (1.5, "1500m"),
        (0.1, "100m"),
        (1000.0, "1k"),
        (0.0, "0"),
        (1_234_567.0, "1234567"),
        (2.000_000_000_000_000_4, "2"),
        (-1.0, "0"),
        (1e17, "9200T"),
    ] {
        server.demand("shop", "p", value);
        let answer = server.metric("shop", "headroom_demand").await;
        assert_eq!(answer.items(), [format!("policy=p: {expected}")], "{value}");
    }
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        server.demand("shop", "p", value);
        let answer = server.metric("shop", "headroom_demand").await;
        let message = answer.status(503, "ServiceUnavailable");
        let expected = "headroom_demand: policy shop/p: the value is not a finite number";
        assert_eq!(message, expected, "{value}");
    }
}

#[tokio::test]
async fn case_39_a_decision_past_stale_after_is_an_error() {
    let server = Running::start().await;
    let id = id("shop", "checkout");
    // Decided when the clock began, and good for no time at all since.
    let mut stale = decision(&id, Moment::default(), Ok(3.0));
    stale.stale_after = Duration::ZERO;
    server.publish(&id, stale);
    let message = server.metric("shop", "headroom_demand").await.status(503, "ServiceUnavailable");
    assert!(
        message.starts_with("headroom_demand: policy shop/checkout: stale: last decided 0 s ago"),
        "{message}"
    );
}

#[tokio::test]
async fn case_39_what_cannot_be_said_is_said() {
    let server = Running::start().await;
    let id = id("shop", "checkout");
    let why = "signal \"tasks\" is missing: 3 of 4 pods silent since 2026-09-21T14:13:20Z";
    server.publish(&id, server.decision(&id, Err(unserved(why))));
    let answer = server.metric("shop", "headroom_demand").await;
    let message = answer.status(503, "ServiceUnavailable");
    assert_eq!(message, format!("headroom_demand: policy shop/checkout: {why}"));
    let cause = json!([{"reason": "Missing", "message": why, "field": "checkout"}]);
    assert_eq!(answer.json()["details"]["causes"], cause);

    server.board.publish(&id, EntryState::Unserved(unserved("no scale target")));
    let message = server.metric("shop", "headroom_demand").await.status(503, "ServiceUnavailable");
    assert_eq!(message, "headroom_demand: policy shop/checkout: no scale target");
}

#[tokio::test]
async fn one_policy_that_cannot_be_said_fails_the_sum_but_not_its_neighbour() {
    let server = Running::start().await;
    server.demand("shop", "cart", 2.0);
    let sick = id("shop", "checkout");
    server.board.publish(&sick, EntryState::Unserved(unserved("no pod reports")));
    let message = server.metric("shop", "headroom_demand").await.status(503, "ServiceUnavailable");
    assert_eq!(message, "headroom_demand: policy shop/checkout: no pod reports");
    for query in ["policy%3Dcart", "policy%21%3Dcheckout"] {
        let answer = server.metric("shop", &format!("headroom_demand?labelSelector={query}")).await;
        assert_eq!(answer.items(), ["policy=cart: 2"]);
    }
    // Which signals it has is not known: one of them might be meant.
    let query = "headroom_signal_demand?labelSelector=signal%3Dtasks";
    server.metric("shop", query).await.status(503, "ServiceUnavailable");
}

#[tokio::test]
async fn a_signals_demand_stands_and_fails_by_itself() {
    let server = Running::start().await;
    let id = id("shop", "checkout");
    let mut decision = server.decision(&id, Ok(3.0));
    decision.signals = vec![
        signal("tasks", Ok(2.0)),
        signal("cpu", Ok(3.0)),
        signal("latency", Err(unserved("the service time is not known yet"))),
    ];
    server.publish(&id, decision);
    for (selector, expected) in [
        ("signal%3Dtasks", vec!["policy=checkout,signal=tasks: 2"]),
        (
            "policy%3Dcheckout%2Csignal+in+%28cpu%2Ctasks%29",
            vec!["policy=checkout,signal=cpu: 3", "policy=checkout,signal=tasks: 2"],
        ),
    ] {
        let query = format!("headroom_signal_demand?labelSelector={selector}");
        assert_eq!(server.metric("shop", &query).await.items(), expected);
    }
    let message =
        server.metric("shop", "headroom_signal_demand").await.status(503, "ServiceUnavailable");
    assert!(message.ends_with("the service time is not known yet"), "{message}");
    assert_eq!(server.metric("shop", "headroom_demand").await.items(), ["policy=checkout: 3"]);
}

#[tokio::test]
async fn totals_are_served_in_their_own_unit_and_never_in_part() {
    let server = Running::start().await;
    let id = id("shop", "checkout");
    let mut decision = server.decision(&id, Ok(3.0));
    let total = |kind, value| Total { kind, signal: "tasks".into(), value };
    decision.signals = vec![signal("tasks", Ok(3.0))];
    decision.totals = vec![
        total(TotalKind::Tasks, 15_000.0),
        total(TotalKind::HeapBytes, 2_147_483_648.0),
        total(TotalKind::AllocationBytesPerSecond, 2.5e8),
        total(TotalKind::CpuCores, 2.345),
    ];
    server.publish(&id, decision.clone());
    for (metric, value) in [
        ("headroom_tasks", "15k"),
        ("headroom_heap_bytes", "2147483648"),
        ("headroom_allocation_bytes_per_second", "250M"),
        ("headroom_cpu_cores", "2345m"),
    ] {
        let answer = server.metric("shop", metric).await;
        assert_eq!(answer.items(), [format!("policy=checkout: {value}")], "{metric}");
    }
    // All pods answer, five of them without what the signal reads.
    decision.signals[0].coverage = Coverage { matched: 10, reporting: 5, expected: 10 };
    let left_out = |name: &str, reason| LeftOut {
        name: name.into(),
        reason,
        silent_for: Some(Duration::from_secs(42)),
    };
    let without = |signal: &str| LeftOutReason::MissingFamily { signal: signal.into() };
    decision.left_out = vec![
        left_out("young", LeftOutReason::NotYetReported),
        left_out("a", without("heap")),
        left_out("b", without("tasks")),
        left_out("c", LeftOutReason::Stale),
    ];
    server.publish(&id, decision);
    let message = server.metric("shop", "headroom_tasks").await.status(503, "ServiceUnavailable");
    assert_eq!(
        message,
        "headroom_tasks: policy shop/checkout: 5 of 10 pods report signal tasks, and a part is no total, while \
         headroom_demand fills the gap; b: does not serve what signal tasks reads; c: answers, but its samples no longer \
         change their time (newest sample 42 s ago); young: has not reported yet (newest sample 42 s ago); and 2 more"
    );
}

#[tokio::test]
async fn a_total_whose_signal_is_missing_is_an_error_not_an_absence() {
    let server = Running::start().await;
    let id = id("shop", "checkout");
    let mut policy = Policy::example(id.clone());
    policy.signals = vec![Signal {
        name: "tasks".into(),
        kind: SignalKind::Tasks(Threshold::<TaskCount>::new(5000.0).expect("more than zero")),
        base: None,
    }];
    let mut decision = server.decision(&id, Err(unserved("whatever")));
    decision.signals = vec![signal("tasks", Err(unserved("no pod serves tokio_alive_tasks")))];
    let state = EntryState::Decided { policy: Arc::new(policy), decision: Arc::new(decision) };
    server.board.publish(&id, state);
    let message = server.metric("shop", "headroom_tasks").await.status(503, "ServiceUnavailable");
    assert_eq!(message, "headroom_tasks: policy shop/checkout: no pod serves tokio_alive_tasks");
}

#[tokio::test]
async fn latency_is_labelled_by_quantile_and_absent_without_traffic() {
    let server = Running::start().await;
    let id = id("shop", "checkout");
    let mut decision = server.decision(&id, Ok(1.0));
    let quantile = |signal: &str, seconds| Quantile {
        signal: signal.into(),
        quantile: Ratio::new(0.95).expect("a ratio"),
        seconds,
    };
    decision.quantiles = vec![quantile("latency", Some(0.212)), quantile("idle", None)];
    server.publish(&id, decision);
    let query = "headroom_latency_seconds?labelSelector=quantile%3D0.95%2Csignal%3Dlatency";
    assert_eq!(
        server.metric("shop", query).await.items(),
        ["policy=checkout,quantile=0.95,signal=latency: 212m"]
    );
    let query = "headroom_latency_seconds?labelSelector=signal%3Didle";
    let message = server.metric("shop", query).await.status(503, "ServiceUnavailable");
    assert!(message.contains("saw no requests"), "{message}");
}

#[tokio::test]
async fn the_age_of_what_is_served_is_measured() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    server.metric("shop", "headroom_demand").await;
    server.metric("shop", "nothing").await;
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&server.registry.gather())
        .expect("the metrics are text");
    assert!(text.contains("headroom_adapter_served_age_seconds_count 1"), "{text}");
}
