//! A histogram of durations whose buckets grow by 2^(1/8), which many threads fill without a lock.
//!
//! In: durations. Out: a [`Snapshot`]: cumulative buckets, a Prometheus native histogram, quantiles. Never: a lock or a wait when
//! a duration is recorded; a count that differs from the sum of the buckets.
//!
//! The buckets are those of Prometheus' native histograms of schema 3 (OpenTelemetry: exponential histogram of scale 3), so a
//! quantile is off by 4.4 % at most. Bucket `i` holds what is over 2^((i-1)/8) s and at most 2^(i/8) s. There are 256, from 2^-20 s
//! (0.95 us) to 2^12 s (68 min), one for what is shorter and one for what is longer.
//!
//! The bucket is read off the bits of the number of nanoseconds: the highest bit is the octave, and in each of 16 equal slices of
//! an octave lies at most one of its eight bounds.
//!
//! Sources: <https://prometheus.io/docs/specs/native_histograms/>, `exponentialBounds` of Prometheus' `model/histogram`.

use std::time::Duration;

use super::sharded::Sharded;

mod counts;

use counts::Counts;

/// 2^(j/8), each rounded to the nearest `f64`.
const GROWTH: [f64; 8] = [
    1.0,
    1.090_507_732_665_257_7,
    1.189_207_115_002_721,
    1.296_839_554_651_009_6,
    std::f64::consts::SQRT_2,
    1.542_210_825_407_940_7,
    1.681_792_830_507_429,
    1.834_008_086_409_342_4,
];
/// Buckets per octave, and the schema of that number: 2^3.
const PER_OCTAVE: usize = GROWTH.len();
const SCHEMA: i32 = 3;
/// Native index of the bucket that ends at 2^-20 s.
const LOWEST_INDEX: i32 = -20 * 8;
const OCTAVES: usize = 32;
/// The last is for what is longer than all bounds, the first for what is shorter.
const POSITIONS: usize = OCTAVES * PER_OCTAVE + 2;
const OVERFLOW: usize = POSITIONS - 1;
/// Where Prometheus counts an infinite value at schema 3: the bucket after the one that ends at the largest `f64`.
const OVERFLOW_INDEX: i32 = 1024 * 8 + 1;

/// One doubling, in the bits of an `f64`.
const OCTAVE: u64 = 1 << 52;

/// The bits after the highest that tell a number's slice.
const SLICE_BITS: u32 = 4;
const SLICES: usize = 1 << SLICE_BITS;

/// One sixteenth of the numbers from one power of two to the next. At most one bound lies in it.
#[derive(Clone, Copy)]
struct Slice {
    /// Bounds between the power of two and the slice.
    before: usize,
    /// The bound inside of it, shifted so that its highest bit is set.
    bound: u64,
}

/// The bounds in nanoseconds between two powers of two. Up to the shift they are the same between any two.
const BY_SLICE: [Slice; SLICES] = {
    let mut slices = [Slice { before: 0, bound: u64::MAX }; SLICES];
    let mut step = 0;
    while step < PER_OCTAVE {
        let bound = shifted_bound(step);
        let mut slice = slice_of(bound);
        slices[slice].bound = bound;
        slice += 1;
        while slice < SLICES {
            slices[slice].before += 1;
            slice += 1;
        }
        step += 1;
    }
    slices
};

/// 2^(step/8) s in nanoseconds, shifted so that its highest bit is set.
const fn shifted_bound(step: usize) -> u64 {
    let mantissa = GROWTH[step].to_bits() % OCTAVE + OCTAVE;
    let nanoseconds = mantissa as u128 * 1_000_000_000;
    ((nanoseconds << nanoseconds.leading_zeros()) >> 64) as u64
}

#[inline(always)]
const fn slice_of(shifted: u64) -> usize {
    (shifted >> (63 - SLICE_BITS)) as usize % SLICES
}

