//! What a request asks for, in the words that RBAC uses.
//!
//! In: method and URI. Out: a [`RequestInfo`], which both authorization and the handlers read, so that what is allowed and
//! what is served cannot differ. Never: a redirect, and never a path that is not decoded exactly once. Source: apiserver
//! `pkg/endpoints/request/requestinfo.go`.

use std::borrow::Cow;

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
    /// The decoded `labelSelector`, whatever the verb; empty if there is none. The handlers read it; it is no part of the
    /// question whether this is allowed.
    pub label_selector: String,
    /// The decoded `metricLabelSelector`; empty if there is none.
    pub metric_label_selector: String,
    /// The decoded `fieldSelector`; empty if there is none.
    pub field_selector: String,
}

/// The resource part of a path; absent parts are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResourceInfo {
    /// E.g. `external.metrics.k8s.io`.
    pub group: String,
    /// E.g. `v1beta1`.
    pub version: String,
    /// The namespace of a namespaced resource.
    pub namespace: String,
    /// The resource; for external metrics the metric's name.
    pub resource: String,
    /// The object's name. Only a path gives one: a field selector on `metadata.name`, which upstream takes for a name too,
    /// leaves it empty, so that more is asked for than upstream would ask, never less.
    pub name: String,
    /// The subresource; for custom metrics the metric's name.
    pub subresource: String,
}

impl RequestInfo {
    /// Reads method and URI.
    #[must_use]
    pub fn of(method: &Method, uri: &Uri) -> Self {
        let path = decoded(uri.path(), Plus::Literal);
        let query = Parameters::of(uri.query().unwrap_or_default());
        let (verb, resource) = match resource_of(method, &path, query.watch) {
            Some((verb, resource)) => (verb.to_owned(), Some(resource)),
            None => (method.as_str().to_lowercase(), None),
        };
        let text = |value: Option<Cow<'_, str>>| value.map(Cow::into_owned).unwrap_or_default();
        Self {
            verb,
            path: path.into_owned(),
            resource,
            label_selector: text(query.label_selector),
            metric_label_selector: text(query.metric_label_selector),
            field_selector: text(query.field_selector),
        }
    }
}

/// The query parameters that matter here; of several with one name the first counts, as in Go.
#[derive(Default)]
struct Parameters<'a> {
    label_selector: Option<Cow<'a, str>>,
    metric_label_selector: Option<Cow<'a, str>>,
    field_selector: Option<Cow<'a, str>>,
    watch: bool,
}

impl<'a> Parameters<'a> {
    fn of(query: &'a str) -> Self {
        let mut found = Self::default();
        let mut watch = None;
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = || decoded(value, Plus::Space);
            match &*decoded(name, Plus::Space) {
                "labelSelector" if found.label_selector.is_none() => {
                    found.label_selector = Some(value());
                }
                "metricLabelSelector" if found.metric_label_selector.is_none() => {
                    found.metric_label_selector = Some(value());
                }
                "fieldSelector" if found.field_selector.is_none() => {
                    found.field_selector = Some(value());
                }
                "watch" if watch.is_none() => watch = Some(value()),
                _ => {}
            }
        }
        found.watch = watch.is_some_and(|v| &*v != "0" && !v.eq_ignore_ascii_case("false"));
        found
    }
}

/// Verb and resource; `None` for paths that name no resource: the API prefix, group and version alone are discovery.
fn resource_of(method: &Method, path: &str, watch: bool) -> Option<(&'static str, ResourceInfo)> {
    let mut parts = path.trim_matches('/').split('/');
    if parts.next() != Some("apis") {
        return None;
    }
    let (group, version, first) = (parts.next()?, parts.next()?, parts.next()?);
    // Upstream's old way to say the verb in the path.
    let (by_path, first) = match first {
        "watch" => (Some("watch"), parts.next()),
        "proxy" => (Some("proxy"), parts.next()),
        _ => (None, Some(first)),
    };
    let first = first.unwrap_or_default();
    let (second, third) = (parts.next(), parts.next());
    let (namespace, resource, name, subresource) = match (first, second, third) {
        ("namespaces", Some(namespace), Some(resource))
            if !matches!(resource, "status" | "finalize") =>
        {
            (namespace, resource, parts.next(), parts.next())
        }
        ("namespaces", Some(namespace), _) => (namespace, first, second, third),
        _ => ("", first, second, third),
    };
    let (name, subresource) = (name.unwrap_or_default(), subresource.unwrap_or_default());
    let subresource = if by_path == Some("proxy") { "" } else { subresource };
    let verb = by_path.unwrap_or_else(|| resource_verb(method, !name.is_empty(), watch));
    let resource = ResourceInfo {
        group: group.to_owned(),
        version: version.to_owned(),
        namespace: namespace.to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
    };
    Some((verb, resource))
}

fn resource_verb(method: &Method, named: bool, watch: bool) -> &'static str {
    match *method {
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD if watch => "watch",
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
    decoded(text, Plus::Literal).into_owned()
}

/// What `+` is: itself in a path, a space in a query.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    Literal,
    Space,
}

