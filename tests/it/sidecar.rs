//! The sidecar as a process beside a real Go service: what it passes on, profiles, reads of the process, and follows.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use headroom::config::{AgentConfig, Inputs, load};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::process::{Process, Signal};
use crate::support::programs::{HEADROOM, checkout};
use crate::support::shared::{eventually, run, share};

const WAIT: Duration = Duration::from_secs(30);
/// `nobody`, where the tests may change their user.
const OTHER_USER: u32 = 65_534;

/// Builds `sidecar/service.go` against the modules of the real Kubernetes, which hold client_golang.
fn go_service() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow!("the Go service cannot be built: {error}"))
}

fn build() -> Result<PathBuf> {
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-service");
    let mut command = Command::new("go");
    command.args(["build", "-o"]).arg(&binary).arg("../it/sidecar/service.go");
    command.current_dir(checkout().join("tests/kubernetes"));
    command.env("GOFLAGS", "-mod=readonly").env("CGO_ENABLED", "0");
    let output = command.output().context("cannot run go")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(binary)
}

/// Who runs a program: the user of the tests, or another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Tests,
    Other,
}

/// Whether the tests may start programs as another user.
fn may_change_user() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
    let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    // CAP_SETUID is bit 7 (capability.h).
    capabilities.is_some_and(|bits| bits & (1 << 7) != 0)
}

/// A folder that every user may read.
fn home() -> Result<TempDir> {
    let home = tempfile::tempdir()?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
    Ok(home)
}

/// Copies a program. Another process does: a file that this one has open for writing, as any child forked meanwhile has it
/// too, cannot be started.
fn place(program: &Path, name: &Path) -> Result<()> {
    let status = Command::new("cp").arg(program).arg(name).status()?;
    ensure!(status.success(), "cp {}", program.display());
    Ok(())
}

struct Service {
    process: Process,
    address: String,
}