/// Bounds that lie between 1 ns and the shortest of ours.
const BELOW: usize = {
    let second = 1_000_000_000_u64;
    let shifted = second << second.leading_zeros();
    let bounds_below = second.ilog2() as usize * PER_OCTAVE + BY_SLICE[slice_of(shifted)].before;
    bounds_below - 20 * PER_OCTAVE
};

/// The place of a duration among the counts: how many bounds it is over. Without a branch, since neighbouring requests fall
/// into different buckets, and without floating point, whose division takes longer than all the rest.
#[inline(always)]
fn position(nanoseconds: u64) -> usize {
    let zeros = (nanoseconds | 1).leading_zeros();
    let shifted = nanoseconds << zeros;
    let slice = BY_SLICE[slice_of(shifted)];
    let over = (63 - zeros) as usize * PER_OCTAVE + slice.before;
    (over + usize::from(shifted > slice.bound)).saturating_sub(BELOW).min(OVERFLOW)
}

/// The upper bound of a place, in seconds.
fn upper_bound(position: usize) -> f64 {
    if position >= OVERFLOW {
        return f64::INFINITY;
    }
    let octave = (position / PER_OCTAVE) as u64;
    f64::from_bits(GROWTH[position % PER_OCTAVE].to_bits() - 20 * OCTAVE + octave * OCTAVE)
}

/// Nearly all requests take under a second, so the processor guesses right, and does not wait for a product before it knows
/// where to count: 8.3 ns a record with the product always, 2.6 with the guess. The call keeps it a guess: a conditional move
/// would wait again.
#[inline(always)]
fn nanoseconds(duration: Duration) -> u64 {
    if duration.as_secs() == 0 { u64::from(duration.subsec_nanos()) } else { many(duration) }
}

#[cold]
#[inline(never)]
fn many(duration: Duration) -> u64 {
    let whole = duration.as_secs().saturating_mul(1_000_000_000);
    whole.saturating_add(u64::from(duration.subsec_nanos()))
}

/// The classic buckets: every fourth bound, 2^(k/2), from 2^-10 s (0.98 ms) to 2^4 s (16 s).
const CLASSIC_STEP: usize = PER_OCTAVE / 2;
const CLASSIC_FIRST: usize = 10 * PER_OCTAVE;
/// Classic buckets with a finite bound. Behind them comes that of everything longer.
pub const CLASSIC_BUCKETS: usize = 29;

/// The upper bound of a classic bucket in seconds; infinite from [`CLASSIC_BUCKETS`] on.
#[must_use]
pub fn classic_bound(bucket: usize) -> f64 {
    if bucket >= CLASSIC_BUCKETS {
        return f64::INFINITY;
    }
    upper_bound(CLASSIC_FIRST + bucket * CLASSIC_STEP)
}

/// The classic bucket that a duration falls into; [`CLASSIC_BUCKETS`] for one over all bounds.
#[must_use]
pub fn classic_bucket(duration: Duration) -> usize {
    let over = position(nanoseconds(duration)).saturating_sub(CLASSIC_FIRST);
    over.div_ceil(CLASSIC_STEP).min(CLASSIC_BUCKETS)
}

/// Counts durations. At most 4 KiB per core, made when a thread first records.
#[derive(Debug, Default)]
pub struct Histogram(Sharded<Counts<POSITIONS>>);

impl Histogram {
    /// Counts one duration: two additions on lines that this thread has alone, or shares with few.
    #[inline(always)]
    pub fn record(&self, duration: Duration) {
        let nanoseconds = nanoseconds(duration);
        let (own, writers) = self.0.own();
        own.record(writers, position(nanoseconds), nanoseconds);
    }

    /// Adds what was counted so far. The sum may lack or hold a duration that is being recorded; the count is that of the buckets.
    pub fn add_to(&self, snapshot: &mut Snapshot) {
        for shard in self.0.iter() {
            shard.add_to(&mut snapshot.sum_nanoseconds, &mut snapshot.counts);
        }
    }
}

