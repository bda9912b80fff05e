//! Every kind of profile, read by two programs that share no code: `go tool pprof`, and the decoder of Pyroscope. Both must
//! understand the same, by value.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use headroom::Agent;

use crate::support::programs::{HEADROOM, checkout};
use crate::support::raw_profile::{RawProfile, Understood};
use crate::support::sample::Sample;
use crate::support::shared::run;

/// Builds `tests/pyroscope`.
fn pyroscope() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pyroscope-reader");
        let mut command = Command::new("go");
        command.args(["build", "-mod=readonly", "-o"]).arg(&binary).arg(".");
        command.current_dir(checkout().join("tests/pyroscope")).env("CGO_ENABLED", "0");
        let output = command.output().context("cannot run go")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(binary)
    };
    let built = BUILT.get_or_init(|| build().map_err(|error: anyhow::Error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow!("the reader of Pyroscope cannot be built: {error}"))
}

fn read_by_pyroscope(profile: &[u8]) -> Result<(RawProfile, Understood)> {
    let mut command = Command::new(pyroscope()?);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    // It reads all before it writes.
    child.stdin.take().context("stdin is piped")?.write_all(profile)?;
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "Pyroscope refuses the profile: {error}");
    RawProfile::of_pyroscope(&String::from_utf8(output.stdout)?)
}

/// What a profile of that kind must hold.
struct Expected<'a> {
    kinds: &'a [&'a str],
    default_kind: &'a str,
    period: (&'a str, i64),
    /// How long it covers, cut to whole seconds.
    seconds: i64,
    /// In this column and under this function is something, with this label.
    column: usize,
    function: &'a str,
    label: &'a str,
    service: &'a str,
}

/// Reads the kept profile with both, and gives what they agree on.
async fn check(sample: &Sample, file: &Path, expected: Expected<'_>) -> Result<RawProfile> {
    let text = sample.go_tool_pprof([Path::new("-raw"), Path::new("-symbolize=none"), file]);
    let of_go = RawProfile::of_go(&text.await?)?;
    let bytes = std::fs::read(file)?;
    let read = tokio::task::spawn_blocking(move || read_by_pyroscope(&bytes));
    let (profile, understood) = read.await??;
    ensure!(profile == of_go, "Pyroscope: {profile:#?}\ngo tool pprof: {of_go:#?}");

    let Expected { kinds, default_kind, period, seconds, column, function, label, service } =
        expected;
    ensure!(profile.kinds == kinds, "{:?}", profile.kinds);
    ensure!(profile.default_kind == default_kind, "{}", profile.default_kind);
    let said = (profile.period_kind.as_str(), profile.period);
    ensure!(said == period, "{said:?}");
    ensure!(understood.nanoseconds / 1_000_000_000 == seconds, "{}", understood.nanoseconds);
    let service = format!("service: {service}");
    ensure!(profile.comments.contains(&service), "{:?}", profile.comments);
    let executable = understood.mappings.first().context("no mapping")?;
    let is_hash = executable.build_id.chars().all(|digit| digit.is_ascii_hexdigit());
    ensure!(executable.build_id.len() == 40 && is_hash, "build id {}", executable.build_id);
    ensure!(Path::new(&executable.file).is_file(), "{}", executable.file);
    ensure!(profile.sum(column, function) != 0, "nothing under {function}: {profile:#?}");
    let mut under = profile
        .samples
        .keys()
        .filter(|place| place.frames.iter().any(|frame| frame.contains(function)));
    let has_label = under.any(|place| place.labels.iter().any(|line| line.contains(label)));
    ensure!(has_label || label.is_empty(), "no label {label} under {function}: {profile:#?}");
    Ok(profile)
}

const HEAP_KINDS: &[&str] =
    &["alloc_objects/count", "alloc_space/bytes", "inuse_objects/count", "inuse_space/bytes"];

#[test]
fn two_readers_find_the_same_in_the_cpu_profile() {
    run(async {
        let sample = Sample::start().await?;
        let (burnt, file) = tokio::join!(
            sample.post("/cpu?milliseconds=1500"),
            sample.keep("profile?seconds=1&lines=1", "cpu.pb.gz")
        );
        burnt?;
        let file = file?;
        let expected = Expected {
            kinds: &["samples/count", "cpu/nanoseconds"],
            default_kind: "cpu",
            period: ("cpu/nanoseconds", 10_101_010),
            seconds: 1,
            column: 1,
            function: "work::burn_cpu",
            label: "thread:[tokio-rt-worker]",
            service: "sample",
        };
        let profile = check(&sample, &file, expected).await?;
        let executable = std::fs::canonicalize(HEADROOM)?;
        let mapped = format!(" {} ", executable.display());
        ensure!(profile.mappings[0].contains(&mapped), "{:?}", profile.mappings);
        Ok(())
    });
}

