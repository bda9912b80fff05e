//! Holds the layer table: a room imports only rooms below it, and the pure rooms know no clock, HTTP or Kubernetes.
//!
//! Every token of every file under src/ is read, so a path inside a macro counts as well as a `use`.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Rooms from the bottom up. Rooms of one layer never import one another.
const LAYERS: &[&[&str]] = &[
    &["units", "quantity", "time", "held_docs"],
    &["sample", "config", "telemetry", "probes", "resilience", "scripted_kubernetes", "kept_log"],
    &["signals"],
    &["store", "pprof"],
    &["policy"],
    &["agent", "sources", "controller", "adapter"],
    &["pipeline", "doctor", "sla", "fleet"],
    &["conformance"],
    &["cli"],
    &["command"],
    &["main", "fuzzing"],
];

/// Where decisions are made from values alone.
const PURE: &[&str] = &["signals/catalogue.rs", "store.rs", "store/", "policy.rs", "policy/"];
const IMPURE: &[&str] = &[
    "kube",
    "k8s_openapi",
    "axum",
    "hyper",
    "reqwest",
    "http",
    "Instant",
    "SystemTime",
    "Clock",
    "wall_now",
];

#[test]
fn rooms_import_only_rooms_below_them() {
    let files = sources(Path::new("src"));
    assert!(files.len() > 30, "the walk found only {} files", files.len());
    let faults: Vec<_> = files
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).expect("a source file can be read");
            let relative = path.strip_prefix("src").expect("walked from src");
            faults(&relative.to_string_lossy(), &text)
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_seeded_violation_is_found() {
    check("policy/board.rs", "use crate::adapter::Server;", 1);
    check("policy/board.rs", "use super::super::adapter::Server;", 1);
    check("policy/board.rs", "use crate::{store::Store, controller};", 1);
    check("adapter.rs", "fn f() { println!(\"{}\", crate::controller::NAME) }", 1);
    check("store.rs", "use tokio::time::Instant;", 1);
    check("store.rs", "mod tests { use super::*; use super::super::pipeline::Pipeline; }", 1);
    check("pipeline.rs", "use crate::sources::scrape; use crate::policy::Board;", 0);
    check("policy/board.rs", "use super::Decision; mod tests { use super::*; }", 0);
}

fn check(file: &str, text: &str, expected: usize) {
    let found = faults(file, text);
    assert_eq!(found.len(), expected, "{file}: {text}: {found:?}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("src can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn faults(file: &str, text: &str) -> Vec<String> {
    let module: Vec<String> = match file.trim_end_matches(".rs") {
        "lib" => return Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    };
    let tokens = TokenStream::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut seen = Seen::default();
    seen.walk(tokens, &module);
    let room = &module[0];
    let own = layer(room).unwrap_or_else(|| panic!("{file}: room {room} has no layer"));
    let upward = seen
        .rooms
        .iter()
        .filter(|other| *other != room && layer(other).is_none_or(|rank| rank >= own))
        .map(|other| format!("src/{file} imports {other}, which is not below {room}"));
    let pure = PURE.iter().any(|prefix| file.starts_with(prefix));
    let impure = seen
        .words
        .iter()
        .filter(|word| pure && IMPURE.contains(&word.as_str()))
        .map(|word| format!("src/{file} is pure, and names {word}"));
    upward.chain(impure).collect()
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

/// The rooms that a file's paths lead to, and every identifier.
#[derive(Default)]
struct Seen {
    rooms: Vec<String>,
    words: Vec<String>,
}

impl Seen {
    fn walk(&mut self, tokens: TokenStream, module: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if let Some(inner) = inline_module(&tokens[at..]) {
                self.walk(inner.1, &[module, &[inner.0]].concat());
                at += 3;
                continue;
            }
            at += self.path(&tokens[at..], module);
        }
    }

    /// Reads a `crate::` or `super::` path, or one token; returns how many tokens it took.
    fn path(&mut self, tokens: &[TokenTree], module: &[String]) -> usize {
        let (mut base, mut at): (Vec<String>, usize) = match word(&tokens[0]).as_deref() {
            Some("crate" | "headroom") if is_colons(&tokens[1..]) => (Vec::new(), 3),
            Some("super") if is_colons(&tokens[1..]) => (module[..module.len() - 1].to_vec(), 3),
            Some(other) => {
                self.words.push(other.to_owned());
                return 1;
            }
            None => {
                if let TokenTree::Group(group) = &tokens[0] {
                    self.walk(group.stream(), module);
                }
                return 1;
            }
        };
        while at < tokens.len() && word(&tokens[at]).as_deref() == Some("super") {
            base.pop();
            at += 3;
        }
        if let Some(room) = base.first() {
            self.rooms.push(room.clone());
            return at;
        }
        match tokens.get(at) {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                self.rooms.extend(heads(group.stream()));
                self.walk(group.stream(), module);
                at + 1
            }
            Some(token) => {
                self.rooms.extend(word(token).filter(|name| layer(name).is_some()));
                at
            }
            None => at,
        }
    }
}

/// The first identifier of each branch of a use group.
fn heads(group: TokenStream) -> Vec<String> {
    let mut found = Vec::new();
    let mut at_head = true;
    for token in group {
        match &token {
            TokenTree::Ident(name) if at_head => {
                found.push(name.to_string());
                at_head = false;
            }
            TokenTree::Punct(punct) if punct.as_char() == ',' => at_head = true,
            _ => {}
        }
    }
    found
}

fn inline_module(tokens: &[TokenTree]) -> Option<(String, TokenStream)> {
    match tokens {
        [TokenTree::Ident(keyword), TokenTree::Ident(name), TokenTree::Group(body), ..]
            if keyword == "mod" =>
        {
            Some((name.to_string(), body.stream()))
        }
        _ => None,
    }
}

fn word(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(name) => Some(name.to_string()),
        _ => None,
    }
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    let colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    colon(tokens.first()) && colon(tokens.get(1))
}
