//! The log of who asked for what.

use tracing_subscriber::EnvFilter;

use super::*;
use crate::kept_log::KeptLog;

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/headroom_demand";

/// What this thread logs from now on, and with it the server that runs on it.
#[derive(Clone, Default)]
struct Log(KeptLog);

impl Log {
    /// The log, and what ends its keeping. Everything of this crate is in it, whatever its level.
    fn keep() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.0.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_env_filter(EnvFilter::new("headroom=trace,audit=info"))
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines of the audit log, without their time and how long the request took.
    fn lines(&self) -> Vec<Value> {
        let text = self.0.text();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON lines"));
        let mut lines: Vec<Value> = all.filter(|line| line["target"] == "audit").collect();
        for line in &mut lines {
            let line = line.as_object_mut().expect("a line is an object");
            let took = line.remove("elapsed_seconds").expect("every request took some time");
            assert!(took.as_f64().is_some_and(|seconds| seconds >= 0.0), "{took}");
            line.remove("timestamp");
            // The trace of the request, if it is on.
            line.remove("span");
            line.remove("spans");
        }
        lines
    }
}

async fn with_level(audit: AuditLevel) -> Running {
    let server = Running::with(Setup { audit, ..Setup::default() }).await;
    server.demand("shop", "checkout", 1.0);
    server
}

#[tokio::test]
async fn a_request_has_a_line_that_says_who_asked_for_what_and_what_became_of_it() {
    let (log, _kept) = Log::keep();
    let server = with_level(AuditLevel::Metadata).await;
    let headers = [
        ("x-remote-user", "bob"),
        ("x-remote-group", "ops"),
        ("audit-id", "0a1b"),
        ("x-forwarded-for", "10.9.8.7"),
    ];
    let path = format!("{PATH}?labelSelector=policy%3Dcheckout&other=x");
    assert_eq!(server.proxy().get(&path, &headers).await.code, StatusCode::OK);
    let expected = json!({
        "level": "INFO", "target": "audit", "message": "request", "audit_id": "0a1b", "user": "bob",
        "groups_count": 2, "recognised_by": "request_header", "source_address": "127.0.0.1",
        "forwarded_for": "10.9.8.7", "verb": "list", "group": "external.metrics.k8s.io",
        "resource": "headroom_demand", "namespace": "shop", "label_selector": "policy=checkout",
        "decision": "allow", "code": 200,
    });
    assert_eq!(log.lines(), [expected]);
}

#[tokio::test]
async fn a_refused_request_has_a_line_with_its_reason_and_others_have_none_by_default() {
    let (log, _kept) = Log::keep();
    let server = with_level(AuditLevel::default()).await;
    server.proxy().get(PATH, &[("x-remote-user", "bob")]).await;
    server.proxy().get(PATH, &[("x-remote-user", "mallory")]).await.status(403, "Forbidden");
    let spoof = [("x-remote-user", "admin"), ("x-forwarded-for", "10.9.8.7")];
    server.anyone().get(PATH, &spoof).await.status(401, "Unauthorized");
    server.proxy().get(PATH, &[("x-remote-user", "broken")]).await;
    let lines = log.lines();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| (&line["user"], &line["decision"], &line["code"], &line["forwarded_for"]))
        .collect();
    let (null, reason) = (Value::Null, lines[0]["reason"].as_str().unwrap_or_default());
    assert_eq!(
        seen,
        [
            (&json!("mallory"), &json!("forbid"), &json!(403), &null),
            (&null, &json!("forbid"), &json!(401), &null),
            (&json!("broken"), &json!("error"), &json!(503), &null),
        ]
    );
    assert!(
        reason.contains("cannot list resource") && reason.contains("no rule matched"),
        "{reason}"
    );
}

#[tokio::test]
async fn no_log_holds_a_token_or_a_control_character_of_a_stranger() {
    let (log, _kept) = Log::keep();
    let server = with_level(AuditLevel::Metadata).await;
    for token in ["good", "unknown-s3cret", "broken", "webhook"] {
        let header = format!("Bearer {token}");
        let path = format!("{PATH}%0Aforged?token=s3cret&labelSelector=a%0Ab");
        server.anyone().get(&path, &[("authorization", &header)]).await;
    }
    let long = "u".repeat(5_000);
    server.proxy().get(PATH, &[("x-remote-user", &long)]).await;
    let text = log.0.text();
    assert!(!text.contains("s3cret") && !text.contains("Bearer"), "{text}");
    let lines = log.lines();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert_eq!(lines[0]["resource"], "headroom_demand\u{fffd}forged");
    assert_eq!(lines[0]["label_selector"], "a\u{fffd}b");
    let user = lines[4]["user"].as_str().unwrap_or_default();
    assert!(user.chars().count() == 257, "{user}");
}

#[tokio::test]
async fn discovery_and_probes_have_no_line_and_off_is_off() {
    let (log, _kept) = Log::keep();
    for level in [AuditLevel::Metadata, AuditLevel::Off] {
        let server = with_level(level).await;
        for path in ["/livez", "/apis", "/openapi/v2", "/apis/external.metrics.k8s.io/v1beta1"] {
            server.proxy().get(path, &[("x-remote-user", "bob")]).await;
            server.anyone().get(path, &[]).await;
        }
        if level == AuditLevel::Off {
            server.anyone().get(PATH, &[]).await;
        }
    }
    assert_eq!(log.lines(), Vec::<Value>::new());
}

#[tokio::test]
async fn a_flood_of_strangers_fills_no_disk_and_hides_no_one_who_is_known() {
    let (log, _kept) = Log::keep();
    let server = with_level(AuditLevel::Refused).await;
    let anyone = server.anyone();
    for _ in 0..300 {
        anyone.get(PATH, &[]).await;
    }
    server.proxy().get(PATH, &[("x-remote-user", "mallory")]).await;
    let lines = log.lines();
    assert!((2..300).contains(&lines.len()), "{}", lines.len());
    assert_eq!(lines.last().map(|line| &line["user"]), Some(&json!("mallory")));
    let families = server.registry.gather();
    let dropped = families
        .iter()
        .find(|family| family.name() == "headroom_adapter_audit_lines_dropped_total")
        .map(|family| family.get_metric()[0].get_counter().get_value());
    let written = lines.len() - 1;
    assert_eq!(dropped.map(|dropped| dropped.to_string()), Some((300 - written).to_string()));
}
