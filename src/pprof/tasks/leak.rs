//! Sites whose tasks do not end.
//!
//! In: the least number of live tasks of a site in each half minute, and how long its tasks have not been polled. Out:
//! suspects, each with a confidence and the reason. Never: a verdict on a site that was watched for less than two minutes.
//!
//! The rule. A site *grows* if the least number of its live tasks rose at least [`RISES`] times, without falling in between,
//! up to now; the least of an interval does not see bursts. A task is *stale* if it was not polled for [`STALE`]. Growing with
//! at least half of the growth stale: high confidence. Growing: medium, since rising load looks the same. Only stale, at
//! least [`MANY_STALE`] tasks: low, since idle connections look the same.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Task;
use super::site::Site;

/// One look at a site's live tasks.
pub(super) const INTERVAL: Duration = Duration::from_secs(30);
/// Ten minutes of them.
const KEPT: usize = 20;
const RISES: usize = 4;
/// Not polled for so long.
pub(super) const STALE: Duration = Duration::from_secs(300);
const MANY_STALE: u64 = 10;

/// How sure it is that tasks of a site leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Confidence {
    Low,
    Medium,
    High,
}

impl Confidence {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// A site whose tasks may leak.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) site: &'static Site,
    /// Tasks alive.
    pub(super) live: u64,
    pub(super) confidence: Confidence,
    /// One sentence for people.
    pub(super) reason: String,
}

/// The suspects among `sites`, of which `tasks` are alive; the surest first.
pub(super) fn suspects(sites: &[&'static Site], tasks: &[Arc<Task>], now: u64) -> Vec<Suspect> {
    let mut stale: HashMap<usize, u64> = HashMap::new();
    for task in tasks {
        if task.unpolled(now) >= STALE {
            *stale.entry(task.site.id()).or_default() += 1;
        }
    }
    let of = |site: &'static Site| suspect(site, stale.get(&site.id()).copied().unwrap_or(0), now);
    let mut suspects: Vec<_> = sites.iter().copied().filter_map(of).collect();
    suspects.sort_by_key(|suspect| std::cmp::Reverse((suspect.confidence, suspect.live)));
    suspects
}

fn suspect(site: &'static Site, stale: u64, now: u64) -> Option<Suspect> {
    let live = site.live.load(Ordering::Relaxed);
    site.growth.roll(live, now);
    let trend = site.growth.trend();
    let growing = trend.rises >= RISES;
    let confidence = match growing {
        true if stale.saturating_mul(2) >= trend.grown => Confidence::High,
        true => Confidence::Medium,
        false if stale >= MANY_STALE => Confidence::Low,
        false => return None,
    };
    let mut reason = String::new();
    if growing {
        let over = INTERVAL.as_secs() * u64::try_from(trend.intervals).unwrap_or(0);
        // Writing to a String does not fail.
        let _ = write!(reason, "never fewer live tasks for {over} s, {} more now", trend.grown);
    } else {
        reason.push_str("the number of live tasks does not grow");
    }
    let _ = write!(reason, "; {stale} not polled for {} s", STALE.as_secs());
    Some(Suspect { site, live, confidence, reason })
}

/// The least number of live tasks of one site, by interval.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// In the present interval.
    least: AtomicU64,
    interval: AtomicU64,
    finished: Mutex<VecDeque<u64>>,
}

/// The newest stretch of intervals in which the least number never fell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Trend {
    intervals: usize,
    rises: usize,
    grown: u64,
}

impl Growth {
    /// Begins a new interval if it is time. `live` is the number of tasks up to now. The clock is only read where a task
    /// begins or somebody asks: between those the number can only have fallen, which `fell_to` has seen.
    pub(super) fn roll(&self, live: u64, now: u64) {
        let interval = now / u64::try_from(INTERVAL.as_nanos()).unwrap_or(u64::MAX);
        if self.interval.load(Ordering::Relaxed) == interval {
            return;
        }
        let mut finished = self.finished.lock();
        let former = self.interval.swap(interval, Ordering::Relaxed);
        let passed = usize::try_from(interval.saturating_sub(former)).unwrap_or(usize::MAX);
        if passed == 0 {
            return;
        }
        finished.push_back(self.least.swap(live, Ordering::Relaxed));
        finished.extend(std::iter::repeat_n(live, (passed - 1).min(KEPT)));
        let surplus = finished.len().saturating_sub(KEPT);
        finished.drain(..surplus);
    }

    /// A task ended.
    pub(super) fn fell_to(&self, live: u64) {
        if live < self.least.load(Ordering::Relaxed) {
            self.least.fetch_min(live, Ordering::Relaxed);
        }
    }

    fn trend(&self) -> Trend {
        let finished = self.finished.lock();
        let Some(&last) = finished.back() else {
            return Trend::default();
        };
        let (mut trend, mut later) = (Trend { intervals: 1, ..Trend::default() }, last);
        for &least in finished.iter().rev().skip(1) {
            if least > later {
                break;
            }
            trend.intervals += 1;
            trend.rises += usize::from(least < later);
            later = least;
        }
        Trend { grown: last - later, ..trend }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL_NANOS: u64 = 30_000_000_000;

    /// What a site shows whose live tasks went through these numbers, one per interval.
    fn trend(lives: &[u64]) -> Trend {
        let growth = Growth::default();
        for (index, &live) in lives.iter().enumerate() {
            growth.fell_to(live);
            growth.roll(live, (u64::try_from(index).expect("few") + 1) * INTERVAL_NANOS);
        }
        growth.trend()
    }

    #[test]
    fn the_trend_is_the_newest_stretch_without_a_fall() {
        for (lives, expected) in [
            (&[][..], Trend::default()),
            (&[5, 5, 5, 5], Trend { intervals: 4, rises: 1, grown: 5 }),
            (&[1, 2, 3, 4, 4, 6], Trend { intervals: 6, rises: 4, grown: 4 }),
            (&[9, 9, 1, 2, 3], Trend { intervals: 3, rises: 1, grown: 1 }),
        ] {
            assert_eq!(trend(lives), expected, "{lives:?}");
        }
    }

    #[test]
    fn intervals_in_which_nothing_happened_count_with_the_number_that_stood() {
        let growth = Growth::default();
        growth.roll(7, INTERVAL_NANOS);
        growth.roll(7, 100 * INTERVAL_NANOS);
        assert_eq!(growth.trend(), Trend { intervals: KEPT, rises: 0, grown: 0 });
    }
}
