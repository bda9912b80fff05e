//! The serving CA as X.509: made, read back, rotated, and what it signs.
//!
//! In: PEM text and `now`. Out: an [`Authority`] with the bundle to trust, and [`Leaf`] certificates. Never: a clock, a
//! network, or a CA whose key does not match.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, UNIX_EPOCH};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::time::Timestamp;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// From the making of a CA to its end. Rotated after two thirds, so that an adapter may be off for four months.
pub(super) const CA_LIFETIME: Duration = DAY.saturating_mul(365);

/// From the signing of a leaf to its end. Renewed after two thirds.
pub(super) const LEAF_LIFETIME: Duration = DAY.saturating_mul(30);

/// Certificates begin so long before they are made: clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// A replaced CA is trusted until every leaf it can have signed has ended, and a day more for clocks and slow replicas.
const RETIRE_AFTER: Duration = LEAF_LIFETIME.saturating_add(DAY);

/// Replaced CAs in the bundle; more than one only after several were lost or replaced by hand within a month.
const MAX_OLDER: usize = 4;

/// The common name of every CA made here starts so.
const COMMON_NAME: &str = "headroom-serving-ca";

const CERTIFICATE_KEY: &str = "tls.crt";
const PRIVATE_KEY_KEY: &str = "tls.key";
const BUNDLE_KEY: &str = "ca-bundle.crt";

/// Why something is not a usable CA, or could not be made one.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A key of the Secret is absent while others are there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Not text, or not PEM of a certificate.
    #[error("{0} is not a PEM certificate")]
    Certificate(&'static str),
    /// The certificate may not sign others.
    #[error("{CERTIFICATE_KEY} is not the certificate of a CA")]
    NotACa,
    /// The private key is of another certificate.
    #[error("{PRIVATE_KEY_KEY} does not match {CERTIFICATE_KEY}")]
    KeyMismatch,
    /// Making keys or certificates failed, or the key is in no known form.
    #[error("cannot use the key or sign with it")]
    Sign(#[from] rcgen::Error),
}

/// One certificate of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CaCertificate {
    pem: String,
    der: Vec<u8>,
    common_name: String,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl CaCertificate {
    fn parse(pem: &str) -> Option<Self> {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
        let (_, certificate) = X509Certificate::from_der(&block.contents).ok()?;
        let common_name =
            certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Some(Self {
            pem: format!("{}\n", pem.trim()),
            common_name: common_name.unwrap_or_default().to_owned(),
            not_before: seconds(certificate.validity().not_before.timestamp()),
            not_after: seconds(certificate.validity().not_after.timestamp()),
            der: block.contents,
        })
    }

    /// The certificates of a bundle that can be read.
    pub(super) fn parse_all(bundle: &str) -> Vec<Self> {
        const END: &str = "-----END CERTIFICATE-----";
        bundle.split_inclusive(END).filter_map(Self::parse).collect()
    }

    /// Whether it was made by this program, for an earlier Secret perhaps.
    pub(super) fn is_ours(&self) -> bool {
        self.common_name.starts_with(COMMON_NAME)
    }

    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }
}

/// What a leaf is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeafNames {
    pub(super) service: String,
    pub(super) namespace: String,
    pub(super) pod_ip: Option<IpAddr>,
}

impl LeafNames {
    /// The first is the name that kube-apiserver verifies.
    fn subject_alternative_names(&self) -> Vec<String> {
        let Self { service, namespace, pod_ip } = self;
        let mut names = vec![
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
            "localhost".to_owned(),
            Ipv4Addr::LOCALHOST.to_string(),
        ];
        names.extend(
            pod_ip.filter(|ip| *ip != IpAddr::V4(Ipv4Addr::LOCALHOST)).map(|ip| ip.to_string()),
        );
        names
    }
}

/// A serving certificate with its key.
pub(super) struct Leaf {
    pub(super) certificate_pem: String,
    pub(super) key_pem: String,
    pub(super) issuer_der: Vec<u8>,
    pub(super) renew_at: Timestamp,
    pub(super) not_after: Timestamp,
}

/// The CA in use, and those it replaced that are still to be trusted, newest first.
pub(super) struct Authority {
    certificate: CaCertificate,
    issuer: Issuer<'static, KeyPair>,
    key_pem: String,
    older: Vec<CaCertificate>,
}

