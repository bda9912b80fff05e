//! An arena of jemalloc for the agent's own threads.
//!
//! In: threads that serve the signals and profiles of the others. Out: their memory apart from the service's, given back when it
//! is no longer used. Never: an arena in a program whose allocator is another.
//!
//! Why: a profile takes some megabytes for a moment. jemalloc gives freed pages back only while their arena is in use, and threads
//! that come and go spread over four arenas per core: 90 MB stayed with a service that was profiled over and over.

#[cfg(feature = "agent")]
use std::ffi::c_int;
use std::ffi::c_uint;
use std::sync::OnceLock;

use tikv_jemalloc_ctl::{Error, raw};
#[cfg(feature = "agent")]
use tikv_jemalloc_sys::mallctlbymib;

#[cfg(feature = "agent")]
use super::counting::Jemalloc;

/// `None` where jemalloc refuses. Empty until somebody is there who gives back.
static ARENA: OnceLock<Option<Arena>> = OnceLock::new();

#[derive(Clone, Copy, Debug)]
struct Arena {
    index: c_uint,
    /// `arena.<index>.decay`.
    #[cfg(feature = "agent")]
    decay: [usize; 3],
}

#[cfg(feature = "agent")]
impl Arena {
    fn create() -> Option<Self> {
        let refused = |error: &_| tracing::debug!(%error, "jemalloc gives the agent no arena");
        Self::ask().inspect_err(refused).ok()
    }

    fn ask() -> Result<Self, Error> {
        let mut decay = [0; 3];
        raw::name_to_mib(b"arena.0.decay\0", &mut decay)?;
        // SAFETY: jemalloc documents `arenas.create` as an `unsigned`, the new arena's index.
        let index: c_uint = unsafe { raw::read(b"arenas.create\0")? };
        decay[1] = usize::try_from(index).unwrap_or(usize::MAX);
        Ok(Self { index, decay })
    }

    /// 0, or the number of an error.
    fn decay(&self) -> c_int {
        let (name, length) = (self.decay.as_ptr(), self.decay.len());
        let nothing = std::ptr::null_mut();
        // SAFETY: jemalloc documents `arena.<i>.decay` as a name that takes and gives nothing; `name` has `length` parts.
        unsafe { mallctlbymib(name, length, nothing, std::ptr::null_mut(), nothing, 0) }
    }
}

impl Arena {
    /// From now on this thread allocates here.
    fn enter(&self) -> Result<(), Error> {
        // SAFETY: jemalloc documents `thread.arena` as a writable `unsigned`.
        unsafe { raw::write(b"thread.arena\0", self.index) }
    }
}

/// Makes the arena, for whoever will call [`give_back`].
#[cfg(feature = "agent")]
pub(super) fn open() {
    // By now a service whose allocator it is has allocated more than a thread keeps to itself.
    if Jemalloc::counted().0 == 0 {
        return;
    }
    ARENA.get_or_init(Arena::create);
}

/// From now on this thread allocates in the agent's arena, if there is one.
pub(super) fn enter() {
    if let Some(Some(arena)) = ARENA.get()
        && let Err(error) = arena.enter()
    {
        tracing::debug!(%error, "a thread of the agent allocates among the service's");
    }
}

/// From now on heap profiles have nothing of what this thread allocates. With `prof_accum` jemalloc keeps the tables of every
/// sampled thread for ever, some kilobytes of what it calls allocated, that of threads that have ended too.
pub(super) fn leave_unsampled() {
    // SAFETY: jemalloc documents `thread.prof.active` as a writable bool. Its only error is that nothing is sampled anyway.
    let _ = unsafe { raw::write(b"thread.prof.active\0", false) };
}

/// Gives back the arena's pages that have not been used for a while: ten seconds, as jemalloc has it.
#[cfg(feature = "agent")]
pub(super) fn give_back() {
    if let Some(Some(arena)) = ARENA.get() {
        // Its only errors are a wrong name, and values where there are none.
        let _ = arena.decay();
    }
}

#[cfg(all(test, feature = "agent"))]
mod tests {
    use super::*;

    /// The arena of a new thread that does `first`.
    fn arena_of(first: impl FnOnce() + Send) -> c_uint {
        let arena = || {
            first();
            // SAFETY: jemalloc documents `thread.arena` as an `unsigned`.
            unsafe { raw::read(b"thread.arena\0") }.expect("jemalloc is linked")
        };
        std::thread::scope(|scope| scope.spawn(arena).join().expect("it ends"))
    }

    #[test]
    fn threads_that_are_set_apart_share_an_arena_that_no_other_has() {
        // The program's own may have been refused: the test program's allocator is the system's.
        let apart = Arena::ask().expect("jemalloc is linked");
        let enter = || apart.enter().expect("the arena is there");
        assert_eq!([arena_of(enter), arena_of(enter)], [apart.index; 2]);
        assert_ne!(arena_of(|| ()), apart.index);
        assert_eq!(apart.decay(), 0);
    }
}
