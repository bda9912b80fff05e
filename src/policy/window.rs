//! The long window: the mean of a workload's totals over time.
//!
//! In: totals as they are taken. Out: their time-weighted mean. Never: more than a few dozen slots, and never a pod: totals
//! already taken keep the share of pods deleted since.

use std::collections::VecDeque;
use std::ops::{Add, Mul};
use std::time::Duration;

use crate::time::Moment;

/// Slots per window: totals that come faster share a slot.
const SLOTS: u32 = 60;

/// The summed readings of a workload that a demand is computed from. Plain signals use `work` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Totals {
    /// What is used above the base, in the signal's unit.
    pub(super) work: f64,
    /// Requests completed per second.
    pub(super) completed: f64,
    /// Change of the requests in flight, per second.
    pub(super) change: f64,
    /// Requests in flight.
    pub(super) in_flight: f64,
}

impl Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            work: self.work + other.work,
            completed: self.completed + other.completed,
            change: self.change + other.change,
            in_flight: self.in_flight + other.in_flight,
        }
    }
}

impl Mul<f64> for Totals {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self {
            work: self.work * factor,
            completed: self.completed * factor,
            change: self.change * factor,
            in_flight: self.in_flight * factor,
        }
    }
}

impl std::iter::Sum for Totals {
    fn sum<I: Iterator<Item = Self>>(totals: I) -> Self {
        totals.fold(Self::default(), Add::add)
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    until: Moment,
    seconds: f64,
    weighted: Totals,
}

/// The mean over the last `window`. A total holds until the next one, for at most two intervals.
///
/// Pods are read one after the other, so while load moves between them a total is off until the last of them was read. Held
/// until the next total, such a one weighs as little as it is true.
#[derive(Clone, Debug)]
pub(super) struct WindowMean {
    window: Duration,
    longest_hold: Duration,
    slots: VecDeque<Slot>,
    newest: Option<(Moment, Totals)>,
}

impl WindowMean {
    pub(super) fn new(window: Duration, interval: Duration) -> Self {
        Self { window, longest_hold: interval * 2, slots: VecDeque::new(), newest: None }
    }

    pub(super) fn record(&mut self, now: Moment, totals: Totals) {
        if let Some((taken, before)) = self.newest.replace((now, totals)) {
            let seconds = self.hold(taken, now);
            self.add(Slot { until: now, seconds, weighted: before * seconds });
        }
        while self.slots.front().is_some_and(|slot| now.since(slot.until) >= self.window) {
            self.slots.pop_front();
        }
    }

    fn hold(&self, taken: Moment, now: Moment) -> f64 {
        now.since(taken).min(self.longest_hold).min(self.window).as_secs_f64()
    }

    fn add(&mut self, slot: Slot) {
        let room = self.window.as_secs_f64() / f64::from(SLOTS);
        match self.slots.back_mut() {
            Some(last) if last.seconds + slot.seconds <= room => {
                last.until = slot.until;
                last.seconds += slot.seconds;
                last.weighted = last.weighted + slot.weighted;
            }
            _ => self.slots.push_back(slot),
        }
    }

    /// The mean at `now`; the newest total alone before there are two; `None` before there is any in the window.
    pub(super) fn mean(&self, now: Moment) -> Option<Totals> {
        let (taken, newest) = self.newest.filter(|(taken, _)| now.since(*taken) < self.window)?;
        let mut seconds = self.hold(taken, now);
        let mut sum = newest * seconds;
        for slot in self.slots.iter().filter(|slot| slot.seconds > 0.0) {
            let inside = self.inside(slot, now);
            seconds += inside;
            sum = sum + slot.weighted * (inside / slot.seconds);
        }
        Some(if seconds > 0.0 { sum * (1.0 / seconds) } else { newest })
    }

    /// The seconds of a slot that lie in the window that ends at `end`.
    fn inside(&self, slot: &Slot, end: Moment) -> f64 {
        let age = end.since(slot.until);
        slot.seconds.min(self.window.saturating_sub(age).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Totals as (millisecond, value); the mean right after the last.
    fn check(window_seconds: u64, totals: &[(u64, f64)], expected: f64) {
        let mut mean = WindowMean::new(Duration::from_secs(window_seconds), Duration::from_secs(5));
        let mut now = Moment::default();
        for &(millis, work) in totals {
            now = Moment::after_start(Duration::from_millis(millis));
            mean.record(now, Totals { work, ..Totals::default() });
        }
        let got = mean.mean(now).map(|totals| totals.work).expect("something was recorded");
        assert!((got - expected).abs() < 1e-6, "{totals:?}: {got}, expected {expected}");
    }

    #[test]
    fn a_total_holds_until_the_next_one() {
        check(10, &[(0, 7.0)], 7.0);
        check(10, &[(0, 7.0), (1000, 3.0)], 7.0);
        check(10, &[(0, 1.0), (1000, 2.0), (4000, 6.0)], (1.0 + 6.0) / 4.0);
        check(10, &[(0, 6.0), (4000, 0.0), (4100, 6.0)], 24.0 / 4.1);
    }

    #[test]
    fn totals_leave_with_the_window() {
        check(10, &[(0, 2.0), (10_000, 8.0), (15_000, 9.0)], (2.0 * 5.0 + 8.0 * 5.0) / 10.0);
        check(10, &[(0, 9.0), (10_000, 8.0), (30_000, 2.0)], 8.0);
    }

    #[test]
    fn fast_totals_share_slots() {
        let mut mean = WindowMean::new(Duration::from_secs(60), Duration::from_secs(1));
        for millis in (0..600_000).step_by(20) {
            let now = Moment::after_start(Duration::from_millis(millis));
            mean.record(now, Totals { work: 1.0, ..Totals::default() });
        }
        assert!(mean.slots.len() <= 62, "{}", mean.slots.len());
    }
}
