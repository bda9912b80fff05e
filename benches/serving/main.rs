//! What an answer of the adapter costs, against an answer that is always the same: latency and throughput of both in the same
//! process, over the same TLS and HTTP/2, while a whole fleet is decided about.
//!
//! `make bench`, or `cargo bench --profile dev --bench serving -- --pairs 10 --seconds 10 --policies 1000`. With `--curve` the
//! cost by the number of policies: latency of a read, bytes of the store per pod, and resident memory, as a table and a picture.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "../support/aggregation.rs"]
mod aggregation;
mod aggregator;
mod curve;
mod fleet;
mod ground;

use std::time::Duration;

use aggregator::Run;
use anyhow::Result;
use fleet::{Fleet, NAMESPACE, policy_name};
use ground::Ground;
use tokio_util::sync::CancellationToken;

headroom::profiled_jemalloc!();

const PODS_PER_POLICY: usize = 10;

/// `--NAME VALUE` of the command line.
fn argument<T: std::str::FromStr>(name: &str, default: T) -> T {
    let arguments: Vec<String> = std::env::args().collect();
    let place = arguments.iter().position(|argument| argument == name);
    place.and_then(|place| arguments.get(place + 1)?.parse().ok()).unwrap_or(default)
}

fn main() -> Result<()> {
    // A second call only says that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if std::env::args().any(|argument| argument == "--curve") {
        return curve::draw(
            argument("--most", 10_000),
            Duration::from_secs(argument("--seconds", 4)),
        );
    }
    let seconds = Duration::from_secs(argument("--seconds", 10));
    compare(argument("--policies", 1_000), argument("--pairs", 10), seconds)
}

/// The path of an HPA's read of one of so many policies.
fn demand_of(policies: usize) -> impl Fn(usize) -> String + Send + Sync + 'static {
    move |random| {
        let policy = policy_name(random % policies);
        format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/headroom_demand?labelSelector=policy%3D{policy}"
        )
    }
}

fn compare(policies: usize, pairs: usize, seconds: Duration) -> Result<()> {
    let shutdown = CancellationToken::new();
    let servers = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (fleet, ground) = servers.block_on(async {
        let fleet = Fleet::start(policies, PODS_PER_POLICY, &shutdown).await?;
        let ground = Ground::start(&fleet, &shutdown).await?;
        profiled().await?;
        anyhow::Ok((fleet, ground))
    })?;
    println!(
        "{policies} policies over {} pods, each updated every {} s while serving",
        policies * PODS_PER_POLICY,
        fleet::INTERVAL.as_secs()
    );
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut ratios: [Vec<f64>; 3] = Default::default();
    let mut runs: [Vec<Run>; 2] = Default::default();
    for pair in 1..=pairs {
        let (fixed, served) = client.block_on(async {
            let fixed = ground.client.run(ground.fixed, seconds, demand_of(policies)).await?;
            let served = ground.client.run(ground.adapter, seconds, demand_of(policies)).await?;
            anyhow::Ok((fixed, served))
        })?;
        println!("{pair:>3}  static {}   adapter {}", shown(&fixed), shown(&served));
        let [p50, p99, throughput] = &mut ratios;
        p50.push(served.p50.as_secs_f64() / fixed.p50.as_secs_f64());
        p99.push(served.p99.as_secs_f64() / fixed.p99.as_secs_f64());
        throughput.push(served.per_second / fixed.per_second);
        runs[0].push(fixed);
        runs[1].push(served);
    }
    let of = |get: fn(&Run) -> f64| median(&runs[1], get) / median(&runs[0], get);
    println!(
        "store: {:.0} bytes a pod",
        fleet.gauge("headroom_adapter_store_bytes") / as_number(policies * PODS_PER_POLICY)
    );
    let mut missed = Vec::new();
    for (name, ratio, spread, bar, holds) in [
        (
            "p50",
            of(|run| run.p50.as_secs_f64()),
            &ratios[0],
            1.3,
            f64::le as fn(&f64, &f64) -> bool,
        ),
        ("p99", of(|run| run.p99.as_secs_f64()), &ratios[1], 2.0, f64::le),
        ("throughput", of(|run| run.per_second), &ratios[2], 0.8, f64::ge),
    ] {
        let mut spread = spread.clone();
        spread.sort_by(f64::total_cmp);
        println!(
            "{name:<11} ratio of medians {ratio:.3} (pairs {:.3} to {:.3}; bar {bar})",
            spread[0],
            spread[spread.len() - 1]
        );
        if !holds(&ratio, &bar) {
            missed.push(name);
        }
    }
    shutdown.cancel();
    anyhow::ensure!(missed.is_empty(), "missed: {}", missed.join(", "));
    Ok(())
}

/// With `--pprof ADDRESS` the profiles of this process are served there while it runs.
async fn profiled() -> Result<()> {
    let address = argument("--pprof", String::new());
    if address.is_empty() {
        return Ok(());
    }
    let service = headroom::pprof::Service { name: "serving".to_owned(), version: String::new() };
    let routes = headroom::pprof::routes(&service, Some(tokio::runtime::Handle::current()));
    let listener = tokio::net::TcpListener::bind(address).await?;
    tokio::spawn(async { axum::serve(listener, routes).await });
    Ok(())
}

fn as_number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn median(runs: &[Run], get: fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(get).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn shown(run: &Run) -> String {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    format!(
        "p50 {:>5.0} us p99 {:>6.0} us {:>6.0}/s",
        micros(run.p50),
        micros(run.p99),
        run.per_second
    )
}
