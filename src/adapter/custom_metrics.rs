//! `custom.metrics.k8s.io`: values of pods, of scale targets, and of objects that a signal describes.
//!
//! In: the board, and per request an object or all of a resource, a metric and two selectors. Out: a list in the version asked
//! for, with exactly one item where one object was named. Never: an item for a pod that is gone, silent or without the value
//! (the HPA has its own rules for pods without one), and never one that is older than its policy's `staleAfter`. Source: metrics
//! `pkg/client/custom_metrics/versioned_client.go`.

use std::sync::Arc;

use bytes::Bytes;

use super::answers::{
    Answers, CustomAnswer, CustomAnswers, Failure, Metrics, Reading, Wanted, decided, fresh,
    labels, no_policy, policies_named, selector, unserved,
};
use super::request_info::RequestInfo;
use super::status::{ApiStatus, Details};
use super::trace;
use super::wire::{self, CustomVersion, Encoding, LabelSelector};
use crate::policy::{
    DEMAND_METRIC, Decision, DescribedObject, Entry, Namespace, PodReading, Policy,
};
use crate::sample::Selector;
use crate::time::Now;

/// The API group.
const GROUP: &str = "custom.metrics.k8s.io";
/// Per pod, the maximum of current/threshold over the policy's signals.
const PRESSURE_METRIC: &str = "headroom_pressure";
/// Pods that an error names before it says "and N more".
const PODS_NAMED: usize = 3;

/// Answers from the board.
#[derive(Debug)]
pub(super) struct CustomMetrics(pub(super) Metrics);

/// A request.
struct Asked<'a> {
    namespace: &'a str,
    /// The plural, and the group; empty for the core group.
    resource: (&'a str, &'a str),
    /// `None` for all.
    name: Option<&'a str>,
    metric: &'a str,
    objects: Selector,
    metrics: Selector,
    wanted: Wanted<'a>,
    now: Now,
}

/// What a request picked.
#[derive(Default)]
struct Picked {
    items: Vec<(Arc<str>, Bytes)>,
    /// How many policies gave items.
    policies: usize,
    /// Of policies with such an object.
    failures: Vec<Failure>,
    /// Policies that would say whether they have such an object if they were decided.
    undecided: Vec<Failure>,
    /// Pods that should have a value.
    left_out: Vec<String>,
    /// Whether the labels of one that all were asked for are not known.
    unlabelled: bool,
}

impl CustomMetrics {
    /// The list that a request is answered with; it has at least one item.
    ///
    /// # Errors
    /// 400 for a malformed selector, 404 if there is no such object or metric, 503 if a value cannot be said now.
    pub(super) fn list(&self, info: &RequestInfo, encoding: Encoding) -> Result<Bytes, ApiStatus> {
        let metrics = selector("metricLabelSelector", &info.metric_label_selector)?;
        let echoed = LabelSelector::of(&metrics)
            .map_err(|error| ApiStatus::bad_request(format!("metricLabelSelector: {error}")))?;
        let asked = self.asked(info, metrics, encoding, echoed.as_ref())?;
        let about = || Details {
            name: asked.name.unwrap_or_default().to_owned(),
            group: GROUP.to_owned(),
            kind: asked.metric.to_owned(),
            ..Details::default()
        };
        let Some(policies) = self.0.board.namespace(asked.namespace) else {
            return Err(no_policy(asked.namespace, about()));
        };
        let mut picked = Picked::default();
        policies.iter().for_each(|entry| self.pick(&asked, entry, &mut picked));
        if picked.unlabelled && !asked.objects.is_empty() {
            let message = format!(
                "labelSelector: the labels of {} are not known here; name one instead",
                asked.resource.0
            );
            return Err(ApiStatus::bad_request(message));
        }
        if !picked.failures.is_empty() {
            return Err(unserved(asked.namespace, about(), picked.failures));
        }
        if picked.items.is_empty() {
            return Err(nothing_picked(&asked, about(), picked, &policies));
        }
        Ok(put_together(&asked, picked))
    }

    fn asked<'a>(
        &self,
        info: &'a RequestInfo,
        metrics: Selector,
        encoding: Encoding,
        echoed: Option<&'a LabelSelector>,
    ) -> Result<Asked<'a>, ApiStatus> {
        let resource = info.resource.as_ref().ok_or_else(ApiStatus::no_such_path)?;
        let version =
            CustomVersion::named(&resource.version).ok_or_else(ApiStatus::no_such_path)?;
        let namespace = &*resource.namespace;
        let (of, name, metric) = match (&*resource.resource, &*resource.subresource) {
            _ if namespace.is_empty() => return Err(no_root_scoped()),
            ("metrics", "") => (("namespaces", ""), namespace, &*resource.name),
            (_, "") => return Err(ApiStatus::no_such_path()),
            (of, metric) => (of.split_once('.').unwrap_or((of, "")), &*resource.name, metric),
        };
        Ok(Asked {
            namespace,
            resource: of,
            name: (name != "*").then_some(name),
            metric,
            objects: selector("labelSelector", &info.label_selector)?,
            metrics,
            wanted: Wanted { version, encoding, selector: echoed },
            now: self.0.clock.now(),
        })
    }

    fn pick(&self, asked: &Asked<'_>, entry: &Entry, picked: &mut Picked) {
        let name = &entry.id.name;
        if !asked.metrics.is_empty() && !asked.metrics.matches(&labels(name, &[])) {
            return;
        }
        let failed = |why| Failure { policy: name.clone(), why };
        let standing = entry.load();
        trace::read(&entry.id, standing.state());
        let (policy, decision) = match decided(&standing) {
            Ok(decided) => decided,
            Err(why) => return picked.undecided.push(failed(why.clone())),
        };
        standing.made(|answers: &Answers| {
            let sets = answers.custom(policy, decision).iter();
            let of_resource = sets.filter(|set| set.is_of(asked.resource, asked.metric));
            let objects = of_resource.flat_map(|set| &set.objects);
            let mut given = false;
            for answer in objects.filter(|answer| asked.picks(answer)) {
                picked.unlabelled |= asked.name.is_none() && answer.labels.is_none();
                match fresh(decision, asked.now).and_then(|()| answer.value.clone()) {
                    Ok(reading) => {
                        self.0.metrics.served(asked.now.wall.since(reading.sampled_at));
                        let item = answer.encoded(asked.metric, reading, &asked.wanted);
                        picked.items.push((answer.described.name.clone(), item));
                        given = true;
                    }
                    Err(why) => return picked.failures.push(failed(why)),
                }
            }
            picked.policies += usize::from(given);
        });
        if asked.resource == ("pods", "") && picked.items.is_empty() {
            let left_out = decision.left_out.iter();
            let named = left_out.filter(|pod| asked.name.is_none_or(|name| name == &*pod.name));
            picked.left_out.extend(named.map(ToString::to_string));
        }
    }
}

