//! Cases 20 to 25, 37 and 41: values of pods and of other objects.

use super::*;
use crate::policy::{LeftOut, LeftOutReason, ObjectReading, PodReading, PodUsage};
use crate::sample::Labels;
use crate::units::{ByteCount, CpuCores};

const CUSTOM: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces";

/// A pod that reports, with these labels.
fn pod(name: &str, labels: &[(&str, &str)], pressure: f64, tasks: Option<f64>) -> PodReading {
    PodReading {
        name: name.into(),
        labels: labels.iter().copied().collect::<Labels>(),
        pressure: Some(pressure),
        values: tasks.map(|tasks| ("headroom_tasks".into(), tasks)).into_iter().collect(),
        usage: None,
        sampled_at: Timestamp::from_millis(1_790_000_007_999),
    }
}

impl Running {
    async fn custom(&self, rest: &str) -> Answer {
        self.as_hpa(&format!("{CUSTOM}/{rest}")).await
    }

    /// `web` has pods `a` and `b`, `api` has `c`.
    fn two_workloads(&self) {
        let web = [("app", "web"), ("tier", "front")];
        for (name, pods) in [
            ("web", vec![pod("a", &web, 0.5, Some(500.0)), pod("b", &web, 1.5, None)]),
            ("api", vec![pod("c", &[("app", "api")], 2.0, Some(7.0))]),
        ] {
            let id = id("shop", name);
            let mut decision = self.decision(&id, Ok(2.25));
            decision.target.name = name.into();
            decision.pods = pods;
            self.publish(&id, decision);
        }
    }
}

/// `Kind/name: value` of every item, in either version.
fn shown(answer: &Answer) -> Vec<String> {
    let list = answer.json();
    assert_eq!(list["kind"], "MetricValueList");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let item = |item: &Value| {
        let described = &item["describedObject"];
        format!(
            "{}/{}: {}",
            text(&described["kind"]),
            text(&described["name"]),
            text(&item["value"])
        )
    };
    items.iter().map(item).collect()
}

#[tokio::test]
async fn case_20_21_and_25_pods_are_read_all_by_labels_or_one_by_name() {
    let server = Running::start().await;
    server.two_workloads();
    let (a, b, c) = ("Pod/a: 500m", "Pod/b: 1500m", "Pod/c: 2");
    for (path, expected) in [
        ("pods/%2A/headroom_pressure", vec![a, b, c]),
        ("pods/*/headroom_pressure", vec![a, b, c]),
        ("pods/%2A/headroom_pressure?labelSelector=app%3Dweb", vec![a, b]),
        ("pods/%2A/headroom_pressure?labelSelector=app+in+%28web%2Capi%29%2C%21tier", vec![c]),
        ("pods/%2A/headroom_pressure?labelSelector=tier", vec![a, b]),
        ("pods/%2A/headroom_pressure?metricLabelSelector=policy%3Dapi", vec![c]),
        ("pods/a/headroom_pressure", vec![a]),
        ("pods/a/headroom_tasks", vec!["Pod/a: 500"]),
        // A pod without the value is left out; the HPA has its own rule for it.
        ("pods/%2A/headroom_tasks?labelSelector=app%3Dweb", vec!["Pod/a: 500"]),
    ] {
        assert_eq!(shown(&server.custom(&format!("shop/{path}")).await), expected, "{path}");
    }
}

#[tokio::test]
async fn case_37_and_38_both_versions_have_their_own_fields_and_the_samples_own_time() {
    let server = Running::start().await;
    server.two_workloads();
    let described = json!({"kind": "Pod", "namespace": "shop", "name": "c", "apiVersion": "v1"});
    let path = "namespaces/shop/pods/c/headroom_tasks";
    let item = |version: &str| {
        let path = format!("/apis/custom.metrics.k8s.io/{version}/{path}");
        let server = &server;
        async move { server.as_hpa(&path).await.json() }
    };
    assert_eq!(
        item("v1beta1").await,
        json!({
            "kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta1", "metadata": {},
            "items": [{"describedObject": described, "metricName": "headroom_tasks",
                "timestamp": "2026-09-21T14:13:27Z", "window": 30, "value": "7", "selector": null}],
        })
    );
    assert_eq!(
        item("v1beta2").await,
        json!({
            "kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": {},
            "items": [{"describedObject": described, "metric": {"name": "headroom_tasks", "selector": null},
                "timestamp": "2026-09-21T14:13:27Z", "windowSeconds": 30, "value": "7"}],
        })
    );
    let selected =
        server.custom("shop/pods/c/headroom_tasks?metricLabelSelector=policy%3Dapi").await;
    let selector = json!({"matchLabels": {"policy": "api"}});
    assert_eq!(selected.json()["items"][0]["metric"]["selector"], selector);
}