fn decoded(text: &str, plus: Plus) -> Cow<'_, str> {
    let coded = |byte: u8| byte == b'%' || (byte == b'+' && plus == Plus::Space);
    if !text.bytes().any(coded) {
        return Cow::Borrowed(text);
    }
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let digits = (hex(bytes.get(index + 1)), hex(bytes.get(index + 2)));
        match (bytes[index], digits) {
            (b'%', (Some(high), Some(low))) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                index += 2;
            }
            (b'+', _) if plus == Plus::Space => decoded.push(b' '),
            (byte, _) => decoded.push(byte),
        }
        index += 1;
    }
    String::from_utf8(decoded).map_or(Cow::Borrowed(text), Cow::Owned)
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
        check(
            "GET",
            &format!("{C}/namespaces/shop/pods/checkout-1/qps"),
            "get",
            "shop|pods|checkout-1|qps",
        );
        check(
            "GET",
            &format!("{C}/namespaces/shop/deployments.apps/checkout/headroom_demand"),
            "get",
            "shop|deployments.apps|checkout|headroom_demand",
        );
        check("GET", &format!("{C}/nodes/node-1/load"), "get", "|nodes|node-1|load");
        check("GET", &format!("{C}/nodes/%2A/load"), "get", "|nodes|*|load");
        check("GET", E, "get", "-");
        check("GET", "/apis", "get", "-");
        check("POST", "/openapi/v2", "post", "-");
        check("GET", "/", "get", "-");
    }

    /// The kinds of upstream's own table (apiserver v0.37.2 `pkg/endpoints/request/requestinfo_test.go`), under a group.
    #[test]
    fn the_request_infos_of_upstreams_own_test_are_the_same_here() {
        let c = |method: &str, rest: &str, verb: &str, resource: &str| {
            check(method, &format!("/apis/g/v1/{rest}"), verb, resource);
        };
        c("GET", "namespaces", "list", "|namespaces||");
        c("GET", "namespaces/other", "get", "other|namespaces|other|");
        c("GET", "namespaces/other/pods", "list", "other|pods||");
        c("GET", "namespaces/other/pods/foo", "get", "other|pods|foo|");
        c("HEAD", "namespaces/other/pods/foo", "get", "other|pods|foo|");
        c("HEAD", "pods", "list", "|pods||");
        c("GET", "proxy/namespaces/other/pods/foo", "proxy", "other|pods|foo|");
        c("GET", "proxy/namespaces/other/pods/foo/sub/path", "proxy", "other|pods|foo|");
        c("GET", "watch/pods", "watch", "|pods||");
        c("GET", "watch/namespaces/other/pods", "watch", "other|pods||");
        c("GET", "pods?watch=true", "watch", "|pods||");
        c("GET", "pods?watch=false", "list", "|pods||");
        c("GET", "namespaces/other/pods?watch=1", "watch", "other|pods||");
        c("GET", "namespaces/other/pods?watch=0", "list", "other|pods||");
        c("GET", "namespaces/other/pods/foo/status", "get", "other|pods|foo|status");
        c("GET", "namespaces/other/pods/foo/proxy/subpath", "get", "other|pods|foo|proxy");
        c("PUT", "namespaces/other/finalize", "update", "other|namespaces|other|finalize");
        c("PUT", "namespaces/other/status", "update", "other|namespaces|other|status");
        c("PATCH", "namespaces/other/pods/foo", "patch", "other|pods|foo|");
        c("DELETE", "namespaces/other/pods/foo", "delete", "other|pods|foo|");
        c("POST", "namespaces/other/pods", "create", "other|pods||");
        c("DELETE", "nodes", "deletecollection", "|nodes||");
        c("DELETE", "namespaces", "deletecollection", "|namespaces||");
        c("GET", "job/foo/scale", "get", "|job|foo|scale");
        for no_resource in ["/", "/apis/g/v1/", "/apis/g/v1", "/bad/g/v1/r", "/apis/v1/r", "/apis"]
        {
            check("GET", no_resource, "get", "-");
        }
    }

    #[test]
    fn a_slash_that_was_encoded_divides_the_path_as_it_does_upstream() {
        check("GET", "/apis/g/v1/namespaces/a%2Fb/m", "get", "a|b|m|");
    }

    #[test]
    fn a_field_selector_never_narrows_the_question() {
        check("GET", "/apis/g/v1/namespaces/n/m?fieldSelector=metadata.name%3Dx", "list", "n|m||");
    }

    #[test]
    fn of_parameters_with_one_name_the_first_counts_and_a_broken_one_is_not_left_out() {
        let selector = |query: &str| of("GET", &format!("/apis/g/v/n/m?{query}")).label_selector;
        assert_eq!(selector("labelSelector=foo%3Dbar&labelSelector=foo%3Dbaz"), "foo=bar");
        assert_eq!(selector("label%53elector=a"), "a");
        // Left out it would mean everything.
        assert_eq!(selector("labelSelector=a%zz"), "a%zz");
        assert_eq!(selector("labelSelector"), "");
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
