//! The words of the flow: metric names, labels, selectors, series, samples and batches.
//!
//! In: text that others wrote. Out: small immutable values, cheap to clone. Never: a clock or a network.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::time::{Moment, Timestamp};

mod selector;
pub use selector::{Operator, RequirementParts, Selector, SelectorError};

/// A metric's name as Prometheus writes it, e.g. `tokio_alive_tasks`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetricName(Arc<str>);

impl MetricName {
    /// Takes a name as it is.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Maps keyed by name are asked with a plain `&str`.
impl std::borrow::Borrow<str> for MetricName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for MetricName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MetricName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A set of labels, sorted by name, each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a label, if it is set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| &**key == name).map(|(_, value)| &**value)
    }

    /// Pairs in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

/// Of two pairs with one name the last counts.
impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let sorted: BTreeMap<Arc<str>, Arc<str>> = pairs
            .into_iter()
            .map(|(key, value)| (Arc::from(key.as_ref()), Arc::from(value.as_ref())))
            .collect();
        Self(sorted.into_iter().collect())
    }
}

/// What tells one series of a pod from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesKey {
    /// The metric's name.
    pub name: MetricName,
    /// All labels of the series.
    pub labels: Labels,
}

/// One reading of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The series.
    pub series: SeriesKey,
    /// The reading, in the metric's own unit; finite.
    pub value: f64,
    /// When the value was true: the exposition's own timestamp where it has one, else when the answer began.
    pub at: Timestamp,
}

/// One incarnation of a pod: its uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey(pub Arc<str>);

/// One endpoint of one pod, asked in one rhythm. Who agrees on all of it shares the answers; who does not must not read the
/// others': their series, times and failures are of something else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The pod.
    pub pod: PodKey,
    /// The port on the pod's address.
    pub port: u16,
    /// The path, starting with `/`.
    pub path: Arc<str>,
    /// The time from one attempt to the next.
    pub interval: Duration,
}

/// What one attempt to collect from one endpoint of a pod brought.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The endpoint asked.
    pub endpoint: EndpointKey,
    /// When the answer was complete, or was given up.
    pub arrived: Moment,
    /// The same on the wall clock.
    pub arrived_at: Timestamp,
    /// The samples, or why there are none: one malformed line fails the whole batch, as in Prometheus.
    pub outcome: Result<Vec<Sample>, CollectFailure>,
    /// Samples that were left out of an otherwise good answer, by reason.
    pub dropped: Vec<Dropped>,
}

/// Why a pod gave no samples. The text is shown to operators: it names the cause, never a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectFailure {
    /// No address yet, or connecting failed.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// No complete answer before the deadline.
    #[error("no complete answer within {0:?}")]
    Timeout(std::time::Duration),
    /// An HTTP status other than 200.
    #[error("answered with HTTP status {0}")]
    Status(u16),
    /// The connection broke while the answer was read.
    #[error("the answer broke off: {0}")]
    Interrupted(String),
    /// More bytes than the limit.
    #[error("the answer is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit that was exceeded.
        limit_bytes: usize,
    },
    /// Not the text format.
    #[error("line {line} is not in the Prometheus text format: {reason}")]
    Malformed {
        /// The first bad line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Samples left out of a good answer, for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The metric concerned.
    pub name: MetricName,
    /// Why.
    pub reason: DropReason,
    /// How many samples of the metric.
    pub samples: u64,
}

/// Why a sample of a good answer is not kept. A closed set: it labels a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// NaN or infinite.
    NotFinite,
    /// Negative, where the metric cannot be.
    Negative,
    /// The same series twice in one answer; none of the two is believed.
    Duplicate,
    /// The pod's limit of series is reached.
    TooManySeries,
    /// More labels, or longer ones, than a series may have.
    LabelsTooLarge,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NotFinite,
        Self::Negative,
        Self::Duplicate,
        Self::TooManySeries,
        Self::LabelsTooLarge,
    ];

    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFinite => "not_finite",
            Self::Negative => "negative",
            Self::Duplicate => "duplicate",
            Self::TooManySeries => "too_many_series",
            Self::LabelsTooLarge => "labels_too_large",
        }
    }
}
