//! What one reading of all sources brought.
//!
//! In: values pushed by collectors. Out: readings with their families, and which sources had nothing to say and why. Never:
//! a value that is not finite, and never a stand-in for a missing one.

use std::io;
use std::path::PathBuf;

use crate::time::Timestamp;

use super::Family;

/// Why a source has no values.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// A file of the kernel could not be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the kernel says something else than expected.
    #[error("{} is not understood", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// procfs could not be read or understood.
    #[error("cannot read procfs")]
    Procfs(#[from] procfs::ProcError),
    /// jemalloc refused a question. Its error type implements no `Error` that could be a source.
    #[error("cannot ask jemalloc: {0}")]
    Jemalloc(tikv_jemalloc_ctl::Error),
    /// The source does not exist in this process.
    #[error("{0}")]
    NotHere(&'static str),
}

impl From<tikv_jemalloc_ctl::Error> for Unavailable {
    fn from(error: tikv_jemalloc_ctl::Error) -> Self {
        Self::Jemalloc(error)
    }
}

/// One value of one series.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The family, from the catalogue.
    pub family: &'static Family,
    /// One value per label name of the family, in that order.
    pub labels: Vec<&'static str>,
    /// The value, in the family's unit; finite.
    pub value: f64,
    /// When the value was true, where that is not the moment of collecting.
    pub at: Option<Timestamp>,
}

/// All readings of one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    readings: Vec<Reading>,
    sources: Vec<(&'static str, Result<(), Unavailable>)>,
}

impl Snapshot {
    /// Adds the value of a family without labels.
    pub fn push(&mut self, family: &'static Family, value: f64) {
        self.push_reading(Reading { family, labels: Vec::new(), value, at: None });
    }

    /// Adds a value that was true at `at`.
    pub fn push_at(&mut self, family: &'static Family, value: f64, at: Timestamp) {
        self.push_reading(Reading { family, labels: Vec::new(), value, at: Some(at) });
    }

    /// Adds the value of one series of a family with labels.
    pub fn push_labelled(&mut self, family: &'static Family, labels: &[&'static str], value: f64) {
        self.push_reading(Reading { family, labels: labels.to_vec(), value, at: None });
    }

    /// Adds the value of one series of a family with labels, true at `at`.
    pub fn push_labelled_at(
        &mut self,
        family: &'static Family,
        labels: &[&'static str],
        value: f64,
        at: Timestamp,
    ) {
        self.push_reading(Reading { family, labels: labels.to_vec(), value, at: Some(at) });
    }

    /// Says whether a source answered. Each source says so once per snapshot.
    pub fn source(&mut self, name: &'static str, outcome: Result<(), Unavailable>) {
        self.sources.push((name, outcome));
    }

    /// The values, grouped as the collectors pushed them.
    #[must_use]
    pub fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// The sources by name, each with the reason if it had nothing to say.
    pub fn sources(&self) -> &[(&'static str, Result<(), Unavailable>)] {
        &self.sources
    }

    fn push_reading(&mut self, reading: Reading) {
        debug_assert_eq!(
            reading.labels.len(),
            reading.family.labels.len(),
            "{}",
            reading.family.name
        );
        if reading.value.is_finite() {
            self.readings.push(reading);
        }
    }
}
