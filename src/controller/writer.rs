//! The writer: statuses and HPAs, from the replica that leads.
//!
//! In: rulings, the board, the HPAs that exist, and whether this replica leads. Out: writes, few at a time. Never: a write
//! without leadership, a write that changes nothing, and a failing object that is tried without pause.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use kube::runtime::watcher::Event;
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use super::divergence::Divergence;
use super::hpa::{Applied, Known, SeenHpa, Step, step};
use super::index::Ruling;
use super::scaling_policy::ScalingPolicyStatus;
use super::status::{self, READY};
use super::writes::{HpaOutcome, Job, Outcome, WriteError, Writes};
use crate::policy::{Board, Finding, PolicyId};
use crate::time::{Clock, Moment, Now};

/// How often the board is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Writes in flight at once.
const MAX_WRITES: usize = 8;
/// From a first failed write to the next; doubled up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// From one look at an HPA that is another's, or was refused, to the next.
const FOUND_PAUSE: Duration = Duration::from_secs(30);

/// What the writer counts.
#[derive(Clone, Debug)]
pub(super) struct WriteMetrics {
    writes: IntCounterVec,
}

impl WriteMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let opts = Opts::new(
            "headroom_adapter_writes_total",
            "Writes to the API server by the leading replica",
        );
        let writes = IntCounterVec::new(opts, &["object", "outcome"])?;
        registry.register(Box::new(writes.clone()))?;
        for object in ["status", "autoscaler"] {
            for outcome in ["ok", "failed"] {
                writes.with_label_values(&[object, outcome]);
            }
        }
        Ok(Self { writes })
    }

    fn count(&self, object: &str, ok: bool) {
        self.writes.with_label_values(&[object, if ok { "ok" } else { "failed" }]).inc();
    }
}

/// See the module.
pub(super) struct Writer {
    pub(super) writes: Writes,
    pub(super) board: Arc<Board>,
    pub(super) clock: Clock,
    pub(super) leader: watch::Receiver<bool>,
    pub(super) rulings: watch::Receiver<Arc<Vec<Ruling>>>,
    pub(super) autoscalers: mpsc::Receiver<Event<SeenHpa>>,
    pub(super) metrics: WriteMetrics,
    pub(super) divergence: Divergence,
    pub(super) memory: Memory,
}

/// What the writer knows between two looks.
#[derive(Default)]
pub(super) struct Memory {
    policies: HashMap<PolicyId, PolicyMemory>,
    hpas: HpasByName,
    incoming_hpas: HpasByName,
    hpas_listed: bool,
}

type HpasByName = HashMap<(String, String), SeenHpa>;

/// What was written of one policy, and what stands in the way.
struct PolicyMemory {
    uid: String,
    generation: i64,
    written: ScalingPolicyStatus,
    written_at: Option<Moment>,
    status_pause: Pause,
    applied: Option<Applied>,
    finding: Option<Finding>,
    hpa_pause: Pause,
}

/// When something may be tried again.
#[derive(Clone, Copy, Debug, Default)]
struct Pause {
    until: Moment,
    next: Option<Duration>,
}

impl Pause {
    fn over(&self, now: Now) -> bool {
        now.monotonic >= self.until
    }

    fn failed(&mut self, now: Now) {
        let pause = self.next.unwrap_or(FIRST_PAUSE);
        *self = Self { until: now.monotonic + pause, next: Some((pause * 2).min(LAST_PAUSE)) };
    }

    fn rest(&mut self, now: Now, pause: Duration) {
        *self = Self { until: now.monotonic + pause, next: None };
    }
}

