//! Single writes to the API server: a policy's status, a policy's HPA.
//!
//! In: what should be. Out: what came of it, as a value; the [writer](super::writer) decides what follows. Every write has
//! a deadline. Never: a write to an object that is not the one that was decided about; uids are preconditions.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::json;
use tracing::debug;

use super::hpa::{
    Applied, HPA_REFUSED, Known, MANAGER, SeenHpa, Step, applied, conflict_with, step,
};
use super::index::Ruling;
use super::scaling_policy::{ScalingPolicy, ScalingPolicyStatus};
use super::status::READY;
use crate::policy::{Finding, PolicyId};

/// A write that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(10);
/// Look, delete, look, apply: no chain of steps is longer.
const MAX_STEPS: usize = 4;

/// One thing to write.
pub(super) enum Job {
    Status { id: PolicyId, uid: String, status: Box<ScalingPolicyStatus>, ready_flipped: bool },
    Hpa { ruling: Ruling, known: Known, applied: Option<Applied> },
}

/// What came of a [`Job`].
pub(super) enum Outcome {
    Status { id: PolicyId, status: Box<ScalingPolicyStatus>, result: Result<(), WriteError> },
    Hpa { id: PolicyId, result: Result<HpaOutcome, WriteError> },
}

/// What an HPA job led to.
pub(super) enum HpaOutcome {
    /// Nothing was to do after all.
    Settled,
    /// It exists as wanted.
    Applied(SeenHpa, Applied),
    /// It is gone.
    Deleted { uid: String },
    /// It is another's, or the API server refuses it.
    Found(Finding),
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("the API server did not take it")]
    Api(#[from] kube::Error),
    #[error("no answer within {DEADLINE:?}")]
    Deadline,
}

impl WriteError {
    /// The object is gone, or is another by now: a watch will tell.
    pub(super) fn overtaken(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if matches!(status.code, 404 | 409))
    }
}

/// Whom the API server hears from.
#[derive(Clone)]
pub(super) struct Writes {
    client: kube::Client,
    recorder: Recorder,
}

impl Writes {
    pub(super) fn new(client: kube::Client) -> Self {
        let reporter =
            Reporter { controller: "headroom.dev/controller".to_owned(), instance: None };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    pub(super) async fn run(self, job: Job) -> Outcome {
        match job {
            Job::Status { id, uid, status, ready_flipped } => {
                let result = within_deadline(self.write_status(&id, &uid, &status)).await;
                if result.is_ok() && ready_flipped {
                    self.publish_ready(&id, uid, &status).await;
                }
                Outcome::Status { id, status, result }
            }
            Job::Hpa { ruling, known, applied } => {
                let id = ruling.policy.id.clone();
                let result = within_deadline(self.settle_hpa(&ruling, known, applied)).await;
                Outcome::Hpa { id, result }
            }
        }
    }

    /// Untyped, because the answer holds the whole object, and its spec may be one that cannot be read.
    async fn write_status(
        &self,
        id: &PolicyId,
        uid: &str,
        status: &ScalingPolicyStatus,
    ) -> Result<(), kube::Error> {
        let resource = ApiResource::erase::<ScalingPolicy>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &id.namespace, &resource);
        let object = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": &*id.name, "namespace": &*id.namespace, "uid": uid},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        api.patch_status(&id.name, &params, &Patch::Apply(object)).await.map(|_| ())
    }

    /// An event is a courtesy: its failure is told and forgotten.
    async fn publish_ready(&self, id: &PolicyId, uid: String, status: &ScalingPolicyStatus) {
        let Some(ready) = status.conditions.iter().find(|condition| condition.type_ == READY)
        else {
            return;
        };
        let event = Event {
            type_: if ready.status == "True" { EventType::Normal } else { EventType::Warning },
            reason: ready.reason.clone(),
            note: Some(ready.message.clone()),
            action: "Decide".to_owned(),
            secondary: None,
        };
        let reference = ObjectReference {
            api_version: Some(ScalingPolicy::api_version(&()).into_owned()),
            kind: Some(ScalingPolicy::kind(&()).into_owned()),
            name: Some(id.name.to_string()),
            namespace: Some(id.namespace.to_string()),
            uid: Some(uid),
            ..ObjectReference::default()
        };
        let published =
            tokio::time::timeout(DEADLINE, self.recorder.publish(&event, &reference)).await;
        if let Ok(Err(error)) = published {
            debug!(namespace = &*id.namespace, name = &*id.name, %error, "an event was not taken");
        }
    }

