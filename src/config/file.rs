//! The YAML file: a tree of keys becomes entries of the table.
//!
//! In: text. Out: every entry with its line, and every problem of the tree. Never: an unknown key that passes, and never a stop
//! at the first problem, unless the text is no YAML.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::CaptureRule;
use super::keys::{KEYS, Key, Kind, RULE_SIGNALS, key};
use super::value::{self, Value};
use crate::quantity::Quantity;

/// Between two captures of one rule, unless it says otherwise.
const DEFAULT_COOLDOWN: std::time::Duration = std::time::Duration::from_secs(300);

/// One key that the file sets.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: &'static Key,
    pub(super) line: u64,
    pub(super) text: String,
    pub(super) value: Value,
}

/// One problem of the file.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) line: Option<u64>,
    pub(super) path: String,
    pub(super) message: String,
}

/// Reads a whole file.
pub(super) fn read(text: &str) -> (Vec<Entry>, Vec<Fault>) {
    let mut reader = Reader::default();
    match serde_saphyr::from_str::<Option<Spanned<Node>>>(text) {
        Ok(None) => {}
        Ok(Some(root)) => reader.section("", &root),
        Err(error) => {
            let error = error.without_snippet();
            let line = error.location().map(|location| location.line());
            reader.faults.push(Fault { line, path: String::new(), message: one_line(error) });
        }
    }
    (reader.entries, reader.faults)
}

/// Reads the YAML of a list in an environment variable.
pub(super) fn read_rules(text: &str) -> Result<Vec<CaptureRule>, String> {
    let node: Spanned<Node> =
        serde_saphyr::from_str(text).map_err(|error| one_line(error.without_snippet()))?;
    let (rules, faults) = rules("", &node);
    let sentence = |fault: &Fault| format!("{}: {}", fault.path, fault.message);
    if faults.is_empty() {
        Ok(rules)
    } else {
        Err(faults.iter().map(sentence).collect::<Vec<_>>().join("; "))
    }
}

fn one_line(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    format!("not YAML that is understood: {first}")
}

#[derive(Default)]
struct Reader {
    entries: Vec<Entry>,
    faults: Vec<Fault>,
}

impl Reader {
    /// `path` is empty or the prefix of keys.
    fn section(&mut self, path: &str, node: &Spanned<Node>) {
        let line = node.referenced.line();
        match &node.value {
            Node::Null => {}
            Node::Map(pairs) => {
                for (name, child) in pairs {
                    self.child(path, name, child);
                }
            }
            Node::Scalar(_) | Node::List(_) => {
                let message = "must be a map of keys".to_owned();
                self.faults.push(Fault { line: Some(line), path: path.to_owned(), message });
            }
        }
    }

