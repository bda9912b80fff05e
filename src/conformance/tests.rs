//! Proof of the suite: it passes a correct adapter, and it finds known bugs by their cases and no others.

use axum::Router;
use axum::response::{IntoResponse, Json};
use serde_json::json;

use super::{Options, Report, Verdict, run};

mod metrics;
mod ours;
mod people;
mod serve;
mod twin;

use metrics::Bug;

/// What only a running controller shows.
const IN_CLUSTER: [u8; 7] = [10, 52, 53, 54, 55, 57, 58];

async fn report(options: Options) -> Report {
    // A second install is refused and changes nothing.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    run(options, &[], |_, _| ()).await.expect("the suite runs")
}

/// What a report says of the cases that failed, for a test that fails.
fn failures(report: &Report) -> Vec<String> {
    let failed = report.results.iter().filter_map(|(case, verdict)| match verdict {
        Verdict::Fail { expected, got } => Some(format!("{case:?}: {expected}; got {got}")),
        _ => None,
    });
    failed.collect()
}

#[tokio::test]
async fn a_correct_adapter_passes_whatever_the_wire_can_decide() {
    let report = report(twin::start(None).await).await;
    assert!(report.failed().is_empty(), "{:#?}", failures(&report));
    assert_eq!(report.skipped(), IN_CLUSTER);
    let in_part: Vec<_> = report
        .results
        .iter()
        .filter(|(_, verdict)| matches!(verdict, Verdict::PassInPart { .. }))
        .collect();
    assert!(in_part.is_empty(), "{in_part:?}");
}

/// The numbers of the cases with a verdict of this kind.
fn of_kind(report: &Report, is: impl Fn(&Verdict) -> bool) -> Vec<u8> {
    let these = report.results.iter().filter(|(_, verdict)| is(verdict));
    these.map(|(case, _)| case.number).collect()
}

#[tokio::test]
async fn our_own_adapter_fails_none_of_the_cases_that_the_wire_can_decide() {
    let report = report(ours::start().await).await;
    assert!(report.failed().is_empty(), "{:#?}", failures(&report));
    // Metrics of nodes are not served (23); the others need a running controller.
    assert_eq!(report.skipped(), [10, 23, 52, 53, 54, 55, 57, 58]);
    // All series have all labels (27), and no one backend is behind them (42).
    let in_part = of_kind(&report, |verdict| matches!(verdict, Verdict::PassInPart { .. }));
    assert_eq!(in_part, [27, 42]);
    assert_eq!(of_kind(&report, |verdict| *verdict == Verdict::Pass).len(), 50);
}

/// Runs the suite against the twin with the bug; it must fail these cases and no other.
async fn check(bug: Bug, expected: &[u8]) {
    let report = report(twin::start(Some(bug)).await).await;
    assert_eq!(report.failed(), expected, "{bug:?}: {:#?}", failures(&report));
    assert_eq!(report.skipped(), IN_CLUSTER, "{bug:?}");
}

#[tokio::test]
async fn nan_as_a_number_is_case_34() {
    check(Bug::CastsNan, &[34]).await;
}

#[tokio::test]
async fn a_core_object_of_version_slash_v1_is_case_37() {
    check(Bug::SlashVersion, &[37]).await;
}

#[tokio::test]
async fn a_series_that_overwrites_another_is_case_21() {
    check(Bug::LastSeriesCounts, &[21]).await;
}

#[tokio::test]
async fn pods_picked_without_their_labels_are_case_25() {
    check(Bug::IgnoresPodLabels, &[25]).await;
}

#[tokio::test]
async fn an_age_that_no_read_looks_at_is_cases_39_and_40() {
    check(Bug::IgnoresAge, &[39, 40]).await;
}

#[tokio::test]
async fn a_cache_without_an_end_is_case_39() {
    check(Bug::CachesForEver, &[39]).await;
}

#[tokio::test]
async fn readiness_without_the_backend_is_case_42() {
    check(Bug::ReadyWithoutBackend, &[42]).await;
}

#[tokio::test]
async fn an_authority_that_never_leaves_is_case_15() {
    check(Bug::KeepsOldAuthorities, &[15]).await;
}

#[tokio::test]
async fn a_dropped_zero_is_cases_33_and_56() {
    check(Bug::DropsZero, &[33, 56]).await;
}

/// Answers every path, and stages every fixture, with one and the same list.
fn one_answer() -> Router {
    let list = json!({
        "kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {},
        "items": [{
            "metricName": "conformance_queue", "metricLabels": {}, "timestamp": "2026-01-01T00:00:00Z",
            "window": 0, "value": "1",
        }],
    });
    Router::new().fallback(async move || Json(list).into_response())
}

#[tokio::test]
async fn a_server_with_one_answer_for_everything_fails_all_but_a_few_cases() {
    let (url, ca_pem) = serve::tls(one_answer()).await;
    let control_url = Some(serve::plain(one_answer()).await);
    let report = report(Options { ca_pem: Some(ca_pem), control_url, ..Options::new(&url) }).await;
    assert!(report.failed().len() >= 40, "only {:?}", report.failed());
    let passed: Vec<u8> = report
        .results
        .iter()
        .filter(|(_, verdict)| *verdict == Verdict::Pass)
        .map(|(case, _)| case.number)
        .collect();
    // Its TLS is as it should be.
    assert_eq!(passed, [16]);
}

#[tokio::test]
async fn without_a_fixture_a_case_says_what_it_needs() {
    let options = Options { control_url: None, ..twin::start(None).await };
    let report = report(options).await;
    assert!(report.failed().is_empty(), "{:#?}", failures(&report));
    let reason = |number: u8| {
        report.results.iter().find_map(|(case, verdict)| match verdict {
            Verdict::Skipped { reason } if case.number == number => Some(reason.as_str()),
            _ => None,
        })
    };
    assert_eq!(reason(43), Some("needs --control-url"));
    assert_eq!(
        reason(11),
        Some("needs --client-cert and --client-key of the front proxy, or --control-url")
    );
    assert_eq!(reason(25), Some("needs --custom-metric pods/NAME/METRIC, or --control-url"));
    assert_eq!(reason(52), Some("needs a cluster with a running HPA"));
}

#[tokio::test]
async fn nobody_at_the_address_is_an_error_and_no_report() {
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let ended = run(Options::new(&format!("http://{address}")), &[], |_, _| ()).await;
    let error = ended.expect_err("nobody listens").to_string();
    assert!(error.starts_with("cannot reach the adapter: "), "{error}");
}
