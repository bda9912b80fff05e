//! `/debug/pprof/`: profiles of this process in profile.proto, as `go tool pprof` opens them.
//!
//! In: signals of the kernel's CPU timers, the sampled heap of jemalloc, the symbols of this executable. Out: an axum
//! router with the paths, headers and error bodies of Go's `net/http/pprof`. Never: work on a runtime's worker (each
//! capture has a thread of its own), a file on disk, or a capture without a bound in time.
//!
//! Differences from Go that are meant: a bad `seconds` of `profile` is refused instead of read as 30, and `seconds` is at
//! most 300; the delta of `allocs` still shows `alloc_space` first; POST of `symbol` is answered, as `go tool pprof` asks
//! (Go refuses it since 1.22); `mutex` and `trace` do not exist, and say why; profiles carry the service's name and version
//! as comments; `goroutine` counts tasks, which `tasks` shows with more; `threadcreate` counts live threads. A test asks the
//! same of a real Go service (`tests/it/profiles.rs`).

pub mod block;
mod counts;
mod cpu;
mod elf;
mod endpoints;
mod heap;
pub mod labels;
mod mappings;
mod paths;
mod profile;
mod ring;
mod sampler;
mod symbols;
#[expect(unsafe_code, reason = "memfd, mallctl, clocks, timers and signals have no safe interface")]
mod sys;
pub mod tasks;
mod threads;

#[cfg(feature = "agent")]
pub(crate) use cpu::encode_slices as encode_cpu;
#[cfg(feature = "agent")]
pub(crate) use endpoints::failure;
pub use endpoints::routes;
pub use sampler::samples_lost;
#[cfg(feature = "agent")]
pub(crate) use sampler::{Pace, Slice as CpuSlice, Subscription as CpuSubscription};
pub use sys::thread_cpu_time;

/// What `fuzz/` drives.
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing {
    pub use super::elf::read_any_elf;
    pub use super::endpoints::read_any_symbol_list;
    pub use super::heap::read_any_dump;
}

/// Who is profiled: stands in every profile as comments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service's name, as its users know it.
    pub name: String,
    /// The version that is running.
    pub version: String,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// Another profiler has the signal. Go's words, which tools look for.
    #[error("Could not enable CPU profiling: cpu profiling already in use")]
    CpuInUse,
    /// Captures share one sampler, up to a limit.
    #[error("Could not enable CPU profiling: too many captures run at once")]
    TooManyCaptures,
    /// The sampler did not start.
    #[error("Could not enable CPU profiling")]
    Cpu(#[source] std::io::Error),
    /// The process allocates elsewhere.
    #[error(
        "no heap profile: jemalloc is not this program's global allocator; build it with \
         headroom::profiled_jemalloc!()"
    )]
    NotJemalloc,
    /// jemalloc decides this at its start.
    #[error(
        "no heap profile: jemalloc started without profiling; start the program with \
         _RJEM_MALLOC_CONF=prof:true,prof_active:true,lg_prof_sample:19,prof_accum:true"
    )]
    HeapProfilingOff,
    /// Only live objects are known.
    #[error("no allocs profile: jemalloc started without prof_accum:true; heap works")]
    NotAccumulated,
    /// jemalloc refused to write its profile.
    #[error("jemalloc did not dump its profile: {0}")]
    Dump(tikv_jemalloc_ctl::Error),
    /// jemalloc refused to tell or change how it samples.
    #[error("jemalloc did not change how it samples: {0}")]
    Control(tikv_jemalloc_ctl::Error),
    /// The memory file that takes the dump.
    #[error("cannot take the dump of jemalloc")]
    MemoryFile(#[source] std::io::Error),
    /// The dump is not what `heap_v2` promises.
    #[error("line {line} of jemalloc's dump is not heap_v2")]
    MalformedDump {
        /// Counted from 1.
        line: usize,
    },
    /// No thread for the capture.
    #[error("cannot start a thread for the capture")]
    Thread(#[source] std::io::Error),
    /// The thread of the capture ended without an answer.
    #[error("the capture ended without a result")]
    Lost,
}

/// The memory in use now, as the endpoint `heap` gives it.
///
/// # Errors
/// As the endpoint: jemalloc is not the allocator, or does not profile.
#[cfg(feature = "agent")]
pub(crate) fn heap_profile(service: &Service) -> Result<Vec<u8>, CaptureError> {
    let view = heap::HeapView::InUse;
    let snapshot = heap::snapshot(view)?;
    Ok(heap::encode(service, view, symbols::Detail::Functions, snapshot, None))
}

/// The tasks of a runtime and their spawn sites, as the endpoint `tasks` gives them.
#[cfg(feature = "agent")]
pub(crate) fn tasks_profile(service: &Service, runtime: &tokio::runtime::Handle) -> Vec<u8> {
    endpoints::tasks_profile(service, runtime)
}
