//! Every answer that is not a value: a `metav1.Status` in JSON.
//!
//! In: what went wrong. Out: a response whose message reaches the HPA's event. Never: `Retry-After` (client-go would sleep
//! and retry inside one of the HPA's few workers), never an internal error chain, and never protobuf: client-go decodes an
//! answer by its `Content-Type`, whatever it asked for (client-go `rest/request.go`). Source: apimachinery
//! `pkg/apis/meta/v1/types.go`, `pkg/api/errors/errors.go`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

use super::wire::Encoding;

/// A refusal or failure, as Kubernetes clients understand it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiStatus {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Box<Details>>,
}

/// What a status is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Details {
    /// The resource's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Its resource, in the plural.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// One per thing that failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
}

/// One thing that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// A `CamelCase` reason from a closed set.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// The policy concerned.
    pub field: String,
}

/// The wire form.
#[derive(Serialize)]
struct Wire<'a> {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    metadata: Empty,
    status: &'static str,
    message: &'a str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Details>,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

impl ApiStatus {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// 404 for a path that nothing is served on.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::not_found("the server could not find the requested resource")
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// 406.
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// 414.
    #[must_use]
    pub fn uri_too_long(limit_bytes: usize) -> Self {
        let message = format!("the request's URI is longer than {limit_bytes} bytes");
        Self::new(StatusCode::URI_TOO_LONG, "RequestURITooLong", message)
    }

    /// 431.
    #[must_use]
    pub fn headers_too_large(limit_bytes: usize) -> Self {
        let message = format!("the request's headers are larger than {limit_bytes} bytes");
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "RequestHeadersTooLarge", message)
    }

    /// 500.
    #[must_use]
    pub fn internal() -> Self {
        let message = "the server failed to answer; its log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// The same, saying what it is about.
    #[must_use]
    pub fn about(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// The HTTP status.
    #[must_use]
    pub const fn code(&self) -> StatusCode {
        self.code
    }

    /// The sentence for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl IntoResponse for ApiStatus {
    fn into_response(self) -> Response {
        let wire = Wire {
            kind: "Status",
            api_version: "v1",
            metadata: Empty {},
            status: "Failure",
            message: &self.message,
            reason: self.reason,
            details: self.details.as_deref(),
            code: self.code.as_u16(),
        };
        json_response(self.code, &wire)
    }
}

/// A JSON answer; `Content-Type` is always set, as client-go cannot decode an answer without it.
pub(super) fn json_response<T: Serialize>(code: StatusCode, body: &T) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => (code, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(error = %error, "cannot encode an answer");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// An answer that is encoded already.
pub(super) fn body_response(encoding: Encoding, body: Bytes) -> Response {
    let content_type = HeaderValue::from_static(encoding.content_type());
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(status: &ApiStatus, expected: &str) {
        let details = status.details.as_deref();
        let wire = Wire {
            kind: "Status",
            api_version: "v1",
            metadata: Empty {},
            status: "Failure",
            message: &status.message,
            reason: status.reason,
            details,
            code: status.code.as_u16(),
        };
        let ours = serde_json::to_value(&wire).expect("a status encodes");
        let theirs: serde_json::Value =
            serde_json::from_str(expected).expect("the capture is JSON");
        assert_eq!(ours, theirs);
    }

    /// Captured from custom-metrics-apiserver (0.36 series): a path without a namespace, and the selector `a b c`.
    #[test]
    fn a_status_has_the_shape_of_upstreams() {
        golden(
            &ApiStatus::no_such_path().about(Details::default()),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
                "message":"the server could not find the requested resource",
                "reason":"NotFound","details":{},"code":404}"#,
        );
        golden(
            &ApiStatus::bad_request(
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
                "message":"unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
                "reason":"BadRequest","code":400}"#,
        );
    }
}
