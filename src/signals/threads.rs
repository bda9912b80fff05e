//! What the scheduler counts for each thread of a process.
//!
//! In: `/proc/<pid>/task/<tid>/schedstat`. Out: time on a core and time waiting for one, per thread. Never: a file that stays
//! open (it would count among the service's descriptors); a thread that ended between two reads is skipped.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::snapshot::Unavailable;
use super::text::{Schedstat, schedstat};

/// What was read of all threads.
#[derive(Debug, Default)]
pub(super) struct AllThreads {
    pub(super) counted: Vec<(u32, Schedstat)>,
    /// Those that were there and could not be read, for want of a descriptor perhaps.
    pub(super) unread: Vec<u32>,
}

/// Finds the files of threads.
#[derive(Debug)]
pub(super) struct Threads {
    directory: PathBuf,
}

impl Threads {
    /// `process` is the procfs directory of one.
    pub(super) fn of(process: &Path) -> Self {
        Self { directory: process.join("task") }
    }

    /// Every living thread.
    pub(super) fn read_all(&self) -> Result<AllThreads, Unavailable> {
        let unreadable = |source| Unavailable::Read { path: self.directory.clone(), source };
        let mut found = AllThreads::default();
        for entry in fs::read_dir(&self.directory).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let thread = name.to_str().and_then(|name| name.parse().ok());
            let Some(thread) = thread else { continue };
            match self.read(thread) {
                Some(counted) => found.counted.push((thread, counted)),
                None => found.unread.push(thread),
            }
        }
        if found.counted.is_empty() {
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
