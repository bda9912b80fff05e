//! Each worker of the service's runtime: on a core, waiting for one, or busy.
//!
//! In: which thread each worker runs on, and the scheduler's counts of those threads. Out: the `tokio_worker_*` families.
//! Never: a value for a worker whose thread is not known.
//!
//! tokio tells a worker's index only to code that runs on it. The canary notes where it runs, and while an active worker has
//! not been seen a few empty tasks are spawned to meet it. Idle workers stay unseen, and wake for none of this.
//! `block_in_place` hands a worker to another thread, so every worker is looked for again after a while.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use tokio::runtime::{Handle, Id};

use super::catalogue::families;
use super::seats;
use super::snapshot::{Snapshot, Unavailable};
use super::text::Schedstat;
use super::threads::Threads;
use crate::units::{Measure, Ratio};

/// Workers with a series of their own; the others share the label value `other`.
pub const MAX_WORKERS: usize = 64;
/// Ticks until every worker is looked for again.
const TICKS_PER_CENSUS: u32 = 30;
/// Tasks spawned at once to meet workers.
const MAX_CENSUS_TASKS: usize = 16;

/// Polls of each task that is to meet workers of a runtime which may be asleep.
const MAX_YIELDS: usize = 64;

/// Label values of the workers, and of those past the limit.
static LABELS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let own = (0..MAX_WORKERS).map(|worker| worker.to_string());
    own.chain(["other".to_owned()]).collect()
});

/// Counts a census task for as long as it exists, run or not.
struct CensusTask(Arc<AtomicUsize>);

impl CensusTask {
    fn new(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self(alive.clone())
    }
}

impl Drop for CensusTask {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Follows the workers of one runtime.
#[derive(Debug)]
pub struct WorkerCollector {
    handle: Handle,
    census_tasks: Arc<AtomicUsize>,
    ticks: u32,
    workers: Vec<Worker>,
}

/// What is known of one worker.
#[derive(Clone, Copy, Debug, Default)]
struct Worker {
    thread: Option<u32>,
    last: Schedstat,
    total: Schedstat,
}

impl WorkerCollector {
    /// Knows no worker yet.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        let workers = handle.metrics().num_workers();
        Self {
            handle,
            census_tasks: Arc::default(),
            ticks: 0,
            workers: vec![Worker::default(); workers],
        }
    }

    /// Tasks that the service did not spawn and that have not ended.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.census_tasks.load(Ordering::Relaxed)
    }

    fn runtime(&self) -> Id {
        self.handle.id()
    }

    /// Looks for `active` workers that have not been seen; once per tick.
    pub fn tick(&mut self, active: impl Iterator<Item = usize>) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(TICKS_PER_CENSUS) {
            seats::look_again(self.runtime());
        }
        let runtime = self.runtime();
        let unseen = active.filter(|&worker| !seats::is_recent(runtime, worker)).count();
        // Tasks of the census before that nobody has run yet will still meet a worker.
        if unseen == 0 || self.tasks() > 0 {
            return;
        }
        for _ in 0..(2 * unseen).min(MAX_CENSUS_TASKS) {
            let task = CensusTask::new(&self.census_tasks);
            drop(self.handle.spawn(async move {
                seats::note();
                drop(task);
            }));
        }
    }

    /// Adds the families of the workers that have been seen.
    pub(super) fn collect(&mut self, threads: &mut Threads, snapshot: &mut Snapshot) {
        let runtime = self.runtime();
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let seat = seats::thread_of(runtime, index).or(worker.thread);
            let counted = seat.and_then(|thread| {
                let counted = threads.of_thread(thread)?;
                Some((thread, counted))
            });
            worker.observe(counted);
        }
        let seen =
            || self.workers.iter().map(|worker| worker.thread.is_some().then_some(worker.total));
        let on_cpu = seen().map(|total| Some(total?.on_cpu_nanos as f64 / 1e9));
        by_label(on_cpu, |label, seconds| {
            snapshot.push_labelled(&families::TOKIO_WORKER_CPU, &[label], seconds);
        });
        let waiting = seen().map(|total| Some(total?.waiting_nanos as f64 / 1e9));
        by_label(waiting, |label, seconds| {
            snapshot.push_labelled(&families::TOKIO_WORKER_RUNQUEUE_WAIT, &[label], seconds);
        });
        let outcome = if seen().all(|total| total.is_none()) {
            Err(Unavailable::NotHere("no worker has been met by a task of the agent yet"))
        } else {
            Ok(())
        };
        snapshot.source("tokio_workers", outcome);
    }
}

