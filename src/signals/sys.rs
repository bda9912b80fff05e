//! The calls into libc and the allocator that need `unsafe`. Nothing else in `signals` does.

#![expect(
    unsafe_code,
    reason = "clock_gettime, gettid, mallctl and GlobalAlloc have no safe interface"
)]

use std::time::Duration;

pub(super) mod counting;
pub(super) mod size_classes;

/// CPU time of all threads of this process, the ended ones too, in nanoseconds' precision (`clock_gettime(2)`).
pub(super) fn process_cpu_time() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that outlives the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
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
