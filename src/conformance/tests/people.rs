//! Whom the twin believes: `requestheader` and client authorities as in the ConfigMap of the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::HeaderMap;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;

use super::serve::Peer;
use crate::conformance::fixture::{Authentication, Reader};

/// The authorities of the moment, in PEM.
#[derive(Default)]
pub(super) struct Believed {
    front_proxies: Vec<String>,
    allowed_names: Vec<String>,
    clients: Vec<String>,
}

/// Who asks.
pub(super) struct User {
    pub(super) name: String,
    extra: BTreeMap<String, String>,
}

impl User {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), extra: BTreeMap::new() }
    }

    pub(super) fn is(&self, reader: &Reader) -> bool {
        let has = |(key, values): (&String, &Vec<String>)| {
            self.extra.get(key).is_some_and(|value| values.contains(value))
        };
        self.name == reader.user && reader.extra.iter().all(has)
    }
}

impl Believed {
    pub(super) fn change(&mut self, to: Option<&Authentication>, keeps_old: bool) {
        if !keeps_old {
            self.front_proxies.clear();
        }
        if let Some(to) = to {
            self.front_proxies.push(to.requestheader_client_ca.clone());
        }
        self.clients = to.map(|to| to.client_ca.clone()).into_iter().collect();
        self.allowed_names =
            to.map(|to| to.requestheader_allowed_names.clone()).unwrap_or_default();
    }

    /// `None` for nobody.
    pub(super) fn user(&self, headers: &HeaderMap, peer: &Peer, token: &str) -> Option<User> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if text("authorization") == Some(&format!("Bearer {token}")) {
            return Some(User::named("the-token"));
        }
        let certificate = peer.0.as_deref()?;
        let name = common_name(certificate)?;
        if signed(certificate, &self.front_proxies) {
            let mut user = User::named(text("x-remote-user")?);
            for (header, value) in headers {
                if let Some(key) = header.as_str().strip_prefix("x-remote-extra-") {
                    let value = value.to_str().ok()?.to_owned();
                    user.extra.insert(key.replace("%2f", "/"), value);
                }
            }
            return self.allowed_names.contains(&name).then_some(user);
        }
        signed(certificate, &self.clients).then(|| User::named(&name))
    }
}

fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(name)
}

fn signed(certificate: &[u8], authorities: &[String]) -> bool {
    authorities.iter().any(|pem| {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a PEM certificate");
        roots.add(root).expect("an authority");
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().expect("an authority is enough");
        let certificate = CertificateDer::from(certificate.to_vec());
        verifier.verify_client_cert(&certificate, &[], UnixTime::now()).is_ok()
    })
}
