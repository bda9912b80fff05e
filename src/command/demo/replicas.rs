//! The replicas that an HPA would choose, by its own rules, from the number that the API served.
//!
//! In: `headroom_demand` as read, or nothing. Out: replicas. Never: a change without a number.

use std::time::Duration;

use tokio::time::Instant;

use super::scenario::{MAX_REPLICAS, MIN_REPLICAS};
use super::view;
use crate::policy::hpa::{
    Behavior, HpaPod, HpaPodPhase, Metric, Normalizer, ScaleState, Tolerance, desired_replicas,
};
use crate::quantity::Quantity;
use crate::time::Moment;

/// The HPA controller's sync period.
const SYNC: Duration = Duration::from_secs(15);
/// Down within the minute that a viewer stays, not after the default of five.
const DOWN_STABILIZATION: Duration = Duration::from_secs(15);

pub(super) struct Replicas {
    now: u32,
    normalizer: Normalizer,
    started: Instant,
    next_look: Instant,
    looked: bool,
}

impl Replicas {
    pub(super) fn new() -> Self {
        let mut behavior = Behavior::default();
        behavior.down.stabilization = DOWN_STABILIZATION;
        let started = Instant::now();
        Self {
            now: MIN_REPLICAS,
            normalizer: Normalizer::new(MIN_REPLICAS, MAX_REPLICAS, behavior),
            started,
            next_look: started,
            looked: false,
        }
    }

    /// One pass of the HPA, if it is time for one.
    pub(super) fn look(&mut self, demand: Option<f64>, now: Instant) {
        if now < self.next_look {
            return;
        }
        let Some(served) = demand.and_then(Quantity::from_served) else {
            // Before the first number there is nothing to wait a whole period for.
            if self.looked {
                self.next_look = now + SYNC;
            }
            return;
        };
        self.looked = true;
        self.next_look = now + SYNC;
        let metric = Metric::ExternalAverageValue {
            items_milli: vec![i64::try_from(served.milli_ceil()).unwrap_or(i64::MAX)],
            target_milli: 1000,
        };
        let pod =
            |index| HpaPod { name: format!("sample-{index}").into(), phase: HpaPodPhase::Ready };
        let scale = ScaleState {
            spec_replicas: self.now,
            status_replicas: self.now,
            pods: (0..self.now).map(pod).collect(),
        };
        if let Ok(proposal) = desired_replicas(&metric, &scale, Tolerance::default()) {
            let at = Moment::after_start(now - self.started);
            self.now = self.normalizer.next(at, self.now, proposal.replicas);
        }
    }

    pub(super) fn shown(&self, now: Instant) -> view::Replicas {
        view::Replicas {
            now: self.now,
            min: MIN_REPLICAS,
            max: MAX_REPLICAS,
            next_look_seconds: self.next_look.saturating_duration_since(now).as_secs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replicas_follow_the_number_at_the_pace_of_an_hpa_and_hold_without_one() {
        let mut replicas = Replicas::new();
        let start = replicas.started;
        let at = |seconds| start + Duration::from_secs(seconds);
        replicas.look(Some(5.6), at(0));
        assert_eq!(replicas.now, 5, "from 1 an HPA adds 4 at most");
        replicas.look(Some(5.6), at(5));
        assert_eq!(replicas.now, 5, "it has not looked again yet");
        replicas.look(Some(5.6), at(15));
        assert_eq!(replicas.now, 6);
        replicas.look(None, at(60));
        assert_eq!(replicas.now, 6);
    }
}
