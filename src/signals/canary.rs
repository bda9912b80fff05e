//! How late the service's runtime wakes a task that is due: a canary that sleeps and looks at the clock.
//!
//! In: the service's runtime. Out: `tokio_scheduling_delay_seconds`, the worst lateness of the last [`WINDOW`]. Never: a value
//! that stands still while the runtime does: a wake that is overdue counts with the lateness it has so far.
//!
//! It looks ten times a second, and a hundred times only while the runtime is saturated. While the process is idle once a
//! second does, since every look wakes a runtime that sleeps: ten a second were two thirds of the agent's CPU there. As soon as
//! the process does something, the agent's thread sets the timer to the next tenth of a second, which wakes nobody.
//!
//! It waits for a timer of the kernel, through the runtime's I/O driver, as a request's arrival comes in. tokio's own timer
//! wakes an idle runtime three times for one sleep of 100 ms (to be told of the sleep, to sort it, to end it), and is late by
//! up to a millisecond by itself.
//!
//! tokio panics in a task that waits where the runtime has no I/O driver, and tells nobody beforehand. Such a runtime, and any
//! of a program that aborts on panics, is looked at from outside: each tick spawns an empty task and sees how late it ran.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::catalogue::families;
use super::seats;
use super::snapshot::{Snapshot, Unavailable};
use super::sys::Timer;
use crate::time::{Clock, Moment};

/// How long a late wake is remembered, so that every scrape at the default interval sees it.
pub const WINDOW: Duration = Duration::from_secs(5);

/// How often the canary looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// The process is idle.
    Idle,
    /// It does something, or is not known yet.
    #[default]
    Awake,
    /// The runtime's workers are in use, or one of them is blocked.
    Saturated,
}

impl Pace {
    /// Between two wakes.
    const fn period(self) -> Duration {
        match self {
            Self::Idle => Duration::from_secs(1),
            Self::Awake => Duration::from_millis(100),
            Self::Saturated => Duration::from_millis(10),
        }
    }
}

/// A task on the service's runtime, and what it saw. Dropping it ends the task.
#[derive(Debug)]
pub struct Canary {
    task: AbortOnDropHandle<()>,
    watch: Watch,
    handle: Handle,
}

/// What the task needs.
#[derive(Clone, Debug)]
struct Watch {
    clock: Clock,
    lateness: Arc<Mutex<Lateness>>,
    /// `None` where the runtime is looked at from outside.
    timer: Option<Arc<Timer>>,
}

/// Wakes of the last window.
#[derive(Debug, Default)]
struct Lateness {
    pace: Pace,
    due: Option<Moment>,
    wakes: VecDeque<(Moment, Duration)>,
}

impl Canary {
    /// Starts the task, which needs the runtime's I/O driver; without it the ticks spawn tasks instead. It also notes which
    /// worker runs it.
    #[must_use]
    pub fn spawn(handle: &Handle, clock: Clock) -> Self {
        // A panic would be the service's end.
        let timer = if cfg!(panic = "abort") { None } else { Timer::new().ok().map(Arc::new) };
        let watch = Watch { clock, lateness: Arc::default(), timer };
        let task = match &watch.timer {
            Some(timer) => handle.spawn(watch.clone().by_the_kernel_s_timer(timer.clone())),
            None => watch.spawn_look(handle),
        };
        Self { task: AbortOnDropHandle::new(task), watch, handle: handle.clone() }
    }

    /// Says how often to look from now on. Once per tick; where the kernel's timer cannot be waited for, this is when the
    /// runtime is looked at.
    pub fn tick(&mut self, pace: Pace) {
        if self.task.is_finished() {
            self.task = AbortOnDropHandle::new(self.watch.spawn_look(&self.handle));
        } else {
            self.watch.keep_pace(pace);
        }
    }

    /// Tasks that the service did not spawn: 1, or 0 once the canary has ended.
    #[must_use]
    pub fn tasks(&self) -> usize {
        usize::from(!self.task.is_finished())
    }

    /// Adds the worst lateness of the last window.
    pub fn collect(&self, now: Moment, snapshot: &mut Snapshot) {
        let lateness = self.watch.lateness.lock();
        let outcome = match lateness.worst(now) {
            // It ended without having run.
            _ if self.task.is_finished() && lateness.due.is_some() => {
                Err(Unavailable::NotHere("the canary has ended: is the runtime still there?"))
            }
            None => Err(Unavailable::NotHere("the canary has not started yet")),
            Some(worst) => {
                snapshot.push(&families::TOKIO_SCHEDULING_DELAY, worst.as_secs_f64());
                Ok(())
            }
        };
        snapshot.source("tokio_scheduling_delay", outcome);
    }
}

impl Watch {
    /// Ends when the timer cannot be watched or set.
    async fn by_the_kernel_s_timer(self, timer: Arc<Timer>) {
        let Ok(timer) = timer.watched() else { return };
        loop {
            if self.begin(timer.get_ref()).is_err() {
                return;
            }
            let Ok(mut ready) = timer.readable().await else { return };
            // Setting the timer again empties it; the next edge is the next wake.
            ready.clear_ready();
            self.woke();
        }
    }

    /// A task that is due at once.
    fn spawn_look(&self, handle: &Handle) -> JoinHandle<()> {
        self.lateness.lock().due = Some(self.clock.now().monotonic);
        let watch = self.clone();
        handle.spawn(async move { watch.woke() })
    }

    /// Sets the timer to the next wake. It and what is noted of it change together, since the agent's thread may do so too.
    fn begin(&self, timer: &Timer) -> io::Result<()> {
        let mut lateness = self.lateness.lock();
        let period = lateness.pace.period();
        lateness.due = Some(self.clock.now().monotonic + period);
        timer.set(period)
    }

