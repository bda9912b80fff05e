//! What has no safe interface: memory files, three mallctl names, thread clocks and timers, the signal handler.
//!
//! The handler runs on any thread at any instruction: it takes no lock, allocates nothing, and has the kernel read the
//! stack, so that a wrong frame pointer ends a walk instead of the process.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tikv_jemalloc_ctl::raw;

use super::CaptureError;
use super::ring::{Ring, Stack};

/// An empty file that lives in memory and has no path but `/proc/self/fd/N`.
pub(super) fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: `name` is a C string that outlives the call, which keeps no pointer to it.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel gave this descriptor to nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Has jemalloc write its heap profile to `path`.
pub(super) fn dump_heap_profile(path: &CStr) -> Result<(), tikv_jemalloc_ctl::Error> {
    // SAFETY: `prof.dump` takes a `const char *` and reads it during the call only.
    unsafe { raw::write(b"prof.dump\0", path.as_ptr()) }
}

/// Whether samples are taken now: `prof.active`.
pub(super) fn heap_profiling_active() -> Result<bool, tikv_jemalloc_ctl::Error> {
    // SAFETY: jemalloc documents `prof.active` as a bool.
    unsafe { raw::read(b"prof.active\0") }
}

/// Whether freed objects stay counted: `opt.prof_accum`.
pub(super) fn heap_profiling_accumulates() -> Result<bool, tikv_jemalloc_ctl::Error> {
    // SAFETY: jemalloc documents `opt.prof_accum` as a bool.
    unsafe { raw::read(b"opt.prof_accum\0") }
}

/// The CPU time that this thread has used since it started.
pub fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes; this clock exists for every thread on Linux.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0, "the clock of the calling thread can always be read");
    let nanos = u32::try_from(time.tv_nsec).expect("the kernel keeps nanoseconds below a second");
    Duration::new(u64::try_from(time.tv_sec).expect("CPU time is not negative"), nanos)
}

/// The stacks of the capture that runs. Made once: a late signal may still use it after a capture.
static RING: OnceLock<Ring> = OnceLock::new();
static SAMPLING: AtomicBool = AtomicBool::new(false);

/// SIGPROF leaves stacks in the ring until this is dropped.
#[derive(Debug)]
pub(super) struct Sampling(&'static Ring);

impl Sampling {
    /// Installs the handler. It stays after the capture, where it does nothing: the default for a late SIGPROF would
    /// end the process.
    pub(super) fn start() -> Result<Self, CaptureError> {
        let ring = RING.get_or_init(Ring::new);
        install_handler()?;
        SAMPLING.store(true, Ordering::Release);
        Ok(Self(ring))
    }

    /// Takes the finished stacks.
    pub(super) fn take(&self, collect: impl FnMut(Stack)) {
        self.0.take(collect);
    }

    /// How many stacks found no room since the last call.
    pub(super) fn take_dropped(&self) -> u64 {
        self.0.take_dropped()
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        SAMPLING.store(false, Ordering::Release);
    }
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

fn install_handler() -> Result<(), CaptureError> {
    let ours = on_sigprof as Handler as libc::sighandler_t;
    // SAFETY: all zeroes is a valid `sigaction`: the default action, no flags, an empty mask.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null `act` only reads the current action into `old`.
    let status = unsafe { libc::sigaction(libc::SIGPROF, std::ptr::null(), &raw mut old) };
    if status != 0 {
        return Err(CaptureError::Cpu(io::Error::last_os_error()));
    }
    if old.sa_sigaction == ours {
        return Ok(());
    }
    if ![libc::SIG_DFL, libc::SIG_IGN].contains(&old.sa_sigaction) {
        return Err(CaptureError::CpuInUse);
    }
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ours;
    // No SA_ONSTACK: the alternate stacks of std hold little more than the registers of a machine with AMX.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a signal handler may.
    let status = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()) };
    if status == 0 { Ok(()) } else { Err(CaptureError::Cpu(io::Error::last_os_error())) }
}

