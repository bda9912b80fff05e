//! Who may read profiles and captures, and who may change something.
//!
//! In: a request under `/debug/`, the peer's address and its bearer token. Out: the request goes on, or 401 or 403 with a
//! sentence. Never: a token in a log, or a comparison that tells by its time how much of a token was right.
//!
//! Without a credential everybody who reaches the listener may read. What changes state (pinning a capture, switching the
//! heap's sampling) then is for peers on loopback only: that is `kubectl port-forward` and the pod's own containers.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::pprof::failure;

#[cfg(feature = "adapter")]
mod token_review;

#[cfg(feature = "adapter")]
pub use token_review::ClusterAccess;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A profile or a list.
    Read,
    /// A change of the agent's state.
    Change,
}

/// What a credential is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The holder may do it.
    Allowed,
    /// The token is not known.
    Unknown,
    /// The holder is known and may not.
    Forbidden,
}

/// Judges bearer tokens: [`TokenFile`] by comparing, `ClusterAccess` (feature `adapter`) by asking the cluster.
pub trait Authenticator: fmt::Debug + Send + Sync {
    /// What the holder of `token` may do. An error is answered with 503: nobody was judged.
    fn judge<'a>(
        &'a self,
        token: &'a str,
        access: Access,
        path: &'a str,
    ) -> BoxFuture<'a, Result<Verdict, AuthenticatorError>>;
}

/// Why a token could not be judged.
#[derive(Debug, thiserror::Error)]
#[error("cannot judge the token")]
pub struct AuthenticatorError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// One token in a file, read at every request, so that a rotated Secret takes effect at once.
#[derive(Clone, Debug)]
pub struct TokenFile(PathBuf);

impl TokenFile {
    /// The file need not exist yet; until it does, no request is judged.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl Authenticator for TokenFile {
    fn judge<'a>(
        &'a self,
        token: &'a str,
        _access: Access,
        _path: &'a str,
    ) -> BoxFuture<'a, Result<Verdict, AuthenticatorError>> {
        Box::pin(async move {
            let read = std::fs::read_to_string(&self.0);
            let expected = read.map_err(|error| AuthenticatorError(Box::new(error)))?;
            let expected = expected.trim();
            // Digests: how long two of them agree says nothing about the tokens.
            let same = Sha256::digest(expected) == Sha256::digest(token);
            Ok(if same && !expected.is_empty() { Verdict::Allowed } else { Verdict::Unknown })
        })
    }
}

/// Headers by which a request from loopback shows that somebody else made it: a browser adds the first to the requests of any
/// page, a proxy or a service mesh's sidecar, which hands over from loopback what came from anywhere, one of the others.
const PASSED_ON: [header::HeaderName; 5] = [
    header::ORIGIN,
    header::FORWARDED,
    header::HeaderName::from_static("x-forwarded-for"),
    header::HeaderName::from_static("x-forwarded-proto"),
    header::HeaderName::from_static("x-request-id"),
];

/// For a judgement; whoever waits longer is told that nobody was judged.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Judgements at once: a flood of bad tokens must not become one of the API server.
const MAX_JUDGED: usize = 8;

/// The rule of this agent.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    authenticator: Option<Arc<dyn Authenticator>>,
    turns: Arc<Semaphore>,
}

impl Gate {
    pub(super) fn new(authenticator: Option<Arc<dyn Authenticator>>) -> Self {
        Self { authenticator, turns: Arc::new(Semaphore::new(MAX_JUDGED)) }
    }

    /// `None`: nobody could say in time.
    async fn judge(
        &self,
        authenticator: &dyn Authenticator,
        token: &str,
        access: Access,
        path: &str,
    ) -> Option<Verdict> {
        let judged = tokio::time::timeout(JUDGE_TIMEOUT, async {
            let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
            authenticator.judge(token, access, path).await
        });
        match judged.await {
            Ok(Ok(verdict)) => Some(verdict),
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a request was not judged"
                );
                None
            }
            Err(_) => {
                tracing::warn!("a request was not judged in time");
                None
            }
        }
    }
}

/// Lets a request under `/debug/` pass, or answers it.
pub(super) async fn check(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    // The body is not needed, and a reference to it could not be held while the token is judged.
    let (head, body) = request.into_parts();
    match refuse(&gate, &head).await {
        None => next.run(Request::from_parts(head, body)).await,
        Some(refusal) => refusal,
    }
}