/// The counts of one or more histograms at one time, or between two times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    sum_nanoseconds: u64,
    counts: [u64; POSITIONS],
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { sum_nanoseconds: 0, counts: [0; POSITIONS] }
    }
}

impl Snapshot {
    /// Observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all observations.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_nanoseconds)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes away what `earlier` of the same histograms had counted.
    pub fn subtract(&mut self, earlier: &Self) {
        for (count, before) in self.counts.iter_mut().zip(&earlier.counts) {
            *count = count.saturating_sub(*before);
        }
        self.sum_nanoseconds = self.sum_nanoseconds.saturating_sub(earlier.sum_nanoseconds);
    }

    /// The cumulative counts of the classic buckets, in the order of their bounds.
    pub fn classic(&self) -> impl Iterator<Item = u64> {
        let ends = (0..CLASSIC_BUCKETS).map(|bucket| CLASSIC_FIRST + bucket * CLASSIC_STEP);
        ends.scan((0, 0), |(start, cumulative), end| {
            *cumulative += self.counts[*start..=end].iter().sum::<u64>();
            *start = end + 1;
            Some(*cumulative)
        })
    }

    /// The quantile, interpolated in its bucket on a logarithmic scale; `None` without observations. Over all bounds: the
    /// largest.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * count as f64;
        let mut before = 0_u64;
        for (position, &here) in self.counts.iter().enumerate() {
            if here > 0 && (before + here) as f64 >= rank {
                let share = ((rank - before as f64) / here as f64).max(0.0);
                return Some(Duration::from_secs_f64(interpolate(position, share)));
            }
            before += here;
        }
        None
    }

    /// The buckets as a Prometheus native histogram. If more than `max_buckets` are in use, neighbours are merged until they
    /// fit: the schema falls by one each time, and the error of a quantile doubles. What `native` held before is gone; its memory
    /// is used again.
    pub fn native(&self, max_buckets: usize, native: &mut Native) {
        let mut schema = SCHEMA;
        let mut buckets = std::mem::take(&mut native.buckets);
        buckets.clear();
        buckets.extend(
            self.counts
                .iter()
                .zip(LOWEST_INDEX..)
                .enumerate()
                .filter(|&(position, (&count, _))| position > 0 && count > 0)
                .map(|(position, (&count, index))| {
                    (if position == OVERFLOW { OVERFLOW_INDEX } else { index }, count)
                }),
        );
        while buckets.len() > max_buckets && schema > MIN_SCHEMA {
            schema -= 1;
            for (index, _) in &mut buckets {
                *index = ((*index - 1) >> 1) + 1;
            }
            buckets.dedup_by(|later, kept| {
                let same = later.0 == kept.0;
                if same {
                    kept.1 += later.1;
                }
                same
            });
        }
        native.schema = schema;
        native.zero_threshold = upper_bound(0);
        native.zero_count = self.counts[0];
        native.fill(&buckets);
        native.buckets = buckets;
    }
}

/// The coarsest schema of Prometheus.
const MIN_SCHEMA: i32 = -4;

fn interpolate(position: usize, share: f64) -> f64 {
    let high = upper_bound(position);
    match position {
        0 => high * share,
        OVERFLOW => upper_bound(OVERFLOW - 1),
        _ => {
            let low = upper_bound(position - 1);
            low * (high / low).powf(share)
        }
    }
}

/// A histogram as Prometheus stores it. See [`Snapshot::native`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Native {
    /// Buckets grow by 2^(2^-schema).
    pub schema: i32,
    /// What is at most this many seconds is counted in `zero_count`.
    pub zero_threshold: f64,
    /// Observations at most `zero_threshold` long.
    pub zero_count: u64,
    /// Runs of buckets.
    pub spans: Vec<NativeSpan>,
    /// Each bucket's count less that of the bucket before it.
    pub deltas: Vec<i64>,
    /// Index and count of each bucket in use.
    buckets: Vec<(i32, u64)>,
}

