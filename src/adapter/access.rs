//! The gate: who is asking, and may they.
//!
//! In: a request, with the certificate and address of its connection. Out: the request with its [`RequestInfo`] and
//! [`Identity`], or 401, 403 or 503, and a line of the audit log. Never: a judgement later than the deadline, a handler reached
//! because of an error, and never all places taken by one user. The order is upstream's: who, audit, how many, may they
//! (apiserver `pkg/server/config.go`, `DefaultBuildHandlerChain`).

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::audit::{Audit, Outcome, Subject};
use super::authentication::{Authentication, Identity, Means};
use super::authorization::{Authorization, Verdict, forbidden_message};
use super::client_cas::PeerCertificate;
use super::limits::MAX_KNOWN_REQUESTS;
use super::own_metrics::OwnMetrics;
use super::request_info::RequestInfo;
use super::shares::{Share, Shares};
use super::status::ApiStatus;
use crate::telemetry::error_chain;

/// For finding out who asks and whether they may, which may take the API server; a handler answers from memory. An adapter that
/// hangs holds one of the HPA controller's few workers.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The address that a connection came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceAddress(pub(super) IpAddr);

/// Marks the answer to a sender that was recognised: its connection is of use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recognised;

/// Both questions, their count, and the part of the whole that one user may take.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) authentication: Authentication,
    pub(super) authorization: Authorization,
    pub(super) metrics: OwnMetrics,
    pub(super) audit: Audit,
    pub(super) shares: Arc<Shares>,
}

impl Gate {
    pub(super) fn new(
        authentication: Authentication,
        authorization: Authorization,
        metrics: OwnMetrics,
        audit: Audit,
    ) -> Self {
        let shares = Shares::new(MAX_KNOWN_REQUESTS);
        Self { authentication, authorization, metrics, audit, shares }
    }

    async fn recognise(
        &self,
        headers: &HeaderMap,
        peer: Option<&PeerCertificate>,
        address: IpAddr,
    ) -> Result<(Identity, Means), ApiStatus> {
        self.metrics.client_cas_refused(self.authentication.refused_cas());
        match self.authentication.authenticate(headers, peer, address).await {
            Ok(Some(found)) => {
                self.metrics.authenticated(found.1.as_str());
                Ok(found)
            }
            Ok(None) => {
                self.metrics.authenticated("nobody");
                Err(ApiStatus::unauthorized())
            }
            Err(error) => {
                self.metrics.authenticated("error");
                warn!(error = error_chain(&error), "cannot tell who is asking");
                Err(ApiStatus::unavailable(error.sentence()))
            }
        }
    }

    /// A place among the requests at once, and leave to go on.
    async fn admit(&self, identity: &Identity, info: &RequestInfo) -> Result<Share, ApiStatus> {
        let Some(share) = self.shares.take(&identity.user) else {
            self.metrics.refused_as_too_many("user_requests");
            return Err(ApiStatus::unavailable("too many requests of this user are under way"));
        };
        match self.authorization.authorize(identity, info).await {
            Ok(Verdict::Allowed) => Ok(share),
            Ok(Verdict::Denied { reason }) => {
                Err(ApiStatus::forbidden(forbidden_message(identity, info, &reason)))
            }
            Err(error) => {
                warn!(error = error_chain(&error), "cannot tell who may do what");
                Err(ApiStatus::unavailable(
                    "cannot tell whether this is allowed: the API server does not answer",
                ))
            }
        }
    }

    /// The answer of `next` to those who may have it.
    pub(super) async fn admitted(
        &self,
        request: Request,
        next: impl AsyncFnOnce(Request) -> Response,
    ) -> Response {
        let started = Instant::now();
        let deadline = started + REQUEST_TIMEOUT;
        let (mut parts, body) = request.into_parts();
        let info = RequestInfo::of(&parts.method, &parts.uri);
        let peer = parts.extensions.get::<Arc<PeerCertificate>>().cloned();
        let address = parts.extensions.get::<SourceAddress>().copied();
        let address = address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.0);

        let mut found = None;
        let judged = timeout_at(deadline, async {
            let known = self.recognise(&parts.headers, peer.as_deref(), address).await?;
            self.admit(&found.insert(known).0, &info).await
        });
        let share = match judged.await.unwrap_or_else(|_| {
            warn!(path = info.path, "the API server did not review a request in time");
            Err(ApiStatus::unavailable(
                "the API server did not say in time whether this is allowed",
            ))
        }) {
            Ok(share) => share,
            Err(status) => {
                let known = found.is_some();
                if self.audit.of_refused(&info, known) {
                    let subject = Subject::new(&info, found, address, &parts.headers, started);
                    self.audit.write(&subject, Outcome::Refused(status.code(), status.message()));
                }
                return marked(status.into_response(), known);
            }
        };
        let Some((identity, means)) = found else { return ApiStatus::internal().into_response() };
        let subject = self.audit.of_admitted(&info).then(|| {
            let who = Some((identity.clone(), means));
            Subject::new(&info, who, address, &parts.headers, started)
        });
        parts.extensions.insert(Arc::new(info));
        parts.extensions.insert(identity);
        let answer = next(Request::from_parts(parts, body)).await;
        let answer = answer.map(|body| Body::new(Held { body, _share: share }));
        if let Some(subject) = subject {
            self.audit.write(&subject, Outcome::Admitted(answer.status()));
        }
        marked(answer, true)
    }
}

pin_project! {
    /// An answer's body that keeps its place until it is sent: a client that asks and does not read has its answers in memory.
    struct Held {
        #[pin]
        body: Body,
        _share: Share,
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.project().body.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn marked(mut answer: Response, recognised: bool) -> Response {
    if recognised {
        answer.extensions_mut().insert(Recognised);
    }
    answer
}
