//! TLS of the API server: the serving certificate, and the handshake that lets client certificates in without judging them.
//!
//! In: certificates and keys in PEM, at any time. Out: a rustls configuration that follows them without a restart. Never: a
//! decision about who the client is; a client certificate is only proven to be held. [`super::client_cas`] judges it once per
//! connection and state of the CAs, so that a replaced CA counts for connections that are open already, and for resumed ones,
//! and a request on a steady connection costs no signature.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use jiff::ToSpan;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use crate::probes::Condition;

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not PEM, or broken PEM.
    #[error("cannot read the certificate's PEM")]
    CertificatePem(#[source] pem::Error),
    /// No certificate at all.
    #[error("the PEM holds no certificate")]
    NoCertificate,
    /// Not the PEM of a private key.
    #[error("cannot read the private key's PEM")]
    KeyPem(#[source] pem::Error),
    /// Of no kind that TLS can use, or the key of another certificate.
    #[error("certificate and private key cannot be used together")]
    Unusable(#[source] rustls::Error),
    /// Cannot be made.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
    /// The clock shows a time that a calendar cannot hold.
    #[error("cannot place the certificate's validity in time")]
    Validity(#[source] jiff::Error),
}

/// The certificate that is served now; replaced without a restart. Connections that are open keep theirs.
#[derive(Debug)]
pub struct ServingCertificate {
    current: ArcSwapOption<CertifiedKey>,
    condition: Condition,
}

impl ServingCertificate {
    /// None yet: handshakes fail and `condition` is not met until the first [`ServingCertificate::install`].
    #[must_use]
    pub fn new(condition: Condition) -> Self {
        condition.not_ready("no serving certificate is installed yet");
        Self { current: ArcSwapOption::empty(), condition }
    }

    /// Serves this chain (leaf first) from the next handshake on. What was served before stays on an error.
    ///
    /// # Errors
    /// [`CertificateError`] if the PEM cannot be read, or key and leaf do not belong together.
    pub fn install(&self, certificate_pem: &[u8], key_pem: &[u8]) -> Result<(), CertificateError> {
        let chain = read_certificates(certificate_pem).map_err(CertificateError::CertificatePem)?;
        if chain.is_empty() {
            return Err(CertificateError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(CertificateError::KeyPem)?;
        let certified =
            CertifiedKey::from_der(chain, key, &crypto()).map_err(CertificateError::Unusable)?;
        self.current.store(Some(Arc::new(certified)));
        self.condition.ready();
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

/// Every certificate of a PEM text, in its order.
pub(super) fn read_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}

/// The one cryptography of the program.
pub(super) fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, client certificates asked for but not required.
///
/// # Errors
/// None with this program's cryptography; rustls checks that its versions and suites fit together.
pub(super) fn tls_config(
    certificate: Arc<ServingCertificate>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = crypto();
    let verifier = Possession { algorithms: provider.signature_verification_algorithms };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Asks for a client certificate with an empty list of CAs, so that the front proxy sends its own whatever CA it is from
/// (Go `crypto/tls/handshake_client.go`: a client keeps back a certificate that none of the listed CAs signed), and checks
/// no more than that the client holds the key.
#[derive(Debug)]
struct Possession {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Possession {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A certificate with a CA of its own, in PEM.
#[derive(Clone)]
pub struct SelfSigned {
    /// The leaf.
    pub certificate_pem: String,
    /// The leaf's private key.
    pub key_pem: String,
    /// The CA to trust. Its key is gone: it signs nothing else.
    pub ca_pem: String,
}

/// The key stays out of logs.
impl std::fmt::Debug for SelfSigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SelfSigned").field("ca_pem", &self.ca_pem).finish_non_exhaustive()
    }
}

/// Makes a serving certificate for DNS names and addresses, valid for a year from yesterday on.
///
/// # Errors
/// [`CertificateError::Make`] for a name that is no DNS name.
pub fn self_signed(names: &[&str]) -> Result<SelfSigned, CertificateError> {
    let mut ca = params(&[], "headroom self-made CA")?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate().map_err(CertificateError::Make)?;
    let ca = CertifiedIssuer::self_signed(ca, ca_key).map_err(CertificateError::Make)?;

    let mut leaf = params(names, "headroom")?;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(CertificateError::Make)?;
    let leaf = leaf.signed_by(&key, &ca).map_err(CertificateError::Make)?;
    Ok(SelfSigned { certificate_pem: leaf.pem(), key_pem: key.serialize_pem(), ca_pem: ca.pem() })
}

fn params(names: &[&str], common_name: &str) -> Result<CertificateParams, CertificateError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).map_err(CertificateError::Make)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    let today = jiff::Timestamp::now().to_zoned(TimeZone::UTC).date();
    // A calendar has no negative month or day, so nothing is lost.
    let midnight = |date: jiff::civil::Date| {
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    let start = today.checked_sub(1.day()).map_err(CertificateError::Validity)?;
    let end = today.checked_add(365.days()).map_err(CertificateError::Validity)?;
    params.not_before = midnight(start);
    params.not_after = midnight(end);
    Ok(params)
}
