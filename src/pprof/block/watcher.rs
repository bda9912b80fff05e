//! Sees polls that hold a worker, and asks the worker's thread where it is.
//!
//! In: tokio's busy time and park count of each worker. Out: holds in the profile. Never: a signal to a thread while no
//! worker is held, and none to a worker that is held for less than [`LONG`].
//!
//! A worker that runs, and publishes nothing, is in one poll, or in a row of polls: tokio publishes after 61 of them. So
//! the thread is asked twice which task it polls, [`CHECK`] apart; another task at the second time is no hold. While it is
//! held it is asked again, ever more seldom, so that the stack gets no time of polls that came after.
//!
//! Only a thread that was seen as a worker is asked (`signals::seats`).
//!
//! The question is a signal, which ends some waits of the kernel early (EINTR). `std` waits again after it; so does the
//! kernel where the wait has no time limit (SA_RESTART). C code that sleeps in a worker and trusts its sleep may see a
//! shorter one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Id, RuntimeMetrics};

use super::super::labels::Labels;
use super::super::ring::{Head, Poll};
use super::super::sys::signals::Questions;
use super::{Place, change};
use crate::signals::saturation::WorkerReading;
use crate::signals::{seats, workers};
use crate::time::Moment;

/// A worker is held after this.
const LONG: Duration = Duration::from_millis(100);
/// Between two looks.
const ROUND: Duration = Duration::from_millis(50);
/// The same while no worker runs.
const QUIET_ROUND: Duration = Duration::from_millis(100);
/// The same while the runtime is idle: a hold is in the profile within two seconds, one that is over sooner may be missed.
const IDLE_ROUND: Duration = Duration::from_millis(500);
/// A runtime is idle if no worker runs and all of them together were busy for less than this part of the time.
const IDLE_PART: u32 = 100;
/// Between the questions to a worker that may be held.
const CHECK: Duration = Duration::from_millis(20);
/// The longest between the questions to a worker that is held.
const MAX_RECHECK: Duration = Duration::from_secs(1);
/// Questions without an answer before a hold is given up: a thread that waits inside the kernel without hearing signals,
/// such as on a disk, answers none.
const MAX_QUESTIONS: u32 = 50;

/// Watches the workers of one runtime.
#[derive(Debug)]
pub struct Watcher {
    runtime: Id,
    metrics: RuntimeMetrics,
    workers: Vec<Worker>,
    /// Threads asked since answers were last heard. Those of others are for another watcher, which will ask again.
    asked: HashSet<i32>,
    /// The last look.
    looked: Moment,
}

impl Watcher {
    /// Watches the runtime of `handle`, on which some tasks run for a moment.
    #[must_use]
    pub fn new(handle: &Handle, now: Moment) -> Self {
        // Workers that run are met again and again (`signals::workers`); this is for those that sleep until a poll holds them.
        workers::meet(handle);
        let metrics = handle.metrics();
        let worker = |index| Worker::new(read(&metrics, index), now);
        let workers = (0..metrics.num_workers()).map(worker).collect();
        Self { runtime: handle.id(), metrics, workers, asked: HashSet::new(), looked: now }
    }

    /// Looks at all workers, and says when to look again. Some 20 ns for each worker while none is held.
    pub fn look(&mut self, now: Moment) -> Duration {
        if self.workers.iter().any(|worker| worker.hold.is_asked()) {
            self.hear(now);
        }
        let mut next = IDLE_ROUND;
        let mut busy = Duration::ZERO;
        for index in 0..self.workers.len() {
            let reading = read(&self.metrics, index);
            busy += reading.busy.saturating_sub(self.workers[index].last.busy);
            let wish = self.workers[index].look(reading, now);
            if let Wish::Ask = wish {
                self.workers[index].asked(now);
                if let Some(thread) = seats::thread_of(self.runtime, index) {
                    self.ask(thread.cast_signed());
                }
            }
            next = next.min(wish.until(now));
        }
        let elapsed = now.since(std::mem::replace(&mut self.looked, now));
        if busy * IDLE_PART >= elapsed { next.min(QUIET_ROUND) } else { next }
    }

    fn ask(&mut self, thread: i32) {
        // Another profiler that has the signal must not see ours: nobody is asked then. A thread that has ended has nothing
        // to say.
        if Questions::open().is_ok_and(|questions| questions.ask(thread).is_ok()) {
            self.asked.insert(thread);
        }
    }

