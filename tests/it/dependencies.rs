//! Holds the crates that Headroom is built on: real dependencies of the default build, named in its code.

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
