//! The sample service as a process of its own, on free ports, without a cluster.
//!
//! In: nothing. Out: where it serves, and what scrapes and `go tool pprof` say of it. Never: a process that outlives it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::process::Process;
use super::programs::HEADROOM;
use super::shared::eventually;

/// The service on free ports.
pub(crate) struct Sample {
    pub(crate) process: Process,
    /// Where it serves.
    pub(crate) service: String,
    /// Where its agent serves.
    pub(crate) agent: String,
    pub(crate) client: reqwest::Client,
    /// The log, and the home of `go`, which keeps a copy of each profile.
    home: TempDir,
}

impl Sample {
    /// Starts it, and waits until it says where it serves.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_program(Path::new(HEADROOM)).await
    }

    /// As [`Self::start`], with another build of our program.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) async fn start_program(program: &Path) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let mut command = Command::new(program);
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
        Ok(Self { process, service, agent, client, home })
    }

    /// Posts to the service.
    ///
    /// # Errors
    /// Anything but success.
    pub(crate) async fn post(&self, path: &str) -> Result<()> {
        let response = self.client.post(format!("http://{}{path}", self.service)).send().await?;
        response.error_for_status().with_context(|| path.to_owned())?;
        Ok(())
    }

    /// A series without labels.
    pub(crate) async fn scrape(&self, name: &str) -> Result<f64> {
        let text =
            self.client.get(format!("http://{}/metrics", self.agent)).send().await?.text().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .with_context(|| format!("{name} is not served"))?
            .parse()
            .with_context(|| name.to_owned())
    }

    /// Waits until a series is as wanted.
    ///
    /// # Errors
    /// It is not in 30 s.
    pub(crate) async fn until(&self, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        eventually(Duration::from_secs(30), name, async || {
            Ok(Some(self.scrape(name).await?).filter(|value| wanted(*value)).map(drop))
        })
        .await
    }

    /// Waits until the agent's ring holds so many seconds.
    ///
    /// # Errors
    /// It does not in 30 s.
    pub(crate) async fn until_ring_of(&self, slices: u64) -> Result<()> {
        let url = format!("http://{}/debug/headroom/capture", self.agent);
        eventually(Duration::from_secs(30), "the ring of the agent", async || {
            let list: Value = self.client.get(&url).send().await?.json().await?;
            Ok(list["ring"]["slices"].as_u64().filter(|kept| *kept >= slices).map(drop))
        })
        .await
    }

    /// What `go tool pprof` prints of a profile.
    pub(crate) async fn pprof(&self, arguments: &[&str], profile: &str) -> Result<String> {
        let url = format!("http://{}/debug/pprof/{profile}", self.agent);
        self.go_tool_pprof(arguments.iter().chain([&url.as_str()])).await
    }

    /// What `go tool pprof` prints.
    ///
    /// # Errors
    /// It fails, with what it says.
    pub(crate) async fn go_tool_pprof(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<String> {
        let mut command = self.go_tool_pprof_command();
        command.args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "go tool pprof: {error}");
        Ok(text)
    }

    /// `go tool pprof` without arguments, which keeps its files in this sample's home.
    pub(crate) fn go_tool_pprof_command(&self) -> Command {
        let mut command = Command::new("go");
        command.args(["tool", "pprof"]);
        command.env("PPROF_TMPDIR", self.home.path()).env("NO_PROXY", "127.0.0.1");
        command
    }

    /// Fetches a profile and keeps it in the sample's home under a name.
    ///
    /// # Errors
    /// Anything but success.
    pub(crate) async fn keep(&self, profile: &str, name: &str) -> Result<PathBuf> {
        let url = format!("http://{}/debug/pprof/{profile}", self.agent);
        let answer = self.client.get(&url).send().await?.error_for_status()?;
        let file = self.home.path().join(name);
        std::fs::write(&file, answer.bytes().await?)?;
        Ok(file)
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.process.log()).unwrap_or_default()
    }

    /// A folder that lives as long as the sample.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// The first row of `go tool pprof -top`: the function with the largest share of its own.
    pub(crate) async fn top(&self, profile: &str) -> Result<String> {
        let text = self.pprof(&["-top"], profile).await?;
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
