//! Bearer tokens judged by the cluster: TokenReview says whose a token is, SubjectAccessReview what its holder may do.
//!
//! In: a token and a path below `/debug/`. Out: a [`Verdict`]. Never: a verdict that outlives its request; whoever looks at a
//! profile does so a few times a day.
//!
//! The rights are those of non-resource URLs, as kubelets and API servers have them: `get` to read, `create` to change.
//!
//! ```yaml
//! apiVersion: rbac.authorization.k8s.io/v1
//! kind: ClusterRole
//! metadata: {name: profile-reader}
//! rules:
//! - nonResourceURLs: ["/debug/*"]
//!   verbs: [get]
//! ```

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::{Access, Authenticator, AuthenticatorError, Verdict};

/// Asks the API server about each token. Its own account needs `create` on `tokenreviews` and `subjectaccessreviews`:
/// ClusterRole `system:auth-delegator`.
#[derive(Clone)]
pub struct ClusterAccess {
    client: Client,
    audiences: Vec<String>,
}

impl ClusterAccess {
    /// Tokens must be for one of `audiences`; empty: for the API server itself.
    #[must_use]
    pub const fn new(client: Client, audiences: Vec<String>) -> Self {
        Self { client, audiences }
    }

    async fn ask(&self, token: &str, access: Access, path: &str) -> Result<Verdict, kube::Error> {
        let Some(user) = self.user(token).await? else { return Ok(Verdict::Unknown) };
        let verb = match access {
            Access::Read => "get",
            Access::Change => "create",
        };
        let extra = user.extra.unwrap_or_default().into_iter().collect();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username,
                uid: user.uid,
                groups: user.groups,
                extra: Some(extra),
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(path.to_owned()),
                    verb: Some(verb.to_owned()),
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.client.clone());
        let status = reviews.create(&PostParams::default(), &review).await?.status;
        let allowed = status.is_some_and(|status| status.allowed && status.denied != Some(true));
        Ok(if allowed { Verdict::Allowed } else { Verdict::Forbidden })
    }

    async fn user(&self, token: &str) -> Result<Option<UserInfo>, kube::Error> {
        let audiences = Some(self.audiences.clone()).filter(|audiences| !audiences.is_empty());
        let spec = TokenReviewSpec { token: token.to_owned(), audiences };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let status = reviews.create(&PostParams::default(), &review).await?.status;
        let known = status.filter(|status| {
            // An API server that ignores audiences returns none of them.
            let confirmed =
                status.audiences.iter().flatten().any(|one| self.audiences.contains(one));
            status.authenticated == Some(true) && (self.audiences.is_empty() || confirmed)
        });
        Ok(known.and_then(|status| status.user))
    }
}

impl std::fmt::Debug for ClusterAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterAccess").field("audiences", &self.audiences).finish_non_exhaustive()
    }
}

impl Authenticator for ClusterAccess {
    fn judge<'a>(
        &'a self,
        token: &'a str,
        access: Access,
        path: &'a str,
    ) -> BoxFuture<'a, Result<Verdict, AuthenticatorError>> {
        Box::pin(async move {
            self.ask(token, access, path).await.map_err(|error| AuthenticatorError(Box::new(error)))
        })
    }
}
