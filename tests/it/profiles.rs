//! The sample service as a process of its own, with jemalloc: heap and allocation signals, and its profiles as
//! `go tool pprof` shows them.

use std::io::Read as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pprof::protos::{Message as _, Profile};
use tempfile::TempDir;

use crate::support::process::Process;
use crate::support::programs::checkout;
use crate::support::sample::Sample;
use crate::support::shared::{eventually, run};

const MEBIBYTE: f64 = 1_048_576.0;

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

#[test]
fn task_and_thread_profiles_open_in_go_tool_pprof() {
    run(async {
        let sample = Sample::start().await?;
        sample.post("/tasks?count=70&seconds=60").await?;
        let top = sample.top("tasks").await?;
        ensure!(top.trim_start().starts_with("70 ") && top.ends_with("Workshop::hold"), "{top}");
        let top = sample.top("goroutine").await?;
        ensure!(top.trim_start().starts_with("70 "), "{top}");
        let raw = sample.pprof(&["-raw"], "tasks").await?;
        ensure!(raw.contains("tasks/count[dflt] busy/nanoseconds"), "{raw}");
        ensure!(raw.contains("src/command/demo/service/work.rs:"), "no spawn site: {raw}");
        let tags = sample.pprof(&["-tags"], "tasks").await?;
        ensure!(tags.contains("state: Total") && tags.contains("idle"), "{tags}");
        ensure!(sample.top("threadcreate").await?.ends_with("tokio-rt-worker"));
        let (delta, posted) = tokio::join!(sample.top("tasks?seconds=2"), async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            sample.post("/tasks?count=30&seconds=60").await
        });
        posted?;
        let delta = delta?;
        ensure!(delta.trim_start().starts_with("30 "), "{delta}");
        let tags = sample.pprof(&["-tags"], "heap").await?;
        ensure!(tags.contains("bytes: Total"), "{tags}");
        Ok(())
    });
}

#[test]
fn names_can_be_looked_up_over_http_and_heap_text_is_read() {
    run(async {
        let sample = Sample::start().await?;
        sample.post("/heap?bytes=67108864&seconds=60").await?;
        sample.until("heap_allocated_bytes", |bytes| bytes > 60.0 * MEBIBYTE).await?;
        // Forgets the names in the profile and asks /debug/pprof/symbol for each address.
        let remote = sample.pprof(&["-symbolize=remote:force", "-top"], "heap").await?;
        ensure!(remote.contains("work::hold_heap"), "{remote}");
        // Only where something sampled was freed does pprof tell what is in use from what was allocated.
        sample.post("/allocate?bytes=20000000").await?;
        let text = sample.pprof(&["-symbolize=none", "-raw"], "heap?debug=1").await?;
        ensure!(text.contains("inuse_space/bytes"), "{text}");
        Ok(())
    });
}

/// A Go service with `net/http/pprof`.
struct GoService {
    _process: Process,
    address: String,
    _home: TempDir,
}

impl GoService {
    async fn start() -> Result<Self> {
        let home = tempfile::tempdir()?;
        let program = home.path().join("go_pprof");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&program).arg(".");
        build.current_dir(checkout().join("tests/support/go_pprof"));
        let output = tokio::task::spawn_blocking(move || build.output()).await??;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "go build: {error}");
        let log = home.path().join("go.log");
        let process = Process::spawn(Command::new(&program), &log, Vec::new())?;
        let address = eventually(Duration::from_secs(30), "its address", async || {
            let text = std::fs::read_to_string(&log)?;
            Ok(text.lines().find_map(|line| line.strip_prefix("address ").map(str::to_owned)))
        })
        .await?;
        Ok(Self { _process: process, address, _home: home })
    }
}

