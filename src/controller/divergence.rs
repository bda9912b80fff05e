//! Whether the replicas agree: this one's demand beside the one that the leader writes into the policy's status.
//!
//! In: rulings, which hold the status as it was last seen, and the board. Out: `headroom_adapter_demand_divergence_ratio` for
//! each policy and `headroom_adapter_divergent_policies`. Never: a request to another replica.
//!
//! Why the status: every replica watches it already, so that the comparison costs nothing and needs no right, no address of a
//! peer and no certificate between them. Its price is its age. The leader writes a demand that moved by 5 %, but at most every
//! 30 s, so a moment's ratio says how far the status is behind as much as how far the replicas are apart. What counts is what
//! stays: over a minute, two writes of the leader, a difference of more than 10 % is one of what the replicas see. It is the
//! leader's writing that is compared with, so without a leader the last status stands, and demands that move on count as
//! divergent: nobody keeps the statuses then, which is worth the same look.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{GaugeVec, IntGauge, Opts, Registry};
use tracing::{info, warn};

use super::index::Ruling;
use crate::policy::{Assignment, Board, EntryState, PolicyId};
use crate::time::{Moment, Now};

/// Twice what a status may be off by.
const TOLERATED: f64 = 0.1;
/// Twice the pause between two writes of a status.
const SUSTAINED: Duration = Duration::from_secs(60);

/// The comparison of all policies.
#[derive(Debug)]
pub(super) struct Divergence {
    ratio: GaugeVec,
    divergent: IntGauge,
    apart: HashMap<PolicyId, Apart>,
}

/// Since when a policy's demands are apart.
#[derive(Clone, Copy, Debug)]
struct Apart {
    since: Option<Moment>,
    told: bool,
}

impl Divergence {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let ratio = Opts::new(
            "headroom_adapter_demand_divergence_ratio",
            "Difference of this replica's demand and the leader's in the policy's status, by the larger of both and 1; absent on the leader",
        );
        let ratio = GaugeVec::new(ratio, &["namespace", "policy"])?;
        let divergent = IntGauge::new(
            "headroom_adapter_divergent_policies",
            "Policies whose demand here has differed from the leader's by over 10 % for over a minute; 0 on the leader",
        )?;
        registry.register(Box::new(ratio.clone()))?;
        registry.register(Box::new(divergent.clone()))?;
        Ok(Self { ratio, divergent, apart: HashMap::new() })
    }

    /// This replica leads: it would compare with itself.
    pub(super) fn lead(&mut self) {
        self.ratio.reset();
        self.divergent.set(0);
        self.apart.clear();
    }

    /// Compares what is on the board with what the statuses say.
    pub(super) fn follow(&mut self, rulings: &[Ruling], board: &Board, now: Now) {
        let compared: HashMap<&PolicyId, f64> = rulings
            .iter()
            .filter_map(|ruling| Some((&ruling.policy.id, compare(ruling, board, now)?)))
            .collect();
        self.apart.retain(|id, _| {
            let kept = compared.contains_key(id);
            if !kept {
                // An error only says that there is no such series.
                drop(self.ratio.remove_label_values(&[&id.namespace, &id.name]));
            }
            kept
        });
        for (id, ratio) in compared {
            self.ratio.with_label_values(&[&*id.namespace, &*id.name]).set(ratio);
            let apart = self.apart.entry(id.clone()).or_insert(Apart { since: None, told: false });
            apart.look(id, ratio, now.monotonic);
        }
        let divergent = self.apart.values().filter(|apart| apart.told).count();
        self.divergent.set(i64::try_from(divergent).unwrap_or(i64::MAX));
    }
}

impl Apart {
    fn look(&mut self, id: &PolicyId, ratio: f64, now: Moment) {
        let (namespace, name) = (&*id.namespace, &*id.name);
        if ratio <= TOLERATED {
            if self.told {
                info!(namespace, name, "this replica and the leader agree again");
            }
            *self = Self { since: None, told: false };
            return;
        }
        let since = *self.since.get_or_insert(now);
        if !self.told && now.since(since) > SUSTAINED {
            warn!(namespace, name, ratio, "this replica and the leader disagree about the demand");
            self.told = true;
        }
    }
}

