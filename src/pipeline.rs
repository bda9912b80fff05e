//! Collect, store, decide, publish. Read this file to know the program.
//!
//! In: the roster (which policies there are, and the pods of each) from the controller, and batches from a source. Out: every
//! policy's newest decision on the [`Board`], and the targets of the source. Never: a wait on a pod, on Kubernetes or on a
//! reader of the board; and a fault of one policy or pod never reaches another.
//!
//! ```text
//!  roster ──> seats ──> targets ──> source ══ pods
//!               │                     │
//!               │                   batch ──> store
//!               │                     │         │
//!               └── dirty policies <──┘         │      a batch makes the policies of its pod dirty
//!                        │   COALESCE           │
//!                        └──> decide <──────────┘      pure; a panic costs one decision
//!                                │
//!                              board ──> adapter, status
//! ```
//!
//! There is no global tick: a policy is decided when a batch of one of its pods arrives, or when its roster entry changes.
//! Where neither happens for half of `staleAfter` it is decided all the same, since what is missing changes with time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug_span, error, info};

use crate::policy::{Assignment, Board, EntryState, PolicyId, Unserved};
use crate::probes::{Beat, Progress};
use crate::sample::Batch;
use crate::sources::Source;
use crate::store::{self, Store};
use crate::time::Clock;

mod metrics;
mod policy_metrics;
mod seat;
mod trace;
mod warm_up;

use metrics::PipelineMetrics;
use policy_metrics::{Known, PolicyMetrics};
use seat::{Seat, Seats};
use warm_up::WarmUp;

/// How long after its first batch a decision waits for others; pods of one workload often answer together.
const COALESCE: Duration = Duration::from_millis(20);
/// How often to look for policies that nothing has made dirty.
const TICK: Duration = Duration::from_millis(500);
/// How often to count what the store holds, which walks all of it.
const STATS_EVERY: Duration = Duration::from_secs(5);
/// A pipeline that is silent for longer is stuck.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// What a pipeline is made from.
#[derive(Debug)]
pub struct PipelineSetup<'a, S> {
    /// All assignments; each change replaces the whole. Empty and never sent to: they are not known yet.
    pub roster: watch::Receiver<Arc<Vec<Assignment>>>,
    /// Is told whom to ask.
    pub source: S,
    /// What the source brings.
    pub batches: mpsc::Receiver<Batch>,
    /// Where decisions are published; the pipeline is its only writer.
    pub board: Arc<Board>,
    /// The clock of the decisions, and of the batches.
    pub clock: Clock,
    /// Is told that the loop comes round, and gets the condition `decisions`: what is served is served truthfully.
    pub progress: &'a Progress,
    /// Where the pipeline's own metrics are registered.
    pub registry: &'a Registry,
}

/// The loop between the controller, the source and the board.
#[derive(Debug)]
pub struct Pipeline<S> {
    roster: watch::Receiver<Arc<Vec<Assignment>>>,
    source: S,
    batches: mpsc::Receiver<Batch>,
    board: Arc<Board>,
    clock: Clock,
    beat: Beat,
    metrics: PipelineMetrics,
    policy_metrics: PolicyMetrics,
    warm_up: WarmUp,
    store: Store,
    seats: Seats,
    dirty: BTreeSet<PolicyId>,
    decide_at: Option<Instant>,
}

impl<S: Source> Pipeline<S> {
    /// A pipeline that has not looked at its roster yet.
    ///
    /// # Errors
    /// If a metric of the pipeline is registered already.
    pub fn new(setup: PipelineSetup<'_, S>) -> prometheus::Result<Self> {
        Ok(Self {
            roster: setup.roster,
            source: setup.source,
            batches: setup.batches,
            board: setup.board,
            clock: setup.clock,
            beat: setup.progress.add_loop("pipeline", MAX_SILENCE),
            metrics: PipelineMetrics::register(setup.registry)?,
            policy_metrics: PolicyMetrics::register(setup.registry, setup.clock)?,
            warm_up: WarmUp::new(setup.progress.add_condition("decisions")),
            store: Store::new(store::Limits::default()),
            seats: Seats::default(),
            dirty: BTreeSet::new(),
            decide_at: None,
        })
    }

