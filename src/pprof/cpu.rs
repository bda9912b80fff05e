//! CPU profiles: which stacks this process's threads spend their CPU time in.
//!
//! In: what a subscription to the sampler gathered. Out: a gzipped profile, in which the values of a thread add up to the
//! CPU time that its own clock showed. Never: a capture that outlives its requester.
//!
//! The crate `pprof` gives the message types, not the sampler: its frame-pointer walk starts at the return address, so
//! the function that really burns is missing from every stack; its process-wide timer gave four equally busy threads
//! 0.97, 0.97, 1.35 and 0.41 of their samples; and it needs a writable disk.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::profile::{Meaning, ProfileBuilder, Tags};
use super::sampler::{PERIOD, Pace, Share, Slice, Subscription};
use super::symbols::Detail;
use super::sys;
use super::{CaptureError, Service};
use crate::time::{Timestamp, wall_now};

const MEANING: Meaning = Meaning {
    samples: &[("samples", "count"), ("cpu", "nanoseconds")],
    period_type: ("cpu", "nanoseconds"),
    period: PERIOD.subsec_nanos() as i64,
    default_sample: "cpu",
};

/// Stands for the function where a thread used CPU time and no sample tells where.
const NO_SAMPLE: &str = "[CPU time without a sample]";

/// Samples for `duration`, or until the other end of `cancelled` is dropped. Blocks the calling thread. Any number of
/// captures share the sampler.
///
/// # Errors
/// As [`Subscription::start`].
pub(super) fn capture(
    service: &Service,
    duration: Duration,
    detail: Detail,
    cancelled: &Receiver<()>,
) -> Result<Option<Vec<u8>>, CaptureError> {
    let start = wall_now();
    let subscription = Subscription::start(Pace::Prompt)?;
    match cancelled.recv_timeout(duration) {
        Err(RecvTimeoutError::Timeout) => {}
        Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
    }
    let slice = subscription.take();
    // Symbols are looked up without samples of it.
    drop(subscription);
    Ok(Some(encode(service, detail, start, duration, &slice)))
}

/// The profile of what was sampled from `start` on. Looks up symbols: blocks, with lines for up to seconds.
pub(super) fn encode(
    service: &Service,
    detail: Detail,
    start: Timestamp,
    duration: Duration,
    slice: &Slice,
) -> Vec<u8> {
    let mut profile = ProfileBuilder::new(service, &MEANING, detail);
    profile.covers(start, duration);
    write(slice, &mut profile);
    profile.finish()
}

/// One profile of several slices that one subscription gave, one after the other.
#[cfg(feature = "agent")]
pub(crate) fn encode_slices<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice>,
    start: Timestamp,
    duration: Duration,
) -> Vec<u8> {
    let mut whole = Slice::default();
    slices.for_each(|slice| whole.append(slice));
    encode(service, Detail::Functions, start, duration, &whole)
}

fn write(slice: &Slice, profile: &mut ProfileBuilder) {
    let mut counts: HashMap<i32, u64> = HashMap::new();
    for (key, count) in &slice.stacks {
        *counts.entry(key.thread).or_default() += count;
    }
    let of_thread = |thread| {
        let count = counts.get(&thread).copied().unwrap_or(0);
        (count, cpu_nanos(slice.threads.get(&thread), count))
    };
    let sum = |nanos: u64, thread: i32| nanos.saturating_add(of_thread(thread).1);
    let known = slice.threads.keys().copied().fold(0, sum);
    comment(slice, known, profile);
    for (key, count) in &slice.stacks {
        let addresses: Vec<u64> = key.frames.iter().enumerate().map(address).collect();
        let (all, nanos) = of_thread(key.thread);
        let values = vec![signed(*count), signed(part(nanos, *count, all))];
        let name = slice.threads.get(&key.thread).map_or("", |share| &share.name);
        let (endpoint, task, trace) = key.labels.texts();
        let texts =
            [("thread", name), ("endpoint", &endpoint), ("task", &task), ("trace_id", &trace)];
        let tags = Tags { texts: &texts, numbers: &[("thread_id", key.thread.into())] };
        profile.tagged_sample(&addresses, values, &tags);
    }
    let unsampled = slice.threads.iter().filter(|(thread, _)| !counts.contains_key(thread));
    for (thread, share) in unsampled.filter(|(_, share)| share.cpu >= PERIOD) {
        let values = vec![0, signed(nanos_of(share.cpu))];
        let texts = [("thread", &*share.name)];
        let tags = Tags { texts: &texts, numbers: &[("thread_id", (*thread).into())] };
        profile.stackless_sample(NO_SAMPLE, values, &tags);
    }
}

/// What a reader must know to trust the numbers.
fn comment(slice: &Slice, known_nanos: u64, profile: &mut ProfileBuilder) {
    profile.comment(
        "cpu: each thread's time by its own clock, shared out over its samples; samples: its timer's expiries, 99 a second",
    );
    let unseen = slice.cpu.saturating_sub(Duration::from_nanos(known_nanos));
    profile.comment(&format!(
        "CPU seconds of the process: {:.3}; of them in threads that ended unseen: {:.3}",
        slice.cpu.as_secs_f64(),
        unseen.as_secs_f64()
    ));
    for (reason, samples) in slice.lost.by_reason() {
        profile.comment(&format!("samples lost or not whole, {reason}: {samples}"));
    }
    if !sys::stack_is_readable() {
        profile.comment("stacks have one frame: process_vm_readv is refused here");
    }
}

