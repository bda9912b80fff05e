//! How busy the workers of a tokio runtime are, from its stable metrics.
//!
//! In: per worker the published busy time and the park/unpark count, once per tick. Out: the share of worker time in use and
//! the number of workers that one poll keeps. Never: a clock or a runtime; it is arithmetic over numbers.
//!
//! Why not the plain `busy / (workers x elapsed)`: tokio publishes a worker's busy time only when the worker parks or does
//! maintenance. A worker that one poll keeps reads as idle until the poll ends, and then as several times its capacity. The
//! park/unpark count tells such a worker apart: it is even while the worker runs and odd while it is parked.

use std::time::Duration;

use crate::units::{Measure, Ratio};

/// What tokio says of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerReading {
    /// `RuntimeMetrics::worker_total_busy_duration`.
    pub busy: Duration,
    /// `RuntimeMetrics::worker_park_unpark_count`: even while the worker runs, odd while it is parked.
    pub park_unpark_count: u64,
}

/// What one tick showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Saturation {
    /// Busy time of the workers as a share of the time they had.
    pub ratio: Ratio,
    /// Workers that ran the whole tick without publishing any time: one poll keeps each of them.
    pub blocked_workers: usize,
}

/// Keeps what was counted before tokio published it, so that it is not counted again.
#[derive(Clone, Debug)]
pub struct SaturationEstimator {
    workers: Vec<Worker>,
}

#[derive(Clone, Copy, Debug)]
struct Worker {
    last: WorkerReading,
    /// Seconds counted as busy that tokio has not published yet.
    credit_seconds: f64,
    /// Seconds counted as busy since the first reading.
    busy_seconds: f64,
    was_active: bool,
}

impl SaturationEstimator {
    /// Starts from a first reading of every worker.
    #[must_use]
    pub fn new(readings: impl IntoIterator<Item = WorkerReading>) -> Self {
        let fresh =
            |last| Worker { last, credit_seconds: 0.0, busy_seconds: 0.0, was_active: false };
        Self { workers: readings.into_iter().map(fresh).collect() }
    }

    /// Busy seconds of each worker since the first reading, a poll that still runs included.
    pub fn busy_seconds(&self) -> impl Iterator<Item = f64> {
        self.workers.iter().map(|worker| worker.busy_seconds)
    }

    /// Workers that ran at the last reading, or have run between the two last ones.
    pub fn active(&self) -> impl Iterator<Item = usize> {
        let active = |(index, worker): (usize, &Worker)| worker.was_active.then_some(index);
        self.workers.iter().enumerate().filter_map(active)
    }

    /// Takes the next reading of every worker, `elapsed` after the one before.
    ///
    /// `None` while no worker has parked yet (a count of 0 is even, so a worker that has not started looks busy), and when
    /// no time has passed.
    pub fn tick(
        &mut self,
        elapsed: Duration,
        readings: impl IntoIterator<Item = WorkerReading>,
    ) -> Option<Saturation> {
        let elapsed_seconds = elapsed.as_secs_f64();
        let (mut busy_seconds, mut blocked_workers, mut started_workers) = (0.0, 0, 0_u32);
        for (worker, reading) in self.workers.iter_mut().zip(readings) {
            let blocked = worker.last.park_unpark_count == reading.park_unpark_count
                && reading.park_unpark_count.is_multiple_of(2)
                && worker.last.busy == reading.busy;
            let seconds = worker.advance(elapsed_seconds, reading);
            worker.busy_seconds += seconds;
            if reading.park_unpark_count > 0 {
                started_workers += 1;
                busy_seconds += seconds;
                blocked_workers += usize::from(blocked);
            }
        }
        let ratio =
            Ratio::new(busy_seconds / (f64::from(started_workers) * elapsed_seconds)).ok()?;
        Some(Saturation { ratio, blocked_workers })
    }
}

