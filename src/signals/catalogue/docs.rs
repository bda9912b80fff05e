//! Generates docs/signals.md from the catalogue and its notes, and holds it.

use std::fmt::Write as _;

use super::notes::NOTES;
use super::{CATALOGUE, Family, FamilyKind};
use crate::held_docs;

/// Title and prefixes of the families of each table.
const GROUPS: [(&str, &[&str]); 6] = [
    ("The tokio runtime", &["tokio_"]),
    ("The heap", &["heap_"]),
    ("The process", &["process_"]),
    ("The cgroup, and pressure", &["cgroup_", "pressure_"]),
    ("Requests", &["http_"]),
    ("The agent and its machine", &["headroom_agent_"]),
];

const INTRODUCTION: &str = "\
# Signals

Every metric that the agent exposes: what it is, where it comes from, how to read it, and when it misleads. This file is
generated from the catalogue in `src/signals/catalogue`; `HEADROOM_UPDATE_DOCS=1 cargo test --lib catalogue` writes it.

What cannot be read is absent, never 0; `headroom_agent_source_available` then says 0 for its source. Counters and gauges
are read at the scrape. What is sampled once a second (saturation, busy time) carries the time of its sample.
";

/// The unit, as the name says it.
fn unit(family: &Family) -> &'static str {
    let name = family.name.trim_end_matches("_total");
    match name.rsplit('_').next() {
        Some("seconds") => "seconds",
        Some("bytes") => "bytes",
        Some("ratio") => "share of 1",
        Some("cores") => "cores",
        _ => "count",
    }
}

const fn kind(family: &Family) -> &'static str {
    match family.kind {
        FamilyKind::Gauge => "gauge",
        FamilyKind::Counter => "counter",
        FamilyKind::Histogram => "histogram",
    }
}

fn labels(family: &Family) -> String {
    let quoted: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
    quoted.join(", ")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (title, prefixes) in GROUPS {
        text.push_str("\n## ");
        text.push_str(title);
        text.push_str(
            "\n\n| name | kind | unit | labels | definition | how to read it | when it misleads | source |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        let in_group =
            |family: &&Family| prefixes.iter().any(|prefix| family.name.starts_with(prefix));
        for family in CATALOGUE.iter().filter(in_group) {
            let note = NOTES.iter().find(|note| note.family == family.name);
            let (reading, misleads) = note.map_or(("", ""), |note| (note.reading, note.misleads));
            writeln!(
                text,
                "| `{}` | {} | {} | {} | {}. | {} | {} | {} |",
                family.name,
                kind(family),
                unit(family),
                labels(family),
                cell(family.help),
                cell(reading),
                cell(misleads),
                cell(family.source),
            )
            .expect("a String takes everything");
        }
    }
    text
}

#[test]
fn every_family_has_a_note_and_every_note_a_family() {
    for family in CATALOGUE {
        let notes = NOTES.iter().filter(|note| note.family == family.name).count();
        assert_eq!(notes, 1, "notes of {} in catalogue/notes.rs", family.name);
    }
    for note in NOTES {
        assert!(super::family(note.family).is_some(), "{} is not in the catalogue", note.family);
        for text in [note.reading, note.misleads] {
            assert!(text.ends_with('.') && !text.contains('\n'), "{}: {text}", note.family);
        }
    }
}

#[test]
fn every_family_is_in_one_table_of_the_docs() {
    let text = markdown();
    for family in CATALOGUE {
        let row = format!("\n| `{}` | {} | ", family.name, kind(family));
        assert_eq!(text.matches(&row).count(), 1, "{}", family.name);
    }
}

#[test]
fn the_docs_in_the_repository_are_the_catalogue_s() {
    held_docs::hold("docs/signals.md", &markdown(), "catalogue");
}
