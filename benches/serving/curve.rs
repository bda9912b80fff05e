//! Cost by size: one read's latency beside a static answer's, the store's bytes per pod, and resident memory, from 10 policies up.
//!
//! The static answer is measured at each size, in turns with the adapter: what the deciding of so many policies takes of the
//! machine's cores slows both, and what a read costs by the size of what it reads is in the ratio.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use crate::aggregator::Run;
use crate::fleet::Fleet;
use crate::ground::Ground;
use crate::{as_number, demand_of, median};

/// One, so that as many policies as the store has places for can be shown.
const PODS_PER_POLICY: usize = 1;
/// Turns of each of both at one size.
const TURNS: usize = 5;

/// One size's figures.
struct Point {
    policies: usize,
    static_p50_micros: f64,
    p50_micros: f64,
    p99_micros: f64,
    store_bytes_per_pod: f64,
    resident_mib: f64,
}

impl Point {
    /// One read against a static answer.
    fn ratio(&self) -> f64 {
        self.p50_micros / self.static_p50_micros
    }
}

/// What a chart shows of a point.
type Figure = fn(&Point) -> f64;

/// Measures each size in this process, prints the table, and writes `target/serving-curve.svg`.
pub(crate) fn draw(most: usize, seconds: Duration) -> Result<()> {
    let sizes =
        std::iter::successors(Some(10), |size| Some(size * 10)).take_while(|size| *size <= most);
    let points: Result<Vec<Point>> = sizes.map(|policies| measured(policies, seconds)).collect();
    let points = points?;
    println!(
        "{:>9} {:>9} {:>14} {:>10} {:>10} {:>10} {:>12} {:>13}",
        "policies",
        "pods",
        "static p50 us",
        "p50 us",
        "ratio",
        "p99 us",
        "bytes/pod",
        "resident MiB"
    );
    for point in &points {
        println!(
            "{:>9} {:>9.0} {:>14.0} {:>10.0} {:>10.3} {:>10.0} {:>12.0} {:>13.1}",
            point.policies,
            as_number(point.policies * PODS_PER_POLICY),
            point.static_p50_micros,
            point.p50_micros,
            point.ratio(),
            point.p99_micros,
            point.store_bytes_per_pod,
            point.resident_mib
        );
    }
    let (first, last) = (&points[0], &points[points.len() - 1]);
    println!(
        "{} policies against {}: p50 {:.3} times, the static answer's {:.3} times, the ratio of both {:.3} times (bar 1.2)",
        last.policies,
        first.policies,
        last.p50_micros / first.p50_micros,
        last.static_p50_micros / first.static_p50_micros,
        last.ratio() / first.ratio()
    );
    std::fs::write("target/serving-curve.svg", picture(&points))?;
    Ok(())
}

fn measured(policies: usize, seconds: Duration) -> Result<Point> {
    let shutdown = CancellationToken::new();
    let servers = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (fleet, ground) = servers.block_on(async {
        let fleet = Fleet::start(policies, PODS_PER_POLICY, &shutdown).await?;
        let ground = Ground::start(&fleet, &shutdown).await?;
        // Until windows of a minute are full, bytes per pod only grow.
        tokio::time::sleep(Duration::from_secs(75)).await;
        anyhow::Ok((fleet, ground))
    })?;
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut runs: [Vec<Run>; 2] = Default::default();
    for _ in 0..TURNS {
        for (runs, server) in runs.iter_mut().zip([ground.fixed, ground.adapter]) {
            let asked = ground.client.run(server, seconds, demand_of(policies));
            runs.push(client.block_on(asked)?);
        }
    }
    let [fixed, served] = &runs;
    let p50 = |runs: &[Run]| median(runs, |run| run.p50.as_secs_f64() * 1e6);
    let store = fleet.gauge("headroom_adapter_store_bytes");
    let resident_mib = resident_mib()?;
    shutdown.cancel();
    Ok(Point {
        policies,
        static_p50_micros: p50(fixed),
        p50_micros: p50(served),
        p99_micros: median(served, |run| run.p99.as_secs_f64() * 1e6),
        store_bytes_per_pod: store / as_number(policies * PODS_PER_POLICY),
        resident_mib,
    })
}

fn resident_mib() -> Result<f64> {
    let status = procfs::process::Process::myself()?.status()?;
    let kib = u32::try_from(status.vmrss.unwrap_or_default())?;
    Ok(f64::from(kib) / 1024.0)
}

/// Three small charts on a logarithmic axis of policies.
fn picture(points: &[Point]) -> String {
    const WIDTH: f64 = 300.0;
    const HEIGHT: f64 = 220.0;
    let charts: [(&str, Figure); 3] = [
        ("p50 of one read, by a static answer's, %", |point| point.ratio() * 100.0),
        ("store, bytes a pod", |point| point.store_bytes_per_pod),
        ("resident, MiB", |point| point.resident_mib),
    ];
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {HEIGHT}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#ffffff"/>"##,
        WIDTH * 3.0
    );
    let last = f64::from(u32::try_from(points.len().max(2) - 1).unwrap_or(1));
    for (place, (title, get)) in (0_u32..).zip(charts) {
        let left = f64::from(place) * WIDTH + 50.0;
        let most = points.iter().map(get).fold(0.0, f64::max) * 1.15;
        let x = |index: u32| left + f64::from(index) * (WIDTH - 90.0) / last;
        let y = |value: f64| HEIGHT - 45.0 - value / most * (HEIGHT - 90.0);
        let _ = write!(
            svg,
            r##"<text x="{left}" y="24" font-weight="bold">{title}</text><line x1="{left}" y1="{0}" x2="{1}" y2="{0}" stroke="#888888"/>"##,
            y(0.0),
            left + WIDTH - 70.0
        );
        let mut line = String::new();
        for (index, point) in (0_u32..).zip(points) {
            let (x, y, value) = (x(index), y(get(point)), get(point));
            let _ = write!(line, "{x:.1},{y:.1} ");
            let _ = write!(
                svg,
                r##"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="#1f60c4"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{value:.0}</text><text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="#555555">{}</text>"##,
                y - 8.0,
                HEIGHT - 26.0,
                point.policies
            );
        }
        let _ = write!(
            svg,
            r##"<polyline points="{line}" fill="none" stroke="#1f60c4" stroke-width="2"/><text x="{:.1}" y="{:.1}" text-anchor="middle" fill="#555555">policies</text>"##,
            left + (WIDTH - 90.0) / 2.0,
            HEIGHT - 8.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}
