//! SIGPROF: its handler, the timers that send it, and the question to one thread.
//!
//! In: expiries of a thread's own CPU clock, or a question. Out: stacks in a ring. The handler runs on any thread at any
//! instruction: it takes no lock, allocates nothing, and leaves `errno` as it was. A SIGPROF that is not from here is
//! ignored.

use std::hash::{Hash, Hasher};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::CaptureError;
use super::super::labels;
use super::super::ring::{Head, Poll, Ring};
use super::walk::{registers, walk};
use crate::signals::seats;

/// Collected ten times a second: room for 200 busy threads at 99 Hz. 1.7 MB, made for the first capture and kept, since a
/// late signal may still use it.
pub(in crate::pprof) const SAMPLES: usize = 2048;
static RING: OnceLock<Ring> = OnceLock::new();
static SAMPLING: AtomicBool = AtomicBool::new(false);

/// A worker is asked when a poll has kept it for long: few at a time.
const ANSWERS: usize = 64;
static ANSWER_RING: OnceLock<Ring> = OnceLock::new();

/// SIGPROF leaves stacks in the ring until this is dropped. One at a time.
#[derive(Debug)]
pub(in crate::pprof) struct Sampling(&'static Ring);

impl Sampling {
    /// Installs the handler. It stays after the capture, where it does nothing: the default for a late SIGPROF would
    /// end the process.
    pub(in crate::pprof) fn start() -> Result<Self, CaptureError> {
        let ring = RING.get_or_init(|| Ring::new(SAMPLES));
        install_handler()?;
        // What came after the last collection of an earlier sampling.
        ring.take(|_, _| {});
        ring.take_dropped();
        SAMPLING.store(true, Ordering::Release);
        Ok(Self(ring))
    }

    /// Installs the handler again where another profiler took the signal and gave it back.
    pub(in crate::pprof) fn keep_handler(&self) -> Result<(), CaptureError> {
        install_handler()
    }

    /// Takes the finished stacks.
    pub(in crate::pprof) fn take(&self, collect: impl FnMut(Head, &[usize])) {
        self.0.take(collect);
    }

    /// The weight of the stacks that found no room since the last call.
    pub(in crate::pprof) fn take_dropped(&self) -> u64 {
        self.0.take_dropped()
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        SAMPLING.store(false, Ordering::Release);
    }
}

/// Asks single threads where they are and which task they poll.
#[derive(Clone, Copy, Debug)]
pub(in crate::pprof) struct Questions(&'static Ring);

impl Questions {
    /// Installs the handler if it is not there; it stays. Asked again before every question, since another profiler may
    /// have taken the signal, whose handler must not see ours.
    pub(in crate::pprof) fn open() -> Result<Self, CaptureError> {
        install_handler()?;
        Ok(Self(ANSWER_RING.get_or_init(|| Ring::new(ANSWERS))))
    }

    /// Sends the question. A thread that has not been seen as a worker answers with its stack alone.
    pub(in crate::pprof) fn ask(self, thread: i32) -> io::Result<()> {
        let info = Info {
            signal: libc::SIGPROF,
            code: libc::SI_QUEUE,
            value: (&raw const ANSWER_RING).addr(),
            ..Info::default()
        };
        // SAFETY: `info` is as large as the kernel's `siginfo_t` and is read during the call only; the handler is installed.
        let status = unsafe {
            libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                libc::getpid(),
                thread,
                libc::SIGPROF,
                &raw const info,
            )
        };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes the answers.
    pub(in crate::pprof) fn take(self, collect: impl FnMut(Head, &[usize])) {
        self.0.take(collect);
    }
}

/// The kernel's `siginfo_t` on 64-bit machines, for timers and queued signals.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Info {
    signal: i32,
    error: i32,
    code: i32,
    padding: i32,
    /// The timer's id, or the sender's process.
    sender: i32,
    /// Expiries since the one that sent the signal, or the sender's user.
    overrun: i32,
    value: usize,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<Info>() == size_of::<libc::siginfo_t>());

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

fn current_handler() -> io::Result<libc::sighandler_t> {
    // SAFETY: all zeroes is a valid `sigaction`: the default action, no flags, an empty mask.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null `act` only reads the current action into `old`.
    let status = unsafe { libc::sigaction(libc::SIGPROF, std::ptr::null(), &raw mut old) };
    if status == 0 { Ok(old.sa_sigaction) } else { Err(io::Error::last_os_error()) }
}

/// Refuses where another profiler has the signal: passing our signals on would put them into its profile as samples.
fn install_handler() -> Result<(), CaptureError> {
    let ours = on_sigprof as Handler as libc::sighandler_t;
    let old = current_handler().map_err(CaptureError::Cpu)?;
    if old == ours {
        return Ok(());
    }
    if ![libc::SIG_DFL, libc::SIG_IGN].contains(&old) {
        return Err(CaptureError::CpuInUse);
    }
    // SAFETY: as in `current_handler`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ours;
    // No SA_ONSTACK: the alternate stacks of std hold little more than the registers of a machine with AMX.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a signal handler may.
    let status = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()) };
    if status == 0 { Ok(()) } else { Err(CaptureError::Cpu(io::Error::last_os_error())) }
}