/// The CPU time of a thread with so many samples. Its clock is not read at its very end, so that the samples of an ended
/// thread may know more; the first of them may stand for time before the capture.
fn cpu_nanos(share: Option<&Share>, samples: u64) -> u64 {
    let by_clock = share.map_or(0, |share| nanos_of(share.cpu));
    by_clock.max(nanos_of(PERIOD).saturating_mul(samples.saturating_sub(1)))
}

/// `count` of `all` parts of `nanos`.
fn part(nanos: u64, count: u64, all: u64) -> u64 {
    let nanos = u128::from(nanos) * u128::from(count) / u128::from(all.max(1));
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

fn nanos_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The interrupted instruction is exact; a return address is the instruction after the call.
pub(super) fn address((index, frame): (usize, &usize)) -> u64 {
    let frame = u64::try_from(*frame).unwrap_or(u64::MAX);
    if index == 0 { frame } else { frame.saturating_sub(1) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::{fs, hint, thread};

    use flate2::read::GzDecoder;
    use pprof::protos::{Message, Profile};

    use super::super::labels::{Labelled, Labels, Name};
    use super::*;

    fn service() -> Service {
        Service { name: "shop".to_owned(), version: String::new() }
    }

    fn profile(duration: Duration) -> Profile {
        let (_requester, cancelled) = mpsc::channel();
        let gzipped = capture(&service(), duration, Detail::Functions, &cancelled)
            .expect("no other profiler has the signal")
            .expect("nobody cancels it");
        decode(&gzipped)
    }

    fn decode(gzipped: &[u8]) -> Profile {
        let mut bytes = Vec::new();
        GzDecoder::new(gzipped).read_to_end(&mut bytes).expect("gzip");
        Profile::decode(bytes.as_slice()).expect("profile.proto")
    }

    fn text(profile: &Profile, index: i64) -> &str {
        &profile.string_table[usize::try_from(index).expect("not negative")]
    }

    /// Sums of (samples, nanoseconds) of the thread with that id.
    fn of_thread(profile: &Profile, thread: i32) -> (i64, i64) {
        let is_its = |sample: &&pprof::protos::Sample| {
            sample.label.iter().any(|label| {
                text(profile, label.key) == "thread_id" && label.num == i64::from(thread)
            })
        };
        let samples = profile.sample.iter().filter(is_its);
        samples.fold((0, 0), |sum, sample| (sum.0 + sample.value[0], sum.1 + sample.value[1]))
    }

    fn burn_for(cpu: Duration) {
        let end = sys::thread_cpu_time() + cpu;
        while sys::thread_cpu_time() < end {
            for number in 0..2_000_u64 {
                hint::black_box(number);
            }
        }
    }

    /// One of four loads: after so much CPU time, such a pause.
    struct Load {
        name: &'static str,
        burst: Duration,
        pause: Duration,
    }

    /// Full, half in bursts, short naps, and what a CPU quota leaves.
    const LOADS: [Load; 4] = [
        Load { name: "full", burst: Duration::from_millis(50), pause: Duration::ZERO },
        Load { name: "half", burst: Duration::from_millis(25), pause: Duration::from_millis(25) },
        Load { name: "naps", burst: Duration::from_micros(700), pause: Duration::from_micros(200) },
        Load { name: "quota", burst: Duration::from_millis(70), pause: Duration::from_millis(30) },
    ];

    impl Load {
        /// Uses so much CPU time, says what thread it was, and waits for the end of `done`.
        fn run(&self, total: Duration, thread: &mpsc::Sender<i32>, done: &Receiver<()>) {
            while sys::thread_cpu_time() < total {
                burn_for(self.burst);
                thread::sleep(self.pause);
            }
            let id = fs::read_link("/proc/thread-self").expect("procfs");
            let id = id.file_name().and_then(|name| name.to_str()).expect("a number");
            thread.send(id.parse().expect("a number")).expect("it is awaited");
            assert!(done.recv().is_err(), "nothing is sent");
        }
    }

    /// CPU time by the kernel's scheduler, which is not the clock that the profile reads.
    fn scheduled_nanos(thread: i32) -> i64 {
        let path = format!("/proc/self/task/{thread}/schedstat");
        let text = fs::read_to_string(path).expect("the thread lives");
        text.split(' ').next().and_then(|word| word.parse().ok()).expect("a number")
    }

    /// Profiles four loads of so much CPU time each. None of their sums may be further from the kernel's figure than
    /// these shares of it.
    fn check_weights(total: Duration, of_samples: f64, of_cpu: f64) {
        let subscription =
            Subscription::start(Pace::Prompt).expect("no other profiler has the signal");
        let mut ends = Vec::new();
        let threads = LOADS.map(|load| {
            let (end, done) = mpsc::channel();
            let (sender, thread) = mpsc::channel();
            ends.push(end);
            let builder = thread::Builder::new().name(load.name.to_owned());
            let name = load.name;
            let handle = builder.spawn(move || load.run(total, &sender, &done)).expect("a thread");
            (name, thread, handle)
        });
        let threads = threads.map(|(name, thread, handle)| {
            (name, thread.recv().expect("it says so when it is done"), handle)
        });
        let slice = subscription.take();
        let now = wall_now();
        let profile = decode(&encode(&service(), Detail::Functions, now, total, &slice));
        for (name, thread, _) in &threads {
            let real = scheduled_nanos(*thread) as f64;
            let (samples, cpu) = of_thread(&profile, *thread);
            let by_samples = (samples * profile.period) as f64 / real;
            let by_cpu = cpu as f64 / real;
            let seconds = real / 1e9;
            println!("{name}: {seconds:.2} s, samples {by_samples:.4}, cpu {by_cpu:.4}");
            assert!((by_samples - 1.0).abs() <= of_samples, "{name}: {by_samples} of the samples");
            assert!((by_cpu - 1.0).abs() <= of_cpu, "{name}: {by_cpu} of the time");
        }
        drop(ends);
        threads.into_iter().for_each(|(_, _, handle)| handle.join().expect("it only burns"));
    }

    #[test]
    fn each_thread_weighs_what_the_kernel_says_it_used() {
        // Some 50 samples each. A busy machine finds a new thread late, and what it missed has no samples.
        check_weights(Duration::from_millis(500), 0.5, 0.05);
    }

    #[test]
    #[ignore = "takes two minutes of a core: 20 s of CPU time on each of four threads"]
    fn over_20_s_of_cpu_time_each_thread_weighs_within_5_percent() {
        check_weights(Duration::from_secs(20), 0.05, 0.01);
    }

    #[test]
    fn a_capture_ends_with_its_requester() {
        let (requester, cancelled) = mpsc::channel();
        drop(requester);
        let hour = Duration::from_secs(3_600);
        let profile = capture(&service(), hour, Detail::Functions, &cancelled);
        assert!(profile.expect("no other profiler has the signal").is_none());
    }

    #[test]
    #[ignore = "a measurement: what the always-on sampler costs beside the handler"]
    fn what_collecting_costs() {
        let subscription =
            Subscription::start(Pace::Prompt).expect("no other profiler has the signal");
        let burning: Vec<_> =
            (0..8).map(|_| thread::spawn(|| burn_for(Duration::from_secs(1)))).collect();
        let (mut keys, mut samples, mut cpu) = (0, 0, Duration::ZERO);
        for _ in 0..6 {
            thread::sleep(Duration::from_secs(1));
            let slice = subscription.take();
            keys += slice.stacks.len();
            samples += slice.stacks.values().sum::<u64>();
            cpu += slice.cpu;
        }
        let collector = super::super::sampler::threads_of_process()
            .find(|thread| super::super::sampler::thread_name(*thread) == "headroom-cpu")
            .expect("it runs");
        println!(
            "{samples} samples, {keys} keys, {:.2} s of CPU, the collector {:.2} ms over 6 s",
            cpu.as_secs_f64(),
            scheduled_nanos(collector) as f64 / 1e6
        );
        burning.into_iter().for_each(|thread| thread.join().expect("it only burns"));
    }

    #[test]
    fn labels_of_a_thread_are_tags_of_its_samples() {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let labelled = thread::spawn(move || {
            let endpoint = Name::of("GET /labelled");
            let task = Name::of("src/labelled.rs:1");
            let _labels = Labelled::enter(|_| Labels { endpoint, task, trace: 0xabc });
            while !stopped.load(Ordering::Relaxed) {
                burn_for(Duration::from_millis(1));
            }
        });
        let profile = profile(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        labelled.join().expect("it only burns");
        let tags = |sample: &pprof::protos::Sample| -> Vec<(String, String)> {
            let texts = sample.label.iter().filter(|label| label.str != 0);
            texts
                .map(|label| {
                    (text(&profile, label.key).to_owned(), text(&profile, label.str).to_owned())
                })
                .collect()
        };
        let wanted = [
            ("endpoint", "GET /labelled"),
            ("task", "src/labelled.rs:1"),
            ("trace_id", "00000000000000000000000000000abc"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let found = profile
            .sample
            .iter()
            .map(tags)
            .any(|tags| wanted.iter().all(|wanted| tags.contains(wanted)));
        assert!(found, "no sample carries the labels");
    }

    #[test]
    fn a_thread_that_no_tick_ever_meets_still_has_its_time() {
        let mut slice = Slice::default();
        let share = Share { name: "unlucky".into(), cpu: Duration::from_secs(2) };
        slice.threads.insert(7, share);
        let (now, second) = (wall_now(), Duration::from_secs(1));
        let profile = decode(&encode(&service(), Detail::Functions, now, second, &slice));
        assert_eq!(of_thread(&profile, 7), (0, 2_000_000_000));
        assert!(profile.string_table.iter().any(|text| text == NO_SAMPLE));
    }
}
