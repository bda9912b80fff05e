//! One CPU sampler for all who want samples.
//!
//! In: one timer per thread on that thread's CPU clock. Out: to each [`Subscription`] what was sampled since it last asked,
//! with the CPU time of each thread by the thread's own clock. Never: a cost while nobody is subscribed, nor more memory
//! than [`MAX_STACKS`] stacks for each subscriber.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fs, mem, thread};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::CaptureError;
use super::labels::Labels;
use super::mappings::{self, CodeMapping};
use super::ring::{Head, MAX_FRAMES};
use super::sys::signals::{self, Sampling, ThreadTimer};
use super::sys::{cpu_time_of_process, cpu_time_of_thread};
use crate::signals::allocator::Jemalloc;

/// CPU time between two samples. 99 Hz is no divisor of common timer rates, so that samples do not march in step with
/// periodic work.
pub(super) const PERIOD: Duration = Duration::from_nanos(1_000_000_000 / 99);

/// How often samples are collected and new threads looked for.
const ROUND: Duration = Duration::from_millis(100);

/// The longest between two rounds while nobody waits for a profile.
const QUIET_ROUND: Duration = Duration::from_secs(10);

/// Different stacks kept for one subscriber.
const MAX_STACKS: usize = 1 << 14;

/// Of those, stacks that are kept apart by trace; later ones have no trace. Traces are many, stacks are few.
const MAX_TRACED_STACKS: usize = MAX_STACKS / 4;

/// Threads told apart for one subscriber; those after them are one, with the id [`OTHERS`].
const MAX_THREADS: usize = 1 << 12;

/// No thread has this id.
const OTHERS: i32 = 0;

/// Who may listen at once.
const MAX_SUBSCRIBERS: usize = 16;

/// Threads that have a timer. Each takes one of the pending signals that all processes of the user share; the CPU time of
/// threads beyond is in the profile without stacks.
const MAX_TIMERS: usize = 1_024;

/// To read the clock of a thread takes about a microsecond: a hundredth of a core at most.
const ROUND_PER_THREAD: Duration = Duration::from_micros(100);

/// Why a sample is not in a profile, or not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The ring between handler and collector was full.
    RingFull,
    /// More different stacks than are kept.
    StacksFull,
    /// The thread had no timer: the user's limit of pending signals, too many threads, or another profiler took the signal.
    NoTimer,
    /// The thread ended before it was seen, or after it was last seen.
    ThreadUnseen,
    /// In the profile with the function alone: no frame pointers there, or the kernel may not read the stack.
    CallersUnknown,
    /// In the profile without its root: deeper than is kept.
    Cut,
    /// In the profile without its root: the frame pointers ended in the middle of this program's own code.
    WalkBroken,
    /// In the profile without its trace, for lack of room.
    Untraced,
}

impl Loss {
    const ALL: [Self; 8] = [
        Self::RingFull,
        Self::StacksFull,
        Self::NoTimer,
        Self::ThreadUnseen,
        Self::CallersUnknown,
        Self::Cut,
        Self::WalkBroken,
        Self::Untraced,
    ];

    /// As the label `reason` has it.
    const fn reason(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::StacksFull => "stacks_full",
            Self::NoTimer => "no_timer",
            Self::ThreadUnseen => "thread_unseen",
            Self::CallersUnknown => "callers_unknown",
            Self::Cut => "stack_cut",
            Self::WalkBroken => "walk_broken",
            Self::Untraced => "untraced",
        }
    }
}

/// Losses of this process since its start, in the order of [`Loss::ALL`].
static LOST: [AtomicU64; Loss::ALL.len()] = [const { AtomicU64::new(0) }; Loss::ALL.len()];

/// Samples that were lost or are not whole, by reason, since the start of the process. A sample that several captures
/// lose counts for each.
pub fn samples_lost() -> impl Iterator<Item = (&'static str, u64)> {
    Loss::ALL
        .into_iter()
        .zip(&LOST)
        .map(|(loss, lost)| (loss.reason(), lost.load(Ordering::Relaxed)))
}

/// Lost samples by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost([u64; Loss::ALL.len()]);

impl Lost {
    fn add(&mut self, loss: Loss, samples: u64) {
        self.0[loss as usize] += samples;
    }

    fn count_for_process(&self) {
        for (total, lost) in LOST.iter().zip(self.0) {
            total.fetch_add(lost, Ordering::Relaxed);
        }
    }

