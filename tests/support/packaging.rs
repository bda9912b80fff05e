//! What an administrator applies: `manifests/` as kustomize builds it, and the chart as Helm renders it.
//!
//! In: components, values. Out: text for kubectl, or objects. Never: an object that is changed on the way.

use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::control_plane::ControlPlane;
use super::programs::{checkout, packaging};

/// The namespace that the manifests name.
pub(crate) const NAMESPACE: &str = "headroom-system";
/// The release of the chart.
pub(crate) const RELEASE: &str = "headroom";

/// The directory of the chart.
pub(crate) fn chart() -> PathBuf {
    checkout().join("manifests/helm/headroom")
}

/// The base with these components of `manifests/components`, built by kustomize.
///
/// # Errors
/// kustomize refuses it.
pub(crate) fn kustomized(components: &[&str]) -> Result<String> {
    let directory = TempDir::with_prefix_in("overlay-", env!("CARGO_TARGET_TMPDIR"))?;
    let manifests = from_there(directory.path(), &checkout().join("manifests"))?;
    let path = |component: &&str| format!("{manifests}/components/{component}");
    // JSON is YAML.
    let overlay = json!({
        "resources": [format!("{manifests}/base")],
        "components": components.iter().map(path).collect::<Vec<_>>(),
    });
    std::fs::write(directory.path().join("kustomization.yaml"), overlay.to_string())?;
    let mut command = Command::new(packaging("kustomize")?);
    command.arg("build").arg(directory.path());
    output(command)
}

/// The path of `to` from `from`, both absolute: kustomize takes no other.
fn from_there(from: &Path, to: &Path) -> Result<String> {
    let from = from.canonicalize()?;
    let up = from.components().filter(|part| matches!(part, Component::Normal(_)));
    let up = vec![".."; up.count()].join("/");
    let down = to.canonicalize()?;
    Ok(format!("{up}{}", down.to_str().context("a path that is no text")?))
}

/// Helm, with nothing of the user's own configuration.
///
/// # Errors
/// It cannot be built.
pub(crate) fn helm(home: &Path) -> Result<Command> {
    let mut command = Command::new(packaging("helm")?);
    command.env("HOME", home).env_remove("KUBECONFIG");
    for (variable, directory) in
        [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
    {
        command.env(variable, home.join(directory));
    }
    Ok(command)
}

/// The chart with these `--set` values, for a release in this namespace.
///
/// # Errors
/// Helm refuses it.
pub(crate) fn charted(namespace: &str, values: &[&str]) -> Result<String> {
    let home = TempDir::new()?;
    let mut command = helm(home.path())?;
    command.args(["template", RELEASE]).arg(chart()).args(["--namespace", namespace]);
    for value in values {
        command.args(["--set", value]);
    }
    output(command)
}

/// Runs it; its stdout.
///
/// # Errors
/// It fails: the message holds its stderr.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let output = tokio::task::block_in_place(|| command.output())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// Makes the kinds of cert-manager and the Prometheus Operator known that the components use.
///
/// # Errors
/// The API server refuses one, or does not serve it within a minute.
pub(crate) fn define_kinds_of_others(plane: &ControlPlane) -> Result<()> {
    let definitions = packaging("definitions")?.display().to_string();
    plane.kubectl(&["apply", "--server-side", "-f", &definitions])?;
    let established = ["wait", "--for=condition=Established", "--timeout=60s", "-f", &definitions];
    plane.kubectl(&established).map(drop)
}

/// The objects of a text of several documents.
///
/// # Errors
/// It is no YAML.
pub(crate) fn objects(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Every file below a directory whose name ends so.
///
/// # Errors
/// A directory cannot be read.
pub(crate) fn files(directory: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.append(&mut files(&path, ending)?);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
