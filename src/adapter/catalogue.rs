//! Every metric that the adapter exposes about itself and its policies.
//!
//! Out: names, labels with their values, meaning and use, from which `docs/adapter-metrics.md` is made and against which
//! dashboards and alerts are checked. Never: a metric that the program does not have, or lacks: a test scrapes a whole
//! adapter and compares. Beside these its `/metrics` has what [`crate::signals::CATALOGUE`] says of any process.

#[cfg(test)]
mod docs;

use crate::policy::reason;
use crate::signals::FamilyKind;

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct OwnFamily {
    /// Its name; counters end in `_total`.
    pub name: &'static str,
    /// How it behaves.
    pub kind: FamilyKind,
    /// Its labels, in any order.
    pub labels: &'static [OwnLabel],
    /// What it is, with unit, as the `# HELP` text.
    pub help: &'static str,
    /// How to read it, or when to act.
    pub reading: &'static str,
}

/// A label and what it can be.
#[derive(Clone, Copy, Debug)]
pub struct OwnLabel {
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub values: Values,
}

/// The values of a label.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// These alone.
    Closed(&'static [&'static str]),
    /// The reasons of [`reason::CATALOGUE`].
    Reasons,
    /// As many as there are of what is named here.
    Each(&'static str),
}

impl Values {
    /// Whether a series may have this value.
    #[must_use]
    pub fn allow(&self, value: &str) -> bool {
        match self {
            Self::Closed(values) => values.contains(&value),
            Self::Reasons => reason::CATALOGUE.iter().any(|reason| reason.name == value),
            Self::Each(_) => !value.is_empty(),
        }
    }
}

/// The metric of that name.
#[must_use]
pub fn own_family(name: &str) -> Option<&'static OwnFamily> {
    CATALOGUE.iter().find(|family| family.name == name)
}