    fn child(&mut self, parent: &str, name: &Spanned<String>, node: &Spanned<Node>) {
        let path =
            if parent.is_empty() { name.value.clone() } else { format!("{parent}.{}", name.value) };
        let line = name.referenced.line();
        if name.value.contains('.') {
            // It would be a second name of a key that may be there under its first.
            let message = "a name has no dots; write a map in a map".to_owned();
            self.faults.push(Fault { line: Some(line), path, message });
        } else if let Some(key) = key(&path) {
            self.leaf(key, line, node);
        } else if KEYS
            .iter()
            .any(|key| key.path.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.')))
        {
            self.section(&path, node);
        } else {
            let message = unknown(&path, parent);
            self.faults.push(Fault { line: Some(line), path, message });
        }
    }

    fn leaf(&mut self, key: &'static Key, line: u64, node: &Spanned<Node>) {
        let fault = |message| Fault { line: Some(line), path: key.path.to_owned(), message };
        let (text, value) = match (&node.value, key.kind) {
            // As if the key were not there: the default stays.
            (Node::Null, _) => return,
            (Node::List(items), Kind::Rules) => {
                let (rules, mut faults) = rules(key.path, node);
                self.faults.append(&mut faults);
                (format!("{} rules", items.len()), Ok(Value::Rules(rules)))
            }
            (Node::Scalar(text), kind) => (text.clone(), value::parse(kind, text)),
            (Node::Map(_) | Node::List(_), kind) => {
                (String::new(), Err(format!("must be one value: {}", kind.form())))
            }
        };
        match value {
            Ok(value) => self.entries.push(Entry { key, line, text, value }),
            Err(message) => self.faults.push(fault(message)),
        }
    }
}

/// Says that a key is unknown, and which one may be meant.
fn unknown(path: &str, parent: &str) -> String {
    match nearest(path, parent) {
        Some(meant) => format!("unknown key; did you mean {meant}?"),
        None => "unknown key".to_owned(),
    }
}

/// The key or section most like `path`: of the same parent if one is near, else of any.
fn nearest(path: &str, parent: &str) -> Option<String> {
    let prefixes = KEYS.iter().flat_map(|key| {
        let dots = key.path.match_indices('.').map(|(at, _)| &key.path[..at]);
        dots.chain([key.path])
    });
    let near = |candidate: &&str| {
        let same_parent = candidate.rsplit_once('.').map_or("", |(parent, _)| parent) == parent;
        let likeness = strsim::jaro_winkler(
            &last(path).to_ascii_lowercase(),
            &last(candidate).to_ascii_lowercase(),
        );
        let likeness = if same_parent { likeness + 0.05 } else { likeness };
        (likeness, (*candidate).to_owned())
    };
    let best = prefixes.collect::<std::collections::BTreeSet<_>>();
    let best = best.iter().map(near).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.85).then_some(best.1)
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Reads the rules of a list, and what is wrong with each.
fn rules(path: &str, node: &Spanned<Node>) -> (Vec<CaptureRule>, Vec<Fault>) {
    let line = node.referenced.line();
    let Node::List(items) = &node.value else {
        let message = "must be a list of {signal, above, cooldown}".to_owned();
        return (Vec::new(), vec![Fault { line: Some(line), path: path.to_owned(), message }]);
    };
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for (index, item) in items.iter().enumerate() {
        match rule(&format!("{path}[{index}]"), item) {
            Ok(rule) => found.push(rule),
            Err(mut wrong) => faults.append(&mut wrong),
        }
    }
    (found, faults)
}

fn rule(path: &str, item: &Spanned<Node>) -> Result<CaptureRule, Vec<Fault>> {
    let line = item.referenced.line();
    let fault = |line, path: &str, message: String| Fault {
        line: Some(line),
        path: path.to_owned(),
        message,
    };
    let Node::Map(pairs) = &item.value else {
        return Err(vec![fault(line, path, "must be {signal, above, cooldown}".to_owned())]);
    };
    let (mut signal, mut above, mut cooldown) = (None, None, DEFAULT_COOLDOWN);
    let mut faults = Vec::new();
    for (name, value) in pairs {
        let at = name.referenced.line();
        let path = format!("{path}.{}", name.value);
        let text = match &value.value {
            Node::Scalar(text) => text.as_str(),
            _ => "",
        };
        match name.value.as_str() {
            "signal" if RULE_SIGNALS.contains(&text) => signal = Some(text.to_owned()),
            "signal" => {
                let known = RULE_SIGNALS.join(", ");
                let message = format!("{text:?} is not among what a rule can be about: {known}");
                faults.push(fault(at, &path, message));
            }
            "above" => match text.parse::<Quantity>() {
                Ok(number) => above = Some(number.to_f64()),
                Err(error) => faults.push(fault(at, &path, error.to_string())),
            },
            "cooldown" => match value::duration(text) {
                Ok(duration) => cooldown = duration,
                Err(why) => faults.push(fault(at, &path, why)),
            },
            _ => faults.push(fault(
                at,
                &path,
                "unknown key; a rule has signal, above and cooldown".to_owned(),
            )),
        }
    }
    for (name, missing) in [("signal", signal.is_none()), ("above", above.is_none())] {
        let said = pairs.iter().any(|(said, _)| said.value == name);
        if missing && !said {
            faults.push(fault(line, path, format!("{name} is missing")));
        }
    }
    match (signal, above) {
        (Some(signal), Some(above)) if faults.is_empty() => {
            Ok(CaptureRule { signal, above, cooldown })
        }
        _ => Err(faults),
    }
}

/// A YAML value; scalars as text, whatever YAML takes them for.
#[derive(Debug)]
enum Node {
    Null,
    Scalar(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(pair) = pairs.next_entry()? {
            map.push(pair);
        }
        Ok(Node::Map(map))
    }
}