impl Service {
    async fn start(home: &Path, user: User) -> Result<Self> {
        let binary = home.join("go-service");
        place(tokio::task::spawn_blocking(go_service).await??, &binary)?;
        let mut command = Command::new(binary);
        command.arg("127.0.0.1:0");
        if user == User::Other {
            command.uid(OTHER_USER);
        }
        let log = home.join("service.log");
        let process = Process::spawn(command, &log, Vec::new())?;
        let address = eventually(WAIT, "the service's address", async || {
            let text = fs::read_to_string(&log)?;
            Ok(text.split_once('\n').map(|(address, _)| address.to_owned()))
        });
        Ok(Self { address: address.await?, process })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

struct Sidecar {
    process: Process,
    address: String,
    client: reqwest::Client,
}

impl Sidecar {
    async fn start(home: &Path, user: User, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(HEADROOM);
        if user == User::Other {
            // The checkout may be closed to others.
            let copy = home.join("headroom");
            place(Path::new(HEADROOM), &copy)?;
            command = Command::new(copy);
            command.uid(OTHER_USER);
        }
        command.args(["agent", "--bind", "127.0.0.1:0"]).args(arguments);
        let log = home.join("sidecar.log");
        let process = Process::spawn(command, &log, Vec::new())?;
        let address = eventually(WAIT, "the sidecar's address", async || {
            let text = fs::read_to_string(&log)?;
            let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut addresses = entries.map(|entry| entry["address"].as_str().map(str::to_owned));
            Ok(addresses.find_map(|address| address))
        });
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { address: address.await?, process, client })
    }

    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let answer = self.client.get(format!("http://{}{path}", self.address)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// A series, with its labels as written.
    async fn series(&self, name: &str) -> Result<Option<f64>> {
        let (_, text) = self.get("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.map(str::parse).transpose()?)
    }

    async fn until(&self, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        eventually(WAIT, name, async || {
            Ok(self.series(name).await?.filter(|value| wanted(*value)).map(drop))
        })
        .await
    }

    async fn sources(&self) -> Result<String> {
        Ok(self.get("/debug/headroom/sources").await?.1)
    }
}

#[test]
fn a_go_service_is_passed_on_normalised_and_profiled_through_the_sidecar() {
    run(async {
        let home = home()?;
        let mut service = Service::start(home.path(), User::Tests).await?;
        let (metrics, pprof) = (service.url("/metrics"), service.url("/debug/pprof"));
        let arguments = ["--target-metrics", &metrics, "--target-pprof", &pprof];
        let sidecar = Sidecar::start(home.path(), User::Tests, &arguments).await?;
        for _ in 0..3 {
            sidecar.client.get(service.url("/checkout")).send().await?.error_for_status()?;
        }
        ensure!(sidecar.series("go_goroutines").await?.is_some_and(|count| count >= 2.0));
        ensure!(sidecar.series("heap_allocated_bytes").await?.is_some_and(|bytes| bytes > 1e5));
        let checkouts = "http_server_request_duration_seconds_count{endpoint=\"GET /checkout\",status_code=\"200\",error_type=\"\"}";
        ensure!(sidecar.series(checkouts).await? == Some(3.0));
        ensure!(sidecar.series("process_threads").await?.is_some_and(|count| count >= 2.0));
        let page = sidecar.sources().await?;
        let found = format!("process {}\n", service.process.id());
        ensure!(page.starts_with(&found), "found by its port: {page}");

        let burn = sidecar.client.get(service.url("/burn?for=3s")).send();
        let (burnt, top) = tokio::join!(burn, top(&sidecar.address, home.path()));
        burnt?.error_for_status()?;
        let top = top?;
        ensure!(top.contains("main.burnInGo"), "{top}");

        service.process.kill();
        sidecar.until("headroom_agent_target_up", |up| up < 0.5).await?;
        ensure!(sidecar.series("go_goroutines").await?.is_none());
        ensure!(sidecar.get("/readyz").await?.0 == 200);
        Ok(())
    });
}

#[test]
fn a_client_that_leaves_ends_the_capture_in_the_service() {
    run(async {
        let home = home()?;
        let service = Service::start(home.path(), User::Tests).await?;
        let pprof = service.url("/debug/pprof");
        let arguments = ["--target-pprof", pprof.as_str()];
        let sidecar = Sidecar::start(home.path(), User::Tests, &arguments).await?;
        let url = format!("http://{}/debug/pprof/profile?seconds=200", sidecar.address);
        let patience = Duration::from_millis(500);
        ensure!(sidecar.client.get(url).timeout(patience).send().await.is_err(), "no answer yet");
        // Go refuses a second CPU profile while one is captured.
        eventually(WAIT, "the next profile", async || {
            let (status, _) = sidecar.get("/debug/pprof/profile?seconds=1").await?;
            Ok((status == 200).then_some(()))
        })
        .await
    });
}

/// What `go tool pprof` makes of a profile.
async fn pprof_of(url: &str, report: &str, home: &Path) -> Result<String> {
    let mut command = Command::new("go");
    command.args(["tool", "pprof", report, url]);
    command.env("PPROF_TMPDIR", home).env("NO_PROXY", "127.0.0.1");
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "go tool pprof: {error}");
    Ok(text)
}

/// The first row of `go tool pprof -top` on the sidecar.
async fn top(address: &str, home: &Path) -> Result<String> {
    let url = format!("http://{address}/debug/pprof/profile?seconds=1");
    let text = pprof_of(&url, "-top", home).await?;
    let rows = text.lines().skip_while(|line| !line.contains("flat%")).skip(1);
    rows.map(str::to_owned).next().with_context(|| format!("no rows: {text}"))
}

#[test]
fn the_cpu_of_a_service_without_metrics_is_read_from_its_process() {
    run(async {
        let home = home()?;
        let service = Service::start(home.path(), User::Tests).await?;
        let pid = service.process.id().to_string();
        let sidecar = Sidecar::start(home.path(), User::Tests, &["--target-pid", &pid]).await?;
        let before = sidecar.series("process_cpu_seconds_total").await?.context("no CPU")?;
        sidecar.client.get(service.url("/burn?for=500ms")).send().await?.error_for_status()?;
        // The service burns half a second of CPU; the sidecar's own is far below.
        sidecar.until("process_cpu_seconds_total", |now| now - before >= 0.5).await?;
        ensure!(sidecar.series("headroom_agent_target_up").await?.is_none(), "it has no metrics");
        ensure!(sidecar.sources().await?.contains("set agent.target.metrics"));
        Ok(())
    });
}

#[test]
fn what_another_user_hides_is_named_with_the_setting_that_grants_it() {
    if !may_change_user() {
        eprintln!("NOT CHECKED: these tests may not start programs as another user");
        return;
    }
    run(async {
        let grant =
            "run the sidecar with the service's runAsUser, or with the capability SYS_PTRACE";
        let home = home()?;
        let service = Service::start(home.path(), User::Tests).await?;
        let pid = service.process.id().to_string();
        let stranger = Sidecar::start(home.path(), User::Other, &["--target-pid", &pid]).await?;
        ensure!(stranger.series("process_cpu_seconds_total").await?.is_some(), "open to all");
        let page = stranger.sources().await?;
        let refused =
            page.lines().filter(|line| line.contains("NOT available") && line.ends_with(grant));
        let refused: Vec<_> = refused.filter_map(|line| line.split(' ').next()).collect();
        // Before Linux 6.2 the number of descriptors, and with it source `process`, is refused too.
        ensure!(refused.contains(&"cgroup_cpu"), "{page}");

        let metrics = service.url("/metrics");
        // A folder of its own: the address is read from the log in it.
        let home = self::home()?;
        let seeking =
            Sidecar::start(home.path(), User::Other, &["--target-metrics", &metrics]).await?;
        let page = seeking.sources().await?;
        ensure!(page.contains(grant) && page.contains("agent.target.process"), "{page}");
        ensure!(seeking.series("headroom_agent_target_up").await? == Some(1.0));
        Ok(())
    });
}

#[test]
fn beside_a_service_of_the_same_plain_user_everything_is_read() {
    if !may_change_user() {
        eprintln!("NOT CHECKED: these tests may not start programs as another user");
        return;
    }
    run(async {
        let home = home()?;
        let service = Service::start(home.path(), User::Other).await?;
        let metrics = service.url("/metrics");
        let sidecar =
            Sidecar::start(home.path(), User::Other, &["--target-metrics", &metrics]).await?;
        let page = sidecar.sources().await?;
        ensure!(page.starts_with(&format!("process {}\n", service.process.id())), "{page}");
        ensure!(!page.contains("runAsUser"), "{page}");
        Ok(())
    });
}

/// The newest capture, once its files are there.
async fn captured(sidecar: &Sidecar, token: &str) -> Result<Value> {
    let url = format!("http://{}/debug/headroom/capture", sidecar.address);
    eventually(WAIT, "a capture with files", async || {
        let answer = sidecar.client.get(&url).bearer_auth(token).send().await?;
        let list: Value = serde_json::from_str(&answer.error_for_status()?.text().await?)?;
        let newest = list["captures"].as_array().and_then(|captures| captures.last());
        let has_files =
            |capture: &&Value| capture["files"].as_array().is_some_and(|f| !f.is_empty());
        Ok(newest.filter(has_files).cloned())
    })
    .await
}

fn names(capture: &Value) -> Vec<&str> {
    let files = capture["files"].as_array().into_iter().flatten();
    files.filter_map(|file| file["name"].as_str()).collect()
}

#[test]
fn a_rule_on_the_services_process_pins_its_own_profiles() {
    run(async {
        let home = home()?;
        let service = Service::start(home.path(), User::Tests).await?;
        let pid = service.process.id();
        let pprof = service.url("/debug/pprof");
        let rules = "[{signal: process_resident_memory_bytes, above: 1Mi}]";
        let text = format!(
            "agent: {{target: {{pid: {pid}, pprof: \"{pprof}\"}}, capture: {{rules: {rules}}}}}\n"
        );
        let file = home.path().join("config.yaml");
        fs::write(&file, text)?;
        let arguments = ["--config", &file.display().to_string()];
        let sidecar = Sidecar::start(home.path(), User::Tests, &arguments).await?;
        let capture = captured(&sidecar, "").await?;
        let reason = capture["reason"].as_str().context("a reason")?;
        ensure!(reason.starts_with("process_resident_memory_bytes is "), "{capture}");
        ensure!(names(&capture) == ["heap", "goroutine", "profile", "signals.json"], "{capture}");
        ensure!(capture["missing"].as_array().is_some_and(Vec::is_empty), "{capture}");
        let id = &capture["id"];
        let (_, signals) =
            sidecar.get(&format!("/debug/headroom/capture/{id}/signals.json")).await?;
        ensure!(signals.contains("\"process_resident_memory_bytes\""), "{signals}");
        // What the service was asked for is what pprof opens, with the service's own functions.
        let goroutines =
            format!("http://{}/debug/headroom/capture/{id}/goroutine", sidecar.address);
        let traces = pprof_of(&goroutines, "-traces", home.path()).await?;
        ensure!(traces.contains("main.main"), "{traces}");
        Ok(())
    });
}

#[test]
fn the_token_guards_profiles_and_captures_but_not_the_metrics() {
    run(async {
        let home = home()?;
        let token = home.path().join("token");
        fs::write(&token, "right\n")?;
        let file = home.path().join("config.yaml");
        fs::write(&file, format!("agent: {{debug: {{tokenFile: {}}}}}\n", token.display()))?;
        let arguments = ["--config", &file.display().to_string()];
        let sidecar = Sidecar::start(home.path(), User::Tests, &arguments).await?;
        for (path, expected) in [
            ("/metrics", 200),
            ("/readyz", 200),
            ("/debug/pprof/", 401),
            ("/debug/pprof/heap", 401),
            ("/debug/headroom/sources", 401),
            ("/debug/headroom/config", 401),
            ("/debug/headroom/capture", 401),
        ] {
            let (status, text) = sidecar.get(path).await?;
            ensure!(status == expected, "{path}: {status} {text}");
        }
        let pin = async |token: &str| {
            let url = format!("http://{}/debug/headroom/capture?after=0", sidecar.address);
            anyhow::Ok(sidecar.client.post(url).bearer_auth(token).send().await?.status().as_u16())
        };
        ensure!(pin("wrong").await? == 401);
        ensure!(pin("right").await? == 201);
        let capture = captured(&sidecar, "right").await?;
        ensure!(names(&capture) == ["signals.json"], "{capture}");
        let missing = capture["missing"].as_array().context("a list")?;
        for name in ["heap", "goroutine", "profile"] {
            let why = format!("{name}: agent.target.pprof is not set");
            ensure!(missing.iter().any(|found| *found == why), "{capture}");
        }
        Ok(())
    });
}

/// As the kubelet writes a ConfigMap: a new directory, and a link to it that is swapped by a rename.
fn publish(volume: &Path, version: &str, text: &str) -> Result<()> {
    fs::create_dir(volume.join(version))?;
    fs::write(volume.join(version).join("config.yaml"), text)?;
    symlink(version, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    let link = volume.join("config.yaml");
    if !link.is_symlink() {
        symlink("..data/config.yaml", link)?;
    }
    Ok(())
}

#[test]
fn a_swapped_config_map_takes_effect_in_the_running_sidecar_and_a_bad_one_does_not() {
    run(async {
        let home = home()?;
        let service = Service::start(home.path(), User::Tests).await?;
        let volume = home.path().join("volume");
        fs::create_dir(&volume)?;
        publish(&volume, "..1", "agent: {service: shop}\n")?;
        let file = volume.join("config.yaml").display().to_string();
        let mut sidecar = Sidecar::start(home.path(), User::Tests, &["--config", &file]).await?;
        ensure!(sidecar.get("/debug/pprof/").await?.0 == 404);

        let pprof = service.url("/debug/pprof");
        publish(
            &volume,
            "..2",
            &format!("agent: {{service: shop, target: {{pprof: \"{pprof}\"}}}}\n"),
        )?;
        eventually(WAIT, "profiles", async || {
            Ok((sidecar.get("/debug/pprof/").await?.0 == 200).then_some(()))
        })
        .await?;

        publish(&volume, "..3", "agent:\n  target: {pprf: http://127.0.0.1/}\n")?;
        sidecar.until("headroom_config_reload_success", |success| success < 0.5).await?;
        ensure!(sidecar.get("/debug/pprof/").await?.0 == 200, "the last good one stays");
        ensure!(sidecar.get("/readyz").await?.0 == 200);
        let page = sidecar.get("/debug/headroom/config").await?.1;
        let why = "config.yaml:2: agent.target.pprf: unknown key; did you mean agent.target.pprof?";
        ensure!(page.contains(why), "{page}");
        ensure!(
            sidecar.series("headroom_config_reloads_total{outcome=\"refused\"}").await?
                == Some(1.0)
        );
        let log = fs::read_to_string(sidecar.process.log())?;
        ensure!(log.matches("the last good one stays").count() == 1, "{log}");

        publish(&volume, "..4", "agent: {logLevel: debug}\n")?;
        sidecar.until("headroom_config_reload_success", |success| success > 0.5).await?;
        ensure!(sidecar.get("/debug/pprof/").await?.0 == 404);
        sidecar.process.signal(Signal::Terminate);
        let status = eventually(WAIT, "its end", async || Ok(sidecar.process.exited())).await?;
        ensure!(status.success(), "{status}");
        Ok(())
    });
}

fn headroom(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(HEADROOM).args(arguments).env_remove("HEADROOM_CONFIG").output()?)
}

#[test]
fn what_keeps_a_program_from_starting_is_said_in_one_line_with_the_key() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), "adapter: {securePrt: 7443}\n")?;
    let path = file.path().display().to_string();
    let bad = format!(
        "error: bad configuration: {path}:1: adapter.securePrt: unknown key; did you mean adapter.securePort?"
    );
    let missing =
        "error: cannot read the configuration /nowhere: No such file or directory (os error 2)";
    for (arguments, said) in [
        (["agent", "--bind", &address], format!("error: cannot listen on {address} (agent.bind)")),
        (["agent", "--config", &path], bad.clone()),
        (["adapter", "--config", &path], bad),
        (["agent", "--config", "/nowhere"], missing.to_owned()),
    ] {
        let output = headroom(&arguments)?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{arguments:?}");
        ensure!(text.starts_with(&said) && text.lines().count() == 1, "{arguments:?}: {text}");
    }
    Ok(())
}

