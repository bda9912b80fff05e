//! What the server says it serves: discovery in both forms, and OpenAPI documents.
//!
//! In: the [`Groups`] that are served. Out: documents made once, each with an `ETag`. Never: a document that grows with
//! metrics or policies.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::groups::{Group, Groups};
use super::openapi;

/// The media type of aggregated discovery, as kube-apiserver asks for it and expects it back.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const JSON: &str = "application/json";

impl Group {
    fn api_group(&self) -> Value {
        let of = |version: &&str| json!({"groupVersion": format!("{}/{version}", self.name), "version": version});
        let versions: Vec<Value> = self.versions.iter().map(of).collect();
        json!({
            "kind": "APIGroup", "apiVersion": "v1", "name": self.name,
            "preferredVersion": versions.first(), "versions": versions,
        })
    }

    fn resources(&self, version: &str) -> Value {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": format!("{}/{version}", self.name),
            "resources": [{
                "name": self.resource, "singularName": "", "namespaced": true, "kind": self.kind,
                "verbs": self.verbs,
            }],
        })
    }

    fn aggregated(&self) -> Value {
        let of = |version: &&str| {
            let resource = json!({
                "resource": self.resource, "singularResource": "", "scope": "Namespaced",
                "verbs": self.verbs,
                "responseKind": {"group": self.name, "version": version, "kind": self.kind},
            });
            json!({"version": version, "freshness": "Current", "resources": [resource]})
        };
        let versions: Vec<Value> = self.versions.iter().map(of).collect();
        json!({"metadata": {"name": self.name}, "versions": versions})
    }
}

/// A document that does not change while the program runs.
#[derive(Clone)]
struct Document {
    body: Bytes,
    content_type: &'static str,
    etag: HeaderValue,
}

impl Document {
    fn new(content_type: &'static str, content: &Value) -> Self {
        let body = content.to_string();
        let hash: String = Sha256::digest(body.as_bytes())
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let etag =
            format!("\"{hash}\"").try_into().expect("quoted hexadecimal digits are a header value");
        Self { body: body.into(), content_type, etag }
    }

    fn answer(&self, request: &HeaderMap) -> Response {
        let tag = (header::ETAG, self.etag.clone());
        if is_known(request, &self.etag) {
            return (StatusCode::NOT_MODIFIED, [tag]).into_response();
        }
        let content_type = (header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        ([content_type, tag], self.body.clone()).into_response()
    }
}

/// Whether `If-None-Match` names the tag (RFC 9110, 13.1.2: weak comparison).
fn is_known(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let known = |tag: &str| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag.as_bytes()
    };
    let values = request.get_all(header::IF_NONE_MATCH).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(known)
}

/// Whether the client takes aggregated discovery in the version spoken here.
fn wants_aggregated(request: &HeaderMap) -> bool {
    let is_it = |media_type: &str| {
        let mut parts = media_type.split(';').map(str::trim);
        let name = parts.next();
        let mut wanted = ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"];
        let parameters: Vec<&str> = parts.collect();
        name == Some(JSON) && wanted.iter_mut().all(|wanted| parameters.contains(wanted))
    };
    let values = request.get_all(header::ACCEPT).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(is_it)
}

/// The routes of discovery and OpenAPI.
pub(super) fn routes(groups: Groups) -> Router {
    let groups: Vec<&Group> = groups.served().collect();
    let mut routes = Router::new().route("/apis", apis(&groups));
    for group in &groups {
        let document = Document::new(JSON, &group.api_group());
        routes = with(routes, &format!("/apis/{}", group.name), document);
    }
    let mut paths = serde_json::Map::new();
    for (group, version) in openapi::versions(&groups) {
        let root = format!("apis/{}/{version}", group.name);
        let schema = Document::new(JSON, &openapi::v3(group, version));
        let hash = schema.etag.to_str().unwrap_or_default().trim_matches('"');
        let url = format!("/openapi/v3/{root}?hash={hash}");
        paths.insert(root.clone(), json!({"serverRelativeURL": url}));
        routes = with(routes, &format!("/openapi/v3/{root}"), schema);
        let resources = Document::new(JSON, &group.resources(version));
        routes = with(routes, &format!("/{root}"), resources);
    }
    let routes = with(routes, "/openapi/v2", Document::new(JSON, &openapi::v2(&groups)));
    with(routes, "/openapi/v3", Document::new(JSON, &json!({"paths": paths})))
}

/// The list of groups, in the form that is asked for.
fn apis(groups: &[&Group]) -> axum::routing::MethodRouter {
    let legacy: Vec<Value> = groups.iter().map(|group| group.api_group()).collect();
    let legacy = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": legacy});
    let aggregated: Vec<Value> = groups.iter().map(|group| group.aggregated()).collect();
    let aggregated = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": aggregated,
    });
    let both = Arc::new([Document::new(JSON, &legacy), Document::new(AGGREGATED, &aggregated)]);
    get(async move |request: HeaderMap| {
        let [legacy, aggregated] = &*both;
        let document = if wants_aggregated(&request) { aggregated } else { legacy };
        let mut answer = document.answer(&request);
        answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        answer
    })
}

fn with(routes: Router, path: &str, document: Document) -> Router {
    let document = Arc::new(document);
    routes.route(path, get(async move |request: HeaderMap| document.answer(&request)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::groups::EXTERNAL;

    fn parsed(capture: &str) -> Value {
        serde_json::from_str(capture).expect("the capture is JSON")
    }

    /// Captured from custom-metrics-apiserver (0.36 series).
    #[test]
    fn group_and_resources_equal_upstreams() {
        let group = parsed(
            r#"{"kind":"APIGroup","apiVersion":"v1","name":"external.metrics.k8s.io",
                "versions":[{"groupVersion":"external.metrics.k8s.io/v1beta1","version":"v1beta1"}],
                "preferredVersion":{"groupVersion":"external.metrics.k8s.io/v1beta1","version":"v1beta1"}}"#,
        );
        assert_eq!(EXTERNAL.api_group(), group);
        let resources = parsed(
            r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"external.metrics.k8s.io/v1beta1",
                "resources":[{"name":"externalmetrics","singularName":"","namespaced":true,
                "kind":"ExternalMetricValueList","verbs":["get"]}]}"#,
        );
        assert_eq!(EXTERNAL.resources("v1beta1"), resources);
    }

    #[test]
    fn only_version_2_of_aggregated_discovery_is_spoken() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a header value"));
            wants_aggregated(&headers)
        };
        assert!(wants(AGGREGATED));
        assert!(wants(
            "application/json; as=APIGroupDiscoveryList; v=v2; g=apidiscovery.k8s.io, application/json"
        ));
        assert!(!wants(
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        ));
        assert!(!wants(
            "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        ));
        assert!(!wants("application/json"));
        assert!(!wants("*/*"));
    }

    #[test]
    fn a_known_tag_is_recognised_in_a_list_and_when_weak() {
        let etag = HeaderValue::from_static("\"abc\"");
        let known = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, value.parse().expect("a header value"));
            is_known(&headers, &etag)
        };
        assert!(known("\"abc\"") && known("\"x\", W/\"abc\"") && known("*"));
        assert!(!known("abc") && !known("\"ab\""));
        assert!(!is_known(&HeaderMap::new(), &etag));
    }
}
