//! The gate: who is asking, and may they.
//!
//! In: a request, with the certificate of its connection. Out: the request with its [`RequestInfo`] and [`Identity`], or 401,
//! 403 or 503. Never: an answer later than the deadline, and never a handler reached because of an error.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::authentication::{Authentication, Identity};
use super::authorization::{Authorization, Verdict, forbidden_message};
use super::client_cas::PeerCertificate;
use super::own_metrics::OwnMetrics;
use super::request_info::RequestInfo;
use super::status::ApiStatus;
use crate::telemetry::error_chain;

/// For the whole of an answer. An adapter that hangs holds one of the HPA controller's few workers.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Until when an answer must be there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

/// Both questions and their count.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) authentication: Authentication,
    pub(super) authorization: Authorization,
    pub(super) metrics: OwnMetrics,
}

impl Gate {
    async fn admit(
        &self,
        headers: &HeaderMap,
        peer: Option<&PeerCertificate>,
        info: &RequestInfo,
    ) -> Result<Identity, ApiStatus> {
        self.metrics.client_cas_refused(self.authentication.refused_cas());
        let identity = match self.authentication.authenticate(headers, peer).await {
            Ok(Some((identity, means))) => {
                self.metrics.authenticated(means.as_str());
                identity
            }
            Ok(None) => {
                self.metrics.authenticated("nobody");
                return Err(ApiStatus::unauthorized());
            }
            Err(error) => {
                self.metrics.authenticated("error");
                warn!(error = error_chain(&error), "cannot tell who is asking");
                return Err(ApiStatus::unavailable(error.sentence()));
            }
        };
        match self.authorization.authorize(&identity, info).await {
            Ok(Verdict::Allowed) => Ok(identity),
            Ok(Verdict::Denied { reason }) => {
                Err(ApiStatus::forbidden(forbidden_message(&identity, info, &reason)))
            }
            Err(error) => {
                warn!(error = error_chain(&error), "cannot tell who may do what");
                Err(ApiStatus::unavailable(
                    "cannot tell whether this is allowed: the API server does not answer",
                ))
            }
        }
    }
}

/// The layer before every route but the probes.
pub(super) async fn admitted(
    State(gate): State<Arc<Gate>>,
    request: Request,
    next: Next,
) -> Response {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let (mut parts, body) = request.into_parts();
    let info = RequestInfo::of(&parts.method, &parts.uri);
    let peer = parts.extensions.get::<Arc<PeerCertificate>>().cloned();
    match timeout_at(deadline, gate.admit(&parts.headers, peer.as_deref(), &info)).await {
        Err(_) => {
            warn!(path = info.path, "the API server did not review a request in time");
            late("the API server did not say in time whether this is allowed")
        }
        Ok(Err(status)) => status.into_response(),
        Ok(Ok(identity)) => {
            parts.extensions.insert(info);
            parts.extensions.insert(identity);
            parts.extensions.insert(Deadline(deadline));
            next.run(Request::from_parts(parts, body)).await
        }
    }
}

/// The layer of routes that must answer by the deadline.
pub(super) async fn in_time(request: Request, next: Next) -> Response {
    let deadline = request.extensions().get::<Deadline>().copied();
    let Some(Deadline(deadline)) = deadline else { return ApiStatus::internal().into_response() };
    match timeout_at(deadline, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => late("the answer was not ready in time"),
    }
}

fn late(message: &str) -> Response {
    ApiStatus::unavailable(message).into_response()
}
