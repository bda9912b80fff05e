//! The aggregator's part: one HTTP/2 connection over TLS with a front-proxy certificate, and requests in closed loops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::Rng as _;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// As many HPA workers as kube-controller-manager has by default.
const LOOPS: usize = 5;

/// What a client needs to know.
#[derive(Clone)]
pub(crate) struct Aggregator {
    pub(crate) roots: RootCertStore,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Arc<PrivateKeyDer<'static>>,
}

/// One run's figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) per_second: f64,
}

impl Aggregator {
    /// Asks for `path(random number)` as fast as answers come.
    pub(crate) async fn run(
        &self,
        address: SocketAddr,
        duration: Duration,
        path: impl Fn(usize) -> String + Send + Sync + 'static,
    ) -> Result<Run> {
        let sender = self.connect(address).await?;
        let path = Arc::new(path);
        let started = Instant::now();
        let mut loops = JoinSet::new();
        for _ in 0..LOOPS {
            let (sender, path) = (sender.clone(), path.clone());
            loops.spawn(async move {
                let mut took = Vec::with_capacity(200_000);
                while started.elapsed() < duration {
                    let wanted = path(rand::rng().random_range(0..usize::MAX));
                    let asked = Instant::now();
                    ask(sender.clone(), &wanted).await?;
                    took.push(asked.elapsed());
                }
                anyhow::Ok(took)
            });
        }
        let mut all = Vec::new();
        while let Some(took) = loops.join_next().await {
            all.extend(took??);
        }
        let elapsed = started.elapsed().as_secs_f64();
        ensure!(all.len() > 100, "only {} answers came", all.len());
        all.sort_unstable();
        let at = |share: usize| all[all.len() * share / 1000];
        let count = f64::from(u32::try_from(all.len())?);
        Ok(Run { p50: at(500), p99: at(990), per_second: count / elapsed })
    }

    async fn connect(&self, address: SocketAddr) -> Result<http2::SendRequest<Empty<Bytes>>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

async fn ask(mut sender: http2::SendRequest<Empty<Bytes>>, path: &str) -> Result<()> {
    let request = http::Request::get(format!("https://localhost{path}"))
        .header("accept", "application/vnd.kubernetes.protobuf, */*")
        .header("user-agent", "kube-controller-manager/v1.37.2 (linux/amd64) kubernetes/0123456/horizontal-pod-autoscaler")
        .header("x-remote-user", "system:serviceaccount:kube-system:horizontal-pod-autoscaler")
        .header("x-remote-group", "system:serviceaccounts")
        .header("x-remote-group", "system:authenticated")
        .header("audit-id", "b0e1c7a2-6a3c-4a0d-8f55-0a4f4f1d5a11")
        .body(Empty::new())?;
    let answer = sender.send_request(request).await.context("the server does not answer")?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success() && body.len() > 40, "{status}: {}", String::from_utf8_lossy(&body));
    Ok(())
}
