//! What the sample service really does: it holds, allocates, burns, waits and queues.
//!
//! In: amounts within [`limits`]. Out: the effect itself. Never: an effect that outlives the service.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use tokio::time::Instant;

use super::Holders;
use crate::pprof::tasks::instrument;
use crate::pprof::thread_cpu_time;

/// The most of each kind: of one request and, where something is held, of all together.
pub(super) mod limits {
    /// Live tasks.
    pub(crate) const TASKS: u32 = 200_000;
    /// Held heap.
    pub(crate) const HEAP_MEBIBYTES: u32 = 4096;
    /// Queued items.
    pub(crate) const ITEMS: u32 = 1_000_000;
    /// Requests of `/work` that wait or are served.
    pub(crate) const WORK: u32 = 10_000;
    /// CPU burners at once.
    pub(crate) const BURNERS: u32 = 64;
    /// Allocated by one request.
    pub(crate) const ALLOCATED_BYTES: u64 = 64 << 30;
    /// How long something is held.
    pub(crate) const HOLD_SECONDS: f64 = 3600.0;
    /// How long one request works.
    pub(crate) const WORK_MILLISECONDS: u64 = 60_000;
}

const MEBIBYTE: u64 = 1 << 20;
const PAGE_BYTES: usize = 4096;
const PIECE_BYTES: usize = 64 << 10;

/// More is held or waits already than the service allows in total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the service holds as much of this as it allows")]
pub(super) struct Full;

/// All that requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Workshop {
    holders: Holders,
    tasks: Arc<Semaphore>,
    heap_mebibytes: Arc<Semaphore>,
    items: Arc<Semaphore>,
    work: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    burners: Arc<Semaphore>,
    /// As a service's own workers would: more threads than cores would only take turns, and starve every other thread
    /// of a throttled pod.
    cores: Arc<Semaphore>,
    queue_depth: IntGauge,
    ready_at: Instant,
}

impl Workshop {
    /// Serves `concurrency` pieces of work at once and is ready after `startup_delay`.
    pub(super) fn new(concurrency: usize, startup_delay: Duration) -> Self {
        let budget =
            |most: u32| Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(usize::MAX)));
        let queue_depth =
            IntGauge::new("queue_depth", "Items that wait in the queue of the sample service.");
        Self {
            holders: Holders::default(),
            tasks: budget(limits::TASKS),
            heap_mebibytes: budget(limits::HEAP_MEBIBYTES),
            items: budget(limits::ITEMS),
            work: budget(limits::WORK),
            cores: Arc::new(Semaphore::new(
                std::thread::available_parallelism().map_or(1, usize::from),
            )),
            workers: Arc::new(Semaphore::new(concurrency.clamp(1, Semaphore::MAX_PERMITS))),
            burners: budget(limits::BURNERS),
            queue_depth: queue_depth.expect("the name is a valid metric name"),
            ready_at: Instant::now() + startup_delay,
        }
    }

    /// The gauge of [`Self::enqueue`].
    pub(super) fn queue_depth(&self) -> IntGauge {
        self.queue_depth.clone()
    }

    /// Whether the start is over.
    pub(super) fn is_ready(&self) -> bool {
        Instant::now() >= self.ready_at
    }

    /// Spawns `count` tasks that each live for `duration`.
    pub(super) fn spawn_tasks(&self, count: u32, duration: Duration) -> Result<(), Full> {
        let mut budget = take(&self.tasks, count)?;
        while let Some(share) = budget.split(1) {
            self.hold(share, duration);
        }
        Ok(())
    }

    /// Holds `bytes` of touched memory for `duration`.
    pub(super) fn hold_bytes(&self, bytes: u64, duration: Duration) -> Result<(), Full> {
        let mebibytes = u32::try_from(bytes.div_ceil(MEBIBYTE)).map_err(|_| Full)?;
        let size = usize::try_from(bytes).map_err(|_| Full)?;
        let budget = take(&self.heap_mebibytes, mebibytes)?;
        let workshop = self.clone();
        self.holders.tasks.spawn(async move {
            // Touching a gigabyte takes a while: not on a worker of the runtime.
            if let Ok(held) = tokio::task::spawn_blocking(move || hold_heap(size)).await {
                workshop.hold((held, budget), duration);
            }
        });
        Ok(())
    }

    /// Adds `items` to the queue, which each leave it after `duration`.
    pub(super) fn enqueue(&self, items: u32, duration: Duration) -> Result<(), Full> {
        let budget = take(&self.items, items)?;
        self.queue_depth.add(items.into());
        let leave = Leave { gauge: self.queue_depth.clone(), items };
        self.hold((leave, budget), duration);
        Ok(())
    }

    /// Waits for one of the workers, then keeps it for `duration`.
    pub(super) async fn work(&self, duration: Duration) -> Result<(), Full> {
        let _place = self.work.try_acquire().map_err(|_| Full)?;
        let _worker = self.workers.acquire().await.map_err(|_| Full)?;
        tokio::time::sleep(duration).await;
        Ok(())
    }

    /// Uses `duration` of CPU time, on a thread outside the runtime's workers.
    pub(super) async fn burn(&self, duration: Duration) -> Result<(), Full> {
        let burner = self.burners.clone().try_acquire_owned().map_err(|_| Full)?;
        let core = self.cores.clone().acquire_owned().await.map_err(|_| Full)?;
        finished(
            tokio::task::spawn_blocking(move || {
                let _held = (burner, core);
                black_box(burn_cpu(duration));
            })
            .await,
        );
        Ok(())
    }

    /// Allocates and frees `bytes` in all.
    pub(super) async fn allocate(&self, bytes: u64) -> Result<(), Full> {
        let burner = self.burners.clone().try_acquire_owned().map_err(|_| Full)?;
        finished(
            tokio::task::spawn_blocking(move || {
                let _burner = burner;
                allocate(bytes);
            })
            .await,
        );
        Ok(())
    }

    /// Lets go of everything held.
    pub(super) async fn close(&self) {
        self.holders.end.cancel();
        self.holders.tasks.close();
        self.holders.tasks.wait().await;
    }

    /// The task shows in the profile `tasks` under the caller's line.
    #[track_caller]
    fn hold<T: Send + 'static>(&self, held: T, duration: Duration) {
        let end = self.holders.end.clone();
        self.holders.tasks.spawn(instrument(async move {
            let _held = held;
            // Either way the time of what is held is over.
            let _ = tokio::time::timeout(duration, end.cancelled()).await;
        }));
    }
}