/// An answer as tools see it, a line for each part.
async fn shape(client: &reqwest::Client, address: &str, asked: &str) -> Result<String> {
    let (method, path) = asked.split_once(' ').context("a method and a path")?;
    let request = client.request(method.parse()?, format!("http://{address}{path}"));
    let answer = request.send().await?;
    let mut shape = vec![answer.status().to_string()];
    for name in [
        "allow",
        "content-type",
        "content-disposition",
        "content-encoding",
        "location",
        "x-content-type-options",
        "x-go-pprof",
    ] {
        let value = answer.headers().get(name).map(|value| value.to_str()).transpose()?;
        // Both spellings are one list.
        shape.push(format!("{name}: {}", value.unwrap_or_default().replace(", ", ",")));
    }
    let (failed, body) = (!answer.status().is_success(), answer.bytes().await?);
    match flate2::read::GzDecoder::new(&body[..]) {
        _ if failed => shape.push(String::from_utf8_lossy(&body).into_owned()),
        mut gzip if body.starts_with(&[0x1f, 0x8b]) => {
            let mut bytes = Vec::new();
            gzip.read_to_end(&mut bytes)?;
            shape.push(meaning(&Profile::decode(bytes.as_slice())?)?);
        }
        _ => {}
    }
    Ok(shape.join("\n"))
}

/// Kinds and units, period, and the kind that tools show first: by default the last.
fn meaning(profile: &Profile) -> Result<String> {
    let text = |index: i64| -> Result<&str> {
        Ok(profile.string_table.get(usize::try_from(index)?).context("a string")?)
    };
    let mut kinds = Vec::new();
    for kind in profile.sample_type.iter().chain(&profile.period_type) {
        kinds.push(format!("{}/{}", text(kind.ty)?, text(kind.unit)?));
    }
    let shown = match (text(profile.default_sample_type)?, profile.sample_type.last()) {
        ("", Some(last)) => text(last.ty)?,
        (default, _) => default,
    };
    Ok(format!("{} by {}, shows {shown}", kinds.join(" "), profile.period))
}

/// The same requests to a real Go service and to the agent. What differs on purpose stands in the documentation of
/// `src/pprof.rs`, and is not asked here.
#[test]
fn the_agent_answers_as_gos_net_http_pprof_does() {
    run(async {
        let (go, sample) = tokio::try_join!(GoService::start(), Sample::start())?;
        let redirects = reqwest::redirect::Policy::none();
        let client = reqwest::Client::builder().no_proxy().redirect(redirects).build()?;
        let mut faults = Vec::new();
        for asked in [
            "GET /debug/pprof/",
            "POST /debug/pprof/",
            "GET /debug/pprof/cmdline",
            "GET /debug/pprof/symbol",
            "GET /debug/pprof/symbol?0x1",
            "PUT /debug/pprof/profile",
            "HEAD /debug/pprof/heap",
            "POST /debug/pprof/heap",
            "GET /debug/pprof/heap",
            "GET /debug/pprof/heap?gc=1",
            "GET /debug/pprof/heap?debug=1",
            "GET /debug/pprof/heap?debug=x",
            "GET /debug/pprof/heap?seconds=&debug=0",
            "GET /debug/pprof/heap?seconds=1",
            "GET /debug/pprof/heap?seconds=0",
            "GET /debug/pprof/heap?seconds=x",
            "GET /debug/pprof/heap?seconds=1&debug=1",
            "GET /debug/pprof/allocs",
            "GET /debug/pprof/goroutine",
            "GET /debug/pprof/goroutine?debug=1",
            "GET /debug/pprof/goroutine?debug=2",
            "GET /debug/pprof/goroutine?seconds=1",
            "GET /debug/pprof/threadcreate",
            "GET /debug/pprof/threadcreate?debug=1",
            "GET /debug/pprof/threadcreate?seconds=1",
            "GET /debug/pprof/nonsense",
            "GET /debug/pprof/nonsense?seconds=x",
            "GET /debug/pprof/nonsense/of/two",
        ] {
            let gos = shape(&client, &go.address, asked).await?;
            let ours = shape(&client, &sample.agent, asked).await?;
            if gos != ours {
                faults.push(format!("{asked}\nGo: {gos}\nours: {ours}"));
            }
        }
        ensure!(faults.is_empty(), "{}", faults.join("\n\n"));
        Ok(())
    });
}
