//! What stands around an aggregated API server: the front proxy with its CA, and an API server that reviews.

use std::collections::BTreeMap;
use std::convert::Infallible;

use anyhow::Result;
use headroom::adapter::ClientCaSettings;
use http_body_util::{BodyExt as _, Collected};
use kube::client::Body;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::CertificateDer;

/// An API server that lets everyone do everything.
pub(crate) fn api_server() -> kube::Client {
    let service = tower::service_fn(|request: http::Request<Body>| async move {
        let body = request.into_body().collect().await.map(Collected::to_bytes);
        let mut review: serde_json::Value =
            serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        review["status"] = serde_json::json!({"allowed": true});
        let body = Body::from(review.to_string().into_bytes());
        Ok::<_, Infallible>(http::Response::new(body))
    });
    kube::Client::new(service, "default")
}

/// The front proxy: its CA in PEM, and the certificate that it has from it.
pub(crate) struct FrontProxy {
    pub(crate) ca_pem: String,
    pub(crate) certificate: CertificateDer<'static>,
}

impl FrontProxy {
    /// And the certificate's key.
    pub(crate) fn new() -> Result<(Self, KeyPair)> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "front-proxy-ca");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "front-proxy-client");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &ca)?.der().clone();
        Ok((Self { ca_pem: ca.pem(), certificate }, key))
    }

    /// What kube-apiserver publishes about its clients, with this CA for both.
    pub(crate) fn settings(&self) -> Result<ClientCaSettings> {
        let data: BTreeMap<String, String> = [
            ("client-ca-file", &*self.ca_pem),
            ("requestheader-client-ca-file", &*self.ca_pem),
            ("requestheader-allowed-names", "[\"front-proxy-client\"]"),
            ("requestheader-username-headers", "[\"X-Remote-User\"]"),
            ("requestheader-group-headers", "[\"X-Remote-Group\"]"),
            ("requestheader-extra-headers-prefix", "[\"X-Remote-Extra-\"]"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        Ok(ClientCaSettings::from_config_map(&data)?)
    }
}
