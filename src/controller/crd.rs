//! The CustomResourceDefinition of `ScalingPolicy`, as an object and as text.
//!
//! In: the types of [`scaling_policy`](super::scaling_policy). Out: what `headroom crd` prints and `manifests/base/crd.yaml`
//! holds. Never: hand-written schema beside the types'.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, ValidationRule,
};
use kube::CustomResourceExt;

use super::scaling_policy::ScalingPolicy;

/// Why the definition cannot be printed.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// The object has no JSON form.
    #[error("cannot write the custom resource definition as JSON")]
    Json(#[from] serde_json::Error),
    /// The object has no YAML form.
    #[error("cannot write the custom resource definition as YAML")]
    Yaml(#[from] serde_saphyr::ser_error::Error),
}

/// The definition with the one rule that the derived schema has no place for: a policy's name is a label value.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    let mut crd = ScalingPolicy::crd();
    for version in &mut crd.spec.versions {
        if let Some(root) =
            version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut())
        {
            root.x_kubernetes_validations = Some(vec![ValidationRule {
                rule: "self.metadata.name.size() <= 63".to_owned(),
                message: Some(
                    "the policy's name is a label value: at most 63 characters".to_owned(),
                ),
                ..ValidationRule::default()
            }]);
        }
    }
    crd
}

/// The definition as YAML, ready for `kubectl apply -f -`.
///
/// # Errors
/// [`CrdError`] if the object cannot be written; a test shows that it can.
pub fn crd_yaml() -> Result<String, CrdError> {
    let object = serde_json::to_value(crd())?;
    let body = serde_saphyr::to_string(&object)?;
    Ok(format!(
        "# Printed by `headroom crd`; the types in src/controller/scaling_policy.rs are the source.\n{body}"
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `HEADROOM_UPDATE_CRD=1 cargo test --lib crd` writes the file anew.
    #[test]
    fn the_checked_in_definition_is_the_one_of_the_types() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/base/crd.yaml");
        let printed = crd_yaml().expect("the definition prints");
        if std::env::var_os("HEADROOM_UPDATE_CRD").is_some() {
            std::fs::write(&path, &printed).expect("manifests/base is writable");
        }
        let checked_in =
            std::fs::read_to_string(&path).expect("manifests/base/crd.yaml is readable");
        assert!(checked_in == printed, "{} is old: run with HEADROOM_UPDATE_CRD=1", path.display());
    }

    #[test]
    fn the_printed_definition_reads_back_as_the_same_object() {
        let printed = crd_yaml().expect("the definition prints");
        let read: CustomResourceDefinition = serde_saphyr::from_str(&printed).expect("it is YAML");
        assert_eq!(read, crd());
    }

    /// Every string and list that a user writes is bounded, or CEL rules are costed at the size of a whole request.
    #[test]
    fn every_string_and_list_of_the_spec_is_bounded() {
        let object = serde_json::to_value(crd()).expect("the definition is JSON");
        let spec =
            &object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut unbounded = Vec::new();
        walk("spec", spec, &mut unbounded);
        assert_eq!(unbounded, Vec::<String>::new());
    }

    fn walk(path: &str, schema: &serde_json::Value, unbounded: &mut Vec<String>) {
        // Passed on unchanged, under no rule of ours; autoscaling/v2 validates it.
        if path.ends_with(".behavior") {
            return;
        }
        let text = schema["type"] == "string" || schema["x-kubernetes-int-or-string"] == true;
        if text && schema.get("maxLength").is_none() && schema.get("enum").is_none() {
            unbounded.push(path.to_owned());
        }
        if schema["type"] == "array" && schema.get("maxItems").is_none() {
            unbounded.push(path.to_owned());
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), property, unbounded);
        }
        if let Some(items) = schema.get("items") {
            walk(&format!("{path}[]"), items, unbounded);
        }
    }
}
