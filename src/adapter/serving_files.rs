//! The serving certificate from files: `--tls-cert-file` and `--tls-private-key-file`.
//!
//! In: two PEM files, read again every few seconds. Out: their content, given to the listener by `install` when it has
//! changed. Never: a bad pair in place of the last good one. Content is compared, not times: a Secret volume is updated by
//! swapping a symlink.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::pem::parse_x509_pem;

use super::serving_certificate::{InstallError, ServingMetrics, chain};
use crate::time::{Timestamp, wall_now};

/// The files are read so often; two small reads.
const POLL_PERIOD: Duration = Duration::from_secs(5);

/// No chain or key is larger.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why the files give no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServingFilesError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is too large to be what it should be.
    #[error("{} is larger than {MAX_FILE_BYTES} bytes", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The first block of the certificate file is no X.509 certificate.
    #[error("{} does not begin with a PEM certificate", .path.display())]
    NotACertificate {
        /// The file.
        path: PathBuf,
    },
    /// The listener refused the pair, such as a key of another certificate.
    #[error("the certificate and key are not usable together")]
    Install(#[source] InstallError),
}

/// Keeps the listener on what the two files hold.
pub struct ServingFiles<I> {
    paths: Paths,
    install: I,
    metrics: ServingMetrics,
    /// The content last tried, good or bad, so that each is tried and reported once.
    tried: Option<Content>,
    unreadable: bool,
}

#[derive(Clone, Debug)]
struct Paths {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Clone, PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl<I> ServingFiles<I>
where
    I: Fn(&[u8], &[u8]) -> Result<(), InstallError> + Send + Sync,
{
    /// Reads and installs the pair once, so that a program with bad files does not start.
    ///
    /// # Errors
    /// [`ServingFilesError`] if a file cannot be read or the listener refuses the pair.
    pub fn load(
        certificate: PathBuf,
        key: PathBuf,
        metrics: ServingMetrics,
        install: I,
    ) -> Result<Self, ServingFilesError> {
        let paths = Paths { certificate, key };
        let content = read(&paths)?;
        let mut files = Self { paths, install, metrics, tried: None, unreadable: false };
        files.take(content)?;
        Ok(files)
    }

    /// Follows the files until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        self.run_every(POLL_PERIOD, shutdown).await;
    }

    async fn run_every(mut self, period: Duration, shutdown: CancellationToken) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => self.poll().await,
            }
        }
    }

    async fn poll(&mut self) {
        let paths = self.paths.clone();
        // A volume may be slow or gone; that must not hold up a thread that serves.
        let content = tokio::task::spawn_blocking(move || read(&paths)).await;
        let Ok(content) = content else { return };
        let was_unreadable = std::mem::replace(&mut self.unreadable, content.is_err());
        let outcome = match content {
            Ok(content) if self.tried.as_ref() == Some(&content) => Ok(()),
            Ok(content) => self.take(content),
            Err(_) if was_unreadable => return,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            self.metrics.failed();
            warn!(error = chain(&error), "kept the last good serving certificate");
        }
    }

    fn take(&mut self, content: Content) -> Result<(), ServingFilesError> {
        let Content { certificate, key } = &content;
        let not_after = not_after(certificate);
        let outcome = not_after
            .ok_or_else(|| ServingFilesError::NotACertificate {
                path: self.paths.certificate.clone(),
            })
            .and_then(|not_after| {
                (self.install)(certificate, key).map_err(ServingFilesError::Install)?;
                Ok(not_after)
            });
        self.tried = Some(content);
        let not_after = outcome?;
        self.metrics.in_use(not_after);
        if not_after <= wall_now() {
            warn!(%not_after, "the serving certificate has expired");
        } else {
            info!(%not_after, "installed the serving certificate of the files");
        }
        Ok(())
    }
}

