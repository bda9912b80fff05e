//! Histograms that merge: a quantile of many pods is asked of the sum of their buckets, never averaged.
//!
//! In: increases of cumulative buckets by upper bound. Out: counts and quantiles. Never: a quantile of quantiles.

/// Cumulative counts by upper bound, and the sum of the observations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Ascending by bound; the counts never fall.
    buckets: Vec<Bucket>,
    sum: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Bucket {
    bound: f64,
    cumulative: f64,
}

impl Histogram {
    /// From (upper bound, increase of the cumulative count) in any order, and the increase of the sum. Bounds that appear
    /// twice are added up: they belong to different label sets.
    #[must_use]
    pub fn from_increases(increases: impl IntoIterator<Item = (f64, f64)>, sum: f64) -> Self {
        let mut buckets: Vec<Bucket> = increases
            .into_iter()
            .filter(|(bound, cumulative)| !bound.is_nan() && cumulative.is_finite())
            .map(|(bound, cumulative)| Bucket { bound, cumulative })
            .collect();
        buckets.sort_by(|a, b| a.bound.total_cmp(&b.bound));
        buckets.dedup_by(|later, kept| {
            let same = later.bound.total_cmp(&kept.bound).is_eq();
            if same {
                kept.cumulative += later.cumulative;
            }
            same
        });
        let mut largest = 0.0_f64;
        for bucket in &mut buckets {
            largest = largest.max(bucket.cumulative);
            bucket.cumulative = largest;
        }
        Self { buckets, sum }
    }