    /// Runs until `shutdown`. The source, and with it every task of its own, ends with the pipeline.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stats = tokio::time::interval(STATS_EVERY);
        stats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if !self.roster.borrow().is_empty() {
            self.take_roster();
        }
        loop {
            self.beat.beat();
            let decide_at = self.decide_at;
            tokio::select! {
                () = shutdown.cancelled() => return,
                // Without a controller the last roster stays in force: its pods are still asked and decided about.
                Ok(()) = self.roster.changed() => self.take_roster(),
                Some(batch) = self.batches.recv() => self.take_batch(&batch),
                () = sleep_until(decide_at.unwrap_or_else(Instant::now)), if decide_at.is_some() => {
                    self.decide_dirty().await;
                }
                _ = tick.tick() => self.look_around(),
                _ = stats.tick() => self.metrics.observe_store(&self.store.stats()),
            }
        }
    }

    /// Collect: the roster becomes targets, and every policy that is not decided says why.
    fn take_roster(&mut self) {
        let roster = self.roster.borrow_and_update().clone();
        let now = self.clock.now();
        let mut seats = Seats::default();
        let mut known = BTreeSet::new();
        let mut undecided = Vec::new();
        for assignment in roster.iter() {
            match assignment {
                Assignment::Active { policy, workload } => {
                    known.insert(policy.id.clone());
                    let seat = match self.seats.leave(&policy.id) {
                        Some(seat) => seat.updated(policy, workload),
                        None => {
                            let rested = self.seats.rested(&policy.id);
                            let seat = Seat::new(policy, workload, rested, now.monotonic);
                            undecided.push((policy.id.clone(), welcome(&seat)));
                            seat
                        }
                    };
                    if seat.wants_decision() {
                        self.mark(&policy.id);
                    }
                    seats.take(seat);
                }
                Assignment::Refused { id, reason, message } => {
                    known.insert(id.clone());
                    if let Some(decider) = self.seats.rested(id) {
                        seats.rest(id.clone(), decider);
                    }
                    let unserved = Unserved { reason, message: message.clone() };
                    undecided.push((id.clone(), EntryState::Unserved(unserved)));
                }
            }
        }
        for (id, state) in &undecided {
            if let EntryState::Unserved(why) = state {
                self.policy_metrics.know(id, Known::Unserved(why.reason));
            }
        }
        self.board.publish_all(undecided);
        self.board.retain(|id| known.contains(id));
        self.policy_metrics.retain(|id| known.contains(id));
        self.seats = seats;
        self.dirty.retain(|id| self.seats.contains(id));
        self.store.retain(|endpoint| self.seats.knows(endpoint));
        self.store.set_history(self.seats.history());
        self.source.set_targets(self.seats.targets());
        self.metrics.count_policies(self.seats.len(), known.len() - self.seats.len());
        self.warm_up.listed(now.monotonic);
        self.warm_up.look(&self.board, now.monotonic);
    }

    /// Store: what a pod said, or that it said nothing; its policies are decided soon.
    fn take_batch(&mut self, batch: &Batch) {
        if !self.seats.knows(&batch.endpoint) {
            // It left while its answer was on the way.
            return;
        }
        self.store.record(batch);
        for id in self.seats.policies_of(&batch.endpoint) {
            self.dirty.insert(id.clone());
            self.decide_at.get_or_insert_with(|| Instant::now() + COALESCE);
        }
    }

    fn look_around(&mut self) {
        let now = self.clock.now().monotonic;
        self.warm_up.look(&self.board, now);
        let overdue: Vec<_> = self.seats.overdue(now).cloned().collect();
        overdue.iter().for_each(|id| self.mark(id));
    }

    fn mark(&mut self, id: &PolicyId) {
        self.dirty.insert(id.clone());
        self.decide_at.get_or_insert_with(|| Instant::now() + COALESCE);
    }

    /// Decide and publish what is dirty, letting other tasks run in between.
    async fn decide_dirty(&mut self) {
        self.decide_at = None;
        for id in std::mem::take(&mut self.dirty) {
            self.decide(&id);
            tokio::task::yield_now().await;
        }
    }

    /// Decides about one policy and publishes it.
    fn decide(&mut self, id: &PolicyId) {
        let Some(seat) = self.seats.get_mut(id) else { return };
        let _span = debug_span!("decide", namespace = %id.namespace, name = %id.name).entered();
        let timer = self.metrics.decide_duration.start_timer();
        let outcome = seat.decide(&self.store, self.clock.now());
        timer.observe_duration();
        self.metrics.observe(&outcome);
        let (known, state) = match outcome {
            Ok(decision) => {
                trace::decided(&decision);
                let (policy, decision) = (seat.policy(), Arc::new(decision));
                let state =
                    EntryState::Decided { policy: policy.clone(), decision: decision.clone() };
                (Known::Decided { policy, workload: seat.workload(), decision }, state)
            }
            Err(panic) => {
                error!(namespace = %id.namespace, name = %id.name, error = panic.0, "decision panicked");
                let unserved = panic.unserved();
                (Known::Unserved(unserved.reason), EntryState::Unserved(unserved))
            }
        };
        self.policy_metrics.know(id, known);
        self.board.publish(id, state);
    }
}

/// What is told of a policy that was never decided.
fn welcome(seat: &Seat) -> EntryState {
    let id = seat.id();
    info!(namespace = %id.namespace, name = %id.name, pods = seat.live_pods(), "policy is new");
    EntryState::Unserved(seat.no_samples_yet())
}

#[cfg(test)]
mod tests;
