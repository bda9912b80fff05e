//! `headroom demo`: a sample service under load with the agent in it, and the adapter, without a cluster.
//!
//! Three processes: this one draws and makes the load, and starts the service and the adapter as processes of their own,
//! so that either can be killed and the picture says what an operator would see.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::shutdown;
use crate::cli::DemoArgs;
use crate::telemetry::{LogFormat, Telemetry};

mod adapter;
mod credentials;
pub mod load;
mod observer;
mod processes;
mod replicas;
mod scenario;
mod screen;
pub mod service;
mod view;

use credentials::Credentials;
use observer::{Endpoints, Observation, Observer};
use processes::Process;
use replicas::Replicas;
use screen::Screen;

/// How often the view reads and draws.
const FRAME: Duration = Duration::from_secs(1);
/// Frames that the sparkline shows.
const HISTORY: usize = 48;

/// Runs the demo, or the part of it that the arguments name.
pub(super) fn run(args: DemoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start tokio")?;
    if args.service_only {
        Telemetry::init();
        return runtime.block_on(serve_sample(args));
    }
    if args.adapter_only {
        Telemetry::init();
        return runtime.block_on(async {
            let shutdown = stop_token(&args)?;
            adapter::run(&args, shutdown).await
        });
    }
    runtime.block_on(show(args))
}

fn stop_token(args: &DemoArgs) -> anyhow::Result<CancellationToken> {
    let token = shutdown::on_signal().context("cannot handle signals")?;
    if args.until_stdin_closes {
        shutdown::on_stdin_closed(token.clone());
    }
    Ok(token)
}

async fn serve_sample(args: DemoArgs) -> anyhow::Result<()> {
    let options = service::ServiceOptions {
        bind: args.service_address(),
        agent_bind: args.agent_address(),
        concurrency: args.service_concurrency,
        startup_delay: args.service_startup_delay,
    };
    let shutdown = stop_token(&args)?;
    Ok(service::run(options, shutdown).await?)
}

/// The demo itself: start the processes, make the load, draw until told to end.
async fn show(args: DemoArgs) -> anyhow::Result<()> {
    Telemetry::init_with(LogFormat::Text);
    for (address, flag) in [
        (args.service_address(), "--service-port"),
        (args.agent_address(), "--agent-port"),
        (args.adapter_address(), "--adapter-port"),
    ] {
        must_be_free(address, flag)?;
    }
    must_differ(&args)?;
    let shutdown = shutdown::on_signal().context("cannot handle signals")?;
    let credentials = Credentials::make(args.token.clone())?;
    let quiet = [("HEADROOM_LOG", "error")];
    let service = Process::start("sample service", &service_arguments(&args), &quiet)?;
    let with_token =
        [("HEADROOM_LOG", "error"), ("HEADROOM_DEMO_TOKEN", credentials.token.as_str())];
    let adapter_arguments = adapter_arguments(&args, credentials.folder());
    let adapter = Process::start("adapter", &adapter_arguments, &with_token)?;
    let mut processes = [service, adapter];

    let load = tokio::spawn(load::run(args.service_address(), scenario::load()?, shutdown.clone()));
    let drawn = draw(&args, &credentials, &mut processes, shutdown.clone()).await;
    shutdown.cancel();
    let _ = load.await;
    drawn
}

fn must_differ(args: &DemoArgs) -> anyhow::Result<()> {
    let addresses = [args.service_address(), args.agent_address(), args.adapter_address()];
    let clash = addresses.iter().enumerate().any(|(at, address)| addresses[..at].contains(address));
    if clash || addresses.iter().any(|address| address.port() == 0) {
        bail!("the service, the agent and the adapter need three different ports, none of them 0");
    }
    Ok(())
}

fn must_be_free(address: SocketAddr, flag: &str) -> anyhow::Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "port {} on {} is taken; choose another with {flag}",
                address.port(),
                address.ip()
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {address} ({flag})")),
    }
}

fn service_arguments(args: &DemoArgs) -> Vec<String> {
    let mut arguments = vec!["demo".to_owned(), "--service-only".to_owned()];
    arguments.extend(["--service-bind".to_owned(), args.service_address().to_string()]);
    arguments.extend(["--agent-bind".to_owned(), args.agent_address().to_string()]);
    let delay = format!("{}ms", args.service_startup_delay.as_millis());
    arguments.extend(["--service-startup-delay".to_owned(), delay]);
    arguments.extend(["--service-concurrency".to_owned(), args.service_concurrency.to_string()]);
    arguments
}

