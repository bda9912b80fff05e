//! What every request passes first: size, number and panic.
//!
//! In: any request. Out: an answer, always, and its count. Never: more requests at once than the bound, and never a connection
//! lost because one handler panicked (on HTTP/2 it carries the requests of others).

use std::panic::AssertUnwindSafe;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{Instrument, debug, error};

use super::own_metrics::OwnMetrics;
use super::status::ApiStatus;
use super::trace;

/// Longest path and query. A selector of 50 requirements has about 4 KiB.
const MAX_URI_BYTES: usize = 8 * 1024;
/// All header names and values together. A user with 500 groups has about 25 KiB.
const MAX_HEADER_BYTES: usize = 48 * 1024;
/// Requests at once of senders who are known; [`super::access`] divides them among users.
pub(super) const MAX_KNOWN_REQUESTS: usize = 512;
/// Requests at once, all together: there is always room to find out who asks, since fewer tokens than this are under review.
const MAX_REQUESTS: usize = MAX_KNOWN_REQUESTS + 128;

/// The bound and the counters.
#[derive(Debug)]
pub(super) struct Limits {
    permits: Semaphore,
    metrics: OwnMetrics,
}

impl Limits {
    pub(super) fn new(metrics: OwnMetrics) -> Self {
        Self { permits: Semaphore::new(MAX_REQUESTS), metrics }
    }

    /// The answer of `next`, or a refusal; counted under `group`.
    pub(super) async fn limited(
        &self,
        group: &'static str,
        request: Request,
        next: impl AsyncFnOnce(Request) -> Response,
    ) -> Response {
        let started = Instant::now();
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let span = trace::request_span(&request);
        let answer = match refusal(&request) {
            Some(refusal) => refusal.into_response(),
            None => match self.permits.try_acquire() {
                Ok(_permit) => caught(next(request)).instrument(span.clone()).await,
                Err(_) => {
                    self.metrics.refused_as_too_many("requests");
                    ApiStatus::unavailable("too many requests are under way").into_response()
                }
            },
        };
        let took = started.elapsed();
        self.metrics.answered(group, answer.status(), took);
        trace::answered(&span, answer.status());
        let (path, code) = (uri.path(), answer.status().as_u16());
        let _entered = span.enter();
        debug!(%method, path, code, elapsed_seconds = took.as_secs_f64(), "answered a request");
        answer
    }
}

async fn caught(answer: impl Future<Output = Response>) -> Response {
    match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(answer) => answer,
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            error!(error = text, "a request's handler panicked");
            ApiStatus::internal().into_response()
        }
    }
}

fn refusal(request: &Request) -> Option<ApiStatus> {
    let uri = request.uri();
    if uri.path().len() + uri.query().map_or(0, str::len) > MAX_URI_BYTES {
        return Some(ApiStatus::uri_too_long(MAX_URI_BYTES));
    }
    let headers = request.headers().iter();
    let size: usize = headers.map(|(name, value)| name.as_str().len() + value.len()).sum();
    (size > MAX_HEADER_BYTES).then(|| ApiStatus::headers_too_large(MAX_HEADER_BYTES))
}
