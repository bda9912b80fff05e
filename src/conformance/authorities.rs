//! The authorities and client certificates that the suite makes, to have the adapter believe them through a fixture.
//!
//! In: nothing. Out: PEM. Never: a key that outlives the run.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::options::ClientCertificate;

/// The common name that the front proxy's certificate has in every cluster that kubeadm makes.
pub(super) const PROXY_NAME: &str = "front-proxy-client";

/// A certificate authority.
pub(super) struct Authority {
    /// Its certificate.
    pub(super) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// A client certificate for this common name.
    pub(super) fn client(&self, name: &str) -> Result<ClientCertificate, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate_pem = params.signed_by(&key, &self.issuer)?.pem().into_bytes();
        Ok(ClientCertificate { certificate_pem, key_pem: key.serialize_pem().into_bytes() })
    }
}
