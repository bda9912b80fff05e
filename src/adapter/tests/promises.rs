//! What files beside the sources promise: the threat model, and how the adapter's container is locked up.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::*;

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all tests below a folder of the package.
fn tests_below(folder: &Path, found: &mut HashSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder of sources can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(tests_in(&fs::read_to_string(&path).expect("a source can be read")));
        }
    }
}

/// The functions that follow a `#[test]` or `#[tokio::test…]`.
fn tests_in(source: &str) -> Vec<String> {
    let mut is_test = false;
    let mut found = Vec::new();
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = line.trim_start_matches("async ").strip_prefix("fn ") {
            let name = rest.split('(').next().unwrap_or_default();
            if std::mem::take(&mut is_test) {
                found.push(name.to_owned());
            }
        }
    }
    found
}

/// Rows of the tables of threats whose last cell names no test, or one that does not exist; and how many rows there are.
fn unheld(document: &str, tests: &HashSet<String>) -> (Vec<String>, usize) {
    let rows = document.lines().filter(|line| line.starts_with("| T"));
    let mut faults = Vec::new();
    let mut count = 0;
    for row in rows {
        count += 1;
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let named: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        if named.is_empty() || named.iter().any(|name| !tests.contains(*name)) {
            faults.push(row.to_owned());
        }
    }
    (faults, count)
}

#[test]
fn every_threat_has_a_test_that_holds_its_defence() {
    let mut tests = HashSet::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "tests"] {
        tests_below(&root.join(folder), &mut tests);
    }
    let (faults, rows) = unheld(&file("docs/threat-model.md"), &tests);
    assert!(rows >= 20, "the tables were not read: {rows} rows");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_threat_without_a_test_is_found() {
    let source = "#[tokio::test]\nasync fn one() {}\n    #[test]\n    #[ignore]\n    fn two() {}\nfn three() {}";
    let tests: HashSet<String> = tests_in(source).into_iter().collect();
    let check = |row: &str, faults: usize| {
        let (found, rows) = unheld(row, &tests);
        assert_eq!((found.len(), rows), (faults, 1), "{row}");
    };
    check("| T1 | threat | defence | `one`, `two` |", 0);
    check("| T1 | threat | defence | `one`, `three` |", 1);
    check("| T1 | threat | `one` | |", 1);
}

#[test]
fn the_adapter_runs_without_root_without_rights_and_on_a_root_that_cannot_be_written() {
    let deployment: Value =
        serde_saphyr::from_str(&file("manifests/base/deployment.yaml")).expect("YAML");
    let pod = &deployment["spec"]["template"]["spec"];
    let security = &pod["securityContext"];
    assert_eq!(security["runAsNonRoot"], true);
    assert!(security["runAsUser"].as_u64().is_some_and(|user| user > 0), "{security}");
    assert!(security["runAsGroup"].as_u64().is_some_and(|group| group > 0), "{security}");
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_ne!(pod[shared], true, "{shared}");
    }
    let containers =
        ["containers", "initContainers"].into_iter().filter_map(|key| pod[key].as_array());
    let containers: Vec<&Value> = containers.flatten().collect();
    assert!(!containers.is_empty());
    for container in containers {
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false, "{container}");
        assert_eq!(security["readOnlyRootFilesystem"], true, "{container}");
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{container}");
        for weaker in ["privileged", "runAsUser", "runAsNonRoot", "seccompProfile"] {
            assert!(security[weaker].is_null(), "{weaker} of the pod is overridden: {container}");
        }
        assert!(!container["resources"]["limits"]["memory"].is_null(), "{container}");
    }
    let volumes = pod["volumes"].as_array().cloned().unwrap_or_default();
    for volume in volumes {
        assert!(volume["hostPath"].is_null(), "{volume}");
        let bounded = volume["emptyDir"].is_null() || !volume["emptyDir"]["sizeLimit"].is_null();
        assert!(bounded, "{volume}");
    }
}
