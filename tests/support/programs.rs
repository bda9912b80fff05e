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

/// The path of `etcd`, `kube-apiserver`, `kube-controller-manager` or `kubectl`, built if need be:
/// the first time this takes minutes.
///
/// # Errors
/// The build fails; its own output says why.
pub(crate) fn kubernetes(program: &str) -> Result<PathBuf> {
    static DIRECTORY: Built = OnceLock::new();
    let directory = DIRECTORY
        .get_or_init(|| build("kubernetes").map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("the real Kubernetes is missing: {error}"))?;
    Ok(directory.join(program))
}

/// The path of `helm` or `kustomize`, or of the directory `definitions` with those of other projects; built if need be.
///
/// # Errors
/// The build fails; its own output says why.
pub(crate) fn packaging(name: &str) -> Result<PathBuf> {
    static DIRECTORY: Built = OnceLock::new();
    let directory = DIRECTORY
        .get_or_init(|| build("packaging").map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("helm and kustomize are missing: {error}"))?;
    Ok(directory.join(name))
}

/// The path of `prometheus` or `promtool`, built if need be.
///
/// # Errors
/// The build fails; its own output says why.
pub(crate) fn monitoring(program: &str) -> Result<PathBuf> {
    static DIRECTORY: Built = OnceLock::new();
    let directory = DIRECTORY
        .get_or_init(|| build("monitoring").map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("the real Prometheus is missing: {error}"))?;
    Ok(directory.join(program))
}

/// Where a build is, or why it is not.
type Built = OnceLock<Result<PathBuf, String>>;

fn build(what: &str) -> Result<PathBuf> {
    let script = checkout().join("tests").join(what).join("build.sh");
    let output = Command::new(&script)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(output.status.success(), "{} failed: {}", script.display(), output.status);
    let text = String::from_utf8(output.stdout)?;
    let directory = text.lines().last().context("the build names no directory")?;
    Ok(PathBuf::from(directory))
}
