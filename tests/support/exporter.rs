//! A pod whose metrics are the text of a file, so that a test can change or lose a family at will.
//!
//! In: the file named by HEADROOM_TEST_METRICS_FILE. Out: its text, for every path, on port 9469 of the
//! pod's address. Never: run by a test directly; the node of the tests runs this binary as a container.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use axum::Router;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::control_plane::ControlPlane;
use super::programs::this_binary;
use super::shared::run;
use super::workload::deployment;

const FILE: &str = "HEADROOM_TEST_METRICS_FILE";

/// The metrics that all pods of one workload show.
#[derive(Debug)]
pub(crate) struct Exporter {
    file: PathBuf,
}

impl Exporter {
    /// Writes the first text.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn new(plane: &ControlPlane, namespace: &str, text: &str) -> Result<Self> {
        let exporter = Self { file: plane.dir().join(format!("{namespace}.prom")) };
        exporter.show(text)?;
        Ok(exporter)
    }

    /// Replaces the text, whole: no reader sees a half.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn show(&self, text: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, &self.file)?;
        Ok(())
    }

    /// A Deployment whose pods show it.
    pub(crate) fn deployment(&self, name: &str, replicas: i32) -> Value {
        let container = json!({
            "command": this_binary("support::exporter::container"),
            "env": [{"name": FILE, "value": self.file}],
            "ports": [{"name": "metrics", "containerPort": 9469}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "metrics"}, "periodSeconds": 1},
        });
        deployment(name, replicas, container)
    }
}

#[test]
#[ignore = "the container of an exporter pod, not a test"]
fn container() {
    run(async {
        let file = std::env::var(FILE).context(FILE)?;
        let address: IpAddr = std::env::var("POD_IP").context("POD_IP")?.parse()?;
        let text = async move || std::fs::read_to_string(Path::new(&file)).unwrap_or_default();
        let listener = TcpListener::bind((address, 9469)).await?;
        axum::serve(listener, Router::new().fallback(text)).await?;
        Ok(())
    });
}
