//! The documents against what is served: the fixtures of `wire`, which hold what Kubernetes' own encoders write.

use std::path::Path;

use super::*;
use crate::adapter::groups::Groups;

const ALL: Groups = Groups { custom: true, external: true, resource_metrics: true };

fn all() -> Vec<&'static Group> {
    ALL.served().collect()
}

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/adapter/wire/fixtures").join(name);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// Every property of the value is in the schema with its type, and every required one is in the value.
fn check(value: &Value, schema: &Value, document: &Value, place: &str) {
    let schema = resolved(schema, document);
    match (schema["type"].as_str().unwrap_or_else(|| panic!("{place}: no type")), value) {
        ("object", Value::Object(fields)) => {
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                let inner = &schema["properties"][name];
                let inner = if inner.is_null() { &schema["additionalProperties"] } else { inner };
                assert!(!inner.is_null(), "{place}.{name} is in no schema");
                check(value, inner, document, &format!("{place}.{name}"));
            }
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().expect("a name");
                assert!(fields.contains_key(name), "{place} lacks {name}");
                assert!(schema["properties"].get(name).is_some(), "{place}: {name} is no property");
            }
        }
        ("array", Value::Array(items)) => {
            for item in items {
                check(item, &schema["items"], document, &format!("{place}[]"));
            }
        }
        ("string", Value::String(_)) => {}
        ("integer", Value::Number(number)) => assert!(number.is_i64(), "{place}: {number}"),
        (wanted, value) => panic!("{place}: {value} is no {wanted}"),
    }
}

fn resolved<'a>(schema: &'a Value, document: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        None => schema,
        Some(reference) => {
            let target = reference.strip_prefix('#').and_then(|place| document.pointer(place));
            target.unwrap_or_else(|| panic!("{reference} leads nowhere"))
        }
    }
}

/// The schemas that say to be of this kind.
fn of_kind<'a>(schemas: &'a Value, api_version: &str, kind: &str) -> Vec<&'a Value> {
    let (group, version) = api_version.split_once('/').expect("a group and a version");
    let wanted = json!([{"group": group, "version": version, "kind": kind}]);
    let schemas = schemas.as_object().expect("schemas").values();
    schemas.filter(|schema| schema["x-kubernetes-group-version-kind"] == wanted).collect()
}

#[test]
fn what_is_served_fits_the_schema_of_its_kind_in_both_formats() {
    let v2 = v2(&all());
    for name in [
        "kubernetes/external.metrics.k8s.io.v1beta1.ExternalMetricValue",
        "encoded/external",
        "encoded/external-empty",
        "encoded/custom-v1beta1",
        "encoded/custom-v1beta2",
        "encoded/pods-v1",
        "encoded/pods-v1beta1",
        "encoded/pod-v1",
        "encoded/pod-v1beta1",
    ] {
        let object = fixture(&format!("{name}.json"));
        let (api_version, kind) = (object["apiVersion"].as_str(), object["kind"].as_str());
        let (api_version, kind) = (api_version.expect("a text"), kind.expect("a text"));
        let [schema] = of_kind(&v2["definitions"], api_version, kind)[..] else {
            panic!("{name}: one schema is of its kind")
        };
        check(&object, schema, &v2, name);
        let (group, version) = api_version.split_once('/').expect("a group and a version");
        let group = all().into_iter().find(|known| known.name == group).expect("a known group");
        let v3 = v3(group, version);
        let [schema] = of_kind(&v3["components"]["schemas"], api_version, kind)[..] else {
            panic!("{name}: one schema is of its kind")
        };
        check(&object, schema, &v3, name);
    }
}

#[test]
#[should_panic(expected = "external.items[].metricLables is in no schema")]
fn a_field_that_no_schema_has_is_found() {
    let v2 = v2(&all());
    let mut object = fixture("encoded/external.json");
    object["items"][0]["metricLables"] = json!({});
    let api_version = "external.metrics.k8s.io/v1beta1";
    check(&object, of_kind(&v2["definitions"], api_version, EXTERNAL.kind)[0], &v2, "external");
}

/// Every `$ref` of a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(reference) if name == "$ref" => found.push(reference.to_owned()),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    let mut documents = vec![(v2(&all()), "/definitions")];
    documents.extend(
        versions(&all()).map(|(group, version)| (v3(group, version), "/components/schemas")),
    );
    for (document, place) in documents {
        let mut found = Vec::new();
        references(&document, &mut found);
        let schemas = document.pointer(place).and_then(Value::as_object).expect("schemas");
        for name in schemas.keys() {
            assert!(found.contains(&format!("#{place}/{name}")), "{name} is not used");
        }
        for reference in found {
            resolved(&json!({"$ref": reference}), &document);
        }
    }
}

#[test]
fn a_path_parameter_is_declared_and_an_operation_has_its_own_name() {
    let document = v2(&all());
    let mut ids = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let get = &operations["get"];
        ids.push(get["operationId"].as_str().expect("a text"));
        let in_path = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let declared = get["parameters"].as_array().into_iter().flatten();
        let declared = declared.filter(|parameter| parameter["in"] == "path");
        let declared: Vec<&str> =
            declared.filter_map(|parameter| parameter["name"].as_str()).collect();
        assert_eq!(in_path.collect::<Vec<_>>(), declared, "{path}");
    }
    let number = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), number);
}

/// As kubectl does it: a path of the resource that discovery lists, its kind, the schema of that kind.
#[test]
fn kubectl_explain_finds_the_schema_of_every_resource() {
    for (group, version) in versions(&all()) {
        let document = v3(group, version);
        let root = format!("/apis/{}/{version}", group.name);
        let path = format!("{root}/namespaces/{{namespace}}/{}", group.resource);
        let kind = &document["paths"][&path]["get"]["x-kubernetes-group-version-kind"];
        let expected = json!({"group": group.name, "version": version, "kind": group.kind});
        assert_eq!(*kind, expected, "{path}");
        let api_version = format!("{}/{version}", group.name);
        let schemas = of_kind(&document["components"]["schemas"], &api_version, group.kind);
        assert_eq!(schemas.len(), 1, "{path}");
    }
}
