//! Case 16 and what surrounds it: TLS, protocols, limits, certificates, the end.

use axum::http::HeaderName;
use axum::routing::get;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use axum::extract::Extension;

use super::*;

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/headroom_demand";

#[tokio::test]
async fn case_16_both_protocols_are_spoken_and_the_host_may_be_an_address() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let (certificate, key) = server.proxy_ca.client(FRONT_PROXY, &[]);
    let identity =
        || reqwest::Identity::from_pem(format!("{certificate}{key}").as_bytes()).expect("PEM");
    let first = server.builder().identity(identity()).http1_only().build().expect("settings fit");
    let second = server.builder().identity(identity()).build().expect("settings fit");
    for (client, version) in
        [(first, reqwest::Version::HTTP_11), (second, reqwest::Version::HTTP_2)]
    {
        let caller = Caller { server: &server, client };
        let headers = [("x-remote-user", HPA), ("host", "10.96.0.17:443")];
        let headers =
            if version == reqwest::Version::HTTP_2 { &headers[..1] } else { &headers[..] };
        let answer = caller.get(PATH, headers).await;
        assert_eq!(answer.version, version);
        assert_eq!(answer.items(), ["policy=checkout: 1"]);
    }
}

/// Remembers which CAs the server asked for, and sends nothing.
#[derive(Debug, Default)]
struct Hints(Mutex<Option<usize>>);

impl Hints {
    fn seen(&self) -> Option<usize> {
        *self.0.lock()
    }
}

impl ResolvesClientCert for Hints {
    fn resolve(&self, hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        *self.0.lock() = Some(hints.len());
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Connects with one TLS version; the number of CAs in the server's CertificateRequest.
async fn hinted_cas(
    server: &Running,
    version: &'static rustls::SupportedProtocolVersion,
) -> Option<usize> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(
        super::super::serving::read_certificates(server.serving_ca.as_bytes()).expect("PEM"),
    );
    assert_eq!(added, 1);
    let hints = Arc::new(Hints::default());
    let config = ClientConfig::builder_with_protocol_versions(&[version])
        .with_root_certificates(roots)
        .with_client_cert_resolver(hints.clone());
    let stream = TcpStream::connect(server.address).await.expect("the server listens");
    let name = ServerName::try_from(SERVICE).expect("a DNS name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.expect("a certificate is optional");
    hints.seen()
}

#[tokio::test]
async fn case_16_certificates_are_asked_for_without_naming_cas_in_both_tls_versions() {
    let server = Running::start().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        assert_eq!(hinted_cas(&server, version).await, Some(0), "{version:?}");
    }
}

/// The ClientHello of a client that speaks at most this version (RFC 5246, 7.4.1.2; none names versions besides).
fn old_client_hello(version: [u8; 2]) -> Vec<u8> {
    let mut hello = version.to_vec();
    hello.extend([7; 32]);
    // No session; TLS_ECDHE_ECDSA_WITH_ with AES_128_GCM_SHA256 and AES_128_CBC_SHA; no compression.
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x09, 1, 0]);
    // supported_groups: x25519, secp256r1; signature_algorithms: ecdsa_secp256r1_sha256.
    let extensions = [0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, 18]);
    hello.extend(extensions);
    let length = u8::try_from(hello.len()).expect("a short message");
    let handshake = [&[1, 0, 0, length], &hello[..]].concat();
    let length = u8::try_from(handshake.len()).expect("a short message");
    [&[0x16, 3, 1, 0, length], &handshake[..]].concat()
}

#[tokio::test]
async fn tls_before_1_2_is_refused() {
    let server = Running::start().await;
    let answer = async |version| {
        let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
        stream.write_all(&old_client_hello(version)).await.expect("the socket is open");
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await.expect("the first record of an answer");
        (answer[0], answer[5], answer[6])
    };
    for version in [[3, 0], [3, 1], [3, 2]] {
        // An alert record: fatal, protocol_version (RFC 8446, 6.2).
        assert_eq!(answer(version).await, (0x15, 2, 70));
    }
    // The same from a client of 1.2 is a handshake record: ServerHello.
    let (record, message, _) = answer([3, 3]).await;
    assert_eq!((record, message), (0x16, 2));
}

#[tokio::test]
async fn probes_need_no_credentials_and_readiness_names_what_is_missing() {
    let server = Running::with(Setup::default()).await;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(server.anyone().get(path, &[]).await.code, StatusCode::OK, "{path}");
    }
    let condition = server.progress.add_condition("policies");
    condition.not_ready("lost the watch");
    let answer = server.anyone().get("/readyz", &[]).await;
    assert_eq!(answer.code, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.body, b"policies: lost the watch");
    assert_eq!(server.anyone().get("/livez", &[]).await.code, StatusCode::OK);
}

