//! Generates docs/reasons.md from the catalogue, and holds both against the sources.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::{CATALOGUE, Place};
use crate::held_docs;

const INTRODUCTION: &str = "\
# Reasons

Why a number is not served, and what is wrong with a policy: every reason that a condition of a ScalingPolicy, an error
to the HPA or the label `reason` of a metric can have. This file is generated from the catalogue in `src/policy/reason.rs`;
`HEADROOM_UPDATE_DOCS=1 cargo test --lib reason` writes it.

`kubectl get spol` shows READY, `kubectl describe spol NAME` the conditions with their messages, and
`headroom_adapter_policy_unserved` the reason for each policy.
";

const TABLES: [(Place, &str, &str); 4] = [
    (
        Place::Unserved,
        "No number",
        "The HPA gets an error with the message and keeps the replicas. The policy has condition `Ready` False with this\n\
         reason, and a condition of this type; a signal that has no demand of its own while the policy's is served has the\n\
         condition alone.",
    ),
    (
        Place::Condition,
        "Conditions beside a number",
        "Something is wrong with the policy, and the demand may be served all the same.",
    ),
    (
        Place::Item,
        "In answers to requests",
        "Among the causes of an error about a metric, beside those that a policy has.",
    ),
    (Place::Ready, "All is well", "The reason of condition `Ready` while it is True."),
];

fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (place, title, introduction) in TABLES {
        write!(
            text,
            "\n## {title}\n\n{introduction}\n\n| reason | meaning | what to do |\n|---|---|---|\n"
        )
        .expect("a String takes everything");
        for reason in CATALOGUE.iter().filter(|reason| reason.place == place) {
            writeln!(text, "| `{}` | {} | {} |", reason.name, reason.meaning, reason.action)
                .expect("a String takes everything");
        }
    }
    text
}

/// Two words or more in CamelCase, or `Served`.
fn is_reason(text: &str) -> bool {
    let capitals = text.chars().filter(char::is_ascii_uppercase).count();
    let starts = text.starts_with(|first: char| first.is_ascii_uppercase());
    starts
        && text.chars().all(|c| c.is_ascii_alphanumeric())
        && (capitals > 1 || text == "Served" || text == "Stale")
}

/// The literals of a source that stand where a reason stands.
fn reasons_in(source: &str) -> BTreeSet<String> {
    let code = source.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let parts: Vec<&str> = code.split('"').collect();
    parts
        .windows(2)
        .filter(|pair| {
            let before = pair[0].trim_end();
            let is_const = before.rsplit('\n').next().is_some_and(|line| {
                line.contains("const ") && line.trim_end().ends_with(": &str =")
            });
            is_const || before.ends_with("reason:") || before.ends_with("finding_and_refusal(")
        })
        .map(|pair| pair[1].to_owned())
        .filter(|literal| is_reason(literal))
        .collect()
}

fn walk(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("src can be read") {
        let path = entry.expect("an entry can be read").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_test = name.starts_with("tests") || name == "reason" || name == "scenario.rs";
        if path.is_dir() && !is_test {
            walk(&path, found);
        } else if name.ends_with(".rs") && !is_test && name != "reason.rs" {
            found.extend(reasons_in(&fs::read_to_string(&path).expect("a source can be read")));
        }
    }
}

#[test]
fn a_reason_is_found_where_it_stands() {
    let found = |source: &str| reasons_in(source).into_iter().collect::<Vec<_>>();
    assert_eq!(found("Unserved { reason: \"NewReason\", message }"), ["NewReason"]);
    assert_eq!(found("pub const X: &str = \"NewReason\";"), ["NewReason"]);
    assert_eq!(found("finding_and_refusal(\n  \"NewReason\", m)"), ["NewReason"]);
    assert_eq!(found("json!({\"kind\": \"ScalingPolicy\"})"), [""; 0]);
    assert_eq!(found("fn f() {}\n#[cfg(test)]\nmod tests { reason: \"NewReason\" }"), [""; 0]);
}

#[test]
fn the_reasons_in_the_sources_are_those_of_the_catalogue() {
    let mut found = BTreeSet::new();
    for room in ["policy", "pipeline", "controller", "adapter"] {
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room), &mut found);
    }
    // What the code names by the constants beside the catalogue.
    let constants = [super::NO_SAMPLES_YET, super::AWAITING_SECOND_SAMPLE, super::TARGET_PENDING];
    found.extend(constants.map(str::to_owned));
    let known: BTreeSet<String> = CATALOGUE.iter().map(|reason| reason.name.to_owned()).collect();
    assert_eq!(known.len(), CATALOGUE.len(), "a name stands twice");
    let unknown: Vec<_> = found.difference(&known).collect();
    let unused: Vec<_> = known.difference(&found).collect();
    assert!(unknown.is_empty(), "not in src/policy/reason.rs: {unknown:?}");
    assert!(unused.is_empty(), "in no source: {unused:?}");
}

#[test]
fn the_docs_in_the_repository_are_the_catalogue_s() {
    held_docs::hold("docs/reasons.md", &markdown(), "reason");
}
