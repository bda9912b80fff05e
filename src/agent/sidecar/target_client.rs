//! Requests to the service beside the sidecar.
//!
//! In: URLs of the configuration. Out: bounded bodies, or streams. Never: a redirect, a proxy, a cookie, or a body past its limit.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};

use super::SidecarError;
use crate::config::{HttpUrl, TargetConfig};

/// What the sidecar reads and passes on.
const ACCEPTED: &str = "text/plain;version=0.0.4;q=1,text/plain;q=0.5";

/// Why the service did not answer with its metrics.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no answer from {url}")]
    Connect { url: String, source: reqwest::Error },
    #[error("no whole answer from {url} within {timeout:?}")]
    Timeout { url: String, timeout: Duration },
    #[error("{url} answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url} answered more than {limit_bytes} bytes (agent.target.maxBody)")]
    TooLarge { url: String, limit_bytes: usize },
    #[error("{url} answered OpenMetrics, although the text format was asked for")]
    OpenMetrics { url: String },
    #[error("cannot read the bearer token of {}", .path.display())]
    Token { path: std::path::PathBuf, source: std::io::Error },
    #[error("the bearer token in {} cannot be a header", .path.display())]
    TokenText { path: std::path::PathBuf },
}

/// One client for everything. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct TargetClient(reqwest::Client);

impl TargetClient {
    pub(super) fn new() -> Result<Self, SidecarError> {
        // The target is in the same pod and spoken to without TLS; the client wants a TLS setup all the same.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("headroom/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .pool_max_idle_per_host(2)
            .build()?;
        Ok(Self(client))
    }

    /// The body of the service's `/metrics`.
    pub(super) async fn metrics(
        &self,
        url: &HttpUrl,
        target: &TargetConfig,
    ) -> Result<Vec<u8>, FetchError> {
        let url = url.to_string();
        let mut headers = authorization(target)?;
        headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let fetch = self.bounded_body(&url, headers, target.max_body_bytes);
        match tokio::time::timeout(target.timeout, fetch).await {
            Ok(outcome) => outcome,
            Err(_) => Err(FetchError::Timeout { url, timeout: target.timeout }),
        }
    }

    async fn bounded_body(
        &self,
        url: &str,
        headers: HeaderMap,
        limit_bytes: usize,
    ) -> Result<Vec<u8>, FetchError> {
        let broken = |source: reqwest::Error| FetchError::Connect {
            url: url.to_owned(),
            // The URL is in our message.
            source: source.without_url(),
        };
        let request = self.0.get(url).headers(headers);
        let mut response = request.send().await.map_err(broken)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status { url: url.to_owned(), status: response.status() });
        }
        let form = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if form.is_some_and(|form| form.starts_with("application/openmetrics-text")) {
            return Err(FetchError::OpenMetrics { url: url.to_owned() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > limit_bytes {
                return Err(FetchError::TooLarge { url: url.to_owned(), limit_bytes });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Sends a request on and returns its answer with the body still to come. The deadline holds to the end of the body.
    pub(super) async fn forward(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: reqwest::Body,
        deadline: Duration,
    ) -> Result<reqwest::Response, reqwest::Error> {
        let request = self.0.request(method, url).headers(headers).body(body).timeout(deadline);
        request.send().await.map_err(reqwest::Error::without_url)
    }
}

/// The bearer token as a header, read anew: tokens of Kubernetes change.
pub(super) fn authorization(target: &TargetConfig) -> Result<HeaderMap, FetchError> {
    let mut headers = HeaderMap::new();
    if let Some(path) = &target.bearer_token_file {
        let token = std::fs::read_to_string(path)
            .map_err(|source| FetchError::Token { path: path.clone(), source })?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
            .map_err(|_| FetchError::TokenText { path: path.clone() })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}
