//! The requests of the sample service.
//!
//! In: amounts as query parameters. Out: JSON that repeats what was taken, 400 with the reason for an amount out of
//! bounds, 429 where the service holds as much as it allows. Never: an amount that is only nearly what was asked for.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::work::{Full, Workshop, limits};

const HELP: &str = "Sample service: each request moves one signal.
POST /tasks?count=&seconds=   live tasks        POST /heap?bytes=&seconds=   held heap
POST /allocate?bytes=         allocation        POST /cpu?milliseconds=      CPU time
POST /work?milliseconds=      request latency   POST /queue?items=&seconds=  queue depth
GET  /ready
";

/// The routes.
pub(super) fn routes(workshop: Workshop) -> Router {
    Router::new()
        .route("/", get(|| async { HELP }))
        .route("/ready", get(ready))
        .route("/tasks", post(tasks))
        .route("/heap", post(heap))
        .route("/allocate", post(allocate))
        .route("/cpu", post(cpu))
        .route("/work", post(work))
        .route("/queue", post(queue))
        .with_state(workshop)
}

/// Why a request is not done.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Query(#[from] QueryRejection),
    #[error("{name} must be from {least} to {most}")]
    OutOfBounds { name: &'static str, least: f64, most: f64 },
    #[error("{0}")]
    Full(#[from] Full),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Query(_) | Self::OutOfBounds { .. } => StatusCode::BAD_REQUEST,
            Self::Full(_) => StatusCode::TOO_MANY_REQUESTS,
        };
        (status, Json(json!({"error": self.to_string()}))).into_response()
    }
}

