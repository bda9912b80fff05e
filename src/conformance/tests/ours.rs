//! Our own adapter under the suite: the whole server with its TLS, its gate and its reviews, over a board that fixtures write.
//!
//! In: fixtures. Out: what a pipeline would have published of them, by policies whose one signal is an external series each, and
//! a policy whose pods and objects have the custom ones. What stands in for collecting and deciding drops what is old and what
//! is of nobody; what becomes of a number, and of a decision that nobody renews, is the adapter's. Names are ours and fixed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::BodyExt as _;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::serve;
use crate::adapter::{
    AccessReviews, Authentication, Authorization, ClientCaSettings, ClientCas, Delegated, Groups,
    OwnMetrics, Server, ServingCertificate, self_signed,
};
use crate::config::AuditLevel;
use crate::conformance::Options;
use crate::conformance::authorities::{Authority, PROXY_NAME};
use crate::conformance::fixture::{self, Fixture, Names, Object, Reader, Series, Staged};
use crate::policy::{
    Board, Coverage, Decision, DescribedObject, EntryState, ObjectReading, POLICY_LABEL,
    PodReading, Policy, PolicyId, SignalDecision, TargetRef, Unserved,
};
use crate::probes::Progress;
use crate::time::{Clock, Moment, Now, Timestamp};

const METRIC: &str = "headroom_signal_demand";
const SIGNAL_LABEL: &str = "signal";
/// The policy, and the signal, of series that do not say.
const UNNAMED: &str = "conformance";
/// The policy whose pods and objects have custom metrics.
const OF_OBJECTS: &str = "conformance-objects";
/// Longer than any sample is old.
const RUNNING_FOR: Duration = Duration::from_secs(600);

/// The adapter's surroundings, which a fixture changes.
struct Ours {
    board: Arc<Board>,
    clock: Clock,
    cas: Arc<ClientCas>,
    front_proxy: Authority,
    readers: Mutex<Option<Vec<Reader>>>,
}

/// Starts our adapter; the options to run the suite with, as the API server's front proxy.
pub(super) async fn start() -> Options {
    // A second install is refused and changes nothing.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let clock = Clock::started_ago(RUNNING_FOR);
    let progress = Progress::new(clock);
    let ours = Arc::new(Ours {
        board: Arc::default(),
        clock,
        cas: Arc::new(ClientCas::new(progress.add_condition("client CAs"))),
        front_proxy: Authority::new("front-proxy-ca").expect("ring makes keys"),
        readers: Mutex::default(),
    });
    ours.stage(&Fixture::default());
    let certificate = Arc::new(ServingCertificate::new(progress.add_condition("TLS")));
    let made = self_signed(&["127.0.0.1"]).expect("ring makes keys");
    let (chain, key) = (made.certificate_pem.as_bytes(), made.key_pem.as_bytes());
    certificate.install(chain, key).expect("the pair is whole");
    let reviews = || Ours::api_server(&ours);
    let server = Server {
        groups: Groups::default(),
        board: ours.board.clone(),
        clock,
        certificate,
        authentication: Authentication::Delegated(Delegated::new(ours.cas.clone(), reviews())),
        authorization: Authorization::Delegated(AccessReviews::new(reviews())),
        metrics: OwnMetrics::register(&prometheus::Registry::new()).expect("it is empty"),
        progress,
        audit: AuditLevel::Off,
        extra: Router::new(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(server.serve(listener, CancellationToken::new()));
    let front_proxy = ours.front_proxy.client(PROXY_NAME).expect("ring makes keys");
    let control = Router::new().route("/fixture", get(names).put(stage)).with_state(ours);
    Options {
        ca_pem: Some(made.ca_pem.into_bytes()),
        front_proxy: Some(front_proxy),
        control_url: Some(serve::plain(control).await),
        ..Options::new(&format!("https://{address}"))
    }
}

async fn names() -> Json<Names> {
    let labels = [POLICY_LABEL, SIGNAL_LABEL].map(str::to_owned).to_vec();
    Json(Names { external_metric: Some(METRIC.to_owned()), labels })
}

/// Metrics of nodes are not served, and each pod answers for itself: there is no backend to be ready with.
async fn stage(State(ours): State<Arc<Ours>>, Json(fixture): Json<Fixture>) -> Json<Staged> {
    ours.stage(&fixture);
    Json(Staged { unsupported: ["nodes", "readiness"].map(str::to_owned).to_vec() })
}

impl Ours {
    fn stage(&self, fixture: &Fixture) {
        let at_start = fixture::Authentication {
            requestheader_client_ca: self.front_proxy.pem.clone(),
            requestheader_allowed_names: vec![PROXY_NAME.to_owned()],
            client_ca: self.front_proxy.pem.clone(),
        };
        self.cas.install(settings(fixture.authentication.as_ref().unwrap_or(&at_start)));
        self.readers.lock().clone_from(&fixture.readers);
        self.board.retain(|_| false);
        let now = self.clock.now();
        self.board.publish_all(external(fixture, now));
        self.board.publish_all(of_objects(fixture, now));
    }

    /// Answers access reviews by the fixture's readers; without them everybody may read. Nobody has a token.
    fn api_server(ours: &Arc<Self>) -> kube::Client {
        let ours = ours.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let ours = ours.clone();
            async move {
                let body = request.into_body().collect().await.expect("a whole body").to_bytes();
                let mut review: Value = serde_json::from_slice(&body).expect("a review");
                let allowed = ours.readers.lock().as_ref().is_none_or(|readers| {
                    readers.iter().any(|reader| is_reader(reader, &review["spec"]))
                });
                review["status"] = json!({"allowed": allowed, "authenticated": false});
                let body = Body::from(review.to_string().into_bytes());
                Ok::<_, Infallible>(http::Response::new(body))
            }
        });
        kube::Client::new(service, "default")
    }
}