/// Stores the stack of the interrupted thread: no lock, no allocation; `errno` is left as it was.
extern "C" fn on_sigprof(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if !SAMPLING.load(Ordering::Acquire) || context.is_null() {
        return;
    }
    let Some(ring) = RING.get() else {
        return;
    };
    // SAFETY: `errno` is thread-local and always there; with SA_SIGINFO the kernel passes a `ucontext_t`.
    let (errno, registers, thread) = unsafe {
        (*libc::__errno_location(), registers(&*context.cast::<libc::ucontext_t>()), libc::gettid())
    };
    ring.put(thread, 1, |store| walk(registers, store));
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Where an interrupted thread was.
#[derive(Clone, Copy, Debug)]
struct Registers {
    instruction: usize,
    frame: usize,
    stack: usize,
}

#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> Registers {
    let get = |register: libc::c_int| {
        let index = usize::try_from(register).unwrap_or_default();
        usize::from_ne_bytes(context.uc_mcontext.gregs[index].to_ne_bytes())
    };
    Registers {
        instruction: get(libc::REG_RIP),
        frame: get(libc::REG_RBP),
        stack: get(libc::REG_RSP),
    }
}

#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> Registers {
    let get = |value: u64| usize::from_ne_bytes(value.to_ne_bytes());
    let machine = &context.uc_mcontext;
    Registers { instruction: get(machine.pc), frame: get(machine.regs[29]), stack: get(machine.sp) }
}

/// A frame larger than this ends the walk: the register held something else.
const MAX_FRAME_BYTES: usize = 256 << 10;
const WORD: usize = size_of::<usize>();
const WINDOW_WORDS: usize = 128;
/// The least page size, across which one read may fail as a whole.
const PAGE: usize = 4096;

/// Follows the frame pointers: each points to the caller's, beside the return address.
fn walk(registers: Registers, store: &mut dyn FnMut(usize) -> bool) {
    if !store(registers.instruction) {
        return;
    }
    let mut window = Window { start: 0, words: [0; WINDOW_WORDS], len: 0 };
    let (mut lowest, mut frame) = (registers.stack, registers.frame);
    while frame % WORD == 0 && frame >= lowest && frame - lowest <= MAX_FRAME_BYTES {
        let Some([caller_frame, return_address]) = window.pair(frame) else {
            return;
        };
        if return_address < PAGE || !store(return_address) {
            return;
        }
        (lowest, frame) = (frame + 2 * WORD, caller_frame);
    }
}

/// A copy of a piece of the stack, read by the kernel: an address that is not mapped is an error there, not a crash.
struct Window {
    start: usize,
    words: [usize; WINDOW_WORDS],
    len: usize,
}

impl Window {
    /// The two words at `address`.
    fn pair(&mut self, address: usize) -> Option<[usize; 2]> {
        let inside = address.checked_sub(self.start).map(|offset| offset / WORD);
        let index = match inside.filter(|index| index + 2 <= self.len) {
            Some(index) => index,
            None => {
                self.read(address)?;
                0
            }
        };
        Some([self.words[index], self.words[index + 1]])
    }

    fn read(&mut self, address: usize) -> Option<()> {
        let to_page_end = (PAGE - address % PAGE) / WORD;
        let words = to_page_end.clamp(2, WINDOW_WORDS);
        let local = libc::iovec { iov_base: self.words.as_mut_ptr().cast(), iov_len: words * WORD };
        let remote = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(address),
            iov_len: words * WORD,
        };
        // SAFETY: the kernel writes at most `words` words to `local`, which has room for them, and checks `remote`.
        let read = unsafe {
            libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
        };
        self.start = address;
        self.len = usize::try_from(read).unwrap_or(0) / WORD;
        (self.len >= 2).then_some(())
    }
}

/// Whether the kernel reads this process's memory for it; some sandboxes refuse that.
pub(super) fn stack_is_readable() -> bool {
    let here = [1_usize, 2];
    let mut window = Window { start: 0, words: [0; WINDOW_WORDS], len: 0 };
    window.pair(here.as_ptr().addr()) == Some(here)
}

/// Sends SIGPROF to one thread for each `interval` of that thread's CPU time.
#[derive(Debug)]
pub(super) struct ThreadTimer(libc::timer_t);

impl ThreadTimer {
    /// Any thread of this process, by the kernel's id.
    pub(super) fn start(thread: i32, interval: Duration) -> io::Result<Self> {
        // The kernel's encoding of "CPU clock of that thread": CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED.
        let clock = (!thread << 3) | 6;
        // SAFETY: all zeroes is a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers are valid for the call; the handler of SIGPROF is installed.
        if unsafe { libc::timer_create(clock, &raw mut event, &raw mut timer) } != 0 {
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
