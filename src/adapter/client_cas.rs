//! Which client certificates mean what: the two CAs of the cluster and the settings that come with them.
//!
//! In: the ConfigMap `kube-system/extension-apiserver-authentication`, watched, and the certificate chain of a connection.
//! Out: for each connection, which of the two CAs vouches for it now. Never: trust on a guess: without a CA nothing
//! chains to it; a bad ConfigMap keeps the last good settings. Source: apiserver
//! `pkg/server/options/authentication_dynamic_request_header.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::HeaderName;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime, pem};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::serving::{crypto, read_certificates};
use crate::probes::Condition;
use crate::telemetry::error_chain;

/// Where the API server publishes how it identifies itself.
const NAMESPACE: &str = "kube-system";
/// The ConfigMap there.
const CONFIG_MAP: &str = "extension-apiserver-authentication";
/// Its keys with the CAs.
const CLIENT_CA: &str = "client-ca-file";
const REQUEST_HEADER_CA: &str = "requestheader-client-ca-file";
/// How long the verdict on a connection's certificate stands; a certificate that expires meanwhile is noticed so late.
const VERDICT_STANDS_FOR: Duration = Duration::from_secs(30);

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// A CA is not PEM.
    #[error("cannot read the PEM in {key}")]
    Pem {
        /// The ConfigMap's key.
        key: &'static str,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// PEM, but without a certificate that can be a trust anchor.
    #[error("{key} holds no usable certificate")]
    NoCertificate {
        /// The ConfigMap's key.
        key: &'static str,
    },
    /// A CA that the verifier refuses.
    #[error("cannot verify with the certificates in {key}")]
    Verifier {
        /// The ConfigMap's key.
        key: &'static str,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
    /// A list that is not a JSON array of strings.
    #[error("{key} is not a JSON array of strings")]
    List {
        /// The ConfigMap's key.
        key: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A CA that is in use is there no more. To take it out of use would refuse everyone it vouches for.
    #[error("{key} is in use, and the ConfigMap no longer has it")]
    Withdrawn {
        /// The ConfigMap's key.
        key: &'static str,
    },
    /// The ConfigMap cannot be read.
    #[error("cannot read ConfigMap {NAMESPACE}/{CONFIG_MAP}")]
    Read(#[source] Box<kube::Error>),
    /// There is no such ConfigMap.
    #[error("there is no ConfigMap {NAMESPACE}/{CONFIG_MAP}")]
    Missing,
}

/// The CAs and settings in use now; replaced without a restart.
#[derive(Debug)]
pub struct ClientCas {
    current: ArcSwap<ClientCaSettings>,
    condition: Condition,
    /// The ConfigMap as last seen was refused: the settings are older than it.
    refused: AtomicBool,
}

/// One state of the ConfigMap.
#[derive(Clone, Debug, Default)]
pub struct ClientCaSettings {
    client_ca: Option<Arc<dyn ClientCertVerifier>>,
    request_header: Option<RequestHeaderSettings>,
}

/// Who may speak for others, and in which headers.
#[derive(Clone, Debug)]
pub struct RequestHeaderSettings {
    ca: Arc<dyn ClientCertVerifier>,
    /// Common names that may; empty is every one that chains to the CA.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name; the first that is set counts.
    pub username_headers: Vec<HeaderName>,
    /// Headers with groups; all count.
    pub group_headers: Vec<HeaderName>,
    /// Prefixes of headers with extra attributes, in lower case.
    pub extra_header_prefixes: Vec<String>,
}

impl ClientCaSettings {
    /// Reads the ConfigMap's data. A CA that is absent or empty is simply not there.
    ///
    /// # Errors
    /// [`ClientCaError`] for anything that is there and cannot be used.
    pub fn from_config_map(data: &BTreeMap<String, String>) -> Result<Self, ClientCaError> {
        let client_ca = authority(data, CLIENT_CA)?;
        let request_header = match authority(data, REQUEST_HEADER_CA)? {
            None => None,
            Some(ca) => Some(RequestHeaderSettings {
                ca,
                allowed_names: list(data, "requestheader-allowed-names")?,
                username_headers: header_names(data, "requestheader-username-headers")?,
                group_headers: header_names(data, "requestheader-group-headers")?,
                extra_header_prefixes: list(data, "requestheader-extra-headers-prefix")?
                    .iter()
                    .map(|prefix| prefix.to_lowercase())
                    .collect(),
            }),
        };
        Ok(Self { client_ca, request_header })
    }

    /// Who may speak for others, if anyone may.
    #[must_use]
    pub const fn request_header(&self) -> Option<&RequestHeaderSettings> {
        self.request_header.as_ref()
    }
}

fn authority(
    data: &BTreeMap<String, String>,
    key: &'static str,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, ClientCaError> {
    let Some(text) = data.get(key).filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    let certificates =
        read_certificates(text.as_bytes()).map_err(|source| ClientCaError::Pem { key, source })?;
    let mut roots = RootCertStore::empty();
    let (usable, ignored) = roots.add_parsable_certificates(certificates);
    if usable == 0 {
        return Err(ClientCaError::NoCertificate { key });
    }
    if ignored > 0 {
        warn!(key, ignored, "certificates that cannot be trust anchors are left out");
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto())
        .build()
        .map(Some)
        .map_err(|source| ClientCaError::Verifier { key, source })
}

fn list(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<String>, ClientCaError> {
    match data.get(key).map(|text| text.trim()).filter(|text| !text.is_empty()) {
        None => Ok(Vec::new()),
        Some(text) => {
            serde_json::from_str(text).map_err(|source| ClientCaError::List { key, source })
        }
    }
}

/// A name that no header can have is left out: no request has such a header.
fn header_names(
    data: &BTreeMap<String, String>,
    key: &'static str,
) -> Result<Vec<HeaderName>, ClientCaError> {
    let names = list(data, key)?;
    let read = |name: &String| {
        let read = HeaderName::from_bytes(name.trim().as_bytes());
        if read.is_err() {
            warn!(key, name, "a name that is no header's is left out");
        }
        read.ok()
    };
    Ok(names.iter().filter_map(read).collect())
}

impl ClientCas {
    /// No CA yet: no client certificate means anything, and `condition` is not met until the first
    /// [`ClientCas::install`].
    #[must_use]
    pub fn new(condition: Condition) -> Self {
        condition.not_ready("the client CAs are not loaded yet");
        Self { current: ArcSwap::default(), condition, refused: AtomicBool::new(false) }
    }

    /// Uses these settings from the next request on, also on connections that are open.
    pub fn install(&self, settings: ClientCaSettings) {
        self.current.store(Arc::new(settings));
        self.condition.ready();
    }

    /// The settings now.
    #[must_use]
    pub fn load(&self) -> Arc<ClientCaSettings> {
        self.current.load_full()
    }

    /// Uses the settings of this ConfigMap, unless something is wrong with them or a CA in use is not among them (as
    /// apiserver `pkg/server/dynamiccertificates/configmap_cafile_content.go`).
    fn install_from(&self, map: ConfigMap) -> Result<(), ClientCaError> {
        let outcome = self.install_checked(map);
        self.refused.store(outcome.is_err(), Ordering::Relaxed);
        outcome
    }

    fn install_checked(&self, map: ConfigMap) -> Result<(), ClientCaError> {
        let settings = ClientCaSettings::from_config_map(&map.data.unwrap_or_default())?;
        let (client_ca, request_header) =
            (settings.client_ca.is_some(), settings.request_header.is_some());
        let current = self.current.load();
        for (key, was, is) in [
            (CLIENT_CA, current.client_ca.is_some(), client_ca),
            (REQUEST_HEADER_CA, current.request_header.is_some(), request_header),
        ] {
            if was && !is {
                return Err(ClientCaError::Withdrawn { key });
            }
        }
        self.install(settings);
        info!(client_ca, request_header, "client CAs loaded");
        Ok(())
    }

    /// Whether the ConfigMap as last seen was refused.
    pub(super) fn refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether there is a CA to fall back on.
    fn serves(&self) -> bool {
        let current = self.current.load();
        current.client_ca.is_some() || current.request_header.is_some()
    }

    /// Reads the ConfigMap once.
    ///
    /// # Errors
    /// [`ClientCaError`] if it cannot be read, is not there, or cannot be used. Then the last good settings stay in use.
    pub async fn load_from(&self, client: Client) -> Result<(), ClientCaError> {
        let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        let found = api.get_opt(CONFIG_MAP).await.map_err(|e| ClientCaError::Read(Box::new(e)))?;
        self.install_from(found.ok_or(ClientCaError::Missing)?)
    }

    /// Reads the ConfigMap and follows its changes until `shutdown`. Needs the role
    /// `extension-apiserver-authentication-reader` in `kube-system`. What cannot be read is tried again with back-off.
    pub async fn follow(&self, client: Client, shutdown: CancellationToken) {
        if let Err(error) = self.load_from(client.clone()).await {
            warn!(error = error_chain(&error), "cannot load the client CAs yet");
            if !self.serves() {
                self.condition.not_ready(error.to_string());
            }
        }
        let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        let mut changes = std::pin::pin!(watcher::watch_object(api, CONFIG_MAP).default_backoff());
        loop {
            let change = tokio::select! {
                () = shutdown.cancelled() => return,
                change = changes.next() => change,
            };
            match change {
                Some(Ok(Some(map))) => {
                    if let Err(error) = self.install_from(map) {
                        let error = error_chain(&error);
                        warn!(error, "client CAs are unusable; the last good ones stay in use");
                    }
                }
                Some(Ok(None)) => {
                    warn!("the ConfigMap with the client CAs is gone; the last ones stay in use")
                }
                Some(Err(error)) => {
                    warn!(error = error_chain(&error), "cannot watch the client CAs")
                }
                None => return,
            }
        }
    }
}

/// The certificate chain that the client of one connection proved to hold, and the verdict on it.
#[derive(Debug)]
pub struct PeerCertificate {
    chain: Vec<CertificateDer<'static>>,
    common_name: String,
    organizations: Vec<String>,
    verdict: Mutex<Option<Verdict>>,
}

/// Which CAs vouch for a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vouched {
    /// The CA of the cluster's clients.
    pub by_client_ca: bool,
    /// The CA of the front proxy.
    pub by_request_header_ca: bool,
}

#[derive(Debug)]
struct Verdict {
    settings: Arc<ClientCaSettings>,
    made: Instant,
    vouched: Vouched,
}

impl PeerCertificate {
    /// Takes a chain, leaf first, whose leaf's key the client proved to hold. `None` for a leaf that cannot be parsed.
    #[must_use]
    pub fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
        let subject = leaf.subject();
        let common_name = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok());
        let organizations = subject.iter_organization().filter_map(|o| o.as_str().ok());
        Some(Self {
            common_name: common_name.unwrap_or_default().to_owned(),
            organizations: organizations.map(str::to_owned).collect(),
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            verdict: Mutex::new(None),
        })
    }

    /// The subject's first CN; empty if there is none.
    #[must_use]
    pub fn common_name(&self) -> &str {
        &self.common_name
    }

    /// The subject's Os.
    #[must_use]
    pub fn organizations(&self) -> &[String] {
        &self.organizations
    }

    /// Which CAs of `settings` vouch for it now, for client authentication. The verdict is kept for a short time.
    #[must_use]
    pub fn vouched(&self, settings: &Arc<ClientCaSettings>) -> Vouched {
        let now = Instant::now();
        let mut verdict = self.verdict.lock();
        if let Some(known) = verdict.as_ref()
            && Arc::ptr_eq(&known.settings, settings)
            && now.duration_since(known.made) < VERDICT_STANDS_FOR
        {
            return known.vouched;
        }
        let vouched = Vouched {
            by_client_ca: self.chains_to(settings.client_ca.as_ref()),
            by_request_header_ca: self
                .chains_to(settings.request_header.as_ref().map(|settings| &settings.ca)),
        };
        *verdict = Some(Verdict { settings: settings.clone(), made: now, vouched });
        vouched
    }

    fn chains_to(&self, ca: Option<&Arc<dyn ClientCertVerifier>>) -> bool {
        let (Some(ca), [leaf, intermediates @ ..]) = (ca, self.chain.as_slice()) else {
            return false;
        };
        ca.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
    }
}
