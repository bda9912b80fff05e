//! OpenAPI documents, in version 2 for all groups together and in version 3 for each group's version.
//!
//! In: what is served. Out: JSON that says which paths there are, with which parameters, and what they answer. Never: a schema
//! under a name that another server's document has with other content: kube-apiserver merges the documents of version 2 and
//! renames such schemas (kube-openapi `pkg/aggregator`), so the types of `meta/v1` stand in place.
//!
//! `kubectl explain RESOURCE` finds the resource by discovery, then a path that ends in it, then by that path's
//! `x-kubernetes-group-version-kind` the schema (kubectl `pkg/explain/v2/templates/plaintext.tmpl`).

use serde_json::{Map, Value, json};

use super::groups::{CUSTOM, EXTERNAL, Group, RESOURCE_METRICS};

mod schemas;

/// The two versions of the format, which differ in where things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    V2,
    V3,
}

/// A GET.
struct Operation {
    path: String,
    id: String,
    description: &'static str,
    /// Kubernetes' verb.
    action: &'static str,
    kind: &'static str,
    parameters: Vec<Parameter>,
    /// The schema of what it answers; without one it answers 404 with a list of what there is.
    answers: Option<String>,
}

#[derive(Clone, Copy)]
struct Parameter {
    name: &'static str,
    place: &'static str,
    description: &'static str,
}

const fn in_path(name: &'static str, description: &'static str) -> Parameter {
    Parameter { name, place: "path", description }
}

const fn in_query(name: &'static str, description: &'static str) -> Parameter {
    Parameter { name, place: "query", description }
}

const NAMESPACE: Parameter = in_path("namespace", "The namespace.");
const METRIC: Parameter = in_path("metric", "The metric's name.");
const NO_METRIC: &str = "No metric has this name: the answer is always 404 and names those that there are. It stands here for kubectl explain.";

/// The document of version 2, of all groups served.
pub(super) fn v2(groups: &[&'static Group]) -> Value {
    let mut operations = Vec::new();
    let mut definitions = Map::new();
    for (group, version) in versions(groups) {
        operations.extend(operations_of(group, version));
        definitions.extend(schemas::of(group, version, "#/definitions/"));
    }
    json!({
        "swagger": "2.0", "info": info(),
        "paths": paths(&operations, Format::V2), "definitions": definitions,
    })
}

/// The document of version 3, of one version of one group.
pub(super) fn v3(group: &Group, version: &str) -> Value {
    let operations = operations_of(group, version);
    json!({
        "openapi": "3.0.0", "info": info(), "paths": paths(&operations, Format::V3),
        "components": {"schemas": schemas::of(group, version, "#/components/schemas/")},
    })
}

fn info() -> Value {
    json!({"title": "Headroom", "version": env!("CARGO_PKG_VERSION")})
}

/// Each version of each group.
pub(super) fn versions<'a>(
    groups: &'a [&'static Group],
) -> impl Iterator<Item = (&'static Group, &'static str)> + 'a {
    groups.iter().flat_map(|group| group.versions.iter().map(|version| (*group, *version)))
}

fn paths(operations: &[Operation], format: Format) -> Value {
    let path =
        |operation: &Operation| (operation.path.clone(), json!({"get": operation.written(format)}));
    Value::Object(operations.iter().map(path).collect())
}

impl Operation {
    fn written(&self, format: Format) -> Value {
        let [_, _, group, version, ..] = *self.path.split('/').collect::<Vec<_>>() else {
            return Value::Null;
        };
        let mut written = json!({
            "operationId": self.id, "description": self.description,
            "tags": [group], "responses": self.responses(format),
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": self.kind},
        });
        let parameters: Vec<Value> =
            self.parameters.iter().map(|parameter| parameter.written(format)).collect();
        if !parameters.is_empty() {
            written["parameters"] = parameters.into();
        }
        if format == Format::V2 {
            written["produces"] = json!(schemas::MEDIA_TYPES);
            written["schemes"] = json!(["https"]);
        }
        written
    }

    fn responses(&self, format: Format) -> Value {
        let Some(name) = &self.answers else {
            return json!({"404": {"description": "Not Found"}});
        };
        let mut answer = json!({"description": "OK"});
        match format {
            Format::V2 => {
                answer["schema"] = json!({"$ref": format!("#/definitions/{name}")});
            }
            Format::V3 => {
                let schema = json!({"schema": {"$ref": format!("#/components/schemas/{name}")}});
                let of = |media_type: &&str| ((*media_type).to_owned(), schema.clone());
                let content = schemas::MEDIA_TYPES.iter().map(of).collect();
                answer["content"] = Value::Object(content);
            }
        }
        json!({"200": answer})
    }
}

impl Parameter {
    fn written(self, format: Format) -> Value {
        let Self { name, place, description } = self;
        let mut written = json!({"name": name, "in": place, "description": description});
        if place == "path" {
            written["required"] = true.into();
        }
        match format {
            Format::V2 => {
                written["type"] = "string".into();
                written["uniqueItems"] = true.into();
            }
            Format::V3 => written["schema"] = json!({"type": "string"}),
        }
        written
    }
}

