//! The executable parts of this process's address space.
//!
//! In: `/proc/self/maps`. Out: which file's code lies where. Never: an error; without /proc nothing is known.

use std::path::PathBuf;

use procfs::process::{MMPermissions, MMapPath, Process};

/// One mapped piece of a file's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CodeMapping {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Where in the file the piece starts.
    pub offset: u64,
    /// The file; `[vdso]` for the kernel's.
    pub file: PathBuf,
}

impl CodeMapping {
    /// Where in the file the code at `address` stands.
    pub(super) fn file_offset(&self, address: u64) -> Option<u64> {
        (self.start..self.end).contains(&address).then(|| address - self.start + self.offset)
    }
}

/// The mappings in order of address: the main executable comes first.
pub(super) fn of_this_process() -> Vec<CodeMapping> {
    let Ok(maps) = Process::myself().and_then(|process| process.maps()) else {
        return Vec::new();
    };
    let code = |map: procfs::process::MemoryMap| {
        let file = match map.pathname {
            MMapPath::Path(path) => path,
            MMapPath::Vdso => PathBuf::from("[vdso]"),
            _ => return None,
        };
        let executable = map.perms.contains(MMPermissions::EXECUTE);
        let (start, end) = map.address;
        executable.then_some(CodeMapping { start, end, offset: map.offset, file })
    };
    maps.into_iter().filter_map(code).collect()
}