#[tokio::test]
async fn the_serving_certificate_can_come_late_and_be_replaced() {
    let mut server = Running::with(Setup { without_certificate: true, ..Setup::default() }).await;
    let readiness = server.progress.ready().expect_err("no certificate is installed");
    assert_eq!(readiness, "serving-certificate: no serving certificate is installed yet");
    let livez = |caller: Caller<'_>| caller.client.get(caller.server.url("/livez")).send();
    assert!(livez(server.anyone()).await.is_err());

    for _ in 0..2 {
        let made = self_signed(&[SERVICE]).expect("rcgen signs");
        let installed =
            server.certificate.install(made.certificate_pem.as_bytes(), made.key_pem.as_bytes());
        installed.expect("the pair is whole");
        // A client that trusts only the CA of the new certificate.
        server.serving_ca = made.ca_pem;
        assert_eq!(server.anyone().get("/livez", &[]).await.code, StatusCode::OK);
    }
    assert_eq!(server.progress.ready(), Ok(()));

    let (one, other) = (self_signed(&["a"]).expect("signs"), self_signed(&["b"]).expect("signs"));
    let install = |certificate: &str, key: &str| {
        let installed = server.certificate.install(certificate.as_bytes(), key.as_bytes());
        installed.expect_err("it cannot be served").to_string()
    };
    assert_eq!(
        install(&one.certificate_pem, &other.key_pem),
        "certificate and private key cannot be used together"
    );
    assert_eq!(install("", &one.key_pem), "the PEM holds no certificate");
    assert_eq!(install(&one.certificate_pem, ""), "cannot read the private key's PEM");
    assert_eq!(server.anyone().get("/livez", &[]).await.code, StatusCode::OK);
}

#[tokio::test]
async fn what_is_too_long_gets_a_status() {
    let server = Running::start().await;
    let long = format!("{PATH}?labelSelector={}", "a".repeat(9000));
    server.as_hpa(&long).await.status(414, "RequestURITooLong");
    let big = "x".repeat(13_000);
    let names = ["a", "b", "c", "d"].map(|name| format!("x-{name}"));
    let headers: Vec<(&str, &str)> =
        names.iter().map(|name| (name.as_str(), big.as_str())).collect();
    server.proxy().get(PATH, &headers).await.status(431, "RequestHeadersTooLarge");
}

#[tokio::test]
async fn a_panic_is_500_and_the_connection_lives_on() {
    async fn fails() {
        panic!("a handler's bug");
    }
    let extra = Router::new().route("/debug/fails", get(fails));
    let server = Running::with(Setup { extra, ..Setup::default() }).await;
    server.demand("shop", "checkout", 1.0);
    let proxy = server.proxy();
    let user = [("x-remote-user", HPA)];
    proxy.get("/debug/fails", &user).await.status(500, "InternalError");
    assert_eq!(proxy.get(PATH, &user).await.code, StatusCode::OK);
}

#[tokio::test]
async fn extra_routes_pass_the_same_gate_and_know_who_asks() {
    async fn whoami(Extension(identity): Extension<Identity>) -> String {
        identity.user
    }
    let extra = Router::new().route("/debug/whoami", get(whoami));
    let server = Running::with(Setup { extra, ..Setup::default() }).await;
    server.anyone().get("/debug/whoami", &[]).await.status(401, "Unauthorized");
    let mallory = server.proxy().get("/debug/whoami", &[("x-remote-user", "mallory")]).await;
    mallory.status(403, "Forbidden");
    assert_eq!(server.as_hpa("/debug/whoami").await.body, HPA.as_bytes());
}

#[tokio::test]
async fn a_request_under_way_is_finished_before_the_server_ends() {
    let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, gate) = (began.clone(), go_on.clone());
    let slow = get(async move || {
        inside.notify_one();
        gate.notified().await;
        "done"
    });
    let extra = Router::new().route("/debug/slow", slow);
    let server = Running::with(Setup { extra, ..Setup::default() }).await;
    let caller = server.proxy();
    let user = [("x-remote-user", HPA)];
    let request = caller.get("/debug/slow", &user);
    let stop = async {
        began.notified().await;
        server.shutdown.cancel();
        // No new connection is taken, while the old request still runs.
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        // Long enough for a server that cuts instead of draining to do so.
        tokio::time::sleep(Duration::from_millis(50)).await;
        go_on.notify_one();
    };
    let (answer, ()) = tokio::join!(request, stop);
    assert_eq!(answer.body, b"done");
    server.task.await.expect("the server does not panic").expect("it ends well");
}

#[tokio::test]
async fn what_is_no_tls_is_counted_and_harms_nobody() {
    let server = Running::start().await;
    let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("the socket is open");
    let mut answer = Vec::new();
    // An alert and the end, or a reset: either way the server has given up.
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(server.anyone().get("/livez", &[]).await.code, StatusCode::OK);
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&server.registry.gather())
        .expect("the metrics are text");
    assert!(text.contains("headroom_adapter_tls_handshake_failures_total 1"), "{text}");
}

#[tokio::test]
async fn the_plain_port_serves_metrics_and_probes() {
    let registry = prometheus::Registry::new();
    let metrics = OwnMetrics::register(&registry).expect("the registry is empty");
    metrics.authenticated("nobody");
    assert!(OwnMetrics::register(&registry).is_err(), "one registry, one server");
    let routes = metrics_routes(registry, &Progress::new(Clock::start()));
    for (path, header, expected) in [
        (
            "/metrics",
            "text/plain; version=0.0.4",
            "headroom_adapter_authentication_total{outcome=\"nobody\"} 1",
        ),
        ("/livez", "text/plain; charset=utf-8", "ok"),
    ] {
        let request = http::Request::get(path).body(axum::body::Body::empty()).expect("a request");
        let answer = tower::ServiceExt::oneshot(routes.clone(), request).await.expect("infallible");
        let content_type = answer.headers().get(HeaderName::from_static("content-type"));
        assert_eq!(content_type.and_then(|value| value.to_str().ok()), Some(header));
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(expected), "{path}");
    }
}
