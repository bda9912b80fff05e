//! Captures on disk: a folder per capture, written whole or not at all.
//!
//! In: encoded captures. Out: `capture-ID/` with its files and `capture.json`. Never: more than [`MAX_KEPT`] folders, or the
//! loss of a complete folder to a half-written one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::capture::Capture;
use super::routes::description;

/// Folders kept; the oldest goes first.
const MAX_KEPT: usize = 16;
const PREFIX: &str = "capture-";
/// The former version of a capture, while the new one is put in its place.
const ASIDE: &str = ".former-";
/// What is not written to the end.
const DRAFT: &str = ".draft-";

/// Where captures are kept. It need not exist yet.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

impl std::fmt::Display for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Directory {
    /// Takes up what an earlier run left half done.
    pub(super) fn open(path: PathBuf) -> Self {
        let directory = Self(path);
        if let Err(error) = directory.recover() {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, directory = %directory, "cannot tidy the captures of an earlier run");
        }
        directory
    }

    fn recover(&self) -> io::Result<()> {
        for id in self.numbers(ASIDE) {
            let (place, aside) =
                (self.0.join(format!("{PREFIX}{id}")), self.0.join(format!("{ASIDE}{id}")));
            if place.exists() { remove(&aside)? } else { fs::rename(&aside, &place)? }
        }
        self.numbers(DRAFT)
            .into_iter()
            .try_for_each(|id| remove(&self.0.join(format!("{DRAFT}{id}"))))
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
        let (place, draft) = (self.0.join(&name), self.0.join(format!("{DRAFT}{}", capture.id)));
        fs::create_dir_all(&self.0)?;
        remove(&draft)?;
        fs::create_dir(&draft)?;
        for file in &capture.files {
            fs::write(draft.join(file.name), &file.content)?;
        }
        fs::write(draft.join("capture.json"), description(capture).to_string())?;
        // A kill at any point leaves one of the two whole; a restart takes up what stands aside.
        let aside = self.0.join(format!("{ASIDE}{}", capture.id));
        remove(&aside)?;
        match fs::rename(&place, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::rename(&draft, &place)?,
        }
        remove(&aside)?;
        let ids = self.ids();
        for id in &ids[..ids.len().saturating_sub(MAX_KEPT)] {
            remove(&self.0.join(format!("{PREFIX}{id}")))?;
        }
        Ok(())
    }

    fn ids(&self) -> Vec<u64> {
        self.numbers(PREFIX)
    }

    fn numbers(&self, prefix: &str) -> Vec<u64> {
        let id = |entry: io::Result<fs::DirEntry>| {
            entry.ok()?.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()
        };
        let mut ids: Vec<u64> =
            fs::read_dir(&self.0).into_iter().flatten().filter_map(id).collect();
        ids.sort_unstable();
        ids
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