    async fn settle_hpa(
        &self,
        ruling: &Ruling,
        mut known: Known,
        before: Option<Applied>,
    ) -> Result<HpaOutcome, kube::Error> {
        let id = &ruling.policy.id;
        let api: Api<HorizontalPodAutoscaler> = Api::namespaced(self.client.clone(), &id.namespace);
        for _ in 0..MAX_STEPS {
            known = match step(ruling, &known, before) {
                Step::Nothing => return Ok(HpaOutcome::Settled),
                Step::LeaveAlone(finding) => return Ok(HpaOutcome::Found(finding)),
                Step::Look => match api.get_opt(&id.name).await? {
                    Some(hpa) => Known::Present(hpa.into()),
                    None => Known::Absent,
                },
                Step::Apply { object, uid } => return apply(&api, &id.name, *object, uid).await,
                Step::Delete { uid } => {
                    let only_this =
                        Preconditions { uid: Some(uid.clone()), ..Preconditions::default() };
                    let params = DeleteParams::background().preconditions(only_this);
                    match api.delete(&id.name, &params).await {
                        Err(kube::Error::Api(status)) if status.code == 404 => {}
                        outcome => drop(outcome?),
                    }
                    return Ok(HpaOutcome::Deleted { uid });
                }
            };
        }
        Ok(HpaOutcome::Settled)
    }
}