/// A run of neighbouring buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativeSpan {
    /// Of the first span the index of its first bucket, of the others the gap to the one before.
    pub offset: i32,
    /// Buckets in it.
    pub length: u32,
}

impl Native {
    /// A gap of up to two empty buckets is cheaper than a new span.
    const BRIDGED: i32 = 2;

    fn fill(&mut self, buckets: &[(i32, u64)]) {
        self.spans.clear();
        self.deltas.clear();
        let (mut next, mut before) = (0, 0_i64);
        for &(index, count) in buckets {
            let gap = index - next;
            match self.spans.last_mut() {
                Some(span) if gap <= Self::BRIDGED => {
                    span.length += gap.unsigned_abs() + 1;
                    for _ in 0..gap {
                        self.deltas.push(-std::mem::take(&mut before));
                    }
                }
                _ => self.spans.push(NativeSpan { offset: gap, length: 1 }),
            }
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.deltas.push(count - before);
            (next, before) = (index + 1, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(durations: &[Duration]) -> Snapshot {
        let histogram = Histogram::default();
        durations.iter().for_each(|&duration| histogram.record(duration));
        let mut snapshot = Snapshot::default();
        histogram.add_to(&mut snapshot);
        snapshot
    }

    /// The bucket by search, as a check of the bucket by bits.
    fn searched(nanoseconds: u64) -> usize {
        let seconds = nanoseconds as f64 / 1e9;
        (0..POSITIONS).find(|&position| seconds <= upper_bound(position)).expect("the last is +Inf")
    }

    #[test]
    fn bounds_are_the_powers_of_two_by_eighths() {
        for position in 0..OVERFLOW {
            let exact = 2.0_f64.powf(-20.0 + position as f64 / 8.0);
            assert!((upper_bound(position) / exact - 1.0).abs() < 1e-15, "{position}");
        }
        assert!(upper_bound(OVERFLOW).is_infinite());
    }

    #[test]
    fn every_duration_falls_into_the_bucket_whose_bounds_hold_it() {
        for nanoseconds in [0, 1, 953, 954, u64::MAX] {
            assert_eq!(position(nanoseconds), searched(nanoseconds), "{nanoseconds}");
        }
        for bound in (0..OVERFLOW).map(upper_bound) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2^12 s")]
            let nanoseconds = (bound * 1e9) as u64;
            for near in nanoseconds.saturating_sub(2)..=nanoseconds + 2 {
                assert_eq!(position(near), searched(near), "{near}");
            }
        }
        let mut nanoseconds = 1_u64;
        while nanoseconds < u64::MAX / 2 {
            assert_eq!(position(nanoseconds), searched(nanoseconds), "{nanoseconds}");
            nanoseconds += nanoseconds / 97 + 1;
        }
    }

    #[test]
    fn a_value_on_a_bound_belongs_to_the_bucket_that_the_bound_ends() {
        assert_eq!(position(1_000_000_000), 160);
        assert!((upper_bound(160) - 1.0).abs() < f64::EPSILON);
        assert_eq!(position(1_000_000_001), 161);
        assert_eq!(classic_bucket(Duration::from_secs(1)), 20);
        assert_eq!(classic_bucket(Duration::from_nanos(1_000_000_001)), 21);
    }

    #[test]
    fn classic_buckets_are_exact_sums_of_the_fine_ones() {
        let millis = [0, 1, 5, 90, 500, 501, 15_999, 16_000, 16_001, 9_000_000];
        let durations = millis.map(Duration::from_millis);
        let snapshot = snapshot(&durations);
        let counted: Vec<u64> = snapshot.classic().collect();
        assert_eq!(counted.len(), CLASSIC_BUCKETS);
        for (bucket, cumulative) in counted.iter().enumerate() {
            let bound = classic_bound(bucket);
            let at_most = durations.iter().filter(|value| value.as_secs_f64() <= bound).count();
            assert_eq!(*cumulative, at_most as u64, "{bound}");
        }
        assert_eq!(snapshot.count(), 10);
        assert_eq!(snapshot.sum(), durations.iter().sum::<Duration>());
        let (first, last) = (classic_bound(0), classic_bound(CLASSIC_BUCKETS - 1));
        assert!((first - 0.000_976_562_5).abs() < 1e-18 && (last - 16.0).abs() < 1e-12);
        for duration in durations {
            let bucket = classic_bucket(duration);
            let seconds = duration.as_secs_f64();
            assert!(seconds <= classic_bound(bucket), "{duration:?}");
            assert!(bucket == 0 || seconds > classic_bound(bucket - 1), "{duration:?}");
        }
    }

    #[test]
    fn a_quantile_is_off_by_less_than_a_bucket() {
        let millis: Vec<Duration> = (1..=1_000).map(Duration::from_millis).collect();
        let snapshot = snapshot(&millis);
        for (quantile, exact) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99), (1.0, 1.0)] {
            let seconds = snapshot.quantile(quantile).expect("observations").as_secs_f64();
            assert!((seconds / exact - 1.0).abs() < 0.044, "{quantile}: {seconds}");
        }
        assert_eq!(Snapshot::default().quantile(0.5), None);
    }

