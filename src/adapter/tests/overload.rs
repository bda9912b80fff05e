//! More than the bounds: a flood by one user, connections without requests, heads without an end.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::IntoResponse as _;
use axum::routing::get;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::client::TlsStream;

use super::super::access::Recognised;
use super::super::listener::{Bounds, Connections, Routes};
use super::super::serving;
use super::*;

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/headroom_demand";
/// For what happens in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

#[tokio::test]
async fn case_42_a_user_who_floods_leaves_places_for_others() {
    let (inside, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (entered, gate) = (inside.clone(), go_on.clone());
    let slow = get(async move || {
        let opened = gate.notified();
        entered.fetch_add(1, Ordering::Relaxed);
        opened.await;
    });
    let extra = Router::new().route("/debug/slow", slow);
    let server = Running::with(Setup { extra, ..Setup::default() }).await;
    server.demand("shop", "checkout", 1.0);
    // Three connections: each carries 250 requests at once.
    let proxies = [server.proxy(), server.proxy(), server.proxy()];
    let flood = proxies.iter().flat_map(|proxy| {
        (0..100).map(move |_| proxy.get("/debug/slow", &[("x-remote-user", "flooder")]))
    });
    let flood = futures::future::join_all(flood);
    let others = async {
        while inside.load(Ordering::Relaxed) < 256 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let refused = server.proxy().get(PATH, &[("x-remote-user", "flooder")]).await;
        assert_eq!(
            refused.status(503, "ServiceUnavailable"),
            "too many requests of this user are under way"
        );
        assert_eq!(server.as_hpa(PATH).await.items(), ["policy=checkout: 1"]);
        // Those that have no place are refused without waiting for one.
        tokio::time::sleep(Duration::from_millis(100)).await;
        go_on.notify_waiters();
    };
    let (answers, ()) = tokio::join!(flood, others);
    let refused = answers.iter().filter(|answer| answer.code == StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((refused.count(), inside.load(Ordering::Relaxed)), (44, 256));
    assert_eq!(
        server.proxy().get(PATH, &[("x-remote-user", "flooder")]).await.code,
        StatusCode::OK
    );
}

#[tokio::test]
async fn answers_that_are_not_read_keep_their_places() {
    let endless = get(async || {
        axum::body::Body::from_stream(futures::stream::pending::<Result<&str, std::io::Error>>())
    });
    let extra = Router::new().route("/debug/endless", endless);
    let server = Running::with(Setup { extra, ..Setup::default() }).await;
    server.demand("shop", "checkout", 1.0);
    let proxies = [server.proxy(), server.proxy()];
    let mut unread = Vec::new();
    for proxy in &proxies {
        for _ in 0..128 {
            let request = proxy.client.get(server.url("/debug/endless"));
            let answer = request.header("x-remote-user", "flooder").send().await;
            unread.push(answer.expect("the head of an answer"));
        }
    }
    let flooder = async || server.proxy().get(PATH, &[("x-remote-user", "flooder")]).await.code;
    assert_eq!(flooder().await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.as_hpa(PATH).await.items(), ["policy=checkout: 1"]);
    drop(unread);
    let given_back = async {
        while flooder().await != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, given_back).await.expect("the places are given back");
}

/// A listener with small bounds.
struct Small {
    address: SocketAddr,
    ca_pem: String,
    registry: prometheus::Registry,
}

impl Small {
    /// `/known` is answered as to someone known, `/` as to nobody.
    fn router() -> Router {
        let known = get(async || {
            let mut answer = "known".into_response();
            answer.extensions_mut().insert(Recognised);
            answer
        });
        Router::new().route("/known", known).route("/", get(async || "nobody"))
    }

    async fn start(bounds: Bounds, with_tls: bool) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = prometheus::Registry::new();
        let metrics = OwnMetrics::register(&registry).expect("the registry is empty");
        let condition = Progress::new(Clock::start()).add_condition("certificate");
        let certificate = Arc::new(ServingCertificate::new(condition));
        let made = self_signed(&[SERVICE]).expect("rcgen signs");
        let (chain, key) = (made.certificate_pem.as_bytes(), made.key_pem.as_bytes());
        certificate.install(chain, key).expect("the pair is whole");
        let never = CancellationToken::new();
        let connections = if with_tls {
            let tls = serving::tls_config(certificate).expect("the settings fit");
            Connections::tls(Arc::new(tls), Routes::Open(Self::router()), metrics, never)
        } else {
            Connections::plain(Self::router(), metrics, never)
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("the socket is bound");
        tokio::spawn(connections.within(bounds).serve(listener));
        Self { address, ca_pem: made.ca_pem, registry }
    }

    /// A connection from an address of this machine.
    async fn connect(&self, from: IpAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("there are sockets");
        socket.bind((from, 0).into()).expect("every address of 127.0.0.0/8 is ours");
        socket.connect(self.address).await.expect("the server listens")
    }

    /// The same with TLS and HTTP/2 agreed on, and nothing sent.
    async fn connect_tls(&self, from: IpAddr) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(
            serving::read_certificates(self.ca_pem.as_bytes()).expect("PEM"),
        );
        let mut config =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(SERVICE).expect("a DNS name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(name, self.connect(from).await).await.expect("a handshake")
    }

    fn client(&self, from: IpAddr) -> reqwest::Client {
        let ca = reqwest::Certificate::from_pem(self.ca_pem.as_bytes()).expect("the CA is PEM");
        let builder = reqwest::Client::builder().tls_certs_only([ca]).no_proxy();
        let builder = builder.resolve(SERVICE, self.address).local_address(from).timeout(PATIENCE);
        builder.build().expect("the settings fit")
    }

    async fn get(&self, client: &reqwest::Client, path: &str) -> reqwest::Result<String> {
        let url = format!("https://{SERVICE}:{}{path}", self.address.port());
        client.get(url).send().await?.text().await
    }

    /// A counter, all of its label values together.
    fn counter(&self, name: &str) -> String {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        metrics.iter().map(|metric| metric.get_counter().get_value()).sum::<f64>().to_string()
    }
}

/// Whether the other end closes within the patience of a test.
async fn closes(mut stream: impl tokio::io::AsyncRead + Unpin) -> bool {
    let mut bytes = Vec::new();
    // Its end, or a reset.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.is_ok()
}

const ROOMY: Bounds =
    Bounds { connections: 8, header_read: PATIENCE, idle: PATIENCE, idle_when_scarce: PATIENCE };

#[tokio::test]
async fn idle_connections_of_one_address_lock_no_other_out() {
    let server = Small::start(ROOMY, true).await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.push(server.connect_tls(HERE).await);
    }
    assert!(closes(server.connect(HERE).await).await, "half of all is for one address");
    let other = server.client(ELSEWHERE);
    assert_eq!(server.get(&other, "/known").await.expect("a place was left"), "known");
    assert_eq!(server.counter("headroom_adapter_refused_as_too_many_total"), "1");
    drop(kept);
}

#[tokio::test]
async fn handshakes_that_never_end_take_no_more_than_their_part() {
    let server = Small::start(ROOMY, true).await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut stream = server.connect(HERE).await;
        stream.write_all(&[0x16, 3, 1]).await.expect("the socket is open");
        kept.push(stream);
    }
    assert!(closes(server.connect(HERE).await).await);
    let other = server.client(ELSEWHERE);
    assert_eq!(server.get(&other, "/known").await.expect("a place was left"), "known");
    // Refused at once, not given up after the time of a handshake.
    assert_eq!(server.counter("headroom_adapter_refused_as_too_many_total"), "1");
    drop(kept);
}

