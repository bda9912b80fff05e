//! What a policy learns of its workload: what an idle pod shows, and what one request costs.
//!
//! In: samples of single pods. Out: the base, the cost (or service time) and the no-load latency quantile. Never: from a pod
//! under load: a base that holds load hides demand, and a saturated pod's requests are half done, so they look dear.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::observe::Observed;
use crate::sample::PodKey;
use crate::store::Histogram;
use crate::time::{Moment, Timestamp};

/// A base is taken from the first minute after a container's start.
const FIRST_MINUTE: Duration = Duration::from_secs(60);
/// Pods whose least values are remembered.
const REMEMBERED_PODS: usize = 64;
/// Time constant of the decay of costs.
const DECAY: Duration = Duration::from_secs(60);
/// Completions before a cost is believed.
const ENOUGH_COMPLETIONS: f64 = 100.0;

/// The base: the median over pods of a pod's least value in its first minute.
#[derive(Clone, Debug, Default)]
pub(super) struct BaseLearning {
    start: Option<f64>,
    young: HashMap<PodKey, f64>,
    least: VecDeque<f64>,
    pub(super) learned_at: Option<Timestamp>,
}

impl BaseLearning {
    /// Starts with what an earlier run learned.
    pub(super) fn new(start: Option<f64>) -> Self {
        Self { start, ..Self::default() }
    }

    /// Takes a pod's value at `at`, if it is of its first minute and from before load could reach it.
    pub(super) fn observe(&mut self, pod: &Observed<'_>, value: f64, at: Timestamp) {
        let Some(started) = pod.pod.started_at else { return };
        let age = at.since(started);
        if age > FIRST_MINUTE {
            if let Some(least) = self.young.remove(&pod.pod.key) {
                self.remember(least, at);
            }
        } else if at >= started && pod.was_idle(at) {
            let least = self.young.entry(pod.pod.key.clone()).or_insert(value);
            *least = least.min(value);
        }
    }

    fn remember(&mut self, least: f64, at: Timestamp) {
        if self.least.len() == REMEMBERED_PODS {
            self.least.pop_front();
        }
        self.least.push_back(least);
        self.learned_at = Some(at);
    }

    /// Forgets pods that are gone before their minute was over.
    pub(super) fn retain(&mut self, keep: impl Fn(&PodKey) -> bool) {
        self.young.retain(|key, _| keep(key));
    }

    /// The base, once known.
    pub(super) fn value(&self) -> Option<f64> {
        let mut least: Vec<f64> = self.least.iter().copied().collect();
        least.sort_by(f64::total_cmp);
        let middle = least.len() / 2;
        match least.len() {
            0 => self.start,
            odd if odd % 2 == 1 => Some(least[middle]),
            _ => Some(f64::midpoint(least[middle - 1], least[middle])),
        }
    }
}

/// What one pod did between two of its samples, at under half of its capacity.
#[derive(Clone, Debug)]
pub(super) struct CostSample {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    /// Work done, with that of an idle pod, in unit-seconds.
    pub(super) work: f64,
    pub(super) completions: f64,
    /// The latencies of the completed requests, where they are wanted.
    pub(super) latencies: Histogram,
}

/// The cost of a request: decayed work over decayed completions, never a mean of ratios.
#[derive(Clone, Debug, Default)]
pub(super) struct CostLearning {
    start: Option<f64>,
    start_quantile: Option<f64>,
    work: f64,
    /// The time in which the work was done, which holds the base's part.
    seconds: f64,
    completions: f64,
    latencies: Histogram,
    /// All completions learned from, undecayed.
    seen: f64,
    newest: HashMap<PodKey, Timestamp>,
    updated: Option<Moment>,
    pub(super) learned_at: Option<Timestamp>,
}

impl CostLearning {
    /// Starts with what an earlier run learned.
    pub(super) fn new(start: Option<f64>, start_quantile: Option<f64>) -> Self {
        Self { start, start_quantile, ..Self::default() }
    }

