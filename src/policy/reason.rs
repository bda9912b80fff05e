//! Every reason that a policy, a signal or an item can have: in conditions, in errors to the HPA, in metrics.
//!
//! Out: the closed set, from which `docs/reasons.md` is made. Never: a reason that stands in the code and not here, or here
//! and nowhere in the code; a test reads the sources.

#[cfg(test)]
mod docs;

/// Where a reason is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No number: the error that the HPA gets, condition `Ready` False with this reason, and a condition of this type.
    Unserved,
    /// A condition of this type; the demand may be served all the same.
    Condition,
    /// The error of a metric other than `headroom_demand`.
    Item,
    /// The reason of the condition `Ready` while it is True.
    Ready,
}

/// One reason.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    /// CamelCase.
    pub name: &'static str,
    /// Where it is met.
    pub place: Place,
    /// What it says.
    pub meaning: &'static str,
    /// What to do about it.
    pub action: &'static str,
}

/// Nothing was read of the workload since the adapter took up the policy.
pub const NO_SAMPLES_YET: &str = "NoSamplesYet";
/// A counter needs two samples, and has one.
pub const AWAITING_SECOND_SAMPLE: &str = "AwaitingSecondSample";
/// The target's scale is being read.
pub const TARGET_PENDING: &str = "TargetPending";
/// Decisions stopped coming.
pub const STALE: &str = "Stale";

