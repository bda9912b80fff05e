//! What pins by itself.
//!
//! In: the newest slice. Out: reasons to pin. Never: a second pin while a signal stays over its threshold, or within the
//! rule's cooldown.

use std::time::Duration;

use super::ring::{Slice, SliceValue};
use crate::signals::catalogue::families::{CGROUP_MEMORY_LIMIT, CGROUP_MEMORY_WORKING_SET};
use crate::signals::{FamilyKind, catalogue};
use crate::time::Moment;

/// A signal that pins when it crosses a threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct PinRule {
    /// A family of [`crate::signals::CATALOGUE`]. Its series are added up; of a counter, the increase per second counts.
    pub signal: String,
    /// In the family's unit, for a counter per second.
    pub above: f64,
    /// After a pin, none for so long.
    pub cooldown: Duration,
}

const MEMORY_COOLDOWN: Duration = Duration::from_secs(300);

/// The rules with what they have seen.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<(PinRule, Seen)>,
    memory_near_limit: f64,
    memory: Seen,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    is_above: bool,
    fired: Option<Moment>,
    total: Option<(Moment, f64)>,
}

impl Seen {
    /// Whether the value crossed the threshold and the cooldown is over.
    fn crosses(&mut self, is_above: bool, cooldown: Duration, now: Moment) -> bool {
        let was_above = std::mem::replace(&mut self.is_above, is_above);
        let crossed = is_above && !was_above;
        let rests = self.fired.is_some_and(|fired| now.since(fired) < cooldown);
        if crossed && !rests {
            self.fired = Some(now);
        }
        crossed && !rests
    }

    /// The increase per second since the call before; `None` at first and after a reset.
    fn rate(&mut self, total: f64, now: Moment) -> Option<f64> {
        let (former_at, former) = self.total.replace((now, total))?;
        let seconds = now.since(former_at).as_secs_f64();
        (seconds > 0.0 && total >= former).then(|| (total - former) / seconds)
    }
}

impl Rules {
    pub(super) fn new(rules: Vec<PinRule>, memory_near_limit: f64) -> Self {
        let rules = rules.into_iter().map(|rule| (rule, Seen::default())).collect();
        Self { rules, memory_near_limit, memory: Seen::default() }
    }

    /// Takes the place of the rules; those that stay keep what they have seen.
    #[cfg(feature = "adapter")]
    pub(super) fn replace(&mut self, rules: Vec<PinRule>, memory_near_limit: f64) {
        let known = std::mem::take(&mut self.rules);
        let seen =
            |rule: &PinRule| known.iter().find(|(old, _)| old == rule).map(|(_, seen)| *seen);
        self.rules = rules
            .into_iter()
            .map(|rule| {
                let seen = seen(&rule).unwrap_or_default();
                (rule, seen)
            })
            .collect();
        self.memory_near_limit = memory_near_limit;
    }

    /// A reason for each rule that fires on this slice.
    pub(super) fn fired(&mut self, slice: &Slice) -> Vec<String> {
        let now = slice.until.monotonic;
        let mut reasons = Vec::new();
        for (rule, seen) in &mut self.rules {
            let Some(total) = total(&slice.values, &rule.signal) else { continue };
            let is_counter = catalogue::family(&rule.signal)
                .is_some_and(|family| family.kind == FamilyKind::Counter);
            let value = if is_counter { seen.rate(total, now) } else { Some(total) };
            let Some(value) = value else { continue };
            if seen.crosses(value > rule.above, rule.cooldown, now) {
                let per_second = if is_counter { " per second" } else { "" };
                reasons.push(format!(
                    "{} is {value:.3}{per_second}, above {}",
                    rule.signal, rule.above
                ));
            }
        }
        let used = total(&slice.values, CGROUP_MEMORY_WORKING_SET.name);
        let limit = total(&slice.values, CGROUP_MEMORY_LIMIT.name).filter(|limit| *limit > 0.0);
        if let (Some(used), Some(limit)) = (used, limit) {
            let share = used / limit;
            if self.memory.crosses(share >= self.memory_near_limit, MEMORY_COOLDOWN, now) {
                reasons.push(format!("memory is at {:.0} % of its limit", share * 100.0));
            }
        }
        reasons
    }
}

/// All series of a family together; `None` where there is none.
fn total(values: &[SliceValue], name: &str) -> Option<f64> {
    let series = values.iter().filter(|value| value.name == name).map(|value| value.value);
    series.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value))
}