#[test]
fn two_readers_find_the_same_in_both_views_of_the_heap() {
    run(async {
        let sample = Sample::start().await?;
        sample.post("/allocate?bytes=1073741824").await?;
        sample.post("/heap?bytes=67108864&seconds=60").await?;
        sample.until("heap_allocated_bytes", |bytes| bytes > 60_000_000.0).await?;
        let of = |default_kind, function| Expected {
            kinds: HEAP_KINDS,
            default_kind,
            period: ("space/bytes", 524_288),
            seconds: 0,
            column: 1,
            function,
            label: "bytes:[",
            service: "sample",
        };
        let heap = sample.keep("heap", "heap.pb.gz").await?;
        let held = Expected { column: 3, ..of("inuse_space", "work::hold_heap") };
        check(&sample, &heap, held).await?;
        let allocs = sample.keep("allocs", "allocs.pb.gz").await?;
        check(&sample, &allocs, of("alloc_space", "work::allocate")).await?;
        Ok(())
    });
}

#[test]
fn two_readers_find_the_same_in_tasks_and_threads() {
    run(async {
        let sample = Sample::start().await?;
        sample.post("/tasks?count=70&seconds=4").await?;
        let of_tasks = |seconds| Expected {
            kinds: &["tasks/count", "busy/nanoseconds"],
            default_kind: "tasks",
            period: ("tasks/count", 1),
            seconds,
            column: 0,
            function: "Workshop::hold",
            label: "state:[idle]",
            service: "sample",
        };
        let tasks = sample.keep("tasks", "tasks.pb.gz").await?;
        let tasks = check(&sample, &tasks, of_tasks(0)).await?;
        ensure!(tasks.sum(0, "Workshop::hold") == 70, "{tasks:#?}");
        // What ended since is negative.
        let ended = sample.keep("tasks?seconds=5", "ended.pb.gz").await?;
        let ended = check(&sample, &ended, of_tasks(5)).await?;
        ensure!(ended.sum(0, "Workshop::hold") == -70, "{ended:#?}");
        let threads = sample.keep("threadcreate", "threads.pb.gz").await?;
        let expected = Expected {
            kinds: &["threadcreate/count"],
            default_kind: "",
            period: ("threadcreate/count", 1),
            seconds: 0,
            column: 0,
            function: "tokio-rt-worker",
            label: "",
            service: "sample",
        };
        check(&sample, &threads, expected).await?;
        Ok(())
    });
}

/// Long enough to be seen, and the place where it is.
#[inline(never)]
fn holds_its_worker() {
    std::thread::sleep(Duration::from_secs(1));
    // Not the last call, which would take this function's place on the stack.
    std::hint::black_box(());
}

#[test]
fn two_readers_find_the_same_in_the_profile_of_blocked_workers() {
    // The sample service blocks no worker: here a service does whose runtime is apart from that of the tests.
    let service = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime needs threads only");
    let agent = service.block_on(async {
        Agent::builder().service("blocked").bind(([127, 0, 0, 1], 0).into()).start()
    });
    let agent = agent.expect("the agent starts");
    // Every worker has to have parked once before it is watched.
    std::thread::sleep(Duration::from_millis(300));
    run(async {
        service.spawn(async { holds_its_worker() }).await?;
        let mut sample = Sample::start().await?;
        sample.agent = agent.local_addr().to_string();
        let file = sample.keep("block", "block.pb.gz").await?;
        let expected = Expected {
            kinds: &["contentions/count", "delay/nanoseconds"],
            default_kind: "delay",
            period: ("contentions/count", 1),
            seconds: 0,
            column: 1,
            function: "profile_readers::holds_its_worker",
            label: "",
            service: "blocked",
        };
        let profile = check(&sample, &file, expected).await?;
        let held = profile.sum(1, "profile_readers::holds_its_worker");
        ensure!(held >= 800_000_000, "{held} ns");
        Ok(())
    });
    agent.shutdown();
    service.shutdown_background();
}
