//! What has no safe interface: memory files, three mallctl names, clocks of threads, and ([`signals`]) the handler of
//! SIGPROF with what sends it.
//!
//! In: names and ids. Out: files, switches of jemalloc and CPU time. Never: a pointer that outlives the call it is made for.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use tikv_jemalloc_ctl::raw;

use crate::signals::read_clock;

pub(super) mod signals;
mod walk;

pub(super) use walk::stack_is_readable;

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
    read_clock(libc::CLOCK_THREAD_CPUTIME_ID)
        .expect("the clock of the calling thread can always be read")
}

/// The CPU time of a thread of this process, by the kernel's id; none once it has ended.
pub(super) fn cpu_time_of_thread(thread: i32) -> Option<Duration> {
    read_clock(cpu_clock(thread))
}

/// The CPU time of all threads of this process, the ended ones too.
pub(super) fn cpu_time_of_process() -> Duration {
    read_clock(libc::CLOCK_PROCESS_CPUTIME_ID)
        .expect("the clock of the calling process can always be read")
}

/// The kernel's id of the calling thread.
pub(super) fn this_thread() -> i32 {
    // SAFETY: it takes nothing and always succeeds.
    unsafe { libc::gettid() }
}

/// The kernel's encoding of "CPU clock of that thread": `CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED`.
const fn cpu_clock(thread: i32) -> libc::clockid_t {
    (!thread << 3) | 6
}

/// Runs that ignored test in a process of its own, and fails if it fails.
#[cfg(test)]
pub(super) fn in_its_own_process(test: &str) {
    let executable = std::env::current_exe().expect("the test's executable");
    let mut alone = std::process::Command::new(executable);
    let output = alone.args(["--exact", test, "--ignored"]).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
