//! Holds the documents together: every link that stays in the repository leads to a file and a heading that exist, and the index
//! names every document.
//!
//! In: README.md and its siblings, docs/. Out: a failed test that names file, line and link. Never: a request to another site.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// A link with the number of its line.
#[derive(Debug, PartialEq)]
struct Link {
    line: usize,
    target: String,
}

#[test]
fn every_link_within_the_repository_leads_somewhere() {
    let documents = documents();
    let mut looked_at = 0;
    let mut broken = Vec::new();
    for document in &documents {
        for link in links(&read(document)).into_iter().filter(|link| is_ours(&link.target)) {
            looked_at += 1;
            if let Err(why) = resolve(document, &link.target) {
                let (file, line) = (document.display(), link.line);
                broken.push(format!("{file}:{line}: {}: {why}", link.target));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(looked_at > documents.len(), "only {looked_at} links were found");
}

#[test]
fn the_index_names_every_document() {
    let index = Path::new("docs/README.md");
    let named: HashSet<PathBuf> =
        links(&read(index)).iter().filter_map(|link| inside(index, &link.target)).collect();
    let in_docs = |document: &&PathBuf| document.starts_with("docs") && document.as_path() != index;
    let all = documents();
    let left_out: Vec<_> =
        all.iter().filter(in_docs).filter(|document| !named.contains(*document)).collect();
    assert!(left_out.is_empty(), "not in {}: {left_out:?}", index.display());
}

/// What Markdown files the top level and docs/ have, as paths from the repository's root.
fn documents() -> Vec<PathBuf> {
    let markdown = |folder: &str| {
        let entries = fs::read_dir(folder).expect("the folder can be listed");
        let names = entries.map(|entry| entry.expect("the entry can be read").file_name());
        names.map(|name| Path::new(folder).join(name)).collect::<Vec<_>>()
    };
    let top = markdown(".").into_iter().map(|path| tidy(&path).expect("inside the root"));
    let mut all: Vec<PathBuf> =
        top.chain(markdown("docs")).filter(|path| is_markdown(path)).collect();
    all.sort();
    all
}

fn read(document: &Path) -> String {
    fs::read_to_string(document).unwrap_or_else(|error| panic!("{}: {error}", document.display()))
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

/// Whether the target is in this repository: it has no scheme.
fn is_ours(target: &str) -> bool {
    let scheme = target.split(['/', '#', '?']).next().unwrap_or_default();
    !scheme.contains(':')
}

/// Whether the target of a link in `document` exists, its heading included.
fn resolve(document: &Path, target: &str) -> Result<(), &'static str> {
    let file = inside(document, target).ok_or("leads out of the repository")?;
    if !file.exists() {
        return Err("there is no such file");
    }
    match target.split_once('#') {
        None => Ok(()),
        Some(_) if !is_markdown(&file) => Err("only headings of Markdown files can be checked"),
        Some((_, anchor)) if anchors(&read(&file)).contains(anchor) => Ok(()),
        Some(_) => Err("there is no such heading"),
    }
}

/// The file that a link in `document` names, from the root; `None` outside of it.
fn inside(document: &Path, target: &str) -> Option<PathBuf> {
    let path = target.split('#').next().unwrap_or_default();
    if path.is_empty() {
        return Some(document.to_owned());
    }
    tidy(&document.parent()?.join(path))
}

/// The path without `.` and `..`; `None` where it leaves the root.
fn tidy(path: &Path) -> Option<PathBuf> {
    let mut tidied = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => tidied.push(name),
            Component::ParentDir if tidied.pop() => {}
            _ => return None,
        }
    }
    Some(tidied)
}

/// The lines outside of fenced code, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let start = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark));
        match (fence, mark) {
            (None, Some(_)) => fence = mark,
            (Some(open), Some(mark)) if open == mark => fence = None,
            (open, _) => return open.is_none(),
        }
        false
    })
}

/// The targets of inline links and pictures, and of reference definitions.
fn links(text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    for (line, text) in prose(text) {
        let text = without_code(text);
        let inline = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let definition = text.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
        let targets = inline.chain(definition.map(|(_, target)| target));
        let targets = targets.filter_map(|target| target.split_whitespace().next());
        found.extend(targets.map(|target| Link { line, target: target.to_owned() }));
    }
    found
}

/// The line without what stands between backticks; a backtick without its pair stays.
fn without_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    let is_open = parts.len().is_multiple_of(2);
    let outside = |&(place, _): &(usize, &str)| {
        place.is_multiple_of(2) || (is_open && place + 1 == parts.len())
    };
    parts.iter().copied().enumerate().filter(outside).map(|(_, part)| part).collect()
}

/// The anchors of the headings, as GitHub makes them.
fn anchors(text: &str) -> HashSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let heading = |line: &str| {
        let text = line.trim_start_matches('#');
        let level = line.len() - text.len();
        ((1..=6).contains(&level) && text.starts_with(' ')).then(|| text.trim().to_owned())
    };
    let headings = prose(text).filter_map(|(_, line)| heading(line));
    headings
        .map(|heading| {
            let anchor = anchor(&heading);
            let before = seen.entry(anchor.clone()).or_default();
            *before += 1;
            if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
        })
        .collect()
}

/// Lower case, spaces as hyphens, and of punctuation only hyphens and underscores.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

#[test]
fn links_are_found_where_a_reader_sees_them() {
    let check = |text: &str, expected: &[(usize, &str)]| {
        let link = |&(line, target): &(usize, &str)| Link { line, target: target.to_owned() };
        assert_eq!(links(text), expected.iter().map(link).collect::<Vec<_>>(), "{text}");
    };
    check("see [a](a.md) and ![b](b.svg \"title\")\n", &[(1, "a.md"), (1, "b.svg")]);
    check("\n[`code`](c.md#part).\n", &[(2, "c.md#part")]);
    check("[d]: d.md\n", &[(1, "d.md")]);
    check("`[e](e.md)`\n```text\n[f](f.md)\n```\n[g](g.md)\n", &[(5, "g.md")]);
    check("it is 5` long, [h](h.md)\n", &[(1, "h.md")]);
}

#[test]
fn headings_become_the_anchors_that_github_gives_them() {
    let text =
        "# Why totals, with `AverageValue: \"1\"`\n## A\n```sh\n# no heading\n```\n## A\n#tag\n";
    let expected = ["why-totals-with-averagevalue-1", "a", "a-1"];
    assert_eq!(anchors(text), expected.into_iter().map(str::to_owned).collect());
}

#[test]
fn a_link_to_what_is_not_there_is_broken() {
    let check = |target: &str, expected: Result<(), &str>| {
        assert_eq!(resolve(Path::new("docs/README.md"), target), expected, "{target}");
    };
    check("concepts.md", Ok(()));
    check("concepts.md#missing-is-never-zero", Ok(()));
    check("#documentation", Ok(()));
    check("../src/lib.rs", Ok(()));
    check("concept.md", Err("there is no such file"));
    check("concepts.md#missing-is-zero", Err("there is no such heading"));
    check("../src/lib.rs#L1", Err("only headings of Markdown files can be checked"));
    check("../../lib.rs", Err("leads out of the repository"));
    check("/docs/concepts.md", Err("leads out of the repository"));
}
