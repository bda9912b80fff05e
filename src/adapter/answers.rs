//! What a policy answers: encoded when it is first asked for, and kept until the policy is decided anew.
//!
//! In: a policy's [`Standing`]. Out: items that a request picks from by their labels, each encoded at most once per encoding.
//! Never: a wait for the writer, or work for what nobody reads.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use super::own_metrics::OwnMetrics;
use super::status::{ApiStatus, Cause, Details};
use super::wire::{
    self, CustomItem, CustomVersion, Encoding, ExternalItem, LabelSelector, ObjectReference,
};
use super::{custom_metrics, external_metrics};
use crate::policy::{
    Board, Decision, DescribedObject, EntryState, Namespace, POLICY_LABEL, Policy, Standing,
    Unserved,
};
use crate::quantity::Quantity;
use crate::sample::{Labels, Selector};
use crate::time::{Clock, Now, Timestamp};

/// Policies that an error names before it says "and N more".
const POLICIES_NAMED: usize = 20;

/// What every group answers from.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) board: Arc<Board>,
    pub(super) clock: Clock,
    pub(super) metrics: OwnMetrics,
}

/// All answers of one standing.
#[derive(Debug, Default)]
pub(super) struct Answers {
    external: [OnceLock<Vec<ExternalAnswer>>; external_metrics::METRICS.len()],
    custom: OnceLock<Vec<CustomAnswers>>,
}

impl Answers {
    /// Those of one external metric, by its place in [`external_metrics::METRICS`].
    pub(super) fn external(
        &self,
        place: usize,
        policy: &Policy,
        decision: &Decision,
    ) -> &[ExternalAnswer] {
        let metric = external_metrics::METRICS[place].1;
        self.external[place].get_or_init(|| external_metrics::answers(metric, policy, decision))
    }

    /// Those of all custom metrics.
    pub(super) fn custom(&self, policy: &Policy, decision: &Decision) -> &[CustomAnswers] {
        self.custom.get_or_init(|| custom_metrics::answers(policy, decision))
    }
}

/// A value with its time, or why there is none.
pub(super) type Value = Result<Reading, Unserved>;

/// A value as it is served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    value: Quantity,
    pub(super) sampled_at: Timestamp,
    window: Duration,
}

impl Reading {
    /// # Errors
    /// If the value is NaN or infinite.
    pub(super) fn new(value: f64, sampled_at: Timestamp, window: Duration) -> Value {
        let value = Quantity::from_served(value).ok_or_else(|| Unserved {
            reason: "NotANumber",
            message: "the value is not a finite number".to_owned(),
        })?;
        Ok(Self { value, sampled_at, window })
    }
}

/// One item of an external metric.
#[derive(Debug)]
pub(super) struct ExternalAnswer {
    pub(super) labels: Labels,
    pub(super) value: Value,
    encoded: [OnceLock<Bytes>; 2],
    /// A list of it alone: what an HPA reads.
    alone: [OnceLock<Bytes>; 2],
}

impl ExternalAnswer {
    pub(super) fn new(labels: Labels, value: Value) -> Self {
        Self { labels, value, encoded: Default::default(), alone: Default::default() }
    }

    /// The item; the metric's name is the one that it was made for.
    pub(super) fn encoded(&self, metric: &str, reading: Reading, encoding: Encoding) -> &Bytes {
        let place = place_of(encoding);
        let Reading { value, sampled_at: timestamp, window } = reading;
        let item = ExternalItem { metric, labels: &self.labels, timestamp, window, value };
        self.encoded[place].get_or_init(|| item.encode(encoding))
    }

    /// The list of this item.
    pub(super) fn alone(&self, metric: &str, reading: Reading, encoding: Encoding) -> &Bytes {
        self.alone[place_of(encoding)].get_or_init(|| {
            let item = self.encoded(metric, reading, encoding);
            wire::list(ExternalItem::LIST, encoding, std::iter::once(&item[..]))
        })
    }
}

const fn place_of(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Json => 0,
        Encoding::Protobuf => 1,
    }
}

/// All items of one custom metric that are about objects of one resource; at least one.
#[derive(Debug)]
pub(super) struct CustomAnswers {
    pub(super) metric: Arc<str>,
    pub(super) objects: Vec<CustomAnswer>,
}

/// One item of a custom metric.
#[derive(Debug)]
pub(super) struct CustomAnswer {
    pub(super) described: DescribedObject,
    /// The object's labels; `None` where they are not known.
    pub(super) labels: Option<Labels>,
    pub(super) value: Value,
    encoded: [OnceLock<Bytes>; 4],
}

/// In which form a custom metric is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) version: CustomVersion,
    pub(super) encoding: Encoding,
    /// The request's `metricLabelSelector`, which items give back.
    pub(super) selector: Option<&'a LabelSelector>,
}

impl CustomAnswer {
    pub(super) fn new(described: DescribedObject, labels: Option<Labels>, value: Value) -> Self {
        Self { described, labels, value, encoded: Default::default() }
    }

