//! What has no safe interface: the mallctl names that steer sampling, and the hooks that tell of sampled objects.
//!
//! In: an interval, and jemalloc's word of each sampled object. Out: the switches of jemalloc, and calls of [`labelled`].
//! Never: an allocation, a panic or a wait in a hook: they run inside `malloc` and `free`, on the thread that called them.

use std::ffi::{c_uint, c_void};

use tikv_jemalloc_ctl::{Error, raw};

use super::labelled;

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

/// Address, bytes asked for, return addresses and their number, bytes given. Source: `prof_hook.h` of jemalloc 5.3.1.
type SampleHook = extern "C" fn(*const c_void, usize, *mut *mut c_void, c_uint, usize);
/// Address, bytes given. Source: as above.
type FreeHook = extern "C" fn(*const c_void, usize);

/// Has jemalloc tell [`labelled`] of each sampled object, unless somebody else listens already.
pub(super) fn install_hooks() -> Result<(), Error> {
    const SAMPLE: &[u8] = b"experimental.hooks.prof_sample\0";
    const FREE: &[u8] = b"experimental.hooks.prof_sample_free\0";
    // SAFETY: both names hold a function pointer of the type above, or null.
    let present: (Option<SampleHook>, Option<FreeHook>) =
        unsafe { (raw::read(SAMPLE)?, raw::read(FREE)?) };
    if present.0.is_some() || present.1.is_some() {
        return Ok(());
    }
    // SAFETY: as above; the functions live as long as the program. The free hook comes first, so that no object is known
    // whose free would not be told.
    unsafe {
        raw::write(FREE, Some(on_free as FreeHook))?;
        raw::write(SAMPLE, Some(on_sample as SampleHook))
    }
}

extern "C" fn on_sample(
    address: *const c_void,
    _: usize,
    frames: *mut *mut c_void,
    count: c_uint,
    bytes: usize,
) {
    let count = usize::try_from(count).unwrap_or(0);
    if frames.is_null() || count == 0 {
        return;
    }
    // SAFETY: jemalloc passes `count` return addresses, which stay while the hook runs; a pointer is as wide as a usize.
    let frames = unsafe { std::slice::from_raw_parts(frames.cast::<usize>().cast_const(), count) };
    labelled::sampled(address.addr(), bytes, frames);
}

extern "C" fn on_free(address: *const c_void, _: usize) {
    labelled::freed(address.addr());
}
