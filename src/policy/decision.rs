//! What was decided, and why: everything the API serves, the status shows and the explanation tells.

use std::sync::Arc;
use std::time::Duration;

use super::{DescribedObject, Learned, PolicyId, refusal};
use crate::sample::{CollectFailure, Labels, MetricName};
use crate::time::{Moment, Timestamp};
use crate::units::{ByteCount, CpuCores, Ratio};

/// The external metric of [`Decision::demand`]: the one that a generated HPA asks for.
pub const DEMAND_METRIC: &str = "headroom_demand";
/// The label of every external metric's item that names its policy.
pub const POLICY_LABEL: &str = "policy";

/// The outcome of one decision about one policy. All values are finite and zero or more.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Whose policy.
    pub policy: PolicyId,
    /// The scale target, as an object that custom metrics describe.
    pub target: DescribedObject,
    /// `metadata.generation` of the policy it was made with.
    pub generation: i64,
    /// When it was made. A reader refuses a decision older than [`Decision::stale_after`].
    pub decided: Moment,
    /// The policy's `staleAfter`.
    pub stale_after: Duration,
    /// The time of the oldest newest-sample it rests on, for the API's `timestamp`.
    pub sampled_at: Timestamp,
    /// The policy's window, for the API's `window`.
    pub window: Duration,
    /// Pods' worth of work demanded now (`headroom_demand`), or why it cannot be said.
    pub demand: Result<f64, Unserved>,
    /// The signal whose demand is the largest, if any is known.
    pub driver: Option<Arc<str>>,
    /// One per signal of the policy, in its order.
    pub signals: Vec<SignalDecision>,
    /// How many of the pods that should report do.
    pub coverage: Coverage,
    /// Totals over the reporting pods in their own unit (`headroom_tasks` …).
    pub totals: Vec<Total>,
    /// Quantiles of the merged latency histogram (`headroom_latency_seconds`).
    pub quantiles: Vec<Quantile>,
    /// What each reporting pod shows, by the pods' names.
    pub pods: Vec<PodReading>,
    /// Values of objects that are not pods, where a signal says what it describes.
    pub objects: Vec<ObjectReading>,
    /// Pods that did not count as they should, and why.
    pub left_out: Vec<LeftOut>,
    /// What is wrong with the policy as far as a decision can see; each becomes a condition.
    pub findings: Vec<Finding>,
    /// What is learned so far, for `status.learned`.
    pub learned: Learned,
}

impl Decision {
    /// Whether all pods that should report the signal do: a part of a total is none.
    ///
    /// # Errors
    /// [`Unserved`] with the pods that are lacking, and why.
    pub fn whole(&self, signal: &str) -> Result<(), Unserved> {
        let measured = self.signals.iter().find(|known| *known.name == *signal);
        let coverage = measured.map_or(self.coverage, |known| known.coverage);
        refusal::whole(&self.left_out, signal, coverage)
    }

    /// How long ago it was made.
    #[must_use]
    pub fn age(&self, now: Moment) -> Duration {
        now.since(self.decided)
    }

    /// Whether it no longer stands: it does for [`Decision::stale_after`], and not a moment longer.
    #[must_use]
    pub fn is_stale(&self, now: Moment) -> bool {
        self.age(now) > self.stale_after
    }

    /// Names this decision among those of its policy, in logs: the microseconds from the adapter's start to it.
    #[must_use]
    pub fn number(&self) -> u64 {
        let since_start = self.decided.since(Moment::default());
        u64::try_from(since_start.as_micros()).unwrap_or(u64::MAX)
    }
}

/// One signal's part in a decision.
#[derive(Clone, Debug, PartialEq)]
pub struct SignalDecision {
    /// The signal's name in the policy.
    pub name: Arc<str>,
    /// Pods' worth of this signal (`headroom_signal_demand`), or why it cannot be said.
    pub demand: Result<f64, Unserved>,
    /// The total over the reporting pods, in the signal's unit, where it has one.
    pub current: Option<f64>,
    /// How many of the pods that should report this signal do: a pod may answer without its family.
    pub coverage: Coverage,
    /// The threshold per pod, in the same unit.
    pub threshold: f64,
    /// The base in use, in the same unit.
    pub base: f64,
    /// How the demand came about, in one line for people: formula with its numbers.
    pub formula: String,
}

