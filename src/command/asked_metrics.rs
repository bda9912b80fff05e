//! For tests: the metrics that a text of PromQL asks for, held against the catalogues.
//!
//! In: an expression, or a text with some in it. Out: its words that are names of ours. Never: a name of another program.

use crate::signals::catalogue::FamilyKind;
use crate::{adapter, signals};

const PREFIXES: [&str; 7] =
    ["headroom_", "tokio_", "process_", "cgroup_", "http_", "heap_", "pressure_"];

/// Names of metrics that are ours, and of series that rules record from them.
pub(super) fn in_text(text: &str) -> impl Iterator<Item = &str> {
    let is_name =
        |character: char| character.is_ascii_alphanumeric() || character == '_' || character == ':';
    let is_ours = |word: &&str| {
        PREFIXES.iter().any(|prefix| word.starts_with(prefix)) || word.contains("headroom_")
    };
    text.split(move |character| !is_name(character)).filter(is_ours)
}

/// Whether a catalogue has the metric.
pub(super) fn is_known(name: &str) -> bool {
    kind_of(name).is_some()
}

/// Whether it is a series of a histogram that a catalogue has.
pub(super) fn is_of_a_histogram(name: &str) -> bool {
    let family = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
    family.and_then(kind_of) == Some(FamilyKind::Histogram)
}

fn kind_of(name: &str) -> Option<FamilyKind> {
    let own = adapter::catalogue::own_family(name).map(|family| family.kind);
    let signal = || signals::CATALOGUE.iter().find(|family| family.name == name);
    own.or_else(|| signal().map(|family| family.kind))
}
