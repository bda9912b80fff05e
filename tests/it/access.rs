//! Who may read what: the adapter against the real API server's certificates, tokens and RBAC.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use headroom::agent::{Agent, ClusterAccess};
use serde_json::{Value, json};

use crate::support::control_plane::ControlPlane;
use crate::support::direct::{Answer, DirectClient, Identity};
use crate::support::shared::{eventually, run, share};

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/access/headroom_demand";
const ADMIN: [(&str, &str); 2] = [("X-Remote-User", "root"), ("X-Remote-Group", "system:masters")];

/// Asks with the identity and headers, expects the code and, below 500, a metav1.Status with it whose
/// message holds `text`.
async fn check(
    identity: Identity<'_>,
    headers: &[(&str, &str)],
    code: u16,
    text: &str,
) -> Result<()> {
    let cluster = share().await?;
    let url = cluster.adapter().await?.url();
    let client = DirectClient::new(&cluster.plane, &url, identity)?;
    let Answer { status, body, .. } = client.get(PATH, headers).await?;
    ensure!(status == code, "{identity:?} {headers:?}: {status} {body}");
    ensure!(body["kind"] == "Status" && body["code"] == code, "not a Status: {body}");
    let message = body["message"].as_str().unwrap_or_default();
    ensure!(message.contains(text), "{text:?} is not in {message:?}");
    Ok(())
}

#[test]
fn without_credentials_the_answer_is_401() {
    run(check(Identity::None, &[], 401, ""));
}

#[test]
fn a_token_that_the_api_server_does_not_know_is_401() {
    run(check(Identity::Token("not.a.token"), &[], 401, ""));
}

#[test]
fn remote_headers_without_a_client_certificate_are_not_believed() {
    run(check(Identity::None, &ADMIN, 401, ""));
}

#[test]
fn remote_headers_with_an_ordinary_client_certificate_are_not_believed() {
    // Its common name is the front proxy's, but the authority is the one of users.
    run(check(Identity::Certificate("impostor"), &ADMIN, 403, "front-proxy-client"));
}

#[test]
fn the_front_proxy_speaks_for_a_user_who_may_not() {
    let user = [("X-Remote-User", "jane")];
    run(check(Identity::Certificate("front-proxy"), &user, 403, "jane"));
}

#[test]
fn the_front_proxy_speaks_for_a_user_who_may() {
    // There is no such policy: a user who may ask is told so.
    run(check(Identity::Certificate("front-proxy"), &ADMIN, 404, "access"));
}

#[test]
fn a_service_account_without_a_role_is_403_and_named() {
    run(async {
        let cluster = share().await?;
        let token = cluster.plane.token("default", "default").await?;
        let name = "system:serviceaccount:default:default";
        check(Identity::Token(&token), &[], 403, name).await
    });
}

/// The code and the reason of a direct read with a token, and of the same read through the API server as `user`.
async fn both_ways(
    plane: &ControlPlane,
    adapter: &str,
    token: &str,
    user: &str,
    path: &str,
) -> Result<(u16, String)> {
    let client = DirectClient::new(plane, adapter, Identity::Token(token))?;
    let Answer { status, body, .. } = client.get(path, &[]).await?;
    ensure!(body["kind"] == "Status" && body["code"] == status, "not a Status: {body}");
    let through = plane.kubectl(&["get", "--raw", path, "--as", user, "-v", "0"]);
    let through = through.unwrap_or_else(|error| error.to_string());
    let is_forbidden = through.contains("Forbidden");
    ensure!(is_forbidden == (status == 403), "{status} directly, through kube-apiserver {through}");
    Ok((status, body["message"].as_str().unwrap_or_default().to_owned()))
}

