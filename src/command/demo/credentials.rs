//! The demo's certificates and token, in a folder of its own that goes when the demo ends.
//!
//! A demo that was killed leaves its folder, with the key in it, to the next one, which removes it.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::adapter::self_signed;

/// Names in the folder.
pub(super) const CERTIFICATE: &str = "tls.crt";
pub(super) const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
/// What a shell reads to speak to the adapter: `CA`, `TOKEN` and `API`.
const SHELL: &str = "env";
/// Of the folder's name; the process id follows.
const FOLDER: &str = "headroom-demo-";

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
        let temporary = std::env::temp_dir();
        remove_left_behind(&temporary);
        let folder = temporary.join(format!("{FOLDER}{}", std::process::id()));
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

    /// Writes what a shell needs to speak to the adapter; the command that reads it.
    pub(super) fn write_shell(&self, adapter: SocketAddr) -> anyhow::Result<String> {
        let ca = quoted(&self.folder.join(CA).display().to_string());
        let (token, api) = (quoted(&self.token), quoted(&api(adapter)));
        self.write(SHELL, &format!("CA={ca}\nTOKEN={token}\nAPI={api}\n"))?;
        Ok(format!(". {}", quoted(&self.folder.join(SHELL).display().to_string())))
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

/// Where the demo's adapter serves its metrics.
pub(super) fn api(adapter: SocketAddr) -> String {
    format!("https://{adapter}/apis/external.metrics.k8s.io/v1beta1/namespaces/default")
}

/// One word for a POSIX shell, whatever is in it.
fn quoted(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._:-".contains(character);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Removes the folders of killed demos: named as ours, of this user, and of a process that is gone.
fn remove_left_behind(temporary: &Path) {
    let Ok(own) = fs::metadata("/proc/self") else { return };
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(FOLDER));
        let Some(process) = process.and_then(|id| id.parse::<u32>().ok()) else { continue };
        // Our own id is ours again only because the other is gone.
        let runs =
            process != std::process::id() && Path::new("/proc").join(process.to_string()).exists();
        let ours = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == own.uid());
        if ours && !runs {
            // What cannot be removed is left to the next demo.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        // What cannot be removed is a few kilobytes in the temporary folder.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_whatever_was_quoted() {
        for text in ["", "plain-1.2_3", "it's", "a\"b c", "$(false) `x` \\ ;&|*", "'"] {
            let script = format!("printf %s {}", quoted(text));
            let output = std::process::Command::new("sh").args(["-c", &script]).output();
            assert_eq!(String::from_utf8(output.expect("a shell").stdout).as_deref(), Ok(text));
        }
    }

    #[test]
    fn only_folders_of_demos_that_are_gone_are_removed() {
        let temporary = tempfile::tempdir().expect("a folder");
        // Above any process id that Linux gives out.
        let gone = format!("{FOLDER}4194305");
        let kept = [format!("{FOLDER}1"), format!("{FOLDER}x"), "other".to_owned()];
        for name in kept.iter().chain([&gone]) {
            let folder = temporary.path().join(name);
            fs::create_dir(&folder).expect("a folder");
            fs::write(folder.join(KEY), "secret").expect("a file");
        }
        std::os::unix::fs::symlink("other", temporary.path().join(format!("{FOLDER}4194306")))
            .expect("a link");
        remove_left_behind(temporary.path());
        assert!(!temporary.path().join(&gone).exists());
        for name in kept {
            assert!(temporary.path().join(&name).join(KEY).exists(), "{name}");
        }
    }
}