impl Writer {
    /// Runs until those who rule, or the watch of HPAs, are gone.
    pub(super) async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                ruled = self.rulings.changed() => if ruled.is_err() { return },
                changed = self.leader.changed() => if changed.is_err() { return },
                event = self.autoscalers.recv() => match event {
                    Some(event) => self.memory.apply_hpa(event),
                    None => return,
                },
            }
            while let Ok(event) = self.autoscalers.try_recv() {
                self.memory.apply_hpa(event);
            }
            if *self.leader.borrow_and_update() {
                self.divergence.lead();
                self.write().await;
            } else {
                // Another replica writes: what was written here last says nothing any more.
                self.memory.policies.clear();
                let rulings = self.rulings.borrow_and_update().clone();
                self.divergence.follow(&rulings, &self.board, self.clock.now());
            }
        }
    }

    /// One look at everything, and the writes that it asks for. Ends at once when leadership ends.
    async fn write(&mut self) {
        let rulings = self.rulings.borrow_and_update().clone();
        let jobs = self.memory.plan(&rulings, &self.board, self.clock.now());
        if jobs.is_empty() {
            return;
        }
        let writes = self.writes.clone();
        let mut outcomes = pin!(
            stream::iter(jobs).map(|job| writes.clone().run(job)).buffer_unordered(MAX_WRITES)
        );
        let mut leader = self.leader.clone();
        loop {
            tokio::select! {
                outcome = outcomes.next() => {
                    let Some(outcome) = outcome else { return };
                    self.memory.record(outcome, self.clock.now(), &self.metrics);
                }
                _ = leader.wait_for(|leads| !leads) => return,
            }
        }
    }
}

impl Memory {
    /// Takes in what the watch of our HPAs saw.
    fn apply_hpa(&mut self, event: Event<SeenHpa>) {
        let key = |hpa: &SeenHpa| (hpa.namespace.clone(), hpa.name.clone());
        match event {
            Event::Init => self.incoming_hpas.clear(),
            Event::InitApply(hpa) => drop(self.incoming_hpas.insert(key(&hpa), hpa)),
            Event::InitDone => {
                self.hpas = std::mem::take(&mut self.incoming_hpas);
                self.hpas_listed = true;
            }
            Event::Apply(hpa) => drop(self.hpas.insert(key(&hpa), hpa)),
            // One with another uid has taken the name since.
            Event::Delete(hpa) => {
                self.hpas.retain(|name, kept| *name != key(&hpa) || kept.uid != hpa.uid)
            }
        }
    }

    /// What is to be written now. Forgets the policies that are gone.
    fn plan(&mut self, rulings: &[Ruling], board: &Board, now: Now) -> Vec<Job> {
        let uids: HashMap<_, _> = rulings.iter().map(|r| (&r.policy.id, &r.policy.uid)).collect();
        self.policies.retain(|id, memory| uids.get(id).is_some_and(|uid| **uid == memory.uid));
        let mut jobs = Vec::new();
        for ruling in rulings {
            let policy = &ruling.policy;
            let memory = self.policies.entry(policy.id.clone()).or_insert_with(|| PolicyMemory {
                uid: policy.uid.clone(),
                generation: policy.generation,
                written: policy.status.clone(),
                written_at: None,
                status_pause: Pause::default(),
                applied: None,
                finding: None,
                hpa_pause: Pause::default(),
            });
            if memory.generation != policy.generation {
                // What failed with the spec as it was may succeed now.
                memory.generation = policy.generation;
                memory.hpa_pause = Pause::default();
                memory.status_pause = Pause::default();
            }
            if self.hpas_listed {
                let name = (policy.id.namespace.to_string(), policy.id.name.to_string());
                let known = self.hpas.get(&name).cloned().map_or(Known::Unlabelled, Known::Present);
                jobs.extend(memory.plan_hpa(ruling, known, now));
            }
            jobs.extend(memory.plan_status(ruling, board, now));
        }
        jobs
    }

    /// Remembers what came of a write.
    fn record(&mut self, outcome: Outcome, now: Now, metrics: &WriteMetrics) {
        match outcome {
            Outcome::Status { id, status, result } => {
                metrics.count("status", result.is_ok());
                let Some(memory) = self.policies.get_mut(&id) else { return };
                match result {
                    Ok(()) => {
                        memory.written = *status;
                        memory.written_at = Some(now.monotonic);
                        memory.status_pause = Pause::default();
                    }
                    Err(error) => {
                        memory.status_pause.failed(now);
                        tell(&id, "the status was not written", &error);
                    }
                }
            }
            Outcome::Hpa { id, result } => {
                metrics.count("autoscaler", result.is_ok());
                self.record_hpa(&id, result, now);
            }
        }
    }

