//! What the scheduler counts for each thread of a process.
//!
//! In: `/proc/<pid>/task/<tid>/schedstat`. Out: time on a core and time waiting for one, per thread. Never: a file that stays
//! open (it would count among the service's descriptors); a thread that ended between two reads is skipped.

use std::fmt::Write as _;
use std::fs::File;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use rustix::fs::RawDir;

use super::kernel_file::KernelFiles;
use super::snapshot::Unavailable;
use super::text::{Schedstat, schedstat};

/// Of the directory's entries, some hundred at a time.
const LISTING_BYTES: usize = 4_096;

/// What was read of all threads.
#[derive(Debug, Default)]
pub(super) struct AllThreads {
    /// By number.
    pub(super) counted: Vec<(u32, Schedstat)>,
    /// Those that were there and could not be read, for want of a descriptor perhaps.
    pub(super) unread: Vec<u32>,
}

impl AllThreads {
    pub(super) fn get(&self, thread: u32) -> Option<Schedstat> {
        let found = self.counted.binary_search_by_key(&thread, |(counted, _)| *counted);
        found.ok().map(|place| self.counted[place].1)
    }
}

/// Reads the files of threads.
#[derive(Debug)]
pub(super) struct Threads {
    directory: PathBuf,
    files: KernelFiles,
    /// Of the file that is being read.
    name: String,
    all: AllThreads,
}

impl Threads {
    /// `process` is the procfs directory of one.
    pub(super) fn of(process: &Path) -> Self {
        let (files, all) = (KernelFiles::default(), AllThreads::default());
        Self { directory: process.join("task"), files, name: String::new(), all }
    }

    /// Forgets the threads that were read.
    pub(super) fn clear(&mut self) {
        self.all.counted.clear();
        self.all.unread.clear();
    }

    /// Reads every living thread. They are kept until the next time.
    pub(super) fn read_all(&mut self) -> Result<&AllThreads, Unavailable> {
        self.clear();
        let listed = self.list();
        listed.map_err(|source| Unavailable::Read { path: self.directory.clone(), source })?;
        let listed = std::mem::take(&mut self.all.unread);
        for &thread in &listed {
            if let Some(counted) = self.read(thread) {
                self.all.counted.push((thread, counted));
            }
        }
        self.all.counted.sort_unstable_by_key(|(thread, _)| *thread);
        self.all.unread = listed;
        let AllThreads { counted, unread } = &mut self.all;
        unread.retain(|thread| counted.binary_search_by_key(thread, |(read, _)| *read).is_err());
        if self.all.counted.is_empty() {
            return Err(Unavailable::NotHere("the kernel keeps no schedstat"));
        }
        Ok(&self.all)
    }

    /// Every thread goes to the unread.
    fn list(&mut self) -> std::io::Result<()> {
        let directory = File::open(&self.directory)?;
        let mut entries = [MaybeUninit::uninit(); LISTING_BYTES];
        let mut entries = RawDir::new(&directory, &mut entries);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_str();
            self.all.unread.extend(name.ok().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(())
    }

    /// One thread, from the last reading of all if it was among them; `None` if it has ended or the kernel keeps no schedstat.
    pub(super) fn of_thread(&mut self, thread: u32) -> Option<Schedstat> {
        self.all.get(thread).or_else(|| self.read(thread))
    }

    fn read(&mut self, thread: u32) -> Option<Schedstat> {
        self.name.clear();
        // Writing to a String cannot fail.
        let _ = write!(self.name, "{thread}/schedstat");
        let mut start = [0; 80];
        let text = self.files.read_start(&self.directory, &self.name, &mut start).ok()?;
        schedstat(std::str::from_utf8(text).ok()?)
    }
}
