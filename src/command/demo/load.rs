//! Load for the sample service that rises and falls, so that every signal does.
//!
//! In: the service's address and a plan. Out: requests, a bounded number at a time. Never: a retry; a request that finds
//! no room or fails is counted, and the load goes on.

use std::f64::consts::TAU;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::units::{ByteCount, BytesPerSecond, CpuCores, Measure, Ratio, TaskCount};

/// The load is decided anew this often.
const TICK: Duration = Duration::from_secs(1);

/// What is held is held for so many ticks, and a share of it asked for in each.
const HOLD_TICKS: f64 = 5.0;

/// The longest piece of CPU time that one request asks for.
const CPU_PIECE_MILLISECONDS: f64 = 100.0;

const IN_FLIGHT: usize = 256;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How much load there is at the top of a wave, and how long a wave takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// From one trough to the next.
    pub period: Duration,
    /// Live tasks.
    pub tasks: TaskCount,
    /// Held heap.
    pub heap: ByteCount,
    /// Allocation.
    pub allocation: BytesPerSecond,
    /// CPU time.
    pub cpu: CpuCores,
    /// Requests of `/work`.
    pub work_per_second: f64,
    /// How long each of them is served.
    pub work_duration: Duration,
    /// Queued items.
    pub queue_items: f64,
}

impl Default for Plan {
    /// What a laptop stands and the thresholds of the demo's policy notice: a wave of two minutes.
    fn default() -> Self {
        const MEBIBYTE: f64 = 1_048_576.0;
        Self {
            period: Duration::from_secs(120),
            tasks: TaskCount::new(10_000.0).unwrap_or_default(),
            heap: ByteCount::new(256.0 * MEBIBYTE).unwrap_or_default(),
            allocation: BytesPerSecond::new(400.0 * MEBIBYTE).unwrap_or_default(),
            cpu: CpuCores::new(0.5).unwrap_or_default(),
            work_per_second: 120.0,
            work_duration: Duration::from_millis(50),
            queue_items: 400.0,
        }
    }
}

/// How many requests went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Answered with success.
    pub succeeded: u64,
    /// Not answered, or answered with another status.
    pub failed: u64,
    /// Not sent, because too many were in flight.
    pub skipped: u64,
}

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The HTTP client cannot be made.
    #[error("cannot make the HTTP client of the load")]
    Client(#[source] reqwest::Error),
}

/// One request of a tick.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    /// When in the tick it is sent.
    after: Duration,
    path: String,
}

impl Plan {
    /// How high the load is after `elapsed`: from 0 up to 1 and back in each period, smoothly.
    fn level(&self, elapsed: Duration) -> Ratio {
        let turn = elapsed.as_secs_f64() / self.period.as_secs_f64().max(f64::MIN_POSITIVE);
        Ratio::new((1.0 - (TAU * turn).cos()) / 2.0).unwrap_or_default()
    }

    /// What one tick asks for, in the order of time.
    fn requests(&self, level: Ratio) -> Vec<Request> {
        let level = level.get();
        let hold_seconds = HOLD_TICKS * TICK.as_secs_f64();
        let mut requests = Vec::new();
        let mut once = |amount: f64, path: &dyn Fn(u64) -> String| {
            let amount = whole(amount * level);
            if amount > 0 {
                requests.push(Request { after: Duration::ZERO, path: path(amount) });
            }
        };
        once(self.tasks.get() / HOLD_TICKS, &|n| {
            format!("/tasks?count={n}&seconds={hold_seconds}")
        });
        once(self.heap.get() / HOLD_TICKS, &|n| format!("/heap?bytes={n}&seconds={hold_seconds}"));
        once(self.queue_items / HOLD_TICKS, &|n| {
            format!("/queue?items={n}&seconds={hold_seconds}")
        });
        once(self.allocation.get() * TICK.as_secs_f64(), &|n| format!("/allocate?bytes={n}"));

        let cpu_milliseconds = self.cpu.get() * level * TICK.as_secs_f64() * 1000.0;
        let pieces = (cpu_milliseconds / CPU_PIECE_MILLISECONDS).ceil();
        let piece = whole(cpu_milliseconds / pieces.max(1.0));
        if piece > 0 {
            requests.extend(spread(whole(pieces), &format!("/cpu?milliseconds={piece}")));
        }
        let work = whole(self.work_per_second * level * TICK.as_secs_f64());
        let milliseconds = self.work_duration.as_millis().max(1);
        requests.extend(spread(work, &format!("/work?milliseconds={milliseconds}")));
        requests.sort_by_key(|request| request.after);
        requests
    }
}

