//! Holds the crates that Headroom is built on: real dependencies of the default build, named in its code.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

const PROMISED: &[&str] = &[
    "axum",
    "tokio",
    "prometheus",
    "procfs",
    "sysinfo",
    "pprof",
    "serde_json",
    "reqwest",
    "tracing",
    "kube",
];

#[test]
fn the_promised_crates_are_in_the_default_build_and_in_the_code() {
    let metadata = cargo_metadata::MetadataCommand::new().exec().expect("cargo metadata runs");
    let root = metadata.root_package().expect("one package");
    let by_default = default_features(root);
    let code = text_of(Path::new("src"));
    for name in PROMISED {
        let dependency = root
            .dependencies
            .iter()
            .find(|dependency| {
                dependency.name == *name
                    && dependency.kind == cargo_metadata::DependencyKind::Normal
            })
            .unwrap_or_else(|| panic!("{name} is no dependency"));
        assert!(
            !dependency.optional || by_default.contains(&format!("dep:{name}")),
            "{name} is not in the default build"
        );
        assert!(code.contains(&format!("{name}::")), "{name} is never used");
    }
}

/// What a service embeds: a Kubernetes client or a TLS library there would be a cost that nobody asked for.
#[test]
fn the_feature_agent_alone_pulls_in_no_kubernetes_and_no_tls() {
    const UNWANTED: &[&str] = &["kube", "k8s-openapi", "rustls", "ring", "openssl", "native-tls"];
    let metadata = cargo_metadata::MetadataCommand::new()
        .features(cargo_metadata::CargoOpt::NoDefaultFeatures)
        .features(cargo_metadata::CargoOpt::SomeFeatures(vec!["agent".to_owned()]))
        .exec()
        .expect("cargo metadata runs");
    let resolved = metadata.resolve.expect("cargo resolves the dependencies");
    let nodes: HashMap<_, _> = resolved.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut reached = HashSet::new();
    let mut open = vec![resolved.root.as_ref().expect("one package")];
    while let Some(id) = open.pop() {
        if reached.insert(id) {
            let normal = |dependency: &&cargo_metadata::NodeDep| {
                let kind = |kind: &cargo_metadata::DepKindInfo| {
                    kind.kind == cargo_metadata::DependencyKind::Normal
                };
                dependency.dep_kinds.iter().any(kind)
            };
            open.extend(nodes[id].deps.iter().filter(normal).map(|dependency| &dependency.pkg));
        }
    }
    let names: HashSet<_> = metadata
        .packages
        .iter()
        .filter(|package| reached.contains(&package.id))
        .map(|package| package.name.as_str())
        .collect();
    assert!(names.contains("axum"), "the walk finds what is there");
    for unwanted in UNWANTED {
        assert!(!names.contains(unwanted), "{unwanted}");
    }
}

fn default_features(root: &cargo_metadata::Package) -> Vec<String> {
    let mut found = vec!["default".to_owned()];
    let mut at = 0;
    while at < found.len() {
        found.extend(root.features.get(&found[at]).cloned().unwrap_or_default());
        at += 1;
    }
    found
}

fn text_of(folder: &Path) -> String {
    fs::read_dir(folder)
        .expect("src can be read")
        .map(|entry| entry.expect("an entry can be read").path())
        .map(|path| match path.is_dir() {
            true => text_of(&path),
            false => fs::read_to_string(&path).unwrap_or_default(),
        })
        .collect()
}
