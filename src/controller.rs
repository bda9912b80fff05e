//! `ScalingPolicy` objects become the current policy set; status is written back.
//!
//! In: policies, their targets' scales and pods, from watches. Out: the roster of [`Assignment`]s, within 100 ms of a
//! change; and, from the replica that leads, each policy's status and the HPA that its `autoscaler` asks for. Losing the
//! API server keeps the last good state. Never: a network call on the way of a decision or a read.
//!
//! One task owns the `index`; everything else sends it changes and reads what it publishes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::policy::{Assignment, Board};
use crate::probes::{Beat, Condition, Progress};
use crate::time::Clock;

pub mod compile;
pub mod crd;
mod divergence;
mod hpa;
mod index;
mod kinds;
pub mod lease;
mod pods;
pub mod scaling_policy;
mod status;
mod targets;
mod watches;
mod writer;
mod writes;

#[cfg(test)]
pub(crate) use divergence::families_of_a_follower;
pub use hpa::{MANAGED_BY, MANAGER};
pub use index::reason;
pub use status::READY;

use divergence::Divergence;
use hpa::SeenHpa;
use index::{Change, Index, Ruling, SeenPolicy, WantedTargets};
use kinds::{Kinds, RESOLVE_AGAIN, WantedKinds};
use pods::{PodView, SeenPod};
use scaling_policy::ScalingPolicy;
use targets::Targets;
use watches::{Watch, WatchMetrics, forward, map_event, watch_config};
use writer::{Memory, WriteMetrics, Writer};
use writes::Writes;

/// Changes that wait for the index; then their watches wait.
const QUEUED_CHANGES: usize = 1024;
/// Changes that arrive within this time of the first are published together.
const COALESCE: Duration = Duration::from_millis(50);
/// How often the index shows that it lives while nothing changes.
const BEAT: Duration = Duration::from_secs(5);
/// The silence after which the index counts as stuck.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// What the controller works with.
pub struct Controller {
    /// The API server.
    pub client: kube::Client,
    /// The decisions that statuses tell of.
    pub board: Arc<Board>,
    /// Where the policies with their workloads go, in the order of their names. Not sent to before all is listed once.
    pub roster: watch::Sender<Arc<Vec<Assignment>>>,
    /// Whether policies read each pod's CPU and memory in use, too (`adapter.resourceMetrics`).
    pub resource_metrics: bool,
    /// Whether this replica writes statuses and HPAs.
    pub leader: watch::Receiver<bool>,
    /// For the times of conditions and the pauses between writes.
    pub clock: Clock,
    /// Gets the loop `controller` and the condition `policies`.
    pub progress: Progress,
    /// Gets the controller's own metrics.
    pub registry: prometheus::Registry,
}