#[tokio::test]
async fn a_connection_that_nobody_known_uses_is_closed_and_one_in_use_is_kept() {
    let soon = Duration::from_millis(300);
    let server = Small::start(Bounds { idle_when_scarce: soon, ..ROOMY }, true).await;
    let (someone, nobody) = (server.client(HERE), server.client(HERE));
    server.get(&someone, "/known").await.expect("an answer");
    server.get(&nobody, "/").await.expect("an answer");
    assert!(closes(server.connect_tls(HERE).await).await, "without a request");
    let closed = "headroom_adapter_connections_closed_idle_total";
    let both = async {
        while server.counter(closed) != "2" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, both).await.expect("the one with requests of nobody too");
    assert_eq!(server.get(&someone, "/known").await.expect("it is still open"), "known");
    assert_eq!(server.counter(closed), "2");
    // And who was sent away comes back.
    assert_eq!(server.get(&nobody, "/").await.expect("a new connection"), "nobody");
}

#[tokio::test]
async fn when_connections_are_scarce_those_that_idle_go() {
    let soon = Duration::from_millis(300);
    let server =
        Small::start(Bounds { connections: 2, idle_when_scarce: soon, ..ROOMY }, true).await;
    let someone = server.client(HERE);
    server.get(&someone, "/known").await.expect("an answer");
    tokio::time::sleep(3 * soon).await;
    let closed = "headroom_adapter_connections_closed_idle_total";
    assert_eq!(server.counter(closed), "0", "there is room");
    let second = server.connect_tls(ELSEWHERE).await;
    assert!(closes(second).await);
    let both = async {
        while server.counter(closed) != "2" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, both).await.expect("both were idle");
    assert_eq!(server.get(&someone, "/known").await.expect("a new connection"), "known");
}

#[tokio::test]
async fn the_plain_port_bounds_connections_and_heads_too() {
    let bounds = Bounds { header_read: Duration::from_millis(300), ..ROOMY };
    let server = Small::start(bounds, false).await;
    let mut slow = server.connect(HERE).await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n").await.expect("the socket is open");
    assert!(closes(slow).await, "a head without an end");

    let server = Small::start(ROOMY, false).await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.push(server.connect(HERE).await);
    }
    assert!(closes(server.connect(HERE).await).await, "half of all is for one address");
    let mut other = server.connect(ELSEWHERE).await;
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    other.write_all(request).await.expect("the socket is open");
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("nobody"), "{answer}");
    drop(kept);
}
