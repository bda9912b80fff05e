//! The sample service as a process of its own, with jemalloc: heap and allocation signals, and its profiles as
//! `go tool pprof` shows them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::process::Process;
use crate::support::programs::HEADROOM;
use crate::support::shared::{eventually, run};

const MEBIBYTE: f64 = 1_048_576.0;

/// The service on free ports.
struct Sample {
    _process: Process,
    service: String,
    agent: String,
    client: reqwest::Client,
    /// The log, and the home of `go`, which keeps a copy of each profile.
    home: TempDir,
}

impl Sample {
    async fn start() -> Result<Self> {
        let home = tempfile::tempdir()?;
        let mut command = Command::new(HEADROOM);
        command.args(["demo", "--service-only"]);
        command.args(["--service-bind", "127.0.0.1:0", "--agent-bind", "127.0.0.1:0"]);
        let log = home.path().join("service.log");
        let process = Process::spawn(command, &log, Vec::new())?;
        let (service, agent) =
            eventually(Duration::from_secs(30), "the addresses in its log", async || {
                Ok(addresses(&log))
            })
            .await?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { _process: process, service, agent, client, home })
    }

    async fn post(&self, path: &str) -> Result<()> {
        let response = self.client.post(format!("http://{}{path}", self.service)).send().await?;
        response.error_for_status().with_context(|| path.to_owned())?;
        Ok(())
    }

    /// A series without labels.
    async fn scrape(&self, name: &str) -> Result<f64> {
        let text =
            self.client.get(format!("http://{}/metrics", self.agent)).send().await?.text().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .with_context(|| format!("{name} is not served"))?
            .parse()
            .with_context(|| name.to_owned())
    }

    async fn until(&self, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        eventually(Duration::from_secs(30), name, async || {
            Ok(Some(self.scrape(name).await?).filter(|value| wanted(*value)).map(drop))
        })
        .await
    }

    /// The first row of `go tool pprof -top`: the function with the largest share of its own.
    async fn top(&self, profile: &str) -> Result<String> {
        let mut command = Command::new("go");
        command
            .args(["tool", "pprof", "-top"])
            .arg(format!("http://{}/debug/pprof/{profile}", self.agent));
        command.env("PPROF_TMPDIR", self.home.path()).env("NO_PROXY", "127.0.0.1");
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "go tool pprof: {error}");
        ensure!(text.contains("service: sample"), "the profile does not name its service: {text}");
        let rows = text.lines().skip_while(|line| !line.contains("flat%")).skip(1);
        rows.map(str::to_owned).next().with_context(|| format!("no rows: {text}"))
    }
}

/// The two addresses that the service logs once it runs.
fn addresses(log: &Path) -> Option<(String, String)> {
    let text = std::fs::read_to_string(log).ok()?;
    let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let text = |value: &Value| value.as_str().map(str::to_owned);
    entries.into_iter().find_map(|entry| Some((text(&entry["address"])?, text(&entry["agent"])?)))
}

#[test]
fn heap_rises_and_falls_and_its_profile_names_the_holder() {
    run(async {
        let sample = Sample::start().await?;
        let before = sample.scrape("heap_allocated_bytes").await?;
        sample.post("/heap?bytes=134217728&seconds=8").await?;
        sample.until("heap_allocated_bytes", |bytes| bytes > before + 120.0 * MEBIBYTE).await?;
        let top = sample.top("heap").await?;
        ensure!(top.ends_with("work::hold_heap"), "{top}");
        sample.until("heap_allocated_bytes", |bytes| bytes < before + 60.0 * MEBIBYTE).await
    });
}

#[test]
fn allocation_grows_by_what_was_allocated_and_its_profile_names_the_allocator() {
    run(async {
        let sample = Sample::start().await?;
        let before = sample.scrape("heap_allocation_bytes_total").await?;
        sample.post("/allocate?bytes=1073741824").await?;
        let grown = sample.scrape("heap_allocation_bytes_total").await? - before;
        ensure!((1024.0..1100.0).contains(&(grown / MEBIBYTE)), "{grown} bytes");
        let top = sample.top("allocs").await?;
        ensure!(top.ends_with("work::allocate"), "{top}");
        Ok(())
    });
}

#[test]
fn the_cpu_profile_names_the_burner() {
    run(async {
        let sample = Sample::start().await?;
        let (burnt, top) =
            tokio::join!(sample.post("/cpu?milliseconds=2500"), sample.top("profile?seconds=2"));
        burnt?;
        let top = top?;
        ensure!(top.ends_with("work::burn_cpu"), "{top}");
        Ok(())
    });
}