    #[test]
    fn a_quantile_over_all_bounds_is_the_largest_bound() {
        let day = snapshot(&[Duration::from_secs(86_400)]);
        assert_eq!(day.quantile(0.5), Some(Duration::from_secs(4_096)));
    }

    #[test]
    fn the_difference_of_two_snapshots_is_what_happened_between_them() {
        let before = snapshot(&[Duration::from_millis(3)]);
        let mut now = snapshot(&[3, 3, 900].map(Duration::from_millis));
        now.subtract(&before);
        assert_eq!(now, snapshot(&[3, 900].map(Duration::from_millis)));
    }

    fn native(snapshot: &Snapshot, max_buckets: usize) -> Native {
        let mut native = Native::default();
        // Whatever it held before does not matter.
        self::snapshot(&[Duration::from_secs(7)]).native(1, &mut native);
        snapshot.native(max_buckets, &mut native);
        native
    }

    /// Index and count of each bucket that a native histogram names.
    fn decoded(native: &Native) -> Vec<(i32, i64)> {
        let mut deltas = native.deltas.iter();
        let (mut index, mut count, mut buckets) = (0, 0, Vec::new());
        for span in &native.spans {
            index += span.offset;
            for _ in 0..span.length {
                count += deltas.next().expect("a delta per bucket");
                buckets.push((index, count));
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        buckets.retain(|&(_, count)| count != 0);
        buckets
    }

    #[test]
    fn a_native_histogram_has_prometheus_indices() {
        // 1 s ends bucket 0; 1.05 s lies in bucket 1, 1.2 s in bucket 3, 8 s ends bucket 24.
        let millis = [0, 1_000, 1_000, 1_050, 1_200, 8_000];
        let native = native(&snapshot(&millis.map(Duration::from_millis)), 160);
        assert_eq!((native.schema, native.zero_count), (3, 1));
        assert_eq!(decoded(&native), [(0, 2), (1, 1), (3, 1), (24, 1)]);
        let spans = [NativeSpan { offset: 0, length: 4 }, NativeSpan { offset: 20, length: 1 }];
        assert_eq!(native.spans, spans);
    }

    #[test]
    fn too_many_buckets_are_merged_to_a_coarser_schema() {
        let millis = [1_000, 1_050, 1_200, 1_300, 8_000, 9_000_000];
        let snapshot = snapshot(&millis.map(Duration::from_millis));
        let merged = native(&snapshot, 4);
        assert_eq!(merged.schema, 1);
        // The last is the bucket of infinity at schema 1.
        assert_eq!(decoded(&merged), [(0, 1), (1, 3), (6, 1), (2_049, 1)]);
        let finest = native(&snapshot, 160);
        assert_eq!((finest.schema, decoded(&finest).len()), (3, 6));
    }
}
