//! Serve: the aggregated API server.
//!
//! In: the [`Board`], and requests that kube-apiserver forwards. Out: ready-made numbers, discovery, or a `metav1.Status` that
//! says what is missing. Never: a query to anything but the API server's own reviews, a partial sum, a redirect, or a
//! `Retry-After`.
//!
//! A request passes `limits` (size, number, panic), `access` (who, may they) and then its route. The HPA's contract on the
//! wire is that of Kubernetes 1.37.

mod access;
mod authentication;
mod authorization;
pub mod catalogue;
mod client_cas;
mod discovery;
mod external_metrics;
mod limits;
mod listener;
mod own_metrics;
mod request_info;
mod review_cache;
mod serving;
pub mod serving_ca;
pub mod serving_certificate;
pub mod serving_files;
mod status;
mod trace;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use authentication::{
    Authentication, AuthenticationError, Delegated, Identity, Means, StaticToken,
};
pub use authorization::{AccessReviews, Authorization, AuthorizationError, Verdict};
pub use client_cas::{
    ClientCaError, ClientCaSettings, ClientCas, PeerCertificate, RequestHeaderSettings, Vouched,
};
pub use own_metrics::{OwnMetrics, metrics_routes};
pub use request_info::{RequestInfo, ResourceInfo};
pub use serving::{CertificateError, SelfSigned, ServingCertificate, self_signed};
pub use status::{ApiStatus, Cause, Details};

use crate::policy::Board;
use crate::probes::Progress;
use crate::time::Clock;

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The TLS settings do not fit together.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

/// The API server, ready to serve.
///
/// For a cluster: [`Authentication::Delegated`], [`Authorization::Delegated`], and beside it [`ClientCas::follow`] as a task.
/// For a demo: [`Authentication::StaticToken`], [`Authorization::SuperusersOnly`] and a [`self_signed`] certificate.
#[derive(Debug)]
pub struct Server {
    /// What is served.
    pub board: Arc<Board>,
    /// The clock that the board's decisions were made by.
    pub clock: Clock,
    /// The certificate that is served; may be installed later and replaced.
    pub certificate: Arc<ServingCertificate>,
    /// How senders are recognised.
    pub authentication: Authentication,
    /// What they may do.
    pub authorization: Authorization,
    /// For the probes, which need no credentials.
    pub progress: Progress,
    /// What is counted.
    pub metrics: OwnMetrics,
    /// More routes (push, profiles). They pass the same gate, find [`Identity`] and [`RequestInfo`] among the request's
    /// extensions, and have no deadline but their own. Without a fallback of their own.
    pub extra: Router,
}

impl Server {
    /// Serves HTTPS on `listener` until `shutdown`, then finishes the requests under way and returns.
    ///
    /// # Errors
    /// [`ServeError`] if TLS cannot be set up; nothing that happens to a connection ends the server.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let tls = serving::tls_config(self.certificate.clone()).map_err(ServeError::Tls)?;
        let metrics = self.metrics.clone();
        let router = self.router();
        listener::Connections::new(Arc::new(tls), router, metrics, shutdown).serve(listener).await;
        Ok(())
    }

    fn router(self) -> Router {
        let external = external_metrics::ExternalMetrics {
            board: self.board,
            clock: self.clock,
            metrics: self.metrics.clone(),
        };
        let gate = Arc::new(access::Gate {
            authentication: self.authentication,
            authorization: self.authorization,
            metrics: self.metrics.clone(),
        });
        let external_path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}";
        Router::new()
            .route(external_path, get(external_metric).with_state(external))
            .merge(discovery::routes())
            .route_layer(middleware::from_fn(access::in_time))
            .merge(self.extra)
            .fallback(async || ApiStatus::no_such_path())
            .method_not_allowed_fallback(async || ApiStatus::method_not_allowed())
            .layer(middleware::from_fn_with_state(gate, access::admitted))
            .merge(self.progress.routes())
            .method_not_allowed_fallback(async || ApiStatus::method_not_allowed())
            .layer(middleware::from_fn_with_state(
                limits::Limits::new(self.metrics),
                limits::limited,
            ))
    }
}

/// Reads what was authorised, not the path again.
async fn external_metric(
    State(external): State<external_metrics::ExternalMetrics>,
    Extension(info): Extension<RequestInfo>,
) -> Response {
    let Some(resource) = info.resource.filter(|resource| resource.name.is_empty()) else {
        return ApiStatus::no_such_path().into_response();
    };
    if info.verb == "watch" {
        return ApiStatus::method_not_allowed().into_response();
    }
    match external.list(&resource.namespace, &resource.resource, &info.label_selector) {
        Ok(list) => status::json_response(axum::http::StatusCode::OK, &list),
        Err(status) => status.into_response(),
    }
}