fn read(paths: &Paths) -> Result<Content, ServingFilesError> {
    Ok(Content { certificate: read_bounded(&paths.certificate)?, key: read_bounded(&paths.key)? })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ServingFilesError> {
    let read_error = |source| ServingFilesError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read_error)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ServingFilesError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// The end of the first certificate, which is the leaf.
fn not_after(certificate_pem: &[u8]) -> Option<Timestamp> {
    let (_, block) = parse_x509_pem(certificate_pem).ok()?;
    let seconds = block.parse_x509().ok()?.validity().not_after.timestamp();
    Some(Timestamp::from_millis(seconds.saturating_mul(1000)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use prometheus::Registry;

    use super::*;

    type Installed = Arc<Mutex<Vec<Vec<u8>>>>;
    type Install = Box<dyn Fn(&[u8], &[u8]) -> Result<(), InstallError> + Send + Sync>;

    struct Pair {
        certificate: String,
        key: String,
    }

    fn pair() -> Pair {
        let made =
            rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a valid name");
        Pair { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    /// As a kubelet does: a new directory, and a symlink that is replaced in one step.
    fn publish(volume: &Path, version: &str, pair: &Pair) {
        let directory = volume.join(version);
        std::fs::create_dir(&directory).expect("a new version");
        std::fs::write(directory.join("tls.crt"), &pair.certificate).expect("writable");
        std::fs::write(directory.join("tls.key"), &pair.key).expect("writable");
        let link = volume.join("..data_tmp");
        std::os::unix::fs::symlink(version, &link).expect("no such link");
        std::fs::rename(link, volume.join("..data")).expect("the same directory");
    }

    /// Installs like the listener: a pair that rustls refuses is refused.
    fn checked_install(installed: &Installed) -> Install {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let installed = installed.clone();
        Box::new(move |certificate, key| {
            let chain =
                CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
            let key = PrivateKeyDer::from_pem_slice(key)?;
            let provider = rustls::crypto::ring::default_provider();
            rustls::sign::CertifiedKey::from_der(chain, key, &provider)?;
            installed.lock().push(certificate.to_vec());
            Ok(())
        })
    }

    fn failures(registry: &Registry) -> f64 {
        let families = registry.gather();
        let failures = families.iter().find(|family| family.name().ends_with("failures_total"));
        failures.expect("it is registered").get_metric()[0].get_counter().get_value()
    }

    fn load(
        volume: &Path,
        installed: &Installed,
        registry: &Registry,
    ) -> Result<ServingFiles<Install>, ServingFilesError> {
        let metrics = ServingMetrics::register(registry).expect("the registry is empty");
        let data = volume.join("..data");
        ServingFiles::load(
            data.join("tls.crt"),
            data.join("tls.key"),
            metrics,
            checked_install(installed),
        )
    }

    #[tokio::test]
    async fn a_swapped_volume_is_installed_and_a_bad_one_keeps_the_last_good_pair() {
        let volume = tempfile::tempdir().expect("a directory");
        let (installed, registry) = (Installed::default(), Registry::new());
        let first = pair();
        publish(volume.path(), "v1", &first);
        let mut files = load(volume.path(), &installed, &registry).expect("a good pair");
        files.poll().await;
        assert_eq!(
            *installed.lock(),
            [first.certificate.as_bytes()],
            "unchanged content is not installed again"
        );

        let mismatched = Pair { certificate: pair().certificate, key: pair().key };
        let not_pem = Pair { certificate: "oops".to_owned(), key: first.key.clone() };
        for (version, bad) in [("v2", mismatched), ("v3", not_pem)] {
            publish(volume.path(), version, &bad);
            let before = failures(&registry);
            files.poll().await;
            files.poll().await;
            assert_eq!(
                (failures(&registry) - before).to_string(),
                "1",
                "{version} is reported once"
            );
            assert_eq!(installed.lock().len(), 1, "{version} is not installed");
        }
        std::fs::remove_file(volume.path().join("..data")).expect("it is a link");
        files.poll().await;
        assert_eq!(failures(&registry).to_string(), "3", "a volume that is gone is a failure too");

        let second = pair();
        publish(volume.path(), "v4", &second);
        files.poll().await;
        assert_eq!(installed.lock().last().expect("two"), second.certificate.as_bytes());
    }

    #[tokio::test]
    async fn a_change_is_seen_without_being_asked() {
        let volume = tempfile::tempdir().expect("a directory");
        let (installed, registry) = (Installed::default(), Registry::new());
        publish(volume.path(), "v1", &pair());
        let files = load(volume.path(), &installed, &registry).expect("a good pair");
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(files.run_every(Duration::from_millis(10), shutdown.clone()));
        let second = pair();
        publish(volume.path(), "v2", &second);
        let seen = async {
            while installed.lock().len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), seen)
            .await
            .expect("it is seen within a minute");
        assert_eq!(installed.lock().last().expect("two"), second.certificate.as_bytes());
        shutdown.cancel();
        task.await.expect("it ends without a panic");
    }

    #[test]
    fn bad_files_at_the_start_are_an_error_that_names_the_file() {
        let volume = tempfile::tempdir().expect("a directory");
        let outcome = load(volume.path(), &Installed::default(), &Registry::new());
        let error = outcome.err().expect("there is no file");
        assert!(error.to_string().ends_with("..data/tls.crt"), "{error}");
    }
}
