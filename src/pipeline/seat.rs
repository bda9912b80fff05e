//! One policy's place in the pipeline, and who sits where.
//!
//! In: assignments. Out: the targets of the source, the policies of an endpoint, and decisions in which a panic is caught.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::policy::reason::NO_SAMPLES_YET;
use crate::policy::{Decider, Decision, Learned, Policy, PolicyId, Unserved, Workload};
use crate::sample::EndpointKey;
use crate::sources::{Target, Wanted};
use crate::store::Store;
use crate::time::{Moment, Now};

/// How a seat decides: [`Decider::decide`], but for tests of what happens when it panics.
type Decide = fn(&mut Decider, &Store, &Workload, Now) -> Decision;

/// A policy, its workload now, and what its decider has learned.
#[derive(Debug)]
pub(super) struct Seat {
    policy: Arc<Policy>,
    workload: Arc<Workload>,
    wanted: Arc<Wanted>,
    decider: Decider,
    /// As of the last decision that did not panic; the status may be half a minute behind it.
    learned: Learned,
    decide: Decide,
    /// The last attempt to decide, or the arrival of the policy.
    attempted: Moment,
    progress: SeatProgress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SeatProgress {
    /// Never decided: without pods there is nothing to wait for, with pods the first batch is.
    New,
    /// Decided about what is known.
    Decided,
    /// Its policy or its workload has changed since.
    Changed,
}

/// A decision that panicked, with the panic's message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Panicked(pub(super) String);

impl Panicked {
    pub(super) fn unserved(&self) -> Unserved {
        Unserved {
            reason: "InternalError",
            message:
                "an internal error stopped the decision about this policy; the adapter's log has it"
                    .to_owned(),
        }
    }
}

impl Seat {
    /// `rested` is the decider of an earlier seat of the policy.
    pub(super) fn new(
        policy: &Arc<Policy>,
        workload: &Arc<Workload>,
        rested: Option<Decider>,
        now: Moment,
    ) -> Self {
        let decider = match rested {
            Some(mut decider) => {
                decider.update(policy.clone());
                decider
            }
            None => Decider::new(policy.clone()),
        };
        Self {
            policy: policy.clone(),
            workload: workload.clone(),
            wanted: Arc::new(Wanted::from_iter(policy.wanted())),
            learned: decider.learned(),
            decider,
            decide: Decider::decide,
            attempted: now,
            progress: SeatProgress::New,
        }
    }

    /// The same seat with what the roster says now; what was learned stays.
    pub(super) fn updated(mut self, policy: &Arc<Policy>, workload: &Arc<Workload>) -> Self {
        let policy_changed = self.policy != *policy;
        if policy_changed {
            self.policy = policy.clone();
            self.wanted = Arc::new(Wanted::from_iter(policy.wanted()));
            self.decider.update(policy.clone());
        }
        let workload_changed = self.workload != *workload;
        self.workload = workload.clone();
        if (policy_changed || workload_changed) && self.progress != SeatProgress::New {
            self.progress = SeatProgress::Changed;
        }
        self
    }

    pub(super) fn id(&self) -> &PolicyId {
        &self.policy.id
    }

    pub(super) fn policy(&self) -> Arc<Policy> {
        self.policy.clone()
    }

    pub(super) fn workload(&self) -> Arc<Workload> {
        self.workload.clone()
    }

    pub(super) fn live_pods(&self) -> usize {
        self.workload.pods.iter().filter(|pod| !pod.ended).count()
    }

    /// Whether the roster alone is reason enough to decide.
    pub(super) fn wants_decision(&self) -> bool {
        match self.progress {
            SeatProgress::New => self.live_pods() == 0,
            SeatProgress::Decided => false,
            SeatProgress::Changed => true,
        }
    }

    pub(super) fn no_samples_yet(&self) -> Unserved {
        let target = &self.policy.target;
        Unserved {
            reason: NO_SAMPLES_YET,
            message: format!(
                "no sample of {} {} has arrived since the adapter took up this policy; it has {} pods",
                target.kind,
                target.name,
                self.live_pods()
            ),
        }
    }

