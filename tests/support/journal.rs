//! A log file of the test support itself, beside those of the programs it runs.
//!
//! In: lines. Out: the file, each line with the time. Never: the terminal.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use parking_lot::Mutex;

/// An open log file.
#[derive(Debug)]
pub(crate) struct Journal(Mutex<File>);

impl Journal {
    /// Opens the file, which must not exist.
    ///
    /// # Errors
    /// The file exists or cannot be created.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        File::create_new(path).map(|file| Self(Mutex::new(file)))
    }

    /// Appends one line.
    pub(crate) fn note(&self, line: impl Display) {
        // A full disk shows in everything else; the journal has nowhere to say it.
        let _lost = writeln!(self.0.lock(), "{} {line}", jiff::Timestamp::now());
    }
}
