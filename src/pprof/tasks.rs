//! The tasks of this process: where each was spawned, how old it is, how often and how long it was polled.
//!
//! In: futures that pass through [`spawn`] or [`instrument`]. Out: the profiles `tasks` (`goroutine` to Go's tools) and
//! `taskleak`, and labels for the samples taken while a task is polled. Never: a lock while a task is polled, a list without
//! a bound, or `tokio_unstable`. A task beyond the bound runs and is counted, but not listed on its own.

use std::any::type_name;
use std::panic::Location;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::runtime::{self, Handle};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::labels::{self, Labelled, Labels, Name};

mod census;
mod leak;
mod registry;
mod site;
#[cfg(test)]
mod tests;

pub(super) use census::{alive, census, listing, suspected, suspects_text};
use registry::{REGISTRY, Registry, Slot};
use site::Site;

/// The spawn sites with the most live tasks, as `file:line`, with how many. Costs nothing per task.
#[cfg(feature = "agent")]
pub(crate) fn largest_sites(most: usize) -> Vec<(String, u64)> {
    let live = |site: &'static Site| (site, site.live.load(Ordering::Relaxed));
    let mut sites: Vec<_> = REGISTRY.sites().into_iter().map(live).collect();
    sites.retain(|(_, live)| *live > 0);
    sites.sort_by_key(|(_, live)| std::cmp::Reverse(*live));
    sites.truncate(most);
    sites.into_iter().map(|(site, live)| (site.place(), live)).collect()
}

/// Spawns a task on the current tokio runtime, as `tokio::spawn` does, and keeps it in the profiles `tasks` and `taskleak`
/// under the place of this call. CPU and heap samples taken while it is polled carry that place as label `task`, and the
/// endpoint and trace of the request that spawned it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let answer = headroom::pprof::tasks::spawn(async { 6 * 7 });
/// assert_eq!(answer.await.ok(), Some(42));
/// # }
/// ```
///
/// # Panics
/// Outside a tokio runtime, as `tokio::spawn`.
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(instrument(future))
}

/// Watches a future that becomes a task by other means: a `JoinSet`, a `LocalSet`, another runtime. It counts as a task
/// from this call until it is dropped.
///
/// Costs two readings of the clock and a few stores per poll: 60 to 80 ns on two shared cores at `opt-level = 1`, against
/// 1.4 ns of an empty poll. A task costs one allocation of some 150 bytes and two short locks of one shard of 32: spawning
/// and awaiting an empty one took 560 to 780 ns instead of 290 to 410.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let mut workers = tokio::task::JoinSet::new();
/// workers.spawn(headroom::pprof::tasks::instrument(async { 7 }).named("worker"));
/// assert_eq!(workers.join_all().await, [7]);
/// # }
/// ```
#[track_caller]
pub fn instrument<F: Future>(future: F) -> Instrumented<F> {
    let runtime = Handle::try_current().ok().map(|handle| handle.id());
    let site = REGISTRY.site(Location::caller(), type_name::<F>());
    Instrumented { future, task: REGISTRY.register(site, runtime, labels::current(), elapsed()) }
}

pin_project! {
    /// A future that is listed as a task; see [`instrument`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Instrumented<F> {
        #[pin]
        future: F,
        // After the future, so that the task is listed until its future is gone.
        task: Registered,
    }
}

impl<F> Instrumented<F> {
    /// Gives the task a name, shown in `tasks?debug=2`. The first one given stays.
    pub fn named(self, name: &'static str) -> Self {
        // A second name is ignored, as documented.
        let _ = self.task.task.name.set(name);
        self
    }
}

impl<F: Future> Future for Instrumented<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _polling = Polling::start(&this.task.task);
        this.future.poll(context)
    }
}

/// One task. Its counters have one writer, the thread that polls it: plain loads and stores are enough.
#[derive(Debug)]
struct Task {
    id: u64,
    site: &'static Site,
    runtime: Option<runtime::Id>,
    name: OnceLock<&'static str>,
    /// Endpoint and trace of what spawned it.
    labels: Labels,
    /// All times are nanoseconds since the first task of the process.
    created: u64,
    /// When the newest poll began; [`NEVER`] before the first.
    polled: AtomicU64,
    running: AtomicBool,
    polls: AtomicU64,
    /// Wall time inside finished polls.
    busy: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl Task {
    /// How long it has waited for its next poll; zero while it is polled.
    fn unpolled(&self, now: u64) -> Duration {
        if self.running.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let since = match self.polled.load(Ordering::Relaxed) {
            NEVER => self.created,
            polled => polled,
        };
        Duration::from_nanos(now.saturating_sub(since))
    }

    /// Time inside its polls, that of the present one included.
    fn busy(&self, now: u64) -> u64 {
        let finished = self.busy.load(Ordering::Relaxed);
        let present = match self.running.load(Ordering::Relaxed) {
            true => now.saturating_sub(self.polled.load(Ordering::Relaxed)),
            false => 0,
        };
        finished.saturating_add(present)
    }

    fn state(&self) -> State {
        match (self.running.load(Ordering::Relaxed), self.polls.load(Ordering::Relaxed)) {
            (true, _) => State::Running,
            (false, 0) => State::New,
            (false, _) => State::Idle,
        }
    }
}

/// What a task does. Stable tokio does not tell a task that waits for its turn from one that waits for an event: both are
/// idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum State {
    /// A thread is inside its `poll`.
    Running,
    /// Not polled yet.
    New,
    /// Polled before, and waiting.
    Idle,
    /// Alive, but beyond the bound of the list.
    Unlisted,
    /// Gone; only its busy time remains.
    Ended,
}

impl State {
    const fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::New => "new",
            Self::Idle => "idle",
            Self::Unlisted => "unlisted",
            Self::Ended => "ended",
        }
    }
}

/// Takes its task off the list when dropped.
#[derive(Debug)]
struct Registered {
    registry: &'static Registry,
    task: Arc<Task>,
    slot: Option<Slot>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.task.site.left(self.task.busy.load(Ordering::Relaxed));
        if let Some(slot) = self.slot {
            self.registry.remove(slot);
        }
    }
}

/// One poll, ended also by a panic.
struct Polling<'task> {
    task: &'task Task,
    began: u64,
    _labels: Labelled,
}

impl<'task> Polling<'task> {
    fn start(task: &'task Task) -> Self {
        let began = elapsed();
        task.polled.store(began, Ordering::Relaxed);
        task.running.store(true, Ordering::Relaxed);
        let _labels = Labelled::enter(|present| Labels {
            task: task.site.label,
            // What the task was spawned for, unless it is polled inside a request of its own.
            endpoint: or(present.endpoint, task.labels.endpoint),
            trace: if present.trace == 0 { task.labels.trace } else { present.trace },
        });
        Self { task, began, _labels }
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        let task = self.task;
        let took = elapsed().saturating_sub(self.began);
        task.busy.store(task.busy.load(Ordering::Relaxed) + took, Ordering::Relaxed);
        task.polls.store(task.polls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        task.running.store(false, Ordering::Relaxed);
    }
}

fn or(first: Name, second: Name) -> Name {
    if first == Name::NONE { second } else { first }
}

/// Nanoseconds since the first task of the process.
fn elapsed() -> u64 {
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(ORIGIN.elapsed().as_nanos()).unwrap_or(NEVER - 1)
}
