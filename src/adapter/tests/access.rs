//! Cases 11 to 17: who is asking, and may they.

use super::*;

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/headroom_demand";

/// The `spec` of the only access review so far.
fn only_access(server: &Running) -> Value {
    let accesses = server.script.accesses.lock();
    assert_eq!(accesses.len(), 1, "{accesses:?}");
    accesses[0].clone()
}

#[tokio::test]
async fn case_11_the_front_proxy_speaks_for_the_user_it_names() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.5);
    let headers = [
        ("x-remote-user", "bob"),
        ("x-remote-group", "ops"),
        ("x-remote-group", "dev"),
        ("x-remote-uid", "u-9"),
    ];
    let answer = server.proxy().get(PATH, &headers).await;
    assert_eq!(answer.items(), ["policy=checkout: 1500m"]);
    // The UID header is not trusted, the verb is `list`, and the metric is the resource.
    let expected = json!({
        "user": "bob", "groups": ["ops", "dev", "system:authenticated"],
        "resourceAttributes": {"group": "external.metrics.k8s.io", "version": "v1beta1", "namespace": "shop",
            "resource": "headroom_demand", "verb": "list"},
    });
    assert_eq!(only_access(&server), expected);
}

#[tokio::test]
async fn case_12_headers_mean_nothing_without_the_front_proxys_certificate() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.5);
    let spoof = [("x-remote-user", "admin"), ("x-remote-group", "system:masters")];
    server.anyone().get(PATH, &spoof).await.status(401, "Unauthorized");
    assert!(server.script.accesses.lock().is_empty());

    let carol = server.holding(server.client_ca.client("carol", &["team-a"]));
    assert_eq!(carol.get(PATH, &spoof).await.code, StatusCode::OK);
    let access = only_access(&server);
    assert_eq!(access["user"], "carol");
    assert_eq!(access["groups"], json!(["team-a", "system:authenticated"]));
}

#[tokio::test]
async fn case_12_a_stranger_with_the_front_proxys_name_is_nobody() {
    let server = Running::start().await;
    let stranger = Ca::new("front-proxy-ca");
    let caller = server.holding(stranger.client(FRONT_PROXY, &["system:masters"]));
    let answer =
        caller.get(PATH, &[("x-remote-user", "admin"), ("x-remote-group", "system:masters")]).await;
    answer.status(401, "Unauthorized");
}

#[tokio::test]
async fn case_13_another_name_from_the_front_proxys_ca_is_nobody() {
    let server = Running::start().await;
    let caller = server.holding(server.proxy_ca.client("somebody-else", &["system:masters"]));
    caller.get(PATH, &[("x-remote-user", "admin")]).await.status(401, "Unauthorized");
}

#[tokio::test]
async fn case_13_a_serving_certificate_of_a_trusted_ca_is_no_clients() {
    let server = Running::start().await;
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    for (ca, name) in [(&server.proxy_ca, FRONT_PROXY), (&server.client_ca, "system:admin")] {
        let caller = server.holding(ca.certificate(name, &["system:masters"], usage.clone()));
        caller.get(PATH, &[("x-remote-user", "admin")]).await.status(401, "Unauthorized");
    }
}

#[tokio::test]
async fn the_front_proxy_without_a_user_is_nobody() {
    let server = Running::start().await;
    server
        .proxy()
        .get(PATH, &[("x-remote-group", "system:masters")])
        .await
        .status(401, "Unauthorized");
    server.proxy().get(PATH, &[("x-remote-user", "")]).await.status(401, "Unauthorized");
}

#[tokio::test]
async fn case_14_extra_keys_are_percent_decoded() {
    let server = Running::start().await;
    let headers = [
        ("x-remote-user", "bob"),
        ("X-Remote-Extra-Foo%2Fbar", "x"),
        ("X-Remote-Extra-Foo%2Fbar", "y"),
        ("X-Remote-Extra-scopes", "z"),
    ];
    server.proxy().get(PATH, &headers).await;
    assert_eq!(only_access(&server)["extra"], json!({"foo/bar": ["x", "y"], "scopes": ["z"]}));
}