async fn within_deadline<T>(
    write: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, WriteError> {
    tokio::time::timeout(DEADLINE, write)
        .await
        .map_err(|_| WriteError::Deadline)?
        .map_err(WriteError::Api)
}

/// Without a uid nothing is forced: whoever was quicker with that name keeps it.
async fn apply(
    api: &Api<HorizontalPodAutoscaler>,
    name: &str,
    mut object: HorizontalPodAutoscaler,
    uid: Option<String>,
) -> Result<HpaOutcome, kube::Error> {
    let sent = object.clone();
    let params = PatchParams::apply(MANAGER);
    let params = if uid.is_some() { params.force() } else { params };
    let first = uid.is_none();
    object.metadata.uid = uid;
    match api.patch(name, &params, &Patch::Apply(&object)).await {
        Ok(stored) => {
            let stored = SeenHpa::from(stored);
            let applied = applied(&sent, &stored);
            Ok(HpaOutcome::Applied(stored, applied))
        }
        Err(kube::Error::Api(status)) if first && status.code == 409 => {
            Ok(HpaOutcome::Found(conflict_with(name)))
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
            let message =
                format!("the API server refuses the HorizontalPodAutoscaler: {}", status.message);
            Ok(HpaOutcome::Found(Finding { reason: HPA_REFUSED, message }))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{Method, Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use kube::core::DeserializeGuard;
    use parking_lot::Mutex;
    use serde_json::Value;

    use super::*;
    use crate::controller::index::{SeenPolicy, reason};
    use crate::policy::Assignment;

    /// What an API server was asked: method, path with query, body.
    type Asked = Arc<Mutex<Vec<(Method, String, Value)>>>;

    /// An API server that gives prepared answers in their order, and remembers what it was asked.
    fn scripted(answers: Vec<(u16, Value)>) -> (Writes, Asked) {
        let asked = Asked::default();
        let answers = Arc::new(Mutex::new(answers.into_iter()));
        let remember = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (remember, answers) = (remember.clone(), answers.clone());
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await?.to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                remember.lock().push((parts.method, parts.uri.to_string(), body));
                let (code, answer) =
                    answers.lock().next().expect("no more is asked than there are answers");
                let response = Response::builder()
                    .status(code)
                    .body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, tower::BoxError>(response.expect("code and body are valid"))
            }
        });
        (Writes::new(kube::Client::new(service, "default")), asked)
    }

    fn ruling() -> Ruling {
        let object = json!({
            "apiVersion": "headroom.dev/v1alpha1",
            "kind": "ScalingPolicy",
            "metadata": {"name": "checkout", "namespace": "shop", "uid": "policy-uid", "generation": 1},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "checkout"},
                "endpoint": {"port": "metrics"},
                "signals": [{"name": "tasks", "tasks": {"threshold": 5000}}],
                "autoscaler": {"maxReplicas": 5},
            },
        });
        let guarded: DeserializeGuard<ScalingPolicy> =
            serde_json::from_value(object).expect("it has metadata");
        let policy = Arc::new(SeenPolicy::from(guarded));
        let assignment = Assignment::Refused {
            id: policy.id.clone(),
            reason: reason::TARGET_PENDING,
            message: String::new(),
        };
        Ruling { policy, assignment }
    }

    fn failure(code: u16, message: &str) -> (u16, Value) {
        let reason = if code == 404 { "NotFound" } else { "Other" };
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": reason, "message": message});
        (code, status)
    }

    /// An HPA of the policy's name, as the API server would give it.
    fn stored(controller: Option<&str>) -> (u16, Value) {
        let owner = controller.map(|uid| {
            json!([{"apiVersion": "headroom.dev/v1alpha1", "kind": "ScalingPolicy", "name": "checkout",
                "uid": uid, "controller": true}])
        });
        let hpa = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "checkout", "namespace": "shop", "uid": "hpa-uid", "ownerReferences": owner},
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "checkout"}, "maxReplicas": 5},
        });
        (200, hpa)
    }

    async fn check(answers: Vec<(u16, Value)>, expected: &str, expected_requests: &[&str]) {
        let (writes, asked) = scripted(answers);
        let job = Job::Hpa { ruling: ruling(), known: Known::Unlabelled, applied: None };
        let shown = match writes.run(job).await {
            Outcome::Hpa { result: Ok(HpaOutcome::Applied(..)), .. } => "applied",
            Outcome::Hpa { result: Ok(HpaOutcome::Deleted { .. }), .. } => "deleted",
            Outcome::Hpa { result: Ok(HpaOutcome::Found(finding)), .. } => finding.reason,
            Outcome::Hpa { result: Ok(HpaOutcome::Settled), .. } => "settled",
            Outcome::Hpa { result: Err(_), .. } => "failed",
            Outcome::Status { .. } => "a status",
        };
        assert_eq!(shown, expected);
        let requests: Vec<_> = asked
            .lock()
            .iter()
            .map(|(method, uri, _)| {
                format!("{method} {}", uri.rsplit('/').next().unwrap_or_default())
            })
            .collect();
        assert_eq!(requests, expected_requests);
    }

    #[tokio::test]
    async fn an_hpa_that_is_not_there_is_created_without_force() {
        let answers = vec![failure(404, "not found"), stored(Some("policy-uid"))];
        check(answers, "applied", &["GET checkout", "PATCH checkout?&fieldManager=headroom"]).await;
    }

    #[tokio::test]
    async fn who_was_quicker_with_the_name_keeps_it() {
        let answers = vec![failure(404, "not found"), failure(409, "conflict with kubectl")];
        check(answers, "HPAConflict", &["GET checkout", "PATCH checkout?&fieldManager=headroom"])
            .await;
    }

    #[tokio::test]
    async fn an_hpa_of_someone_else_is_only_looked_at() {
        check(vec![stored(None)], "HPAConflict", &["GET checkout"]).await;
    }

    #[tokio::test]
    async fn an_hpa_of_ours_that_lost_its_label_is_restored() {
        let answers = vec![stored(Some("policy-uid")), stored(Some("policy-uid"))];
        let patch = "PATCH checkout?&force=true&fieldManager=headroom";
        check(answers, "applied", &["GET checkout", patch]).await;
    }

    #[tokio::test]
    async fn an_hpa_of_an_earlier_policy_is_deleted() {
        let answers = vec![
            stored(Some("earlier-uid")),
            (200, json!({"kind": "Status", "status": "Success"})),
        ];
        check(answers, "deleted", &["GET checkout", "DELETE checkout?"]).await;
    }

    #[tokio::test]
    async fn an_hpa_that_the_api_server_refuses_is_a_finding() {
        let answers = vec![failure(404, "not found"), failure(422, "behavior is invalid")];
        check(answers, "HPARefused", &["GET checkout", "PATCH checkout?&fieldManager=headroom"])
            .await;
    }

    #[tokio::test]
    async fn a_status_is_applied_whole_to_the_very_object_it_is_about() {
        let answer = json!({"apiVersion": "headroom.dev/v1alpha1", "kind": "ScalingPolicy",
            "metadata": {"name": "checkout", "namespace": "shop"}});
        let (writes, asked) = scripted(vec![(200, answer)]);
        let id = ruling().policy.id.clone();
        let status =
            Box::new(ScalingPolicyStatus { demand: Some(2.5), ..ScalingPolicyStatus::default() });
        let job = Job::Status { id, uid: "policy-uid".to_owned(), status, ready_flipped: false };
        assert!(matches!(writes.run(job).await, Outcome::Status { result: Ok(()), .. }));
        let asked = asked.lock();
        let (method, uri, body) = &asked[0];
        let path = "/apis/headroom.dev/v1alpha1/namespaces/shop/scalingpolicies/checkout/status";
        assert_eq!(
            (method, uri.as_str()),
            (&Method::PATCH, &*format!("{path}?&force=true&fieldManager=headroom"))
        );
        assert_eq!(body["metadata"]["uid"], "policy-uid");
        assert_eq!(body["status"], json!({"demand": 2.5}));
    }
}