    /// Brings the next wake forward if it is further away than the pace allows. One that is overdue stays so.
    fn keep_pace(&self, pace: Pace) {
        let mut lateness = self.lateness.lock();
        lateness.pace = pace;
        let sooner = self.clock.now().monotonic + pace.period();
        if let (Some(due), Some(timer)) = (lateness.due, &self.timer)
            && due > sooner
            && timer.set(pace.period()).is_ok()
        {
            lateness.due = Some(sooner);
        }
    }

    fn woke(&self) {
        self.lateness.lock().woke(self.clock.now().monotonic);
        seats::note();
    }
}

impl Lateness {
    fn woke(&mut self, now: Moment) {
        if let Some(due) = self.due.take() {
            self.wakes.push_back((now, now.since(due)));
        }
        while self.wakes.front().is_some_and(|(at, _)| now.since(*at) > WINDOW) {
            self.wakes.pop_front();
        }
    }

    fn worst(&self, now: Moment) -> Option<Duration> {
        let overdue = self.due.map(|due| now.since(due));
        let recent = self.wakes.iter().filter(|(at, _)| now.since(*at) <= WINDOW);
        recent.map(|(_, late)| *late).chain(overdue).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_wake_that_is_overdue_counts_before_it_happens() {
        let mut lateness = Lateness { due: Some(at(100)), ..Lateness::default() };
        assert_eq!(lateness.worst(at(50)), Some(Duration::ZERO));
        assert_eq!(lateness.worst(at(3_100)), Some(Duration::from_secs(3)));
        lateness.woke(at(4_100));
        assert_eq!(lateness.worst(at(4_200)), Some(Duration::from_secs(4)));
    }

    #[test]
    fn a_late_wake_is_forgotten_after_the_window() {
        let mut lateness = Lateness { due: Some(at(100)), ..Lateness::default() };
        lateness.woke(at(900));
        lateness.due = Some(at(9_000));
        assert_eq!(lateness.worst(at(900) + WINDOW), Some(Duration::from_millis(800)));
        assert_eq!(lateness.worst(at(901) + WINDOW), Some(Duration::ZERO));
    }

    #[tokio::test]
    async fn the_canary_speaks_once_it_ran() {
        let clock = Clock::start();
        let canary = Canary::spawn(&Handle::current(), clock);
        let available = |canary: &Canary| {
            let mut snapshot = Snapshot::default();
            canary.collect(clock.now().monotonic, &mut snapshot);
            snapshot.sources()[0].1.is_ok()
        };
        assert!(!available(&canary));
        tokio::task::yield_now().await;
        assert!(available(&canary));
    }

    /// Waits for a wake and returns how long after it the next one is due.
    async fn until_next(canary: &Canary) -> Duration {
        canary.watch.lateness.lock().wakes.clear();
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let lateness = canary.watch.lateness.lock();
            if let (Some((woke, _)), Some(due)) = (lateness.wakes.back(), lateness.due) {
                return due.since(*woke);
            }
        }
    }

    #[tokio::test]
    async fn the_canary_looks_as_often_as_the_pace_says() {
        let mut canary = Canary::spawn(&Handle::current(), Clock::start());
        assert!(until_next(&canary).await >= Pace::Awake.period());
        canary.tick(Pace::Saturated);
        while until_next(&canary).await >= Pace::Awake.period() {}
        canary.tick(Pace::Idle);
        // A sleep that runs at the change is not cut short; the one after it is long.
        while until_next(&canary).await < Pace::Idle.period() {}
    }

    #[tokio::test]
    async fn a_wake_that_is_further_away_than_the_pace_is_brought_forward() {
        let clock = Clock::start();
        let mut canary = Canary::spawn(&Handle::current(), clock);
        tokio::task::yield_now().await;
        let far = clock.now().monotonic + Duration::from_secs(3_600);
        let timer = canary.watch.timer.clone().expect("timers are allowed");
        timer.set(Duration::from_secs(3_600)).expect("timers can be set");
        canary.watch.lateness.lock().due = Some(far);
        canary.tick(Pace::Awake);
        assert!(canary.watch.lateness.lock().due < Some(far));
        // Not in an hour.
        assert!(until_next(&canary).await < 2 * Pace::Awake.period());
    }

    #[tokio::test]
    async fn a_wake_that_is_overdue_stays_so_whatever_the_pace() {
        let clock = Clock::start();
        let mut canary = Canary::spawn(&Handle::current(), clock);
        tokio::task::yield_now().await;
        // This runtime has one thread, which the canary does not get.
        std::thread::sleep(Pace::Awake.period() + Duration::from_millis(50));
        for pace in [Pace::Saturated, Pace::Idle, Pace::Awake] {
            canary.tick(pace);
            let worst = canary.watch.lateness.lock().worst(clock.now().monotonic);
            assert!(worst >= Some(Duration::from_millis(50)), "{pace:?}: {worst:?}");
        }
        until_next(&canary).await;
    }

    #[test]
    fn a_runtime_without_drivers_is_looked_at_from_outside() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let clock = Clock::start();
            let mut canary = Canary::spawn(&Handle::current(), clock);
            tokio::task::yield_now().await;
            assert!(canary.task.is_finished(), "tokio panics in a task where it has no driver");
            canary.tick(Pace::Awake);
            std::thread::sleep(Duration::from_millis(30));
            tokio::task::yield_now().await;
            let worst = canary.watch.lateness.lock().worst(clock.now().monotonic);
            assert!(worst >= Some(Duration::from_millis(30)), "{worst:?}");
        });
    }
}
