//! Generates docs/adapter-metrics.md from the catalogue, and holds it.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::{CATALOGUE, OwnFamily, Values};
use crate::held_docs;
use crate::signals::FamilyKind;

const INTRODUCTION: &str = "\
# Metrics of the adapter

Every metric that an adapter shows at `/metrics` of its port 8080, about its policies and about itself. This file is
generated from `src/adapter/catalogue.rs`; `HEADROOM_UPDATE_DOCS=1 cargo test --lib catalogue` writes it.

Each replica answers from its own memory and shows its own view, so policies appear once per replica. What is unknown is
absent, never 0. Series per policy go with the policy. Beside these there is what [signals.md](signals.md) says of any
process that the agent watches: `process_*`, `cgroup_*`, `tokio_*`, `heap_*` and `headroom_agent_*` of the adapter itself.
";

/// Title and prefixes of the families of each table; a family is in the first whose prefix fits.
const GROUPS: [(&str, &[&str]); 5] = [
    ("The policies", &["headroom_adapter_policy_"]),
    (
        "Agreement of the replicas",
        &["headroom_adapter_demand_divergence", "headroom_adapter_divergent"],
    ),
    (
        "Collecting and deciding",
        &[
            "headroom_adapter_policies",
            "headroom_adapter_deci",
            "headroom_adapter_series",
            "headroom_adapter_store",
            "headroom_adapter_scrape",
            "headroom_adapter_dropped",
        ],
    ),
    (
        "Serving",
        &[
            "headroom_adapter_request",
            "headroom_adapter_served",
            "headroom_adapter_authentication",
            "headroom_adapter_tls",
            "headroom_adapter_refused",
            "headroom_adapter_connections",
            "headroom_adapter_audit",
            "headroom_adapter_client",
            "headroom_adapter_serving",
        ],
    ),
    (
        "The cluster and the configuration",
        &[
            "headroom_adapter_leader",
            "headroom_adapter_writes",
            "headroom_adapter_watch",
            "headroom_config_",
        ],
    ),
];

fn group(family: &OwnFamily) -> Option<usize> {
    let fits = |(_, prefixes): &(&str, &[&str])| {
        prefixes.iter().any(|prefix| family.name.starts_with(prefix))
    };
    GROUPS.iter().position(fits)
}

/// The unit, as the name says it.
fn unit(family: &OwnFamily) -> &'static str {
    let name = family.name.trim_end_matches("_total");
    match name.rsplit('_').next() {
        Some("seconds") => "seconds",
        Some("ratio") => "share of 1",
        Some("demand") => "pods",
        _ => "count",
    }
}

const fn kind(family: &OwnFamily) -> &'static str {
    match family.kind {
        FamilyKind::Gauge => "gauge",
        FamilyKind::Counter => "counter",
        FamilyKind::Histogram => "histogram",
    }
}

fn labels(family: &OwnFamily) -> String {
    let label = |label: &super::OwnLabel| match label.values {
        Values::Closed(values) => {
            let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("`{}`: {}", label.name, values.join(" "))
        }
        Values::Reasons => format!("`{}`: see [reasons.md](reasons.md)", label.name),
        Values::Each(what) => format!("`{}`: each {what}", label.name),
    };
    family.labels.iter().map(label).collect::<Vec<_>>().join("; ")
}

fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (index, (title, _)) in GROUPS.iter().enumerate() {
        write!(
            text,
            "\n## {title}\n\n| name | kind | unit | labels | definition | how to read it |\n|---|---|---|---|---|---|\n"
        )
        .expect("a String takes everything");
        for family in CATALOGUE.iter().filter(|family| group(family) == Some(index)) {
            writeln!(
                text,
                "| `{}` | {} | {} | {} | {}. | {} |",
                family.name,
                kind(family),
                unit(family),
                labels(family),
                family.help.trim_end_matches('.'),
                family.reading,
            )
            .expect("a String takes everything");
        }
    }
    text
}

#[test]
fn names_are_unique_in_one_table_and_follow_prometheus() {
    let names: HashSet<_> = CATALOGUE.iter().map(|family| family.name).collect();
    assert_eq!(names.len(), CATALOGUE.len());
    for family in CATALOGUE {
        let OwnFamily { name, help, reading, .. } = family;
        assert_eq!(name.ends_with("_total"), family.kind == FamilyKind::Counter, "{name}");
        assert!(group(family).is_some(), "{name} is in no table");
        assert!(!help.is_empty() && reading.ends_with('.'), "{name}");
        assert!(!help.contains('|') && !reading.contains('|'), "{name}");
    }
}

#[test]
fn the_docs_in_the_repository_are_the_catalogue_s() {
    held_docs::hold("docs/adapter-metrics.md", &markdown(), "catalogue");
}