async fn refuse(gate: &Gate, head: &Parts) -> Option<Response> {
    let path = head.uri.path();
    let access = access_of(&head.method, path);
    let Some(authenticator) = &gate.authenticator else {
        let peer = head.extensions.get::<ConnectInfo<SocketAddr>>();
        let is_local = peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback());
        let is_passed_on = PASSED_ON.iter().any(|name| head.headers.contains_key(name));
        return (access == Access::Change && (!is_local || is_passed_on)).then(|| {
            failure(
                StatusCode::FORBIDDEN,
                "this changes the agent's state: without a token it is allowed from loopback only, and \
                 not to web pages or through proxies; give the agent a token file",
            )
        });
    };
    let Some(token) = bearer(&head.headers) else {
        return Some(unauthorized("a bearer token is needed"));
    };
    match gate.judge(&**authenticator, token, access, path).await {
        Some(Verdict::Allowed) => None,
        Some(Verdict::Unknown) => Some(unauthorized("the bearer token is not valid here")),
        Some(Verdict::Forbidden) => {
            Some(failure(StatusCode::FORBIDDEN, "the holder of this token may not do this"))
        }
        None => Some(failure(StatusCode::SERVICE_UNAVAILABLE, "the token could not be judged")),
    }
}

/// `POST /debug/pprof/symbol` reads, as in Go: the addresses are in the body.
fn access_of(method: &Method, path: &str) -> Access {
    let is_look_up = path == "/debug/pprof/symbol" || path.ends_with("/symbolz");
    let reads = method == Method::GET || method == Method::HEAD || is_look_up;
    if reads { Access::Read } else { Access::Change }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|token| !token.is_empty())
}

fn unauthorized(why: &'static str) -> Response {
    let mut response = failure(StatusCode::UNAUTHORIZED, why);
    let challenge = header::HeaderValue::from_static("Bearer");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use axum::Router;
    use axum::body::Body;
    use axum::routing::{any, get};
    use tower::ServiceExt as _;

    use super::*;

    async fn status(gate: &Gate, method: &str, path: &str, from: &str, token: &str) -> u16 {
        let router = Router::new()
            .route("/debug/pprof/{name}", any(|| async {}))
            .route("/debug/headroom/capture/now/symbolz", any(|| async {}))
            .route("/debug/headroom/capture", get(|| async {}).post(|| async {}))
            .layer(axum::middleware::from_fn_with_state(gate.clone(), check));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(if token == WEB_PAGE { "origin" } else { "authorization" }, token)
            .extension(ConnectInfo::<SocketAddr>(from.parse().expect("an address")));
        let request = request.body(Body::empty()).expect("a valid request");
        router.oneshot(request).await.expect("axum is infallible").status().as_u16()
    }

    const WEB_PAGE: &str = "https://shop.example";
    const LOCAL: &str = "127.0.0.1:50000";
    const FAR: &str = "10.0.0.9:50000";
    const CAPTURE: &str = "/debug/headroom/capture";

    #[tokio::test]
    async fn without_a_credential_all_may_read_and_only_loopback_may_change() {
        let open = Gate::new(None);
        assert_eq!(status(&open, "POST", CAPTURE, LOCAL, WEB_PAGE).await, 403);
        for (method, path, from, expected) in [
            ("GET", CAPTURE, FAR, 200),
            ("POST", "/debug/pprof/symbol", FAR, 200),
            ("POST", "/debug/headroom/capture/now/symbolz", FAR, 200),
            ("POST", CAPTURE, FAR, 403),
            ("POST", CAPTURE, LOCAL, 200),
            ("POST", CAPTURE, "[::ffff:127.0.0.1]:50000", 200),
        ] {
            assert_eq!(status(&open, method, path, from, "").await, expected, "{method} {from}");
        }
    }

    #[tokio::test]
    async fn with_a_credential_its_holder_alone_may_read_and_change() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        let gate = Gate::new(Some(Arc::new(TokenFile::new(file.path()))));
        // An empty file lets nobody in.
        assert_eq!(status(&gate, "GET", CAPTURE, LOCAL, "Bearer x").await, 401);
        file.write_all(b"open sesame\n").expect("a file");
        for (method, token, expected) in [
            ("GET", "", 401),
            ("GET", "Basic open sesame", 401),
            ("GET", "Bearer open", 401),
            ("GET", "Bearer open sesame", 200),
            ("POST", "bearer open sesame", 200),
        ] {
            assert_eq!(status(&gate, method, CAPTURE, LOCAL, token).await, expected, "{token}");
        }
        drop(file);
        assert_eq!(status(&gate, "GET", CAPTURE, LOCAL, "Bearer open sesame").await, 503);
    }
}
