//! The calls into libc and jemalloc that need `unsafe`. Nothing else in `signals` does.

#![expect(unsafe_code, reason = "clock_gettime and jemalloc's untyped mallctl have no safe interface")]

use std::time::Duration;

use tikv_jemalloc_ctl::raw;

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

/// A jemalloc counter of requests of one size class, and the bytes that each request takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct SizeClass {
    requests: [usize; 6],
    bytes: u64,
}

impl SizeClass {
    /// Requests so far over all arenas, as of the last refresh of jemalloc's epoch.
    pub(super) fn requests(&self) -> Result<u64, tikv_jemalloc_ctl::Error> {
        // SAFETY: `stats.arenas.<i>.{bins,lextents}.<j>.nrequests` is a uint64_t (jemalloc 5.3, src/ctl.c).
        unsafe { raw::read_mib(&self.requests) }
    }

    /// The size of one allocation of this class.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// All size classes: small bins, then large extents.
pub(super) fn size_classes() -> Result<Vec<SizeClass>, tikv_jemalloc_ctl::Error> {
    // SAFETY: both are C unsigned (jemalloc 5.3, src/ctl.c).
    let (bins, extents): (libc::c_uint, libc::c_uint) =
        unsafe { (raw::read(b"arenas.nbins\0")?, raw::read(b"arenas.nlextents\0")?) };
    // 4096 is MALLCTL_ARENAS_ALL: the sum over all arenas.
    let mut classes = Vec::new();
    push_classes(&mut classes, b"stats.arenas.4096.bins.0.nrequests\0", b"arenas.bin.0.size\0", bins)?;
    push_classes(
        &mut classes,
        b"stats.arenas.4096.lextents.0.nrequests\0",
        b"arenas.lextent.0.size\0",
        extents,
    )?;
    Ok(classes)
}

fn push_classes(
    classes: &mut Vec<SizeClass>,
    requests_name: &[u8],
    size_name: &[u8],
    count: libc::c_uint,
) -> Result<(), tikv_jemalloc_ctl::Error> {
    let mut requests = [0; 6];
    let mut size = [0; 4];
    raw::name_to_mib(requests_name, &mut requests)?;
    raw::name_to_mib(size_name, &mut size)?;
    for index in 0..count as usize {
        requests[4] = index;
        size[2] = index;
        // SAFETY: `arenas.{bin,lextent}.<j>.size` is a size_t (jemalloc 5.3, src/ctl.c).
        let bytes: usize = unsafe { raw::read_mib(&size)? };
        classes.push(SizeClass { requests, bytes: bytes as u64 });
    }
    Ok(())
}

/// Allocates through jemalloc whatever the global allocator is, for tests of its statistics.
#[cfg(test)]
pub(super) fn allocate_and_free(bytes: usize, times: usize) {
    use std::alloc::{GlobalAlloc, Layout};
    let layout = Layout::from_size_align(bytes, 8).expect("8 is a power of two");
    for _ in 0..times {
        // SAFETY: the layout is not zero-sized, and the block is freed with the layout it was allocated with.
        unsafe {
            let block = tikv_jemallocator::Jemalloc.alloc(layout);
            tikv_jemallocator::Jemalloc.dealloc(std::hint::black_box(block), layout);
        }
    }
}
