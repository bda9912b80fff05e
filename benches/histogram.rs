//! What recording a duration costs: against one relaxed atomic addition, and against the histogram of the `prometheus` crate
//! with as many threads as cores.
//!
//! Run with `make bench`. A figure is the median of rounds in which every thread had a core to itself for at least 95 % of
//! the time, since threads that take turns do not contend.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use headroom::signals::exponential::Histogram;
use tokio::time::Instant;

const ROUNDS: usize = 21;
/// Rounds that are tried before those with the least waiting are taken.
const MAX_ROUNDS: usize = 2_000;
const OPERATIONS: u32 = 50_000;
/// At most so many relaxed additions, on one thread.
const MAX_COST: f64 = 3.0;
/// At least so many times the throughput of the `prometheus` crate, on all cores.
const MIN_THROUGHPUT: f64 = 5.0;

fn main() -> ExitCode {
    let durations: Vec<Duration> =
        (0..1024_u64).map(|step| Duration::from_nanos(1_000 + step * step * 977)).collect();
    let seconds: Vec<f64> = durations.iter().map(Duration::as_secs_f64).collect();

    let (counter, ours) = (AtomicU64::new(0), Histogram::default());
    let addition = median(1, |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let record = median(1, |step| ours.record(durations[step]));
    let cost = record / addition;
    println!(
        "1 thread: record {record:.1} ns, relaxed fetch_add {addition:.1} ns: \
         {cost:.2} times (at most {MAX_COST})"
    );

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let options = prometheus::HistogramOpts::new("theirs_seconds", "for comparison");
    let theirs = prometheus::Histogram::with_opts(options).expect("valid options");
    let ours = Histogram::default();
    let record = median(cores, |step| ours.record(durations[step]));
    let observe = median(cores, |step| theirs.observe(seconds[step]));
    let ratio = observe / record;
    println!(
        "{cores} threads: record {record:.1} ns, prometheus observe {observe:.1} ns per operation \
         and thread: {ratio:.1} times the throughput (at least {MIN_THROUGHPUT})"
    );
    if cost <= MAX_COST && ratio >= MIN_THROUGHPUT { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Nanoseconds per operation and thread, with so many threads at once.
fn median(threads: usize, operation: impl Fn(usize) + Sync) -> f64 {
    let mut rounds: Vec<Round> = Vec::new();
    let undisturbed = |rounds: &[Round]| rounds.iter().filter(|round| round.waited < 0.05).count();
    while undisturbed(&rounds) < ROUNDS && rounds.len() < MAX_ROUNDS {
        rounds.push(round(threads, &operation));
    }
    rounds.sort_by(|a, b| a.waited.total_cmp(&b.waited));
    rounds.truncate(ROUNDS);
    rounds.sort_by(|a, b| a.nanoseconds.total_cmp(&b.nanoseconds));
    rounds[rounds.len() / 2].nanoseconds
}

struct Round {
    /// Per operation, of the slowest thread.
    nanoseconds: f64,
    /// The largest share of a thread's time in which it had no core.
    waited: f64,
}

fn round(threads: usize, operation: &(impl Fn(usize) + Sync)) -> Round {
    let arrived = AtomicUsize::new(0);
    let run = || {
        let waited = waited();
        arrived.fetch_add(1, Ordering::AcqRel);
        // Not a barrier, which would wake the others too late: whoever is here has a core.
        while arrived.load(Ordering::Acquire) < threads {
            std::hint::spin_loop();
        }
        let began = Instant::now();
        for step in 0..OPERATIONS {
            // No black box: it would pass through memory, and its load would wait for the address of the count before it.
            // Atomics are not left out.
            operation(step as usize % 1024);
        }
        let took = began.elapsed().as_secs_f64() * 1e9;
        (took / f64::from(OPERATIONS), (self::waited() - waited) / took)
    };
    let results: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().expect("nothing panics")).collect()
    });
    let largest = |of: fn(&(f64, f64)) -> f64| results.iter().map(of).fold(0.0, f64::max);
    Round { nanoseconds: largest(|result| result.0), waited: largest(|result| result.1) }
}

/// Nanoseconds that this thread was ready to run and had no core: the second number of its schedstat.
fn waited() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0.0)
}
