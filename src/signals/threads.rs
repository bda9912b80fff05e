//! What the scheduler counts for each thread of this process.
//!
//! In: `/proc/self/task/<tid>/schedstat`. Out: time on a core and time waiting for one, per thread. Never: a file that stays
//! open (it would count among the service's descriptors); a thread that ended between two reads is skipped.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::snapshot::Unavailable;
use super::text::{Schedstat, schedstat};

/// Finds the files of threads.
#[derive(Debug)]
pub(super) struct Threads {
    directory: PathBuf,
}

impl Threads {
    /// `root` is `/`, or a directory with a copy of its `proc`.
    pub(super) fn new(root: &Path) -> Self {
        Self { directory: root.join("proc/self/task") }
    }

    /// Every living thread. A reading costs about 4 microseconds each.
    pub(super) fn read_all(&self) -> Result<Vec<(u32, Schedstat)>, Unavailable> {
        let unreadable = |source| Unavailable::Read { path: self.directory.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let thread = name.to_str().and_then(|name| name.parse().ok());
            if let Some(thread) = thread
                && let Some(counted) = self.read(thread)
            {
                found.push((thread, counted));
            }
        }
        if found.is_empty() {
            return Err(Unavailable::NotHere("the kernel keeps no schedstat"));
        }
        Ok(found)
    }

    /// One thread; `None` if it has ended or the kernel keeps no schedstat.
    pub(super) fn read(&self, thread: u32) -> Option<Schedstat> {
        let mut text = [0; 80];
        let mut file = File::open(self.directory.join(format!("{thread}/schedstat"))).ok()?;
        let length = file.read(&mut text).ok()?;
        schedstat(std::str::from_utf8(&text[..length]).ok()?)
    }
}