    fn record_hpa(&mut self, id: &PolicyId, result: Result<HpaOutcome, WriteError>, now: Now) {
        let Some(memory) = self.policies.get_mut(id) else { return };
        match result {
            Ok(HpaOutcome::Settled) => {
                memory.finding = None;
                memory.hpa_pause.rest(now, FOUND_PAUSE);
            }
            Ok(HpaOutcome::Applied(hpa, applied)) => {
                info!(namespace = &*id.namespace, name = &*id.name, "the autoscaler was applied");
                memory.finding = None;
                memory.hpa_pause = Pause::default();
                memory.applied = Some(applied);
                self.hpas.insert((hpa.namespace.clone(), hpa.name.clone()), hpa);
            }
            Ok(HpaOutcome::Deleted { uid }) => {
                info!(namespace = &*id.namespace, name = &*id.name, "the autoscaler was deleted");
                memory.finding = None;
                memory.hpa_pause = Pause::default();
                memory.applied = None;
                self.hpas.retain(|_, hpa| hpa.uid != uid);
            }
            Ok(HpaOutcome::Found(finding)) => {
                memory.finding = Some(finding);
                memory.hpa_pause.rest(now, FOUND_PAUSE);
            }
            Err(error) => {
                memory.hpa_pause.failed(now);
                tell(id, "the autoscaler was not written", &error);
            }
        }
    }
}

impl PolicyMemory {
    fn plan_hpa(&mut self, ruling: &Ruling, known: Known, now: Now) -> Option<Job> {
        match step(ruling, &known, self.applied) {
            Step::Nothing => {
                self.finding = None;
                None
            }
            Step::LeaveAlone(finding) => {
                self.finding = Some(finding);
                None
            }
            Step::Look | Step::Apply { .. } | Step::Delete { .. } => {
                let applied = self.applied;
                self.hpa_pause.over(now).then(|| Job::Hpa {
                    ruling: ruling.clone(),
                    known,
                    applied,
                })
            }
        }
    }

    fn plan_status(&self, ruling: &Ruling, board: &Board, now: Now) -> Option<Job> {
        if !self.status_pause.over(now) {
            return None;
        }
        let policy = &ruling.policy;
        let state = board.get(&policy.id);
        let wanted = status::wanted(
            ruling,
            state.as_ref().map(|standing| standing.state()),
            self.finding.as_ref(),
            &self.written,
            now,
        )?;
        let since_written = self.written_at.map(|at| now.monotonic.since(at));
        status::due(&wanted, &self.written, since_written).then(|| Job::Status {
            id: policy.id.clone(),
            uid: policy.uid.clone(),
            ready_flipped: ready(&wanted) != ready(&self.written),
            status: Box::new(wanted),
        })
    }
}

fn ready(status: &ScalingPolicyStatus) -> Option<&str> {
    let condition = status.conditions.iter().find(|condition| condition.type_ == READY)?;
    Some(&condition.status)
}

fn tell(id: &PolicyId, what: &'static str, error: &WriteError) {
    let (namespace, name) = (&*id.namespace, &*id.name);
    if error.overtaken() {
        debug!(namespace, name, error = error as &dyn std::error::Error, "{what}");
    } else {
        warn!(namespace, name, error = error as &dyn std::error::Error, "{what}");
    }
}

#[cfg(test)]
mod tests {
    use kube::core::DeserializeGuard;
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::hpa::conflict_with;
    use crate::controller::index::{SeenPolicy, reason};
    use crate::controller::scaling_policy::ScalingPolicy;
    use crate::policy::Assignment;