    /// What was lost at all.
    pub(super) fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = Loss::ALL.into_iter().zip(self.0);
        all.filter(|(_, lost)| *lost > 0).map(|(loss, lost)| (loss.reason(), lost))
    }
}

/// What makes two samples the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The kernel's thread id.
    pub thread: i32,
    /// What the thread worked on.
    pub labels: Labels,
    /// The interrupted instruction, then return addresses.
    pub frames: Arc<[usize]>,
}

/// A thread's part of a slice.
#[derive(Clone, Debug)]
pub(super) struct Share {
    /// The thread's name when it was first seen.
    pub name: Arc<str>,
    /// Its CPU time in the slice, by its own clock.
    pub cpu: Duration,
}

/// What was sampled over some time.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    /// Expiries of the thread's timer, so many periods of its CPU time.
    pub(super) stacks: HashMap<Key, u64>,
    /// By the kernel's thread id: the threads that used CPU time.
    pub(super) threads: HashMap<i32, Share>,
    /// CPU time of the process: also of threads that ended before they were seen.
    pub(super) cpu: Duration,
    /// What is missing.
    pub(super) lost: Lost,
    traced_stacks: usize,
}

impl Slice {
    fn add(&mut self, head: &Head, frames: &Arc<[usize]>) {
        let weight = u64::from(head.weight);
        let thread = self.id_of(head.thread);
        let mut key = Key { thread, labels: head.labels, frames: frames.clone() };
        if key.labels.trace != 0
            && self.traced_stacks >= MAX_TRACED_STACKS
            && !self.stacks.contains_key(&key)
        {
            key.labels.trace = 0;
            self.lose(Loss::Untraced, weight);
        }
        let full = self.stacks.len() >= MAX_STACKS;
        if let Some(count) = self.stacks.get_mut(&key) {
            *count += weight;
        } else if full {
            self.lose(Loss::StacksFull, weight);
        } else {
            self.traced_stacks += usize::from(key.labels.trace != 0);
            self.stacks.insert(key, weight);
        }
    }

    fn add_cpu(&mut self, thread: i32, name: &Arc<str>, cpu: Duration) {
        let id = self.id_of(thread);
        let name = || if id == OTHERS { "other".into() } else { name.clone() };
        let share =
            self.threads.entry(id).or_insert_with(|| Share { name: name(), cpu: Duration::ZERO });
        share.cpu += cpu;
    }

    fn id_of(&self, thread: i32) -> i32 {
        let is_kept = self.threads.len() < MAX_THREADS || self.threads.contains_key(&thread);
        if is_kept { thread } else { OTHERS }
    }

    /// Adds what was sampled after it.
    #[cfg(feature = "agent")]
    pub(super) fn append(&mut self, later: &Self) {
        for (key, count) in &later.stacks {
            *self.stacks.entry(key.clone()).or_default() += count;
        }
        for (thread, share) in &later.threads {
            let known = self.threads.entry(*thread);
            let name = share.name.clone();
            known.or_insert(Share { name, cpu: Duration::ZERO }).cpu += share.cpu;
        }
        self.cpu += later.cpu;
        for (sum, more) in self.lost.0.iter_mut().zip(later.lost.0) {
            *sum += more;
        }
    }

    /// What it takes in memory, in bytes.
    #[cfg(feature = "agent")]
    pub(crate) fn bytes(&self) -> usize {
        let frames: usize = self.stacks.keys().map(|key| size_of_val(&*key.frames)).sum();
        // A hash table is at most 7/8 full and grows to twice its size.
        let entries = self.stacks.capacity() * size_of::<(Key, u64)>();
        let threads = self.threads.capacity() * size_of::<(i32, Share)>();
        frames + (entries + threads) * 8 / 7
    }

    /// For this subscriber alone; what all lose is counted by the sampler.
    fn lose(&mut self, loss: Loss, samples: u64) {
        let mut lost = Lost::default();
        lost.add(loss, samples);
        lost.count_for_process();
        self.lost.add(loss, samples);
    }
}

/// How soon new threads are found and samples collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Somebody waits for the profile.
    Prompt,
    /// The sampler runs for good and must cost next to nothing while the process is idle.
    #[cfg(feature = "agent")]
    Background,
}

/// Samples from now on. Dropping it ends them; the sampler ends with the last subscription.
#[derive(Debug)]
pub(crate) struct Subscription(u64);

