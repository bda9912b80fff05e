//! Captures on disk: a folder per capture, written whole or not at all.
//!
//! In: encoded captures. Out: `capture-ID/` with its files and `capture.json`. Never: more than [`MAX_KEPT`] folders, or the
//! loss of a complete folder to a half-written one.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::capture::Capture;
use super::routes::description;

/// Folders kept; the oldest goes first.
const MAX_KEPT: usize = 16;
const PREFIX: &str = "capture-";

/// Where captures are kept. It need not exist yet.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

impl std::fmt::Display for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Directory {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// One more than the largest id on disk, so that a restart overwrites nothing.
    pub(super) fn next_id(&self) -> u64 {
        self.ids().last().map_or(0, |newest| newest + 1)
    }

    /// Writes a capture beside its former version, then puts it in its place.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn write(&self, capture: &Capture) -> io::Result<()> {
        let name = format!("{PREFIX}{}", capture.id);
        let (place, draft) = (self.0.join(&name), self.0.join(format!(".{name}")));
        fs::create_dir_all(&self.0)?;
        remove(&draft)?;
        fs::create_dir(&draft)?;
        for file in &capture.files {
            fs::write(draft.join(file.name), &file.content)?;
        }
        fs::write(draft.join("capture.json"), description(capture).to_string())?;
        remove(&place)?;
        fs::rename(&draft, &place)?;
        let ids = self.ids();
        for id in &ids[..ids.len().saturating_sub(MAX_KEPT)] {
            remove(&self.0.join(format!("{PREFIX}{id}")))?;
        }
        Ok(())
    }

    fn ids(&self) -> Vec<u64> {
        let id = |entry: io::Result<fs::DirEntry>| {
            entry.ok()?.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()
        };
        let mut ids: Vec<u64> =
            fs::read_dir(&self.0).into_iter().flatten().filter_map(id).collect();
        ids.sort_unstable();
        ids
    }
}

fn remove(folder: &PathBuf) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
