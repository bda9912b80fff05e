//! The index: policies, targets and pods as last seen, and what follows from them.
//!
//! In: [`Change`]s, in the order in which they were seen. Out: one [`Ruling`] per policy, and the targets whose scale must
//! be known. Pure: no network, no clock. Never: a policy that one other object can break; each is ruled on alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;

use kube::core::DeserializeGuard;
use kube::discovery::Scope;
use kube::runtime::watcher::Event;

use super::compile::{compile, is_namespace};
use super::kinds::{KindKey, ServedKind, Unresolved, WantedKinds};
use super::pods::{SeenPod, timestamp};
use super::scaling_policy::{Autoscaler, ScaleTargetRef, ScalingPolicy, ScalingPolicyStatus};
use crate::policy::{Assignment, DescribedObject, Policy, PolicyId, TargetRef, Unserved, Workload};
use crate::sample::Selector;
use crate::time::Timestamp;

/// Reasons of refusals; each is also a condition's type.
pub mod reason {
    /// The spec contradicts itself or the schema.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// An older policy has the same target.
    pub const TARGET_CONFLICT: &str = "TargetConflict";
    /// The target does not exist, or has no scale.
    pub const TARGET_NOT_FOUND: &str = "TargetNotFound";
    /// The target's scale cannot be read, or names no pods.
    pub const TARGET_UNREADABLE: &str = "TargetUnreadable";
    /// The target's scale has not been read yet.
    pub const TARGET_PENDING: &str = crate::policy::reason::TARGET_PENDING;
    /// A metric describes an object of a kind that the API server does not have; the rest of the policy goes on.
    pub const DESCRIBED_KIND_NOT_SERVED: &str = "DescribedKindNotServed";
    /// The API server does not say whether it has the kind of a described object.
    pub const DESCRIBED_KIND_UNREADABLE: &str = "DescribedKindUnreadable";
    /// A metric describes an object outside namespaces, of which no namespace's policy may speak.
    pub const DESCRIBED_KIND_NOT_NAMESPACED: &str = "DescribedKindNotNamespaced";
}

/// A scaled object in its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TargetKey {
    pub(super) namespace: Arc<str>,
    pub(super) target: TargetRef,
}

/// What a read of a target's scale brought.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ScaleReading {
    Known {
        spec_replicas: u32,
        status_replicas: u32,
        selector: Selector,
        /// The plural of the target's kind in paths.
        resource: Arc<str>,
    },
    /// There is no such object, kind or scale.
    NotFound(String),
    /// It may exist. What was known before stays.
    Unreadable(String),
}

/// The targets whose scale must be known. A target's number stays for as long as it is wanted without a break: another
/// number tells who reads scales that the last reading has been forgotten.
pub(super) type WantedTargets = BTreeMap<TargetKey, u64>;

/// Something that was seen.
#[derive(Debug)]
pub(super) enum Change {
    Policy(Event<Box<SeenPolicy>>),
    Pod(Event<SeenPod>),
    Scale(TargetKey, ScaleReading),
    Kind(KindKey, Result<ServedKind, Unresolved>),
}

/// A policy as last seen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SeenPolicy {
    pub(super) id: PolicyId,
    pub(super) uid: String,
    pub(super) generation: i64,
    created: Option<Timestamp>,
    pub(super) compiled: Result<Arc<Policy>, String>,
    pub(super) target: Option<ScaleTargetRef>,
    /// The target, also while the spec is invalid: then the last valid one, whose HPA stays, or else the one that is named.
    claim: Option<TargetRef>,
    pub(super) autoscaler: Option<Autoscaler>,
    pub(super) status: ScalingPolicyStatus,
}

/// A policy and what follows for it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ruling {
    pub(super) policy: Arc<SeenPolicy>,
    pub(super) assignment: Assignment,
}

impl From<DeserializeGuard<ScalingPolicy>> for SeenPolicy {
    fn from(DeserializeGuard(object): DeserializeGuard<ScalingPolicy>) -> Self {
        let (metadata, parts) = match object {
            Ok(object) => {
                let compiled = compile(&object).map(Arc::new).map_err(|problems| {
                    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
                });
                (object.metadata, Ok((compiled, object.spec, object.status)))
            }
            Err(invalid) => {
                (invalid.metadata, Err(format!("the object cannot be read: {}", invalid.error)))
            }
        };
        let (compiled, target, autoscaler, status) = match parts {
            Ok((compiled, spec, status)) => {
                (compiled, Some(spec.scale_target_ref), spec.autoscaler, status.unwrap_or_default())
            }
            Err(problem) => (Err(problem), None, None, ScalingPolicyStatus::default()),
        };
        let named = target.as_ref().map(|target: &ScaleTargetRef| TargetRef {
            api_version: target.api_version.as_str().into(),
            kind: target.kind.as_str().into(),
            name: target.name.as_str().into(),
        });
        Self {
            id: PolicyId {
                namespace: metadata.namespace.unwrap_or_default().into(),
                name: metadata.name.unwrap_or_default().into(),
            },
            uid: metadata.uid.unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(timestamp),
            compiled,
            target,
            claim: named,
            autoscaler,
            status,
        }
    }
}

