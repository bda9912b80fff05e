//! When an endpoint is asked next.
//!
//! In: when it was asked last, and now. Out: a time on the endpoint's own grid. Endpoints are spread over the interval, so that
//! a start with a thousand pods is one burst and not one burst per interval.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest interval; a policy cannot ask for less.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The grid of one endpoint: `epoch` + its share of an interval + whole intervals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    first: Instant,
    interval: Duration,
}

impl Rhythm {
    /// `spread` is any number that is stable per endpoint, such as a hash.
    pub(super) fn new(epoch: Instant, interval: Duration, spread: u64) -> Self {
        let interval = interval.max(MIN_INTERVAL);
        let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Self { first: epoch + Duration::from_nanos(spread % nanos), interval }
    }

    /// The time after an attempt that was due at `due`: the next of the grid, at least half an interval later, so that two
    /// samples are far enough apart for a rate. What was missed meanwhile is not caught up with: at most one is late.
    pub(super) fn after(&self, due: Instant, now: Instant) -> Instant {
        let soonest = due + self.interval / 2;
        let latest_missed = now.checked_sub(self.interval).unwrap_or(soonest);
        self.next(soonest.max(latest_missed))
    }

    /// The first time of the grid after `instant`.
    fn next(&self, instant: Instant) -> Instant {
        let since_first = instant.saturating_duration_since(self.first).as_nanos();
        if instant < self.first {
            return self.first;
        }
        let into_interval = since_first % self.interval.as_nanos();
        let into_interval = Duration::from_nanos(u64::try_from(into_interval).unwrap_or(u64::MAX));
        instant + (self.interval - into_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: u64 = 1000;

    /// Asked at `due`, finished at `now`; all in milliseconds after the epoch, for an endpoint 300 ms into the interval.
    fn check(due: u64, now: u64, expected: u64) {
        let epoch = Instant::now();
        let at = |millis| epoch + Duration::from_millis(millis);
        let rhythm = Rhythm::new(epoch, Duration::from_millis(INTERVAL), 5_300_000_000);
        assert_eq!(rhythm.after(at(due), at(now)), at(expected), "due {due}, now {now}");
    }

    #[test]
    fn the_first_gap_is_between_half_and_one_and_a_half_intervals() {
        check(0, 10, 1300);
        check(790, 800, 1300);
        check(810, 820, 2300);
    }

    #[test]
    fn from_then_on_the_rhythm_is_exact() {
        check(1300, 1310, 2300);
        check(1300, 2290, 2300);
    }

    #[test]
    fn an_attempt_that_took_the_whole_interval_does_not_cost_the_next_one() {
        check(1300, 2301, 2300);
    }

    #[test]
    fn what_was_missed_is_not_caught_up_with() {
        check(1300, 9900, 9300);
    }

    #[test]
    fn endpoints_are_spread_over_the_interval() {
        let epoch = Instant::now();
        let interval = Duration::from_secs(1);
        let next = |spread| Rhythm::new(epoch, interval, spread).after(epoch, epoch);
        assert_ne!(next(100_000_000), next(700_000_000));
    }
}