fn operations_of(group: &Group, version: &str) -> Vec<Operation> {
    let root = format!("/apis/{}/{version}", group.name);
    let operations = match group.name {
        name if name == EXTERNAL.name => external(&root),
        name if name == CUSTOM.name => custom(&root),
        name if name == RESOURCE_METRICS.name => resource_metrics(&root),
        _ => Vec::new(),
    };
    let named = |mut operation: Operation| {
        let mut capital = version.to_owned();
        capital[..1].make_ascii_uppercase();
        operation.id.push_str(&capital);
        operation.answers = operation.answers.map(|kind| schemas::name(group, version, &kind));
        operation
    };
    operations.into_iter().map(named).collect()
}

fn external(root: &str) -> Vec<Operation> {
    let picks = in_query(
        "labelSelector",
        "Which of the metric's values are wanted, by their metricLabels. All without it.",
    );
    let list = |path: String, id: &str, description, parameters, answers: Option<&str>| Operation {
        path,
        id: id.to_owned(),
        description,
        action: "list",
        kind: EXTERNAL.kind,
        parameters,
        answers: answers.map(str::to_owned),
    };
    vec![
        list(
            format!("{root}/namespaces/{{namespace}}/{{metric}}"),
            "listExternalMetric",
            "The values of an external metric. An error if one of those that are wanted cannot be said now.",
            vec![NAMESPACE, METRIC, picks],
            Some(EXTERNAL.kind),
        ),
        list(
            format!("{root}/namespaces/{{namespace}}/{}", EXTERNAL.resource),
            "explainExternalMetrics",
            NO_METRIC,
            vec![NAMESPACE],
            None,
        ),
    ]
}

fn custom(root: &str) -> Vec<Operation> {
    let objects = in_query(
        "labelSelector",
        "Which objects are wanted, by their labels, where the name is *. All without it.",
    );
    let series = in_query(
        "metricLabelSelector",
        "Which of the metric's values are wanted, by the metric's own labels. All without it.",
    );
    let resource =
        in_path("resource", "The objects' resource and group, e.g. pods or deployments.apps.");
    let name = in_path("name", "The object's name, or * for several objects.");
    let get = |path: String, id: &str, description, parameters, answers: Option<&str>| Operation {
        path,
        id: id.to_owned(),
        description,
        action: "get",
        kind: CUSTOM.kind,
        parameters,
        answers: answers.map(str::to_owned),
    };
    vec![
        get(
            format!("{root}/namespaces/{{namespace}}/{{resource}}/{{name}}/{{metric}}"),
            "getObjectMetric",
            "The values of a metric of one object, or of those that a selector picks.",
            vec![NAMESPACE, resource, name, METRIC, objects, series],
            Some(CUSTOM.kind),
        ),
        get(
            format!("{root}/{{resource}}/{{name}}/{{metric}}"),
            "getClusterObjectMetric",
            "The values of a metric of objects that are in no namespace.",
            vec![resource, name, METRIC, objects, series],
            Some(CUSTOM.kind),
        ),
        get(
            format!("{root}/namespaces/{{namespace}}/metrics/{{metric}}"),
            "getNamespaceMetric",
            "The value of a metric of the namespace itself.",
            vec![NAMESPACE, METRIC, series],
            Some(CUSTOM.kind),
        ),
        get(
            format!("{root}/namespaces/{{namespace}}/{}", CUSTOM.resource),
            "explainCustomMetrics",
            "Nothing is served here: the answer is always 404. It stands here for kubectl explain.",
            vec![NAMESPACE],
            None,
        ),
    ]
}

fn resource_metrics(root: &str) -> Vec<Operation> {
    let picks =
        in_query("labelSelector", "Which pods are wanted, by their labels. All without it.");
    let fields = in_query("fieldSelector", "The one pod that is wanted, as metadata.name=NAME.");
    let name = in_path("name", "The pod's name.");
    let pods = |path: &str, id: &str, description, action, parameters, kind: &str| Operation {
        path: format!("{root}{path}"),
        id: id.to_owned(),
        description,
        action,
        kind: RESOURCE_METRICS.kind,
        parameters,
        answers: Some(kind.to_owned()),
    };
    vec![
        pods(
            "/pods",
            "listPodMetricsOfAllNamespaces",
            "What the pods of all namespaces use.",
            "list",
            vec![picks, fields],
            "PodMetricsList",
        ),
        pods(
            "/namespaces/{namespace}/pods",
            "listPodMetrics",
            "What the pods of a namespace use.",
            "list",
            vec![NAMESPACE, picks, fields],
            "PodMetricsList",
        ),
        pods(
            "/namespaces/{namespace}/pods/{name}",
            "getPodMetrics",
            "What one pod uses.",
            "get",
            vec![NAMESPACE, name],
            "PodMetrics",
        ),
    ]
}

#[cfg(test)]
mod tests;
