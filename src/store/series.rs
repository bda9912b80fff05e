//! One series of one pod: its points, and what a counter or a gauge did between two of them.
//!
//! In: points in the order of their source timestamps. Out: the newest value, and [`Span`]s. Never: a negative increase.

use std::sync::Arc;
use std::time::Duration;

use super::column::{Column, Reading};
use super::times::Times;
use crate::sample::SeriesKey;
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

/// A series of a pod, to read.
#[derive(Clone, Copy, Debug)]
pub struct Series<'w> {
    kept: &'w Kept,
    times: &'w Times,
}

/// What is kept of a series: its newest point, and older ones of batches whose times are kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    key: Arc<SeriesKey>,
    value: f64,
    older: Column,
    exceptions: Option<Box<Exceptions>>,
    /// The number of the batch that brought the newest point.
    number: u32,
    /// The number of the last good batch that had it.
    pub(super) batch: u32,
}

/// What few series have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Exceptions {
    /// The last answer without this series, where siblings of it were served: it counted zero then.
    born: Option<Timestamp>,
    /// The newest point's source time, where it is not that of its batch or the batch's times are gone.
    at: Option<Timestamp>,
    /// When the newest point arrived, where the times of its batch are gone.
    arrived: Option<Moment>,
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

/// Why a batch's times are there: the newest point's own copy is made before they go, and older points go with them.
const TIMES_ARE_KEPT: &str = "the times of a point's batch are kept, or copied to the point";

impl Kept {
    /// Starts with a sample of batch `number`.
    pub(super) fn new(
        key: Arc<SeriesKey>,
        (value, at): (f64, Timestamp),
        born: Option<Timestamp>,
        number: u32,
        times: &Times,
    ) -> Self {
        let older = Column::default();
        let mut kept = Self { key, value, older, exceptions: None, number, batch: number };
        kept.except(|exceptions| {
            exceptions.born = born;
            exceptions.at = own_at(at, number, times);
        });
        kept
    }

    pub(super) fn key(&self) -> &SeriesKey {
        &self.key
    }

    pub(super) fn read<'w>(&'w self, times: &'w Times) -> Series<'w> {
        Series { kept: self, times }
    }

    fn exceptions(&self) -> Exceptions {
        self.exceptions.as_deref().copied().unwrap_or_default()
    }

    fn except(&mut self, change: impl FnOnce(&mut Exceptions)) {
        let mut exceptions = self.exceptions();
        change(&mut exceptions);
        if exceptions == Exceptions::default() {
            self.exceptions = None;
        } else {
            **self.exceptions.get_or_insert_default() = exceptions;
        }
    }

    fn newest(&self) -> Reading {
        Reading { number: self.number, own_at: self.exceptions().at, value: self.value }
    }

    fn at(&self, times: &Times) -> Timestamp {
        self.exceptions().at.or_else(|| times.at(self.number)).expect(TIMES_ARE_KEPT)
    }

    /// Adds a value of batch `number` if its source time is new. `wall` is when it arrived on the wall clock.
    pub(super) fn offer(
        &mut self,
        (value, at): (f64, Timestamp),
        number: u32,
        wall: Timestamp,
        times: &Times,
    ) -> Offered {
        self.batch = number;
        let newest_at = self.at(times);
        if at == newest_at {
            return Offered::Repeated;
        }
        let set_back = at < newest_at;
        if set_back && newest_at <= wall + CLOCK_SLACK {
            return Offered::OutOfOrder;
        }
        let next = Reading { number, own_at: own_at(at, number, times), value };
        // A point that is only kept for being the newest ends with that.
        let forget = set_back || self.exceptions().arrived.is_some();
        if forget {
            self.older.clear();
        } else {
            self.older.push(self.newest(), newest_at, next);
        }
        self.value = value;
        self.number = number;
        self.except(|exceptions| {
            let born = exceptions.born.filter(|_| !forget);
            *exceptions = Exceptions { born, at: next.own_at, arrived: None };
        });
        Offered::Kept
    }

    /// Drops the points of batches before `oldest`; the newest stays. `times` still has all of them.
    pub(super) fn trim(&mut self, oldest: u32, times: &Times) {
        if self.older.forget_before(oldest, self.newest()) {
            self.except(|exceptions| exceptions.born = None);
        }
        if self.outlived(oldest) && self.exceptions().arrived.is_none() {
            let (at, arrived) = (self.at(times), times.arrived(self.number));
            self.except(|exceptions| {
                exceptions.at = Some(at);
                exceptions.arrived = arrived;
            });
        }
    }