#[test]
fn a_role_for_one_metric_in_one_namespace_gives_that_and_no_more() {
    run(async {
        let cluster = share().await?;
        let adapter = cluster.adapter().await?.url();
        let (own, other) = ("access-own", "access-other");
        for namespace in [own, other] {
            cluster.namespace(namespace).await?;
        }
        let role = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
             "metadata": {"name": "demand-reader", "namespace": own},
             "rules": [{"apiGroups": ["external.metrics.k8s.io"], "resources": ["headroom_demand"],
                        "verbs": ["get", "list"]}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
             "metadata": {"name": "demand-reader", "namespace": own},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "demand-reader"},
             "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": own}]},
        ]});
        cluster.plane.kubectl_with_input(&["apply", "-f", "-"], &role.to_string())?;
        let token = cluster.plane.token(own, "default").await?;
        let user = format!("system:serviceaccount:{own}:default");
        let path = |namespace: &str, metric: &str| {
            format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}")
        };
        let ask = async |namespace: &str, metric: &str| {
            both_ways(&cluster.plane, &adapter, &token, &user, &path(namespace, metric)).await
        };
        // The role is known to the API server's authorizer a moment after it is made; a refusal stands for 10 s.
        let (_, message) = eventually(Duration::from_secs(30), "the role", async || {
            Ok(ask(own, "headroom_demand").await.ok().filter(|(status, _)| *status == 404))
        })
        .await?;
        // They may ask, and are told that there is nothing.
        ensure!(message.contains("there is no ScalingPolicy in namespace"), "{message}");
        for (namespace, metric) in [
            (own, "headroom_tasks"),
            (own, "headroom_signal_demand"),
            (own, "no_such_metric"),
            (other, "headroom_demand"),
            ("no-such-namespace", "headroom_demand"),
        ] {
            let (status, message) = ask(namespace, metric).await?;
            ensure!(status == 403, "{namespace} {metric}: {status} {message}");
            let said = [namespace, metric, user.as_str()].iter().all(|word| message.contains(word));
            ensure!(said && message.contains("cannot list resource"), "{message}");
        }
        for namespace in [own, other] {
            cluster.delete_namespace(namespace).await?;
        }
        Ok(())
    });
}

#[test]
fn a_token_for_another_audience_is_401() {
    run(async {
        let cluster = share().await?;
        let token = cluster.plane.token_for("default", "default", &["headroom-push"]).await?;
        check(Identity::Token(&token), &[], 401, "").await
    });
}

#[test]
fn probes_need_no_credentials() {
    run(async {
        let cluster = share().await?;
        let url = cluster.adapter().await?.url();
        let client = DirectClient::new(&cluster.plane, &url, Identity::None)?;
        for path in ["/healthz", "/livez", "/readyz"] {
            let answer = client.get(path, &[]).await?;
            ensure!(answer.status == 200, "{path}: {}", answer.status);
        }
        Ok(())
    });
}

#[test]
fn the_api_server_refuses_a_user_without_a_role_before_the_adapter_does() {
    run(async {
        let cluster = share().await?;
        drop(cluster.adapter().await?);
        let answer = cluster.plane.kubectl(&["get", "--raw", PATH, "--as", "jane", "-v", "0"]);
        let text = answer.unwrap_or_else(|error| error.to_string());
        ensure!(text.contains("Forbidden") && text.contains("jane"), "{text}");
        let allowed = cluster.plane.kubectl(&["get", "--raw", PATH]);
        let text = allowed.unwrap_or_else(|error| error.to_string());
        ensure!(!text.contains("Forbidden"), "{text}");
        let discovery =
            cluster.plane.kubectl(&["get", "--raw", "/apis/external.metrics.k8s.io/v1beta1"])?;
        let list: Value = serde_json::from_str(&discovery)?;
        ensure!(list["kind"] == "APIResourceList", "{list}");
        Ok(())
    });
}