    /// Takes a sample that does not overlap with the pod's last one.
    pub(super) fn learn(&mut self, pod: &PodKey, sample: &CostSample, now: Moment) {
        let overlaps = self.newest.get(pod).is_some_and(|&newest| sample.from < newest);
        if overlaps || sample.completions <= 0.0 {
            return;
        }
        self.newest.insert(pod.clone(), sample.to);
        // Time without traffic does not count, or the first request after it would decide alone.
        let span = sample.to.since(sample.from);
        let passed = self.updated.map_or(Duration::ZERO, |updated| now.since(updated)).min(span);
        let kept = (-passed.as_secs_f64() / DECAY.as_secs_f64()).exp();
        self.work = self.work * kept + sample.work;
        self.seconds = self.seconds * kept + span.as_secs_f64();
        self.completions = self.completions * kept + sample.completions;
        self.latencies.scale(kept);
        self.latencies.merge(&sample.latencies);
        self.seen += sample.completions;
        self.updated = Some(now);
        if self.is_known() {
            self.learned_at = Some(sample.to);
        }
    }

    /// Forgets pods that are gone.
    pub(super) fn retain(&mut self, keep: impl Fn(&PodKey) -> bool) {
        self.newest.retain(|key, _| keep(key));
    }

    fn is_known(&self) -> bool {
        self.seen >= ENOUGH_COMPLETIONS && self.completions > 0.0
    }

    /// Work per request in unit-seconds above `base`, once known. The base is taken off here, since it may become known
    /// after the samples.
    pub(super) fn cost(&self, base: f64) -> Option<f64> {
        let above = (self.work - base * self.seconds).max(0.0);
        if self.is_known() { Some(above / self.completions) } else { self.start }
    }

    /// The quantile of the latency without load, in seconds, once known.
    pub(super) fn quantile(&self, quantile: f64) -> Option<f64> {
        let known = self.is_known().then(|| self.latencies.quantile_by_mean(quantile)).flatten();
        known.or(self.start_quantile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64, work: f64, completions: f64) -> CostSample {
        CostSample {
            from: Timestamp::from_millis(second * 1000),
            to: Timestamp::from_millis((second + 1) * 1000),
            work,
            completions,
            latencies: Histogram::default(),
        }
    }

    fn learn(samples: &[(i64, f64, f64)]) -> CostLearning {
        let mut learning = CostLearning::new(Some(7.0), None);
        for &(second, work, completions) in samples {
            let now = Moment::after_start(Duration::from_secs(second.unsigned_abs() + 1));
            learning.learn(&PodKey("a".into()), &sample(second, work, completions), now);
        }
        learning
    }

    #[test]
    fn a_cost_is_known_from_a_hundred_completions_and_until_then_is_the_earlier_one() {
        assert_eq!(learn(&[(0, 1.0, 99.0)]).cost(0.0), Some(7.0));
        assert_eq!(learn(&[(0, 1.0, 100.0)]).cost(0.0), Some(0.01));
    }

    #[test]
    fn a_cost_is_a_ratio_of_sums_that_fades_with_traffic_only() {
        // The mean of the ratios would be 0.55.
        let together = learn(&[(0, 1.0, 100.0), (1, 1.0, 1.0)]).cost(0.0).expect("known");
        assert!((together - 2.0 / 101.0).abs() < 1e-3, "{together}");
        let an_hour_later = learn(&[(0, 1.0, 100.0), (3600, 1.0, 1.0)]).cost(0.0).expect("known");
        assert!((an_hour_later - together).abs() < 1e-9, "{an_hour_later}");
    }

    #[test]
    fn a_base_that_becomes_known_later_is_taken_off() {
        assert_eq!(learn(&[(0, 3.0, 100.0)]).cost(1.0), Some(0.02));
    }

    #[test]
    fn a_sample_that_overlaps_the_last_one_is_not_counted_twice() {
        assert_eq!(learn(&[(0, 1.0, 60.0), (0, 1.0, 60.0)]).cost(0.0), Some(7.0));
    }
}
