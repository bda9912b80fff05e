//! What a request asks for, in the words that RBAC uses.
//!
//! In: method and URI. Out: a [`RequestInfo`], which both authorization and the handlers read, so that what is allowed and
//! what is served cannot differ. Never: a redirect, and never a path that is not decoded exactly once. Source: apiserver
//! `pkg/endpoints/request/requestinfo.go`.

use axum::extract::Query;
use axum::http::{Method, Uri};

/// One request, as the authorizer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo {
    /// Kubernetes' verb for resources, the lower-case method for other paths.
    pub verb: String,
    /// The decoded path.
    pub path: String,
    /// The resource, for paths under `/apis/GROUP/VERSION/…`.
    pub resource: Option<ResourceInfo>,
    /// The decoded `labelSelector`; empty if there is none.
    pub label_selector: String,
    /// The decoded `metricLabelSelector`; empty if there is none.
    pub metric_label_selector: String,
    /// The decoded `fieldSelector`; empty if there is none.
    pub field_selector: String,
}

/// The resource part of a path; absent parts are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceInfo {
    /// E.g. `external.metrics.k8s.io`.
    pub group: String,
    /// E.g. `v1beta1`.
    pub version: String,
    /// The namespace of a namespaced resource.
    pub namespace: String,
    /// The resource; for external metrics the metric's name.
    pub resource: String,
    /// The object's name.
    pub name: String,
    /// The subresource; for custom metrics the metric's name.
    pub subresource: String,
}

impl RequestInfo {
    /// Reads method and URI.
    #[must_use]
    pub fn of(method: &Method, uri: &Uri) -> Self {
        let parts: Vec<String> =
            uri.path().trim_matches('/').split('/').map(percent_decoded).collect();
        let query = Parameters::of(uri);
        let path = percent_decoded(uri.path());
        let resource = resource_of(&parts);
        let verb = match &resource {
            None => method.as_str().to_lowercase(),
            Some(resource) => resource_verb(method, resource, &query).to_owned(),
        };
        let Parameters { label_selector, metric_label_selector, field_selector, .. } = query;
        Self { verb, path, resource, label_selector, metric_label_selector, field_selector }
    }
}

/// The query parameters that matter here; of several with one name the first counts, as in Go.
struct Parameters {
    label_selector: String,
    metric_label_selector: String,
    field_selector: String,
    watch: bool,
}

impl Parameters {
    fn of(uri: &Uri) -> Self {
        let pairs: Vec<(String, String)> =
            Query::try_from_uri(uri).map(|Query(pairs)| pairs).unwrap_or_default();
        let first =
            |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        Self {
            label_selector: first("labelSelector").unwrap_or_default().to_owned(),
            metric_label_selector: first("metricLabelSelector").unwrap_or_default().to_owned(),
            field_selector: first("fieldSelector").unwrap_or_default().to_owned(),
            watch: first("watch").is_some_and(|v| v != "0" && !v.eq_ignore_ascii_case("false")),
        }
    }
}

/// `None` for paths that name no resource; the API prefix, group and version alone are discovery.
fn resource_of(parts: &[String]) -> Option<ResourceInfo> {
    let [prefix, group, version, rest @ ..] = parts else { return None };
    if prefix != "apis" || rest.is_empty() {
        return None;
    }
    let (namespace, rest) = match rest {
        [word, namespace, resource, ..]
            if word == "namespaces" && !matches!(resource.as_str(), "status" | "finalize") =>
        {
            (namespace.clone(), &rest[2..])
        }
        [word, namespace, ..] if word == "namespaces" => (namespace.clone(), rest),
        _ => (String::new(), rest),
    };
    let part = |index: usize| rest.get(index).cloned().unwrap_or_default();
    Some(ResourceInfo {
        group: group.clone(),
        version: version.clone(),
        namespace,
        resource: part(0),
        name: part(1),
        subresource: part(2),
    })
}

fn resource_verb(method: &Method, resource: &ResourceInfo, query: &Parameters) -> &'static str {
    let named = !resource.name.is_empty();
    match *method {
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD if query.watch => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "",
    }
}

/// Replaces `%XX` by the byte it stands for; text that is no such sequence, or would not be UTF-8, stays as it is.
pub(super) fn percent_decoded(text: &str) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let digits = (hex(bytes.get(index + 1)), hex(bytes.get(index + 2)));
        match (bytes[index], digits) {
            (b'%', (Some(high), Some(low))) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                index += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                index += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, uri: &str) -> RequestInfo {
        let method = method.parse().expect("the test names a method");
        let uri: Uri = uri.parse().expect("the test names a URI");
        RequestInfo::of(&method, &uri)
    }

    /// `check(method, uri, verb, "namespace|resource|name|subresource")`; `-` is not a resource.
    fn check(method: &str, uri: &str, verb: &str, resource: &str) {
        let info = of(method, uri);
        let shown = info
            .resource
            .map_or("-".to_owned(), |r| [r.namespace, r.resource, r.name, r.subresource].join("|"));
        assert_eq!((info.verb.as_str(), shown.as_str()), (verb, resource), "{method} {uri}");
    }

    /// As apiserver `pkg/endpoints/request/requestinfo.go` tells them.
    #[test]
    fn verbs_and_resources_are_those_of_the_api_server() {
        const E: &str = "/apis/external.metrics.k8s.io/v1beta1";
        const C: &str = "/apis/custom.metrics.k8s.io/v1beta2";
        check(
            "GET",
            &format!("{E}/namespaces/shop/headroom_demand"),
            "list",
            "shop|headroom_demand||",
        );
        check("HEAD", &format!("{E}/namespaces/shop/m"), "list", "shop|m||");
        check("GET", &format!("{E}/namespaces/shop/m?watch=true"), "watch", "shop|m||");
        check("GET", &format!("{E}/namespaces/shop/a/b"), "get", "shop|a|b|");
        check("GET", &format!("{E}/namespaces/shop"), "get", "shop|namespaces|shop|");
        check("GET", &format!("{E}/namespaces/shop/status"), "get", "shop|namespaces|shop|status");
        check("GET", &format!("{E}/pressure"), "list", "|pressure||");
        check("POST", &format!("{E}/namespaces/shop/m"), "create", "shop|m||");
        check("DELETE", &format!("{E}/namespaces/shop/m"), "deletecollection", "shop|m||");
        check("GET", &format!("{C}/namespaces/shop/pods/%2A/qps"), "get", "shop|pods|*|qps");
        check("GET", &format!("{C}/namespaces/shop/metrics/qps"), "get", "shop|metrics|qps|");
        check("GET", E, "get", "-");
        check("GET", "/apis", "get", "-");
        check("POST", "/openapi/v2", "post", "-");
        check("GET", "/", "get", "-");
    }

    #[test]
    fn the_selector_is_decoded_once_with_plus_as_space() {
        let info = of("GET", "/apis/g/v/namespaces/n/m?labelSelector=a+in+%28x%2Cy%29%2Cb%3D%252B");
        assert_eq!(info.label_selector, "a in (x,y),b=%2B");
    }

    #[test]
    fn a_broken_percent_sequence_stays_as_it_is() {
        for (text, decoded) in [
            ("a%2Fb", "a/b"),
            ("a%", "a%"),
            ("a%2", "a%2"),
            ("%zz", "%zz"),
            ("%ff", "%ff"),
            ("%C3%A4", "ä"),
        ] {
            assert_eq!(percent_decoded(text), decoded);
        }
    }
}
