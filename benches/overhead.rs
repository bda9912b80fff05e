//! What the agent costs a service, against the same service without it: CPU seconds per request, and at rest CPU and memory.
//!
//! Runs itself as the service in a process of its own: without the agent, with the agent, and with the agent and its ring
//! (the CPU profiler always on at 99 Hz). Per request also with a layer that does nothing: what axum itself takes for any layer.
//!
//! At rest: each has answered requests, and then is asked nothing. Prints what the others use more than the one without.
//!
//! Per request: in turns. Each turn takes the same number of requests over the same number of connections, and the agent is
//! scraped once a second. Prints the median of the ratios of neighbouring turns, and the interval that holds the middle 90 % of
//! them.
//!
//! `cargo bench --bench overhead -- --pairs 20 --requests 60000 --rest 60`

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::routing::post;
use axum::{Json, Router};
use headroom::agent::{Agent, EvidenceOptions};
use headroom::signals::Snapshot;
use headroom::signals::catalogue::families;
use headroom::signals::process::ProcessCollector;
use serde_json::Value;
use tower::util::MapRequestLayer;

headroom::profiled_jemalloc!();

/// The last is a service without the agent and with a layer that does nothing.
const MODES: [&str; 4] = ["plain", "agent", "ring", LAYERED];
const LAYERED: &str = "layered";
/// A layer costs nothing at rest.
const AT_REST: usize = 3;
const CONNECTIONS: usize = 8;
/// Kernel ticks of `/proc/PID/stat`: `getconf CLK_TCK` is 100 on every Linux with this file.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |flag: &str| {
        let place = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(place + 1)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(mode) = after("--serve") {
        return runtime.block_on(serve(mode));
    }
    // The HTTP client wants a TLS provider, although nothing here is encrypted. Only the first one counts.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let number = |flag, default| after(flag).map_or(Ok(default), |text| text.parse());
    let (pairs, requests) = (number("--pairs", 20)?, number("--requests", 40_000)?);
    let rest = Duration::from_secs(number("--rest", 60)? as u64);
    runtime.block_on(async {
        if !rest.is_zero() {
            at_rest(requests, rest).await?;
        }
        if pairs > 0 {
            compare(pairs, requests).await?;
        }
        Ok(())
    })
}

/// The service: JSON in, a little work, JSON out.
async fn serve(mode: &str) -> Result<()> {
    let service = Router::new().route("/orders", post(total));
    let agent = match mode {
        "plain" | LAYERED => None,
        mode => {
            let mut builder =
                Agent::builder().service("bench").bind(SocketAddr::from(([127, 0, 0, 1], 0)));
            if mode == "agent" {
                builder = builder.evidence(EvidenceOptions::off());
            }
            Some(builder.start()?)
        }
    };
    let service = match &agent {
        Some(agent) => service.layer(agent.http_layer()),
        None if mode == LAYERED => service.layer(MapRequestLayer::new(|request| request)),
        None => service,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let agent_address = agent.as_ref().map(|agent| agent.local_addr().to_string());
    // The parent reads the addresses from here.
    let addresses = format!("{} {}\n", listener.local_addr()?, agent_address.unwrap_or_default());
    std::io::Write::write_all(&mut std::io::stdout(), addresses.as_bytes())?;
    axum::serve(listener, service).await?;
    Ok(())
}

async fn total(Json(order): Json<Value>) -> Json<Value> {
    let lines = order["lines"].as_array().into_iter().flatten();
    let mut prices: Vec<f64> = lines.filter_map(|line| line["price"].as_f64()).collect();
    prices.sort_by(f64::total_cmp);
    Json(serde_json::json!({"total": prices.iter().sum::<f64>(), "prices": prices}))
}

struct Service {
    process: Child,
    address: String,
    agent: Option<String>,
}

impl Service {
    fn start(mode: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut process = command.args(["--serve", mode]).stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let (address, agent) = line.trim_end_matches('\n').split_once(' ').context("no address")?;
        let agent = Some(agent.to_owned()).filter(|agent| !agent.is_empty());
        Ok(Self { process, address: address.to_owned(), agent })
    }

    /// User and system time of all its threads, ended ones too.
    fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("a malformed stat file")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks = |index: usize| {
            fields.get(index).context("a short stat file")?.parse::<f64>().context("ticks")
        };
        Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
    }
}

impl Service {
    /// The same by the process's clock, which has no ticks.
    fn precise_cpu_seconds(&self) -> Result<f64> {
        let mut snapshot = Snapshot::default();
        ProcessCollector::of(self.process.id().cast_signed()).collect(&mut snapshot);
        let mut readings = snapshot.readings().iter();
        let cpu = readings.find(|reading| reading.family.name == families::PROCESS_CPU.name);
        Ok(cpu.context("no CPU time")?.value)
    }

    fn memory_kib(&self, name: &str) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.id()))?;
        let kib = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
        kib.context("no such line")?.parse().context("KiB")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

