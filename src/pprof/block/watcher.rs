//! Sees polls that hold a worker, and asks the worker's thread where it is.
//!
//! In: tokio's busy time and park count of each worker. Out: holds in the profile. Never: a signal to a thread while no
//! worker is held, and none to a worker that is held for less than [`LONG`].
//!
//! A worker that runs, and publishes nothing, is in one poll, or in a row of polls: tokio publishes after 61 of them. So
//! the thread is asked twice which task it polls, [`CHECK`] apart; another task at the second time is no hold.
//!
//! The question is a signal, which ends some waits of the kernel early (EINTR). `std` waits again after it; so does the
//! kernel where the wait has no time limit (SA_RESTART). C code that sleeps in a worker and trusts its sleep may see a
//! shorter one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Id, RuntimeMetrics};

use super::super::labels::Labels;
use super::super::ring::Head;
use super::super::sys::signals::Questions;
use super::{Place, change, workers};
use crate::signals::saturation::WorkerReading;
use crate::time::Moment;

/// A worker is held after this.
const LONG: Duration = Duration::from_millis(100);
/// Between two looks.
const ROUND: Duration = Duration::from_millis(50);
/// The same while nothing at all happens.
const QUIET_ROUND: Duration = Duration::from_millis(100);
/// Between the questions to a worker that may be held.
const CHECK: Duration = Duration::from_millis(20);
/// Questions without an answer before a hold is given up: a thread that waits inside the kernel without hearing signals,
/// such as on a disk, answers none.
const MAX_QUESTIONS: u32 = 50;

/// Watches the workers of one runtime.
#[derive(Debug)]
pub struct Watcher {
    runtime: Id,
    metrics: RuntimeMetrics,
    workers: Vec<Worker>,
    /// Threads that may be the worker whose thread is not known, as of the last look: one that had just been started
    /// might not have set up its thread-locals.
    candidates: HashSet<i32>,
    /// Threads asked since answers were last heard. Those of others are for another watcher, which will ask again.
    asked: HashSet<i32>,
    /// Threads that said that they are no worker that we look for.
    strangers: HashSet<i32>,
}

impl Watcher {
    /// Watches the runtime of `handle`, on which one task runs once.
    #[must_use]
    pub fn new(handle: &Handle, now: Moment) -> Self {
        // Tells the name of this runtime's threads.
        handle.spawn(async { workers::note_this_thread() });
        let metrics = handle.metrics();
        let worker = |index| Worker::new(read(&metrics, index), now);
        let workers = (0..metrics.num_workers()).map(worker).collect();
        Self {
            runtime: handle.id(),
            metrics,
            workers,
            candidates: HashSet::new(),
            asked: HashSet::new(),
            strangers: HashSet::new(),
        }
    }

    /// Looks at all workers, and says when to look again. Some 20 ns for each worker while none is held.
    pub fn look(&mut self, now: Moment) -> Duration {
        if self.workers.iter().any(|worker| worker.hold.is_asked()) {
            self.hear(now);
        }
        let mut next = QUIET_ROUND;
        let mut unknown = false;
        for index in 0..self.workers.len() {
            let reading = read(&self.metrics, index);
            if reading != self.workers[index].last {
                next = next.min(ROUND);
            }
            let wish = self.workers[index].look(reading, now);
            if let Wish::Ask = wish {
                let thread = workers::thread_of(self.runtime, index);
                unknown |= thread.is_none();
                self.workers[index].asked(now);
                self.ask(&thread.into_iter().collect::<Vec<_>>());
            }
            next = next.min(wish.until(now));
        }
        if unknown {
            self.ask_candidates();
        } else if !self.workers.iter().any(|worker| worker.hold.is_open()) {
            self.candidates.clear();
            self.strangers.clear();
        }
        next
    }

    fn ask_candidates(&mut self) {
        let now = workers::candidates(self.runtime);
        let settled = self.candidates.intersection(&now);
        let unheard = settled.filter(|thread| !self.strangers.contains(thread));
        self.ask(&unheard.copied().collect::<Vec<_>>());
        self.candidates = now;
    }