#[tokio::test]
async fn the_demand_is_read_on_the_scale_target() {
    let server = Running::start().await;
    server.two_workloads();
    let web = server.custom("shop/deployments.apps/web/headroom_demand").await;
    assert_eq!(shown(&web), ["Deployment/web: 2250m"]);
    let described =
        json!({"kind": "Deployment", "namespace": "shop", "name": "web", "apiVersion": "apps/v1"});
    assert_eq!(web.json()["items"][0]["describedObject"], described);
    let all = server.custom("shop/deployments.apps/%2A/headroom_demand").await;
    assert_eq!(shown(&all), ["Deployment/api: 2250m", "Deployment/web: 2250m"]);
    server.custom("shop/deployments.apps/db/headroom_demand").await.status(404, "NotFound");
    server.custom("shop/statefulsets.apps/web/headroom_demand").await.status(404, "NotFound");
    server.custom("shop/deployments/web/headroom_demand").await.status(404, "NotFound");
    let message = server
        .custom("shop/deployments.apps/%2A/headroom_demand?labelSelector=app%3Dweb")
        .await
        .status(400, "BadRequest");
    assert_eq!(
        message,
        "labelSelector: the labels of deployments are not known here; name one instead"
    );
}

#[tokio::test]
async fn case_22_23_and_24_objects_that_a_signal_describes_are_read_by_name() {
    let server = Running::start().await;
    let id = id("shop", "checkout");
    let mut decision = server.decision(&id, Ok(1.0));
    let object =
        |kind: &str, resource: &str, api_version: &str, namespace: Option<&str>, name: &str| {
            DescribedObject {
                api_version: api_version.into(),
                kind: kind.into(),
                resource: resource.into(),
                namespace: namespace.map(Into::into),
                name: name.into(),
            }
        };
    decision.objects = vec![
        ObjectReading {
            object: object("Ingress", "ingresses", "networking.k8s.io/v1", Some("shop"), "front"),
            metric: "requests_waiting".into(),
            value: Ok(12.5),
        },
        ObjectReading {
            object: object("Namespace", "namespaces", "v1", None, "shop"),
            metric: "queue_depth".into(),
            value: Err(unserved("2 of 3 pods report")),
        },
    ];
    server.publish(&id, decision.clone());
    let front = server.custom("shop/ingresses.networking.k8s.io/front/requests_waiting").await;
    assert_eq!(shown(&front), ["Ingress/front: 12500m"]);
    let message = server.custom("shop/metrics/queue_depth").await.status(503, "ServiceUnavailable");
    assert_eq!(message, "queue_depth: policy shop/checkout: 2 of 3 pods report");
    decision.objects[1].value = Ok(3.0);
    server.publish(&id, decision);
    let namespace = server.custom("shop/metrics/queue_depth").await;
    assert_eq!(shown(&namespace), ["Namespace/shop: 3"]);
    let described = json!({"kind": "Namespace", "name": "shop", "apiVersion": "v1"});
    assert_eq!(namespace.json()["items"][0]["describedObject"], described);

    for path in [
        "/apis/custom.metrics.k8s.io/v1beta2/nodes/foo/m",
        "/apis/custom.metrics.k8s.io/v1beta2/nodes/foo",
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/shop/pods/a",
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/shop/pods/a/b/c",
        "/apis/custom.metrics.k8s.io/v1/namespaces/shop/pods/a/m",
    ] {
        server.as_hpa(path).await.status(404, "NotFound");
    }
}

#[tokio::test]
async fn what_pods_cannot_say_is_said() {
    let server = Running::start().await;
    let id = id("shop", "checkout");
    server.board.publish(&id, EntryState::Unserved(unserved("no pod reports")));
    let path = "shop/pods/%2A/headroom_pressure";
    let message = server.custom(path).await.status(503, "ServiceUnavailable");
    assert_eq!(message, "headroom_pressure: policy shop/checkout: no pod reports");

    let mut decision = server.decision(&id, Ok(1.0));
    decision.left_out = vec![LeftOut {
        name: "a".into(),
        reason: LeftOutReason::Stale,
        silent_for: Some(Duration::from_secs(42)),
    }];
    server.publish(&id, decision.clone());
    let message =
        server.custom("shop/pods/a/headroom_pressure").await.status(503, "ServiceUnavailable");
    assert!(message.contains("a: answers, but its samples no longer change"), "{message}");
    server.custom("shop/pods/b/headroom_pressure").await.status(404, "NotFound");

    decision.pods = vec![pod("a", &[], 1.0, None)];
    decision.stale_after = Duration::ZERO;
    decision.decided = Moment::default();
    server.publish(&id, decision);
    let message = server.custom(path).await.status(503, "ServiceUnavailable");
    assert!(message.contains("stale: last decided"), "{message}");
    for query in ["labelSelector=a+b", "metricLabelSelector=a+b", "metricLabelSelector=a%3E1"] {
        server.custom(&format!("{path}?{query}")).await.status(400, "BadRequest");
    }
    server.custom("bank/pods/%2A/headroom_pressure").await.status(404, "NotFound");
}