impl Asked<'_> {
    /// Objects whose labels are not known are picked: the answer is then an error, if any selector is given.
    fn picks(&self, answer: &CustomAnswer) -> bool {
        match (self.name, &answer.labels) {
            (Some(name), _) => name == &*answer.described.name,
            (None, Some(labels)) => self.objects.matches(labels),
            (None, None) => true,
        }
    }
}

impl CustomAnswers {
    fn is_of(&self, (resource, group): (&str, &str), metric: &str) -> bool {
        &*self.metric == metric
            && self.objects.first().is_some_and(|answer| {
                &*answer.described.resource == resource && answer.described.group() == group
            })
    }
}

/// One item per object: the HPA would take the last of several (kubernetes
/// `pkg/controller/podautoscaler/metrics/client.go`); here the first policy by name has its say.
fn put_together(asked: &Asked<'_>, mut picked: Picked) -> Bytes {
    if picked.policies > 1 {
        picked.items.sort_by(|(a, _), (b, _)| a.cmp(b));
        picked.items.dedup_by(|(a, _), (b, _)| a == b);
    }
    let items = picked.items.iter().map(|(_, item)| &item[..]);
    wire::list(asked.wanted.version.list(), asked.wanted.encoding, items)
}

fn nothing_picked(
    asked: &Asked<'_>,
    about: Details,
    mut picked: Picked,
    policies: &Namespace,
) -> ApiStatus {
    if !picked.undecided.is_empty() {
        return unserved(asked.namespace, about, picked.undecided);
    }
    let Asked { resource: (resource, _), metric, namespace, .. } = asked;
    let which = match asked.name {
        Some(name) => format!("{resource} {name:?} has no such metric"),
        None => format!("none of the {resource} that are picked has it"),
    };
    if picked.left_out.is_empty() {
        let known = policies_named(policies);
        let message =
            format!("{metric}: {which} in namespace {namespace:?}; policies there: {known}");
        return ApiStatus::not_found(message).about(about);
    }
    let more = picked.left_out.len().saturating_sub(PODS_NAMED);
    picked.left_out.truncate(PODS_NAMED);
    let mut message =
        format!("{metric}: {which} in namespace {namespace:?}; {}", picked.left_out.join("; "));
    if more > 0 {
        message.push_str(&format!("; and {more} more"));
    }
    ApiStatus::unavailable(message).about(about)
}

fn no_root_scoped() -> ApiStatus {
    ApiStatus::not_found(
        "no metric of an object outside of namespaces is served; that of a namespace is at namespaces/NAMESPACE/metrics/METRIC",
    )
}

/// All answers of a decided policy.
pub(super) fn answers(policy: &Policy, decision: &Decision) -> Vec<CustomAnswers> {
    let reading = |value| Reading::new(value, decision.sampled_at, decision.window);
    let one = |metric: &str, object: &DescribedObject, value| CustomAnswers {
        metric: metric.into(),
        objects: vec![CustomAnswer::new(object.clone(), None, value)],
    };
    let demand = one(DEMAND_METRIC, &decision.target, decision.demand.clone().and_then(reading));
    let described = decision
        .objects
        .iter()
        .map(|known| one(&known.metric, &known.object, known.value.clone().and_then(reading)));
    std::iter::once(demand).chain(described).chain(of_pods(policy, decision)).collect()
}

/// The pressure, and every value that a pod has under its own name.
fn of_pods(policy: &Policy, decision: &Decision) -> Vec<CustomAnswers> {
    let pod = DescribedObject {
        api_version: "v1".into(),
        kind: "Pod".into(),
        resource: "pods".into(),
        namespace: Some(policy.id.namespace.clone()),
        name: "".into(),
    };
    let answer = |of: &PodReading, value| {
        let described = DescribedObject { name: of.name.clone(), ..pod.clone() };
        let value = Reading::new(value, of.sampled_at, decision.window);
        CustomAnswer::new(described, Some(of.labels.clone()), value)
    };
    let mut sets: Vec<CustomAnswers> = Vec::new();
    let mut add = |metric: &str, answer| match sets.iter_mut().find(|set| &*set.metric == metric) {
        Some(set) => set.objects.push(answer),
        None => sets.push(CustomAnswers { metric: metric.into(), objects: vec![answer] }),
    };
    for of in &decision.pods {
        of.pressure.iter().for_each(|pressure| add(PRESSURE_METRIC, answer(of, *pressure)));
        of.values.iter().for_each(|(metric, value)| add(metric, answer(of, *value)));
    }
    sets
}