    /// Takes the answers of asked threads.
    fn hear(&mut self, now: Moment) {
        let Ok(questions) = Questions::open() else {
            return;
        };
        let mut answers = Vec::new();
        questions.take(|head, frames| answers.push((head, Arc::from(frames))));
        answers.retain(|(head, _): &(Head, _)| self.asked.remove(&head.thread));
        for (head, frames) in answers {
            self.answer(&head, frames, now);
        }
    }

    fn answer(&mut self, head: &Head, frames: Arc<[usize]>, now: Moment) {
        let (thread, labels) = (head.thread, head.labels);
        let poll = head.poll.and_then(|poll| Some((usize::try_from(poll.worker).ok()?, poll)));
        let known = |index| seats::thread_of(self.runtime, index).map(u32::cast_signed);
        let Some((index, Poll { task, part, .. })) =
            poll.filter(|(index, _)| known(*index) == Some(thread))
        else {
            // It is a worker no more, or of another runtime.
            seats::forget(thread.cast_unsigned());
            return;
        };
        if let Some(worker) = self.workers.get_mut(index) {
            worker.hear(Answer { thread, task, part, labels, frames }, now);
        }
    }
}

fn read(metrics: &RuntimeMetrics, worker: usize) -> WorkerReading {
    WorkerReading {
        busy: metrics.worker_total_busy_duration(worker),
        park_unpark_count: metrics.worker_park_unpark_count(worker),
    }
}

/// What a thread said.
#[derive(Clone, Debug)]
struct Answer {
    thread: i32,
    task: u64,
    /// Of a labelled poll its number.
    part: u32,
    labels: Labels,
    frames: Arc<[usize]>,
}

impl Answer {
    /// Whether both may come from one poll.
    const fn is_of_one_poll(&self, other: &Self) -> bool {
        self.task == other.task && (self.part == other.part || self.part == 0 || other.part == 0)
    }
}

/// What is known of the present poll of a worker.
#[derive(Debug)]
enum Hold {
    /// Nothing: it is short so far.
    None,
    /// The thread was asked for the first time, last at `at`.
    Asked { at: Moment, times: u32 },
    /// It answered once.
    Answered { at: Moment, first: Answer },
    /// It was asked for the second time, last at `at`.
    Checked { at: Moment, first: Answer, times: u32 },
    /// One poll holds the worker.
    Held(Held),
    /// Nobody answered, or there is no room: left alone until something is published.
    Left,
}

impl Hold {
    const fn is_asked(&self) -> bool {
        matches!(self, Self::Asked { .. } | Self::Checked { .. })
            || matches!(self, Self::Held(held) if held.is_asked)
    }
}

/// A hold in the profile.
#[derive(Debug)]
struct Held {
    place: Place,
    /// So much of it is in the profile.
    counted: Duration,
    /// The last answer from this poll, and when it was heard.
    last: Answer,
    confirmed: Moment,
    /// When the thread was last asked whether it still polls the same, and whether it has yet to answer.
    asked: Moment,
    is_asked: bool,
}

impl Held {
    /// Brings the profile up to `all` of the hold.
    fn count(&mut self, all: Duration) {
        change(|holds| holds.extend(&self.place, all.saturating_sub(self.counted)));
        self.counted = self.counted.max(all);
    }
}

/// What the watcher is to do about a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    /// Look at that moment.
    Look(Moment),
    /// Ask now.
    Ask,
}

impl Wish {
    fn until(self, now: Moment) -> Duration {
        match self {
            Self::Nothing => IDLE_ROUND,
            Self::Look(at) => at.since(now),
            Self::Ask => CHECK,
        }
    }
}

/// One worker. Pure: it is told what was read and when.
#[derive(Debug)]
struct Worker {
    last: WorkerReading,
    /// When `last` was seen first, and the look before that.
    since: Moment,
    not_before: Moment,
    /// The last look.
    looked: Moment,
    hold: Hold,
}

impl Worker {
    const fn new(last: WorkerReading, now: Moment) -> Self {
        Self { last, since: now, not_before: now, looked: now, hold: Hold::None }
    }

