//! Serve: the aggregated API server.
//!
//! In: the [`Board`], and requests that kube-apiserver forwards. Out: ready-made numbers, discovery, or a `metav1.Status` that
//! says what is missing. Never: a query to anything but the API server's own reviews, a partial sum, a redirect, or a
//! `Retry-After`.
//!
//! A request passes `front`: `limits` (size, number, panic), `access` (who, how many, may they, and the audit log), and then its
//! route. The HPA's contract on the wire is that of Kubernetes 1.37.

mod access;
mod answers;
mod audit;
mod authentication;
mod authorization;
pub mod catalogue;
mod client_cas;
mod compression;
mod custom_metrics;
mod discovery;
mod external_metrics;
mod front;
mod groups;
mod limits;
mod listener;
mod openapi;
mod own_metrics;
mod request_info;
mod resource_metrics;
mod review_cache;
mod serving;
pub mod serving_ca;
pub mod serving_certificate;
pub mod serving_files;
mod shares;
mod status;
mod trace;
pub mod wire;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use authentication::{
    Authentication, AuthenticationError, Delegated, Identity, Means, StaticToken,
};
pub use authorization::{AccessReviews, Authorization, AuthorizationError, Verdict};
pub use client_cas::{
    ClientCaError, ClientCaSettings, ClientCas, PeerCertificate, RequestHeaderSettings, Vouched,
};
pub use groups::Groups;
pub use own_metrics::{OwnMetrics, metrics_routes};
pub use request_info::{RequestInfo, ResourceInfo};
pub use serving::{CertificateError, SelfSigned, ServingCertificate, self_signed};
pub use status::{ApiStatus, Cause, Details};

use access::Gate;
use answers::Metrics;
use compression::compressed;
use custom_metrics::CustomMetrics;
use external_metrics::ExternalMetrics;
use front::Front;
use limits::Limits;
use listener::{Connections, Routes};
use resource_metrics::ResourceMetrics;
use wire::Encoding;

use crate::config::AuditLevel;
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
    /// Which API groups are served.
    pub groups: Groups,
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
    /// Which requests have a line in the log of who asked for what.
    pub audit: AuditLevel,
    /// More routes (push, profiles). They pass the same gate, find [`Identity`] and a shared [`RequestInfo`] among the request's
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
        let routes = Routes::Guarded(Arc::new(self.front()));
        Connections::tls(Arc::new(tls), routes, metrics, shutdown).serve(listener).await;
        Ok(())
    }

    /// The metrics of the groups that are served.
    fn apis(&self) -> Router {
        let source = || Metrics {
            board: self.board.clone(),
            clock: self.clock,
            metrics: self.metrics.clone(),
        };
        let mut routes = Router::new();
        if self.groups.external {
            let external = get(external).with_state(Arc::new(ExternalMetrics(source())));
            let of = "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}";
            routes = routes.route(of, external);
        }
        if self.groups.custom {
            let custom = get(custom).with_state(Arc::new(CustomMetrics(source())));
            for of in [
                "/namespaces/{namespace}/{resource}/{name}/{metric}",
                "/namespaces/{namespace}/metrics/{metric}",
                "/{resource}/{name}/{metric}",
            ] {
                let of = format!("/apis/custom.metrics.k8s.io/{{version}}{of}");
                routes = routes.route(&of, custom.clone());
            }
        }
        if self.groups.resource_metrics {
            let resources = get(resources).with_state(Arc::new(ResourceMetrics(source())));
            for of in
                ["/pods", "/namespaces/{namespace}/pods", "/namespaces/{namespace}/pods/{name}"]
            {
                let of = format!("/apis/metrics.k8s.io/{{version}}{of}");
                routes = routes.route(&of, resources.clone());
            }
        }
        routes
    }

    fn front(self) -> Front {
        let routes = self
            .apis()
            .merge(discovery::routes(self.groups))
            .merge(self.extra)
            .fallback(async || ApiStatus::no_such_path())
            .method_not_allowed_fallback(async || ApiStatus::method_not_allowed());
        let probes = self
            .progress
            .routes()
            .method_not_allowed_fallback(async || ApiStatus::method_not_allowed());
        let audit = audit::Audit::new(self.audit, self.metrics.clone());
        let gate = Gate::new(self.authentication, self.authorization, self.metrics.clone(), audit);
        Front { limits: Limits::new(self.metrics), gate, probes, routes }
    }
}

/// Serves `routes` on a port without TLS until `shutdown`, with bounds on connections, on their headers and on idling.
pub async fn serve_plain(
    listener: TcpListener,
    routes: Router,
    metrics: OwnMetrics,
    shutdown: CancellationToken,
) {
    Connections::plain(routes, metrics, shutdown).serve(listener).await;
}

async fn external(
    State(external): State<Arc<ExternalMetrics>>,
    request: Request,
) -> Result<Response, ApiStatus> {
    answered(request, |info, headers| {
        let resource = info.resource.as_ref().filter(|resource| resource.name.is_empty());
        let resource = resource.ok_or_else(ApiStatus::no_such_path)?;
        let encoding = encoding(headers)?;
        let (namespace, metric) = (&resource.namespace, &resource.resource);
        let list = external.list(namespace, metric, &info.label_selector, encoding)?;
        Ok(status::body_response(encoding, list))
    })
    .await
}

async fn custom(
    State(custom): State<Arc<CustomMetrics>>,
    request: Request,
) -> Result<Response, ApiStatus> {
    answered(request, |info, headers| {
        let encoding = encoding(headers)?;
        Ok(status::body_response(encoding, custom.list(info, encoding)?))
    })
    .await
}

async fn resources(
    State(resources): State<Arc<ResourceMetrics>>,
    request: Request,
) -> Result<Response, ApiStatus> {
    answered(request, |info, headers| resources.answer(info, accept(headers))).await
}

/// Answers what was authorised: the path is not read again. Nothing of it can be watched.
async fn answered(
    request: Request,
    answer: impl FnOnce(&RequestInfo, &HeaderMap) -> Result<Response, ApiStatus>,
) -> Result<Response, ApiStatus> {
    let (request, _) = request.into_parts();
    let info = request.extensions.get::<Arc<RequestInfo>>().ok_or_else(ApiStatus::internal)?;
    if info.verb == "watch" {
        return Err(ApiStatus::method_not_allowed());
    }
    let answer = answer(info, &request.headers)?;
    Ok(compressed(&request.headers, answer).await)
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, ApiStatus> {
    let encoding = Encoding::negotiate(accept(headers));
    encoding.map_err(|error| ApiStatus::not_acceptable(error.to_string()))
}

fn accept(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok())
}
