//! From a proposal to the next `spec.replicas`: bounds, stabilisation and rate policies of `behavior`.
//!
//! In: proposals over time. Out: replicas. Never: a change outside min and max.
//! Source: `horizontal.go`, `normalizeDesiredReplicasWithBehaviors`; defaults of `autoscaling/v2/defaults.go`.

use std::collections::VecDeque;
use std::time::Duration;

use super::whole;
use crate::time::Moment;

/// How much may change in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RatePolicy {
    /// The step.
    pub step: RateStep,
    /// `periodSeconds`.
    pub period: Duration,
}

/// A step by pods or by a share of the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateStep {
    /// So many pods.
    Pods(u32),
    /// So many percent of the replicas at the start of the period.
    Percent(u32),
}

/// Which of several policies counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// The one that allows the largest change.
    Max,
    /// The one that allows the smallest change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// `behavior.scaleUp` or `behavior.scaleDown`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalingRules {
    /// `stabilizationWindowSeconds`.
    pub stabilization: Duration,
    /// At least one.
    pub policies: Vec<RatePolicy>,
    /// `selectPolicy`.
    pub select: Select,
}

/// `behavior`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behavior {
    /// Upwards.
    pub up: ScalingRules,
    /// Downwards.
    pub down: ScalingRules,
}

/// What the API server fills in.
impl Default for Behavior {
    fn default() -> Self {
        let rules = |stabilization, steps: &[RateStep]| ScalingRules {
            stabilization: Duration::from_secs(stabilization),
            policies: steps
                .iter()
                .map(|&step| RatePolicy { step, period: Duration::from_secs(15) })
                .collect(),
            select: Select::Max,
        };
        Self {
            up: rules(0, &[RateStep::Pods(4), RateStep::Percent(100)]),
            down: rules(300, &[RateStep::Percent(100)]),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Event {
    at: Moment,
    replicas: u32,
}

/// One HPA's memory of recommendations and of its own changes.
#[derive(Clone, Debug)]
pub struct Normalizer {
    min: u32,
    max: u32,
    behavior: Behavior,
    recommendations: VecDeque<Event>,
    ups: VecDeque<Event>,
    downs: VecDeque<Event>,
}

impl Normalizer {
    /// For an HPA with these bounds.
    #[must_use]
    pub fn new(min: u32, max: u32, behavior: Behavior) -> Self {
        let empty = VecDeque::new;
        Self { min, max, behavior, recommendations: empty(), ups: empty(), downs: empty() }
    }

    /// The next `spec.replicas`, from the current one and the largest proposal. Each call is one pass of the HPA.
    pub fn next(&mut self, now: Moment, current: u32, proposed: u32) -> u32 {
        let replicas = if current > self.max {
            self.max
        } else if current < self.min {
            self.min
        } else {
            let stable = self.stabilize(now, current, proposed);
            self.limit(now, current, stable)
        };
        self.remember(now, current, replicas);
        replicas
    }

    /// Up the least, down the largest of the recommendations in the window.
    fn stabilize(&mut self, now: Moment, current: u32, proposed: u32) -> u32 {
        let (up, down) = (self.behavior.up.stabilization, self.behavior.down.stabilization);
        if self.recommendations.is_empty() {
            self.recommendations.push_back(Event { at: now, replicas: current });
        }
        self.recommendations.retain(|event| now.since(event.at) < up.max(down));
        let within = |window: Duration| {
            self.recommendations
                .iter()
                .filter(move |event| now.since(event.at) < window)
                .map(|event| event.replicas)
        };
        let lowest = within(up).fold(proposed, u32::min);
        let highest = within(down).fold(proposed, u32::max);
        self.recommendations.push_back(Event { at: now, replicas: proposed });
        if current < lowest { lowest } else { current.min(highest) }
    }

    fn limit(&self, now: Moment, current: u32, desired: u32) -> u32 {
        if desired > current {
            let rate = self.rate_limit(now, current, true).max(current);
            desired.min(self.max.min(rate))
        } else if desired < current {
            let rate = self.rate_limit(now, current, false).min(current);
            desired.max(self.min.max(rate))
        } else {
            desired.clamp(self.min, self.max)
        }
    }

    fn rate_limit(&self, now: Moment, current: u32, up: bool) -> u32 {
        let rules = if up { &self.behavior.up } else { &self.behavior.down };
        let limit = |policy: &RatePolicy| {
            let changed = |events: &VecDeque<Event>| -> u32 {
                events
                    .iter()
                    .filter(|event| now.since(event.at) < policy.period)
                    .map(|event| event.replicas)
                    .sum()
            };
            let start = (current + changed(&self.downs)).saturating_sub(changed(&self.ups));
            let share = |percent: u32| f64::from(start) * f64::from(percent) / 100.0;
            match (policy.step, up) {
                (RateStep::Pods(pods), true) => start.saturating_add(pods),
                (RateStep::Pods(pods), false) => start.saturating_sub(pods),
                (RateStep::Percent(percent), true) => whole(f64::from(start) + share(percent)),
                (RateStep::Percent(percent), false) => {
                    whole((f64::from(start) - share(percent)).floor())
                }
            }
        };
        let limits = rules.policies.iter().map(limit);
        let largest = match (rules.select, up) {
            (Select::Disabled, _) => None,
            (Select::Max, true) | (Select::Min, false) => limits.max(),
            (Select::Min, true) | (Select::Max, false) => limits.min(),
        };
        largest.unwrap_or(current)
    }

    fn remember(&mut self, now: Moment, before: u32, after: u32) {
        let rules = &self.behavior;
        let longest = |rules: &ScalingRules| {
            rules.policies.iter().map(|policy| policy.period).max().unwrap_or_default()
        };
        let (up, down) = (longest(&rules.up), longest(&rules.down));
        let (events, change) = if after > before {
            (&mut self.ups, after - before)
        } else if after < before {
            (&mut self.downs, before - after)
        } else {
            return;
        };
        // Either direction's policies look at both kinds of events.
        events.retain(|event| now.since(event.at) < up.max(down));
        events.push_back(Event { at: now, replicas: change });
    }
}
