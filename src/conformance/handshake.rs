//! What a server asks of its clients in the TLS handshake.
//!
//! In: an address. Out: the names in its CertificateRequest, if it sends one. Never: a byte of HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The distinguished names (DER) of the authorities that a server wants client certificates from; an empty list wants any.
pub(super) type Wanted = Vec<Vec<u8>>;

/// The names that the server asks for, or `None` if it asks for no certificate. The error is a sentence.
pub(super) async fn wanted(at: SocketAddr, name: &str) -> Result<Option<Wanted>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let asked = Arc::new(Asked::default());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_client_cert_resolver(asked.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let handshake = async {
        let stream = TcpStream::connect(at).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    // The server may refuse a client without a certificate; what it asked for is known all the same.
    let ended = tokio::time::timeout(Duration::from_secs(5), handshake).await;
    let wanted = asked.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match (wanted, ended) {
        (Some(wanted), _) => Ok(Some(wanted)),
        (None, Ok(Ok(_))) => Ok(None),
        (None, Ok(Err(error))) => Err(error.to_string()),
        (None, Err(_)) => Err("no end of the handshake within 5 s".to_owned()),
    }
}

/// The issuer (DER) of the first certificate.
pub(super) fn issuer(certificate_pem: &[u8]) -> Option<Vec<u8>> {
    let der = CertificateDer::from_pem_slice(certificate_pem).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(certificate.tbs_certificate.issuer.as_raw().to_vec())
}

/// Remembers what it was asked for, and shows nothing.
#[derive(Debug, Default)]
struct Asked(Mutex<Option<Wanted>>);

impl ResolvesClientCert for Asked {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let names = root_hint_subjects.iter().map(|name| name.to_vec()).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(names);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes every server, since nothing is said to it.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
