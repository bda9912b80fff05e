//! Writes the table of docs/conformance.md from the cases, and holds it.

use std::fmt::Write as _;

use super::GROUPS;
use super::case::Check;
use crate::held_docs;

/// The table begins here, and goes on to the end.
const HEADING: &str = "## The cases\n";

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn table() -> String {
    let mut text = HEADING.to_owned();
    text.push_str(
        "\nThis table is generated from `src/conformance`; `HEADROOM_UPDATE_DOCS=1 cargo test --lib conformance` writes it.\n",
    );
    for group in &GROUPS {
        write!(
            text,
            "\n### {}\n\n| # | a conforming adapter | what is asked | where it fails, the HPA |\n|---|---|---|---|\n",
            group.title
        )
        .expect("a String takes everything");
        for case in group.cases {
            let asked = match case.check {
                Check::OnTheWire(_) => case.what.to_owned(),
                Check::InCluster => format!("*In a cluster:* {}", case.what),
            };
            let (name, hpa) = (cell(case.name), cell(case.consequence_for_hpa));
            writeln!(text, "| {} | {name} | {} | {hpa} |", case.number, cell(&asked))
                .expect("a String takes everything");
        }
    }
    text
}

#[test]
fn cases_are_numbered_from_1_to_60_and_fit_their_line() {
    let cases: Vec<_> = GROUPS.iter().flat_map(|group| group.cases).collect();
    let numbers: Vec<u8> = cases.iter().map(|case| case.number).collect();
    assert_eq!(numbers, (1..=60).collect::<Vec<u8>>());
    for case in cases {
        assert!(case.name.len() <= 68, "{case:?}: {} characters", case.name.len());
        assert!(case.what.ends_with(['.', ')']), "{case:?}");
        let short = case.consequence_for_hpa.len() <= 63;
        assert!(short, "{case:?}: its consequence takes two lines");
    }
}

#[test]
fn the_table_in_the_repository_is_the_code_s() {
    let document = held_docs::read("docs/conformance.md");
    let (before, _) = document.split_once(HEADING).expect("docs/conformance.md has the heading");
    held_docs::hold("docs/conformance.md", &format!("{before}{}", table()), "conformance");
}