    fn look(&mut self, reading: WorkerReading, now: Moment) -> Wish {
        // Even and not 0: it runs, and has parked before. A worker that has never parked was not yet heard of.
        let runs = reading.park_unpark_count.is_multiple_of(2) && reading.park_unpark_count > 0;
        if reading != self.last || !runs {
            self.end(reading, now);
        }
        self.looked = now;
        if !runs {
            return Wish::Nothing;
        }
        let age = now.since(self.since);
        match &mut self.hold {
            Hold::None if age >= LONG => Wish::Ask,
            Hold::None => Wish::Look(self.since + LONG),
            Hold::Answered { at, .. } if now.since(*at) < CHECK => Wish::Look(*at + CHECK),
            Hold::Answered { .. } => Wish::Ask,
            Hold::Asked { times, .. } | Hold::Checked { times, .. } if *times >= MAX_QUESTIONS => {
                self.leave();
                Wish::Nothing
            }
            Hold::Asked { at, .. } | Hold::Checked { at, .. } if now.since(*at) < CHECK => {
                Wish::Look(*at + CHECK)
            }
            Hold::Asked { .. } | Hold::Checked { .. } => Wish::Ask,
            Hold::Held(held) => {
                // A question interrupts the poll: a quarter of its time is exact enough.
                let due = held.asked + (age / 4).clamp(ROUND, MAX_RECHECK);
                if due > now { Wish::Look(due) } else { Wish::Ask }
            }
            Hold::Left => Wish::Look(now + QUIET_ROUND),
        }
    }

    /// The thread was asked.
    fn asked(&mut self, at: Moment) {
        self.hold = match std::mem::replace(&mut self.hold, Hold::None) {
            Hold::None => Hold::Asked { at, times: 1 },
            Hold::Asked { times, .. } => Hold::Asked { at, times: times + 1 },
            Hold::Answered { first, .. } => Hold::Checked { at, first, times: 1 },
            Hold::Checked { first, times, .. } => Hold::Checked { at, first, times: times + 1 },
            Hold::Held(held) => Hold::Held(Held { asked: at, is_asked: true, ..held }),
            Hold::Left => Hold::Left,
        };
    }

    fn hear(&mut self, answer: Answer, at: Moment) {
        self.hold = match std::mem::replace(&mut self.hold, Hold::None) {
            Hold::Asked { .. } => Hold::Answered { at, first: answer },
            Hold::Checked { first, at: asked, .. } if first.thread == answer.thread => {
                if first.is_of_one_poll(&answer) {
                    self.begin(first, answer, at)
                } else {
                    change(|holds| holds.several += 1);
                    // The poll of this answer may be the one that holds it.
                    (self.not_before, self.since) = (asked, at);
                    Hold::None
                }
            }
            Hold::Held(mut held) if held.last.thread == answer.thread => {
                if held.last.is_of_one_poll(&answer) {
                    held.count(at.since(self.since));
                    Hold::Held(Held { last: answer, confirmed: at, is_asked: false, ..held })
                } else {
                    // What held it ended; another poll began after the last answer, and may hold it too.
                    (self.not_before, self.since) = (held.confirmed, at);
                    Hold::None
                }
            }
            other => other,
        };
    }

    fn begin(&self, first: Answer, last: Answer, at: Moment) -> Hold {
        let place = change(|holds| holds.begin(first.labels, first.frames));
        place.map_or(Hold::Left, |place| {
            let (counted, confirmed, asked) = (Duration::ZERO, at, at);
            let mut held = Held { place, counted, last, confirmed, asked, is_asked: false };
            held.count(at.since(self.since));
            Hold::Held(held)
        })
    }

    /// Nobody answered.
    fn leave(&mut self) {
        change(|holds| holds.unplaced += 1);
        self.hold = Hold::Left;
    }