impl SeenPolicy {
    /// What no younger policy may have beside it.
    fn claimed(&self) -> Option<TargetKey> {
        let target = self.claim.clone()?;
        Some(TargetKey { namespace: self.id.namespace.clone(), target })
    }

    /// Each pod's CPU and memory in use are read, too, whatever the policy's signals are.
    pub(super) fn with_usage(mut self, wants_usage: bool) -> Self {
        if let Ok(policy) = &mut self.compiled {
            Arc::make_mut(policy).wants_usage = wants_usage;
        }
        self
    }

    /// The kinds of what its metrics describe. The namespace itself needs no discovery.
    fn described_kinds(&self) -> impl Iterator<Item = KindKey> {
        let described = self.compiled.iter().flat_map(|policy| policy.described());
        described.filter(|reference| !is_namespace(reference)).map(KindKey::of)
    }

    fn target_key(&self) -> Option<TargetKey> {
        let policy = self.compiled.as_ref().ok()?;
        Some(TargetKey { namespace: self.id.namespace.clone(), target: policy.target.clone() })
    }

    #[cfg(test)]
    pub(super) fn for_tests(id: PolicyId, generation: i64, policy: Arc<Policy>) -> Self {
        Self {
            id,
            uid: "uid".to_owned(),
            generation,
            created: None,
            claim: Some(policy.target.clone()),
            compiled: Ok(policy),
            target: None,
            autoscaler: None,
            status: ScalingPolicyStatus::default(),
        }
    }

    /// Whom two policies with one target are told apart by: the older, then the first by name.
    fn seniority(&self) -> (Option<Timestamp>, &PolicyId) {
        (self.created, &self.id)
    }
}

fn not_namespaced(TargetRef { kind, name, .. }: &TargetRef) -> Unserved {
    Unserved {
        reason: reason::DESCRIBED_KIND_NOT_NAMESPACED,
        message: format!(
            "{kind} {name} is in no namespace, and a policy speaks for its own only: it may describe objects in it, or the \
             namespace itself"
        ),
    }
}

/// One object whatever the version it is asked for in.
fn same_object(a: &TargetKey, b: &TargetKey) -> bool {
    let group =
        |target: &TargetRef| target.api_version.rsplit_once('/').map(|(group, _)| group.to_owned());
    a.namespace == b.namespace
        && a.target.kind == b.target.kind
        && a.target.name == b.target.name
        && group(&a.target) == group(&b.target)
}

type PodsByName = HashMap<Arc<str>, Arc<SeenPod>>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    policies: BTreeMap<PolicyId, Arc<SeenPolicy>>,
    incoming_policies: BTreeMap<PolicyId, Arc<SeenPolicy>>,
    policies_listed: bool,
    pods: HashMap<Arc<str>, PodsByName>,
    incoming_pods: HashMap<Arc<str>, PodsByName>,
    pods_listed: bool,
    scales: HashMap<TargetKey, ScaleReading>,
    wanted: WantedTargets,
    kinds: HashMap<KindKey, Result<ServedKind, Unresolved>>,
    wanted_kinds: WantedKinds,
    last_number: u64,
    rulings: BTreeMap<PolicyId, Ruling>,
    dirty: BTreeSet<PolicyId>,
}

