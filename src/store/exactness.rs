//! The store against a plain list of points: whatever sources bring, what is read back is what they brought, bit by bit.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::sample::{Labels, MetricName, PodKey, Sample, SeriesKey};
use crate::time::{Moment, Timestamp};

const HISTORY: Duration = Duration::from_secs(30);

/// A series as a list: the points, and when it was born.
struct Plain {
    points: VecDeque<Point>,
    born: Option<Timestamp>,
    /// It was in the last batch, and in the one before.
    live: bool,
}

/// One random series: how its values come about, how often it is lacking, how its source stamps it.
struct Habit {
    value: fn(&mut StdRng, f64) -> f64,
    lacks: f64,
    stamps: fn(&mut StdRng, Timestamp, Timestamp) -> Timestamp,
}

fn millis(rng: &mut StdRng, at: Timestamp, range: std::ops::Range<i64>) -> Timestamp {
    Timestamp::from_millis(at.as_millis() + rng.random_range(range))
}

/// Any value but NaN and the infinite ones, of all sizes and signs.
fn any(rng: &mut StdRng, _: f64) -> f64 {
    let value = f64::from_bits(rng.random());
    if value.is_finite() { value } else { -0.0 }
}

fn habits() -> Vec<Habit> {
    let as_batch: fn(&mut StdRng, Timestamp, Timestamp) -> Timestamp = |_, now, _| now;
    let habit = |value| Habit { value, lacks: 0.0, stamps: as_batch };
    vec![
        habit(|rng, last| last + f64::from(rng.random_range(0..300_u32))),
        habit(|rng, last| if rng.random_bool(0.1) { 1.0 } else { last + 1e9 }),
        habit(|rng, last| last - f64::from(rng.random::<u16>())),
        habit(|rng, last| last + rng.random::<f64>()),
        habit(|rng, _| f64::from(rng.random::<u32>()) * 2.0_f64.powi(32) - 2.0_f64.powi(62)),
        habit(|_, last| if last.is_sign_negative() { 0.0 } else { -0.0 }),
        habit(|_, _| 4.0),
        habit(any),
        Habit { lacks: 0.4, ..habit(|_, last| last + 7.0) },
        Habit { lacks: 0.95, ..habit(any) },
        Habit { stamps: |rng, now, _| millis(rng, now, -900..1), ..habit(|_, last| last + 0.5) },
        // Stands still for long, is late, and at times runs ahead so far that the next stamp is of a clock set back.
        Habit {
            lacks: 0.1,
            stamps: |rng, now, last| match rng.random_range(0..100) {
                0..97 => last,
                97 => millis(rng, now, -9000..0),
                98 => millis(rng, now, 2000..5000),
                _ => now,
            },
            ..habit(any)
        },
    ]
}

impl Plain {
    fn newest(&self) -> Point {
        self.points[self.points.len() - 1]
    }

    fn offer(&mut self, point: Point, wall: Timestamp) {
        let newest = self.newest().at;
        if point.at < newest && newest > wall + Duration::from_secs(1) {
            self.points = [point].into();
            self.born = None;
        } else if point.at > newest {
            self.points.push_back(point);
        }
    }

    fn trim(&mut self, now: Moment) {
        while self.points.len() > 1 && now.since(self.points[0].arrived) > HISTORY {
            self.points.pop_front();
            self.born = None;
        }
    }

    /// From the newest point, or else the birth, that is `gap` older; else, where `any` will do, from the oldest.
    fn span(&self, gap: Duration, any: bool) -> Option<Span> {
        let to = self.newest().at;
        let enough = |at: Timestamp| to.since(at) >= gap;
        let first = self.points.len() - 1;
        let start = (0..first).rev().find(|&index| enough(self.points[index].at));
        let from_point = |start: usize| {
            let steps = (start..first).rev().map(|index| {
                let (before, after) = (self.points[index].value, self.points[index + 1].value);
                if after >= before { after - before } else { after.max(0.0) }
            });
            let change = self.newest().value - self.points[start].value;
            Span {
                from: self.points[start].at,
                to,
                increase: steps.fold(0.0, |a, b| a + b),
                change,
            }
        };
        let from_birth = |born| {
            let (oldest, rest) = (self.points[0].value, from_point(0));
            let (increase, change) = (oldest + rest.increase, oldest + rest.change);
            Span { from: born, to, increase, change }
        };
        let born = self.born.filter(|&born| any || enough(born));
        let oldest = (any && first > 0).then_some(0);
        start.map(from_point).or(born.map(from_birth)).or(oldest.map(from_point))
    }
}

type Bits = (Timestamp, Timestamp, u64, u64);

fn bits(span: Option<Span>) -> Option<Bits> {
    span.map(|span| (span.from, span.to, span.increase.to_bits(), span.change.to_bits()))
}

