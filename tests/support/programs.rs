//! The real Kubernetes programs and our own binary.
//!
//! In: `tests/{kubernetes,packaging,monitoring}/build.sh`, or their results. Out: paths. Never: a program found on the PATH.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};

/// Our own binary, built by Cargo for this test.
pub(crate) const HEADROOM: &str = env!("CARGO_BIN_EXE_headroom");

/// The checkout.
pub(crate) fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The command of a container that runs an ignored test of this binary.
pub(crate) fn this_binary(test: &str) -> Value {
    let binary = std::env::current_exe().expect("/proc is mounted, or no pod's process is found");
    json!([binary, "--ignored", "--exact", test])
}

/// Programs of others that are built for the tests: the first time this takes minutes.
struct Programs {
    /// The folder in `tests/` with their `build.sh`.
    folder: &'static str,
    missing: &'static str,
    /// Where they are, or why they are not.
    built: OnceLock<Result<PathBuf, String>>,
}

impl Programs {
    const fn new(folder: &'static str, missing: &'static str) -> Self {
        Self { folder, missing, built: OnceLock::new() }
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let built = self.built.get_or_init(|| self.build().map_err(|error| format!("{error:#}")));
        let directory = built.as_ref().map_err(|error| anyhow!("{}: {error}", self.missing))?;
        Ok(directory.join(name))
    }

    fn build(&self) -> Result<PathBuf> {
        let script = checkout().join("tests").join(self.folder).join("build.sh");
        let output = Command::new(&script)
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", script.display()))?;
        ensure!(output.status.success(), "{} failed: {}", script.display(), output.status);
        let text = String::from_utf8(output.stdout)?;
        let directory = text.lines().last().context("the build names no directory")?;
        Ok(PathBuf::from(directory))
    }
}

static KUBERNETES: Programs = Programs::new("kubernetes", "the real Kubernetes is missing");
static PACKAGING: Programs = Programs::new("packaging", "helm and kustomize are missing");
static MONITORING: Programs = Programs::new("monitoring", "the real Prometheus is missing");

/// The path of `etcd`, `kube-apiserver`, `kube-controller-manager` or `kubectl`.
///
/// # Errors
/// The build fails; its own output says why.
pub(crate) fn kubernetes(program: &str) -> Result<PathBuf> {
    KUBERNETES.path(program)
}

/// The path of `helm` or `kustomize`, or of the directory `definitions` with those of other projects.
///
/// # Errors
/// The build fails; its own output says why.
pub(crate) fn packaging(name: &str) -> Result<PathBuf> {
    PACKAGING.path(name)
}

/// The path of `prometheus` or `promtool`.
///
/// # Errors
/// The build fails; its own output says why.
pub(crate) fn monitoring(program: &str) -> Result<PathBuf> {
    MONITORING.path(program)
}
