//! The certificates of a control plane, made fresh for each.
//!
//! In: a directory. Out: PEM files in it. Never: anything that outlives the directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Where the files are; a certificate's key is beside it with the extension `key`.
#[derive(Debug)]
pub(crate) struct Pki {
    dir: PathBuf,
}

/// The common name that kube-apiserver's front proxy shows to aggregated API servers.
pub(crate) const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

impl Pki {
    /// Makes three authorities (serving, client, front proxy), the API server's certificate for
    /// 127.0.0.1, client certificates of the administrator, the controller manager and the front
    /// proxy, and the key of service-account tokens.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let pki = Self { dir: dir.to_path_buf() };
        let serving = pki.authority("serving-ca")?;
        let names = ["127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc", "10.96.0.1"];
        let mut params = CertificateParams::new(names.map(String::from))?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        pki.issue("apiserver", params, &serving)?;

        let client = pki.authority("client-ca")?;
        pki.client("admin", "headroom-test-admin", Some("system:masters"), &client)?;
        pki.client("controller-manager", "system:kube-controller-manager", None, &client)?;
        pki.client("impostor", FRONT_PROXY_CLIENT, None, &client)?;
        let front_proxy = pki.authority("front-proxy-ca")?;
        pki.client("front-proxy", FRONT_PROXY_CLIENT, None, &front_proxy)?;

        let key = KeyPair::generate()?;
        fs::write(pki.key("service-account"), key.serialize_pem())?;
        fs::write(pki.certificate("service-account"), key.public_key_pem())?;
        Ok(pki)
    }

    /// The certificate (of `service-account`: the public key) in PEM.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.dir.join(name).with_extension("crt")
    }

    /// The private key in PEM.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.dir.join(name).with_extension("key")
    }

    /// Makes a next authority of the front proxy and a certificate of it, and has the API server and whoever it tells
    /// trust that authority beside the first: the first step of a rotation.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn add_front_proxy_authority(&self) -> Result<()> {
        let next = self.authority("front-proxy-ca-next")?;
        self.client("front-proxy-next", FRONT_PROXY_CLIENT, None, &next)?;
        let mut both = fs::read(self.certificate("front-proxy-ca"))?;
        both.extend(fs::read(self.certificate("front-proxy-ca-next"))?);
        replace(&self.certificate("front-proxy-ca"), &both)
    }

    /// The front proxy shows the certificate of the next authority from now on: the second step.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn change_front_proxy(&self) -> Result<()> {
        replace(&self.key("front-proxy"), &fs::read(self.key("front-proxy-next"))?)?;
        replace(&self.certificate("front-proxy"), &fs::read(self.certificate("front-proxy-next"))?)
    }

    /// Makes an authority of its own for one Service, and a certificate of it for the name by which kube-apiserver asks, as
    /// cert-manager does with the Certificates that are shipped: files `NAME-ca` and `NAME`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn serving(&self, name: &str, dns_names: &[String]) -> Result<()> {
        let authority = self.authority(&format!("{name}-ca"))?;
        let mut params = CertificateParams::new(dns_names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(name, params, &authority)
    }

    fn authority(&self, name: &str) -> Result<Issuer<'static, KeyPair>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        fs::write(self.certificate(name), params.self_signed(&key)?.pem())?;
        Ok(Issuer::new(params, key))
    }

    fn client(
        &self,
        file: &str,
        user: &str,
        group: Option<&str>,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<()> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, params, issuer)
    }

    fn issue(
        &self,
        file: &str,
        params: CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        fs::write(self.certificate(file), params.signed_by(&key, issuer)?.pem())?;
        fs::write(self.key(file), key.serialize_pem())?;
        Ok(())
    }
}

/// Replaces a file whole: no reader sees a half.
fn replace(file: &Path, content: &[u8]) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, content)?;
    Ok(fs::rename(&new, file)?)
}