fn compare(read: Series<'_>, plain: &Plain) {
    let point = |point: Point| (point.at, point.arrived, point.value.to_bits());
    let expected: Vec<_> = plain.points.iter().rev().copied().map(point).collect();
    assert_eq!(read.points().map(point).collect::<Vec<_>>(), expected);
    assert_eq!(point(read.newest()), expected[0]);
    assert_eq!(read.counted_from_zero(), plain.born.is_some());
    for gap in [1, 500, 2500, 20_000, 60_000].map(Duration::from_millis) {
        assert_eq!(bits(read.span(gap)), bits(plain.span(gap, false)), "{gap:?}");
        assert_eq!(bits(read.span_over(gap)), bits(plain.span(gap, true)), "{gap:?}");
    }
}

/// A pod's batches, and the same as lists.
struct Run {
    rng: StdRng,
    store: Store,
    plain: Vec<Option<Plain>>,
    last: Vec<(f64, Timestamp)>,
    last_source: Option<Timestamp>,
    endpoint: EndpointKey,
}

impl Run {
    fn step(&mut self, habits: &[Habit], now: Moment, wall: Timestamp) {
        let answered = millis(&mut self.rng, wall, -50..0);
        let siblings = self.plain.iter().flatten().any(|plain| plain.live);
        let mut samples = Vec::new();
        for (index, habit) in habits.iter().enumerate() {
            let lacking = self.rng.random_bool(habit.lacks);
            if lacking {
                self.plain[index].iter_mut().for_each(|plain| plain.live = false);
                continue;
            }
            let (last, last_at) = self.last[index];
            let value = (habit.value)(&mut self.rng, last);
            let at = (habit.stamps)(&mut self.rng, answered, last_at);
            self.last[index] = (value, at);
            let labels: Labels = [("index", index.to_string())].into_iter().collect();
            let series = SeriesKey { name: MetricName::new("c"), labels };
            samples.push(Sample { series, value, at });
            let point = Point { at, arrived: now, value };
            match &mut self.plain[index] {
                Some(plain) => {
                    plain.offer(point, wall);
                    plain.live = true;
                }
                none => {
                    let born = self.last_source.filter(|&born| siblings && born < at);
                    *none = Some(Plain { points: [point].into(), born, live: true });
                }
            }
        }
        self.last_source = samples.iter().map(|sample| sample.at).max().or(self.last_source);
        for plain in &mut self.plain {
            if let Some(known) = plain {
                known.trim(now);
                if !known.live && now.since(known.newest().arrived) > HISTORY {
                    *plain = None;
                }
            }
        }
        let endpoint = self.endpoint.clone();
        let outcome = Ok(samples);
        self.store.record(&Batch {
            endpoint,
            arrived: now,
            arrived_at: wall,
            outcome,
            dropped: vec![],
        });
    }

    fn compare(&self) {
        let window = self.store.pod(&self.endpoint).expect("recorded");
        let index = |labels: &Labels| labels.get("index").and_then(|index| index.parse().ok());
        let mut read = 0;
        for (labels, series) in window.family("c") {
            let index: usize = index(labels).expect("the label is the index");
            compare(series, self.plain[index].as_ref().expect("also kept as a list"));
            read += 1;
        }
        let live = self.plain.iter().flatten().filter(|plain| plain.live).count();
        assert_eq!(read, live);
        assert_eq!(self.store.stats().series, self.plain.iter().flatten().count());
        let points: usize = self.plain.iter().flatten().map(|plain| plain.points.len()).sum();
        assert_eq!(self.store.stats().points, points);
    }
}

#[test]
fn what_is_read_back_is_what_was_recorded() {
    let habits = habits();
    for seed in 0..8 {
        let limits = Limits { history: HISTORY, points_per_series: 1000, ..Limits::default() };
        let interval = Duration::from_secs(1);
        let pod = PodKey("uid".into());
        let mut run = Run {
            rng: StdRng::seed_from_u64(seed),
            store: Store::new(limits),
            plain: habits.iter().map(|_| None).collect(),
            last: vec![(0.0, Timestamp::default()); habits.len()],
            last_source: None,
            endpoint: EndpointKey { pod, port: 1, path: "/".into(), interval },
        };
        let mut millis = 1_790_000_000_000_u64;
        for _ in 0..200 {
            let longest = if run.rng.random_bool(0.02) { 40_000 } else { 2000 };
            millis += run.rng.random_range(500..longest);
            let nanos = Duration::from_nanos(run.rng.random_range(0..1_000_000));
            let now =
                Moment::after_start(Duration::from_millis(millis - 1_789_999_999_000) + nanos);
            run.step(&habits, now, Timestamp::from_millis(millis.cast_signed()));
            run.compare();
        }
    }
}
