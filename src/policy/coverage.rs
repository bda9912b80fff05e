//! How many of the pods that should report a signal do.
//!
//! In: one reading per pod. Out: counts, and whether a total may be inferred from them. Never: 0/0 as a ratio.

use super::Coverage;
use super::observe::{Observed, Reading};
use crate::units::{Measure, Ratio};

/// Pods by their standing for one signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) reporting: u32,
    /// Reporting, or fallen silent, or without the families, or Ready for over `startGrace`: a union.
    pub(super) expected: u32,
    /// Reported since their container started and fell silent.
    pub(super) silent: u32,
    /// Report, without the families of the signal.
    pub(super) missing: u32,
    /// Report, with a single sample of a counter.
    pub(super) awaiting: u32,
}

impl Counts {
    pub(super) fn of<T>(readings: &[Reading<T>], pods: &[Observed<'_>]) -> Self {
        let mut counts = Self::default();
        for (reading, pod) in readings.iter().zip(pods) {
            let expected = match reading {
                Reading::Fresh(_) => {
                    counts.reporting += 1;
                    true
                }
                Reading::Silent(_) => {
                    counts.silent += 1;
                    true
                }
                Reading::Missing => {
                    counts.missing += 1;
                    true
                }
                Reading::Awaiting => {
                    counts.awaiting += 1;
                    pod.due
                }
                Reading::Unheard => pod.due,
            };
            counts.expected += u32::from(expected);
        }
        counts
    }

    /// The same for a reader of the decision.
    pub(super) fn coverage(self, pods: &[Observed<'_>]) -> Coverage {
        Coverage {
            matched: u32::try_from(pods.len()).unwrap_or(u32::MAX),
            reporting: self.reporting,
            expected: self.expected,
        }
    }

    /// Whether enough report to infer the rest.
    pub(super) fn reaches(self, floor: Ratio) -> bool {
        self.expected > 0 && f64::from(self.reporting) >= floor.get() * f64::from(self.expected)
    }
}
