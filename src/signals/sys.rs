//! The calls into libc and the allocator that need `unsafe`. Nothing else in `signals` does.

#![expect(unsafe_code, reason = "clock_gettime and GlobalAlloc have no safe interface")]

use std::time::Duration;

pub(super) mod counting;

/// CPU time of all threads of this process, the ended ones too, in nanoseconds' precision (`clock_gettime(2)`).
pub(super) fn process_cpu_time() -> Option<Duration> {
    read_clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The same of another process in this PID namespace, which no permission is needed for (`clock_getcpuclockid(3)`).
pub(super) fn cpu_time_of(pid: i32) -> Option<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid clockid_t that outlives the call.
    let status = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if status == 0 { read_clock(clock) } else { None }
}

fn read_clock(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that outlives the call.
    let status = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if status != 0 {
        return None;
    }
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}