#[tokio::test]
async fn case_15_a_rotated_ca_counts_at_once_also_on_an_open_connection() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 2.0);
    let user = [("x-remote-user", "bob")];
    let next_ca = Ca::new("front-proxy-ca-2");
    let (old, new) = (server.proxy(), server.holding(next_ca.client(FRONT_PROXY, &[])));
    assert_eq!(old.get(PATH, &user).await.code, StatusCode::OK);
    new.get(PATH, &user).await.status(401, "Unauthorized");

    server.cas.install(settings(&server.client_ca, &next_ca));
    assert_eq!(new.get(PATH, &user).await.code, StatusCode::OK);
    old.get(PATH, &user).await.status(401, "Unauthorized");
}

#[tokio::test]
async fn case_15_the_config_map_is_followed() {
    let server = Running::start().await;
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    let map = |ca: &Ca| config_map(&server.client_ca.pem(), &ca.pem());
    *server.script.maps.lock() = vec![map(&first), map(&second)];
    let stop = CancellationToken::new();
    let cas = server.cas.clone();
    let (client, stopped) = (server.script.client(), stop.clone());
    let following = tokio::spawn(async move { cas.follow(client, stopped).await });
    // The second state comes as a watch event; wait for it rather than for a time.
    let caller = server.holding(second.client(FRONT_PROXY, &[]));
    let admitted = async {
        while caller.get("/apis", &[("x-remote-user", "bob")]).await.code != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), admitted).await.expect("the change arrives");
    let old = server.holding(first.client(FRONT_PROXY, &[]));
    old.get("/apis", &[("x-remote-user", "bob")]).await.status(401, "Unauthorized");
    stop.cancel();
    following.await.expect("the task ends with the token");
}

#[tokio::test]
async fn a_config_map_that_lost_a_ca_in_use_is_refused_and_the_last_good_one_serves() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let (client_ca, proxy_ca) = (server.client_ca.pem(), server.proxy_ca.pem());
    let proxy = server.proxy();
    let check_refused = |refused: u8| {
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&server.registry.gather())
            .expect("the metrics are text");
        let line = format!("headroom_adapter_client_ca_config_refused {refused}");
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    };
    for (map, key) in [
        (BTreeMap::new(), "client-ca-file"),
        (config_map("", &proxy_ca), "client-ca-file"),
        (config_map(&client_ca, ""), "requestheader-client-ca-file"),
    ] {
        *server.script.maps.lock() = vec![map];
        let refused = server.cas.load_from(server.script.client()).await.expect_err(key);
        let expected = format!("{key} is in use, and the ConfigMap no longer has it");
        assert_eq!(refused.to_string(), expected);
        assert_eq!(proxy.get(PATH, &[("x-remote-user", "bob")]).await.code, StatusCode::OK);
        assert_eq!(server.progress.ready(), Ok(()));
        check_refused(1);
    }
    *server.script.maps.lock() = vec![config_map(&client_ca, &proxy_ca)];
    server.cas.load_from(server.script.client()).await.expect("both CAs are back");
    assert_eq!(proxy.get(PATH, &[("x-remote-user", "bob")]).await.code, StatusCode::OK);
    check_refused(0);
}

#[test]
fn a_bad_config_map_is_refused_with_its_key() {
    let ca = Ca::new("ca").pem();
    let check = |key: &str, value: &str, expected: &str| {
        let mut map = config_map(&ca, &ca);
        map.insert(key.to_owned(), value.to_owned());
        let error = ClientCaSettings::from_config_map(&map).expect_err(key);
        assert_eq!(error.to_string(), expected);
    };
    check("client-ca-file", "no pem at all", "client-ca-file holds no usable certificate");
    check(
        "requestheader-allowed-names",
        "front-proxy-client",
        "requestheader-allowed-names is not a JSON array of strings",
    );
    check(
        "requestheader-client-ca-file",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        "cannot read the PEM in requestheader-client-ca-file",
    );
}

#[tokio::test]
async fn no_request_header_ca_means_no_headers_from_anyone() {
    let server = Running::start().await;
    let mut map = config_map(&server.client_ca.pem(), "");
    server.cas.install(ClientCaSettings::from_config_map(&map).expect("an absent CA is no fault"));
    server.proxy().get(PATH, &[("x-remote-user", "bob")]).await.status(401, "Unauthorized");

    // The same CA for both, as small distributions have it: still only the allowed name may speak for others.
    map = config_map(&server.client_ca.pem(), &server.client_ca.pem());
    server.cas.install(ClientCaSettings::from_config_map(&map).expect("the map is well formed"));
    server.demand("shop", "checkout", 1.0);
    let caller = server.holding(server.client_ca.client("carol", &[]));
    assert_eq!(caller.get(PATH, &[("x-remote-user", "admin")]).await.code, StatusCode::OK);
    assert_eq!(only_access(&server)["user"], "carol");
}