/// `count` equal requests at equal distances over a tick.
fn spread(count: u64, path: &str) -> impl Iterator<Item = Request> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    (0..count).map(move |index| Request { after: TICK * index / count, path: path.to_owned() })
}

#[expect(clippy::cast_possible_truncation, reason = "float to int saturates")]
#[expect(clippy::cast_sign_loss, reason = "the amounts of a plan are not negative")]
fn whole(amount: f64) -> u64 {
    amount.round() as u64
}

/// Loads the sample service at `target`, wave after wave, until `shutdown`.
///
/// # Errors
/// [`LoadError::Client`].
pub async fn run(
    target: SocketAddr,
    plan: Plan,
    shutdown: CancellationToken,
) -> Result<Sent, LoadError> {
    let sender = Arc::new(Sender::new(target)?);
    let mut in_flight = JoinSet::new();
    let start = Instant::now();
    let mut tick = start;
    debug!(%target, period_seconds = plan.period.as_secs_f64(), "load begins");
    while !shutdown.is_cancelled() {
        for request in plan.requests(plan.level(tick - start)) {
            if shutdown.run_until_cancelled(sleep_until(tick + request.after)).await.is_none() {
                break;
            }
            while in_flight.try_join_next().is_some() {}
            in_flight.spawn(sender.clone().send(request.path));
        }
        tick += TICK;
        // Woken early by the shutdown, which ends the loop.
        let _ = shutdown.run_until_cancelled(sleep_until(tick)).await;
    }
    in_flight.shutdown().await;
    Ok(sender.sent())
}

#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    target: SocketAddr,
    room: Semaphore,
    succeeded: AtomicU64,
    failed: AtomicU64,
    skipped: AtomicU64,
}

impl Sender {
    fn new(target: SocketAddr) -> Result<Self, LoadError> {
        // Refused if another part of the program chose it already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .no_proxy()
            .build()
            .map_err(LoadError::Client)?;
        Ok(Self {
            client,
            target,
            room: Semaphore::new(IN_FLIGHT),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        })
    }

    async fn send(self: Arc<Self>, path: String) {
        let Ok(_room) = self.room.try_acquire() else {
            self.skipped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let answer = self.client.post(format!("http://{}{path}", self.target)).send().await;
        match answer.and_then(reqwest::Response::error_for_status) {
            Ok(_) => self.succeeded.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                debug!(error = %error, "a request of the load failed");
                self.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }

    fn sent(&self) -> Sent {
        Sent {
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(value: f64) -> Ratio {
        Ratio::new(value).expect("a ratio")
    }

    #[test]
    fn a_wave_starts_low_and_is_highest_in_its_middle() {
        let plan = Plan::default();
        let level = |seconds| plan.level(Duration::from_secs(seconds)).get();
        assert!(level(0) < 0.001 && level(120) < 0.001);
        assert!(level(60) > 0.999);
        assert!((level(30) - 0.5).abs() < 0.001 && (level(90) - 0.5).abs() < 0.001);
    }

    #[test]
    fn no_load_asks_for_nothing() {
        assert_eq!(Plan::default().requests(ratio(0.0)), []);
    }

    #[test]
    fn half_the_load_asks_for_half_of_everything() {
        let requests = Plan::default().requests(ratio(0.5));
        let count = |path: &str| requests.iter().filter(|request| request.path == path).count();
        for (path, expected) in [
            ("/tasks?count=1000&seconds=5", 1),
            ("/heap?bytes=26843546&seconds=5", 1),
            ("/queue?items=40&seconds=5", 1),
            ("/allocate?bytes=209715200", 1),
            ("/cpu?milliseconds=83", 3),
            ("/work?milliseconds=50", 60),
        ] {
            assert_eq!(count(path), expected, "{path} in {requests:?}");
        }
        assert_eq!(requests.len(), 67);
        assert!(requests.is_sorted_by_key(|request| request.after));
        assert!(requests.iter().all(|request| request.after < TICK));
    }
}
