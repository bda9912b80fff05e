//! When this replica may be asked: the readiness condition `decisions`.
//!
//! In: the board, after every policy is known. Out: ready once every policy has an answer that another replica would give
//! too, or after [`GRACE`]; and ready from then on. Never: a replica that is kept out of its Service by one policy, and never
//! all replicas out of it at once because somebody made a policy.
//!
//! A fresh replica answers with errors until every signal has two samples. An error keeps replicas as they are, so it harms
//! nobody for a few seconds; but during a rolling update, when the old replica would still have answered with a number, it
//! is a gap that need not be. So a fresh replica waits. What it waits for is only its own youth: a policy that is not decided,
//! whose target has not been read, or of which a signal waits for its second sample. A policy that cannot be decided (its pods are down, its spec is wrong, a
//! metric is not served) has an answer, an error that is as true here as on any other replica; it holds nothing up. Every
//! policy is decided within half of its `staleAfter` even if no pod ever answers, and the grace bounds what is left: a
//! counter that a pod shows once and never again, or an interval of minutes.

use std::time::Duration;

use tracing::{info, warn};

use crate::policy::{Board, EntryState, Unserved, reason};
use crate::probes::Condition;
use crate::time::Moment;

/// After the policies were listed. Longer than two intervals of the usual lengths and half of the usual `staleAfter`.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// The way from a start to readiness; there is none back.
#[derive(Debug)]
pub(super) struct WarmUp {
    condition: Condition,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Which policies there are is not known yet.
    Unlisted,
    Warming {
        since: Moment,
    },
    Warm,
}

impl WarmUp {
    pub(super) fn new(condition: Condition) -> Self {
        condition.not_ready("the policies are not known yet");
        Self { condition, stage: Stage::Unlisted }
    }

    /// All policies are on the board.
    pub(super) fn listed(&mut self, now: Moment) {
        if self.stage == Stage::Unlisted {
            self.stage = Stage::Warming { since: now };
        }
    }

    /// Looks whether it is time.
    pub(super) fn look(&mut self, board: &Board, now: Moment) {
        let Stage::Warming { since } = self.stage else { return };
        let policies = board.all();
        let waiting: Vec<_> = policies
            .iter()
            .filter(|(_, standing)| is_young(standing.state()))
            .map(|(id, _)| id)
            .collect();
        let over = now.since(since) >= GRACE;
        if waiting.is_empty() || over {
            self.stage = Stage::Warm;
            self.condition.ready();
            info!(policies = policies.len(), waiting = waiting.len(), "ready to be asked");
        }
        match waiting.first() {
            Some(first) if over => {
                let (namespace, name) = (&*first.namespace, &*first.name);
                warn!(
                    namespace,
                    name, "a policy has no second sample yet; it is waited for no longer"
                );
            }
            Some(first) => self.condition.not_ready(format!(
                "{} of {} policies wait for their first two samples, {}/{} among them",
                waiting.len(),
                policies.len(),
                first.namespace,
                first.name
            )),
            None => {}
        }
    }
}

/// Whether there is no answer, or an error, only because this replica has not been here for long.
fn is_young(state: &EntryState) -> bool {
    match state {
        EntryState::Unserved(why) => {
            [reason::TARGET_PENDING, reason::NO_SAMPLES_YET].contains(&why.reason)
        }
        EntryState::Decided { decision, .. } => {
            let awaits = |why: &Unserved| why.reason == reason::AWAITING_SECOND_SAMPLE;
            decision.demand.is_err()
                && decision.signals.iter().any(|signal| signal.demand.as_ref().is_err_and(awaits))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicyId;
    use crate::probes::Progress;
    use crate::time::Clock;

    struct Scene {
        progress: Progress,
        board: Board,
        warm_up: WarmUp,
    }

    impl Scene {
        fn new() -> Self {
            let progress = Progress::new(Clock::start());
            let warm_up = WarmUp::new(progress.add_condition("decisions"));
            Self { progress, board: Board::default(), warm_up }
        }

        fn say(&self, policy: &str, reason: &'static str) {
            let id = PolicyId { namespace: "shop".into(), name: policy.into() };
            let message = String::new();
            self.board.publish(&id, EntryState::Unserved(Unserved { reason, message }));
        }

        /// Whether it is ready so many seconds after its start.
        fn ready_at(&mut self, seconds: u64) -> bool {
            self.warm_up.look(&self.board, Moment::after_start(Duration::from_secs(seconds)));
            self.progress.ready().is_ok()
        }
    }

    #[test]
    fn before_the_policies_are_known_no_replica_is_ready() {
        let mut scene = Scene::new();
        assert!(!scene.ready_at(3600), "no policy is not the same as none known");
        scene.warm_up.listed(Moment::default());
        assert!(scene.ready_at(3600), "there are none");
    }

    #[test]
    fn a_policy_that_cannot_be_decided_holds_nothing_up() {
        let mut scene = Scene::new();
        scene.warm_up.listed(Moment::default());
        scene.say("checkout", reason::NO_SAMPLES_YET);
        scene.say("cart", "PodsSilent");
        assert!(!scene.ready_at(1));
        let told = scene.progress.ready().expect_err("it is not ready");
        assert!(told.contains("1 of 2 policies") && told.contains("shop/checkout"), "{told}");
        scene.say("checkout", "TargetNotFound");
        assert!(scene.ready_at(2));
    }

    #[test]
    fn the_grace_ends_the_wait_for_what_never_comes() {
        let mut scene = Scene::new();
        scene.warm_up.listed(Moment::default());
        scene.say("checkout", reason::TARGET_PENDING);
        assert!(!scene.ready_at(GRACE.as_secs() - 1));
        assert!(scene.ready_at(GRACE.as_secs()));
    }

    #[test]
    fn a_new_policy_takes_no_replica_out_of_its_service() {
        let mut scene = Scene::new();
        scene.warm_up.listed(Moment::default());
        assert!(scene.ready_at(0));
        scene.say("checkout", reason::NO_SAMPLES_YET);
        assert!(scene.ready_at(1));
    }
}