#[tokio::test]
async fn case_17_without_rbac_the_answer_is_403_and_says_who_lacks_what() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let answer = server.proxy().get(PATH, &[("x-remote-user", "mallory")]).await;
    assert_eq!(
        answer.status(403, "Forbidden"),
        "headroom_demand.external.metrics.k8s.io is forbidden: User \"mallory\" cannot list resource \
         \"headroom_demand\" in API group \"external.metrics.k8s.io\" in the namespace \"shop\": no rule matched"
    );
    let answer = server.proxy().get("/apis", &[("x-remote-user", "mallory")]).await;
    assert_eq!(
        answer.status(403, "Forbidden"),
        "User \"mallory\" cannot get path \"/apis\": no rule matched"
    );
}

#[tokio::test]
async fn superusers_are_not_reviewed() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let headers = [("x-remote-user", "broken"), ("x-remote-group", "system:masters")];
    assert_eq!(server.proxy().get(PATH, &headers).await.code, StatusCode::OK);
    assert!(server.script.accesses.lock().is_empty());
}

#[tokio::test]
async fn an_access_review_is_remembered_for_the_same_question_only() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let proxy = server.proxy();
    for _ in 0..3 {
        proxy.get(PATH, &[("x-remote-user", "bob")]).await;
        proxy.get(PATH, &[("x-remote-user", "mallory")]).await;
    }
    assert_eq!(server.script.accesses.lock().len(), 2);
    proxy.get(PATH, &[("x-remote-user", "bob"), ("x-remote-group", "g")]).await;
    proxy.get(&PATH.replace("shop", "bank"), &[("x-remote-user", "bob")]).await;
    assert_eq!(server.script.accesses.lock().len(), 4);
}

#[tokio::test]
async fn a_token_is_reviewed_once_and_then_remembered() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let anyone = server.anyone();
    for _ in 0..2 {
        let answer = anyone.get(PATH, &[("authorization", "Bearer good")]).await;
        assert_eq!(answer.code, StatusCode::OK);
        anyone.get(PATH, &[("authorization", "Bearer bad")]).await.status(401, "Unauthorized");
    }
    assert_eq!(*server.script.tokens.lock(), 2);
    let access = only_access(&server);
    assert_eq!((&access["user"], &access["uid"]), (&json!("alice"), &json!("u-1")));
    assert_eq!(access["extra"], json!({"k": ["v"]}));
    assert_eq!(access["groups"], json!(["dev", "system:authenticated"]));
}

#[tokio::test]
async fn a_token_review_that_failed_inside_the_api_server_is_an_error_and_not_remembered() {
    let server = Running::start().await;
    let anyone = server.anyone();
    for reviews in 1..=2 {
        let answer = anyone.get(PATH, &[("authorization", "Bearer webhook")]).await;
        assert_eq!(
            answer.status(503, "ServiceUnavailable"),
            "cannot tell who is asking: the API server failed to review the token"
        );
        assert_eq!(*server.script.tokens.lock(), reviews);
    }
}

#[tokio::test]
async fn an_invalid_token_is_nobodys_and_remembered_unless_an_authenticator_may_have_failed() {
    let server = Running::start().await;
    let anyone = server.anyone();
    for _ in 0..2 {
        anyone.get(PATH, &[("authorization", "Bearer unknown")]).await.status(401, "Unauthorized");
    }
    assert_eq!(*server.script.tokens.lock(), 1);
    for _ in 0..2 {
        let answer = anyone.get(PATH, &[("authorization", "Bearer webhook-of-many")]).await;
        answer.status(401, "Unauthorized");
    }
    assert_eq!(*server.script.tokens.lock(), 3);
}

#[tokio::test]
async fn case_42_an_api_server_that_fails_or_hangs_never_means_yes() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let (anyone, proxy) = (server.anyone(), server.proxy());
    for state in ["broken", "slow"] {
        let token = format!("Bearer {state}");
        let answer = anyone.get(PATH, &[("authorization", &token)]).await;
        answer.status(503, "ServiceUnavailable");
        proxy.get(PATH, &[("x-remote-user", state)]).await.status(503, "ServiceUnavailable");
    }
}