    /// The item; only one that gives no selector back is kept.
    pub(super) fn encoded(&self, metric: &str, reading: Reading, wanted: &Wanted<'_>) -> Bytes {
        let DescribedObject { api_version, kind, namespace, name, .. } = &self.described;
        let Reading { value, sampled_at: timestamp, window } = reading;
        let item = CustomItem {
            described: ObjectReference { kind, namespace: namespace.as_deref(), name, api_version },
            metric,
            selector: wanted.selector,
            timestamp,
            window,
            value,
        };
        let encode = || item.encode(wanted.version, wanted.encoding);
        if wanted.selector.is_some() {
            return encode();
        }
        let place = match (wanted.version, wanted.encoding) {
            (CustomVersion::V1beta1, Encoding::Json) => 0,
            (CustomVersion::V1beta1, Encoding::Protobuf) => 1,
            (CustomVersion::V1beta2, Encoding::Json) => 2,
            (CustomVersion::V1beta2, Encoding::Protobuf) => 3,
        };
        self.encoded[place].get_or_init(encode).clone()
    }
}

/// What was decided, or why nothing is.
pub(super) fn decided(standing: &Standing) -> Result<(&Policy, &Decision), &Unserved> {
    match standing.state() {
        EntryState::Decided { policy, decision } => Ok((policy, decision)),
        EntryState::Unserved(why) => Err(why),
    }
}

/// A decision stands for `staleAfter`: the HPA only logs timestamps (kubernetes
/// `pkg/controller/podautoscaler/horizontal.go`), so that age must become an error.
pub(super) fn fresh(decision: &Decision, now: Now) -> Result<(), Unserved> {
    if !decision.is_stale(now.monotonic) {
        return Ok(());
    }
    Err(Unserved {
        reason: "Stale",
        message: format!(
            "stale: last decided {:.0} s ago, staleAfter is {:.0} s; last sample at {}",
            decision.age(now.monotonic).as_secs_f64(),
            decision.stale_after.as_secs_f64(),
            decision.sampled_at
        ),
    })
}

/// The labels of an item: its policy's name and what the metric adds.
pub(super) fn labels(policy: &str, own: &[(&'static str, String)]) -> Labels {
    let own = own.iter().map(|(name, value)| (*name, value.as_str()));
    std::iter::once((POLICY_LABEL, policy)).chain(own).collect()
}

/// A policy that cannot be said, of those that a request is about.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) policy: Arc<str>,
    pub(super) why: Unserved,
}

/// The selector in a parameter of the query.
///
/// # Errors
/// 400 if it is malformed.
pub(super) fn selector(parameter: &str, text: &str) -> Result<Selector, ApiStatus> {
    Selector::parse(text)
        .map_err(|error| ApiStatus::bad_request(format!("{parameter} {text:?}: {error}")))
}

/// 404 for a namespace without any policy.
pub(super) fn no_policy(namespace: &str, about: Details) -> ApiStatus {
    let metric = &about.kind;
    let message = format!("{metric}: there is no ScalingPolicy in namespace {namespace:?}");
    ApiStatus::not_found(message).about(about)
}

/// 503, naming every policy that failed, up to a number.
pub(super) fn unserved(namespace: &str, about: Details, mut failures: Vec<Failure>) -> ApiStatus {
    let more = failures.len().saturating_sub(POLICIES_NAMED);
    failures.truncate(POLICIES_NAMED);
    let sentence = |failure: &Failure| {
        format!("policy {namespace}/{}: {}", failure.policy, failure.why.message)
    };
    let mut message: String =
        format!("{}: {}", about.kind, failures.iter().map(sentence).collect::<Vec<_>>().join("; "));
    if more > 0 {
        message.push_str(&format!("; and {more} more policies"));
    }
    let causes = failures
        .into_iter()
        .map(|failure| Cause {
            reason: failure.why.reason,
            message: failure.why.message,
            field: failure.policy.to_string(),
        })
        .collect();
    ApiStatus::unavailable(message).about(Details { causes, ..about })
}

/// The policies of a namespace as an error names them, up to a number.
pub(super) fn policies_named(policies: &Namespace) -> String {
    let mut names: Vec<&str> = policies.iter().map(|entry| &*entry.id.name).collect();
    let more = names.len().saturating_sub(POLICIES_NAMED);
    names.truncate(POLICIES_NAMED);
    let mut known = names.join(", ");
    if more > 0 {
        known.push_str(&format!(" and {more} more"));
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicyId;
    use crate::time::Moment;

    /// The decision stands for 20 s; `check(age, expected message)`.
    fn check(age: Duration, expected: Option<&str>) {
        let decided = Moment::after_start(Duration::from_secs(100));
        let id = PolicyId { namespace: "shop".into(), name: "checkout".into() };
        let decision = Decision::example(id, decided);
        let now = Now { monotonic: decided + age, wall: Timestamp::default() };
        let message = fresh(&decision, now).err().map(|why| why.message);
        assert_eq!(message.as_deref(), expected, "{age:?}");
    }

    #[test]
    fn case_39_a_decision_stands_for_stale_after_and_not_a_moment_longer() {
        check(Duration::ZERO, None);
        check(Duration::from_secs(20), None);
        check(
            Duration::from_millis(20_001),
            Some(
                "stale: last decided 20 s ago, staleAfter is 20 s; last sample at 2026-09-21T14:13:20Z",
            ),
        );
        check(
            Duration::from_secs(47),
            Some(
                "stale: last decided 47 s ago, staleAfter is 20 s; last sample at 2026-09-21T14:13:20Z",
            ),
        );
    }
}
