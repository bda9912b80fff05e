//! `/debug/pprof/*`: the service's own profiles, through the sidecar's port.
//!
//! In: requests as `go tool pprof` sends them. Out: the service's answer as it comes, streamed. Never: a path outside the
//! service's `/debug/pprof/`, a capture that goes on after its client left, or one longer than [`MAX_SECONDS`].

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{Redirect, Response};
use axum::routing::{any, get};
use http_body_util::{BodyExt as _, Limited};

use super::Sidecar;
use super::target_client::authorization;
use crate::pprof::failure;
use crate::telemetry::error_chain;

const PREFIX: &str = "/debug/pprof/";
/// As the agent's own profiles.
const MAX_SECONDS: f64 = 300.0;
/// What a capture may take beside its seconds: the service writes the profile after them, throttled perhaps.
const MARGIN: Duration = Duration::from_secs(30);
/// A list of addresses to name.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// What Go captures for when the request names no seconds.
const DEFAULT_PROFILE_SECONDS: f64 = 30.0;

/// Headers of an answer that belong to its connection, and not to whoever asked us (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TRAILER,
    HeaderName::from_static("keep-alive"),
];

pub(super) fn routes(sidecar: Sidecar) -> Router {
    Router::new()
        .route("/debug/pprof", get(|| async { Redirect::permanent(PREFIX) }))
        .route(PREFIX, any(forward))
        .route("/debug/pprof/{*name}", any(forward))
        .with_state(sidecar)
}

async fn forward(State(sidecar): State<Sidecar>, request: Request) -> Response {
    let config = sidecar.config();
    let Some(base) = &config.target.pprof else {
        return failure(
            StatusCode::NOT_FOUND,
            "this sidecar knows no profiles of its service: set agent.target.pprof (HEADROOM_AGENT_TARGET_PPROF)",
        );
    };
    let Some(name) = request.uri().path().strip_prefix(PREFIX).filter(|name| is_plain(name)) else {
        return failure(StatusCode::NOT_FOUND, "Unknown profile");
    };
    let query = request.uri().query().unwrap_or_default();
    let seconds = match seconds(name, query) {
        Ok(seconds) => seconds,
        Err(why) => return failure(StatusCode::BAD_REQUEST, &why),
    };
    let base = base.to_string();
    let separator = if query.is_empty() { "" } else { "?" };
    let url = format!("{}/{name}{separator}{query}", base.trim_end_matches('/'));
    let mut headers = match authorization(&config.target) {
        Ok(headers) => headers,
        Err(error) => return failure(StatusCode::BAD_GATEWAY, &error_chain(&error)),
    };
    for name in [header::ACCEPT, header::CONTENT_TYPE] {
        if let Some(value) = request.headers().get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let method = request.method().clone();
    let body = match Limited::new(request.into_body(), MAX_REQUEST_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return failure(StatusCode::PAYLOAD_TOO_LARGE, "the request is too long"),
    };
    let deadline = Duration::from_secs_f64(seconds) + MARGIN;
    match sidecar.client().forward(method, &url, headers, body.into(), deadline).await {
        Ok(answer) => passed_on(answer),
        Err(error) => {
            let why = error_chain(&error);
            tracing::warn!(error = why, url, "the service's profiles cannot be reached");
            let status = if error.is_timeout() {
                StatusCode::GATEWAY_TIMEOUT
            } else {
                StatusCode::BAD_GATEWAY
            };
            failure(status, &format!("no answer from {base} (agent.target.pprof): {why}"))
        }
    }
}

/// Status, headers and body as they came. Dropping the body, which a client that leaves does, ends the capture.
fn passed_on(answer: reqwest::Response) -> Response {
    let status = answer.status();
    let mut headers: HeaderMap = answer.headers().clone();
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Names of profiles, `/` included, as `runtime/pprof` suggests it for one's own. Nothing that a server could read as a way out
/// of the folder: no `..`, no escapes.
fn is_plain(name: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/');
    let steps = |part: &str| matches!(part, "." | "..");
    name.bytes().all(plain)
        && !name.split('/').any(steps)
        && !name.contains("//")
        && !name.starts_with('/')
}

/// How long the service captures. A value that is no number is left for the service to refuse.
fn seconds(name: &str, query: &str) -> Result<f64, String> {
    let asked = query.split('&').find_map(|pair| pair.strip_prefix("seconds="));
    let seconds = match asked.and_then(|text| text.parse::<f64>().ok()) {
        Some(seconds) if seconds.is_finite() && seconds > 0.0 => seconds,
        _ if name == "profile" => DEFAULT_PROFILE_SECONDS,
        _ => 1.0,
    };
    if seconds > MAX_SECONDS {
        return Err(format!("invalid value for \"seconds\" - must be at most {MAX_SECONDS}"));
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        for name in ["profile", "", "goroutine", "github.com/x/y.Pool", "my-profile_1"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["..", "../admin", "a/../../admin", "%2e%2e/admin", "/etc", "a//b", "a b", "."]
        {
            assert!(!is_plain(name), "{name}");
        }
    }

    #[test]
    fn the_deadline_follows_the_seconds() {
        let check = |name: &str, query: &str, expected: Option<f64>| {
            let found = seconds(name, query).ok();
            assert_eq!(found.map(f64::to_bits), expected.map(f64::to_bits), "{name}?{query}");
        };
        check("profile", "", Some(30.0));
        check("profile", "debug=1&seconds=5", Some(5.0));
        check("trace", "seconds=0.5", Some(0.5));
        check("heap", "", Some(1.0));
        check("profile", "seconds=x", Some(30.0));
        check("profile", "seconds=301", None);
    }
}