#[tokio::test]
async fn the_demos_token_is_the_only_way_in() {
    let server = Running::with(Setup { static_token: Some("s3cret"), ..Setup::default() }).await;
    server.demand("default", "sample", 3.0);
    let path = format!("{EXTERNAL}/namespaces/default/headroom_demand");
    let answer = server.anyone().get(&path, &[("authorization", "Bearer s3cret")]).await;
    assert_eq!(answer.items(), ["policy=sample: 3"]);
    for wrong in ["Bearer s3cre", "Bearer s3cret2", "Basic s3cret"] {
        server.anyone().get(&path, &[("authorization", wrong)]).await.status(401, "Unauthorized");
    }
    server.proxy().get(&path, &[("x-remote-user", "admin")]).await.status(401, "Unauthorized");
    assert!(server.script.accesses.lock().is_empty());
}

#[tokio::test]
async fn how_senders_were_recognised_is_counted() {
    let server = Running::start().await;
    server.proxy().get(PATH, &[("x-remote-user", "bob")]).await;
    server.anyone().get(PATH, &[]).await;
    server.anyone().get(PATH, &[("authorization", "Bearer broken")]).await;
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&server.registry.gather())
        .expect("the metrics are text");
    for line in [
        "headroom_adapter_authentication_total{outcome=\"request_header\"} 1",
        "headroom_adapter_authentication_total{outcome=\"nobody\"} 1",
        "headroom_adapter_authentication_total{outcome=\"error\"} 1",
        "headroom_adapter_requests_total{code=\"401\",group=\"external.metrics.k8s.io\"} 1",
        "headroom_adapter_requests_total{code=\"503\",group=\"external.metrics.k8s.io\"} 1",
        "headroom_adapter_request_duration_seconds_count{code=\"401\",group=\"external.metrics.k8s.io\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn nobody_learns_which_paths_exist() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    for path in ["/", PATH, "/apis", "/metrics", "/debug/pprof/profile", "/no/such/path"] {
        for method in [reqwest::Method::GET, reqwest::Method::POST, reqwest::Method::DELETE] {
            let answer = server.anyone().send(method, path, &[]).await;
            assert_eq!(answer.status(401, "Unauthorized"), "Unauthorized");
        }
    }
}

#[tokio::test]
async fn a_403_is_the_same_whether_or_not_there_is_something() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let proxy = server.proxy();
    let refused = async |namespace: &str, metric: &str| {
        let path = format!("{EXTERNAL}/namespaces/{namespace}/{metric}");
        let answer = proxy.get(&path, &[("x-remote-user", "mallory")]).await;
        answer.status(403, "Forbidden").replace(namespace, "NS").replace(metric, "M")
    };
    let there = refused("shop", "headroom_demand").await;
    assert_eq!(there, refused("nowhere", "headroom_demand").await);
    assert_eq!(there, refused("shop", "nothing").await);
}

#[tokio::test]
async fn what_went_wrong_inside_stays_inside() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let (anyone, proxy) = (server.anyone(), server.proxy());
    for (token, user) in [("broken", "broken"), ("webhook", "broken")] {
        let header = format!("Bearer {token}");
        let by_token = anyone.get(PATH, &[("authorization", &header)]).await;
        let by_proxy = proxy.get(PATH, &[("x-remote-user", user)]).await;
        for answer in [by_token, by_proxy] {
            let message = answer.status(503, "ServiceUnavailable");
            // What the scripted API server and webhook said.
            for inner in ["etcd", "connection refused", "kube", "status"] {
                assert!(!message.contains(inner), "{message}");
            }
        }
    }
}

#[tokio::test]
async fn one_users_reviews_do_not_wait_behind_those_of_another() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let (flooder, other) = (server.proxy(), server.proxy());
    let path = |n: usize| format!("{EXTERNAL}/namespaces/shop/metric-{n}");
    let paths: Vec<String> = (0..200).map(path).collect();
    let flood = paths.iter().map(|path| flooder.get(path, &[("x-remote-user", "slow")]));
    let flood = futures::future::join_all(flood);
    let others = async {
        while server.script.accesses.lock().len() < 32 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Until the whole flood has arrived.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let under_way = server.script.accesses.lock().len();
        assert_eq!(under_way, 32, "half of the places are left");
        other.get(PATH, &[("x-remote-user", "bob")]).await.code
    };
    let (answers, code) = tokio::join!(flood, others);
    assert_eq!(code, StatusCode::OK);
    for answer in answers {
        answer.status(503, "ServiceUnavailable");
    }
}
