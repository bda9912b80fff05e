//! The calls into libc and the allocator that need `unsafe`. Nothing else in `signals` does.

#![expect(
    unsafe_code,
    reason = "clock_gettime, gettid, timerfd, mallctl and GlobalAlloc have no safe interface"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

mod apart;
pub(super) mod counting;
pub(super) mod size_classes;

/// CPU time of all threads of this process, the ended ones too, in nanoseconds' precision (`clock_gettime(2)`).
pub(crate) fn process_cpu_time() -> Option<Duration> {
    read_clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The same of another process in this PID namespace, which no permission is needed for (`clock_getcpuclockid(3)`).
pub(super) fn cpu_time_of(pid: i32) -> Option<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid clockid_t that outlives the call.
    let status = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if status == 0 { read_clock(clock) } else { None }
}

/// A clock of the kernel; `None` if there is no such clock, or no longer.
pub(crate) fn read_clock(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that outlives the call.
    let status = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if status != 0 {
        return None;
    }
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// The calling thread's number, as `/proc/self/task` lists it (`gettid(2)`).
pub(super) fn thread_id() -> u32 {
    // SAFETY: the call takes nothing and cannot fail.
    u32::try_from(unsafe { libc::gettid() }).unwrap_or(0)
}

/// A descriptor that becomes readable when its time has come (`timerfd_create(2)`).
#[derive(Debug)]
pub(super) struct Timer(OwnedFd);

impl Timer {
    /// The timer, watched by the runtime this is called in.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// tokio panics where the runtime has no I/O driver, and has no way to ask.
    pub(super) fn watched(self: Arc<Self>) -> io::Result<AsyncFd<Arc<Self>>> {
        // SAFETY: the timer owns its descriptor, opens no other, and lends out nothing that could close it; it lives for as
        // long as it is watched.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }

    /// A timer that is not set.
    ///
    /// # Errors
    /// What the kernel says: no descriptors left, or timers are forbidden.
    pub(super) fn new() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: the call takes no pointer.
        let descriptor = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened the descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Makes the descriptor unreadable, and readable once `delay` has passed, which is not zero. From any thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn set(&self, delay: Duration) -> io::Result<()> {
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let tv_sec = delay.as_secs().try_into().unwrap_or(libc::time_t::MAX);
        let it_value = libc::timespec { tv_sec, tv_nsec: delay.subsec_nanos().into() };
        let once = libc::itimerspec { it_interval: never, it_value };
        // SAFETY: `once` is a valid itimerspec that outlives the call; the old setting is not asked for.
        let status = unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const once, std::ptr::null_mut())
        };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