#[tokio::test]
async fn case_34_a_pod_s_value_without_end_is_an_error_and_no_number() {
    let server = Running::start().await;
    let id = id("shop", "checkout");
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut decision = server.decision(&id, Ok(1.0));
        decision.pods = vec![pod("a", &[], 1.0, Some(value))];
        server.publish(&id, decision);
        let answer = server.custom("shop/pods/%2A/headroom_tasks").await;
        let message = answer.status(503, "ServiceUnavailable");
        assert!(message.ends_with("the value is not a finite number"), "{value}: {message}");
        // Its other values are none the worse.
        assert_eq!(shown(&server.custom("shop/pods/a/headroom_pressure").await), ["Pod/a: 1"]);
    }
}

#[tokio::test]
async fn a_pod_of_two_policies_is_one_item() {
    let server = Running::start().await;
    for name in ["one", "two"] {
        let id = id("shop", name);
        let mut decision = server.decision(&id, Ok(1.0));
        decision.pods = vec![pod("a", &[], if name == "one" { 1.0 } else { 9.0 }, None)];
        server.publish(&id, decision);
    }
    assert_eq!(shown(&server.custom("shop/pods/a/headroom_pressure").await), ["Pod/a: 1"]);
    let second = "shop/pods/a/headroom_pressure?metricLabelSelector=policy%3Dtwo";
    assert_eq!(shown(&server.custom(second).await), ["Pod/a: 9"]);
}

#[tokio::test]
async fn cpu_and_memory_of_pods_are_served_as_resource_metrics() {
    let groups = Groups { resource_metrics: true, ..Groups::default() };
    let server = Running::with(Setup { groups, ..Setup::default() }).await;
    let id = id("shop", "checkout");
    let mut decision = server.decision(&id, Ok(1.0));
    let usage = |cpu, memory| PodUsage {
        container: "app".into(),
        cpu: CpuCores::new(cpu).expect("cores"),
        memory: ByteCount::new(memory).expect("bytes"),
        window: Duration::from_secs(30),
    };
    let labelled = |name, app, usage| PodReading { usage, ..pod(name, &[("app", app)], 1.0, None) };
    decision.pods = vec![
        labelled("a", "web", Some(usage(0.25, 1_048_576.0))),
        labelled("b", "api", Some(usage(1.5, 2_097_152.0))),
        labelled("c", "web", None),
    ];
    server.publish(&id, decision);
    let of = |path: &str| {
        let path = format!("/apis/metrics.k8s.io/v1beta1{path}");
        let server = &server;
        async move { server.as_hpa(&path).await }
    };
    let a = json!({
        "metadata": {"name": "a", "namespace": "shop", "labels": {"app": "web"}},
        "timestamp": "2026-09-21T14:13:27Z", "window": "30s",
        "containers": [{"name": "app", "usage": {"cpu": "250m", "memory": "1048576"}}],
    });
    let list = of("/namespaces/shop/pods?labelSelector=app%3Dweb").await.json();
    assert_eq!((&list["kind"], &list["items"]), (&json!("PodMetricsList"), &json!([a])));
    let one = of("/namespaces/shop/pods/a").await.json();
    assert_eq!((&one["kind"], &one["containers"]), (&json!("PodMetrics"), &a["containers"]));
    for (path, pods) in [
        ("/pods", 2),
        ("/namespaces/shop/pods?fieldSelector=metadata.name%3Db", 1),
        ("/namespaces/bank/pods", 0),
    ] {
        assert_eq!(of(path).await.json()["items"].as_array().map(Vec::len), Some(pods), "{path}");
    }
    of("/namespaces/shop/pods/c").await.status(404, "NotFound");
    of("/nodes").await.status(404, "NotFound");
    of("/namespaces/shop/pods?fieldSelector=spec.nodeName%3Dx").await.status(400, "BadRequest");

    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let headers = [("x-remote-user", HPA), ("accept", table)];
    let path = "/apis/metrics.k8s.io/v1/namespaces/shop/pods";
    let table = server.proxy().get(path, &headers).await.json();
    assert_eq!(
        (&table["kind"], &table["rows"][0]["cells"]),
        (&json!("Table"), &json!(["a", "250m", "1048576", "30s"]))
    );
}
