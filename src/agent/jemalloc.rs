//! jemalloc as a service's allocator, with heap profiles ready.
//!
//! In: one line in the service's `main.rs`. Out: a global allocator whose statistics and heap profiles the agent can read.

/// Makes jemalloc the global allocator of the program, with heap profiling on from the start. Call it once, at the top level
/// of `main.rs`, and nowhere in a library.
///
/// The options: one stack is sampled per 512 KiB allocated (`lg_prof_sample:19`), and allocations that were freed since stay
/// in the profile's totals (`prof_accum`). Profiling has to be on from the start: what is allocated while it is off is
/// missing from every later profile. `_RJEM_MALLOC_CONF` in the environment overrides the options.
///
/// jemalloc reads its options from the symbol `_rjem_malloc_conf` before `main` runs; the prefix is that of
/// `tikv-jemallocator` built without `unprefixed_malloc_on_supported_platforms`.
#[macro_export]
macro_rules! profiled_jemalloc {
    () => {
        #[global_allocator]
        static HEADROOM_ALLOCATOR: $crate::agent::Jemalloc = $crate::agent::Jemalloc;

        #[allow(unsafe_code, reason = "the name is jemalloc's own, and nothing else defines it")]
        #[unsafe(export_name = "_rjem_malloc_conf")]
        #[doc(hidden)]
        pub static HEADROOM_MALLOC_CONF: &[u8; $crate::agent::MALLOC_CONF.len()] =
            $crate::agent::MALLOC_CONF;
    };
}

/// The options, as the C string that jemalloc reads.
#[doc(hidden)]
pub const MALLOC_CONF: &[u8; 61] =
    b"prof:true,prof_active:true,lg_prof_sample:19,prof_accum:true\0";
