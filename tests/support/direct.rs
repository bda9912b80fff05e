//! Requests to the adapter itself, past the API server, with a chosen identity.
//!
//! In: an identity. Out: status and body. Never: a check of the serving certificate: that the API
//! server's APIService does.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::control_plane::ControlPlane;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Identity<'a> {
    /// Nobody.
    None,
    /// A bearer token.
    Token(&'a str),
    /// One of the client certificates of the control plane's [`Pki`](super::pki::Pki).
    Certificate(&'a str),
}

/// A client of the adapter.
#[derive(Debug)]
pub(crate) struct DirectClient {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

/// An answer, and its body as JSON if it is JSON.
#[derive(Debug)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// What was spoken.
    pub(crate) version: http::Version,
    /// The body; null where it is not JSON.
    pub(crate) body: Value,
}

impl DirectClient {
    /// A client that shows `identity`.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub(crate) fn new(plane: &ControlPlane, url: &str, identity: Identity<'_>) -> Result<Self> {
        let mut builder =
            reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true);
        let mut token = None;
        match identity {
            Identity::None => {}
            Identity::Token(text) => token = Some(text.to_owned()),
            Identity::Certificate(name) => {
                let mut pem = fs::read(plane.pki().certificate(name))?;
                pem.extend(fs::read(plane.pki().key(name))?);
                builder = builder.identity(reqwest::Identity::from_pem(&pem)?);
            }
        }
        Ok(Self { http: builder.build()?, url: url.to_owned(), token })
    }

    /// GETs a path with more headers.
    ///
    /// # Errors
    /// No answer.
    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let mut request = self.signed(self.http.get(format!("{}{path}", self.url)));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await?;
        let (status, version) = (answer.status().as_u16(), answer.version());
        let body = serde_json::from_slice(&answer.bytes().await?).unwrap_or(Value::Null);
        Ok(Answer { status, version, body })
    }

    /// What a path answers with.
    ///
    /// # Errors
    /// Anything but 200.
    pub(crate) async fn download(&self, path: &str) -> Result<Vec<u8>> {
        let request = self.http.get(format!("{}{path}", self.url));
        let answer = self.signed(request).send().await?;
        let (status, body) = (answer.status().as_u16(), answer.bytes().await?);
        ensure!(status == 200, "{path}: {status} {}", String::from_utf8_lossy(&body));
        Ok(body.into())
    }

    /// The status of an empty POST.
    ///
    /// # Errors
    /// No answer.
    pub(crate) async fn post(&self, path: &str) -> Result<u16> {
        let request = self.http.post(format!("{}{path}", self.url));
        Ok(self.signed(request).send().await?.status().as_u16())
    }

    fn signed(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The demand of a policy.
    ///
    /// # Errors
    /// Anything but 200 with one item.
    pub(crate) async fn demand(&self, namespace: &str, policy: &str) -> Result<f64> {
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/headroom_demand?labelSelector=policy%3D{policy}"
        );
        let answer = self.get(&path, &[]).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
        let value = answer.body["items"][0]["value"].as_str().context("no value")?;
        Ok(value.parse::<headroom::quantity::Quantity>()?.to_f64())
    }
}

/// A client with the HPA controller's own identity.
///
/// # Errors
/// No token.
pub(crate) async fn hpa_client(plane: &ControlPlane, url: &str) -> Result<DirectClient> {
    let token = plane.token("kube-system", "horizontal-pod-autoscaler").await?;
    DirectClient::new(plane, url, Identity::Token(&token))
}
