//! Cases 1 to 9: what the aggregator asks all the time.

use super::*;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// As the aggregator calls itself; the second form of identity has no group at all.
const MASTER: [(&str, &str); 2] =
    [("x-remote-user", "system:kube-aggregator"), ("x-remote-group", "system:masters")];
const NO_GROUP: [(&str, &str); 1] = [("x-remote-user", "system:kube-aggregator")];

#[tokio::test]
async fn case_1_five_availability_checks_at_once_are_all_answered() {
    let server = Running::start().await;
    let proxy = server.proxy();
    let checks = (0..5).map(|_| proxy.get(EXTERNAL, &MASTER));
    for answer in futures::future::join_all(checks).await {
        assert_eq!(answer.code, StatusCode::OK);
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.json()["kind"], "APIResourceList");
    }
}

#[tokio::test]
async fn case_2_and_3_aggregated_discovery_has_its_type_and_a_tag() {
    let server = Running::start().await;
    let proxy = server.proxy();
    let [user, group] = MASTER;
    let answer = proxy.get("/apis", &[user, group, ("accept", AGGREGATED)]).await;
    assert_eq!(answer.header("content-type"), AGGREGATED);
    let body = answer.json();
    assert_eq!(body["kind"], "APIGroupDiscoveryList");
    assert_eq!(listed(&body), DEFAULT);
    for group in body["items"].as_array().expect("a list") {
        for version in group["versions"].as_array().expect("a list") {
            assert_eq!(version["freshness"], "Current");
            assert_eq!(version["resources"][0]["verbs"], json!(["get"]));
        }
    }

    let tag = answer.header("etag").to_owned();
    let again =
        proxy.get("/apis", &[user, group, ("accept", AGGREGATED), ("if-none-match", &tag)]).await;
    assert_eq!((again.code, again.body.len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(again.header("etag"), tag);
    // The tag of one form is none of the other's.
    let legacy = proxy.get("/apis", &[user, group, ("if-none-match", &tag)]).await;
    assert_eq!(legacy.code, StatusCode::OK);
}

#[tokio::test]
async fn case_4_every_other_accept_gets_the_legacy_list() {
    let server = Running::start().await;
    let proxy = server.proxy();
    let [user, group] = MASTER;
    for accept in [
        "application/json",
        "*/*",
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    ] {
        let answer = proxy.get("/apis", &[user, group, ("accept", accept)]).await;
        assert_eq!(
            (answer.code, answer.header("content-type")),
            (StatusCode::OK, "application/json"),
            "{accept}"
        );
        let body = answer.json();
        assert_eq!(body["kind"], "APIGroupList");
        assert_eq!(body["groups"][0]["name"], "custom.metrics.k8s.io");
        assert_eq!(body["groups"][0]["preferredVersion"]["version"], "v1beta2");
        assert_eq!(body["groups"][1]["name"], "external.metrics.k8s.io");
    }
}

#[tokio::test]
async fn case_6_the_aggregator_reads_discovery_without_a_group_and_nothing_else() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let proxy = server.proxy();
    let aggregator = [("x-remote-user", "system:aggregator")];
    for path in ["/apis", "/apis/external.metrics.k8s.io", EXTERNAL, "/openapi/v2", "/openapi/v3"] {
        assert_eq!(proxy.get(path, &NO_GROUP).await.code, StatusCode::OK, "{path}");
        assert_eq!(proxy.get(path, &aggregator).await.code, StatusCode::OK, "{path}");
    }
    assert!(server.script.accesses.lock().is_empty());
    proxy.get(&format!("{EXTERNAL}/namespaces/shop/headroom_demand"), &NO_GROUP).await;
    proxy.get("/apisx", &NO_GROUP).await;
    assert_eq!(server.script.accesses.lock().len(), 2);
}

#[tokio::test]
async fn others_read_discovery_by_rbac_on_the_path() {
    let server = Running::start().await;
    assert_eq!(server.as_hpa(EXTERNAL).await.code, StatusCode::OK);
    let access = server.script.accesses.lock()[0].clone();
    assert_eq!(access["nonResourceAttributes"], json!({"path": EXTERNAL, "verb": "get"}));
    assert_eq!(access.get("resourceAttributes"), None);
}

#[tokio::test]
async fn case_8_openapi_is_small_tagged_and_links_to_what_is_there() {
    let server = Running::start().await;
    let proxy = server.proxy();
    let [user, group] = MASTER;
    let v2 = proxy.get("/openapi/v2", &[user, group, ("accept", "application/json")]).await;
    assert_eq!(v2.json()["swagger"], "2.0");
    let tag = v2.header("etag").to_owned();
    let again = proxy.get("/openapi/v2", &[user, group, ("if-none-match", &tag)]).await;
    assert_eq!(again.code, StatusCode::NOT_MODIFIED);

    let v3 = proxy.get("/openapi/v3", &MASTER).await.json();
    let paths = v3["paths"].as_object().expect("v3 lists paths");
    assert_eq!(paths.len(), 3);
    for (path, link) in paths {
        let schema = proxy.get(link["serverRelativeURL"].as_str().expect("a link"), &MASTER).await;
        assert_eq!((schema.code, &schema.json()["openapi"]), (StatusCode::OK, &json!("3.0.0")));
        let served = schema.json();
        let mut served = served["paths"].as_object().expect("paths").keys();
        assert!(served.all(|served| served.starts_with(&format!("/{path}/"))), "{path}");
        assert!(schema.body.len() < 10_000, "{path}: {} bytes", schema.body.len());
    }
}

/// Group and version of aggregated discovery, in its order.
fn listed(discovery: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let of = |group: Value| {
        let name = group["metadata"]["name"].as_str().expect("a name").to_owned();
        let versions = list(&group["versions"]).into_iter();
        versions.map(move |version| {
            format!("{name}/{}", version["version"].as_str().expect("a version"))
        })
    };
    list(&discovery["items"]).into_iter().flat_map(of).collect()
}

const DEFAULT: [&str; 3] = [
    "custom.metrics.k8s.io/v1beta2",
    "custom.metrics.k8s.io/v1beta1",
    "external.metrics.k8s.io/v1beta1",
];

#[tokio::test]
async fn a_group_that_is_off_is_neither_listed_nor_served() {
    const METRICS: [&str; 2] = ["metrics.k8s.io/v1", "metrics.k8s.io/v1beta1"];
    let none = Groups { custom: false, external: false, resource_metrics: false };
    for (groups, expected) in [
        (Groups::default(), &DEFAULT[..]),
        (Groups { custom: true, ..none }, &DEFAULT[..2]),
        (Groups { external: true, ..none }, &DEFAULT[2..]),
        (Groups { resource_metrics: true, ..none }, &METRICS[..]),
        (none, &[][..]),
    ] {
        let server = Running::with(Setup { groups, ..Setup::default() }).await;
        server.demand("shop", "checkout", 1.0);
        let proxy = server.proxy();
        let [user, group] = MASTER;
        let apis = proxy.get("/apis", &[user, group, ("accept", AGGREGATED)]).await.json();
        assert_eq!(listed(&apis), expected, "{groups:?}");
        for version in DEFAULT.iter().chain(&METRICS) {
            let is_on = expected.contains(version);
            let code = if is_on { StatusCode::OK } else { StatusCode::NOT_FOUND };
            let (name, _) = version.split_once('/').expect("a group");
            for path in [
                format!("/apis/{version}"),
                format!("/apis/{name}"),
                format!("/openapi/v3/apis/{version}"),
            ] {
                assert_eq!(proxy.get(&path, &MASTER).await.code, code, "{path} {groups:?}");
            }
            let v2 = proxy.get("/openapi/v2", &MASTER).await.json();
            let mut paths = v2["paths"].as_object().expect("paths").keys();
            let described = paths.any(|path| path.starts_with(&format!("/apis/{version}/")));
            assert_eq!(described, is_on, "{version} {groups:?}");
        }
        let demand = format!("{EXTERNAL}/namespaces/shop/headroom_demand");
        let code = if groups.external { StatusCode::OK } else { StatusCode::NOT_FOUND };
        assert_eq!(proxy.get(&demand, &MASTER).await.code, code, "{groups:?}");
        let names: Vec<String> = expected
            .iter()
            .filter_map(|path| path.split_once('/'))
            .map(|(group, version)| format!("{version}.{group}"))
            .collect();
        assert_eq!(groups.api_services(), names);
    }
}

#[tokio::test]
async fn case_9_the_list_of_resources_is_constant_and_only_gets() {
    let server = Running::start().await;
    let proxy = server.proxy();
    let before = proxy.get(EXTERNAL, &MASTER).await;
    for policy in 0..50 {
        server.demand("shop", &format!("p{policy}"), 1.0);
    }
    let after = proxy.get(EXTERNAL, &MASTER).await;
    assert_eq!(before.body, after.body);
    let body = after.json();
    let resources = body["resources"].as_array().expect("a list");
    assert!(!resources.is_empty());
    for resource in resources {
        assert_eq!(resource["verbs"], json!(["get"]), "{resource}");
    }
}
