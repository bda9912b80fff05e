//! The whole server over real TLS on loopback, with CAs made here and a scripted API server behind it.
//!
//! Tests named `case_…` hold what the HPA (kubernetes `pkg/controller/podautoscaler/metrics/client.go`) and the aggregator
//! (kube-aggregator `pkg/apiserver/handler_proxy.go`) rely on; the numbers tell them apart, no more.

mod access;
mod audit;
mod connection;
mod custom;
mod discovery;
mod external;
mod overload;
mod promises;
mod rotation;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::policy::{Coverage, Decision, DescribedObject, EntryState, Policy, PolicyId, Unserved};
use crate::time::{Moment, Timestamp};
use crate::units::Measure;

/// The name in the serving certificate, as the aggregator verifies it.
const SERVICE: &str = "headroom-adapter.headroom-system.svc";
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";
const FRONT_PROXY: &str = "front-proxy-client";
/// The user of the HPA controller.
const HPA: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";

/// A CA and what it signs.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("ring makes keys");
        Self(CertifiedIssuer::self_signed(params, key).expect("rcgen signs"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client certificate with its key, in PEM.
    fn client(&self, common_name: &str, organizations: &[&str]) -> (String, String) {
        self.certificate(common_name, organizations, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn certificate(
        &self,
        common_name: &str,
        organizations: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name, organizations);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.signed_by(&key, &self.0).expect("rcgen signs");
        (certificate.pem(), key.serialize_pem())
    }
}

fn subject(common_name: &str, organizations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name
}

/// The data of the ConfigMap, as kube-apiserver writes it.
fn config_map(client_ca: &str, request_header_ca: &str) -> BTreeMap<String, String> {
    [
        ("client-ca-file", client_ca),
        ("requestheader-client-ca-file", request_header_ca),
        ("requestheader-allowed-names", "[\"front-proxy-client\"]"),
        ("requestheader-username-headers", "[\"X-Remote-User\"]"),
        ("requestheader-uid-headers", "[\"X-Remote-Uid\"]"),
        ("requestheader-group-headers", "[\"X-Remote-Group\"]"),
        ("requestheader-extra-headers-prefix", "[\"X-Remote-Extra-\"]"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// What the scripted API server does and saw.
#[derive(Default)]
struct Script {
    /// `spec` of every access review, in order.
    accesses: Mutex<Vec<Value>>,
    /// Token reviews so far.
    tokens: Mutex<u32>,
    /// The ConfigMap's data, where a test follows it: now, and after the first watch event.
    maps: Mutex<Vec<BTreeMap<String, String>>>,
}

impl Script {
    fn client(self: &Arc<Self>) -> kube::Client {
        let script = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let script = script.clone();
            async move { Ok::<_, std::convert::Infallible>(script.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        if parts.method == Method::GET {
            return self.config_map(&parts.uri).await;
        }
        let body = body.collect().await.expect("the client sends whole bodies").to_bytes();
        let review: Value = serde_json::from_slice(&body).expect("the client sends JSON");
        match path.rsplit('/').next() {
            Some("tokenreviews") => self.token(review).await,
            Some("subjectaccessreviews") => self.access(review).await,
            _ => panic!("nobody asks for {path}"),
        }
    }

    /// `good` is alice, `slow` is never answered, `broken` fails, `webhook…` meets authenticators that fail, `unknown` is
    /// refused as kube-apiserver words it, others without a word.
    async fn token(&self, mut review: Value) -> Response<Body> {
        *self.tokens.lock() += 1;
        let status = match review["spec"]["token"].as_str() {
            Some("good") => json!({"authenticated": true, "user": {
                "username": "alice", "uid": "u-1", "groups": ["dev", "system:authenticated"], "extra": {"k": ["v"]},
            }}),
            Some("slow") => std::future::pending().await,
            Some("broken") => return broken(),
            Some("webhook") => {
                json!({"authenticated": false, "error": "webhook: connection refused"})
            }
            Some("webhook-of-many") => {
                json!({"authenticated": false, "error": "[invalid bearer token, webhook: connection refused]"})
            }
            Some("unknown") => json!({"authenticated": false, "error": "invalid bearer token"}),
            _ => json!({"authenticated": false}),
        };
        review["status"] = status;
        ok(&review)
    }

    /// Mallory may nothing, `slow` is never answered, `broken` fails, everyone else may everything.
    async fn access(&self, mut review: Value) -> Response<Body> {
        self.accesses.lock().push(review["spec"].clone());
        let status = match review["spec"]["user"].as_str() {
            Some("mallory") => json!({"allowed": false, "reason": "no rule matched"}),
            Some("slow") => std::future::pending().await,
            Some("broken") => return broken(),
            _ => json!({"allowed": true}),
        };
        review["status"] = status;
        ok(&review)
    }

    /// Read and listed: the first state. Watched: the second as an event, then silence.
    async fn config_map(&self, uri: &http::Uri) -> Response<Body> {
        let object = |data: &BTreeMap<String, String>, version: &str| {
            json!({"kind": "ConfigMap", "apiVersion": "v1", "data": data, "metadata": {
                "name": "extension-apiserver-authentication", "namespace": "kube-system", "resourceVersion": version,
            }})
        };
        let query = uri.query().unwrap_or_default();
        if query.contains("watch=") {
            let next = {
                let mut maps = self.maps.lock();
                if maps.len() > 1 { maps.pop() } else { None }
            };
            return match next {
                None => std::future::pending().await,
                Some(data) => ok(&json!({"type": "MODIFIED", "object": object(&data, "2")})),
            };
        }
        let first = self.maps.lock().first().cloned().expect("the test scripts a ConfigMap");
        let object = object(&first, "1");
        if uri.path().ends_with("/extension-apiserver-authentication") {
            return ok(&object);
        }
        ok(
            &json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [object]}),
        )
    }
}

fn ok(body: &Value) -> Response<Body> {
    Response::new(Body::from(format!("{body}\n").into_bytes()))
}

fn broken() -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "reason": "InternalError", "message": "etcd is away"});
    let mut answer = ok(&status);
    *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
    answer
}

/// A running server and everything that a test may turn.
struct Running {
    address: SocketAddr,
    serving_ca: String,
    client_ca: Ca,
    proxy_ca: Ca,
    cas: Arc<ClientCas>,
    certificate: Arc<ServingCertificate>,
    board: Arc<Board>,
    clock: Clock,
    script: Arc<Script>,
    registry: prometheus::Registry,
    progress: Progress,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

/// How the server under test differs from the usual one.
#[derive(Default)]
struct Setup {
    static_token: Option<&'static str>,
    extra: Router,
    without_certificate: bool,
    groups: Groups,
    audit: AuditLevel,
}

impl Running {
    async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    async fn with(setup: Setup) -> Self {
        // A second call only says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock = Clock::start();
        let progress = Progress::new(clock);
        let registry = prometheus::Registry::new();
        let metrics = OwnMetrics::register(&registry).expect("the registry is empty");
        let certificate =
            Arc::new(ServingCertificate::new(progress.add_condition("serving-certificate")));
        let made = self_signed(&[SERVICE, "127.0.0.1"]).expect("rcgen signs");
        if !setup.without_certificate {
            let (chain, key) = (made.certificate_pem.as_bytes(), made.key_pem.as_bytes());
            certificate.install(chain, key).expect("the pair is whole");
        }
        let (client_ca, proxy_ca) = (Ca::new("kubernetes"), Ca::new("front-proxy-ca"));
        let cas = Arc::new(ClientCas::new(progress.add_condition("client-ca")));
        cas.install(settings(&client_ca, &proxy_ca));
        let script = Arc::new(Script::default());
        let (authentication, authorization) = match setup.static_token {
            Some(token) => (
                Authentication::StaticToken(StaticToken::new(token)),
                Authorization::SuperusersOnly,
            ),
            None => (
                Authentication::Delegated(Delegated::new(cas.clone(), script.client())),
                Authorization::Delegated(AccessReviews::new(script.client())),
            ),
        };
        let board = Arc::new(Board::default());
        let server = Server {
            groups: setup.groups,
            board: board.clone(),
            clock,
            certificate: certificate.clone(),
            authentication,
            authorization,
            progress: progress.clone(),
            metrics,
            audit: setup.audit,
            extra: setup.extra,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("the socket is bound");
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(server.serve(listener, shutdown.clone()));
        Self {
            address,
            serving_ca: made.ca_pem,
            client_ca,
            proxy_ca,
            cas,
            certificate,
            board,
            clock,
            script,
            registry,
            progress,
            shutdown,
            task,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{SERVICE}:{}{path}", self.address.port())
    }

    fn builder(&self) -> reqwest::ClientBuilder {
        let ca = reqwest::Certificate::from_pem(self.serving_ca.as_bytes()).expect("the CA is PEM");
        reqwest::Client::builder()
            .tls_certs_only([ca])
            .resolve(SERVICE, self.address)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(Duration::from_secs(20))
    }

    /// A client without a certificate.
    fn anyone(&self) -> Caller<'_> {
        Caller { server: self, client: self.builder().build().expect("the settings fit") }
    }

    fn holding(&self, (certificate, key): (String, String)) -> Caller<'_> {
        let identity = format!("{certificate}{key}");
        let identity = reqwest::Identity::from_pem(identity.as_bytes()).expect("the pair is PEM");
        let client = self.builder().identity(identity).build().expect("the settings fit");
        Caller { server: self, client }
    }

    /// kube-apiserver's aggregator.
    fn proxy(&self) -> Caller<'_> {
        self.holding(self.proxy_ca.client(FRONT_PROXY, &[]))
    }

    /// Reads as the HPA controller does.
    async fn as_hpa(&self, path: &str) -> Answer {
        self.proxy().get(path, &[("x-remote-user", HPA)]).await
    }

    async fn metric(&self, namespace: &str, metric_and_query: &str) -> Answer {
        self.as_hpa(&format!("{EXTERNAL}/namespaces/{namespace}/{metric_and_query}")).await
    }

    fn publish(&self, id: &PolicyId, decision: Decision) {
        let policy = Arc::new(Policy::example(id.clone()));
        self.board.publish(id, EntryState::Decided { policy, decision: Arc::new(decision) });
    }

    /// A decision made now.
    fn decision(&self, id: &PolicyId, demand: Result<f64, Unserved>) -> Decision {
        decision(id, self.clock.now().monotonic, demand)
    }

    /// A decided policy with one demand.
    fn demand(&self, namespace: &str, name: &str, demand: f64) {
        let id = id(namespace, name);
        let decision = self.decision(&id, Ok(demand));
        self.publish(&id, decision);
    }
}

fn settings(client_ca: &Ca, proxy_ca: &Ca) -> ClientCaSettings {
    ClientCaSettings::from_config_map(&config_map(&client_ca.pem(), &proxy_ca.pem()))
        .expect("the map is well formed")
}

fn id(namespace: &str, name: &str) -> PolicyId {
    PolicyId { namespace: namespace.into(), name: name.into() }
}

fn unserved(message: &str) -> Unserved {
    Unserved { reason: "Missing", message: message.to_owned() }
}

fn decision(id: &PolicyId, decided: Moment, demand: Result<f64, Unserved>) -> Decision {
    let coverage = Coverage { matched: 3, reporting: 3, expected: 3 };
    Decision { demand, coverage, ..Decision::example(id.clone(), decided) }
}

/// One client of the server.
struct Caller<'a> {
    server: &'a Running,
    client: reqwest::Client,
}

impl Caller<'_> {
    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(reqwest::Method::GET, path, headers).await
    }

    async fn send(&self, method: reqwest::Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_send(method, path, headers).await.expect("the server answers")
    }

    async fn try_send(
        &self,
        method: reqwest::Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> reqwest::Result<Answer> {
        let mut request = self.client.request(method, self.server.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (code, version) = (response.status(), response.version());
        let headers = response.headers().clone();
        let body = response.bytes().await?;
        Ok(Answer { code, version, headers, body: body.to_vec() })
    }
}

/// What came back.
struct Answer {
    code: StatusCode,
    version: reqwest::Version,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The message of a Status; everything that every failure must have is checked on the way.
    fn status(&self, code: u16, reason: &str) -> String {
        let body = self.json();
        let seen = (self.code.as_u16(), &body["code"], &body["reason"]);
        assert_eq!(seen, (code, &json!(code), &json!(reason)), "{body}");
        assert_eq!(
            (&body["kind"], &body["apiVersion"]),
            (&json!("Status"), &json!("v1")),
            "{body}"
        );
        assert_eq!(self.header("content-type"), "application/json");
        // client-go would sleep and retry inside one of the HPA controller's workers.
        assert!(!self.headers.contains_key("retry-after"));
        body["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The items of a list as `label=value,…: value`, sorted.
    fn items(&self) -> Vec<String> {
        assert_eq!(self.code, StatusCode::OK, "{}", String::from_utf8_lossy(&self.body));
        let body = self.json();
        let items = body["items"].as_array().expect("a list has items");
        let mut shown: Vec<String> = items
            .iter()
            .map(|item| {
                let labels = item["metricLabels"].as_object().expect("items have labels");
                let labels: Vec<String> = labels
                    .iter()
                    .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
                    .collect();
                format!(
                    "{}: {}",
                    labels.join(","),
                    item["value"].as_str().unwrap_or("not a string")
                )
            })
            .collect();
        shown.sort();
        shown
    }
}