    /// Decides; after a panic with a fresh decider that knows what was learned before, since the old one may be half
    /// changed.
    pub(super) fn decide(&mut self, store: &Store, now: Now) -> Result<Decision, Panicked> {
        self.attempted = now.monotonic;
        self.progress = SeatProgress::Decided;
        let (decide, decider, workload) = (self.decide, &mut self.decider, &self.workload);
        match catch_unwind(AssertUnwindSafe(|| decide(decider, store, workload, now))) {
            Ok(decision) => {
                self.learned.clone_from(&decision.learned);
                Ok(decision)
            }
            Err(payload) => {
                let learned = self.learned.clone();
                let policy = Policy { learned, ..Policy::clone(&self.policy) };
                self.decider = Decider::new(Arc::new(policy));
                let text = payload.downcast_ref::<&str>().map(ToString::to_string);
                let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
                Err(Panicked(text.unwrap_or_default()))
            }
        }
    }

    fn is_overdue(&self, now: Moment) -> bool {
        now.since(self.attempted) >= self.policy.stale_after / 2
    }

    fn targets(&self) -> impl Iterator<Item = Target> {
        self.workload.pods.iter().filter(|pod| !pod.ended).filter_map(|pod| {
            let endpoint = self.policy.endpoint.on(pod)?;
            let address = SocketAddr::new(pod.ip?, endpoint.port);
            Some(Target { endpoint, address, wanted: self.wanted.clone() })
        })
    }
}

/// All seats, and the endpoints of each. Two policies may ask the same endpoint of a pod, or different ones.
#[derive(Debug, Default)]
pub(super) struct Seats {
    seats: BTreeMap<PolicyId, Seat>,
    /// What is known of policies that are refused for now: the next status may be long in coming.
    resting: BTreeMap<PolicyId, Decider>,
    by_endpoint: HashMap<EndpointKey, Vec<PolicyId>>,
}

impl Seats {
    pub(super) fn take(&mut self, seat: Seat) {
        let pods = seat.workload.pods.iter();
        for endpoint in pods.filter_map(|pod| seat.policy.endpoint.on(pod)) {
            self.by_endpoint.entry(endpoint).or_default().push(seat.id().clone());
        }
        self.seats.insert(seat.id().clone(), seat);
    }

    pub(super) fn leave(&mut self, id: &PolicyId) -> Option<Seat> {
        self.seats.remove(id)
    }

    /// The decider of a policy that is refused, or was until now.
    pub(super) fn rested(&mut self, id: &PolicyId) -> Option<Decider> {
        let seated = self.seats.remove(id).map(|seat| seat.decider);
        seated.or_else(|| self.resting.remove(id))
    }

    pub(super) fn rest(&mut self, id: PolicyId, decider: Decider) {
        self.resting.insert(id, decider);
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn contains(&self, id: &PolicyId) -> bool {
        self.seats.contains_key(id)
    }

    pub(super) fn get_mut(&mut self, id: &PolicyId) -> Option<&mut Seat> {
        self.seats.get_mut(id)
    }

    pub(super) fn knows(&self, endpoint: &EndpointKey) -> bool {
        self.by_endpoint.contains_key(endpoint)
    }

    pub(super) fn policies_of(&self, endpoint: &EndpointKey) -> &[PolicyId] {
        self.by_endpoint.get(endpoint).map_or(&[], Vec::as_slice)
    }

    pub(super) fn overdue(&self, now: Moment) -> impl Iterator<Item = &PolicyId> {
        self.seats.iter().filter(move |(_, seat)| seat.is_overdue(now)).map(|(id, _)| id)
    }

    /// The longest that any of them needs.
    pub(super) fn history(&self) -> Duration {
        self.seats.values().map(|seat| seat.policy.history()).max().unwrap_or_default()
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        self.seats.values().flat_map(Seat::targets).collect()
    }
}

#[cfg(test)]
impl Seat {
    /// Replaces how this seat decides.
    pub(super) fn decides_with(&mut self, decide: Decide) {
        self.decide = decide;
    }
}
