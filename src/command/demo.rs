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
/// The name of the first process.
const SERVICE: &str = "sample service";
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

/// Cancelled when the demo, or the part of it, is to end: at a signal or after its seconds.
fn stop_token(args: &DemoArgs) -> anyhow::Result<CancellationToken> {
    let token = shutdown::on_signal().context("cannot handle signals")?;
    if let Some(seconds) = args.seconds {
        let token = token.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            token.cancel();
        });
    }
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
    let flag = |bound: Option<SocketAddr>, bind, port| if bound.is_some() { bind } else { port };
    for (address, flag) in [
        (args.service_address(), flag(args.service_bind, "--service-bind", "--service-port")),
        (args.agent_address(), flag(args.agent_bind, "--agent-bind", "--agent-port")),
        (args.adapter_address(), "--adapter-port"),
    ] {
        must_be_free(address, flag)?;
    }
    must_differ(&args)?;
    let shutdown = stop_token(&args)?;
    let credentials = Credentials::make(args.token.clone())?;
    let quiet = [("HEADROOM_LOG", "error")];
    let service = Process::start(SERVICE, &service_arguments(&args), &quiet)?;
    let with_token =
        [("HEADROOM_LOG", "error"), ("HEADROOM_DEMO_TOKEN", credentials.token.as_str())];
    let adapter_arguments = adapter_arguments(&args, credentials.folder());
    let adapter = Process::start("adapter", &adapter_arguments, &with_token)?;
    let mut processes = [service, adapter];

    let load = tokio::spawn(load::run(args.service_address(), scenario::load()?, shutdown.clone()));
    let drawn = draw(&args, &credentials, &mut processes, shutdown.clone()).await;
    shutdown.cancel();
    let _ = load.await;
    drawn.or_else(|error| if reader_is_gone(&error) { Ok(()) } else { Err(error) })
}

/// `headroom demo | head`: who read has seen enough.
fn reader_is_gone(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
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
    let read_variables = credentials.write_shell(args.adapter_address())?;
    let mut screen = Screen::open(std::io::stdout().is_terminal())?;
    let mut scene = Scene::new();
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = frames.tick() => {}
        }
        let seen = observer.observe().await;
        scene.take(&seen);
        let ended = processes.iter_mut().filter_map(Process::end).collect();
        let kills = processes.iter_mut().filter_map(Process::kill_command).unzip();
        let commands = commands(args.agent_address(), &read_variables, kills);
        screen.show(&scene.frame(&seen, ended, commands))?;
    }
    screen.close()
}

/// The commands to copy, none longer than a line of 80 columns shows: the last ones kill the named processes.
fn commands(
    agent: SocketAddr,
    read_variables: &str,
    (names, kills): (Vec<&str>, Vec<String>),
) -> Vec<(String, Vec<String>)> {
    let number =
        r#"curl --cacert "$CA" -H "Authorization: Bearer $TOKEN" $API/headroom_demand"#.to_owned();
    let profile = format!("go tool pprof -top 'http://{agent}/debug/pprof/profile?seconds=5'");
    let mut commands = vec![
        ("the number an HPA scales on".to_owned(), vec![read_variables.to_owned(), number]),
        (
            "the agent's metrics; a CPU profile of the service".to_owned(),
            vec![format!("curl http://{agent}/metrics"), profile],
        ),
    ];
    if !kills.is_empty() {
        commands.push((format!("what happens without the {}", names.join(", or the ")), kills));
    }
    commands
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
        commands: Vec<(String, Vec<String>)>,
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
        let service_ended = ended.iter().any(|end| end.contains(SERVICE));
        view::Frame {
            rows: rows.collect(),
            demand: seen.demand.clone(),
            history: &self.history,
            replicas: self.replicas.shown(Instant::now()),
            // Of a service that has ended the picture says so already.
            metrics_error: seen.gauges.as_ref().err().filter(|_| !service_ended).cloned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_of_80_columns_breaks_no_command_and_what_is_dead_is_not_to_be_killed() {
        let agent = "127.0.0.1:65535".parse().expect("an address");
        let killed = (vec!["adapter"], vec!["kill 4194304".to_owned()]);
        let commands = commands(agent, ". /tmp/headroom-demo-4194304/env", killed);
        let (what, kills) = commands.last().expect("commands");
        assert_eq!((what.as_str(), kills.len()), ("what happens without the adapter", 1));
        for command in commands.iter().flat_map(|(_, commands)| commands) {
            let shown = format!("    {command}");
            assert!(shown.len() <= 80, "{shown}");
        }
    }
}