#[test]
fn the_example_of_a_sidecar_is_accepted_by_kubernetes_and_by_the_sidecar() {
    run(async {
        let cluster = share().await?;
        let path = |file: &str| checkout().join(file).display().to_string();
        let (definition, example) =
            (path("manifests/base/crd.yaml"), path("manifests/examples/sidecar.yaml"));
        let plane = &cluster.plane;
        plane.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &definition])?;
        let established = "--for=condition=Established";
        plane.kubectl(&["wait", established, "crd/scalingpolicies.headroom.dev"])?;
        let strict =
            ["apply", "--dry-run=server", "--validate=strict", "-n", "default", "-o", "json"];
        let list = plane.kubectl(&[&strict[..], &["-f", &example]].concat())?;
        let list: Value = serde_json::from_str(&list)?;
        let items = list["items"].as_array().context("a list")?;
        let map = items.iter().find(|item| item["kind"] == "ConfigMap").context("a ConfigMap")?;
        let text = map["data"]["config.yaml"].as_str().context("config.yaml")?;
        let config = load::<AgentConfig>(&Inputs::default(), Some(text))?.config;
        let deployment =
            items.iter().find(|item| item["kind"] == "Deployment").context("a Deployment")?;
        let pod = &deployment["spec"]["template"]["spec"];
        ensure!(
            pod["shareProcessNamespace"] == true
                && pod["initContainers"][0]["restartPolicy"] == "Always"
        );
        let port = &pod["initContainers"][0]["ports"][0]["containerPort"];
        ensure!(*port == config.bind.port(), "{port} is not the sidecar's");
        Ok(())
    });
}