impl Subscription {
    /// Starts the sampler if it does not run.
    ///
    /// # Errors
    /// [`CaptureError::CpuInUse`] while another profiler has the signal, [`CaptureError::TooManyCaptures`] if too many are
    /// subscribed, [`CaptureError::Cpu`] if the kernel refuses the signal handler, [`CaptureError::Thread`] without a thread.
    pub(crate) fn start(pace: Pace) -> Result<Self, CaptureError> {
        let mut running = SAMPLER.lock();
        let sampler = match &mut *running {
            Some(sampler) => {
                // What came before is not part of this subscription. If another profiler has the signal meanwhile, this
                // takes the timers back.
                sampler.round();
                sampler.sampling.keep_handler()?;
                sampler
            }
            None => running.insert(Sampler::start()?),
        };
        sampler.subscribe(pace).map(Self)
    }

    /// What was sampled since the start or the last call.
    pub(crate) fn take(&self) -> Slice {
        let mut running = SAMPLER.lock();
        let Some(sampler) = &mut *running else {
            return Slice::default();
        };
        sampler.round();
        let subscriber = sampler.subscribers.get_mut(&self.0);
        subscriber.map(|subscriber| mem::take(&mut subscriber.slice)).unwrap_or_default()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut running = SAMPLER.lock();
        if let Some(sampler) = &mut *running {
            sampler.subscribers.remove(&self.0);
            if sampler.subscribers.is_empty() {
                *running = None;
            }
        }
    }
}

/// Runs while somebody is subscribed.
static SAMPLER: Mutex<Option<Sampler>> = Mutex::new(None);

#[derive(Debug)]
struct Sampler {
    /// Before `sampling`: no timer outlives it.
    threads: HashMap<i32, Watched>,
    sampling: Sampling,
    cpu: Duration,
    /// CPU time without a timer that is no whole period yet.
    without_timer: Duration,
    /// CPU time since the start of all threads, also of those that nobody saw, and of those seen.
    of_process: Duration,
    of_threads: Duration,
    /// Whole periods of the difference that are counted.
    unseen: u128,
    /// This program's code, without that of its libraries.
    own_code: Range<usize>,
    last_round: Instant,
    /// CPU time per time between the last two rounds.
    busy_cores: f64,
    subscribers: HashMap<u64, Subscriber>,
    next_subscriber: u64,
    /// Its end ends the thread; a message brings the next round forward.
    wake: mpsc::Sender<()>,
}

#[derive(Debug)]
struct Subscriber {
    pace: Pace,
    slice: Slice,
}

#[derive(Debug)]
struct Watched {
    name: Arc<str>,
    timer: Option<ThreadTimer>,
    /// At the last round.
    cpu: Duration,
}

impl Sampler {
    fn start() -> Result<Self, CaptureError> {
        let sampling = Sampling::start()?;
        let (wake, woken) = mpsc::channel();
        thread::Builder::new()
            .name("headroom-cpu".to_owned())
            .spawn(move || {
                Jemalloc::set_this_thread_apart();
                let mut wait = ROUND;
                while woken.recv_timeout(wait) != Err(RecvTimeoutError::Disconnected) {
                    if let Some(sampler) = &mut *SAMPLER.lock() {
                        sampler.round();
                        wait = sampler.until_next_round();
                    }
                }
            })
            .map_err(CaptureError::Thread)?;
        let mut sampler = Self {
            threads: HashMap::new(),
            sampling,
            cpu: cpu_time_of_process(),
            without_timer: Duration::ZERO,
            of_process: Duration::ZERO,
            of_threads: Duration::ZERO,
            unseen: 0,
            own_code: own_code(),
            last_round: Instant::now(),
            busy_cores: 0.0,
            subscribers: HashMap::new(),
            next_subscriber: 0,
            wake,
        };
        // Nobody is subscribed yet: this sets where the clocks start.
        sampler.look_at_threads();
        sampler.cpu = cpu_time_of_process();
        (sampler.without_timer, sampler.of_threads) = (Duration::ZERO, Duration::ZERO);
        Ok(sampler)
    }

    fn subscribe(&mut self, pace: Pace) -> Result<u64, CaptureError> {
        if self.subscribers.len() >= MAX_SUBSCRIBERS {
            return Err(CaptureError::TooManyCaptures);
        }
        self.next_subscriber += 1;
        let subscriber = Subscriber { pace, slice: Slice::default() };
        self.subscribers.insert(self.next_subscriber, subscriber);
        // Its thread may be waiting for long. Without a thread there is no sampler.
        let _ = self.wake.send(());
        Ok(self.next_subscriber)
    }