    /// Something was published, or the worker parked: what held it is over.
    fn end(&mut self, reading: WorkerReading, now: Moment) {
        if let Hold::Held(held) = &mut self.hold {
            // It began after the look before it was seen, and ended after the last answer; tokio says how long it was busy.
            let published = reading.busy.saturating_sub(self.last.busy);
            let seen = held.confirmed.since(self.since);
            held.count(published.min(now.since(self.not_before)).max(seen));
        }
        *self = Self { not_before: self.looked, ..Self::new(reading, now) };
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::thread;

    use super::super::super::labels::{Labelled, Name};
    use super::super::super::symbols::{Detail, Symbolizer};
    use super::super::snapshot;
    use super::*;
    use crate::time::Clock;

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    fn running(busy_millis: u64) -> WorkerReading {
        WorkerReading { busy: Duration::from_millis(busy_millis), park_unpark_count: 2 }
    }

    fn answer(task: u64, frame: usize) -> Answer {
        Answer { thread: 1, task, part: 0, labels: Labels::NONE, frames: Arc::from([frame]) }
    }

    /// The delay kept for a stack of this one frame.
    fn delay(frame: usize) -> Option<Duration> {
        let holds = snapshot();
        let place = Place { labels: Labels::NONE, frames: Arc::from([frame]) };
        holds.places.get(&place).map(|held| held.delay)
    }

    #[test]
    fn one_poll_over_100_ms_is_a_hold_as_long_as_tokio_says() {
        let mut worker = Worker::new(running(0), at(0));
        assert_eq!(worker.look(running(7), at(50)), Wish::Look(at(150)));
        assert_eq!(worker.look(running(7), at(150)), Wish::Ask);
        worker.asked(at(150));
        worker.hear(answer(5, 1), at(160));
        assert_eq!(worker.look(running(7), at(170)), Wish::Look(at(180)));
        assert_eq!(worker.look(running(7), at(180)), Wish::Ask);
        worker.asked(at(180));
        assert_eq!(delay(1), None);
        worker.hear(answer(5, 2), at(200));
        assert_eq!(delay(1), Some(Duration::from_millis(150)));
        assert_eq!(worker.look(running(7), at(200)), Wish::Look(at(200) + ROUND));
        // It began before it was seen at 50, and ended after 200.
        worker.look(running(7 + 190), at(250));
        assert_eq!(delay(1), Some(Duration::from_millis(190)));
        worker.look(running(7 + 300), at(300));
        assert_eq!(delay(1), Some(Duration::from_millis(190)));
    }

    #[test]
    fn polls_of_several_tasks_are_no_hold() {
        let mut worker = Worker::new(running(0), at(0));
        assert_eq!(worker.look(running(0), at(100)), Wish::Ask);
        worker.asked(at(100));
        worker.hear(answer(5, 11), at(120));
        assert_eq!(worker.look(running(0), at(140)), Wish::Ask);
        worker.asked(at(140));
        let of_another_thread = Answer { thread: 2, ..answer(5, 13) };
        worker.hear(of_another_thread, at(150));
        let several = snapshot().several;
        assert_eq!(delay(13), None);
        worker.hear(answer(6, 12), at(160));
        assert!(snapshot().several > several);
        assert_eq!(worker.look(running(0), at(200)), Wish::Look(at(160) + LONG));
        assert_eq!((delay(11), delay(12)), (None, None));
        // The second may turn out to be one.
        for asked in [300, 340] {
            assert_eq!(worker.look(running(0), at(asked)), Wish::Ask);
            worker.asked(at(asked));
            worker.hear(answer(6, 12), at(asked));
        }
        assert_eq!((delay(11), delay(12)), (None, Some(Duration::from_millis(180))));
    }

    /// A worker that the poll of task 5 holds since 0 ms, in the stack of this frame; its last answer came at 140 ms.
    fn held(frame: usize, part: u32) -> Worker {
        let mut worker = Worker::new(running(0), at(0));
        for asked in [100, 140] {
            assert_eq!(worker.look(running(0), at(asked)), Wish::Ask);
            worker.asked(at(asked));
            worker.hear(Answer { part, ..answer(5, frame) }, at(asked));
        }
        assert_eq!(delay(frame), Some(Duration::from_millis(140)));
        worker
    }

    #[test]
    fn a_held_worker_is_asked_again_and_later_polls_do_not_count_for_the_first_stack() {
        for (first, same, next) in [
            (21, answer(5, 22), answer(6, 23)),
            // The same task, polled again.
            (31, Answer { part: 3, ..answer(5, 32) }, Answer { part: 4, ..answer(5, 33) }),
        ] {
            let next_frame = next.frames[0];
            let mut worker = held(first, same.part);
            assert_eq!(worker.look(running(0), at(190)), Wish::Ask);
            worker.asked(at(190));
            assert!(worker.hold.is_asked());
            worker.hear(same, at(190));
            assert_eq!(worker.look(running(0), at(300)), Wish::Ask);
            worker.asked(at(300));
            worker.hear(next.clone(), at(300));
            assert_eq!(delay(first), Some(Duration::from_millis(190)));
            // That one is asked twice like any other.
            assert_eq!(worker.look(running(0), at(310)), Wish::Look(at(400)));
            for asked in [400, 420] {
                assert_eq!(worker.look(running(0), at(asked)), Wish::Ask);
                worker.asked(at(asked));
                worker.hear(next.clone(), at(asked));
            }
            worker.look(running(450), at(450));
            // It began between 190 and 300.
            let wanted = (Duration::from_millis(190), Duration::from_millis(260));
            assert_eq!((delay(first), delay(next_frame)), (Some(wanted.0), Some(wanted.1)));
        }
    }

    #[test]
    fn an_idle_runtime_is_looked_at_twice_a_second_and_one_that_runs_more_often() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime");
        let mut watcher = Watcher::new(runtime.handle(), at(0));
        let metrics = runtime.metrics();
        let sleeps = || metrics.worker_park_unpark_count(0) % 2 == 1;
        let until = |wanted: bool| {
            while sleeps() != wanted {
                thread::yield_now();
            }
        };
        // The tasks of `Watcher::new` may run at first.
        while runtime.metrics().num_alive_tasks() > 0 {
            thread::yield_now();
        }
        until(true);
        watcher.look(at(60_000));
        assert_eq!(watcher.look(at(120_000)), IDLE_ROUND);
        let (end, ended) = std::sync::mpsc::channel::<()>();
        runtime.spawn(async move { ended.recv() });
        until(false);
        assert_eq!(watcher.look(at(121_000)), LONG);
        drop(end);
    }

