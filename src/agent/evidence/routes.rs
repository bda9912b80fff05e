//! `/debug/headroom/capture`: pin a window, list what is pinned, read its files.
//!
//! In: requests that were let in. Out: JSON, and profiles that `go tool pprof` opens. Never: work on the agent's own thread
//! that takes longer than a look-up.
//!
//! | request | answer |
//! |---|---|
//! | `GET /debug/headroom/capture` | the ring and every capture |
//! | `POST /debug/headroom/capture?before=30&after=15&reason=…` | 201 with the new capture |
//! | `GET /debug/headroom/capture/ID` | that capture |
//! | `GET /debug/headroom/capture/ID/FILE` | `profile`, `heap`, `tasks`, of a sidecar's service `goroutine` (profile.proto, gzipped), or `signals.json` |
//! | `GET /debug/headroom/capture/now/FILE?before=60` | the same of the ring as it is; of a sidecar `signals.json` alone |
//! | `DELETE /debug/headroom/capture/ID` | 204 |

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::capture::{Capture, File};
use super::{Evidence, Window};
use crate::pprof::failure;

const MAX_AFTER_SECONDS: u64 = 300;
const MAX_REASON_BYTES: usize = 500;

pub(in crate::agent) fn routes<S: Clone + Send + Sync + 'static>(evidence: Evidence) -> Router<S> {
    Router::new()
        .route("/debug/headroom/capture", get(list).post(pin))
        .route("/debug/headroom/capture/{id}", get(one).delete(unpin))
        .route("/debug/headroom/capture/{id}/{file}", get(file))
        .with_state(evidence)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PinParameters {
    before: Option<u64>,
    after: Option<u64>,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecentParameters {
    before: Option<u64>,
}

async fn list(State(evidence): State<Evidence>) -> Json<Value> {
    let state = evidence.0.state.lock();
    let limits = state.ring.limits();
    let captures: Vec<Value> = state.captures.iter().map(description).collect();
    Json(json!({
        "ring": {
            "slices": state.ring.len(),
            "bytes": state.ring.bytes(),
            "limits": {"seconds": limits.window.as_secs(), "bytes": limits.bytes},
        },
        "directory": evidence.0.directory.as_ref().map(ToString::to_string),
        "captures": captures,
    }))
}

async fn pin(
    State(evidence): State<Evidence>,
    Query(parameters): Query<PinParameters>,
) -> Response {
    let PinParameters { before, after, reason } = parameters;
    if reason.len() > MAX_REASON_BYTES {
        return failure(StatusCode::BAD_REQUEST, "the reason is longer than 500 bytes");
    }
    let default = Window::default();
    let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
    let window =
        Window { before: seconds(before, default.before), after: seconds(after, default.after) };
    if window.after > Duration::from_secs(MAX_AFTER_SECONDS) {
        return failure(StatusCode::BAD_REQUEST, "after is more than 300 seconds");
    }
    let reason = if reason.is_empty() { "asked for".to_owned() } else { reason };
    let id = evidence.pin(reason, window);
    let state = evidence.0.state.lock();
    let location = format!("/debug/headroom/capture/{id}");
    let body = state.captures.find(id).map(description).unwrap_or_default();
    (StatusCode::CREATED, [(header::LOCATION, location)], Json(body)).into_response()
}

async fn one(State(evidence): State<Evidence>, Path(id): Path<String>) -> Response {
    let state = evidence.0.state.lock();
    match id.parse().ok().and_then(|id| state.captures.find(id)) {
        Some(capture) => Json(description(capture)).into_response(),
        None => unknown_capture(),
    }
}

async fn unpin(State(evidence): State<Evidence>, Path(id): Path<String>) -> Response {
    let is_gone = id.parse().is_ok_and(|id| evidence.0.state.lock().captures.remove(id));
    if is_gone { StatusCode::NO_CONTENT.into_response() } else { unknown_capture() }
}

async fn file(
    State(evidence): State<Evidence>,
    Path((id, name)): Path<(String, String)>,
    Query(RecentParameters { before }): Query<RecentParameters>,
) -> Response {
    if id == "now" {
        let before = Duration::from_secs(before.unwrap_or(60));
        let shared = evidence.0.clone();
        return match tokio::task::spawn_blocking(move || shared.recent(before, &name)).await {
            Ok(None) => found(None),
            Ok(Some(Ok(file))) => found(Some(file)),
            Ok(Some(Err(why))) => failure(StatusCode::SERVICE_UNAVAILABLE, &why),
            Err(_) => failure(StatusCode::INTERNAL_SERVER_ERROR, "the capture was not encoded"),
        };
    }
    let state = evidence.0.state.lock();
    let Some(capture) = id.parse().ok().and_then(|id| state.captures.find(id)) else {
        return unknown_capture();
    };
    found(capture.files.iter().find(|file| file.name == name).cloned())
}

fn found(file: Option<File>) -> Response {
    let Some(File { name, content }) = file else {
        return failure(StatusCode::NOT_FOUND, "the capture has no such file");
    };
    let kind =
        if name.ends_with(".json") { "application/json" } else { "application/octet-stream" };
    let headers = [(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, content).into_response()
}

fn unknown_capture() -> Response {
    failure(StatusCode::NOT_FOUND, "there is no such capture; /debug/headroom/capture lists them")
}

/// A capture as JSON, without the content of its files.
pub(super) fn description(capture: &Capture) -> Value {
    let files: Vec<Value> = capture
        .files
        .iter()
        .map(|file| json!({"name": file.name, "bytes": file.content.len()}))
        .collect();
    json!({
        "id": capture.id,
        "reason": capture.reason,
        "asked": capture.asked.to_string(),
        "state": if capture.is_complete() { "complete" } else { "collecting" },
        "files": files,
        "missing": capture.missing,
    })
}
