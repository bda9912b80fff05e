//! Two servers in this process: the adapter over a fleet, and one whose every answer is the same bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::http::header;
use axum::routing::get;
use headroom::adapter::{
    AccessReviews, Authentication, Authorization, ClientCas, Delegated, Groups, OwnMetrics, Server,
    ServingCertificate, self_signed,
};
use headroom::config::AuditLevel;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::aggregation::{FrontProxy, api_server};
use crate::aggregator::Aggregator;
use crate::fleet::Fleet;

/// As long as an answer of one item in protobuf.
const FIXED_BODY: [u8; 190] = [b'x'; 190];

/// Both servers, and a client that both let in.
pub(crate) struct Ground {
    pub(crate) adapter: SocketAddr,
    pub(crate) fixed: SocketAddr,
    pub(crate) client: Aggregator,
}

impl Ground {
    pub(crate) async fn start(fleet: &Fleet, shutdown: &CancellationToken) -> Result<Self> {
        let (proxy, key) = FrontProxy::new()?;
        let serving = self_signed(&["localhost"])?;
        let certificate = Arc::new(ServingCertificate::new(fleet.progress.add_condition("TLS")));
        certificate.install(serving.certificate_pem.as_bytes(), serving.key_pem.as_bytes())?;
        let cas = Arc::new(ClientCas::new(fleet.progress.add_condition("client CAs")));
        cas.install(proxy.settings()?);
        let server = Server {
            groups: Groups::default(),
            board: fleet.board.clone(),
            clock: fleet.clock,
            certificate,
            authentication: Authentication::Delegated(Delegated::new(cas, api_server())),
            authorization: Authorization::Delegated(AccessReviews::new(api_server())),
            progress: fleet.progress.clone(),
            metrics: OwnMetrics::register(&fleet.registry)?,
            audit: AuditLevel::Off,
            extra: Router::new(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let adapter = listener.local_addr()?;
        tokio::spawn(server.serve(listener, shutdown.clone()));
        let fixed = fixed(serving.certificate_pem.as_bytes(), serving.key_pem.as_bytes()).await?;
        let mut roots = RootCertStore::empty();
        for ca in CertificateDer::pem_slice_iter(serving.ca_pem.as_bytes()) {
            roots.add(ca?)?;
        }
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
        let client = Aggregator { roots, chain: vec![proxy.certificate], key: Arc::new(key) };
        Ok(Self { adapter, fixed, client })
    }
}

/// TLS, HTTP/2, a route and bytes: nothing else.
async fn fixed(chain: &[u8], key: &[u8]) -> Result<SocketAddr> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain?, PrivateKeyDer::from_pem_slice(key)?)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let router = Router::new().route(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}",
        get(async || {
            ([(header::CONTENT_TYPE, "application/vnd.kubernetes.protobuf")], FIXED_BODY.as_slice())
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let stream = TokioIo::new(acceptor.accept(stream).await?);
                let service = TowerToHyperService::new(router);
                let served = auto::Builder::new(TokioExecutor::new())
                    .http2_only()
                    .serve_connection(stream, service)
                    .await;
                served.map_err(|error| anyhow::anyhow!(error))
            });
        }
    });
    Ok(address)
}