fn is_reader(reader: &Reader, spec: &Value) -> bool {
    let has = |(key, values): (&String, &Vec<String>)| {
        let shown = spec["extra"][key].as_array();
        shown.is_some_and(|shown| values.iter().any(|value| shown.contains(&json!(value))))
    };
    spec["user"] == reader.user && reader.extra.iter().all(has)
}

fn settings(authentication: &fixture::Authentication) -> ClientCaSettings {
    let names = json!(authentication.requestheader_allowed_names).to_string();
    let data: BTreeMap<String, String> = [
        ("client-ca-file", &*authentication.client_ca),
        ("requestheader-client-ca-file", &*authentication.requestheader_client_ca),
        ("requestheader-allowed-names", &*names),
        ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
        ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    ClientCaSettings::from_config_map(&data).expect("the map is well formed")
}

/// The policies of the external series, each as old as its oldest.
fn external(fixture: &Fixture, now: Now) -> Vec<(PolicyId, EntryState)> {
    let mut policies: BTreeMap<&str, Vec<&Series>> = BTreeMap::new();
    let ours = |series: &&Series| series.object.is_none() && series.name == METRIC;
    for series in fixture.series.iter().filter(ours) {
        let policy = series.labels.get(POLICY_LABEL).map_or(UNNAMED, String::as_str);
        policies.entry(policy).or_default().push(series);
    }
    let decided = policies.into_iter().map(|(policy, series)| {
        let age = series.iter().map(|series| series.age_seconds).max().unwrap_or_default();
        let signals = series.iter().map(|series| SignalDecision {
            name: series.labels.get(SIGNAL_LABEL).map_or(UNNAMED, String::as_str).into(),
            demand: Ok(number(series)),
            current: None,
            coverage: Coverage::default(),
            threshold: 1.0,
            base: 0.0,
            formula: String::new(),
        });
        let mut decision = decision(fixture, policy, now, Duration::from_secs(age));
        decision.signals = signals.collect();
        state(decision)
    });
    decided.collect()
}

/// The policy of the series of objects, where there are any.
fn of_objects(fixture: &Fixture, now: Now) -> Option<(PolicyId, EntryState)> {
    if fixture.objects.is_empty() {
        return None;
    }
    let mut decision = decision(fixture, OF_OBJECTS, now, Duration::ZERO);
    let of = |resource| fixture.objects.iter().filter(move |object| object.resource == resource);
    decision.pods = of("pods")
        .map(|pod| PodReading {
            name: (*pod.name).into(),
            labels: pod.labels.iter().collect(),
            pressure: None,
            values: values(fixture, pod),
            usage: None,
            sampled_at: now.wall,
        })
        .collect();
    let readings = of("namespaces").flat_map(|namespace| {
        let object = object("v1", "Namespace", "namespaces", None, &namespace.name);
        let reading = move |(metric, value)| ObjectReading {
            object: object.clone(),
            metric,
            value: Ok(value),
        };
        values(fixture, namespace).into_iter().map(reading)
    });
    decision.objects = readings.collect();
    Some(state(decision))
}

/// What an object's fresh series of each name add up to.
fn values(fixture: &Fixture, object: &Object) -> Vec<(Arc<str>, f64)> {
    let mut totals: BTreeMap<&str, f64> = BTreeMap::new();
    for series in &fixture.series {
        let is_of = series
            .object
            .as_ref()
            .is_some_and(|of| of.resource == object.resource && of.name == object.name);
        if is_of && series.age_seconds <= fixture.stale_after_seconds {
            *totals.entry(&series.name).or_default() += number(series);
        }
    }
    totals.into_iter().map(|(name, total)| (name.into(), total)).collect()
}

fn number(series: &Series) -> f64 {
    series.value.parse().expect("the suite writes numbers")
}

fn state(decision: Decision) -> (PolicyId, EntryState) {
    let policy = Arc::new(policy(&decision));
    (decision.policy.clone(), EntryState::Decided { policy, decision: Arc::new(decision) })
}

fn object(
    api_version: &str,
    kind: &str,
    resource: &str,
    namespace: Option<&str>,
    name: &str,
) -> DescribedObject {
    DescribedObject {
        api_version: api_version.into(),
        kind: kind.into(),
        resource: resource.into(),
        namespace: namespace.map(Into::into),
        name: name.into(),
    }
}

/// A decision without content that was made so long ago, of samples of that time.
fn decision(fixture: &Fixture, policy: &str, now: Now, age: Duration) -> Decision {
    let namespace = &*fixture.namespace;
    let sampled = now.wall.as_millis() - i64::try_from(age.as_millis()).expect("a short time");
    let id = PolicyId { namespace: namespace.into(), name: policy.into() };
    let decided = Moment::after_start(now.monotonic.since(Moment::default()).saturating_sub(age));
    Decision {
        stale_after: Duration::from_secs(fixture.stale_after_seconds),
        sampled_at: Timestamp::from_millis(sampled),
        demand: Err(Unserved { reason: "SignalMissing", message: "not asked for".to_owned() }),
        ..Decision::example(id, decided)
    }
}

fn policy(decision: &Decision) -> Policy {
    let DescribedObject { api_version, kind, name, .. } = decision.target.clone();
    Policy {
        target: TargetRef { api_version, kind, name },
        window: decision.window,
        stale_after: decision.stale_after,
        ..Policy::example(decision.policy.clone())
    }
}
