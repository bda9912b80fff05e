//! Everything the agent does, at once and under load, for as long as asked: profiles, heap dumps, captures, scrapes, and a
//! service whose tasks come and go.
//!
//! `make soak` runs it for ten minutes (`HEADROOM_SOAK_SECONDS=600`); otherwise it takes one.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::process::Signal;
use crate::support::sample::Sample;
use crate::support::shared::{eventually, run};

/// Far longer than any answer should take: a deadlock is what lasts longer.
const DEADLOCK: Duration = Duration::from_secs(60);

/// Growth between the second and the last third of the run that counts as a leak. The load itself holds up to 16 MiB.
const GROWTH_LIMIT_BYTES: f64 = 24.0 * 1_048_576.0;

/// What is asked for over and over, each by a client of its own.
const ASKED_OF_THE_AGENT: &[&str] = &[
    "/metrics",
    "/metrics",
    "/readyz",
    "/debug/pprof/",
    "/debug/pprof/profile?seconds=2",
    "/debug/pprof/profile?seconds=3",
    "/debug/pprof/heap",
    "/debug/pprof/heap?seconds=1",
    "/debug/pprof/allocs",
    "/debug/pprof/tasks",
    "/debug/pprof/tasks?debug=2",
    "/debug/pprof/taskleak",
    "/debug/pprof/threadcreate",
    "/debug/pprof/block?seconds=1",
    "/debug/headroom/capture",
    "/debug/headroom/capture/now/profile",
    "/debug/headroom/capture/now/signals.json",
];

/// Requests of the service, each with the pause after it.
const ASKED_OF_THE_SERVICE: &[(&str, u64)] = &[
    ("/tasks?count=200&seconds=0.5", 250),
    ("/tasks?count=20&seconds=3", 500),
    ("/heap?bytes=8000000&seconds=0.5", 300),
    ("/allocate?bytes=20000000", 200),
    ("/cpu?milliseconds=20", 40),
    ("/work?milliseconds=5", 10),
    ("/queue?items=20&seconds=0.2", 300),
];

struct Soak {
    sample: Sample,
    until: Instant,
    answers: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Soak {
    async fn ask(&self, url: String, method: reqwest::Method) -> Result<Vec<u8>> {
        let request = self.sample.client.request(method, &url).timeout(DEADLOCK);
        let answer = request.send().await?.error_for_status()?;
        let body = answer.bytes().await?.to_vec();
        self.answers.fetch_add(1, Ordering::Relaxed);
        Ok(body)
    }

    /// Asks again and again until the end; the first fault of each client is kept.
    async fn client(self: Arc<Self>, url: String, method: reqwest::Method, pause: Duration) {
        while Instant::now() < self.until {
            if let Err(error) = self.ask(url.clone(), method.clone()).await {
                self.faults.lock().push(format!("{url}: {error:#}"));
                return;
            }
            sleep(pause).await;
        }
    }

    /// Pins a capture and removes it again, until the end.
    async fn pins(self: Arc<Self>) {
        let captures = format!("http://{}/debug/headroom/capture", self.sample.agent);
        while Instant::now() < self.until {
            let pinned = self.ask(format!("{captures}?before=5&after=1"), reqwest::Method::POST);
            let outcome = async {
                let pinned: Value = serde_json::from_slice(&pinned.await?)?;
                let id = pinned["id"].as_u64().context("no id")?;
                // Encoding waits for its turn behind all the profiles that are asked for.
                let deadline = Instant::now() + DEADLOCK;
                loop {
                    let one = self.ask(format!("{captures}/{id}"), reqwest::Method::GET).await?;
                    let one: Value = serde_json::from_slice(&one)?;
                    if one["files"].as_array().is_some_and(|files| !files.is_empty()) {
                        break;
                    }
                    ensure!(Instant::now() < deadline, "capture {id} was never encoded");
                    sleep(Duration::from_millis(200)).await;
                }
                self.ask(format!("{captures}/{id}/profile"), reqwest::Method::GET).await?;
                sleep(Duration::from_secs(1)).await;
                self.ask(format!("{captures}/{id}"), reqwest::Method::DELETE).await
            };
            if let Err(error) = outcome.await {
                self.faults.lock().push(format!("capture: {error:#}"));
                return;
            }
        }
    }

    /// The resident memory once a second.
    async fn watch_memory(&self) -> Vec<f64> {
        let mut readings = Vec::new();
        while Instant::now() < self.until {
            readings.extend(self.sample.scrape("process_resident_memory_bytes").await.ok());
            sleep(Duration::from_secs(1)).await;
        }
        readings
    }
}

fn median(readings: &[f64]) -> f64 {
    let mut sorted = readings.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn duration() -> Result<Duration> {
    match std::env::var("HEADROOM_SOAK_SECONDS") {
        Ok(text) => {
            Ok(Duration::from_secs(text.parse().context("HEADROOM_SOAK_SECONDS is not a number")?))
        }
        Err(_) => Ok(Duration::from_secs(60)),
    }
}

#[test]
fn profiles_scrapes_and_task_churn_at_once_neither_crash_nor_hang_nor_grow() {
    run(async {
        let duration = duration()?;
        let sample = Sample::start().await?;
        // The ring gets its first second.
        sample.until_ring_of(2).await?;
        let threads_before = sample.scrape("process_threads").await?;
        let soak = Arc::new(Soak {
            sample,
            until: Instant::now() + duration,
            answers: AtomicU64::new(0),
            faults: Mutex::default(),
        });
        let mut clients = JoinSet::new();
        for path in ASKED_OF_THE_AGENT {
            let url = format!("http://{}{path}", soak.sample.agent);
            let pause = Duration::from_millis(100);
            clients.spawn(soak.clone().client(url, reqwest::Method::GET, pause));
        }
        for (path, pause) in ASKED_OF_THE_SERVICE {
            let url = format!("http://{}{path}", soak.sample.service);
            let pause = Duration::from_millis(*pause);
            clients.spawn(soak.clone().client(url, reqwest::Method::POST, pause));
        }
        clients.spawn(soak.clone().pins());
        let memory = soak.watch_memory().await;
        while clients.join_next().await.is_some() {}

        let soak = Arc::into_inner(soak).context("a client is still there")?;
        let mut report = String::new();
        for fault in soak.faults.lock().iter() {
            writeln!(report, "{fault}")?;
        }
        let log = std::fs::read_to_string(soak.sample.process.log())?;
        ensure!(report.is_empty() && !log.contains("panicked"), "{report}{log}");
        let third = memory.len() / 3;
        ensure!(third > 5, "only {} readings of the memory", memory.len());
        let growth = median(&memory[2 * third..]) - median(&memory[third..2 * third]);
        let answers = soak.answers.load(Ordering::Relaxed);
        eprintln!("{answers} answers in {duration:?}, resident memory grew by {growth:.0} bytes");
        ensure!(growth < GROWTH_LIMIT_BYTES, "grew by {growth} bytes: {memory:?}");

        // What was made for captures and clients is given back.
        let sample = soak.sample;
        sample.until("tokio_alive_tasks", |tasks| tasks < 40.0).await?;
        sample.until("process_threads", |threads| threads <= threads_before + 24.0).await?;
        let mut process = sample.process;
        process.signal(Signal::Terminate);
        let status = eventually(Duration::from_secs(30), "an end after SIGTERM", async || {
            Ok(process.exited())
        })
        .await?;
        ensure!(status.success(), "{status}");
        Ok(())
    });
}