const fn closed(name: &'static str, values: &'static [&'static str]) -> OwnLabel {
    OwnLabel { name, values: Values::Closed(values) }
}

const NAMESPACE: OwnLabel = OwnLabel { name: "namespace", values: Values::Each("namespace") };
const POLICY: OwnLabel = OwnLabel { name: "policy", values: Values::Each("ScalingPolicy") };
const SIGNAL: OwnLabel = OwnLabel { name: "signal", values: Values::Each("signal of the policy") };
const REASON: OwnLabel = OwnLabel { name: "reason", values: Values::Reasons };
const CODE: OwnLabel = OwnLabel { name: "code", values: Values::Each("HTTP status of an answer") };
const GROUP: OwnLabel = closed(
    "group",
    &[
        "external.metrics.k8s.io",
        "custom.metrics.k8s.io",
        "explain.headroom.dev",
        "discovery",
        "openapi",
        "probe",
        "profile",
        "other",
    ],
);
const RESOURCE: OwnLabel = closed("resource", &["policies", "pods", "targets", "autoscalers"]);

use FamilyKind::{Counter, Gauge, Histogram};

/// All metrics, in the order of the docs.
pub const CATALOGUE: &[OwnFamily] = &[
    OwnFamily {
        name: "headroom_adapter_policy_demand",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY],
        help: "Pods' worth of work demanded, as headroom_demand serves it; absent while it is not served",
        reading: "What the HPA sees. Beside `headroom_adapter_policy_replicas` it shows what is still to come. For `max by (namespace, policy)` over the adapter's replicas, of which each has its own.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_unserved",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY, REASON],
        help: "1 while the demand of the policy is not served, by reason; absent while it is",
        reading: "Alert when it is 1 for several minutes: the workload does not scale. `docs/reasons.md` says what to do.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_signal_demand",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY, SIGNAL],
        help: "Pods' worth of work that one signal demands; absent while it cannot be said",
        reading: "The largest is the policy's demand. A signal far under the others at all times is not needed.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_signal_unserved",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY, SIGNAL, REASON],
        help: "1 while the signal has no demand, by reason; absent while it has one",
        reading: "While one signal of several is missing, replicas are not lowered.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_driver",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY, SIGNAL],
        help: "1 for the signal whose demand is the largest; absent while none is known",
        reading: "Why the workload has its size.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_coverage_ratio",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY],
        help: "Pods that report, of those that should; absent while none should",
        reading: "Under the policy's `coverageFloor` no demand is inferred from the rest.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_pods",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY, closed("state", &["matched", "expected", "reporting"])],
        help: "Pods of the workload: matched are all that have not ended, expected should report, reporting do",
        reading: "Expected less reporting is what is missing; `headroom_adapter_policy_pods_left_out` says why.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_pods_left_out",
        kind: Gauge,
        labels: &[
            NAMESPACE,
            POLICY,
            closed(
                "reason",
                &[
                    "connect",
                    "timeout",
                    "status",
                    "interrupted",
                    "too_large",
                    "malformed",
                    "not_yet_reported",
                    "stale",
                    "no_endpoint",
                    "missing_family",
                    "partial_family",
                ],
            ),
        ],
        help: "Pods that did not count as they should in the last decision, by reason; one may be left out of several signals",
        reading: "`connect` and `timeout` are pods or the network, `status` and `malformed` what they serve, `missing_family` and `partial_family` which metrics.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_replicas",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY, closed("kind", &["spec", "status", "min", "max"])],
        help: "Replicas of the target: spec and status of its scale, min and max of the policy's autoscaler where it has one",
        reading: "Demand over `max` for long: the workload is under-provisioned by its owner's choice.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_decision_age_seconds",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY],
        help: "Time since the policy's newest decision; over staleAfter it is not served",
        reading: "About the scrape interval of the policy. More: the adapter is overloaded, or all pods hang.",
    },
    OwnFamily {
        name: "headroom_adapter_policy_oldest_sample_age_seconds",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY],
        help: "Age of the oldest newest-sample of a reporting pod behind the newest decision; absent while no pod reports",
        reading: "How old the number is that the HPA gets, at worst.",
    },
    OwnFamily {
        name: "headroom_adapter_demand_divergence_ratio",
        kind: Gauge,
        labels: &[NAMESPACE, POLICY],
        help: "Difference of this replica's demand and the leader's in the policy's status, by the larger of both and 1; absent on the leader",
        reading: "Moments are normal, since a status is up to 30 s old. 1: one of the two has a number and the other none.",
    },
    OwnFamily {
        name: "headroom_adapter_divergent_policies",
        kind: Gauge,
        labels: &[],
        help: "Policies whose demand here has differed from the leader's by over 10 % for over a minute; 0 on the leader",
        reading: "Over 0: the replicas see different pods (a network policy, a zone), or no leader writes. The HPA gets now one number, now the other.",
    },
    OwnFamily {
        name: "headroom_adapter_policies",
        kind: Gauge,
        labels: &[closed("state", &["active", "refused"])],
        help: "Policies known, by state.",
        reading: "The size of the board. Refused ones have a condition that says why.",
    },
    OwnFamily {
        name: "headroom_adapter_decisions_total",
        kind: Counter,
        labels: &[closed("outcome", &["served", "unserved", "panicked"])],
        help: "Decisions, by outcome.",
        reading: "`panicked` is a bug to report; it costs that one decision.",
    },
    OwnFamily {
        name: "headroom_adapter_decide_duration_seconds",
        kind: Histogram,
        labels: &[],
        help: "Time to decide one policy.",
        reading: "Times the policies, by the scrape interval: the share of one core that deciding takes.",
    },
    OwnFamily {
        name: "headroom_adapter_series",
        kind: Gauge,
        labels: &[],
        help: "Series kept, over all pods.",
        reading: "What the adapter's memory grows with.",
    },
    OwnFamily {
        name: "headroom_adapter_store_bytes",
        kind: Gauge,
        labels: &[],
        help: "Memory that the kept series take, as the store counts it.",
        reading: "Pods times their series times the points in a window.",
    },
    OwnFamily {
        name: "headroom_adapter_store_dropped_total",
        kind: Counter,
        labels: &[closed("reason", &["pod_limit", "series_limit", "out_of_order"])],
        help: "What the store did not keep, by reason.",
        reading: "Should stand still. The limits are those of `docs/configuration.md`; `out_of_order` is a pod whose clock went back.",
    },
    OwnFamily {
        name: "headroom_adapter_scrape_targets",
        kind: Gauge,
        labels: &[],
        help: "Pod endpoints being scraped.",
        reading: "Every replica scrapes all of them.",
    },
    OwnFamily {
        name: "headroom_adapter_scrapes_total",
        kind: Counter,
        labels: &[closed(
            "outcome",
            &["ok", "connect", "timeout", "status", "interrupted", "too_large", "malformed"],
        )],
        help: "Attempts to scrape a pod, by outcome.",
        reading: "The share that is not `ok`. All `connect` at once: the network keeps this replica from the pods.",
    },
    OwnFamily {
        name: "headroom_adapter_scrape_duration_seconds",
        kind: Histogram,
        labels: &[],
        help: "Time from the start of a scrape to its parsed answer or its failure.",
        reading: "Near the interval, pods are too slow or this replica has too little CPU.",
    },
    OwnFamily {
        name: "headroom_adapter_dropped_samples_total",
        kind: Counter,
        labels: &[closed(
            "reason",
            &["not_finite", "negative", "duplicate", "too_many_series", "labels_too_large"],
        )],
        help: "Wanted samples left out of good answers, by reason.",
        reading: "Should stand still; the log at debug names the pod.",
    },
    OwnFamily {
        name: "headroom_adapter_requests_total",
        kind: Counter,
        labels: &[GROUP, CODE],
        help: "Answered requests, by API group and HTTP status.",
        reading: "503 of `external.metrics.k8s.io` are numbers that could not be said, 429 and 503 of others overload.",
    },
    OwnFamily {
        name: "headroom_adapter_request_duration_seconds",
        kind: Histogram,
        labels: &[GROUP, CODE],
        help: "Time from a request's head to its answer's, by API group and HTTP status.",
        reading: "Under a millisecond from memory; more is a review by the API server for a caller that is not cached.",
    },
    OwnFamily {
        name: "headroom_adapter_served_age_seconds",
        kind: Histogram,
        labels: &[],
        help: "Age of the oldest sample behind each served item, when it was served.",
        reading: "How old the numbers are that HPAs act on.",
    },
    OwnFamily {
        name: "headroom_adapter_authentication_total",
        kind: Counter,
        labels: &[closed(
            "outcome",
            &["request_header", "client_certificate", "token", "static_token", "nobody", "error"],
        )],
        help: "Requests, by how their sender was recognised.",
        reading: "kube-apiserver comes by `request_header`. Many `nobody`: something asks without credentials.",
    },
    OwnFamily {
        name: "headroom_adapter_refused_as_too_many_total",
        kind: Counter,
        labels: &[closed("what", &["connections", "requests", "user_requests"])],
        help: "What was refused because as much of it was under way as may be at once.",
        reading: "Should stand still. `user_requests`: one user asks for more than its share; the audit log says who.",
    },
    OwnFamily {
        name: "headroom_adapter_connections_closed_idle_total",
        kind: Counter,
        labels: &[],
        help: "Connections that were closed because nobody who is known used them.",
        reading: "Grows where something opens connections and asks nothing.",
    },
    OwnFamily {
        name: "headroom_adapter_audit_lines_dropped_total",
        kind: Counter,
        labels: &[],
        help: "Refused requests of unknown senders that have no line in the audit log, because there were too many.",
        reading: "Grows while strangers flood the adapter.",
    },
    OwnFamily {
        name: "headroom_adapter_tls_handshake_failures_total",
        kind: Counter,
        labels: &[],
        help: "Connections that gave up, or were given up, before TLS was established.",
        reading: "Grows with port checks of load balancers. With an APIService that is not Available: the wrong CA.",
    },
    OwnFamily {
        name: "headroom_adapter_client_ca_config_refused",
        kind: Gauge,
        labels: &[],
        help: "1 if at the last request the ConfigMap with the client CAs was refused and older ones were in use.",
        reading: "Look at the ConfigMap extension-apiserver-authentication in kube-system.",
    },
    OwnFamily {
        name: "headroom_adapter_serving_certificate_not_after_timestamp_seconds",
        kind: Gauge,
        labels: &[],
        help: "End of the serving certificate in use, in seconds since the Unix epoch; 0 before the first",
        reading: "Alert some days before. It is renewed on its own well before that.",
    },
    OwnFamily {
        name: "headroom_adapter_serving_certificate_failures_total",
        kind: Counter,
        labels: &[],
        help: "Failed attempts to make, sign, load, install or register the serving certificate",
        reading: "Grows while the certificate cannot be renewed; the log says why.",
    },
    OwnFamily {
        name: "headroom_adapter_leader",
        kind: Gauge,
        labels: &[],
        help: "1 while this replica holds the Lease and writes status, HPAs and the serving CA, else 0",
        reading: "The sum over the replicas is 1. 0 for over 20 s: nobody writes; numbers are served all the same.",
    },
    OwnFamily {
        name: "headroom_adapter_writes_total",
        kind: Counter,
        labels: &[
            closed("object", &["status", "autoscaler"]),
            closed("outcome", &["ok", "failed"]),
        ],
        help: "Writes to the API server by the leading replica",
        reading: "`failed` is tried again with growing pauses; the log says why.",
    },
    OwnFamily {
        name: "headroom_adapter_watches_failing",
        kind: Gauge,
        labels: &[RESOURCE],
        help: "Watches of the API server that are down now; the last known state is used",
        reading: "Over 0 for minutes: new pods and changed policies are not seen.",
    },
    OwnFamily {
        name: "headroom_adapter_watch_failures_total",
        kind: Counter,
        labels: &[RESOURCE],
        help: "Failures of watches of the API server and of their lists",
        reading: "Some at each restart of the API server.",
    },
    OwnFamily {
        name: "headroom_config_reload_success",
        kind: Gauge,
        labels: &[],
        help: "1 if the configuration file as it is now is in effect, 0 if it has a problem",
        reading: "Alert at 0: the next start would fail.",
    },
    OwnFamily {
        name: "headroom_config_last_reload_success_timestamp_seconds",
        kind: Gauge,
        labels: &[],
        help: "When a configuration was last taken over, in seconds since the Unix epoch",
        reading: "Older than the ConfigMap's last change by minutes: the change has not arrived.",
    },
    OwnFamily {
        name: "headroom_config_reloads_total",
        kind: Counter,
        labels: &[closed("outcome", &["applied", "refused"])],
        help: "Changes of the configuration file by what became of them",
        reading: "`refused` changed nothing.",
    },
];
