//! How often each size class of jemalloc was asked for.
//!
//! In: jemalloc's merged statistics of all arenas. Out: allocations and bytes since start, each allocation counted with the
//! size of its class. Never: `nmalloc`, which counts the fills of thread caches (0.06 of the bytes, measured).
//!
//! The counters are merged when a thread's cache is filled or flushed. A thread that allocates and frees one class over and
//! over does neither; its allocations appear late, then in one step.

use std::ffi::c_uint;

use tikv_jemalloc_ctl::{Error, raw};

/// Names resolved once, and the size of every class.
#[derive(Debug)]
pub(in crate::signals) struct SizeClasses {
    small: Group,
    large: Group,
}

#[derive(Debug)]
struct Group {
    /// `stats.arenas.4096.{bins,lextents}.<j>.nrequests`; the class is the fifth number.
    requests: [usize; 6],
    sizes: Vec<usize>,
}

impl SizeClasses {
    /// Asks for the classes.
    pub(in crate::signals) fn new() -> Result<Self, Error> {
        // 4096 is MALLCTL_ARENAS_ALL: the sum over all arenas.
        let small = Group::new(
            b"arenas.nbins\0",
            b"arenas.bin.0.size\0",
            b"stats.arenas.4096.bins.0.nrequests\0",
        )?;
        let large = Group::new(
            b"arenas.nlextents\0",
            b"arenas.lextent.0.size\0",
            b"stats.arenas.4096.lextents.0.nrequests\0",
        )?;
        Ok(Self { small, large })
    }

    /// Allocations and their bytes so far, as of the epoch's last refresh.
    pub(in crate::signals) fn counted(&self) -> Result<(u64, u64), Error> {
        let (small, large) = (self.small.counted()?, self.large.counted()?);
        Ok((small.0 + large.0, small.1 + large.1))
    }
}

impl Group {
    fn new(count: &[u8], size: &[u8], requests: &[u8]) -> Result<Self, Error> {
        // SAFETY: jemalloc documents `arenas.nbins` and `arenas.nlextents` as `unsigned`.
        let classes: c_uint = unsafe { raw::read(count)? };
        let mut size_name = [0; 4];
        raw::name_to_mib(size, &mut size_name)?;
        let sizes = (0..classes as usize).map(|class| {
            size_name[2] = class;
            // SAFETY: jemalloc documents the size of a class as `size_t`.
            unsafe { raw::read_mib(&size_name) }
        });
        let sizes = sizes.collect::<Result<_, _>>()?;
        let mut name = [0; 6];
        raw::name_to_mib(requests, &mut name)?;
        Ok(Self { requests: name, sizes })
    }

    fn counted(&self) -> Result<(u64, u64), Error> {
        let (mut name, mut allocations, mut bytes) = (self.requests, 0, 0_u64);
        for (class, &size) in self.sizes.iter().enumerate() {
            name[4] = class;
            // SAFETY: jemalloc documents `nrequests` as `uint64_t`.
            let requests: u64 = unsafe { raw::read_mib(&name)? };
            allocations += requests;
            bytes = bytes.saturating_add(requests.saturating_mul(size as u64));
        }
        Ok((allocations, bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc as _, Layout};

    use super::*;

    #[test]
    fn a_large_allocation_is_counted_with_its_class() {
        let classes = SizeClasses::new().expect("jemalloc has statistics");
        let counted = || {
            tikv_jemalloc_ctl::epoch::advance().expect("statistics");
            classes.counted().expect("statistics")
        };
        let before = counted();
        let layout = Layout::from_size_align(40 << 20, 8).expect("8 is a power of two");
        // SAFETY: the layout is not zero-sized, and the block is freed with the layout it has.
        unsafe {
            let block = tikv_jemallocator::Jemalloc.alloc(layout);
            assert!(!block.is_null());
            tikv_jemallocator::Jemalloc.dealloc(block, layout);
        }
        let after = counted();
        assert!(after.0 > before.0);
        assert!(after.1 - before.1 >= 40 << 20, "{} bytes", after.1 - before.1);
    }
}
