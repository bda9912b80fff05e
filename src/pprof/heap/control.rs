//! What has no safe interface: the mallctl names that steer sampling.

use tikv_jemalloc_ctl::{Error, raw};

/// The base-2 logarithm of the bytes between two samples: `prof.lg_sample`.
pub(super) fn lg_interval() -> Result<usize, Error> {
    // SAFETY: jemalloc documents `prof.lg_sample` as a `size_t`.
    unsafe { raw::read(b"prof.lg_sample\0") }
}

/// Whether samples are taken: `prof.active`.
pub(super) fn set_active(active: bool) -> Result<(), Error> {
    // SAFETY: jemalloc documents `prof.active` as a writable bool.
    unsafe { raw::write(b"prof.active\0", active) }
}

/// Forgets all samples and takes new ones at that interval: `prof.reset`.
pub(super) fn reset(lg_interval: u32) -> Result<(), Error> {
    let lg_interval = usize::try_from(lg_interval).unwrap_or(usize::MAX);
    // SAFETY: jemalloc documents `prof.reset` as taking an optional `size_t`.
    unsafe { raw::write(b"prof.reset\0", lg_interval) }
}
