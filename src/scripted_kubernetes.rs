//! An API server in memory, for tests: objects by path, versions that conflict, replicas cut off from it.
//!
//! In: requests of a [`kube::Client`]. Out: the answers of a real API server to get, create, replace and patch of single
//! objects. Never: validation, defaults, watches or ownership of fields; those are for the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Cheap to clone; every clone is the same server.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScriptedKubernetes {
    state: Arc<Mutex<State>>,
    slow: bool,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Value>,
    revision: u64,
    cut: BTreeSet<&'static str>,
    hanging: BTreeSet<&'static str>,
    writes: Vec<Write>,
    refused: Vec<&'static str>,
    read_only: BTreeSet<String>,
}

/// A write that was accepted.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

impl ScriptedKubernetes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Requests that are sent together take effect together, before any of them is answered.
    pub(crate) fn slow() -> Self {
        Self { slow: true, ..Self::default() }
    }

    /// A client that stands for one replica.
    pub(crate) fn client(&self, replica: &'static str) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.serve(replica, request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Requests of this replica fail from now on.
    pub(crate) fn cut(&self, replica: &'static str) {
        self.state.lock().cut.insert(replica);
    }

    /// Requests of this replica get no answer from now on.
    pub(crate) fn hang(&self, replica: &'static str) {
        self.state.lock().hanging.insert(replica);
    }

    pub(crate) fn heal(&self, replica: &'static str) {
        self.state.lock().cut.remove(replica);
    }

    /// Replaces and patches of this object are refused from now on.
    pub(crate) fn refuse_writes(&self, path: &str) {
        self.state.lock().read_only.insert(path.to_owned());
    }

    /// Writes an object as an administrator would: over whatever is there.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state.lock().store(path, object);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.lock().objects.remove(path);
    }

    /// The accepted writes since the last call.
    pub(crate) fn take_writes(&self) -> Vec<Write> {
        std::mem::take(&mut self.state.lock().writes)
    }

    /// The reasons of refused writes since the last call.
    pub(crate) fn take_refused(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state.lock().refused)
    }

    async fn serve(
        &self,
        replica: &'static str,
        request: http::Request<Body>,
    ) -> http::Response<Full<bytes::Bytes>> {
        if self.state.lock().hanging.contains(replica) {
            std::future::pending::<()>().await;
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("the body is in memory").to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let query = parts.uri.query().unwrap_or_default();
        self.linger().await;
        let (code, answer) = if self.state.lock().cut.contains(replica) {
            (500, status(500, "InternalError"))
        } else {
            self.state.lock().answer(parts.method.as_str(), parts.uri.path(), query, body)
        };
        self.linger().await;
        let bytes = serde_json::to_vec(&answer).expect("a value can be written");
        http::Response::builder()
            .status(code)
            .header("content-type", "application/json")
            .body(Full::from(bytes))
            .expect("the parts are valid")
    }

    /// Lets the other tasks of the test go on as far as they can.
    async fn linger(&self) {
        for _ in 0..if self.slow { 16 } else { 0 } {
            tokio::task::yield_now().await;
        }
    }
}

impl State {
    fn answer(&mut self, method: &str, path: &str, query: &str, body: Value) -> (u16, Value) {
        let path = match method {
            "POST" => format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default()),
            _ => path.to_owned(),
        };
        let stored = self.objects.get(&path).cloned();
        let outcome = match (method, stored) {
            ("GET", Some(object)) => return (200, object),
            ("POST", None) => Ok(body.clone()),
            ("POST", Some(_)) => Err((409, "AlreadyExists")),
            ("GET", None) => return (404, status(404, "NotFound")),
            (_, None) => Err((404, "NotFound")),
            _ if self.read_only.contains(&path) => Err((403, "Forbidden")),
            ("PUT" | "PATCH", Some(object)) => {
                let wanted = &body["metadata"]["resourceVersion"];
                if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
                    Err((409, "Conflict"))
                } else if method == "PUT" {
                    Ok(body.clone())
                } else {
                    Ok(merged(object, &body))
                }
            }
            _ => Err((405, "MethodNotAllowed")),
        };
        match outcome {
            Ok(object) => {
                self.writes.push(Write { path: path.clone(), query: query.to_owned(), body });
                (if method == "POST" { 201 } else { 200 }, self.store(&path, object))
            }
            Err((code, reason)) => {
                self.refused.push(reason);
                (code, status(code, reason))
            }
        }
    }

    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

/// RFC 7386.
fn merged(mut object: Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else { return patch.clone() };
    if !object.is_object() {
        object = json!({});
    }
    for (key, change) in changes {
        let old = object[key].take();
        object[key] = if change.is_null() { Value::Null } else { merged(old, change) };
    }
    object.as_object_mut().expect("made an object above").retain(|_, value| !value.is_null());
    object
}

fn status(code: u16, reason: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": format!("scripted: {reason}"),
    })
}
