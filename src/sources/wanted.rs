//! The families that somebody reads; the rest of an answer is checked and forgotten.
//!
//! In: names of families. Out: the shared [`MetricName`] of a sample that is wanted, so that keeping it allocates no name.

use std::collections::HashSet;

use crate::sample::MetricName;

/// Suffixes of a classic histogram's samples.
const HISTOGRAM_SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

/// A set of metric families. A family stands for its own samples and for those of a histogram of that name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    names: HashSet<MetricName>,
}

impl Wanted {
    /// The name of a sample, if its family is wanted.
    #[must_use]
    pub fn get(&self, sample_name: &str) -> Option<&MetricName> {
        self.names.get(sample_name)
    }

    /// Adds the families of another set.
    pub fn extend_from(&mut self, other: &Self) {
        self.names.extend(other.names.iter().cloned());
    }
}

impl<N: AsRef<str>> FromIterator<N> for Wanted {
    fn from_iter<I: IntoIterator<Item = N>>(families: I) -> Self {
        let mut names = HashSet::new();
        for family in families {
            let family = family.as_ref();
            names.insert(MetricName::new(family));
            names.extend(
                HISTOGRAM_SUFFIXES.map(|suffix| MetricName::new(&format!("{family}{suffix}"))),
            );
        }
        Self { names }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_stands_for_the_samples_of_its_histogram() {
        let wanted = Wanted::from_iter(["latency_seconds"]);
        for name in [
            "latency_seconds",
            "latency_seconds_bucket",
            "latency_seconds_sum",
            "latency_seconds_count",
        ] {
            assert_eq!(wanted.get(name).map(MetricName::as_str), Some(name));
        }
        assert_eq!(wanted.get("latency_seconds_max"), None);
        assert_eq!(wanted.get("latency"), None);
    }
}