    /// A policy without a target, which is something to say at once.
    fn ruling(change: impl FnOnce(&mut Value)) -> Ruling {
        let mut object = json!({
            "apiVersion": "headroom.dev/v1alpha1",
            "kind": "ScalingPolicy",
            "metadata": {"name": "checkout", "namespace": "shop", "uid": "policy-uid", "generation": 1},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "checkout"},
                "endpoint": {"port": "metrics"},
                "signals": [{"name": "tasks", "tasks": {"threshold": 5000}}],
            },
        });
        change(&mut object);
        let guarded: DeserializeGuard<ScalingPolicy> =
            serde_json::from_value(object).expect("it has metadata");
        let policy = Arc::new(SeenPolicy::from(guarded));
        let assignment = Assignment::Refused {
            id: policy.id.clone(),
            reason: reason::TARGET_NOT_FOUND,
            message: "there is no Deployment checkout".to_owned(),
        };
        Ruling { policy, assignment }
    }

    fn with_autoscaler(object: &mut Value) {
        object["spec"]["autoscaler"] = json!({"maxReplicas": 5});
    }

    fn at(seconds: u64) -> Now {
        Now::default() + Duration::from_secs(seconds)
    }

    fn metrics() -> WriteMetrics {
        WriteMetrics::register(&Registry::new()).expect("an empty registry takes all")
    }

    fn plan(memory: &mut Memory, ruling: &Ruling, seconds: u64) -> Vec<&'static str> {
        let jobs = memory.plan(std::slice::from_ref(ruling), &Board::default(), at(seconds));
        let name = |job: &Job| match job {
            Job::Status { ready_flipped: true, .. } => "status, flipped",
            Job::Status { ready_flipped: false, .. } => "status",
            Job::Hpa { .. } => "hpa",
        };
        jobs.iter().map(name).collect()
    }

    fn record_status(memory: &mut Memory, ruling: &Ruling, seconds: u64, ok: bool) {
        let jobs = memory.plan(std::slice::from_ref(ruling), &Board::default(), at(seconds));
        for job in jobs {
            if let Job::Status { id, status, .. } = job {
                let result = if ok { Ok(()) } else { Err(WriteError::Deadline) };
                memory.record(Outcome::Status { id, status, result }, at(seconds), &metrics());
            }
        }
    }

    #[test]
    fn a_status_is_written_once() {
        let (mut memory, ruling) = (Memory::default(), ruling(|_| {}));
        assert_eq!(plan(&mut memory, &ruling, 0), ["status, flipped"]);
        record_status(&mut memory, &ruling, 0, true);
        assert_eq!(plan(&mut memory, &ruling, 3600), [""; 0]);
    }

    #[test]
    fn a_new_leader_does_not_write_what_its_predecessor_wrote() {
        let mut memory = Memory::default();
        let first = ruling(|_| {});
        record_status(&mut memory, &first, 0, true);
        let written = memory.policies.values().next().expect("one policy").written.clone();
        let mut seen = ruling(|_| {});
        let mut policy = SeenPolicy::clone(&seen.policy);
        policy.status = written;
        seen.policy = Arc::new(policy);
        assert_eq!(plan(&mut Memory::default(), &seen, 0), [""; 0]);
    }

    #[test]
    fn a_failing_status_is_tried_with_growing_pauses() {
        let (mut memory, ruling) = (Memory::default(), ruling(|_| {}));
        record_status(&mut memory, &ruling, 0, false);
        assert_eq!(plan(&mut memory, &ruling, 0), [""; 0]);
        assert_eq!(plan(&mut memory, &ruling, 1), ["status, flipped"]);
        record_status(&mut memory, &ruling, 1, false);
        assert_eq!(plan(&mut memory, &ruling, 2), [""; 0]);
        assert_eq!(plan(&mut memory, &ruling, 3), ["status, flipped"]);
    }

    #[test]
    fn no_hpa_is_planned_before_ours_are_listed() {
        let (mut memory, ruling) = (Memory::default(), ruling(with_autoscaler));
        assert_eq!(plan(&mut memory, &ruling, 0), ["status, flipped"]);
        memory.apply_hpa(Event::InitDone);
        assert_eq!(plan(&mut memory, &ruling, 0), ["hpa", "status, flipped"]);
    }

    #[test]
    fn an_hpa_of_someone_else_becomes_a_finding_and_is_looked_at_again_later() {
        let (mut memory, first) = (Memory::default(), ruling(with_autoscaler));
        memory.apply_hpa(Event::InitDone);
        record_status(&mut memory, &first, 0, true);
        let id = first.policy.id.clone();
        let found = Outcome::Hpa { id, result: Ok(HpaOutcome::Found(conflict_with("checkout"))) };
        memory.record(found, at(0), &metrics());
        assert_eq!(plan(&mut memory, &first, 1), ["status"], "the condition is new");
        record_status(&mut memory, &first, 1, true);
        assert_eq!(plan(&mut memory, &first, 29), [""; 0]);
        assert_eq!(plan(&mut memory, &first, 30), ["hpa"]);
        let edited = ruling(|object| {
            with_autoscaler(object);
            object["metadata"]["generation"] = json!(2);
        });
        assert_eq!(plan(&mut memory, &edited, 2)[0], "hpa", "a new spec is tried at once");
    }

    #[test]
    fn a_policy_created_anew_starts_anew() {
        let mut memory = Memory::default();
        let first = ruling(|_| {});
        record_status(&mut memory, &first, 0, true);
        let recreated = ruling(|object| object["metadata"]["uid"] = json!("other-uid"));
        assert_eq!(plan(&mut memory, &recreated, 1), ["status, flipped"]);
    }
}