#[test]
fn the_profiles_of_an_agent_are_for_those_whom_the_cluster_lets_read_them() {
    run(async {
        let cluster = share().await?;
        let access = ClusterAccess::new(cluster.plane.client(), Vec::new());
        let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let agent = Agent::builder().service("guarded").bind(free_port).authenticator(access);
        let agent = agent.start()?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let ask = async |method: reqwest::Method, path: &str, token: &str| {
            let request = client.request(method, format!("http://{}{path}", agent.local_addr()));
            anyhow::Ok(request.bearer_auth(token).send().await?.status().as_u16())
        };
        let (get, post) = (reqwest::Method::GET, reqwest::Method::POST);
        let token = cluster.plane.token("default", "default").await?;
        let (read, change) = ("/debug/pprof/cmdline", "/debug/headroom/capture");
        for (token, expected) in [("not.a.token", 401), (token.as_str(), 403)] {
            let status = ask(get.clone(), read, token).await?;
            ensure!(status == expected, "{status} instead of {expected}");
        }
        let role = ["create", "clusterrole", "profile-reader"];
        cluster
            .plane
            .kubectl(&[&role[..], &["--verb=get", "--non-resource-url=/debug/*"]].concat())?;
        let binding = ["create", "clusterrolebinding", "profile-reader"];
        let to = ["--clusterrole=profile-reader", "--serviceaccount=default:default"];
        cluster.plane.kubectl(&[&binding[..], &to].concat())?;
        eventually(Duration::from_secs(20), "the right to read", async || {
            Ok(Some(ask(get.clone(), read, &token).await?).filter(|status| *status == 200))
        })
        .await?;
        let status = ask(post, change, &token).await?;
        ensure!(status == 403, "who may read may not change: {status}");
        let metrics = ask(get, "/metrics", "").await?;
        ensure!(metrics == 200, "metrics are not guarded: {metrics}");
        tokio::task::spawn_blocking(move || agent.shutdown()).await?;
        Ok(())
    });
}

/// What `go tool pprof` prints of a profile of the adapter. It cannot show a credential itself, since it fetches with a client
/// of its own that ignores its `-tls_*` flags (Go 1.26, `cmd/pprof/pprof.go`), so it opens a file.
async fn top(client: &DirectClient, profile: &str) -> Result<String> {
    let bytes = client.download(&format!("/debug/pprof/{profile}")).await?;
    let home = tempfile::tempdir()?;
    let file = home.path().join("profile.pb.gz");
    std::fs::write(&file, bytes)?;
    let mut command = Command::new("go");
    command.args(["tool", "pprof", "-top"]).arg(file).env("PPROF_TMPDIR", home.path());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "go tool pprof: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_profiles_of_the_adapter_are_for_those_whom_the_cluster_lets_read_them() {
    run(async {
        let cluster = share().await?;
        let url = cluster.adapter().await?.url();
        let path = "/debug/pprof/heap";
        let ask = async |identity: Identity<'_>| {
            let client = DirectClient::new(&cluster.plane, &url, identity)?;
            anyhow::Ok(client.get(path, &[]).await?.status)
        };
        ensure!(ask(Identity::None).await? == 401, "without credentials");
        cluster.plane.kubectl(&["create", "serviceaccount", "profiler"])?;
        let token = cluster.plane.token("default", "profiler").await?;
        ensure!(ask(Identity::Token(&token)).await? == 403, "without the role");
        let binding = ["create", "clusterrolebinding", "profiler"];
        let to = ["--clusterrole=headroom-profiles", "--serviceaccount=default:profiler"];
        cluster.plane.kubectl(&[&binding[..], &to].concat())?;
        eventually(Duration::from_secs(20), "the right to read", async || {
            Ok(Some(ask(Identity::Token(&token)).await?).filter(|status| *status == 200))
        })
        .await?;

        let holder = DirectClient::new(&cluster.plane, &url, Identity::Token(&token))?;
        let admin = DirectClient::new(&cluster.plane, &url, Identity::Certificate("admin"))?;
        for client in [&holder, &admin] {
            for profile in ["heap", "profile?seconds=1", "tasks", "threadcreate", "block"] {
                let top = top(client, profile).await?;
                ensure!(top.contains("service: headroom-adapter"), "{profile}: {top}");
            }
        }
        let refused = holder.post("/debug/pprof/heap/sampling").await?;
        ensure!(refused == 403, "who may read may not change: {refused}");
        let named = holder.post("/debug/pprof/symbol").await?;
        ensure!(named == 200, "names are asked for by POST: {named}");
        Ok(())
    });
}