    fn slices(&mut self) -> impl Iterator<Item = &mut Slice> {
        self.subscribers.values_mut().map(|subscriber| &mut subscriber.slice)
    }

    fn until_next_round(&self) -> Duration {
        let prompt = self.subscribers.values().any(|subscriber| subscriber.pace == Pace::Prompt);
        until_next_round(prompt, self.busy_cores, self.threads.len())
    }

    /// Gives all subscribers what came since the last round.
    fn round(&mut self) {
        self.look_at_threads();
        let cpu = cpu_time_of_process();
        let used = cpu.saturating_sub(mem::replace(&mut self.cpu, cpu));
        let elapsed = mem::replace(&mut self.last_round, Instant::now()).elapsed();
        self.busy_cores = used.as_secs_f64() / elapsed.as_secs_f64().max(0.001);
        let mut lost = Lost::default();
        self.sampling.take(|head, frames| {
            let weight = u64::from(head.weight);
            match frames.len() {
                0 | 1 => lost.add(Loss::CallersUnknown, weight),
                MAX_FRAMES => lost.add(Loss::Cut, weight),
                _ if is_broken(head.thread, frames, &self.own_code) => {
                    lost.add(Loss::WalkBroken, weight);
                }
                _ => {}
            }
            let frames: Arc<[usize]> = frames.into();
            for subscriber in self.subscribers.values_mut() {
                subscriber.slice.add(&head, &frames);
            }
        });
        lost.add(Loss::RingFull, self.sampling.take_dropped());
        let periods = self.without_timer.as_nanos() / PERIOD.as_nanos();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        self.without_timer = self.without_timer.saturating_sub(PERIOD.saturating_mul(periods));
        lost.add(Loss::NoTimer, periods.into());
        self.of_process += used;
        // The clocks are not read at one time: what one sum lacks the next has.
        let unseen = self.of_process.saturating_sub(self.of_threads).as_nanos() / PERIOD.as_nanos();
        let new = unseen.saturating_sub(self.unseen);
        self.unseen += new;
        lost.add(Loss::ThreadUnseen, u64::try_from(new).unwrap_or(u64::MAX));
        lost.count_for_process();
        for slice in self.slices() {
            slice.cpu += used;
            for (of_slice, of_round) in slice.lost.0.iter_mut().zip(lost.0) {
                *of_slice += of_round;
            }
        }
    }

    /// Reads the clock of every thread, gives a timer to those that have none, and takes those of ended threads back.
    fn look_at_threads(&mut self) {
        let alive: HashSet<i32> = threads_of_process().collect();
        self.threads.retain(|thread, _| alive.contains(thread));
        let may_arm = self.sampling.keep_handler().is_ok();
        let mut armed = self.threads.values().filter(|watched| watched.timer.is_some()).count();
        for thread in alive {
            let Some(cpu) = cpu_time_of_thread(thread) else {
                continue;
            };
            if self.threads.get(&thread).is_some_and(|watched| cpu < watched.cpu) {
                // The id was given to a new thread.
                let ended = self.threads.remove(&thread);
                armed -= usize::from(ended.is_some_and(|ended| ended.timer.is_some()));
            }
            let watched = self.threads.entry(thread).or_insert_with(|| Watched {
                name: thread_name(thread).into(),
                timer: None,
                cpu: Duration::ZERO,
            });
            let used = cpu - mem::replace(&mut watched.cpu, cpu);
            self.of_threads += used;
            if watched.timer.is_none() {
                self.without_timer += used;
            }
            if !may_arm {
                watched.timer = None;
            } else if watched.timer.is_none() && armed < MAX_TIMERS {
                // It ended in between, or the limit of pending signals is reached: tried again in the next round.
                watched.timer = ThreadTimer::start(thread, PERIOD).ok();
                armed += usize::from(watched.timer.is_some());
            }
            if used > Duration::ZERO {
                for subscriber in self.subscribers.values_mut() {
                    subscriber.slice.add_cpu(thread, &watched.name, used);
                }
            }
        }
    }
}