/// Why there is no number. The message goes to the HPA's event: it says what is missing and since when.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unserved {
    /// A CamelCase reason from a closed set, as in a condition.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// Pods that report, of those that should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Pods of the workload that are not ended.
    pub matched: u32,
    /// Pods whose newest sample is younger than `staleAfter`.
    pub reporting: u32,
    /// Pods that reported since their container started, or are Ready for over `startGrace`; and all that report.
    pub expected: u32,
}

impl Coverage {
    /// reporting / expected; `None` for 0/0.
    #[must_use]
    pub fn ratio(self) -> Option<Ratio> {
        use crate::units::Measure;
        (self.expected > 0).then(|| {
            Ratio::new(f64::from(self.reporting) / f64::from(self.expected)).unwrap_or_default()
        })
    }
}

/// The kinds of raw totals that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TotalKind {
    /// `headroom_tasks`
    Tasks,
    /// `headroom_heap_bytes`
    HeapBytes,
    /// `headroom_allocation_bytes_per_second`
    AllocationBytesPerSecond,
    /// `headroom_cpu_cores`
    CpuCores,
}

impl TotalKind {
    /// The metric's name: of the total in external metrics, of a pod's own part in custom metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tasks => "headroom_tasks",
            Self::HeapBytes => "headroom_heap_bytes",
            Self::AllocationBytesPerSecond => "headroom_allocation_bytes_per_second",
            Self::CpuCores => "headroom_cpu_cores",
        }
    }
}

/// A raw total over the reporting pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Total {
    /// Of what.
    pub kind: TotalKind,
    /// The signal it was measured for, whose coverage says whether it is whole.
    pub signal: Arc<str>,
    /// In the kind's unit.
    pub value: f64,
}

/// One quantile of the latency over all reporting pods, from their merged histograms.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantile {
    /// The signal it belongs to.
    pub signal: Arc<str>,
    /// Between 0 and 1.
    pub quantile: Ratio,
    /// In seconds; `None` while there is no traffic.
    pub seconds: Option<f64>,
}

/// What one reporting pod shows.
#[derive(Clone, Debug, PartialEq)]
pub struct PodReading {
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's labels, which a reader selects by.
    pub labels: Labels,
    /// Maximum of current/threshold over the signals; `None` where it has no signal's.
    pub pressure: Option<f64>,
    /// Each signal's own value on this pod, in its unit, under the metric's name: `headroom_tasks`, `queue_depth`; each
    /// name once. While all pods report, they add up to the total of that name.
    pub values: Vec<(Arc<str>, f64)>,
    /// CPU and memory in use, where they were asked for and the pod says both.
    pub usage: Option<PodUsage>,
    /// When its newest sample was taken.
    pub sampled_at: Timestamp,
}

/// CPU and memory in use by the container behind a pod's endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    /// The container's name; the pod's where it is not known.
    pub container: Arc<str>,
    /// Mean over the window.
    pub cpu: CpuCores,
    /// The working set, or what is resident where that is not known.
    pub memory: ByteCount,
    /// What the CPU is a mean over.
    pub window: Duration,
}

/// The value of one object that is not a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectReading {
    /// The object.
    pub object: DescribedObject,
    /// The metric's name.
    pub metric: Arc<str>,
    /// In the metric's unit, or why it cannot be said.
    pub value: Result<f64, Unserved>,
}

/// A pod that does not count as it should.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    /// The pod's name.
    pub name: Arc<str>,
    /// Why.
    pub reason: LeftOutReason,
    /// How long its newest good sample is ago, if it ever gave one.
    pub silent_for: Option<Duration>,
}

/// Why a pod is left out.
#[derive(Clone, Debug, PartialEq)]
pub enum LeftOutReason {
    /// The last attempt failed.
    Failed(CollectFailure),
    /// Young, or not yet asked.
    NotYetReported,
    /// Answers, but with samples whose own time no longer moves.
    Stale,
    /// Has no address, or no port of the endpoint's name.
    NoEndpoint,
    /// Answered, without the family that the named signal needs.
    MissingFamily {
        /// The signal that is missing it.
        signal: Arc<str>,
    },
    /// Answered, but samples of a family were not kept, and what is left of it adds up to too little: over the limit of
    /// series, twice in the answer, not finite or negative.
    PartialFamily {
        /// The signal that reads it.
        signal: Arc<str>,
        /// The family.
        family: MetricName,
    },
}

/// A fault of the policy that only running it shows; the reason is that of the condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// CamelCase, e.g. `ThresholdUnreachable`, `TargetBelowServiceTime`, `BaseNotBelowThreshold`, `CannotWake`.
    pub reason: &'static str,
    /// One sentence with the numbers.
    pub message: String,
}
