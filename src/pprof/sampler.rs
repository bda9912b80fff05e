//! One CPU sampler for all who want samples.
//!
//! In: one timer per thread on that thread's CPU clock. Out: to each [`Subscription`] what was sampled since it last asked,
//! with the CPU time of each thread by the thread's own clock. Never: a cost while nobody is subscribed, nor more memory
//! than [`MAX_STACKS`] stacks for each subscriber.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fs, mem, thread};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::CaptureError;
use super::labels::Labels;
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

/// Why a sample is not in a profile, or not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The ring between handler and collector was full.
    RingFull,
    /// More different stacks than are kept.
    StacksFull,
    /// The thread had no timer: the user's limit of pending signals, or another profiler took the signal.
    NoTimer,
    /// In the profile with the function alone: no frame pointers there, or the kernel may not read the stack.
    CallersUnknown,
    /// In the profile without its root: deeper than is kept.
    Cut,
}

impl Loss {
    const ALL: [Self; 5] =
        [Self::RingFull, Self::StacksFull, Self::NoTimer, Self::CallersUnknown, Self::Cut];

    /// As the label `reason` has it.
    const fn reason(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::StacksFull => "stacks_full",
            Self::NoTimer => "no_timer",
            Self::CallersUnknown => "callers_unknown",
            Self::Cut => "stack_cut",
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
    /// Samples whose trace was left out for lack of room.
    pub(super) untraced: u64,
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
            self.untraced += weight;
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
        self.untraced += later.untraced;
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
    Background,
}

/// Samples from now on. Dropping it ends them; the sampler ends with the last subscription.
#[derive(Debug)]
pub(crate) struct Subscription(u64);

impl Subscription {
    /// Starts the sampler if it does not run.
    ///
    /// # Errors
    /// [`CaptureError::CpuInUse`] while another profiler has the signal or too many are subscribed,
    /// [`CaptureError::Cpu`] if the kernel refuses the signal handler, [`CaptureError::Thread`] without a thread.
    pub(crate) fn start(pace: Pace) -> Result<Self, CaptureError> {
        let mut running = SAMPLER.lock();
        let sampler = match &mut *running {
            Some(sampler) => {
                // What came before is not part of this subscription.
                sampler.round();
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
                Jemalloc::leave_this_thread_uncounted();
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
            last_round: Instant::now(),
            busy_cores: 0.0,
            subscribers: HashMap::new(),
            next_subscriber: 0,
            wake,
        };
        // Nobody is subscribed yet: this sets where the clocks start.
        sampler.look_at_threads();
        sampler.cpu = cpu_time_of_process();
        Ok(sampler)
    }

    fn subscribe(&mut self, pace: Pace) -> Result<u64, CaptureError> {
        if self.subscribers.len() >= MAX_SUBSCRIBERS {
            return Err(CaptureError::CpuInUse);
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

    /// Subscribers in the background come round themselves: until they do, the ring must not get more than half full.
    fn until_next_round(&self) -> Duration {
        if self.subscribers.values().any(|subscriber| subscriber.pace == Pace::Prompt) {
            return ROUND;
        }
        let samples_per_second = self.busy_cores / PERIOD.as_secs_f64();
        let half_full = (signals::SAMPLES / 2) as f64 / samples_per_second.max(1.0);
        Duration::from_secs_f64(half_full).clamp(ROUND, QUIET_ROUND)
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
        let may_arm = signals::handler_is_ours();
        for thread in alive {
            let Some(cpu) = cpu_time_of_thread(thread) else {
                continue;
            };
            if self.threads.get(&thread).is_some_and(|watched| cpu < watched.cpu) {
                // The id was given to a new thread.
                self.threads.remove(&thread);
            }
            let watched = self.threads.entry(thread).or_insert_with(|| Watched {
                name: thread_name(thread).into(),
                timer: None,
                cpu: Duration::ZERO,
            });
            let used = cpu - mem::replace(&mut watched.cpu, cpu);
            if watched.timer.is_none() {
                self.without_timer += used;
            }
            if may_arm && watched.timer.is_none() {
                // It ended in between, or the limit of pending signals is reached: tried again in the next round.
                watched.timer = ThreadTimer::start(thread, PERIOD).ok();
            } else if !may_arm {
                watched.timer = None;
            }
            if used > Duration::ZERO {
                for subscriber in self.subscribers.values_mut() {
                    subscriber.slice.add_cpu(thread, &watched.name, used);
                }
            }
        }
    }
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
        assert_eq!(slice.untraced, 6);
        assert_eq!(slice.stacks[&Key { thread: 1, labels: Labels::NONE, frames }], 6);
        assert_eq!(slice.lost, Lost::default());
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