impl Authority {
    /// A new CA, beside which `older` ones stay trusted while they last.
    pub(super) fn generate(
        now: Timestamp,
        mut older: Vec<CaCertificate>,
    ) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::default();
        // The time in the name: chains are built by name, so two CAs must not share one.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{COMMON_NAME}@{}", now.as_millis()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        set_validity(&mut params, now, now + CA_LIFETIME);
        let pem = params.self_signed(&key)?.pem();
        let certificate =
            CaCertificate::parse(&pem).ok_or(AuthorityError::Certificate(CERTIFICATE_KEY))?;
        older.retain(|ca| ca.not_after > now);
        older.sort_by(|a, b| (b.not_before, &b.der).cmp(&(a.not_before, &a.der)));
        older.dedup();
        older.truncate(MAX_OLDER);
        Ok(Self { certificate, issuer: Issuer::new(params, key), key_pem, older })
    }

    /// Reads a CA back. `None` if the Secret holds none yet.
    pub(super) fn from_secret(secret: &Secret) -> Result<Option<Self>, AuthorityError> {
        let data = secret.data.as_ref();
        let text = |key: &'static str| {
            data.and_then(|data| data.get(key))
                .filter(|bytes| !bytes.0.is_empty())
                .map(|bytes| {
                    std::str::from_utf8(&bytes.0).map_err(|_| AuthorityError::Certificate(key))
                })
                .transpose()
        };
        let (certificate, key_pem) = match (text(CERTIFICATE_KEY)?, text(PRIVATE_KEY_KEY)?) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(AuthorityError::Missing(CERTIFICATE_KEY)),
            (Some(_), None) => return Err(AuthorityError::Missing(PRIVATE_KEY_KEY)),
            (Some(certificate), Some(key)) => (certificate, key),
        };
        let certificate = CaCertificate::parse(certificate)
            .ok_or(AuthorityError::Certificate(CERTIFICATE_KEY))?;
        let key = KeyPair::from_pem(key_pem)?;
        check_pair(&certificate, &key)?;
        let mut older = CaCertificate::parse_all(text(BUNDLE_KEY)?.unwrap_or_default());
        older.retain(|ca| *ca != certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate.der.as_slice().into(), key)?;
        Ok(Some(Self { certificate, issuer, key_pem: key_pem.to_owned(), older }))
    }

    /// The data of a Secret of type `kubernetes.io/tls` that [`Authority::from_secret`] reads back.
    pub(super) fn secret_data(&self) -> BTreeMap<String, ByteString> {
        [
            (CERTIFICATE_KEY, self.certificate.pem.clone()),
            (PRIVATE_KEY_KEY, self.key_pem.clone()),
            (BUNDLE_KEY, self.bundle()),
        ]
        .map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
        .into()
    }

    /// Every CA to trust, the one in use first, as PEM.
    pub(super) fn bundle(&self) -> String {
        self.trusted().map(|ca| ca.pem.as_str()).collect()
    }

    /// Every CA to trust, the one in use first.
    pub(super) fn trusted(&self) -> impl Iterator<Item = &CaCertificate> {
        std::iter::once(&self.certificate).chain(&self.older)
    }

    pub(super) fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// Whether two thirds of the CA's life are over.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        now >= two_thirds(self.certificate.not_before, self.certificate.not_after)
    }

    /// Whether CAs are in the bundle of which no leaf can be in use any more.
    pub(super) fn has_retired(&self, now: Timestamp) -> bool {
        self.older.iter().any(|ca| !self.is_needed(ca, now))
    }

    /// The same without those CAs.
    pub(super) fn without_retired(mut self, now: Timestamp) -> Self {
        let older = std::mem::take(&mut self.older);
        self.older = older.into_iter().filter(|ca| self.is_needed(ca, now)).collect();
        self
    }

    /// Whether a leaf of a replaced CA may be in use still.
    fn is_needed(&self, older: &CaCertificate, now: Timestamp) -> bool {
        now < older.not_after && now < self.certificate.not_before + CLOCK_SKEW + RETIRE_AFTER
    }

    /// A new key and certificate for `names`, which end no later than the CA.
    pub(super) fn sign(&self, names: &LeafNames, now: Timestamp) -> Result<Leaf, AuthorityError> {
        let mut params = CertificateParams::new(names.subject_alternative_names())?;
        params.distinguished_name.push(DnType::CommonName, names.service.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let not_after = (now + LEAF_LIFETIME).min(self.certificate.not_after);
        set_validity(&mut params, now, not_after);
        let key = KeyPair::generate()?;
        Ok(Leaf {
            certificate_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: key.serialize_pem(),
            issuer_der: self.certificate.der.clone(),
            renew_at: two_thirds(now, not_after),
            not_after,
        })
    }
}

fn check_pair(certificate: &CaCertificate, key: &KeyPair) -> Result<(), AuthorityError> {
    let (_, parsed) = X509Certificate::from_der(&certificate.der)
        .map_err(|_| AuthorityError::Certificate(CERTIFICATE_KEY))?;
    if !parsed.is_ca() {
        return Err(AuthorityError::NotACa);
    }
    let public_key = &*parsed.public_key().subject_public_key.data;
    if public_key == key.der_bytes() { Ok(()) } else { Err(AuthorityError::KeyMismatch) }
}

/// From `now` less the allowed skew to `not_after`.
fn set_validity(params: &mut CertificateParams, now: Timestamp, not_after: Timestamp) {
    let since_epoch = |time: Timestamp| time.since(Timestamp::default());
    params.not_before = (UNIX_EPOCH + since_epoch(now).saturating_sub(CLOCK_SKEW)).into();
    params.not_after = (UNIX_EPOCH + since_epoch(not_after)).into();
}

fn two_thirds(from: Timestamp, to: Timestamp) -> Timestamp {
    from + to.since(from) / 3 * 2
}

fn seconds(since_epoch: i64) -> Timestamp {
    Timestamp::from_millis(since_epoch.saturating_mul(1000))
}
