//! A real Prometheus with the shipped rules, and promtool.
//!
//! In: the addresses to scrape. Out: which alerts fire. Never: other rules than the shipped ones; only their times can be made short.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::control_plane::free_ports;
use super::process::Process;
use super::programs::{checkout, monitoring};

/// The shipped rules.
pub(crate) fn rules_file() -> PathBuf {
    checkout().join("dashboards/rules/headroom.rules.yaml")
}

/// The rules with every minute and hour of theirs a second, so that a test can wait for them: `for: 10m` is `for: 10s`, and ranges,
/// of which the shortest must hold samples, are 15 s or more. Nothing else is changed, thresholds least of all.
pub(crate) fn quick(rules: &str) -> String {
    let mut text = String::with_capacity(rules.len());
    for line in rules.lines() {
        match line.split_once("for: ") {
            Some((indent, wait)) if indent.trim().is_empty() => {
                let number = wait.trim_end_matches(char::is_alphabetic);
                text.push_str(&format!("{indent}for: {number}s"));
            }
            _ => text.push_str(&quick_ranges(line)),
        }
        text.push('\n');
    }
    text
}

/// `[5m]` and `[1h]` become `[15s]`, `[1h:1m]` `[60s:1s]`, `offset 1m` `offset 1s`, `offset 3h` `offset 180s`.
fn quick_ranges(line: &str) -> String {
    let mut text = line.replace("[1h:1m]", "[60s:1s]");
    for range in ["[2m]", "[5m]", "[10m]", "[15m]", "[1h]"] {
        text = text.replace(range, "[15s]");
    }
    text.replace("offset 1m", "offset 1s").replace("offset 3h", "offset 180s")
}

/// A running Prometheus that scrapes each second.
#[derive(Debug)]
pub(crate) struct Prometheus {
    _process: Process,
    url: String,
}

impl Prometheus {
    /// Starts one in `dir` that scrapes `target` as the job `headroom-adapter`, with `rules`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(dir: &Path, target: &str, rules: &str) -> Result<Self> {
        let target = target.trim_start_matches("http://");
        // Labels of series win, as in the ServiceMonitor.
        let config = format!(
            "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s\n\
             rule_files: [rules.yaml]\n\
             scrape_configs:\n- job_name: headroom-adapter\n  honor_labels: true\n  \
             static_configs:\n  - targets: ['{target}']\n"
        );
        Self::configured(dir, &config, rules)
    }

    /// Starts one in `dir` with this configuration, which names the rules as `rules.yaml`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn configured(dir: &Path, config: &str, rules: &str) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("rules.yaml"), rules)?;
        std::fs::write(dir.join("prometheus.yaml"), config)?;
        let [port] = free_ports()?;
        let mut command = Command::new(monitoring("prometheus")?);
        command
            .arg(format!("--config.file={}", dir.join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            // For the page that draws the dashboards.
            .arg("--web.cors.origin=.*");
        let process = Process::spawn(command, &dir.join("prometheus.log"), Vec::new())?;
        Ok(Self { _process: process, url: format!("http://127.0.0.1:{port}") })
    }

    /// Where it serves.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What an address below `/api/v1` answers under `data`.
    ///
    /// # Errors
    /// It does not answer, or with an error, whose text is in it.
    pub(crate) async fn data(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/{path}", self.url))?;
        url.query_pairs_mut().extend_pairs(query);
        let mut body: Value = reqwest::get(url).await?.json().await?;
        ensure!(body["status"] == "success", "{}", body["error"]);
        Ok(body["data"].take())
    }

    /// The names of the alerts that fire now; `None` while it does not answer.
    pub(crate) async fn firing(&self) -> Option<BTreeSet<String>> {
        let answer = reqwest::get(format!("{}/api/v1/alerts", self.url)).await.ok()?;
        let body: Value = answer.json().await.ok()?;
        let alerts = body["data"]["alerts"].as_array()?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let name = |alert: &Value| Some(alert["labels"]["alertname"].as_str()?.to_owned());
        Some(firing.filter_map(name).collect())
    }
}
