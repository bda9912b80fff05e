//! The demo's certificates and token, in a folder of its own that goes when the demo ends.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::adapter::self_signed;

/// Names in the folder.
pub(super) const CERTIFICATE: &str = "tls.crt";
pub(super) const KEY: &str = "tls.key";
const CA: &str = "ca.crt";

#[derive(Debug)]
pub(super) struct Credentials {
    folder: PathBuf,
    pub ca_pem: Vec<u8>,
    pub token: String,
}

impl Credentials {
    /// Makes a CA, a certificate for 127.0.0.1 and localhost, and a random token unless one is given.
    pub(super) fn make(token: Option<String>) -> anyhow::Result<Self> {
        let made = self_signed(&["localhost", "127.0.0.1"])
            .context("cannot make the demo's certificate")?;
        let folder = std::env::temp_dir().join(format!("headroom-demo-{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let token = token
            .filter(|token| !token.is_empty())
            .unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        let credentials = Self { folder, ca_pem: made.ca_pem.clone().into_bytes(), token };
        credentials.write(CA, &made.ca_pem)?;
        credentials.write(CERTIFICATE, &made.certificate_pem)?;
        credentials.write(KEY, &made.key_pem)?;
        Ok(credentials)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn ca_file(&self) -> PathBuf {
        self.folder.join(CA)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        // What cannot be removed is a few kilobytes in the temporary folder.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
