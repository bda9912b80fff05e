//! An adapter that answers every External metric with one number: what the checks must not pass.
//!
//! In: the number. Out: a TLS server that an APIService with insecureSkipTLSVerify can use. Never: a
//! look at any workload.

use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::extract::Path;
use axum::response::Json;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::control_plane::ControlPlane;

/// A running constant adapter; it ends when dropped.
#[derive(Debug)]
pub(crate) struct ConstantAdapter {
    port: u16,
    task: AbortHandle,
}

impl ConstantAdapter {
    /// Begins to serve `value` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No free port.
    pub(crate) async fn start(value: u32) -> Result<Self> {
        let key = KeyPair::generate()?;
        let certificate =
            CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
        let secret = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let task = tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(tls)), routes(value)));
        Ok(Self { port, task: task.abort_handle() })
    }

    /// Has the API server ask it for external metrics, whatever its certificate.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) fn register(&self, plane: &ControlPlane) -> Result<()> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "constant", "namespace": "default"},
            "spec": {"type": "ExternalName", "externalName": "localhost",
                     "ports": [{"name": "https", "port": self.port}]},
        });
        let api = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {
                "group": "external.metrics.k8s.io", "version": "v1beta1",
                "groupPriorityMinimum": 100, "versionPriority": 100,
                "insecureSkipTLSVerify": true,
                "service": {"name": "constant", "namespace": "default", "port": self.port},
            },
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [service, api]});
        plane.kubectl_with_input(&["apply", "-f", "-"], &list.to_string())?;
        Ok(())
    }
}

impl Drop for ConstantAdapter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn routes(value: u32) -> Router {
    let resources = json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": "external.metrics.k8s.io/v1beta1", "resources": [],
    });
    let metric = async move |Path((_namespace, name)): Path<(String, String)>| -> Json<Value> {
        Json(json!({
            "kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1",
            "metadata": {},
            "items": [{
                "metricName": name, "metricLabels": {},
                "timestamp": jiff::Timestamp::now().to_string(), "value": value.to_string(),
            }],
        }))
    };
    Router::new()
        .route("/apis/external.metrics.k8s.io/v1beta1", get(async move || Json(resources)))
        .route("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}", get(metric))
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, routes: Router) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (tls, routes) = (tls.clone(), routes.clone());
        tokio::spawn(async move {
            // A client that breaks off has nobody to tell.
            if let Ok(stream) = tls.accept(stream).await {
                let service = TowerToHyperService::new(routes);
                let _end = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        });
    }
}