/// Subscribers in the background come round themselves: until they do, the ring must not get more than half full.
fn until_next_round(prompt: bool, busy_cores: f64, threads: usize) -> Duration {
    let samples_per_second = busy_cores / PERIOD.as_secs_f64();
    let half_full = (signals::SAMPLES / 2) as f64 / samples_per_second.max(1.0);
    let half_full = Duration::from_secs_f64(half_full).clamp(ROUND, QUIET_ROUND);
    let threads = u32::try_from(threads).unwrap_or(u32::MAX);
    let shortest = ROUND_PER_THREAD.saturating_mul(threads).max(ROUND);
    if prompt { shortest.min(half_full) } else { half_full }
}

/// The addresses of this program's code. None where they cannot tell a stack's root from its middle: a program that is
/// linked with libc as a whole has the root of its threads in its own code.
fn own_code() -> Range<usize> {
    let mappings = mappings::of_this_process();
    let index = |address| usize::try_from(address).unwrap_or(0);
    let range = |mapping: &CodeMapping| index(mapping.start)..index(mapping.end);
    let code = mappings.first().map(range).unwrap_or_default();
    if code.contains(&(libc::pthread_create as *const ()).addr()) { 0..0 } else { code }
}

/// Whether a stack ends in the middle of the program's own code. libc calls a thread's first function, so that a whole stack
/// ends in libc; only the main thread may have its root in the program.
fn is_broken(thread: i32, frames: &[usize], own_code: &Range<usize>) -> bool {
    let is_main = u32::try_from(thread) == Ok(std::process::id());
    !is_main && frames.len() > 1 && frames.last().is_some_and(|root| own_code.contains(root))
}

