//! Everything the agent does, at once and under load, for as long as asked: profiles, heap dumps, captures, scrapes, and a
//! service whose tasks come and go.
//!
//! `make soak` runs it for ten minutes (`HEADROOM_SOAK_SECONDS=600`); otherwise it takes one. `make soak-sanitized` names another
//! build of the program (`HEADROOM_SOAK_PROGRAM`), in which AddressSanitizer watches the memory: it has no jemalloc, hence no
//! profiles of the heap, and what it keeps of freed memory is no growth.

use std::fmt::Write as _;
use std::path::Path;
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

/// What must not grow between the second and the last third of the run, and by how much its median may. The load itself holds up
/// to 16 MiB, and captures come and go.
const WATCHED: [Watched; 4] = [
    Watched::bytes("heap_allocated_bytes", 12.0),
    Watched::bytes("process_resident_memory_bytes", 24.0),
    Watched::count("process_threads", 6.0),
    Watched::count("process_open_fds", 12.0),
];
const MEBIBYTE: f64 = 1_048_576.0;

struct Watched {
    family: &'static str,
    limit: f64,
    /// In which the table shows it, and what it calls that.
    unit: (f64, &'static str),
}

impl Watched {
    const fn bytes(family: &'static str, limit_mebibytes: f64) -> Self {
        Self { family, limit: limit_mebibytes * MEBIBYTE, unit: (MEBIBYTE, ", MiB") }
    }

    const fn count(family: &'static str, limit: f64) -> Self {
        Self { family, limit, unit: (1.0, "") }
    }
}

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

    /// Starts every client; those of the heap's profiles where there are some.
    fn load(self: &Arc<Self>, has_heap: bool) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        for path in ASKED_OF_THE_AGENT {
            let is_of_heap = ["pprof/heap", "pprof/allocs"].iter().any(|part| path.contains(part));
            if is_of_heap && !has_heap {
                continue;
            }
            let url = format!("http://{}{path}", self.sample.agent);
            let pause = Duration::from_millis(100);
            clients.spawn(self.clone().client(url, reqwest::Method::GET, pause));
        }
        for (path, pause) in ASKED_OF_THE_SERVICE {
            let url = format!("http://{}{path}", self.sample.service);
            let pause = Duration::from_millis(*pause);
            clients.spawn(self.clone().client(url, reqwest::Method::POST, pause));
        }
        clients.spawn(self.clone().pins());
        clients
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

    /// Each of [`WATCHED`] once a second. What is not served has no readings.
    async fn watch(&self) -> [Vec<f64>; WATCHED.len()] {
        let mut readings = WATCHED.map(|_| Vec::new());
        while Instant::now() < self.until {
            for (watched, readings) in WATCHED.iter().zip(&mut readings) {
                readings.extend(self.sample.scrape(watched.family).await.ok());
            }
            sleep(Duration::from_secs(1)).await;
        }
        readings
    }
}

/// Fewer say nothing of growth.
const LEAST_READINGS: usize = 18;

/// Median and largest of each third of a run.
fn thirds(readings: &[f64]) -> [(f64, f64); 3] {
    let third = readings.len() / 3;
    [0, 1, 2].map(|index| {
        let mut sorted = readings[index * third..(index + 1) * third].to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied();
        (median.unwrap_or_default(), sorted.last().copied().unwrap_or_default())
    })
}

/// The readings by third as a table, and what grew past its limit.
fn growth(readings: &[Vec<f64>; WATCHED.len()]) -> (String, Vec<&'static str>) {
    let mut table = format!(
        "{:<40}{:>18}{:>18}{:>18}{:>10}{:>8}\n",
        "median and largest of each third", "first", "second", "last", "growth", "limit"
    );
    let mut grown = Vec::new();
    for (watched, readings) in WATCHED.iter().zip(readings) {
        let (unit, unit_name) = watched.unit;
        let _ = write!(table, "{:<40}", format!("{}{unit_name}", watched.family));
        if readings.len() < LEAST_READINGS {
            let _ = writeln!(table, "{} readings are too few", readings.len());
            continue;
        }
        let thirds = thirds(readings);
        for (median, largest) in thirds {
            let cell = format!("{:.1} {:.1}", median / unit, largest / unit);
            let _ = write!(table, "{cell:>18}");
        }
        let growth = thirds[2].0 - thirds[1].0;
        let (shown, limit) = (growth / unit, watched.limit / unit);
        let _ = writeln!(table, "{shown:>+10.1}{limit:>8.0}");
        if growth > watched.limit {
            grown.push(watched.family);
        }
    }
    (table, grown)
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
fn growth_is_what_the_last_third_has_more_than_the_second() {
    let steady = || vec![100.0; 30];
    let mut rising: Vec<f64> = (0..30).map(|second| f64::from(second) * MEBIBYTE).collect();
    let (table, grown) = growth(&[rising.clone(), rising.clone(), steady(), Vec::new()]);
    // By 10 MiB a third.
    assert!(grown.is_empty(), "{table}");
    rising.iter_mut().for_each(|bytes| *bytes *= 2.0);
    let (table, grown) = growth(&[rising.clone(), rising, steady(), Vec::new()]);
    assert_eq!(grown, ["heap_allocated_bytes"], "{table}");
    let row = "heap_allocated_bytes, MiB";
    assert!(table.contains(row) && table.contains("+20.0") && table.contains("0 readings"));
}

#[test]
fn profiles_scrapes_and_task_churn_at_once_neither_crash_nor_hang_nor_grow() {
    run(async {
        let duration = duration()?;
        let program = std::env::var_os("HEADROOM_SOAK_PROGRAM");
        let sample = match &program {
            Some(program) => Sample::start_program(Path::new(program)).await?,
            None => Sample::start().await?,
        };
        // The ring gets its first second.
        sample.until_ring_of(2).await.with_context(|| sample.log())?;
        let threads_before = sample.scrape("process_threads").await?;
        let soak = Arc::new(Soak {
            sample,
            until: Instant::now() + duration,
            answers: AtomicU64::new(0),
            faults: Mutex::default(),
        });
        let mut clients = soak.load(program.is_none());
        let readings = soak.watch().await;
        while clients.join_next().await.is_some() {}

        let soak = Arc::into_inner(soak).context("a client is still there")?;
        let mut report = String::new();
        for fault in soak.faults.lock().iter() {
            writeln!(report, "{fault}")?;
        }
        let mut sample = soak.sample;
        let (table, grown) = growth(&readings);
        eprintln!("{} answers in {duration:?}\n{table}", soak.answers.load(Ordering::Relaxed));
        let log = sample.log();
        ensure!(report.is_empty() && !log.contains("panicked"), "{report}{log}");
        if program.is_none() {
            let enough = readings.iter().all(|readings| readings.len() >= LEAST_READINGS);
            ensure!(enough && grown.is_empty(), "{grown:?} grew:\n{table}");
        }

        // What was made for captures and clients is given back.
        sample.until("tokio_alive_tasks", |tasks| tasks < 40.0).await?;
        sample.until("process_threads", |threads| threads <= threads_before + 24.0).await?;
        sample.process.signal(Signal::Terminate);
        let status = eventually(Duration::from_secs(60), "an end after SIGTERM", async || {
            Ok(sample.process.exited())
        })
        .await?;
        let log = sample.log();
        ensure!(status.success() && !log.contains("Sanitizer"), "{status}: {log}");
        Ok(())
    });
}