impl Worker {
    /// Busy seconds of this tick, between zero and `elapsed`.
    fn advance(&mut self, elapsed: f64, reading: WorkerReading) -> f64 {
        let published = reading.busy.saturating_sub(self.last.busy).as_secs_f64();
        let running = reading.park_unpark_count.is_multiple_of(2);
        let parked_or_woke = reading.park_unpark_count != self.last.park_unpark_count;
        let before_first_park = reading.park_unpark_count == 0;
        self.was_active = !before_first_park && (running || parked_or_woke);
        self.last = reading;
        match (parked_or_woke, running) {
            _ if before_first_park => 0.0,
            (false, true) => {
                self.credit_seconds += elapsed - published;
                elapsed
            }
            (false, false) => 0.0,
            (true, _) => {
                let paid = published.min(self.credit_seconds);
                self.credit_seconds = if running { self.credit_seconds - paid } else { 0.0 };
                (published - paid).clamp(0.0, elapsed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// One reading per tick and worker: (busy milliseconds published so far, park/unpark count).
    fn check(ticks: &[&[(u64, u64)]], expected: &[(f64, usize)]) {
        let reading = |&(busy, count): &(u64, u64)| WorkerReading {
            busy: Duration::from_millis(busy),
            park_unpark_count: count,
        };
        let mut estimator = SaturationEstimator::new(ticks[0].iter().map(reading));
        for (index, (tick, &(ratio, blocked))) in ticks[1..].iter().zip(expected).enumerate() {
            let got = estimator.tick(TICK, tick.iter().map(reading)).expect("workers have parked");
            assert!(
                (got.ratio.get() - ratio).abs() < 1e-9,
                "tick {index}: {got:?}, expected {ratio}"
            );
            assert_eq!(got.blocked_workers, blocked, "tick {index}");
        }
        assert_eq!(ticks.len() - 1, expected.len());
    }

    #[test]
    fn a_worker_blocked_for_900_ms_reads_as_one_of_four_until_its_poll_ends() {
        // As recorded on tokio 1.54.1: plain busy time reads 0 eight times, then 2.25.
        let parked = (0, 3);
        let tick = |first| [first, parked, parked, parked];
        let ticks: Vec<[(u64, u64); 4]> = [
            (0, 1),
            (0, 2),
            (0, 2),
            (0, 2),
            (0, 2),
            (0, 2),
            (0, 2),
            (0, 2),
            (0, 2),
            (900, 3),
            (900, 3),
        ]
        .into_iter()
        .map(tick)
        .collect();
        let ticks: Vec<&[(u64, u64)]> = ticks.iter().map(<[_; 4]>::as_slice).collect();
        let expected = [
            (0.0, 0),
            (0.25, 1),
            (0.25, 1),
            (0.25, 1),
            (0.25, 1),
            (0.25, 1),
            (0.25, 1),
            (0.25, 1),
            (0.25, 0),
            (0.0, 0),
        ];
        check(&ticks, &expected);
    }

    #[test]
    fn a_runtime_that_never_parks_is_saturated_however_its_busy_time_is_published() {
        // The published deltas of the recorded saturated run, in milliseconds per tick of one worker.
        let published = [88, 88, 87, 91, 70, 158, 111, 97, 42, 129, 87, 98];
        let mut busy = 0;
        let mut ticks = vec![vec![(0, 2)]];
        ticks.extend(published.iter().map(|delta| {
            busy += delta;
            vec![(busy, 2)]
        }));
        let ticks: Vec<&[(u64, u64)]> = ticks.iter().map(Vec::as_slice).collect();
        check(&ticks, &[(1.0, 0); 12]);
    }

    #[test]
    fn parked_workers_are_idle_and_short_bursts_count_what_was_published() {
        check(&[&[(0, 1)], &[(0, 1)], &[(30, 5)], &[(30, 5)]], &[(0.0, 0), (0.3, 0), (0.0, 0)]);
    }

    #[test]
    fn a_burst_that_is_published_late_is_never_more_than_the_tick() {
        check(&[&[(0, 1)], &[(500, 3)]], &[(1.0, 0)]);
    }

    #[test]
    fn a_worker_that_has_never_parked_is_left_out() {
        check(&[&[(0, 0), (0, 1)], &[(0, 0), (50, 3)]], &[(0.5, 0)]);
        let reading = WorkerReading::default();
        assert_eq!(SaturationEstimator::new([reading]).tick(TICK, [reading]), None);
    }

    #[test]
    fn a_running_poll_is_in_its_worker_s_busy_seconds_and_is_not_added_again_when_it_ends() {
        let readings = |busy, count| {
            let busy = Duration::from_millis(busy);
            [WorkerReading { busy, park_unpark_count: count }, WorkerReading::default()]
        };
        let mut estimator = SaturationEstimator::new(readings(0, 1));
        let mut busy_after = |busy, count| {
            estimator.tick(TICK, readings(busy, count));
            let seconds: Vec<f64> = estimator.busy_seconds().collect();
            assert_eq!(estimator.active().collect::<Vec<_>>(), [0]);
            ((seconds[0] * 1e3).round(), seconds[1])
        };
        assert_eq!(busy_after(0, 2), (0.0, 0.0));
        assert_eq!(busy_after(0, 2), (100.0, 0.0));
        assert_eq!(busy_after(0, 2), (200.0, 0.0));
        assert_eq!(busy_after(250, 3), (250.0, 0.0));
    }

    #[test]
    fn two_ticks_at_one_moment_say_nothing() {
        let reading = WorkerReading { busy: Duration::ZERO, park_unpark_count: 2 };
        assert_eq!(SaturationEstimator::new([reading]).tick(Duration::ZERO, [reading]), None);
    }
}