impl Index {
    /// Takes in what was seen. A list in progress changes nothing before it is complete.
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Policy(event) => self.apply_policy(event),
            Change::Pod(event) => self.apply_pod(event),
            Change::Scale(key, reading) => self.apply_scale(key, reading),
            Change::Kind(key, reading) => self.apply_kind(key, reading),
        }
    }

    /// Policies and pods were both listed once: what follows is complete.
    pub(super) fn listed(&self) -> bool {
        self.policies_listed && self.pods_listed
    }

    /// The targets whose scale must be known from here on. Forgets the scales of all others: to be called when a burst of
    /// changes is over, so that a policy that is deleted and made anew within it keeps what is known of its target.
    pub(super) fn want(&mut self) -> WantedTargets {
        let mut wanted = WantedTargets::new();
        for key in self.policies.values().filter_map(|policy| policy.target_key()) {
            let number = self.wanted.get(&key).copied().unwrap_or_else(|| {
                self.last_number += 1;
                self.last_number
            });
            wanted.insert(key, number);
        }
        self.scales.retain(|key, _| wanted.contains_key(key));
        self.wanted.clone_from(&wanted);
        wanted
    }

    /// The kinds that must be known from here on; the same for those.
    pub(super) fn want_kinds(&mut self) -> WantedKinds {
        let mut wanted = WantedKinds::new();
        for key in self.policies.values().flat_map(|policy| policy.described_kinds()) {
            let number = self.wanted_kinds.get(&key).copied().unwrap_or_else(|| {
                self.last_number += 1;
                self.last_number
            });
            wanted.entry(key).or_insert(number);
        }
        self.kinds.retain(|key, _| wanted.contains_key(key));
        self.wanted_kinds.clone_from(&wanted);
        wanted
    }

    /// Rules anew on what changed. `None` if that changed nothing.
    pub(super) fn settle(&mut self) -> Option<Vec<Ruling>> {
        let mut changed = false;
        for id in mem::take(&mut self.dirty) {
            let ruling = self.policies.get(&id).map(|policy| self.rule(policy));
            changed |= self.rulings.get(&id) != ruling.as_ref();
            match ruling {
                Some(ruling) => self.rulings.insert(id, ruling),
                None => self.rulings.remove(&id),
            };
        }
        changed.then(|| self.rulings.values().cloned().collect())
    }

    fn apply_policy(&mut self, event: Event<Box<SeenPolicy>>) {
        match event {
            Event::Init => self.incoming_policies.clear(),
            Event::InitApply(policy) => {
                let policy = self.keep_compiled(*policy);
                self.incoming_policies.insert(policy.id.clone(), policy);
            }
            Event::InitDone => {
                self.dirty.extend(self.policies.keys().cloned());
                self.policies = mem::take(&mut self.incoming_policies);
                self.dirty.extend(self.policies.keys().cloned());
                self.policies_listed = true;
            }
            Event::Apply(policy) => {
                let policy = self.keep_compiled(*policy);
                let claim = |policy: &SeenPolicy| (policy.claimed(), policy.created);
                let earlier = self.policies.get(&policy.id);
                if earlier.is_none_or(|earlier| claim(earlier) != claim(&policy)) {
                    self.mark_namespace(&policy.id.namespace);
                }
                self.dirty.insert(policy.id.clone());
                self.policies.insert(policy.id.clone(), policy);
            }
            Event::Delete(policy) => {
                self.mark_namespace(&policy.id.namespace);
                self.policies.remove(&policy.id);
            }
        }
    }

    /// A status write must not look like a new policy to those who decide: what was compiled from the same generation
    /// stays, with what had been learned then. An invalid spec keeps the claim that was there before.
    fn keep_compiled(&self, mut policy: SeenPolicy) -> Arc<SeenPolicy> {
        if let Some(earlier) = self.policies.get(&policy.id)
            && earlier.uid == policy.uid
            && policy.compiled.is_err()
            && earlier.claim.is_some()
        {
            policy.claim.clone_from(&earlier.claim);
        }
        if let Some(earlier) = self.policies.get(&policy.id)
            && earlier.uid == policy.uid
            && earlier.generation == policy.generation
            && earlier.compiled.is_ok()
            && policy.compiled.is_ok()
        {
            policy.compiled.clone_from(&earlier.compiled);
        }
        Arc::new(policy)
    }

    fn apply_pod(&mut self, event: Event<SeenPod>) {
        match event {
            Event::Init => self.incoming_pods.clear(),
            Event::InitApply(pod) => {
                let namespace = self.incoming_pods.entry(pod.namespace.clone()).or_default();
                namespace.insert(pod.name.clone(), Arc::new(pod));
            }
            Event::InitDone => {
                self.pods = mem::take(&mut self.incoming_pods);
                self.pods_listed = true;
                self.dirty.extend(self.policies.keys().cloned());
            }
            Event::Apply(pod) => {
                let pod = Arc::new(pod);
                let namespace = self.pods.entry(pod.namespace.clone()).or_default();
                let earlier = namespace.insert(pod.name.clone(), pod.clone());
                self.mark_selecting(&pod);
                if let Some(earlier) = earlier.filter(|earlier| earlier.labels != pod.labels) {
                    self.mark_selecting(&earlier);
                }
            }
            Event::Delete(pod) => {
                if let Some(namespace) = self.pods.get_mut(&pod.namespace)
                    && let Some(earlier) = namespace.remove(&pod.name)
                {
                    if namespace.is_empty() {
                        self.pods.remove(&pod.namespace);
                    }
                    self.mark_selecting(&earlier);
                }
            }
        }
    }

    fn apply_scale(&mut self, key: TargetKey, reading: ScaleReading) {
        let of_target: Vec<_> = self
            .policies_in(&key.namespace)
            .filter(|policy| policy.target_key().as_ref() == Some(&key))
            .map(|policy| policy.id.clone())
            .collect();
        // A reading may fall between the deletion of a policy and its being made anew.
        if of_target.is_empty() && !self.wanted.contains_key(&key) {
            return;
        }
        self.dirty.extend(of_target);
        let known = matches!(self.scales.get(&key), Some(ScaleReading::Known { .. }));
        if !(known && matches!(reading, ScaleReading::Unreadable(_))) {
            self.scales.insert(key, reading);
        }
    }

    fn apply_kind(&mut self, key: KindKey, reading: Result<ServedKind, Unresolved>) {
        let describing = |policy: &&Arc<SeenPolicy>| policy.described_kinds().any(|of| of == key);
        let ids: Vec<_> =
            self.policies.values().filter(describing).map(|policy| policy.id.clone()).collect();
        if ids.is_empty() && !self.wanted_kinds.contains_key(&key) {
            return;
        }
        self.dirty.extend(ids);
        let known = matches!(self.kinds.get(&key), Some(Ok(_)));
        if !(known && matches!(reading, Err(Unresolved::Unreadable(_)))) {
            self.kinds.insert(key, reading);
        }
    }

    fn policies_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Arc<SeenPolicy>> {
        let first = PolicyId { namespace: namespace.clone(), name: "".into() };
        self.policies
            .range(first..)
            .take_while(move |(id, _)| id.namespace == *namespace)
            .map(|(_, policy)| policy)
    }

    fn mark_namespace(&mut self, namespace: &Arc<str>) {
        let ids: Vec<_> = self.policies_in(namespace).map(|policy| policy.id.clone()).collect();
        self.dirty.extend(ids);
    }

    /// Marks the policies whose target selects the pod.
    fn mark_selecting(&mut self, pod: &SeenPod) {
        let selects = |policy: &&Arc<SeenPolicy>| {
            let reading = policy.target_key().and_then(|key| self.scales.get(&key));
            matches!(reading, Some(ScaleReading::Known { selector, .. }) if selector.matches(&pod.labels))
        };
        let ids: Vec<_> = self
            .policies_in(&pod.namespace)
            .filter(selects)
            .map(|policy| policy.id.clone())
            .collect();
        self.dirty.extend(ids);
    }

    fn rule(&self, seen: &Arc<SeenPolicy>) -> Ruling {
        let refused = |reason: &'static str, message: String| Ruling {
            policy: seen.clone(),
            assignment: Assignment::Refused { id: seen.id.clone(), reason, message },
        };
        let (policy, key) = match (&seen.compiled, seen.target_key()) {
            (Ok(policy), Some(key)) => (policy, key),
            (Err(problems), _) => return refused(reason::INVALID_SPEC, problems.clone()),
            (Ok(_), None) => return refused(reason::INVALID_SPEC, "has no target".to_owned()),
        };
        if let Some(older) = self.elder(seen, &key) {
            let TargetRef { kind, name, .. } = &key.target;
            let message = format!(
                "{kind} {name} is already the target of the older ScalingPolicy {}",
                older.name
            );
            return refused(reason::TARGET_CONFLICT, message);
        }
        match self.scales.get(&key) {
            None => {
                let TargetRef { kind, name, .. } = &key.target;
                refused(
                    reason::TARGET_PENDING,
                    format!("the scale of {kind} {name} has not been read yet"),
                )
            }
            Some(ScaleReading::NotFound(message)) => {
                refused(reason::TARGET_NOT_FOUND, message.clone())
            }
            Some(ScaleReading::Unreadable(message)) => {
                refused(reason::TARGET_UNREADABLE, message.clone())
            }
            Some(ScaleReading::Known { spec_replicas, status_replicas, selector, resource }) => {
                let workload = Workload {
                    spec_replicas: *spec_replicas,
                    status_replicas: *status_replicas,
                    resource: resource.clone(),
                    described: self.described_by(policy),
                    pods: self.pods_of(policy, selector),
                };
                let workload = self.keep_workload(&seen.id, workload);
                Ruling {
                    policy: seen.clone(),
                    assignment: Assignment::Active { policy: policy.clone(), workload },
                }
            }
        }
    }

    /// The policy that has the target before this one.
    fn elder(&self, seen: &SeenPolicy, key: &TargetKey) -> Option<&PolicyId> {
        self.policies_in(&seen.id.namespace)
            .filter(|other| other.id != seen.id && other.seniority() < seen.seniority())
            .find(|other| other.claimed().is_some_and(|other| same_object(&other, key)))
            .map(|other| &other.id)
    }

    /// In the order of their names, so that equal workloads are equal.
    fn pods_of(&self, policy: &Policy, selector: &Selector) -> Vec<crate::policy::Pod> {
        let namespace = self.pods.get(&policy.id.namespace);
        let mut pods: Vec<_> = namespace
            .into_iter()
            .flat_map(HashMap::values)
            .filter(|pod| selector.matches(&pod.labels))
            .map(|pod| pod.with_port(&policy.endpoint.port))
            .collect();
        pods.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        pods
    }

    /// What its metrics describe, and where that is served. What is not looked up yet is absent.
    fn described_by(
        &self,
        policy: &Policy,
    ) -> BTreeMap<TargetRef, Result<DescribedObject, Unserved>> {
        let place = |reference: &TargetRef| {
            let object = |resource: &str, namespace| DescribedObject {
                api_version: reference.api_version.clone(),
                kind: reference.kind.clone(),
                resource: resource.into(),
                namespace,
                name: reference.name.clone(),
            };
            if is_namespace(reference) {
                return Some((reference.clone(), Ok(object("namespaces", None))));
            }
            let served = match self.kinds.get(&KindKey::of(reference))? {
                Ok(ServedKind { resource, scope: Scope::Namespaced }) => {
                    Ok(object(&resource.plural, Some(policy.id.namespace.clone())))
                }
                Ok(ServedKind { scope: Scope::Cluster, .. }) => Err(not_namespaced(reference)),
                Err(Unresolved::NotServed(message)) => Err(Unserved {
                    reason: reason::DESCRIBED_KIND_NOT_SERVED,
                    message: message.clone(),
                }),
                Err(Unresolved::Unreadable(message)) => Err(Unserved {
                    reason: reason::DESCRIBED_KIND_UNREADABLE,
                    message: message.clone(),
                }),
            };
            Some((reference.clone(), served))
        };
        policy.described().filter_map(place).collect()
    }

    /// An equal workload stays the same allocation, so that readers can compare pointers.
    fn keep_workload(&self, id: &PolicyId, workload: Workload) -> Arc<Workload> {
        match self.rulings.get(id).map(|ruling| &ruling.assignment) {
            Some(Assignment::Active { workload: earlier, .. }) if **earlier == workload => {
                earlier.clone()
            }
            _ => Arc::new(workload),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::pods::tests::pod;
    use crate::sample::Labels;

    fn policy(name: &str, change: impl FnOnce(&mut Value)) -> Box<SeenPolicy> {
        let mut object = json!({
            "apiVersion": "headroom.dev/v1alpha1",
            "kind": "ScalingPolicy",
            "metadata": {
                "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": 1,
                "creationTimestamp": "2026-09-21T14:13:20Z",
            },
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "checkout"},
                "endpoint": {"port": "metrics"},
                "signals": [{"name": "tasks", "tasks": {"threshold": 5000}}],
            },
        });
        change(&mut object);
        let guarded: DeserializeGuard<ScalingPolicy> =
            serde_json::from_value(object).expect("it has metadata");
        Box::new(guarded.into())
    }

    fn target(name: &str) -> TargetKey {
        let target = TargetRef {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            name: name.into(),
        };
        TargetKey { namespace: "shop".into(), target }
    }

    fn scale(spec_replicas: u32) -> ScaleReading {
        let selector = Selector::parse("app=checkout").expect("a selector");
        ScaleReading::Known {
            spec_replicas,
            status_replicas: 1,
            selector,
            resource: "deployments".into(),
        }
    }

    /// One policy, one target of two replicas, one pod.
    fn index() -> Index {
        let mut index = Index::default();
        index.apply(Change::Policy(Event::InitApply(policy("checkout", |_| {}))));
        index.apply(Change::Policy(Event::InitDone));
        index.apply(Change::Pod(Event::InitApply(pod("a", |_| {}))));
        index.apply(Change::Pod(Event::InitDone));
        index.apply(Change::Scale(target("checkout"), scale(2)));
        index
    }

    fn shown(rulings: Option<Vec<Ruling>>) -> Vec<String> {
        let show = |ruling: Ruling| match ruling.assignment {
            Assignment::Active { policy, workload } => {
                let pods: Vec<_> = workload.pods.iter().map(|pod| &*pod.name).collect();
                format!("{}: {} {}", policy.id.name, workload.spec_replicas, pods.join(" "))
            }
            Assignment::Refused { id, reason, .. } => format!("{}: {reason}", id.name),
        };
        rulings
            .map_or(vec!["unchanged".to_owned()], |rulings| rulings.into_iter().map(show).collect())
    }

    fn check(changes: Vec<Change>, expected: &[&str]) {
        let mut index = index();
        index.want();
        assert_eq!(shown(index.settle()), ["checkout: 2 a"]);
        for change in changes {
            index.apply(change);
        }
        index.want();
        assert_eq!(shown(index.settle()), expected);
    }

    #[test]
    fn a_policy_gets_the_pods_that_its_targets_selector_matches() {
        let other = pod("other", |pod| pod["metadata"]["labels"] = json!({"app": "cart"}));
        let elsewhere = pod("elsewhere", |pod| pod["metadata"]["namespace"] = json!("bank"));
        let changes = vec![other, pod("b", |_| {}), elsewhere]
            .into_iter()
            .map(|pod| Change::Pod(Event::Apply(pod)));
        check(changes.collect(), &["checkout: 2 a b"]);
    }

    #[test]
    fn a_pod_that_changes_its_labels_leaves() {
        let moved = pod("a", |pod| pod["metadata"]["labels"] = json!({"app": "cart"}));
        check(vec![Change::Pod(Event::Apply(moved))], &["checkout: 2 "]);
    }

    #[test]
    fn a_pod_nobody_selects_changes_nothing() {
        let other = pod("other", |pod| pod["metadata"]["labels"] = json!({"app": "cart"}));
        check(vec![Change::Pod(Event::Apply(other))], &["unchanged"]);
    }

    #[test]
    fn a_list_in_progress_changes_nothing_until_it_is_complete() {
        check(
            vec![Change::Pod(Event::Init), Change::Pod(Event::InitApply(pod("z", |_| {})))],
            &["unchanged"],
        );
        check(
            vec![
                Change::Pod(Event::Init),
                Change::Pod(Event::InitApply(pod("z", |_| {}))),
                Change::Pod(Event::InitDone),
            ],
            &["checkout: 2 z"],
        );
    }

    #[test]
    fn of_two_policies_on_one_target_the_older_has_it() {
        let younger = policy("a-younger", |object| {
            object["metadata"]["creationTimestamp"] = json!("2026-09-21T14:13:21Z");
        });
        let same_age = policy("z-same-age", |_| {});
        let other_version = policy("z-other-version", |object| {
            object["spec"]["scaleTargetRef"]["apiVersion"] = json!("apps/v1beta2");
        });
        check(
            vec![younger, same_age, other_version]
                .into_iter()
                .map(|p| Change::Policy(Event::Apply(p)))
                .collect(),
            &[
                "a-younger: TargetConflict",
                "checkout: 2 a",
                "z-other-version: TargetConflict",
                "z-same-age: TargetConflict",
            ],
        );
    }

    #[test]
    fn the_younger_policy_gets_the_target_when_the_older_goes() {
        check(
            vec![
                Change::Policy(Event::Apply(policy("z", |_| {}))),
                Change::Policy(Event::Delete(policy("checkout", |_| {}))),
            ],
            &["z: 2 a"],
        );
    }

    #[test]
    fn an_object_that_cannot_be_read_is_refused_and_harms_no_other() {
        let broken = policy("broken", |object| object["spec"]["signals"] = json!("none"));
        check(
            vec![Change::Policy(Event::Apply(broken))],
            &["broken: InvalidSpec", "checkout: 2 a"],
        );
    }

    #[test]
    fn an_older_policy_keeps_its_claim_while_its_spec_is_invalid() {
        let younger = || Change::Policy(Event::Apply(policy("z", |_| {})));
        let check_invalid = |spec: fn(&mut Value)| {
            let invalid = policy("checkout", |object| spec(&mut object["spec"]));
            check(
                vec![younger(), Change::Policy(Event::Apply(invalid))],
                &["checkout: InvalidSpec", "z: TargetConflict"],
            );
        };
        check_invalid(|spec| spec["signals"] = json!([{"name": "none"}]));
        check_invalid(|spec| spec["signals"] = json!("unreadable"));
        // The HPA made for the last valid spec stays on its target.
        check_invalid(|spec| {
            spec["signals"] = json!([{"name": "none"}]);
            spec["scaleTargetRef"]["name"] = json!("cart");
        });
    }

    #[test]
    fn an_older_policy_that_was_never_valid_claims_the_target_it_names() {
        let invalid = policy("a-older", |object| {
            object["metadata"]["creationTimestamp"] = json!("2026-09-21T14:13:19Z");
            object["spec"]["signals"] = json!([{"name": "none"}]);
        });
        check(
            vec![Change::Policy(Event::Apply(invalid))],
            &["a-older: InvalidSpec", "checkout: TargetConflict"],
        );
    }

    #[test]
    fn a_target_that_is_gone_is_told_and_one_that_cannot_be_read_keeps_its_last_scale() {
        let gone = ScaleReading::NotFound("gone".to_owned());
        check(vec![Change::Scale(target("checkout"), gone)], &["checkout: TargetNotFound"]);
        let unreadable = ScaleReading::Unreadable("the server is away".to_owned());
        check(vec![Change::Scale(target("checkout"), unreadable)], &["unchanged"]);
        check(vec![Change::Scale(target("checkout"), scale(5))], &["checkout: 5 a"]);
    }

    #[test]
    fn a_new_target_waits_for_its_scale() {
        let moved = policy("checkout", |object| {
            object["metadata"]["generation"] = json!(2);
            object["spec"]["scaleTargetRef"]["name"] = json!("cart");
        });
        check(vec![Change::Policy(Event::Apply(moved))], &["checkout: TargetPending"]);
    }

    fn deleted() -> Change {
        Change::Policy(Event::Delete(policy("checkout", |_| {})))
    }

    fn made_anew() -> Change {
        Change::Policy(Event::Apply(policy("checkout", |object| {
            object["metadata"]["uid"] = json!("uid-anew");
        })))
    }

    #[test]
    fn a_policy_deleted_and_made_anew_within_one_burst_keeps_its_targets_scale() {
        check(vec![deleted(), made_anew()], &["checkout: 2 a"]);
        let read_meanwhile = Change::Scale(target("checkout"), scale(5));
        check(vec![deleted(), read_meanwhile, made_anew()], &["checkout: 5 a"]);
    }

    #[test]
    fn a_target_wanted_again_after_a_break_has_another_number() {
        let mut index = index();
        let number = |index: &mut Index| index.want().get(&target("checkout")).copied();
        let first = number(&mut index).expect("it is wanted");
        assert_eq!(number(&mut index), Some(first));
        index.apply(deleted());
        index.apply(made_anew());
        assert_eq!(number(&mut index), Some(first), "no break was published");
        index.apply(deleted());
        assert_eq!(number(&mut index), None);
        index.apply(made_anew());
        let again = number(&mut index).expect("it is wanted again");
        assert_ne!(again, first);
        index.settle();
        assert!(index.scales.is_empty(), "the reading was forgotten with the first number");
    }

    fn describing(api_version: &'static str, kind: &'static str, name: &'static str) -> Change {
        Change::Policy(Event::Apply(policy("checkout", |object| {
            object["metadata"]["generation"] = json!(2);
            object["spec"]["signals"][0] = json!({"name": "m", "metric": {
                "name": "rps", "threshold": 1,
                "describes": {"apiVersion": api_version, "kind": kind, "name": name},
            }});
        })))
    }

    fn kind(api_version: &str, kind: &str) -> KindKey {
        KindKey { api_version: api_version.into(), kind: kind.into() }
    }

    fn served(plural: &str, scope: Scope) -> Result<ServedKind, Unresolved> {
        let gvk = kube::api::GroupVersionKind::gvk("any", "v1", "Any");
        let resource = kube::api::ApiResource::from_gvk_with_plural(&gvk, plural);
        Ok(ServedKind { resource, scope })
    }

    /// Where the described object is, as namespace and plural, or the reason why not; nothing before it is looked up.
    fn check_described(index: &mut Index, changes: Vec<Change>, expected: &[&str]) {
        changes.into_iter().for_each(|change| index.apply(change));
        index.want_kinds();
        index.settle();
        let Assignment::Active { workload, .. } =
            &index.rulings.values().next().expect("one").assignment
        else {
            panic!("{:?}", index.rulings)
        };
        let shown = |place: &Result<DescribedObject, Unserved>| match place {
            Ok(object) => {
                let namespace = object.namespace.as_deref().unwrap_or("-");
                format!("{namespace}/{}/{}", object.resource, object.name)
            }
            Err(why) => why.reason.to_owned(),
        };
        assert_eq!(workload.described.values().map(shown).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_described_object_is_placed_once_its_kind_is_known() {
        let mut index = index();
        let networking = || kind("networking.k8s.io/v1", "Ingress");
        let heard = |reading| vec![Change::Kind(networking(), reading)];
        let ingress = || describing("networking.k8s.io/v1", "Ingress", "main");
        check_described(&mut index, vec![ingress()], &[]);
        let absent = Err(Unresolved::NotServed("no such kind".to_owned()));
        check_described(&mut index, heard(absent), &["DescribedKindNotServed"]);
        let away = || Err(Unresolved::Unreadable("the server is away".to_owned()));
        check_described(&mut index, heard(away()), &["DescribedKindUnreadable"]);
        let known = || served("ingresses", Scope::Namespaced);
        check_described(&mut index, heard(known()), &["shop/ingresses/main"]);
        check_described(&mut index, heard(away()), &["shop/ingresses/main"]);
        check_described(
            &mut index,
            heard(served("nodes", Scope::Cluster)),
            &["DescribedKindNotNamespaced"],
        );
    }

    #[test]
    fn the_namespace_is_described_without_a_look_up() {
        let mut index = index();
        check_described(
            &mut index,
            vec![describing("v1", "Namespace", "shop")],
            &["-/namespaces/shop"],
        );
        assert_eq!(index.want_kinds(), WantedKinds::new());
    }

    #[test]
    fn a_kind_wanted_again_after_a_break_has_another_number() {
        let mut index = index();
        let ingress = || describing("networking.k8s.io/v1", "Ingress", "main");
        let number = |index: &mut Index| index.want_kinds().into_values().next();
        index.apply(ingress());
        let first = number(&mut index).expect("it is wanted");
        assert_eq!(number(&mut index), Some(first));
        index.apply(Change::Kind(
            kind("networking.k8s.io/v1", "Ingress"),
            served("ingresses", Scope::Namespaced),
        ));
        index.apply(deleted());
        assert_eq!(number(&mut index), None);
        assert!(index.kinds.is_empty());
        index.apply(ingress());
        assert_ne!(number(&mut index).expect("it is wanted again"), first);
    }

    #[test]
    fn usage_is_read_where_it_is_asked_for() {
        let wants = |asked| {
            let policy = policy("checkout", |_| {}).with_usage(asked);
            policy.compiled.expect("it is valid").wants_usage
        };
        assert_eq!((wants(false), wants(true)), (false, true));
    }

    #[test]
    fn nothing_is_complete_before_policies_and_pods_are_listed() {
        let mut index = Index::default();
        index.apply(Change::Policy(Event::InitDone));
        assert!(!index.listed());
        index.apply(Change::Pod(Event::InitDone));
        assert!(index.listed());
    }

    #[test]
    fn a_status_write_is_no_new_policy_to_those_who_decide() {
        let mut index = index();
        index.settle();
        let with_status = policy("checkout", |object| {
            object["status"] =
                json!({"learned": [{"name": "tasks", "at": "2026-09-21T14:13:20Z", "base": 1.0}]});
        });
        index.apply(Change::Policy(Event::Apply(with_status)));
        let rulings = index.settle().expect("the status is new");
        let Assignment::Active { policy, .. } = &rulings[0].assignment else {
            panic!("{rulings:?}")
        };
        assert_eq!(policy.learned.signals, []);
        assert_eq!(rulings[0].policy.status.learned.len(), 1);
    }

    #[test]
    fn an_unchanged_workload_stays_the_same_allocation() {
        let mut index = index();
        let workload =
            |rulings: Option<Vec<Ruling>>| match &rulings.expect("it changed")[0].assignment {
                Assignment::Active { workload, .. } => workload.clone(),
                Assignment::Refused { reason, .. } => panic!("{reason}"),
            };
        let before = workload(index.settle());
        index.apply(Change::Policy(Event::Apply(policy("checkout", |object| {
            object["metadata"]["generation"] = json!(2);
        }))));
        assert!(Arc::ptr_eq(&before, &workload(index.settle())));
    }

    #[test]
    fn selectors_are_those_of_labels() {
        let selector = Selector::parse("app=checkout").expect("a selector");
        assert!(
            !selector.matches(&Labels::from_iter([("app", "cart")])),
            "the selector of this test selects"
        );
    }
}
