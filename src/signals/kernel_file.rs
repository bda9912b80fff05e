//! Small text files of the kernel.
//!
//! In: a path below /proc or /sys. Out: the text, or why not. Never: more than [`MAX_BYTES`], or memory of its own for each file.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::snapshot::Unavailable;

/// Twice the longest file that is read, `mountinfo` on a busy node.
const MAX_BYTES: u64 = 1 << 20;
/// These files say that they are empty, so the first guess is ours; one read is enough for nearly all of them.
const USUAL_BYTES: usize = 4_096;

/// Reads one file after the other, all into the same memory.
#[derive(Debug, Default)]
pub(super) struct KernelFiles {
    path: PathBuf,
    text: String,
}

impl KernelFiles {
    /// The text of a file, until the next is read.
    pub(super) fn read(&mut self, directory: &Path, name: &str) -> Result<&str, Unavailable> {
        let Self { path, text } = self;
        set(path, directory, name);
        text.clear();
        text.reserve(USUAL_BYTES);
        let read = File::open(&*path).and_then(|file| file.take(MAX_BYTES).read_to_string(text));
        match read {
            Ok(_) => Ok(text),
            Err(source) => Err(Unavailable::Read { path: path.clone(), source }),
        }
    }

    /// What `understand` makes of a file.
    pub(super) fn parse<T>(
        &mut self,
        directory: &Path,
        name: &str,
        understand: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Unavailable> {
        let understood = understand(self.read(directory, name)?);
        understood.ok_or_else(|| Unavailable::Malformed { path: directory.join(name) })
    }

    /// The path of a file, until the next is read.
    pub(super) fn path(&mut self, directory: &Path, name: &str) -> &Path {
        set(&mut self.path, directory, name);
        &self.path
    }

    /// Reads at most as many bytes as `start` has.
    pub(super) fn read_start<'a>(
        &mut self,
        directory: &Path,
        name: &str,
        start: &'a mut [u8],
    ) -> io::Result<&'a [u8]> {
        let length = File::open(self.path(directory, name))?.read(start)?;
        Ok(&start[..length])
    }
}

fn set(path: &mut PathBuf, directory: &Path, name: &str) {
    path.clear();
    path.push(directory);
    path.push(name);
}
