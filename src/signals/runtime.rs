//! The service's tokio runtime: its tasks, workers, injection queue, and how busy the workers are.
//!
//! In: the stable `RuntimeMetrics` of a handle. Out: the `tokio_*` families except the scheduling delay. Never: anything that
//! needs the service's runtime to make progress, or `tokio_unstable`.

use tokio::runtime::{Handle, RuntimeMetrics};

use super::catalogue::families;
use super::saturation::{Saturation, SaturationEstimator, WorkerReading};
use super::snapshot::{Snapshot, Unavailable};
use super::workers::{by_label, is_saturated};
use crate::time::{Now, Timestamp};
use crate::units::Measure;

/// Reads one runtime.
#[derive(Debug)]
pub struct RuntimeCollector {
    metrics: RuntimeMetrics,
    estimator: SaturationEstimator,
    last_tick: Now,
    saturation: Option<(Timestamp, Saturation)>,
}

impl RuntimeCollector {
    /// Starts watching the runtime of `handle`.
    #[must_use]
    pub fn new(handle: Handle, now: Now) -> Self {
        let metrics = handle.metrics();
        let estimator = SaturationEstimator::new(workers(&metrics));
        Self { metrics, estimator, last_tick: now, saturation: None }
    }

    /// Samples the workers. The estimate spans the time since the tick before.
    pub fn tick(&mut self, now: Now) {
        let elapsed = now.monotonic.since(self.last_tick.monotonic);
        self.last_tick = now;
        self.saturation =
            self.estimator.tick(elapsed, workers(&self.metrics)).map(|seen| (now.wall, seen));
    }

    /// Whether the last tick found the workers saturated, or one of them blocked.
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.saturation.is_some_and(|(_, seen)| is_saturated(seen.ratio, seen.blocked_workers))
    }

    /// The workers that did something between the last two ticks.
    pub fn active_workers(&self) -> impl Iterator<Item = usize> {
        self.estimator.active()
    }

    /// Reads the gauges now, and adds the last tick's estimate with the time of that tick. `own_tasks` are not the
    /// service's and are not counted.
    pub fn collect(&self, own_tasks: usize, snapshot: &mut Snapshot) {
        let alive_tasks = self.metrics.num_alive_tasks().saturating_sub(own_tasks);
        snapshot.push(&families::TOKIO_ALIVE_TASKS, alive_tasks as f64);
        snapshot.push(&families::TOKIO_WORKERS, self.metrics.num_workers() as f64);
        snapshot
            .push(&families::TOKIO_GLOBAL_QUEUE_DEPTH, self.metrics.global_queue_depth() as f64);
        let outcome = match self.saturation {
            Some((at, seen)) => {
                snapshot.push_at(&families::TOKIO_SATURATION_RATIO, seen.ratio.get(), at);
                snapshot.push_at(&families::TOKIO_BLOCKED_WORKERS, seen.blocked_workers as f64, at);
                by_label(self.estimator.busy_seconds().map(Some), |worker, seconds| {
                    let family = &families::TOKIO_WORKER_BUSY;
                    snapshot.push_labelled_at(family, &[worker], seconds, at);
                });
                Ok(())
            }
            None => Err(Unavailable::NotHere(
                "no worker has been watched from its first park to a tick yet",
            )),
        };
        snapshot.source("tokio_saturation", outcome);
    }
}

fn workers(metrics: &RuntimeMetrics) -> impl Iterator<Item = WorkerReading> {
    (0..metrics.num_workers()).map(|worker| WorkerReading {
        busy: metrics.worker_total_busy_duration(worker),
        park_unpark_count: metrics.worker_park_unpark_count(worker),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn alive_tasks_are_counted_when_asked() {
        let clock = Clock::start();
        let collector = RuntimeCollector::new(Handle::current(), clock.now());
        let tasks = || {
            let mut snapshot = Snapshot::default();
            collector.collect(0, &mut snapshot);
            snapshot
                .readings()
                .iter()
                .find(|reading| reading.family.name == "tokio_alive_tasks")
                .map(|reading| reading.value)
        };
        assert_eq!(tasks(), Some(0.0));
        let parked = tokio::spawn(std::future::pending::<()>());
        assert_eq!(tasks(), Some(1.0));
        parked.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_worker_that_one_poll_keeps_shows_within_two_ticks() {
        let handle = Handle::current();
        let parked_once = |worker| handle.metrics().worker_park_unpark_count(worker) > 0;
        while !(parked_once(0) && parked_once(1)) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let start = Clock::start().now();
        let mut collector = RuntimeCollector::new(handle.clone(), start);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (begun, begin) = tokio::sync::oneshot::channel();
        let blocking = tokio::spawn(async move {
            begun.send(()).expect("the test waits");
            released.recv()
        });
        begin.await.expect("it begins");
        let parked = |worker| handle.metrics().worker_park_unpark_count(worker) % 2 == 1;
        while !(parked(0) || parked(1)) {
            std::thread::yield_now();
        }
        let second = std::time::Duration::from_secs(1);
        collector.tick(start + second);
        collector.tick(start + second + second);
        let (_, seen) = collector.saturation.expect("both workers have parked");
        assert_eq!(seen.blocked_workers, 1, "{seen:?}");
        assert!(seen.ratio.get() >= 0.5, "{seen:?}");
        assert!(collector.is_saturated());
        assert_eq!(collector.active_workers().count(), 1);
        drop(release);
        assert!(blocking.await.expect("it ends").is_err());
    }
}