/// Stores the stack of the interrupted thread.
extern "C" fn on_sigprof(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if info.is_null() || context.is_null() {
        return;
    }
    // SAFETY: `errno` is thread-local and always there; with SA_SIGINFO the kernel passes a `siginfo_t`, as large and
    // aligned as `Info`, and a `ucontext_t`.
    let (errno, info, registers, thread) = unsafe {
        (
            *libc::__errno_location(),
            info.cast::<Info>().read(),
            registers(&*context.cast::<libc::ucontext_t>()),
            libc::gettid(),
        )
    };
    let labels = labels::current();
    if info.code == libc::SI_TIMER && info.value == (&raw const RING).addr() {
        if let Some(ring) = RING.get().filter(|_| SAMPLING.load(Ordering::Acquire)) {
            let weight = u32::try_from(info.overrun).unwrap_or(0).saturating_add(1);
            ring.put(&Head { thread, weight, labels, poll: None }, |store| {
                walk(thread, registers, store)
            });
        }
    } else if info.code == libc::SI_QUEUE
        && info.value == (&raw const ANSWER_RING).addr()
        && let Some(ring) = ANSWER_RING.get()
    {
        let poll = poll_here();
        ring.put(&Head { thread, weight: 1, labels, poll }, |store| walk(thread, registers, store));
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// What the interrupted worker polls. Both are loads from tokio's thread-local, whose first use on a thread allocates: a
/// thread that did not set it up before is not asked.
fn poll_here() -> Option<Poll> {
    if !seats::tokio_ran_here() {
        return None;
    }
    let worker = u32::try_from(tokio::runtime::worker_index()?).ok()?;
    let (task, part) = (tokio::task::try_id().map_or(0, number), labels::current_poll());
    Some(Poll { worker, task, part })
}

/// tokio hands out the number of a task only to hashers.
fn number(task: tokio::task::Id) -> u64 {
    struct Number(u64);
    impl Hasher for Number {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
            }
        }
        fn write_u64(&mut self, number: u64) {
            self.0 = number;
        }
    }
    let mut hasher = Number(0);
    task.hash(&mut hasher);
    hasher.finish()
}

/// Sends SIGPROF to one thread for each `interval` of that thread's CPU time.
///
/// The kernel looks at the clock on its own ticks (CONFIG_HZ, often 250), so a signal may stand for several expiries: the
/// handler takes their number from the signal. Without that, threads got 0.76 to 0.97 of their samples.
#[derive(Debug)]
pub(in crate::pprof) struct ThreadTimer(libc::timer_t);

// SAFETY: a `timer_t` is an identifier that belongs to the process; any thread may use it.
unsafe impl Send for ThreadTimer {}

