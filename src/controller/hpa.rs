//! The HorizontalPodAutoscaler that a policy's `autoscaler` asks for, and whose one of that name is.
//!
//! In: policies, and the HPAs that exist. Out: the wanted object, and the [`Step`] that leads to it. Pure. Never: a change
//! to an HPA that is not the policy's own.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, ExternalMetricSource, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;

use super::index::{Ruling, SeenPolicy, reason};
use super::scaling_policy::ScalingPolicy;
use crate::policy::{Assignment, DEMAND_METRIC, Finding, POLICY_LABEL};

/// The field manager of all that Headroom writes.
pub const MANAGER: &str = "headroom";
/// The label that marks an HPA as written by Headroom.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The condition for an HPA of the policy's name that is not the policy's.
pub(super) const HPA_CONFLICT: &str = "HPAConflict";
/// The condition for an HPA that the API server does not accept.
pub(super) const HPA_REFUSED: &str = "HPARefused";

/// What is kept of an HPA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenHpa {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// The uid of the `ScalingPolicy` that controls it.
    controller: Option<String>,
    /// Of all that is written by us, with the API server's defaults.
    pub(super) fingerprint: u64,
}

impl From<HorizontalPodAutoscaler> for SeenHpa {
    fn from(hpa: HorizontalPodAutoscaler) -> Self {
        let fingerprint = fingerprint(&hpa);
        let metadata = hpa.metadata;
        let ours = |owner: &&OwnerReference| {
            owner.controller == Some(true)
                && owner.kind == ScalingPolicy::kind(&())
                && owner.api_version.split('/').next() == Some(&*ScalingPolicy::group(&()))
        };
        let controller =
            metadata.owner_references.iter().flatten().find(ours).map(|owner| owner.uid.clone());
        Self {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            controller,
            fingerprint,
        }
    }
}

/// Status and bookkeeping are left out.
fn fingerprint(hpa: &HorizontalPodAutoscaler) -> u64 {
    let mut hasher = DefaultHasher::new();
    let metadata = &hpa.metadata;
    let written = (&hpa.spec, &metadata.labels, &metadata.owner_references);
    // Debug output of these types is their content; it stays inside this process.
    format!("{written:?}").hash(&mut hasher);
    hasher.finish()
}

/// Whose an HPA of the policy's name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    ThisPolicy,
    /// A policy of this name that is gone; the garbage collector has not come by.
    EarlierPolicy,
    Someone,
}

fn owner(hpa: &SeenHpa, policy: &SeenPolicy) -> Owner {
    match &hpa.controller {
        Some(uid) if *uid == policy.uid => Owner::ThisPolicy,
        Some(_) => Owner::EarlierPolicy,
        None => Owner::Someone,
    }
}

/// What was applied last, and what it became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Applied {
    /// Of the object that was sent.
    pub(super) sent: u64,
    /// Of the object that the API server made of it.
    pub(super) stored: u64,
}

/// What is known of the HPA of a policy's name.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Not among those with our label: it may exist without.
    Unlabelled,
    /// There is none.
    Absent,
    /// There is this one.
    Present(SeenHpa),
}

/// What to do about a policy's HPA.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// It is as it should be.
    Nothing,
    /// Ask the API server for the HPA of this name, then decide again.
    Look,
    /// Send the object. `uid`: of the HPA that is ours already; without, nothing that exists may be overridden.
    Apply { object: Box<HorizontalPodAutoscaler>, uid: Option<String> },
    /// Delete the HPA with this uid.
    Delete { uid: String },
    /// Leave it alone, and say so.
    LeaveAlone(Finding),
}

/// The next step for a policy's HPA.
pub(super) fn step(ruling: &Ruling, known: &Known, applied: Option<Applied>) -> Step {
    let policy = &*ruling.policy;
    if policy.compiled.is_err() {
        // What the owner last meant stays until the spec can be understood.
        return Step::Nothing;
    }
    // Two HPAs whose targets share pods switch each other off (AmbiguousSelector).
    let conflict =
        matches!(&ruling.assignment, Assignment::Refused { reason: reason::TARGET_CONFLICT, .. });
    let object = if conflict { None } else { wanted(policy) };
    match (object, known) {
        (None, Known::Present(hpa)) if owner(hpa, policy) == Owner::ThisPolicy => {
            Step::Delete { uid: hpa.uid.clone() }
        }
        (None, _) => Step::Nothing,
        (Some(_), Known::Unlabelled) => Step::Look,
        (Some(object), Known::Absent) => Step::Apply { object: Box::new(object), uid: None },
        (Some(object), Known::Present(hpa)) => match owner(hpa, policy) {
            Owner::EarlierPolicy => Step::Delete { uid: hpa.uid.clone() },
            Owner::Someone => Step::LeaveAlone(conflict_with(&hpa.name)),
            Owner::ThisPolicy => {
                let settled = Applied { sent: fingerprint(&object), stored: hpa.fingerprint };
                if applied == Some(settled) {
                    Step::Nothing
                } else {
                    Step::Apply { object: Box::new(object), uid: Some(hpa.uid.clone()) }
                }
            }
        },
    }
}

