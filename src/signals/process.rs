//! This process, or one beside it: CPU, memory, descriptors, threads, and how long its threads waited for a core.
//!
//! In: procfs and the process's CPU clock. Out: the `process_*` families, as other Prometheus clients name them. Never: a
//! counter that falls when a thread ends.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::Process;

use super::catalogue::families;
use super::kernel_file::KernelFiles;
use super::snapshot::{Snapshot, Unavailable};
use super::sys;
use super::text;
use super::threads::{AllThreads, Threads};

/// A reading costs one file per thread; past this many the family is left out.
const MAX_THREADS: u64 = 512;

/// Reads `/proc/self`, or the directory of another process.
///
/// What is read at every scrape is read by ourselves, into memory that is kept: `procfs` allocates 150 times for `stat` and
/// `limits`.
#[derive(Debug)]
pub struct ProcessCollector {
    process: Option<Process>,
    /// `None` is this process.
    neighbour: Option<i32>,
    directory: PathBuf,
    started_at_seconds: Option<f64>,
    files: KernelFiles,
    threads: Threads,
    waits: RunqueueWaits,
}

impl Default for ProcessCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl ProcessCollector {
    /// Opens this process's procfs directory.
    #[must_use]
    pub fn new() -> Self {
        Self::reading(Process::myself().ok(), None)
    }

    /// Opens another process's procfs directory. What its user does not let us read shows as a reason when it is collected.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        Self::reading(Process::new(pid).ok(), Some(pid))
    }

    fn reading(process: Option<Process>, neighbour: Option<i32>) -> Self {
        let started_at_seconds = process.as_ref().and_then(started_at);
        let directory = match neighbour {
            Some(pid) => PathBuf::from(format!("/proc/{pid}")),
            None => PathBuf::from("/proc/self"),
        };
        let threads = Threads::of(&directory);
        let (files, waits) = (KernelFiles::default(), RunqueueWaits::default());
        Self { process, neighbour, directory, started_at_seconds, files, threads, waits }
    }

    /// The scheduler's counts of single threads, as of the last collection.
    pub(super) const fn threads(&mut self) -> &mut Threads {
        &mut self.threads
    }

    /// Whether the process still runs: one that ended and was not waited for does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_alive)
    }

    /// Adds the process families.
    pub fn collect(&mut self, snapshot: &mut Snapshot) {
        self.threads.clear();
        let cpu = self.neighbour.map_or_else(sys::process_cpu_time, sys::cpu_time_of);
        if let Some(cpu) = cpu {
            snapshot.push(&families::PROCESS_CPU, cpu.as_secs_f64());
        }
        let Some(process) = &self.process else {
            snapshot.source("process", Err(Unavailable::NotHere("procfs has no such process")));
            return;
        };
        let threads = collect_stat(process, &self.directory, &mut self.files, snapshot);
        if let Some(started_at_seconds) = self.started_at_seconds {
            snapshot.push(&families::PROCESS_START_TIME, started_at_seconds);
        }
        let counted = match &threads {
            Ok(MAX_THREADS..) => {
                Err(Unavailable::NotHere("too many threads to read one file of each"))
            }
            _ => self.threads.read_all(),
        };
        let waited = counted.map(|counted| self.waits.observe(counted));
        if let Ok(nanos) = waited {
            snapshot.push(&families::PROCESS_RUNQUEUE_WAIT, nanos as f64 / 1e9);
        }
        snapshot.source("process", threads.map(drop));
        snapshot.source("process_runqueue", waited.map(drop));
    }
}

/// Adds what `stat`, `limits` and `fd` say; returns the number of threads.
fn collect_stat(
    process: &Process,
    directory: &Path,
    files: &mut KernelFiles,
    snapshot: &mut Snapshot,
) -> Result<u64, Unavailable> {
    let stat = files.parse(directory, "stat", text::process_stat)?;
    let resident_bytes = stat.resident_pages.saturating_mul(procfs::page_size());
    snapshot.push(&families::PROCESS_RESIDENT_MEMORY, resident_bytes as f64);
    snapshot.push(&families::PROCESS_VIRTUAL_MEMORY, stat.virtual_bytes as f64);
    snapshot.push(&families::PROCESS_THREADS, stat.threads as f64);
    let limits = files.read(directory, "limits")?;
    for (family, name) in [
        (&families::PROCESS_MAX_FDS, "Max open files"),
        (&families::PROCESS_VIRTUAL_MEMORY_MAX, "Max address space"),
    ] {
        if let Some(text::Limit::At(limit)) = text::soft_limit(limits, name) {
            snapshot.push(family, limit as f64);
        }
    }
    // Last: before Linux 6.2 this alone is refused of another user's process.
    let open = open_fds(process, files.path(directory, "fd"))?;
    snapshot.push(&families::PROCESS_OPEN_FDS, open as f64);
    Ok(stat.threads)
}

