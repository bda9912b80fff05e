//! What series are called, each name with its labels once: the pods of a fleet have the same series.
//!
//! In: the series of a sample. Out: the one shared copy. Never: more than twice the names that are in use.

use std::collections::HashSet;
use std::sync::Arc;

use crate::sample::SeriesKey;

/// Names that are kept without a look at which are in use.
const FEW: usize = 1024;
/// The two counts before what an [`Arc`] holds.
const ARC: usize = 2 * size_of::<usize>();

/// The names of all series of a store.
#[derive(Debug)]
pub(super) struct Names {
    known: HashSet<Arc<SeriesKey>>,
    sweep_at: usize,
}

impl Default for Names {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: FEW }
    }
}

impl Names {
    /// The shared copy of a name.
    pub(super) fn share(&mut self, name: &SeriesKey) -> Arc<SeriesKey> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.sweep();
        }
        let shared = Arc::new(name.clone());
        self.known.insert(shared.clone());
        shared
    }

    /// Forgets names that no series has any more.
    pub(super) fn sweep(&mut self) {
        self.known.retain(|name| Arc::strong_count(name) > 1);
        self.sweep_at = (2 * self.known.len()).max(FEW);
        self.known.shrink_to(self.sweep_at);
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let names = self.known.iter().map(|name| {
            let pair = |(label, value): (&str, &str)| {
                size_of::<[Arc<str>; 2]>() + 2 * ARC + label.len() + value.len()
            };
            let labels: usize = name.labels.iter().map(pair).sum();
            size_of::<SeriesKey>() + 3 * ARC + name.name.as_str().len() + labels
        });
        super::table_bytes::<Arc<SeriesKey>>(self.known.capacity()) + names.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Labels, MetricName};

    #[test]
    fn a_name_is_kept_once_and_only_while_a_series_has_it() {
        let name = |index: usize| SeriesKey {
            name: MetricName::new(&format!("c{index}")),
            labels: Labels::default(),
        };
        let mut names = Names::default();
        let held = names.share(&name(0));
        assert!(Arc::ptr_eq(&held, &names.share(&name(0))));
        for index in 1..10 * FEW {
            drop(names.share(&name(index)));
        }
        assert!(names.known.len() <= FEW, "{}", names.known.len());
        assert!(Arc::ptr_eq(&held, &names.share(&name(0))));
        names.sweep();
        assert_eq!(names.known.len(), 1);
    }
}