    #[test]
    fn a_parked_worker_is_never_asked() {
        let parked = WorkerReading { busy: Duration::ZERO, park_unpark_count: 3 };
        let mut worker = Worker::new(parked, at(0));
        for round in 1..100 {
            assert_eq!(worker.look(parked, at(round * 50)), Wish::Nothing);
        }
    }

    #[test]
    fn a_thread_that_hears_no_signal_is_left_alone_in_the_end() {
        let mut worker = Worker::new(running(0), at(0));
        let mut asked = 0;
        for round in 1..200 {
            if worker.look(running(0), at(round * 100)) == Wish::Ask {
                worker.asked(at(round * 100));
                asked += 1;
            }
        }
        assert_eq!(asked, MAX_QUESTIONS);
    }

    #[inline(never)]
    fn blocks_the_worker(duration: Duration) {
        thread::sleep(duration);
        black_box(duration);
    }

    /// Delay and endpoint of the holds in the function above.
    fn found() -> Vec<(Duration, String)> {
        let holds = snapshot();
        let mut symbols = Symbolizer::new(Detail::Functions);
        let mut is_there = |frame: &usize| {
            let address = u64::try_from(*frame).expect("64 bits") - 1;
            symbols
                .compiled_function(address)
                .is_some_and(|(name, _)| name.ends_with("tests::blocks_the_worker"))
        };
        holds
            .places
            .iter()
            .filter(|(place, _)| place.frames.iter().any(&mut is_there))
            .map(|(place, held)| (held.delay, place.labels.endpoint.text()))
            .collect()
    }

    #[test]
    fn every_blocked_worker_is_seen_while_it_is_blocked_also_one_that_never_said_who_it_is() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("held")
            .enable_time()
            .build()
            .expect("a runtime");
        let clock = Clock::start();
        let mut watcher = Watcher::new(runtime.handle(), clock.now().monotonic);
        // Both workers have to park once.
        thread::sleep(Duration::from_millis(200));
        let over = Duration::from_secs(20);
        runtime.spawn(async move {
            let endpoint = Name::of("GET /blocked");
            let _labels = Labelled::enter(|labels| Labels { endpoint, ..labels });
            blocks_the_worker(over);
        });
        runtime.spawn(async move { blocks_the_worker(over) });
        let wanted = Duration::from_millis(300);
        let seen = loop {
            let next = watcher.look(clock.now().monotonic);
            let found = found();
            if found.iter().filter(|(delay, _)| *delay > wanted).count() >= 2 {
                break found;
            }
            assert!(clock.now().monotonic.since(Moment::default()) < over, "found {found:?}");
            thread::sleep(next);
        };
        runtime.shutdown_background();
        for endpoint in ["GET /blocked", ""] {
            assert!(seen.iter().any(|(_, of)| of == endpoint), "{endpoint:?} in {seen:?}");
        }
        println!("seen after {:?}", clock.now().monotonic);
    }

    #[test]
    #[ignore = "a measurement: what watching an idle runtime costs"]
    fn what_watching_costs() {
        let watched = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(8)
            .build()
            .expect("a runtime");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let clock = Clock::start();
        let mut watcher = Watcher::new(watched.handle(), clock.now().monotonic);
        let start = super::super::super::sys::thread_cpu_time();
        let mut looks = 0;
        runtime.block_on(async {
            while clock.now().monotonic < at(5_000) {
                looks += 1;
                let next = watcher.look(clock.now().monotonic);
                tokio::time::sleep(next).await;
            }
        });
        let cpu = super::super::super::sys::thread_cpu_time() - start;
        println!("{looks} looks in 5 s: {cpu:?}");
    }
}