/// The finding about an HPA that is not ours.
pub(super) fn conflict_with(name: &str) -> Finding {
    let message =
        format!("HorizontalPodAutoscaler {name} exists and is not this policy's: it is left alone");
    Finding { reason: HPA_CONFLICT, message }
}

/// What [`Applied`] keeps of a sent object and of the answer to it.
pub(super) fn applied(sent: &HorizontalPodAutoscaler, stored: &SeenHpa) -> Applied {
    Applied { sent: fingerprint(sent), stored: stored.fingerprint }
}

fn wanted(policy: &SeenPolicy) -> Option<HorizontalPodAutoscaler> {
    let block = policy.autoscaler.as_ref()?;
    let target = policy.target.as_ref()?;
    let name = policy.id.name.to_string();
    let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let demand = ExternalMetricSource {
        metric: MetricIdentifier {
            name: DEMAND_METRIC.to_owned(),
            selector: Some(LabelSelector {
                match_labels: Some(label(POLICY_LABEL, &name)),
                ..LabelSelector::default()
            }),
        },
        target: MetricTarget {
            type_: "AverageValue".to_owned(),
            average_value: Some(Quantity("1".to_owned())),
            ..MetricTarget::default()
        },
    };
    Some(HorizontalPodAutoscaler {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(policy.id.namespace.to_string()),
            labels: Some(label(MANAGED_BY, MANAGER)),
            owner_references: Some(vec![OwnerReference {
                api_version: ScalingPolicy::api_version(&()).into_owned(),
                kind: ScalingPolicy::kind(&()).into_owned(),
                name,
                uid: policy.uid.clone(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some(target.api_version.clone()),
                kind: target.kind.clone(),
                name: target.name.clone(),
            },
            min_replicas: Some(block.min_replicas.unwrap_or(1)),
            max_replicas: block.max_replicas,
            metrics: Some(vec![MetricSpec {
                type_: "External".to_owned(),
                external: Some(demand),
                ..MetricSpec::default()
            }]),
            behavior: block.behavior.clone(),
        },
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::core::DeserializeGuard;
    use serde_json::{Value, json};

    use super::*;

    fn ruling(change: impl FnOnce(&mut Value)) -> Ruling {
        let mut object = json!({
            "apiVersion": "headroom.dev/v1alpha1",
            "kind": "ScalingPolicy",
            "metadata": {"name": "checkout", "namespace": "shop", "uid": "policy-uid", "generation": 1},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop-checkout"},
                "endpoint": {"port": "metrics"},
                "signals": [{"name": "tasks", "tasks": {"threshold": 5000}}],
                "autoscaler": {
                    "minReplicas": 2, "maxReplicas": 50,
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
                },
            },
        });
        change(&mut object);
        let guarded: DeserializeGuard<ScalingPolicy> =
            serde_json::from_value(object).expect("it has metadata");
        let policy = Arc::new(SeenPolicy::from(guarded));
        // What is active or pending makes no difference to the HPA.
        let assignment = Assignment::Refused {
            id: policy.id.clone(),
            reason: reason::TARGET_PENDING,
            message: String::new(),
        };
        Ruling { policy, assignment }
    }

    fn stored(change: impl FnOnce(&mut HorizontalPodAutoscaler)) -> Known {
        let mut hpa = wanted(&ruling(|_| {}).policy).expect("it has an autoscaler");
        hpa.metadata.uid = Some("hpa-uid".to_owned());
        change(&mut hpa);
        Known::Present(hpa.into())
    }

    fn applied_before() -> Option<Applied> {
        let sent = wanted(&ruling(|_| {}).policy).expect("it has an autoscaler");
        let Known::Present(stored) = stored(|_| {}) else { return None };
        Some(applied(&sent, &stored))
    }

    #[test]
    fn the_hpa_is_the_documented_pair_of_metric_and_target() {
        let Step::Apply { object, uid: None } = step(&ruling(|_| {}), &Known::Absent, None) else {
            panic!("it must be applied")
        };
        let expected = json!({
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {
                "name": "checkout",
                "namespace": "shop",
                "labels": {"app.kubernetes.io/managed-by": "headroom"},
                "ownerReferences": [{
                    "apiVersion": "headroom.dev/v1alpha1", "kind": "ScalingPolicy", "name": "checkout",
                    "uid": "policy-uid", "controller": true,
                }],
            },
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop-checkout"},
                "minReplicas": 2,
                "maxReplicas": 50,
                "metrics": [{"type": "External", "external": {
                    "metric": {"name": "headroom_demand", "selector": {"matchLabels": {"policy": "checkout"}}},
                    "target": {"type": "AverageValue", "averageValue": "1"},
                }}],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
            },
        });
        assert_eq!(serde_json::to_value(&object).expect("it is JSON"), expected);
    }

    #[test]
    fn an_hpa_that_is_not_the_policys_is_left_alone() {
        let foreign = stored(|hpa| hpa.metadata.owner_references = None);
        assert_eq!(
            step(&ruling(|_| {}), &foreign, None),
            Step::LeaveAlone(conflict_with("checkout"))
        );
        let without_block = ruling(|object| object["spec"]["autoscaler"] = Value::Null);
        assert_eq!(step(&without_block, &foreign, None), Step::Nothing);
    }

    #[test]
    fn a_name_that_is_not_known_is_looked_up_before_anything_is_sent() {
        assert_eq!(step(&ruling(|_| {}), &Known::Unlabelled, None), Step::Look);
    }

    #[test]
    fn an_hpa_as_it_was_applied_needs_nothing() {
        assert_eq!(step(&ruling(|_| {}), &stored(|_| {}), applied_before()), Step::Nothing);
        let busy = stored(|hpa| hpa.metadata.resource_version = Some("9".to_owned()));
        assert_eq!(step(&ruling(|_| {}), &busy, applied_before()), Step::Nothing);
    }

    #[test]
    fn drift_a_new_spec_and_a_new_leader_apply_again() {
        let again = |ruling: &Ruling, known: &Known, applied| matches!(step(ruling, known, applied), Step::Apply { uid: Some(uid), .. } if uid == "hpa-uid");
        let drifted = stored(|hpa| {
            hpa.spec.max_replicas = 7;
        });
        assert!(again(&ruling(|_| {}), &drifted, applied_before()));
        let larger = ruling(|object| object["spec"]["autoscaler"]["maxReplicas"] = json!(60));
        assert!(again(&larger, &stored(|_| {}), applied_before()));
        assert!(again(&ruling(|_| {}), &stored(|_| {}), None));
    }

    #[test]
    fn the_hpa_goes_with_its_block_and_with_its_target() {
        let delete = Step::Delete { uid: "hpa-uid".to_owned() };
        let without_block = ruling(|object| object["spec"]["autoscaler"] = Value::Null);
        assert_eq!(step(&without_block, &stored(|_| {}), applied_before()), delete);
        let mut younger = ruling(|_| {});
        younger.assignment = Assignment::Refused {
            id: younger.policy.id.clone(),
            reason: reason::TARGET_CONFLICT,
            message: String::new(),
        };
        assert_eq!(step(&younger, &stored(|_| {}), applied_before()), delete);
        assert_eq!(step(&younger, &Known::Unlabelled, None), Step::Nothing);
    }

    #[test]
    fn the_hpa_of_an_earlier_policy_of_the_name_is_deleted_first() {
        let recreated = ruling(|object| object["metadata"]["uid"] = json!("new-uid"));
        let step = step(&recreated, &stored(|_| {}), None);
        assert_eq!(step, Step::Delete { uid: "hpa-uid".to_owned() });
    }

    #[test]
    fn a_spec_that_cannot_be_understood_changes_no_hpa() {
        let invalid = ruling(|object| {
            object["spec"]["signals"] = json!([{"name": "none"}]);
            object["spec"]["autoscaler"] = Value::Null;
        });
        assert_eq!(step(&invalid, &stored(|_| {}), None), Step::Nothing);
        let unreadable = ruling(|object| object["spec"] = json!("none"));
        assert_eq!(step(&unreadable, &stored(|_| {}), None), Step::Nothing);
    }
}
