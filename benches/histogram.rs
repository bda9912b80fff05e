//! What recording a duration costs: against one relaxed atomic addition, and against the histogram of the `prometheus` crate
//! with as many threads as cores.
//!
//! Run with `make bench`. Each figure is the best of several rounds, since anything else on the machine only makes it slower.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use headroom::signals::exponential::Histogram;
use tokio::time::Instant;

const ROUNDS: usize = 15;
const OPERATIONS: u32 = 1_000_000;
/// At most so many relaxed additions, on one thread.
const MAX_COST: f64 = 3.0;
/// At least so many times the throughput of the `prometheus` crate, on all cores.
const MIN_THROUGHPUT: f64 = 5.0;

fn main() -> ExitCode {
    let durations: Vec<Duration> =
        (0..1024_u64).map(|step| Duration::from_nanos(1_000 + step * step * 977)).collect();
    let seconds: Vec<f64> = durations.iter().map(Duration::as_secs_f64).collect();

    let (counter, ours) = (AtomicU64::new(0), Histogram::default());
    let addition = best(1, |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let record = best(1, |step| ours.record(durations[step]));
    let cost = record / addition;
    println!(
        "one thread: record {record:.1} ns, relaxed fetch_add {addition:.1} ns: {cost:.2} times (at most {MAX_COST})"
    );

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let options = prometheus::HistogramOpts::new("theirs_seconds", "for comparison");
    let theirs = prometheus::Histogram::with_opts(options).expect("valid options");
    let ours = Histogram::default();
    let record = best(cores, |step| ours.record(durations[step]));
    let observe = best(cores, |step| theirs.observe(seconds[step]));
    let ratio = observe / record;
    println!(
        "{cores} threads: record {record:.1} ns, prometheus observe {observe:.1} ns per operation and thread: \
         {ratio:.1} times the throughput (at least {MIN_THROUGHPUT})"
    );
    if cost <= MAX_COST && ratio >= MIN_THROUGHPUT { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Nanoseconds per operation and thread in the best round, with so many threads at once.
fn best(threads: usize, operation: impl Fn(usize) + Sync) -> f64 {
    let round = |_| {
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| repeat(&operation));
            }
            repeat(&operation);
        });
        began.elapsed().as_secs_f64() * 1e9 / f64::from(OPERATIONS)
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

fn repeat(operation: &impl Fn(usize)) {
    let mut step = 0;
    for _ in 0..OPERATIONS {
        operation(black_box(step % 1024));
        step += 1;
    }
}