/// 0 is equal, 1 is nothing in common. `None` where there is nothing to compare: the policy is refused, the leader has not
/// written about this generation yet, or neither has a number.
fn compare(ruling: &Ruling, board: &Board, now: Now) -> Option<f64> {
    let (policy, status) = (&ruling.policy, &ruling.policy.status);
    if !matches!(ruling.assignment, Assignment::Active { .. })
        || status.observed_generation != Some(policy.generation)
    {
        return None;
    }
    let own = match board.get(&policy.id)?.state() {
        EntryState::Decided { decision, .. } if decision.generation == policy.generation => {
            let is_stale = decision.is_stale(now.monotonic);
            decision.demand.as_ref().ok().copied().filter(|_| !is_stale)
        }
        EntryState::Decided { .. } => return None,
        EntryState::Unserved(_) => None,
    };
    match (own, status.demand) {
        (None, None) => None,
        (Some(own), Some(leaders)) => Some((own - leaders).abs() / own.max(leaders).max(1.0)),
        _ => Some(1.0),
    }
}

/// Both families with a policy, for the test that holds all of the adapter's metrics.
#[cfg(test)]
pub(crate) fn families_of_a_follower() -> Vec<prometheus::proto::MetricFamily> {
    let registry = Registry::new();
    let divergence = Divergence::register(&registry).expect("an empty registry takes all");
    divergence.ratio.with_label_values(&["shop", "checkout"]).set(0.5);
    registry.gather()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::controller::index::SeenPolicy;
    use crate::controller::scaling_policy::ScalingPolicyStatus;
    use crate::controller::status::tests::{decision, id, policy};
    use crate::policy::{Unserved, Workload};

    /// The status of the leader, seen `since` seconds after the decision that stands on the board.
    fn ruling(generation: i64, leaders: Option<f64>) -> Ruling {
        let mut seen = SeenPolicy::for_tests(id(), 3, policy());
        seen.status = ScalingPolicyStatus {
            observed_generation: Some(generation),
            demand: leaders,
            ..ScalingPolicyStatus::default()
        };
        let workload = Arc::new(Workload::default());
        Ruling {
            policy: Arc::new(seen),
            assignment: Assignment::Active { policy: policy(), workload },
        }
    }

    fn board(demand: Option<f64>) -> Board {
        let board = Board::default();
        let why = || Unserved { reason: "PodsSilent", message: String::new() };
        let state = decision(|decision| {
            decision.demand = demand.ok_or_else(why);
            // Always fresh: these tests are not about age.
            decision.stale_after = Duration::from_secs(3600);
        });
        board.publish(&id(), state);
        board
    }

    fn at(seconds: u64) -> Now {
        Now::default() + Duration::from_secs(100 + seconds)
    }

    #[track_caller]
    fn check(own: Option<f64>, leaders: Option<f64>, expected: Option<f64>) {
        let ratio = compare(&ruling(3, leaders), &board(own), at(0));
        let near = |(a, b): (f64, f64)| (a - b).abs() < 1e-9;
        assert_eq!(ratio.is_some(), expected.is_some(), "{own:?} {leaders:?}: {ratio:?}");
        assert!(ratio.zip(expected).is_none_or(near), "{own:?} {leaders:?}: {ratio:?}");
    }

    #[test]
    fn the_difference_is_a_share_of_the_larger_and_of_a_pod_at_least() {
        check(Some(4.0), Some(4.0), Some(0.0));
        check(Some(8.0), Some(4.0), Some(0.5));
        check(Some(4.0), Some(8.0), Some(0.5));
        check(Some(0.1), Some(0.2), Some(0.1));
        check(Some(4.0), None, Some(1.0));
        check(None, Some(4.0), Some(1.0));
        check(None, None, None);
    }

    #[test]
    fn a_status_of_another_generation_is_not_compared_with() {
        assert_eq!(compare(&ruling(2, Some(9.0)), &board(Some(1.0)), at(0)), None);
    }

    #[test]
    fn only_a_difference_that_stays_for_a_minute_counts() {
        let mut divergence = Divergence::register(&Registry::new()).expect("it is empty");
        let (apart, together) = ([ruling(3, Some(4.0))], [ruling(3, Some(8.0))]);
        let board = board(Some(8.0));
        let mut look = |rulings: &[Ruling], seconds| {
            divergence.follow(rulings, &board, at(seconds));
            divergence.divergent.get()
        };
        assert_eq!(look(&apart, 0), 0);
        assert_eq!(look(&apart, 60), 0);
        assert_eq!(look(&apart, 61), 1);
        assert_eq!(look(&together, 62), 0);
        assert_eq!(look(&apart, 63), 0, "it starts anew");
        assert_eq!(look(&apart, 124), 1);
        assert_eq!(look(&[], 125), 0, "the policy is gone");
        divergence.follow(&apart, &board, at(126));
        divergence.lead();
        assert_eq!(divergence.divergent.get(), 0);
        assert!(divergence.apart.is_empty());
    }
}