/// Items of the queue; dropped, they have left it.
#[derive(Debug)]
struct Leave {
    gauge: IntGauge,
    items: u32,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.gauge.sub(self.items.into());
    }
}

fn take(budget: &Arc<Semaphore>, amount: u32) -> Result<OwnedSemaphorePermit, Full> {
    budget.clone().try_acquire_many_owned(amount).map_err(|_| Full)
}

/// Blocking work ends early only when the runtime does, and then nobody waits for it.
fn finished(outcome: Result<(), JoinError>) {
    if let Err(error) = outcome {
        tracing::debug!(error = %error, "blocking work did not finish");
    }
}

/// Memory whose every page is in use, in pieces as a service would hold them.
#[inline(never)]
fn hold_heap(bytes: usize) -> Vec<Vec<u8>> {
    let mut held = Vec::with_capacity(bytes.div_ceil(PIECE_BYTES));
    let mut left = bytes;
    while left > 0 {
        let size = left.min(PIECE_BYTES);
        // Not zero: the allocator could answer zeroes with untouched pages.
        held.push(vec![1; size]);
        left -= size;
    }
    held
}

/// Uses the calling thread until its CPU clock has advanced by `duration`.
#[inline(never)]
fn burn_cpu(duration: Duration) -> u64 {
    let end = thread_cpu_time() + duration;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while thread_cpu_time() < end {
        let mut round = 0;
        while round < 20_000 {
            // xorshift64: each step needs the one before, so that nothing can be left out.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            round += 1;
        }
        state = black_box(state);
    }
    state
}

/// Allocates pieces one after the other, each freed before the next.
#[inline(never)]
fn allocate(bytes: u64) {
    let mut left = bytes;
    while left > 0 {
        let size = left.min(PIECE_BYTES as u64);
        let size_here = usize::try_from(size).expect("a piece is small");
        let mut piece = Vec::<u8>::with_capacity(size_here);
        piece.resize(size_here.min(PAGE_BYTES), 1);
        drop(black_box(piece));
        left -= size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_held_memory_is_as_large_as_asked() {
        for bytes in [0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 5] {
            let held = hold_heap(bytes);
            assert_eq!(held.iter().map(Vec::len).sum::<usize>(), bytes);
            assert!(held.iter().flatten().all(|byte| *byte == 1));
        }
    }

    #[test]
    fn burning_uses_the_cpu_time_that_was_asked_for() {
        let before = thread_cpu_time();
        burn_cpu(Duration::from_millis(20));
        assert!(thread_cpu_time() - before >= Duration::from_millis(20));
    }

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(20);

    /// Waits for something that must come; a test that hangs fails by the runner's limit.
    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_is_held_falls_back_after_its_time() {
        let workshop = Workshop::new(1, Duration::ZERO);
        assert_eq!(workshop.enqueue(12, LONG), Ok(()));
        assert_eq!(workshop.enqueue(30, SHORT), Ok(()));
        assert_eq!(workshop.queue_depth.get(), 42);
        until(|| workshop.queue_depth.get() == 12).await;
        workshop.close().await;
        assert_eq!(workshop.queue_depth.get(), 0);
    }

    #[tokio::test]
    async fn the_total_is_bounded_and_room_comes_back() {
        let workshop = Workshop::new(1, Duration::ZERO);
        assert_eq!(workshop.enqueue(limits::ITEMS - 1, LONG), Ok(()));
        assert_eq!(workshop.enqueue(2, LONG), Err(Full));
        assert_eq!(workshop.enqueue(1, SHORT), Ok(()));
        assert_eq!(workshop.enqueue(1, LONG), Err(Full));
        until(|| workshop.enqueue(1, LONG).is_ok()).await;
    }

    #[tokio::test]
    async fn work_beyond_the_concurrency_waits_its_turn() {
        let workshop = Workshop::new(2, Duration::ZERO);
        let start = |duration| {
            let workshop = workshop.clone();
            tokio::spawn(async move { workshop.work(duration).await })
        };
        let (first, _second) = (start(LONG), start(LONG));
        until(|| workshop.workers.available_permits() == 0).await;
        let third = start(SHORT);
        tokio::time::sleep(2 * SHORT).await;
        assert!(!third.is_finished());
        first.abort();
        assert_eq!(third.await.expect("it was not aborted"), Ok(()));
    }

    #[tokio::test]
    async fn closing_lets_go_of_everything() {
        let workshop = Workshop::new(1, Duration::ZERO);
        assert_eq!(workshop.spawn_tasks(100, LONG), Ok(()));
        assert_eq!(workshop.holders.tasks.len(), 100);
        workshop.close().await;
        assert!(workshop.holders.tasks.is_empty());
    }
}