/// Why the controller ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// Its metrics cannot be registered.
    #[error("cannot register the controller's metrics")]
    Metrics(#[from] prometheus::Error),
    /// One of its tasks ended: a bug.
    #[error("the controller's task {0} ended")]
    Ended(&'static str),
    /// One of its tasks panicked: a bug.
    #[error("a task of the controller panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

impl Controller {
    /// Watches and publishes until `shutdown`. Reading needs no leadership, writing does.
    ///
    /// # Errors
    /// [`ControllerError`] for what restarting the program may heal; a lost API server is none.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ControllerError> {
        let metrics = WatchMetrics::register(&self.registry)?;
        let write_metrics = WriteMetrics::register(&self.registry)?;
        let (changes, queue) = mpsc::channel(QUEUED_CHANGES);
        let (wanted, wanted_targets) = watch::channel(Arc::default());
        let (wanted_kinds, kinds) = watch::channel(Arc::default());
        let (rulings, ruled) = watch::channel(Arc::default());
        let (seen_autoscalers, autoscalers) = mpsc::channel(QUEUED_CHANGES);
        let index = IndexLoop {
            queue,
            wanted,
            wanted_kinds,
            rulings,
            roster: self.roster,
            beat: self.progress.add_loop("controller", MAX_SILENCE),
            listed: self.progress.add_condition("policies"),
            published: false,
        };
        let targets = Targets {
            client: self.client.clone(),
            changes: changes.clone(),
            wanted: wanted_targets,
            metrics: metrics.clone(),
        };
        let kinds = Kinds {
            client: self.client.clone(),
            changes: changes.clone(),
            wanted: kinds,
            again: RESOLVE_AGAIN,
        };
        let writer = Writer {
            writes: Writes::new(self.client.clone()),
            board: self.board,
            clock: self.clock,
            leader: self.leader,
            rulings: ruled,
            autoscalers,
            metrics: write_metrics,
            divergence: Divergence::register(&self.registry)?,
            memory: Memory::default(),
        };
        let autoscalers = watch_autoscalers(self.client.clone(), metrics.clone(), seen_autoscalers);
        let policies = watch_policies(
            self.client.clone(),
            metrics.clone(),
            changes.clone(),
            self.resource_metrics,
        );
        let pods = watch_pods(self.client.clone(), metrics.clone(), changes);
        let mut tasks = JoinSet::new();
        tasks.spawn(named("index", index.run()));
        tasks.spawn(named("targets", targets.run()));
        tasks.spawn(named("kinds", kinds.run()));
        tasks.spawn(named("policies", policies));
        tasks.spawn(named("pods", pods));
        tasks.spawn(named("autoscalers", autoscalers));
        tasks.spawn(named("writer", writer.run()));
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            Some(ended) = tasks.join_next() => match ended {
                Ok(task) => Err(ControllerError::Ended(task)),
                Err(error) => Err(ControllerError::Panicked(error)),
            },
        }
    }
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

async fn watch_policies(
    client: kube::Client,
    metrics: WatchMetrics,
    changes: mpsc::Sender<Change>,
    wants_usage: bool,
) {
    let api: Api<DeserializeGuard<ScalingPolicy>> = Api::all(client);
    let seen = move |object| Box::new(SeenPolicy::from(object).with_usage(wants_usage));
    let into = move |event| Change::Policy(map_event(event, seen));
    forward(Watch::new(api, watch_config(), "policies", metrics), changes, into).await;
}

async fn watch_pods(client: kube::Client, metrics: WatchMetrics, changes: mpsc::Sender<Change>) {
    let api: Api<PodView> = Api::all(client);
    let into = |event| Change::Pod(map_event(event, SeenPod::from));
    forward(Watch::new(api, watch_config(), "pods", metrics), changes, into).await;
}

/// Of all HPAs, those with our label.
async fn watch_autoscalers(
    client: kube::Client,
    metrics: WatchMetrics,
    changes: mpsc::Sender<Event<SeenHpa>>,
) {
    let api: Api<HorizontalPodAutoscaler> = Api::all(client);
    let config = watch_config().labels(&format!("{MANAGED_BY}={MANAGER}"));
    let into = |event| map_event(event, SeenHpa::from);
    forward(Watch::new(api, config, "autoscalers", metrics), changes, into).await;
}

/// Wakes the receivers only if there is something new.
fn send_changed<T: PartialEq>(sender: &watch::Sender<Arc<T>>, value: T) {
    sender.send_if_modified(|current| {
        let changed = **current != value;
        if changed {
            *current = Arc::new(value);
        }
        changed
    });
}

/// The one owner of the [`Index`].
struct IndexLoop {
    queue: mpsc::Receiver<Change>,
    wanted: watch::Sender<Arc<WantedTargets>>,
    wanted_kinds: watch::Sender<Arc<WantedKinds>>,
    rulings: watch::Sender<Arc<Vec<Ruling>>>,
    roster: watch::Sender<Arc<Vec<Assignment>>>,
    beat: Beat,
    listed: Condition,
    /// A roster was sent.
    published: bool,
}

impl IndexLoop {
    async fn run(mut self) {
        let mut index = Index::default();
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.beat.beat();
            tokio::select! {
                _ = beats.tick() => {}
                change = self.queue.recv() => {
                    let Some(change) = change else { return };
                    let until = Instant::now() + COALESCE;
                    index.apply(change);
                    // The second condition ends a burst that never pauses.
                    while let Ok(Some(change)) = tokio::time::timeout_at(until, self.queue.recv()).await {
                        index.apply(change);
                        if Instant::now() >= until {
                            break;
                        }
                    }
                    self.publish(&mut index);
                }
            }
        }
    }

    fn publish(&mut self, index: &mut Index) {
        send_changed(&self.wanted, index.want());
        send_changed(&self.wanted_kinds, index.want_kinds());
        if !index.listed() {
            return;
        }
        let settled = index.settle();
        let settled = settled.or_else(|| (!self.published).then(Vec::new));
        if let Some(rulings) = settled {
            let roster: Vec<_> = rulings.iter().map(|ruling| ruling.assignment.clone()).collect();
            // The first is sent even if it is empty: that there is no policy must be known, too.
            if std::mem::replace(&mut self.published, true) {
                send_changed(&self.roster, roster);
            } else {
                self.roster.send_replace(Arc::new(roster));
            }
            self.rulings.send_replace(Arc::new(rulings));
        }
        self.listed.ready();
    }
}