/// All reasons, those of one place together.
pub const CATALOGUE: &[Reason] = &[
    reason("Served", Place::Ready, "The demand is served.", "Nothing."),
    reason(
        NO_SAMPLES_YET,
        Place::Unserved,
        "No pod has answered since this adapter took up the policy.",
        "Wait for one interval. If it stays, look at the pods, their port and `endpoint` in the policy.",
    ),
    reason(
        AWAITING_SECOND_SAMPLE,
        Place::Unserved,
        "The signal is a counter and has been read once; a rate needs two readings. Usual for an interval after a start.",
        "Wait for one interval.",
    ),
    reason(
        "NoPods",
        Place::Unserved,
        "The workload has no pod that should report by now.",
        "Look at the workload: it may be starting, or its pods may be pending.",
    ),
    reason(
        "ScaledToZero",
        Place::Unserved,
        "The workload has no replicas, and signals of pods say nothing without pods.",
        "Scale it up by hand, or set minReplicas to 1 or more.",
    ),
    reason(
        "PodsSilent",
        Place::Unserved,
        "No pod that should report does. The message has the first cause.",
        "Look at the pods and at what the message names: connection, status, timeout. A NetworkPolicy may keep the adapter out.",
    ),
    reason(
        "CoverageTooLow",
        Place::Unserved,
        "Fewer pods report than `coverageFloor` asks for, and what they report alone would lower the replicas.",
        "As for `PodsSilent`, for the pods that are missing. The replicas stay as they are meanwhile.",
    ),
    reason(
        "MetricNotServed",
        Place::Unserved,
        "Pods answer, but none serves the metrics that the signal reads.",
        "Compare `/metrics` of a pod with the names in the message, and `endpoint` in the policy with the pod's ports.",
    ),
    reason(
        "MetricIncomplete",
        Place::Unserved,
        "Samples of the metric were not kept: over the limit of series, twice in the answer, not finite or negative.",
        "Correct what the pod serves, or raise `adapter.scrape.seriesPerPod`. `headroom_adapter_dropped_samples_total` has the reason.",
    ),
    reason(
        "SignalMissing",
        Place::Unserved,
        "One of several signals has no value, and the others demand fewer replicas than there are.",
        "Mend the signal that the message names. The replicas stay as they are meanwhile.",
    ),
    reason(
        "BaseNotBelowThreshold",
        Place::Unserved,
        "An idle pod already shows as much as the threshold, so no number of pods would be enough.",
        "Raise the threshold, or state `base`.",
    ),
    reason(
        "TargetBelowServiceTime",
        Place::Unserved,
        "A request takes longer than the latency target even without load, so pods cannot help.",
        "Raise the target, or make the request faster.",
    ),
    reason(
        "ServiceTimeUnknown",
        Place::Unserved,
        "What a request costs without load is not known yet: it is learned from 100 requests to pods under half of their capacity.",
        "Wait, or state `latency.serviceTime`.",
    ),
    reason(
        "CapacityUnknown",
        Place::Unserved,
        "The pods tell neither their workers nor a CPU limit, so it is unknown how many requests they work on at once.",
        "State `latency.concurrency`.",
    ),
    reason(
        "NoSignals",
        Place::Unserved,
        "The policy has no signals.",
        "Add one. The schema refuses such a policy, so it was not checked.",
    ),
    reason(
        "InternalError",
        Place::Unserved,
        "The decision about this policy panicked. Other policies are not affected.",
        "Report it with the adapter's log. It is tried again with the next sample.",
    ),
    reason(
        "InvalidSpec",
        Place::Unserved,
        "The policy contradicts itself or the schema. The message has all problems.",
        "Correct the spec.",
    ),
    reason(
        "TargetConflict",
        Place::Unserved,
        "An older policy has the same target.",
        "Delete one of the two.",
    ),
    reason(
        "TargetNotFound",
        Place::Unserved,
        "The target does not exist, or cannot be scaled.",
        "Correct `scaleTargetRef`, or create the target.",
    ),
    reason(
        "TargetUnreadable",
        Place::Unserved,
        "The target's scale cannot be read, or selects no pods.",
        "Look at the message: rights, or the API server. For custom kinds see the ClusterRole headroom-adapter-targets.",
    ),
    reason(
        TARGET_PENDING,
        Place::Unserved,
        "The target's scale is being read for the first time.",
        "Wait a second.",
    ),
    reason(
        "DecisionStale",
        Place::Unserved,
        "The newest decision is older than `staleAfter`, so it is not served.",
        "The adapter is overloaded or stuck: look at `/livez` and `headroom_adapter_decide_duration_seconds`.",
    ),
    reason(
        STALE,
        Place::Item,
        "As `DecisionStale`, in the answer to a request and in `headroom_adapter_policy_unserved`.",
        "As for `DecisionStale`.",
    ),
    reason(
        "DescribedKindPending",
        Place::Item,
        "The kind of the object that a metric describes is being looked up.",
        "Wait a second.",
    ),
    reason(
        "DescribedKindNotServed",
        Place::Condition,
        "A metric describes an object of a kind that the API server does not have. The policy's demand goes on.",
        "Correct `describes`, or install the kind; it is looked up again every 30 s.",
    ),
    reason(
        "DescribedKindUnreadable",
        Place::Condition,
        "The API server does not say whether it has the kind of a described object. The policy's demand goes on.",
        "Look at the message: the API server, or the rights to its discovery.",
    ),
    reason(
        "DescribedKindNotNamespaced",
        Place::Condition,
        "A metric describes an object outside of namespaces, of which no namespace's policy may speak.",
        "Describe an object in the policy's namespace, or that Namespace itself.",
    ),
    reason(
        "PodsMissing",
        Place::Item,
        "A total of a signal's own unit is asked for, and some pods do not report: a part is no total.",
        "Ask for `headroom_demand`, which fills the gap, or mend the pods that the message names.",
    ),
    reason(
        "NoTraffic",
        Place::Item,
        "A latency quantile is asked for, and there were no requests in the window.",
        "Nothing; there is no latency without requests.",
    ),
    reason(
        "NotANumber",
        Place::Item,
        "The value cannot be written as a quantity.",
        "Report it: values are finite and not negative.",
    ),
    reason(
        "CoverageLow",
        Place::Condition,
        "Fewer pods report than `coverageFloor` asks for. The demand of those that do is served while it does not lower replicas.",
        "As for `CoverageTooLow`.",
    ),
    reason(
        "ThresholdUnreachable",
        Place::Condition,
        "The CPU threshold is above 0.9 of the pods' CPU limit, where they are throttled before they reach it.",
        "Lower the threshold or raise the limit.",
    ),
    reason(
        "EndpointNeverSeen",
        Place::Condition,
        "No pod has shown a request of the endpoint that the latency signal names.",
        "Compare `endpoint` with the label of `http_server_request_duration_seconds`: method and route, such as `POST /checkout`.",
    ),
    reason(
        "CannotWake",
        Place::Condition,
        "minReplicas is 0, but every signal is read from pods: at zero replicas nothing asks for the first pod.",
        "Set minReplicas to 1.",
    ),
    reason(
        "HPAConflict",
        Place::Condition,
        "An HPA of the policy's name exists and is not the policy's; it is left alone.",
        "Delete it, or rename the policy.",
    ),
    reason(
        "HPARefused",
        Place::Condition,
        "The API server refuses the HPA that `autoscaler` asks for.",
        "Correct `autoscaler`, as the message says.",
    ),
];

const fn reason(
    name: &'static str,
    place: Place,
    meaning: &'static str,
    action: &'static str,
) -> Reason {
    Reason { name, place, meaning, action }
}
