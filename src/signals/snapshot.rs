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
    /// The service beside this process does not give it.
    #[error("{0}")]
    Beside(String),
}

impl From<tikv_jemalloc_ctl::Error> for Unavailable {
    fn from(error: tikv_jemalloc_ctl::Error) -> Self {
        Self::Jemalloc(error)
    }
}

/// Label names that a family of the catalogue may have.
pub(super) const MAX_LABELS: usize = 3;

/// One value of one series.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The family, from the catalogue.
    pub family: &'static Family,
    /// As many as the family has label names; here and not in a vector, since every scrape makes all readings anew.
    labels: [&'static str; MAX_LABELS],
    /// The value, in the family's unit; finite.
    pub value: f64,
    /// When the value was true, where that is not the moment of collecting.
    pub at: Option<Timestamp>,
}

impl Reading {
    /// One value per label name of the family, in that order.
    #[must_use]
    pub fn labels(&self) -> &[&'static str] {
        &self.labels[..self.family.labels.len().min(MAX_LABELS)]
    }
}

/// All readings of one moment. Reading again into a cleared one takes no new memory.
#[derive(Debug, Default)]
pub struct Snapshot {
    readings: Vec<Reading>,
    sources: Vec<(&'static str, Result<(), Unavailable>)>,
}

impl Snapshot {
    /// Adds the value of a family without labels.
    pub fn push(&mut self, family: &'static Family, value: f64) {
        self.push_reading(family, &[], value, None);
    }

    /// Adds a value that was true at `at`.
    pub fn push_at(&mut self, family: &'static Family, value: f64, at: Timestamp) {
        self.push_reading(family, &[], value, Some(at));
    }

    /// Adds the value of one series of a family with labels.
    pub fn push_labelled(&mut self, family: &'static Family, labels: &[&'static str], value: f64) {
        self.push_reading(family, labels, value, None);
    }

    /// Adds the value of one series of a family with labels, true at `at`.
    pub fn push_labelled_at(
        &mut self,
        family: &'static Family,
        labels: &[&'static str],
        value: f64,
        at: Timestamp,
    ) {
        self.push_reading(family, labels, value, Some(at));
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

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.readings.clear();
        self.sources.clear();
    }

    fn push_reading(
        &mut self,
        family: &'static Family,
        values: &[&'static str],
        value: f64,
        at: Option<Timestamp>,
    ) {
        debug_assert_eq!(values.len(), family.labels.len(), "{}", family.name);
        let mut labels = [""; MAX_LABELS];
        labels.iter_mut().zip(values).for_each(|(place, value)| *place = value);
        if value.is_finite() {
            self.readings.push(Reading { family, labels, value, at });
        }
    }
}
