//! A small correct adapter in memory, which stages fixtures, and can be given one known bug of another adapter.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use axum::{Extension, Json, Router};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::metrics::{Bug, Refusal, custom, external};
use super::people::{Believed, User};
use super::serve::{self, Peer};
use crate::conformance::Options;
use crate::conformance::fixture::{Backend, Fixture, Staged};

const TOKEN: &str = "twin";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const GROUPS: [(&str, &[&str], &str); 2] = [
    ("external.metrics.k8s.io", &["v1beta1"], "externalmetrics"),
    ("custom.metrics.k8s.io", &["v1beta2", "v1beta1"], "pods/conformance_qps"),
];

/// What there is, and what is wrong.
pub(super) struct Twin {
    bug: Option<Bug>,
    state: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    fixture: Fixture,
    believed: Believed,
    /// The last good answer of each external metric.
    cache: BTreeMap<String, Value>,
}

/// Starts a twin; the options to run the suite with.
pub(super) async fn start(bug: Option<Bug>) -> Options {
    let twin = Arc::new(Twin { bug, state: Mutex::default() });
    let (url, ca_pem) = serve::tls(Router::new().fallback(answer).with_state(twin.clone())).await;
    let control = Router::new().route("/fixture", put(stage)).with_state(twin);
    Options {
        ca_pem: Some(ca_pem),
        token: Some(TOKEN.to_owned()),
        control_url: Some(serve::plain(control).await),
        ..Options::new(&url)
    }
}

async fn stage(State(twin): State<Arc<Twin>>, Json(fixture): Json<Fixture>) -> Json<Staged> {
    let mut known = twin.state.lock();
    let keeps_old = twin.bug == Some(Bug::KeepsOldAuthorities);
    known.believed.change(fixture.authentication.as_ref(), keeps_old);
    known.fixture = fixture;
    Json(Staged::default())
}

async fn answer(
    State(twin): State<Arc<Twin>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let mut known = twin.state.lock();
    if parts.uri.path() == "/readyz" {
        let down = known.fixture.backend == Backend::Down;
        let ready = !down || twin.bug == Some(Bug::ReadyWithoutBackend);
        let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        return code.into_response();
    }
    let answered = known.answer(twin.bug, &parts.method, &parts.uri, &parts.headers, &peer);
    answered.unwrap_or_else(refused)
}

fn refused(refusal: Refusal) -> Response {
    let Refusal { code, reason, message } = refusal;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    let code = StatusCode::from_u16(code).expect("a status code");
    (code, Json(status)).into_response()
}

impl Known {
    fn answer(
        &mut self,
        bug: Option<Bug>,
        method: &Method,
        uri: &axum::http::Uri,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Response, Refusal> {
        let user = self.believed.user(headers, peer, TOKEN);
        let user = user.ok_or_else(|| Refusal::new(401, "Unauthorized", "Unauthorized"))?;
        if method != Method::GET {
            return Err(Refusal::new(405, "MethodNotAllowed", "metrics are read only"));
        }
        let path = decoded(uri.path());
        if let Some(document) = discovery(&path, headers) {
            return Ok(document);
        }
        let selector = query(uri.query().unwrap_or_default(), "labelSelector");
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let list = match parts[..] {
            ["apis", "external.metrics.k8s.io", "v1beta1", "namespaces", namespace, metric] => {
                self.allow(&user, namespace, metric)?;
                self.external(bug, metric, &selector)?
            }
            ["apis", "custom.metrics.k8s.io", version, ref rest @ ..] => {
                self.allow(&user, &self.fixture.namespace, "metrics")?;
                custom(&self.fixture, bug, version, rest, &selector)?
            }
            _ => return Err(Refusal::not_found("no such path")),
        };
        Ok(Json(list).into_response())
    }

    fn external(
        &mut self,
        bug: Option<Bug>,
        metric: &str,
        selector: &str,
    ) -> Result<Value, Refusal> {
        let answer = external(&self.fixture, bug, metric, selector);
        match answer {
            Ok(list) => {
                self.cache.insert(metric.to_owned(), list.clone());
                Ok(list)
            }
            Err(refusal) if refusal.reason == "Stale" && bug == Some(Bug::CachesForEver) => {
                self.cache.get(metric).cloned().ok_or(refusal)
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn allow(&self, user: &User, namespace: &str, metric: &str) -> Result<(), Refusal> {
        let Some(readers) = &self.fixture.readers else { return Ok(()) };
        let may = readers.iter().any(|reader| user.is(reader));
        let message = format!("user {:?} may not list {metric} in {namespace}", user.name);
        if may { Ok(()) } else { Err(Refusal::new(403, "Forbidden", &message)) }
    }
}

fn discovery(path: &str, headers: &HeaderMap) -> Option<Response> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let aggregated = accept.is_some_and(|accept| accept.contains("as=APIGroupDiscoveryList"));
    let (content_type, document) = match path {
        "/apis" if aggregated => (AGGREGATED, aggregated_list()),
        "/apis" => {
            let groups: Vec<Value> =
                GROUPS.iter().map(|(name, versions, _)| group(name, versions)).collect();
            (
                "application/json",
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
            )
        }
        "/openapi/v2" => ("application/json", json!({"swagger": "2.0", "paths": {}})),
        "/openapi/v3" => ("application/json", json!({"paths": {}})),
        _ => ("application/json", resources(path)?),
    };
    let body = Bytes::from(document.to_string());
    let tag = format!("\"{}\"", body.len());
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| *known == *tag) {
        return Some(StatusCode::NOT_MODIFIED.into_response());
    }
    Some(
        ([(header::CONTENT_TYPE, content_type.to_owned()), (header::ETAG, tag)], body)
            .into_response(),
    )
}

fn aggregated_list() -> Value {
    let items: Vec<Value> = GROUPS
        .iter()
        .map(|(name, versions, resource)| {
            let versions = versions.iter().map(|version| {
                json!({"version": version, "freshness": "Current", "resources": [
                    {"resource": resource, "scope": "Namespaced", "singularResource": "", "verbs": ["get"]},
                ]})
            });
            json!({"metadata": {"name": name}, "versions": versions.collect::<Vec<_>>()})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn group(name: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name,
        "versions": versions, "preferredVersion": versions[0],
    })
}

/// The document of a group or of a version of it.
fn resources(path: &str) -> Option<Value> {
    let rest = path.strip_prefix("/apis/")?;
    let (name, versions, resource) = GROUPS.iter().find(|(name, ..)| rest.starts_with(name))?;
    if rest == *name {
        return Some(group(name, versions));
    }
    let version = rest.strip_prefix(name)?.strip_prefix('/')?;
    versions.contains(&version).then(|| {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": rest,
            "resources": [{"name": resource, "singularName": "", "namespaced": true, "verbs": ["get"]}],
        })
    })
}

fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        let hex =
            |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).unwrap_or(0);
        plain.push(match byte {
            b'%' => u8::try_from(hex(bytes.next()) * 16 + hex(bytes.next())).expect("two digits"),
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(plain).expect("the suite sends ASCII")
}

fn query(text: &str, name: &str) -> String {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(value)).collect()
}
