//! The table of keys as `docs/configuration.md` shows it.
//!
//! In: [`KEYS`]. Out: the whole document. Never: a key that the document lacks; a test compares the file with this text.

use std::fmt::Write as _;

use super::keys::{Change, KEYS, Kind, Program};

const INTRODUCTION: &str = "# Configuration

<!-- Written from the table in src/config/keys.rs: HEADROOM_UPDATE_DOCS=1 cargo test --lib config:: -->

`headroom agent` (the sidecar) and `headroom adapter` read the same file, each its own section. The file is YAML; give its path
with `--config` or `HEADROOM_CONFIG`. In a cluster it is a ConfigMap mounted as a directory (not with `subPath`, which is never
updated).

For each key the first that speaks wins: a flag of the command line, the environment variable (an empty one does not speak),
the file, the default. Unknown keys are refused, with the one that may be meant; all problems are reported at once, with file,
line and key. A duration has a unit (`250ms`, `5s`, `1m`, `1h`), bytes are a Kubernetes quantity (`4Mi`, `200k`).

The file is read every second, and a change is taken over once two readings in a row agree: that holds for the swap of a
ConfigMap's symbolic link, for a file edited in place and on file systems without change events, and no half-written file is
ever used. Keys marked *hot* take effect at once, the others at the next start (the difference is logged and shown). A file with a
problem changes nothing: the last good one stays in effect, `headroom_config_reload_success` is 0, the log says why once, and
`/debug/headroom/config` shows the problem, every value in effect and where it came from.

| metric | what it says |
|---|---|
| `headroom_config_reload_success` | 1 if the file as it is now is in effect, 0 if it has a problem |
| `headroom_config_last_reload_success_timestamp_seconds` | when a configuration was last taken over |
| `headroom_config_reloads_total{outcome}` | changes of the file that were `applied` or `refused` |
";

/// The whole document.
#[must_use]
pub fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (program, title) in [
        (Program::Agent, "The sidecar: section `agent`"),
        (Program::Adapter, "The adapter: section `adapter`"),
    ] {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n## {title}\n\n| key | environment | default | form | change | meaning |\n|---|---|---|---|---|---|\n"
        );
        for key in KEYS.iter().filter(|key| key.program() == program) {
            let env: Vec<_> = key.env.iter().map(|name| format!("`{name}`")).collect();
            let default = key.default.map_or("not set".to_owned(), |text| format!("`{text}`"));
            let change = match key.change {
                Change::Hot => "hot",
                Change::Restart => "restart",
            };
            let _ = writeln!(
                text,
                "| `{}` | {} | {default} | {} | {change} | {} |",
                key.path,
                env.join(", "),
                form(key.kind),
                key.meaning
            );
        }
    }
    text
}

/// The form with the range that is accepted.
fn form(kind: Kind) -> String {
    match kind {
        Kind::Duration { min, max } => format!("duration, {min:?} to {max:?}"),
        Kind::Bytes { min, max } => format!("bytes, {} to {}", binary(min), binary(max)),
        Kind::Count { min, max } => format!("number, {min} to {max}"),
        Kind::Choice(words) => {
            words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
        }
        kind => kind.form().to_owned(),
    }
}

fn binary(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        bytes if bytes % (1 << 20) == 0 => format!("{}Mi", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{}Ki", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held_docs;

    #[test]
    fn the_document_is_the_table() {
        held_docs::hold("docs/configuration.md", &markdown(), "config::");
    }
}
