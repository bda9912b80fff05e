//! The samples that somebody reads; the rest of an answer is checked and forgotten.
//!
//! In: names of samples, a histogram as its three. Out: the shared [`MetricName`] of a wanted sample, so that keeping one
//! allocates no name.

use std::collections::HashSet;

use crate::sample::MetricName;

/// A set of sample names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    names: HashSet<MetricName>,
}

impl Wanted {
    /// The name, if it is wanted.
    #[must_use]
    pub fn get(&self, sample_name: &str) -> Option<&MetricName> {
        self.names.get(sample_name)
    }

    /// Adds the names of another set.
    pub fn extend_from(&mut self, other: &Self) {
        self.names.extend(other.names.iter().cloned());
    }
}

impl FromIterator<MetricName> for Wanted {
    fn from_iter<I: IntoIterator<Item = MetricName>>(names: I) -> Self {
        Self { names: names.into_iter().collect() }
    }
}

#[cfg(test)]
impl Wanted {
    /// These names.
    pub(crate) fn of(names: &[&str]) -> Self {
        names.iter().copied().map(MetricName::new).collect()
    }
}