/// The kernel's ids of this process's threads.
pub(super) fn threads_of_process() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// As the kernel knows it: at most 15 bytes.
pub(super) fn thread_name(thread: i32) -> String {
    let name = fs::read_to_string(format!("/proc/self/task/{thread}/comm"));
    name.unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::sys::{in_its_own_process, thread_cpu_time};
    use super::*;

    fn head(trace: u128) -> Head {
        Head { thread: 1, weight: 2, labels: Labels { trace, ..Labels::NONE }, poll: None }
    }

    #[test]
    fn traces_are_left_out_before_stacks_are() {
        let mut slice = Slice::default();
        let frames: Arc<[usize]> = Arc::from([1]);
        let traces = u128::try_from(MAX_TRACED_STACKS + 3).expect("small");
        for trace in 1..=traces {
            slice.add(&head(trace), &frames);
        }
        slice.add(&head(1), &frames);
        assert_eq!(slice.stacks.len(), MAX_TRACED_STACKS + 1);
        assert_eq!(slice.lost.by_reason().collect::<Vec<_>>(), [("untraced", 6)]);
        assert_eq!(slice.stacks[&Key { thread: 1, labels: Labels::NONE, frames }], 6);
    }

    #[test]
    fn every_reason_has_its_own_count() {
        for (index, loss) in Loss::ALL.into_iter().enumerate() {
            let mut lost = Lost::default();
            lost.add(loss, 1);
            assert_eq!((loss as usize, lost.0[index]), (index, 1));
            assert_eq!(lost.by_reason().collect::<Vec<_>>(), [(loss.reason(), 1)]);
        }
    }

    #[test]
    fn rounds_are_as_seldom_as_threads_are_many_and_as_frequent_as_the_ring_needs() {
        let millis =
            |prompt, busy_cores, threads| until_next_round(prompt, busy_cores, threads).as_millis();
        assert_eq!((millis(true, 0.0, 10), millis(false, 0.0, 10)), (100, 10_000));
        assert_eq!((millis(true, 0.0, 5_000), millis(true, 200.0, 5_000)), (500, 100));
        assert_eq!(millis(false, 10.0, 10), 1_034);
    }

    #[test]
    fn a_stack_that_ends_in_our_own_code_is_broken() {
        let code = 100..200;
        for (thread, frames, broken) in [
            (1, &[150, 150][..], true),
            (1, &[300, 150][..], true),
            (1, &[150, 300][..], false),
            (1, &[150][..], false),
            (std::process::id().cast_signed(), &[150, 150][..], false),
        ] {
            assert_eq!(is_broken(thread, frames, &code), broken, "{thread} {frames:?}");
        }
    }

    /// Samples of the subscription lost for that reason.
    fn lost(slice: &Slice, of: Loss) -> u64 {
        slice.lost.0[of as usize]
    }

    fn burn(cpu: Duration) {
        let end = thread_cpu_time() + cpu;
        while thread_cpu_time() < end {
            (0..2_000_u64).for_each(|number| {
                std::hint::black_box(number);
            });
        }
    }

    #[test]
    fn what_a_thread_used_that_ended_unseen_is_counted_and_whole_stacks_are_not() {
        in_its_own_process("pprof::sampler::tests::own_process_unseen");
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own: the losses are the process's"]
    fn own_process_unseen() {
        burn(Duration::from_millis(300));
        let subscription = Subscription::start(Pace::Prompt).expect("no other profiler here");
        let burning = thread::spawn(|| burn(Duration::from_millis(300)));
        burning.join().expect("it ends");
        let seen = subscription.take();
        // 30 samples, of which the last round sees all but the end.
        assert!(seen.stacks.values().sum::<u64>() >= 10, "{seen:?}");
        assert_eq!(lost(&seen, Loss::WalkBroken), 0, "{seen:?}");
        // Neither what was used before the subscription.
        assert!(lost(&seen, Loss::NoTimer) < 20, "{seen:?}");

        // Under the lock nobody looks.
        let running = SAMPLER.lock();
        thread::spawn(|| burn(Duration::from_millis(100))).join().expect("it ends");
        drop(running);
        let unseen = lost(&subscription.take(), Loss::ThreadUnseen);
        assert!((9..=12).contains(&unseen), "{unseen}");
    }

    #[test]
    fn timers_and_subscribers_are_bounded() {
        in_its_own_process("pprof::sampler::tests::own_process_bounds");
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own: the timers are the process's"]
    fn own_process_bounds() {
        let (end, ended) = mpsc::channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        let threads: Vec<_> = (0..MAX_TIMERS + 20)
            .map(|_| {
                let ended = ended.clone();
                let parked = move || assert!(ended.lock().recv().is_err());
                thread::Builder::new().stack_size(1 << 16).spawn(parked).expect("a thread")
            })
            .collect();
        let subscription = Subscription::start(Pace::Prompt).expect("no other profiler here");
        subscription.take();
        let (armed, known) = SAMPLER.lock().as_ref().map_or((0, 0), |sampler| {
            let armed = sampler.threads.values().filter(|watched| watched.timer.is_some());
            (armed.count(), sampler.threads.len())
        });
        assert!(known > MAX_TIMERS && armed <= MAX_TIMERS && armed > 0, "{armed} of {known}");
        drop(end);
        threads.into_iter().for_each(|thread| thread.join().expect("it waits and ends"));

        let start = || Subscription::start(Pace::Background);
        let others: Vec<_> = (1..MAX_SUBSCRIBERS).map(|_| start().expect("few listen")).collect();
        assert!(matches!(start(), Err(CaptureError::TooManyCaptures)));
        drop(others);
        start().expect("few listen again");
    }

    #[test]
    fn threads_beyond_the_limit_are_one() {
        let mut slice = Slice::default();
        let (name, cpu) = (Arc::from("worker"), Duration::from_millis(1));
        let last = i32::try_from(MAX_THREADS).expect("small");
        for thread in 1..=last + 2 {
            slice.add_cpu(thread, &name, cpu);
        }
        slice.add(&Head { thread: last + 1, ..head(0) }, &Arc::from([1]));
        slice.add(&Head { thread: last, ..head(0) }, &Arc::from([1]));
        assert_eq!(slice.threads.len(), MAX_THREADS + 1);
        assert_eq!((&*slice.threads[&OTHERS].name, slice.threads[&OTHERS].cpu), ("other", cpu * 2));
        let mut threads: Vec<_> = slice.stacks.keys().map(|key| key.thread).collect();
        threads.sort_unstable();
        assert_eq!(threads, [OTHERS, last]);
    }

    #[test]
    fn stacks_beyond_the_limit_are_counted_as_lost() {
        let mut slice = Slice::default();
        for frame in 0..MAX_STACKS + 2 {
            slice.add(&head(0), &Arc::from([frame]));
        }
        assert_eq!(slice.stacks.len(), MAX_STACKS);
        assert_eq!(slice.lost.by_reason().collect::<Vec<_>>(), [("stacks_full", 4)]);
        let of_process = samples_lost().find(|(reason, _)| *reason == "stacks_full");
        assert!(of_process.is_some_and(|(_, lost)| lost >= 4));
    }
}
