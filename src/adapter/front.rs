//! The way of every request to the API.
//!
//! In: any request. Out: an answer, always. Never: a route but the probes without the gate before it.
//!
//! Plain calls and no layers of the router: each of those costs a request two allocations and a copy of its route.

use std::convert::Infallible;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use tower::ServiceExt;

use super::access::Gate;
use super::limits::Limits;
use super::own_metrics::{PROBE, group_of};

/// The bounds, then the probes for anyone and the gate before everything else.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) limits: Limits,
    pub(super) gate: Gate,
    pub(super) probes: Router,
    pub(super) routes: Router,
}

impl Front {
    pub(super) async fn answer(&self, request: Request) -> Response {
        let group = group_of(request.uri().path());
        let next = async |request| match group {
            PROBE => routed(&self.probes, request).await,
            _ => {
                self.gate
                    .admitted(request, async |request| routed(&self.routes, request).await)
                    .await
            }
        };
        self.limits.limited(group, request, next).await
    }
}

/// The router's answer.
pub(super) async fn routed(routes: &Router, request: Request) -> Response {
    let answer: Result<Response, Infallible> = routes.clone().oneshot(request).await;
    answer.unwrap_or_else(|never| match never {})
}