impl ThreadTimer {
    /// Any thread of this process, by the kernel's id.
    pub(in crate::pprof) fn start(thread: i32, interval: Duration) -> io::Result<Self> {
        // SAFETY: all zeroes is a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = thread;
        event.sigev_value.sival_ptr = (&raw const RING).cast_mut().cast();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers are valid for the call; the handler of SIGPROF is installed.
        let status =
            unsafe { libc::timer_create(super::cpu_clock(thread), &raw mut event, &raw mut timer) };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        let timer = Self(timer);
        let period = libc::timespec { tv_sec: 0, tv_nsec: interval.subsec_nanos().into() };
        let setting = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer is ours and alive, `setting` is valid for the call.
        let status =
            unsafe { libc::timer_settime(timer.0, 0, &raw const setting, std::ptr::null_mut()) };
        if status == 0 { Ok(timer) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is not used again.
        let _ = unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::super::super::sampler::{Pace, Subscription};
    use super::super::this_thread;
    use super::*;

    /// Runs `work` below so many frames.
    #[inline(never)]
    fn below(frames: usize, work: &mut dyn FnMut()) -> usize {
        if frames == 0 {
            work();
            return 0;
        }
        black_box(below(frames - 1, work)) + 1
    }

    #[test]
    fn a_question_is_answered_with_the_stack_and_a_stranger_s_signal_is_not() {
        let questions = Questions::open().expect("no other profiler has the signal");
        let thread = this_thread();
        let answers = || {
            let mut answers = Vec::new();
            // Tests that run beside this one may have asked too.
            questions.take(|head, frames| answers.push((head, frames.len())));
            answers.retain(|(head, _)| head.thread == thread);
            answers
        };
        // A watcher of another test may take the answer.
        let answered = std::iter::repeat_with(|| {
            below(20, &mut || questions.ask(thread).expect("this thread lives"));
            answers()
        });
        let answered = answered.take(100).find(|answers| !answers.is_empty()).expect("an answer");
        assert_eq!(answered[0].0.poll, None);
        assert!(answered[0].1 > 20, "{} frames", answered[0].1);

        // SAFETY: `raise` has no preconditions; the handler is installed.
        assert_eq!(unsafe { libc::raise(libc::SIGPROF) }, 0);
        assert!(answers().is_empty());
    }

    #[test]
    fn a_thread_that_tokio_never_ran_on_answers_without_asking_tokio() {
        let answer = std::thread::spawn(|| (poll_here(), seats::tokio_ran_here()));
        assert_eq!(answer.join().expect("it ends"), (None, false));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime");
        let (wish, answer) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let before = poll_here();
            seats::note_if_new();
            wish.send((before, poll_here())).expect("the test waits");
        });
        let (before, after) = answer.recv().expect("it ends");
        assert_eq!((before, after.map(|poll| poll.worker)), (None, Some(0)));
    }

    #[test]
    fn the_signal_comes_back_after_another_profiler_had_it() {
        super::super::in_its_own_process("pprof::sys::signals::tests::own_process_two_profilers");
    }

    extern "C" fn another_profiler(_: libc::c_int) {}

    #[test]
    #[ignore = "run by the test above, in a process of its own: the handler is the process's"]
    fn own_process_two_profilers() {
        let always_on = Subscription::start(Pace::Background).expect("no other profiler here");
        let set = |handler: libc::sighandler_t| {
            // SAFETY: the handler does nothing, or there is none.
            assert_ne!(unsafe { libc::signal(libc::SIGPROF, handler) }, libc::SIG_ERR);
        };
        set(another_profiler as extern "C" fn(libc::c_int) as libc::sighandler_t);
        let refused = Subscription::start(Pace::Prompt);
        assert!(matches!(refused, Err(CaptureError::CpuInUse)), "{refused:?}");
        set(libc::SIG_IGN);
        let capture = Subscription::start(Pace::Prompt).expect("it was given back");
        let end = super::super::thread_cpu_time() + Duration::from_millis(200);
        while super::super::thread_cpu_time() < end {
            below(20, &mut || {});
        }
        for subscription in [always_on, capture] {
            let samples: u64 = subscription.take().stacks.values().sum();
            assert!(samples >= 10, "{samples}");
        }
    }

    #[test]
    #[ignore = "a measurement: what the handler costs"]
    fn the_cost_of_a_sample() {
        let questions = Questions::open().expect("no other profiler has the signal");
        let thread = this_thread();
        let times = 20_000;
        let cpu_of = |work: &mut dyn FnMut()| {
            let start = super::super::thread_cpu_time();
            (0..times).for_each(|_| work());
            (super::super::thread_cpu_time() - start).as_nanos() / times
        };
        for (what, frames) in [("leaf", 0), ("20 frames", 20), ("40 frames", 40), ("cut", 120)] {
            below(frames, &mut || {
                // SAFETY: as above.
                let ignored = cpu_of(&mut || assert_eq!(unsafe { libc::raise(libc::SIGPROF) }, 0));
                let stored = cpu_of(&mut || {
                    questions.ask(thread).expect("this thread lives");
                    questions.take(|_, _| {});
                });
                let taking = cpu_of(&mut || questions.take(|_, _| {}));
                println!(
                    "{what}: CPU of a signal that is ignored {ignored} ns, stored {} ns",
                    stored - taking
                );
            });
        }
    }
}