/// Since Linux 6.2 the directory's size is the number of open descriptors (proc(5)); before, it is 0 and they are counted,
/// one directory entry each.
fn open_fds(process: &Process, directory: &Path) -> Result<u64, Unavailable> {
    match fs::metadata(directory) {
        Ok(directory) if directory.len() > 0 => Ok(directory.len()),
        _ => Ok(process.fd_count()? as u64),
    }
}

/// Seconds since the Unix epoch: boot time plus the ticks between boot and the process's start (proc(5)).
fn started_at(process: &Process) -> Option<f64> {
    let booted_at = procfs::boot_time_secs().ok()?;
    let ticks = process.stat().ok()?.starttime;
    Some(booted_at as f64 + ticks as f64 / procfs::ticks_per_second() as f64)
}

/// A sum over threads that does not fall when one of them ends.
#[derive(Debug, Default)]
struct RunqueueWaits {
    live: Vec<(u32, u64)>,
    /// Those of the time before.
    former: Vec<(u32, u64)>,
    ended: u64,
}

impl RunqueueWaits {
    /// Takes each living thread's wait and returns the sum over all threads ever seen, in nanoseconds. A thread that could not
    /// be read keeps what it had.
    fn observe(&mut self, threads: &AllThreads) -> u64 {
        std::mem::swap(&mut self.live, &mut self.former);
        self.live.clear();
        for &(thread, last) in &self.former {
            match threads.get(thread) {
                Some(now) if now.waiting_nanos >= last => {}
                None if threads.unread.contains(&thread) => self.live.push((thread, last)),
                // It ended; where there is one, the kernel gave its number to another.
                _ => self.ended += last,
            }
        }
        let counted = threads.counted.iter();
        self.live.extend(counted.map(|(thread, counted)| (*thread, counted.waiting_nanos)));
        self.ended + self.live.iter().map(|(_, wait)| wait).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::text::Schedstat;

    fn observe(waits: &mut RunqueueWaits, read: &[(u32, u64)], unread: &[u32]) -> u64 {
        let counted = |&(thread, waiting_nanos): &(u32, u64)| {
            (thread, Schedstat { on_cpu_nanos: 0, waiting_nanos })
        };
        let counted = read.iter().map(counted).collect();
        waits.observe(&AllThreads { counted, unread: unread.to_vec() })
    }

    #[test]
    fn waits_of_ended_threads_stay_counted() {
        let mut waits = RunqueueWaits::default();
        assert_eq!(observe(&mut waits, &[(1, 10), (2, 100)], &[]), 110);
        assert_eq!(observe(&mut waits, &[(1, 15)], &[]), 115);
        assert_eq!(observe(&mut waits, &[(1, 15), (3, 5)], &[]), 120);
        assert_eq!(waits.live.len(), 2);
    }

    #[test]
    fn a_thread_number_used_again_starts_a_new_thread() {
        let mut waits = RunqueueWaits::default();
        assert_eq!(observe(&mut waits, &[(7, 100)], &[]), 100);
        assert_eq!(observe(&mut waits, &[(7, 3)], &[]), 103);
    }

    #[test]
    fn a_thread_that_could_not_be_read_once_is_not_counted_twice() {
        let mut waits = RunqueueWaits::default();
        assert_eq!(observe(&mut waits, &[(1, 10), (2, 100)], &[]), 110);
        assert_eq!(observe(&mut waits, &[(1, 10)], &[2]), 110);
        assert_eq!(observe(&mut waits, &[(1, 10), (2, 105)], &[]), 115);
    }

    #[test]
    fn open_descriptors_are_the_same_number_by_size_and_by_count() {
        let process = Process::myself().expect("procfs");
        let _held = [(); 50].map(|()| fs::File::open("/proc/self/stat").expect("a file"));
        let sized = open_fds(&process, Path::new("/proc/self/fd"));
        let counted = process.fd_count();
        let (sized, counted) = (sized.expect("procfs"), counted.expect("procfs"));
        assert!(sized >= 50 && sized.abs_diff(counted as u64) < 25, "{sized} {counted}");
    }

    #[test]
    fn this_process_is_read() {
        let mut snapshot = Snapshot::default();
        let mut collector = ProcessCollector::new();
        collector.collect(&mut snapshot);
        assert!(collector.threads().of_thread(sys::thread_id()).is_some());
        let value = |name: &str| {
            let found = snapshot.readings().iter().find(|reading| reading.family.name == name);
            found.map(|reading| reading.value)
        };
        assert!(value("process_cpu_seconds_total").is_some_and(|seconds| seconds > 0.0));
        assert!(value("process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6));
        assert!(value("process_threads").is_some_and(|threads| threads >= 1.0));
        assert!(value("process_open_fds").is_some_and(|fds| fds >= 3.0));
        assert!(value("process_start_time_seconds").is_some_and(|at| at > 1.5e9));
    }
}