/// Microseconds of CPU per request of one turn.
async fn turn(mode: &str, requests: usize) -> Result<f64> {
    let service = Service::start(mode)?;
    load(&service, requests / 10).await?;
    let before = service.cpu_seconds()?;
    load(&service, requests).await?;
    Ok((service.cpu_seconds()? - before) * 1e6 / requests as f64)
}

/// Sends requests, and scrapes the agent once a second meanwhile.
async fn load(service: &Service, requests: usize) -> Result<()> {
    let client =
        reqwest::Client::builder().no_proxy().pool_max_idle_per_host(CONNECTIONS).build()?;
    let scraper = service.agent.clone().map(|agent| {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                let _body = client.get(format!("http://{agent}/metrics")).send().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
    });
    let lines: Vec<Value> =
        (0..20).map(|line| serde_json::json!({"sku": format!("item-{line}"), "price": 3.5 * f64::from(line)})).collect();
    let body = serde_json::json!({"customer": "somebody", "lines": lines}).to_string();
    let send = async |count: usize| -> Result<()> {
        let clients = (0..CONNECTIONS).map(|_| async {
            for _ in 0..count / CONNECTIONS {
                let request = client.post(format!("http://{}/orders", service.address));
                let request = request.header("content-type", "application/json").body(body.clone());
                let answer = request.send().await?;
                ensure!(answer.status().is_success(), "{}", answer.status());
                answer.bytes().await?;
            }
            Ok(())
        });
        futures::future::join_all(clients).await.into_iter().collect()
    };
    let sent = send(requests).await;
    if let Some(scraper) = scraper {
        scraper.abort();
    }
    sent
}

/// For what was freed under load to be given back: jemalloc keeps it for up to ten seconds.
const SETTLE: Duration = Duration::from_secs(20);
/// Of a core, at rest.
const MAX_IDLE: f64 = 0.001;
/// Resident, at rest.
const MAX_RESIDENT_KIB: f64 = 8.0 * 1024.0;

/// What the agent uses while nothing is asked of the service.
async fn at_rest(requests: usize, rest: Duration) -> Result<()> {
    let services = MODES[..AT_REST].iter().map(|mode| Service::start(mode));
    let services = services.collect::<Result<Vec<_>>>()?;
    for service in &services {
        load(service, requests).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let before = services.iter().map(Service::precise_cpu_seconds).collect::<Result<Vec<_>>>()?;
    tokio::time::sleep(rest).await;
    let mut seen = Vec::new();
    for (service, before) in services.iter().zip(before) {
        let core = (service.precise_cpu_seconds()? - before) / rest.as_secs_f64();
        let memory = ["Rss:", "Pss:", "Private_Dirty:"].map(|name| service.memory_kib(name));
        let [resident, shared_out, dirty] = memory;
        seen.push([core, resident?, shared_out?, dirty?]);
    }
    let mut within = true;
    for (mode, used) in MODES.iter().zip(&seen).skip(1) {
        let [core, resident, shared_out, dirty] =
            std::array::from_fn(|figure| used[figure] - seen[0][figure]);
        report(&format!(
            "{mode} at rest: {:.4} % of a core (at most {:.1} %), resident {:.1} MiB more (at most {:.0} MiB), \
             proportional {:.1} MiB, private and dirty {:.1} MiB; without the agent {:.4} % and {:.1} MiB",
            core * 100.0,
            MAX_IDLE * 100.0,
            resident / 1024.0,
            MAX_RESIDENT_KIB / 1024.0,
            shared_out / 1024.0,
            dirty / 1024.0,
            seen[0][0] * 100.0,
            seen[0][1] / 1024.0,
        ));
        within &= core <= MAX_IDLE && resident <= MAX_RESIDENT_KIB;
    }
    ensure!(within, "the agent uses more than it may");
    Ok(())
}

async fn compare(pairs: usize, requests: usize) -> Result<()> {
    let mut ratios = [Vec::new(), Vec::new(), Vec::new()];
    for pair in 0..pairs {
        // Neighbours in time are compared, and which goes first changes.
        let mut order = [0, 1, 2, 3];
        order.rotate_left(pair % 4);
        let mut costs = [0.0; 4];
        for mode in order {
            costs[mode] = turn(MODES[mode], requests).await?;
        }
        for (ratios, cost) in ratios.iter_mut().zip(&costs[1..]) {
            ratios.push(cost / costs[0]);
        }
        report(&format!(
            "pair {:>2}: {:.1} us per request without, {:.1} with the agent, {:.1} with its ring, {:.1} with an empty layer",
            pair + 1,
            costs[0],
            costs[1],
            costs[2],
            costs[3]
        ));
    }
    let modes = ["agent", "agent and ring (99 Hz)", "an empty layer"];
    for (mode, ratios) in modes.iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        let last = ratios.len() - 1;
        // Of 20 pairs one in 20 on either side is left out.
        let at = |twentieth: usize| ratios[last * twentieth / 20];
        report(&format!(
            "{mode}: median ratio {:.4}, middle 90 % from {:.4} to {:.4}, {} pairs",
            at(10),
            at(1),
            at(19),
            ratios.len()
        ));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
fn report(line: &str) {
    println!("{line}");
}