/// Spawns a task for each worker that yields until all have been met, or so often that it may be assumed that some sleep.
pub(crate) fn meet(handle: &Handle) {
    let (runtime, workers) = (handle.id(), handle.metrics().num_workers());
    for _ in 0..workers.min(MAX_CENSUS_TASKS) {
        drop(handle.spawn(async move {
            for _ in 0..MAX_YIELDS {
                seats::note_if_new();
                if (0..workers).all(|worker| seats::is_recent(runtime, worker)) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }));
    }
}

impl Worker {
    /// Takes the thread that the worker runs on and its counts. Both totals only grow: of a thread that the worker moved to
    /// only what it does from then on is the worker's.
    fn observe(&mut self, counted: Option<(u32, Schedstat)>) {
        let Some((thread, now)) = counted else { return };
        let same = self.thread == Some(thread);
        let before = match self.thread {
            None => Schedstat::default(),
            Some(_) if same => self.last,
            Some(_) => now,
        };
        self.total.on_cpu_nanos += now.on_cpu_nanos.saturating_sub(before.on_cpu_nanos);
        self.total.waiting_nanos += now.waiting_nanos.saturating_sub(before.waiting_nanos);
        (self.thread, self.last) = (Some(thread), now);
    }
}

/// Calls `push` with label and number of each worker that has one. Those past the limit are added up.
pub(super) fn by_label(
    numbers: impl Iterator<Item = Option<f64>>,
    mut push: impl FnMut(&'static str, f64),
) {
    let mut others = None;
    for (worker, number) in numbers.enumerate() {
        match number {
            Some(number) if worker < MAX_WORKERS => push(&LABELS[worker], number),
            Some(number) => others = Some(others.unwrap_or(0.0) + number),
            None => {}
        }
    }
    if let Some(others) = others {
        push(&LABELS[MAX_WORKERS], others);
    }
}

/// From this saturation on the canary looks ten times as often.
pub(super) fn is_saturated(ratio: Ratio, blocked_workers: usize) -> bool {
    ratio.get() >= 0.9 || blocked_workers > 0
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn counted(on_cpu_nanos: u64, waiting_nanos: u64) -> Schedstat {
        Schedstat { on_cpu_nanos, waiting_nanos }
    }

    #[test]
    fn a_worker_that_moves_to_another_thread_keeps_its_counts_and_takes_none_of_the_thread() {
        let mut worker = Worker::default();
        worker.observe(Some((7, counted(100, 10))));
        worker.observe(Some((7, counted(150, 20))));
        worker.observe(Some((9, counted(9_000, 9_000))));
        assert_eq!(worker.total, counted(150, 20));
        worker.observe(Some((9, counted(9_005, 9_001))));
        worker.observe(None);
        assert_eq!(worker.total, counted(155, 21));
    }

    #[test]
    fn workers_past_the_limit_share_one_series() {
        let mut busy = Vec::new();
        let numbers = [Some(1.0); MAX_WORKERS + 2].into_iter().chain([None]);
        by_label(numbers, |label, number| busy.push((label, number)));
        assert_eq!(busy.len(), MAX_WORKERS + 1);
        assert_eq!(busy.last(), Some(&("other", 2.0)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_census_finds_the_worker_that_works_and_its_time_on_a_core() {
        let mut collector = WorkerCollector::new(Handle::current());
        let (mut threads, runtime) = (Threads::of(Path::new("/proc/self")), collector.runtime());
        let mut sees_nothing = |collector: &mut WorkerCollector| {
            let mut snapshot = Snapshot::default();
            collector.collect(&mut threads, &mut snapshot);
            snapshot.readings().is_empty() && snapshot.sources()[0].1.is_err()
        };
        assert!(sees_nothing(&mut collector));

        let worked = tokio::spawn(async move {
            let mut on_cpu = Duration::ZERO;
            while on_cpu < Duration::from_millis(20) {
                std::hint::black_box((0..100_000).sum::<u64>());
                on_cpu += Duration::from_micros(100);
            }
            tokio::runtime::worker_index().expect("a worker")
        });
        let worker = worked.await.expect("it ends");
        while seats::thread_of(runtime, worker).is_none() {
            collector.tick(std::iter::once(worker));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(!sees_nothing(&mut collector));
        assert!(collector.workers[worker].total.on_cpu_nanos > 0);
        assert_eq!(collector.tasks(), 0);
    }
}
