//! May they.
//!
//! In: an [`Identity`] and what it asks for. Out: yes, no with a sentence, or an error when the API server cannot be asked.
//! Never: yes because of an error. Source: apiserver `pkg/server/options/authorization.go`,
//! `plugin/pkg/authorizer/webhook`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use super::authentication::{Identity, SUPERUSERS};
use super::request_info::{RequestInfo, ResourceInfo};
use super::review_cache::{Key, Keys, ReviewCache};
use super::shares::Shares;

/// How long an answer of the API server stands (upstream's defaults for delegated servers).
const ALLOWED_STANDS_FOR: Duration = Duration::from_secs(10);
const DENIED_STANDS_FOR: Duration = Duration::from_secs(10);
/// Answers that are kept.
const ANSWERS_KEPT: usize = 8192;
/// Reviews that may be under way at once; one user's wait where they are as many as are free.
const REVIEWS_AT_ONCE: usize = 64;
/// The aggregator's own users, which read discovery and OpenAPI without any group: kube-aggregator
/// `pkg/apiserver/handler_discovery.go`, `pkg/controllers/openapi/aggregator/downloader.go`.
const AGGREGATOR_USERS: [&str; 2] = ["system:kube-aggregator", "system:aggregator"];

/// Why it cannot be said whether they may.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizationError {
    /// The API server did not answer.
    #[error("cannot review an access")]
    Review(#[source] Box<kube::Error>),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They may.
    Allowed,
    /// They may not.
    Denied {
        /// Why, if the API server said.
        reason: String,
    },
}

/// The ways to tell who may what. One is real, the other is for a demo without a cluster.
#[derive(Debug)]
pub enum Authorization {
    /// By the cluster's RBAC.
    Delegated(AccessReviews),
    /// Superusers may everything, others nothing.
    SuperusersOnly,
}

impl Authorization {
    /// Whether `identity` may do what `request` asks.
    ///
    /// # Errors
    /// [`AuthorizationError`] if the API server cannot be asked.
    pub async fn authorize(
        &self,
        identity: &Identity,
        request: &RequestInfo,
    ) -> Result<Verdict, AuthorizationError> {
        if identity.groups.iter().any(|group| group == SUPERUSERS) {
            return Ok(Verdict::Allowed);
        }
        if AGGREGATOR_USERS.contains(&identity.user.as_str()) && is_discovery(request) {
            return Ok(Verdict::Allowed);
        }
        match self {
            Self::Delegated(reviews) => reviews.review(identity, request).await,
            Self::SuperusersOnly => Ok(Verdict::Denied { reason: String::new() }),
        }
    }
}

/// Whether a request reads what says what is served.
pub(super) fn is_discovery(request: &RequestInfo) -> bool {
    let under = |root: &str| {
        request.path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    request.resource.is_none() && request.verb == "get" && (under("/apis") || under("/openapi"))
}

/// Asks the API server, and remembers the answer for a short time.
pub struct AccessReviews {
    client: Client,
    keys: Keys,
    known: ReviewCache<Key, Verdict>,
    under_way: Arc<Shares>,
}

impl std::fmt::Debug for AccessReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessReviews")
    }
}

impl AccessReviews {
    /// Asks through `client`, which needs the cluster role `system:auth-delegator`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            keys: Keys::default(),
            known: ReviewCache::new(ANSWERS_KEPT),
            under_way: Shares::new(REVIEWS_AT_ONCE),
        }
    }

    async fn review(
        &self,
        identity: &Identity,
        request: &RequestInfo,
    ) -> Result<Verdict, AuthorizationError> {
        let key = self.keys.of(&(identity, question_of(request)));
        if let Some(known) = self.known.get(&key, Instant::now()) {
            return Ok(known);
        }
        let _share = self.under_way.wait(&identity.user).await;
        // Another may have asked the same meanwhile.
        if let Some(known) = self.known.get(&key, Instant::now()) {
            return Ok(known);
        }
        let spec = spec_of(identity, request);
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = Api::<SubjectAccessReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| AuthorizationError::Review(Box::new(error)))?;
        let status = answer.status.unwrap_or_default();
        let (verdict, stands_for) = if status.allowed && status.denied != Some(true) {
            (Verdict::Allowed, ALLOWED_STANDS_FOR)
        } else {
            let reason = status.reason.unwrap_or_default();
            (Verdict::Denied { reason }, DENIED_STANDS_FOR)
        };
        self.known.put(key, verdict.clone(), Instant::now(), stands_for);
        Ok(verdict)
    }
}

/// All of a request that [`spec_of`] asks about.
fn question_of(request: &RequestInfo) -> (&str, Option<&ResourceInfo>, &str) {
    let path = if request.resource.is_some() { "" } else { request.path.as_str() };
    (&request.verb, request.resource.as_ref(), path)
}

/// Without the label selector: RBAC does not look at it, and an authorizer that would allow more because of it sees a request
/// for everything.
fn spec_of(identity: &Identity, request: &RequestInfo) -> SubjectAccessReviewSpec {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let resource_attributes = request.resource.as_ref().map(|resource| ResourceAttributes {
        group: some(&resource.group),
        version: some(&resource.version),
        namespace: some(&resource.namespace),
        resource: some(&resource.resource),
        name: some(&resource.name),
        subresource: some(&resource.subresource),
        verb: some(&request.verb),
        ..ResourceAttributes::default()
    });
    let non_resource_attributes = match &resource_attributes {
        Some(_) => None,
        None => {
            Some(NonResourceAttributes { path: some(&request.path), verb: some(&request.verb) })
        }
    };
    SubjectAccessReviewSpec {
        user: some(&identity.user),
        uid: identity.uid.clone(),
        groups: Some(identity.groups.clone()),
        extra: (!identity.extra.is_empty()).then(|| identity.extra.clone()),
        resource_attributes,
        non_resource_attributes,
    }
}

/// The sentence of a refusal, as kube-apiserver words it.
pub(super) fn forbidden_message(
    identity: &Identity,
    request: &RequestInfo,
    reason: &str,
) -> String {
    let user = &identity.user;
    let verb = &request.verb;
    let mut message = match &request.resource {
        None => format!("User {user:?} cannot {verb} path {:?}", request.path),
        Some(r) => {
            let mut resource = r.resource.clone();
            if !r.subresource.is_empty() {
                resource = format!("{resource}/{}", r.subresource);
            }
            let scope = match r.namespace.as_str() {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            format!(
                "{}.{} is forbidden: User {user:?} cannot {verb} resource {resource:?} in API group {:?} {scope}",
                r.resource, r.group, r.group
            )
        }
    };
    if !reason.is_empty() {
        message.push_str(": ");
        message.push_str(reason);
    }
    message
}
