//! One series of one pod: a ring of points, and what a counter or a gauge did between two of them.
//!
//! In: points in the order of their source timestamps. Out: the newest value, and [`Span`]s. Never: a negative increase.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::{Moment, Timestamp};

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// When the value was true, by its source.
    pub at: Timestamp,
    /// When it arrived here.
    pub arrived: Moment,
    /// The reading.
    pub value: f64,
}

/// What happened between an older and the newest point of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The source time of the older point.
    pub from: Timestamp,
    /// The source time of the newest point.
    pub to: Timestamp,
    /// For counters: the growth; after a restart what the new process counted.
    pub increase: f64,
    /// For gauges: newest minus older value.
    pub change: f64,
}

impl Span {
    /// The time between the two points in seconds; more than zero.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.to.since(self.from).as_secs_f64()
    }

    /// The counter's increase per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.increase / self.seconds()
    }
}

/// A ring of points, never empty.
#[derive(Clone, Debug)]
pub struct Series {
    points: VecDeque<Point>,
    /// The last answer without this series, where siblings of it were served: it counted zero then.
    born: Option<Timestamp>,
    /// The number of the last good batch that had it.
    pub(super) batch: u32,
}

/// What became of a point that was offered to a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    Kept,
    /// The source's timestamp did not move: nothing new was measured.
    Repeated,
    /// Older than the newest point.
    OutOfOrder,
}

/// A newest point further ahead of the wall clock than this was stamped by a clock that was set back since.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

impl Series {
    pub(super) fn new(first: Point, born: Option<Timestamp>, batch: u32) -> Self {
        let mut points = VecDeque::with_capacity(4);
        points.push_back(first);
        Self { points, born, batch }
    }

    /// The newest point.
    #[must_use]
    pub fn newest(&self) -> Point {
        *self.points.back().expect("a series starts with a point and always keeps one")
    }

    /// All points, oldest first.
    #[must_use]
    pub fn points(&self) -> impl DoubleEndedIterator<Item = &Point> + ExactSizeIterator {
        self.points.iter()
    }

    /// Whether it is known to have counted zero before its first point: its siblings were served then, and it was not.
    #[must_use]
    pub fn counted_from_zero(&self) -> bool {
        self.born.is_some()
    }

    /// Adds a point if its source time is new. `wall` is when it arrived on the wall clock.
    pub(super) fn offer(&mut self, point: Point, wall: Timestamp) -> Offered {
        let newest = self.newest();
        if point.at == newest.at {
            return Offered::Repeated;
        }
        if point.at < newest.at {
            let set_back = newest.at > wall + CLOCK_SLACK;
            if !set_back {
                return Offered::OutOfOrder;
            }
            self.points.clear();
            self.born = None;
        }
        self.points.push_back(point);
        Offered::Kept
    }

    /// Drops points that arrived more than `history` before `now`, and the oldest beyond `max`; the newest stays.
    pub(super) fn trim(&mut self, now: Moment, history: Duration, max: usize) {
        let expired = |point: &Point| now.since(point.arrived) > history;
        while self.points.len() > 1
            && (self.points.len() > max || self.points.front().is_some_and(expired))
        {
            self.points.pop_front();
            self.born = None;
        }
    }

    /// From the newest point that is at least `gap` older than the newest one; `None` where there is none.
    #[must_use]
    pub fn span(&self, gap: Duration) -> Option<Span> {
        let newest = self.newest();
        let old_enough = |at: Timestamp| at < newest.at && newest.at.since(at) >= gap;
        match self.points.iter().rposition(|point| old_enough(point.at)) {
            Some(start) => Some(self.span_from(start)),
            None => {
                self.born.filter(|&born| old_enough(born)).map(|born| self.span_from_birth(born))
            }
        }
    }

    /// Over the last `window`, or as much of it as is known; `None` with a single reading.
    #[must_use]
    pub fn span_over(&self, window: Duration) -> Option<Span> {
        let newest = self.newest();
        let start = self.points.iter().rposition(|point| newest.at.since(point.at) >= window);
        match (start, self.born) {
            (Some(start), _) if start + 1 < self.points.len() => Some(self.span_from(start)),
            (None, Some(born)) => Some(self.span_from_birth(born)),
            (None, None) if self.points.len() > 1 => Some(self.span_from(0)),
            _ => None,
        }
    }

    fn span_from(&self, start: usize) -> Span {
        let older = self.points[start];
        let newest = self.newest();
        let steps = self.points.iter().skip(start).zip(self.points.iter().skip(start + 1));
        Span {
            from: older.at,
            to: newest.at,
            increase: steps.map(|(before, after)| increase(before.value, after.value)).sum(),
            change: newest.value - older.value,
        }
    }

    fn span_from_birth(&self, born: Timestamp) -> Span {
        let first = self.points[0].value;
        let rest = self.span_from(0);
        Span {
            from: born,
            to: rest.to,
            increase: first + rest.increase,
            change: first + rest.change,
        }
    }
}

/// A smaller value is a restart: all of it was counted since.
fn increase(before: f64, after: f64) -> f64 {
    if after >= before { after - before } else { after.max(0.0) }
}