fn adapter_arguments(args: &DemoArgs, credentials: &Path) -> Vec<String> {
    let mut arguments = vec!["demo".to_owned(), "--adapter-only".to_owned()];
    arguments.extend(["--adapter-port".to_owned(), args.adapter_port.to_string()]);
    arguments.extend(["--agent-bind".to_owned(), args.agent_address().to_string()]);
    arguments.extend(["--credentials".to_owned(), credentials.display().to_string()]);
    arguments
}

async fn draw(
    args: &DemoArgs,
    credentials: &Credentials,
    processes: &mut [Process; 2],
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let observer = Observer::new(&Endpoints {
        adapter: args.adapter_address(),
        agent: args.agent_address(),
        ca_pem: &credentials.ca_pem,
        token: &credentials.token,
    })?;
    let commands = commands(args, credentials, (processes[0].id(), processes[1].id()));
    let mut screen = Screen::open(std::io::stdout().is_terminal())?;
    let mut scene = Scene::new();
    let started = Instant::now();
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = frames.tick() => {}
        }
        if args.seconds.is_some_and(|seconds| started.elapsed().as_secs() >= seconds) {
            break;
        }
        let seen = observer.observe().await;
        scene.take(&seen);
        let ended = processes.iter_mut().filter_map(Process::end).collect();
        screen.show(&scene.frame(&seen, ended, &commands))?;
    }
    screen.close()
}

fn commands(
    args: &DemoArgs,
    credentials: &Credentials,
    (service, adapter): (u32, u32),
) -> Vec<(&'static str, String)> {
    let ca = credentials.ca_file();
    let api = format!(
        "https://{}/apis/external.metrics.k8s.io/v1beta1/namespaces/default",
        args.adapter_address()
    );
    vec![
        (
            "the number an HPA scales on",
            format!(
                "curl --cacert {} -H 'Authorization: Bearer {}' {api}/headroom_demand",
                ca.display(),
                credentials.token
            ),
        ),
        ("the agent's metrics", format!("curl http://{}/metrics", args.agent_address())),
        (
            "a CPU profile of the service",
            format!(
                "go tool pprof -top 'http://{}/debug/pprof/profile?seconds=5'",
                args.agent_address()
            ),
        ),
        (
            "what happens when the adapter dies, or the service",
            format!("kill {adapter}    kill {service}"),
        ),
    ]
}

/// What the picture remembers from frame to frame.
struct Scene {
    history: VecDeque<Option<f64>>,
    replicas: Replicas,
    last_number: Option<Instant>,
}

impl Scene {
    fn new() -> Self {
        Self { history: VecDeque::new(), replicas: Replicas::new(), last_number: None }
    }

    fn take(&mut self, seen: &Observation) {
        let now = Instant::now();
        if seen.demand.is_ok() {
            self.last_number = Some(now);
        }
        self.history.push_back(seen.demand.as_ref().ok().copied());
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        self.replicas.look(seen.demand.as_ref().ok().copied(), now);
    }

    fn frame<'a>(
        &'a self,
        seen: &Observation,
        ended: Vec<String>,
        commands: &'a [(&'static str, String)],
    ) -> view::Frame<'a> {
        let rows = scenario::SHOWN.iter().map(|shown| {
            let gauges = seen.gauges.as_ref().ok();
            let raw = seen.totals.get(shown.metric).or_else(|| gauges?.get(shown.metric));
            let demand = seen.signals.get(shown.signal).copied();
            // A known demand without a raw value: no request came, so that there is no latency to show.
            let without = if demand.is_some() { "idle" } else { "-" };
            view::Row {
                name: shown.signal,
                now: raw.map_or_else(|| without.to_owned(), |value| shown.unit.show(*value)),
                per_pod: shown.per_pod,
                demand,
            }
        });
        view::Frame {
            rows: rows.collect(),
            demand: seen.demand.clone(),
            history: &self.history,
            replicas: self.replicas.shown(Instant::now()),
            metrics_error: seen.gauges.as_ref().err().cloned(),
            unknown_seconds: self.last_number.map(|last| last.elapsed().as_secs()),
            ended,
            commands,
        }
    }
}

/// Writes lines to standard output, flushed.
fn print(lines: &[String]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()
}