    /// Observations in all buckets.
    #[must_use]
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |bucket| bucket.cumulative)
    }

    /// Sum of all observations.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Adds another histogram. Where the bounds differ, a count is taken at the next lower bound that its histogram has,
    /// so that a quantile errs upwards.
    pub fn merge(&mut self, other: &Self) {
        let mut bounds: Vec<f64> =
            self.buckets.iter().chain(&other.buckets).map(|bucket| bucket.bound).collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup_by(|a, b| a.total_cmp(b).is_eq());
        self.buckets = bounds
            .into_iter()
            .map(|bound| Bucket { bound, cumulative: self.below(bound) + other.below(bound) })
            .collect();
        self.sum += other.sum;
    }

    /// Multiplies all counts: older observations fade.
    pub fn scale(&mut self, factor: f64) {
        self.sum *= factor;
        for bucket in &mut self.buckets {
            bucket.cumulative *= factor;
        }
    }

    fn below(&self, bound: f64) -> f64 {
        let known = self.buckets.iter().rev().find(|bucket| bucket.bound <= bound);
        known.map_or(0.0, |bucket| bucket.cumulative)
    }

    /// The quantile, interpolated linearly in its bucket as `PromQL`'s `histogram_quantile` does; the largest finite bound
    /// where it lies above; `None` without observations.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        self.interpolate(quantile, |low, high, _| (low, high))
    }

    /// The quantile, interpolated over the part of its bucket that the mean leaves possible. With coarse buckets and
    /// steady latencies (all of 101 ms in a bucket of 100 to 250 ms) the plain one is off by more than the value.
    #[must_use]
    pub fn quantile_by_mean(&self, quantile: f64) -> Option<f64> {
        self.interpolate(quantile, |low, high, index| {
            let Some(mean) = self.mean_of_main_bucket(index) else { return (low, high) };
            let mean = mean.clamp(low, high);
            if mean < f64::midpoint(low, high) {
                (low, 2.0 * mean - low)
            } else {
                (2.0 * mean - high, high)
            }
        })
    }

    fn interpolate(
        &self,
        quantile: f64,
        range: impl Fn(f64, f64, usize) -> (f64, f64),
    ) -> Option<f64> {
        let count = self.count();
        if count <= 0.0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * count;
        let index = self.buckets.iter().position(|bucket| bucket.cumulative >= rank)?;
        let (low, before) = self.lower_edge(index);
        let bucket = self.buckets[index];
        if bucket.bound.is_infinite() {
            return Some(low);
        }
        let inside = bucket.cumulative - before;
        let share = if inside > 0.0 { (rank - before) / inside } else { 1.0 };
        let (from, to) = range(low, bucket.bound, index);
        Some(from + (to - from) * share)
    }

    fn lower_edge(&self, index: usize) -> (f64, f64) {
        match index.checked_sub(1).and_then(|previous| self.buckets.get(previous)) {
            Some(previous) => (previous.bound, previous.cumulative),
            None => (0.0, 0.0),
        }
    }

    /// The mean within a bucket that holds more than half of all, taking the others at their middle.
    fn mean_of_main_bucket(&self, main: usize) -> Option<f64> {
        let inside = self.buckets[main].cumulative - self.lower_edge(main).1;
        if inside <= self.count() / 2.0 {
            return None;
        }
        let others: f64 = (0..self.buckets.len())
            .filter(|&index| index != main)
            .map(|index| {
                let (low, before) = self.lower_edge(index);
                let bucket = self.buckets[index];
                let middle =
                    if bucket.bound.is_finite() { f64::midpoint(low, bucket.bound) } else { low };
                (bucket.cumulative - before) * middle
            })
            .sum();
        Some((self.sum - others) / inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(buckets: &[(f64, f64)], sum: f64, quantile: f64, expected: Option<f64>) {
        let got = Histogram::from_increases(buckets.iter().copied(), sum).quantile(quantile);
        let close = match (got, expected) {
            (Some(got), Some(expected)) => (got - expected).abs() < 1e-9,
            (got, expected) => got.is_none() && expected.is_none(),
        };
        assert!(close, "{buckets:?} at {quantile}: {got:?}, expected {expected:?}");
    }

    #[test]
    fn a_quantile_is_interpolated_in_its_bucket() {
        let buckets = [(0.1, 50.0), (0.2, 100.0), (f64::INFINITY, 100.0)];
        check(&buckets, 0.0, 0.5, Some(0.1));
        check(&buckets, 0.0, 0.75, Some(0.15));
        check(&buckets, 0.0, 1.0, Some(0.2));
        check(&[(0.1, 1.0), (f64::INFINITY, 100.0)], 0.0, 0.9, Some(0.1));
        check(&[(0.1, 0.0), (f64::INFINITY, 0.0)], 0.0, 0.9, None);
        check(&[], 0.0, 0.9, None);
    }

    #[test]
    fn a_merged_quantile_is_not_the_mean_of_quantiles() {
        let fast =
            Histogram::from_increases([(0.1, 900.0), (1.0, 900.0), (f64::INFINITY, 900.0)], 45.0);
        let slow =
            Histogram::from_increases([(0.1, 0.0), (1.0, 100.0), (f64::INFINITY, 100.0)], 90.0);
        let mut merged = fast.clone();
        merged.merge(&slow);
        assert_eq!(merged.quantile(0.9), Some(0.1));
        let mean = (fast.quantile(0.9).zip(slow.quantile(0.9))).map(|(a, b)| f64::midpoint(a, b));
        assert!(mean > Some(0.4), "{mean:?}");
    }

    #[test]
    fn other_bounds_merge_without_lowering_a_quantile() {
        let mut merged = Histogram::from_increases([(0.1, 10.0), (0.4, 20.0)], 0.0);
        merged.merge(&Histogram::from_increases([(0.2, 10.0), (0.4, 20.0)], 0.0));
        assert!((merged.count() - 40.0).abs() < 1e-9);
        assert_eq!(merged.quantile(0.25), Some(0.1));
        assert_eq!(merged.quantile(0.5), Some(0.2));
    }

    #[test]
    fn the_mean_narrows_a_coarse_bucket() {
        let steady = Histogram::from_increases(
            [(0.1, 0.0), (0.25, 1000.0), (f64::INFINITY, 1000.0)],
            1000.0 * 0.101,
        );
        let plain = steady.quantile(0.95).expect("has observations");
        let narrowed = steady.quantile_by_mean(0.95).expect("has observations");
        assert!((plain - 0.2425).abs() < 1e-9, "{plain}");
        assert!((narrowed - 0.1019).abs() < 1e-9, "{narrowed}");
    }
}