    fn ask(&mut self, threads: &[i32]) {
        if threads.is_empty() {
            return;
        }
        // Another profiler that has the signal must not see ours: nobody is asked then.
        let Ok(questions) = Questions::open() else {
            return;
        };
        for thread in threads {
            // One that has ended has nothing to say.
            if questions.ask(*thread).is_ok() {
                self.asked.insert(*thread);
            }
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
        let poll = head.poll;
        let index = poll.and_then(|poll| usize::try_from(poll.worker).ok());
        let known = index.and_then(|index| workers::thread_of(self.runtime, index));
        let Some((index, poll)) =
            index.zip(poll).filter(|_| known.is_none_or(|known| known == head.thread))
        else {
            // It is a worker no more, or of another runtime.
            workers::forget(head.thread);
            self.strangers.insert(head.thread);
            return;
        };
        // A thread that is only guessed at must poll a task: a parked worker of another runtime has this index too.
        if (known.is_none() && poll.task == 0) || index >= self.workers.len() {
            self.strangers.insert(head.thread);
            return;
        }
        let (thread, labels) = (head.thread, head.labels);
        let answer = Answer { thread, task: poll.task, labels, frames };
        if self.workers[index].hear(answer, now) == Verdict::SeveralTasks && known.is_none() {
            // That worker may be another runtime's: the next may be ours.
            self.strangers.insert(thread);
            self.workers[index].ask_others(now);
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
    labels: Labels,
    frames: Arc<[usize]>,
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
    /// One poll holds the worker; so much of it is in the profile.
    Held { place: Place, counted: Duration },
    /// Several polls, or nobody answered: left alone until something is published.
    Left,
}

impl Hold {
    /// Whether questions are to follow.
    const fn is_open(&self) -> bool {
        self.is_asked() || matches!(self, Self::Answered { .. })
    }

    const fn is_asked(&self) -> bool {
        matches!(self, Self::Asked { .. } | Self::Checked { .. })
    }
}

/// What two answers showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// One task, or it is too soon to tell.
    Open,
    SeveralTasks,
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
            Self::Nothing => QUIET_ROUND,
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
            Hold::Held { place, counted } => {
                change(|holds| holds.extend(place, age.saturating_sub(*counted)));
                *counted = age.max(*counted);
                Wish::Look(now + ROUND)
            }
            Hold::Left => Wish::Nothing,
        }
    }

    /// The thread was asked.
    fn asked(&mut self, at: Moment) {
        self.hold = match std::mem::replace(&mut self.hold, Hold::None) {
            Hold::None => Hold::Asked { at, times: 1 },
            Hold::Asked { times, .. } => Hold::Asked { at, times: times + 1 },
            Hold::Answered { first, .. } => Hold::Checked { at, first, times: 1 },
            Hold::Checked { first, times, .. } => Hold::Checked { at, first, times: times + 1 },
            settled => settled,
        };
    }

    fn hear(&mut self, answer: Answer, at: Moment) -> Verdict {
        let (hold, verdict) = match std::mem::replace(&mut self.hold, Hold::Left) {
            Hold::Asked { .. } => (Hold::Answered { at, first: answer }, Verdict::Open),
            Hold::Checked { first, .. } if first.thread == answer.thread => {
                if first.task == answer.task {
                    let place = change(|holds| holds.begin(first.labels, first.frames));
                    let held = |place| Hold::Held { place, counted: Duration::ZERO };
                    (place.map_or(Hold::Left, held), Verdict::Open)
                } else {
                    (Hold::Left, Verdict::SeveralTasks)
                }
            }
            other => (other, Verdict::Open),
        };
        self.hold = hold;
        verdict
    }

    /// The thread that answered was the wrong one.
    fn ask_others(&mut self, at: Moment) {
        self.hold = Hold::Asked { at, times: 1 };
    }

    /// Nobody answered.
    fn leave(&mut self) {
        change(|holds| holds.unplaced += 1);
        self.hold = Hold::Left;
    }

    /// Something was published, or the worker parked: what held it is over.
    fn end(&mut self, reading: WorkerReading, now: Moment) {
        if let Hold::Held { place, counted } = &self.hold {
            // It began after the look before it was seen, and ended after the last look; tokio says how long it was busy.
            let published = reading.busy.saturating_sub(self.last.busy);
            let all = published.min(now.since(self.not_before)).max(*counted);
            let all = all.max(self.looked.since(self.since));
            change(|holds| holds.extend(place, all.saturating_sub(*counted)));
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
        Answer { thread: 1, task, labels: Labels::NONE, frames: Arc::from([frame]) }
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
        assert_eq!(worker.look(running(7), at(200)), Wish::Look(at(200) + ROUND));
        assert_eq!(delay(1), Some(Duration::from_millis(150)));
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
        assert_eq!(worker.hear(of_another_thread, at(150)), Verdict::Open);
        assert_eq!(delay(13), None);
        assert_eq!(worker.hear(answer(6, 12), at(160)), Verdict::SeveralTasks);
        assert_eq!(worker.look(running(0), at(500)), Wish::Nothing);
        assert_eq!((delay(11), delay(12)), (None, None));
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