    /// Whether even the newest point is of a batch before `oldest`.
    pub(super) fn outlived(&self, oldest: u32) -> bool {
        self.number < oldest
    }

    /// Bytes on the heap, without the shared name.
    pub(super) fn heap_bytes(&self) -> usize {
        let exceptions = self.exceptions.as_ref().map_or(0, |_| size_of::<Exceptions>());
        self.older.heap_bytes() + exceptions
    }
}

/// The source time, if it is not that of the batch.
fn own_at(at: Timestamp, number: u32, times: &Times) -> Option<Timestamp> {
    Some(at).filter(|&at| times.at(number) != Some(at))
}

/// How far a walk back came.
struct Walk {
    /// From the oldest point met; `None` where there is only one point.
    span: Option<Span>,
    /// The value of the oldest point met.
    first: f64,
    /// It ended at a point that is old enough.
    enough: bool,
}

impl<'w> Series<'w> {
    /// The newest point.
    #[must_use]
    pub fn newest(&self) -> Point {
        let own = self.kept.exceptions().arrived;
        let arrived = own.or_else(|| self.times.arrived(self.kept.number)).expect(TIMES_ARE_KEPT);
        Point { at: self.kept.at(self.times), arrived, value: self.kept.value }
    }

    /// All points, newest first.
    pub fn points(&self) -> impl Iterator<Item = Point> + use<'w> {
        let times = self.times;
        let older = self.kept.older.back_from(self.kept.newest());
        let older = older.map(move |reading| Point {
            at: at_of(reading, times),
            arrived: times.arrived(reading.number).expect(TIMES_ARE_KEPT),
            value: reading.value,
        });
        std::iter::once(self.newest()).chain(older)
    }

    /// Whether it is known to have counted zero before its first point: its siblings were served then, and it was not.
    #[must_use]
    pub fn counted_from_zero(&self) -> bool {
        self.kept.exceptions().born.is_some()
    }

    /// From the newest point that is at least `gap` older than the newest one; `None` where there is none.
    #[must_use]
    pub fn span(&self, gap: Duration) -> Option<Span> {
        let to = self.kept.at(self.times);
        let walk = self.walk_back(to, gap);
        if walk.enough {
            return walk.span;
        }
        self.since_birth(to, &walk).filter(|span| to.since(span.from) >= gap)
    }

    /// Over the last `window`, or as much of it as is known; `None` with a single reading.
    #[must_use]
    pub fn span_over(&self, window: Duration) -> Option<Span> {
        if window.is_zero() {
            return None;
        }
        let to = self.kept.at(self.times);
        let walk = self.walk_back(to, window);
        if walk.enough { walk.span } else { self.since_birth(to, &walk).or(walk.span) }
    }

    /// To the first point that is at least `gap` older than the newest one, which is of `to`.
    fn walk_back(&self, to: Timestamp, gap: Duration) -> Walk {
        let newest = self.kept.newest();
        let mut walk = Walk { span: None, first: newest.value, enough: false };
        let mut total = 0.0;
        for older in self.kept.older.back_from(newest) {
            let from = at_of(older, self.times);
            total += increase(older.value, walk.first);
            walk.first = older.value;
            let change = newest.value - older.value;
            walk.span = Some(Span { from, to, increase: total, change });
            walk.enough = to.since(from) >= gap;
            if walk.enough {
                break;
            }
        }
        walk
    }

    fn since_birth(&self, to: Timestamp, walk: &Walk) -> Option<Span> {
        let from = self.kept.exceptions().born.filter(|&born| born < to)?;
        let (increase, change) = walk.span.map_or((0.0, 0.0), |span| (span.increase, span.change));
        Some(Span { from, to, increase: walk.first + increase, change: walk.first + change })
    }
}

fn at_of(reading: Reading, times: &Times) -> Timestamp {
    reading.own_at.or_else(|| times.at(reading.number)).expect(TIMES_ARE_KEPT)
}

/// A smaller value is a restart: all of it was counted since.
fn increase(before: f64, after: f64) -> f64 {
    if after >= before { after - before } else { after.max(0.0) }
}