type Answer = Result<Json<Value>, Refusal>;
type Parameters<T> = Result<Query<T>, QueryRejection>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tasks {
    count: u32,
    seconds: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Heap {
    bytes: u64,
    seconds: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allocation {
    bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Milliseconds {
    milliseconds: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Queue {
    items: u32,
    seconds: f64,
}

async fn ready(State(workshop): State<Workshop>) -> Response {
    if workshop.is_ready() {
        "ready".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting").into_response()
    }
}

async fn tasks(State(workshop): State<Workshop>, query: Parameters<Tasks>) -> Answer {
    let Query(Tasks { count, seconds }) = query?;
    within("count", count.into(), limits::TASKS.into())?;
    workshop.spawn_tasks(count, hold(seconds)?)?;
    Ok(Json(json!({"tasks": count, "seconds": seconds})))
}

async fn heap(State(workshop): State<Workshop>, query: Parameters<Heap>) -> Answer {
    let Query(Heap { bytes, seconds }) = query?;
    within("bytes", bytes, u64::from(limits::HEAP_MEBIBYTES) << 20)?;
    workshop.hold_bytes(bytes, hold(seconds)?)?;
    Ok(Json(json!({"heldBytes": bytes, "seconds": seconds})))
}

async fn allocate(State(workshop): State<Workshop>, query: Parameters<Allocation>) -> Answer {
    let Query(Allocation { bytes }) = query?;
    within("bytes", bytes, limits::ALLOCATED_BYTES)?;
    workshop.allocate(bytes).await?;
    Ok(Json(json!({"allocatedBytes": bytes})))
}

async fn cpu(State(workshop): State<Workshop>, query: Parameters<Milliseconds>) -> Answer {
    let milliseconds = milliseconds(query)?;
    workshop.burn(Duration::from_millis(milliseconds)).await?;
    Ok(Json(json!({"cpuMilliseconds": milliseconds})))
}

async fn work(State(workshop): State<Workshop>, query: Parameters<Milliseconds>) -> Answer {
    let milliseconds = milliseconds(query)?;
    workshop.work(Duration::from_millis(milliseconds)).await?;
    Ok(Json(json!({"workedMilliseconds": milliseconds})))
}

async fn queue(State(workshop): State<Workshop>, query: Parameters<Queue>) -> Answer {
    let Query(Queue { items, seconds }) = query?;
    within("items", items.into(), limits::ITEMS.into())?;
    workshop.enqueue(items, hold(seconds)?)?;
    Ok(Json(json!({"items": items, "seconds": seconds})))
}

fn milliseconds(query: Parameters<Milliseconds>) -> Result<u64, Refusal> {
    let Query(Milliseconds { milliseconds }) = query?;
    within("milliseconds", milliseconds, limits::WORK_MILLISECONDS)?;
    Ok(milliseconds)
}

#[expect(clippy::cast_precision_loss, reason = "the limits are far below 2^52")]
fn within(name: &'static str, amount: u64, most: u64) -> Result<(), Refusal> {
    if (1..=most).contains(&amount) {
        Ok(())
    } else {
        Err(Refusal::OutOfBounds { name, least: 1.0, most: most as f64 })
    }
}

fn hold(seconds: f64) -> Result<Duration, Refusal> {
    const LEAST: f64 = 0.001;
    if (LEAST..=limits::HOLD_SECONDS).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(Refusal::OutOfBounds { name: "seconds", least: LEAST, most: limits::HOLD_SECONDS })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn check(workshop: &Workshop, method: &str, path: &str, status: u16, expected: &str) {
        let request = Request::builder().method(method).uri(path).body(Body::empty());
        let response = routes(workshop.clone())
            .oneshot(request.expect("a well-formed request"))
            .await
            .expect("a router never fails");
        assert_eq!(response.status().as_u16(), status, "{path}");
        let body = response.into_body().collect().await.expect("a body in memory").to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains(expected), "{path}: {body}");
    }

    #[tokio::test]
    async fn an_amount_out_of_bounds_is_refused_with_the_bounds() {
        let workshop = Workshop::new(1, Duration::ZERO);
        for (path, expected) in [
            ("/tasks?count=0&seconds=1", r#"{"error":"count must be from 1 to 200000"}"#),
            ("/tasks?count=200001&seconds=1", "count must be from 1 to 200000"),
            ("/tasks?count=1&seconds=0", "seconds must be from 0.001 to 3600"),
            ("/tasks?count=1&seconds=NaN", "seconds must be from"),
            ("/tasks?count=1", "missing field `seconds`"),
            ("/tasks?count=many&seconds=1", "invalid digit"),
            ("/tasks?count=1&seconds=1&extra=1", "unknown field `extra`"),
            ("/heap?bytes=4294967297&seconds=1", "bytes must be from 1 to 4294967296"),
            ("/allocate?bytes=0", "bytes must be from"),
            ("/cpu?milliseconds=60001", "milliseconds must be from 1 to 60000"),
            ("/work?milliseconds=0", "milliseconds must be from"),
            ("/queue?items=-1&seconds=1", "invalid digit"),
        ] {
            check(&workshop, "POST", path, 400, expected).await;
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_into_the_total_is_refused() {
        let workshop = Workshop::new(1, Duration::ZERO);
        check(&workshop, "POST", "/queue?items=1000000&seconds=60", 200, r#""items":1000000"#)
            .await;
        check(&workshop, "POST", "/queue?items=1&seconds=60", 429, "as much of this as it allows")
            .await;
        workshop.close().await;
    }

    #[tokio::test]
    async fn ready_only_after_the_delay() {
        let starting = Workshop::new(1, Duration::from_secs(3600));
        check(&starting, "GET", "/ready", 503, "starting").await;
        check(&Workshop::new(1, Duration::ZERO), "GET", "/ready", 200, "ready").await;
    }

    #[tokio::test]
    async fn the_help_names_every_route() {
        let workshop = Workshop::new(1, Duration::ZERO);
        for path in ["/tasks", "/heap", "/allocate", "/cpu", "/work", "/queue", "/ready"] {
            check(&workshop, "GET", "/", 200, path).await;
        }
    }
}
