//! `/debug/headroom/config`: what is in effect, who said so, and what is wrong with the file.
//!
//! In: the state of a [`super::Live`]. Out: plain text. Never: a secret; the table has no key that holds one, only files that do.

use std::fmt::Write as _;

use super::layers::{Origin, Setting};

/// Where the page is.
pub const PAGE_PATH: &str = "/debug/headroom/config";

/// What the page shows.
pub(super) struct Page<'a> {
    pub(super) settings: &'a [Setting],
    pub(super) file: Option<String>,
    /// Why the file as it is now is not in effect.
    pub(super) problem: Option<String>,
    /// Keys whose new value waits for a start, with that value.
    pub(super) waiting: &'a [(&'static str, String)],
}

impl Page<'_> {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = match (&self.file, &self.problem) {
            (None, _) => writeln!(text, "no file; --config or HEADROOM_CONFIG names one"),
            (Some(file), None) => writeln!(text, "{file} is in effect"),
            (Some(file), Some(problem)) => {
                writeln!(text, "{file} is NOT in effect; the last good one stays\n{problem}")
            }
        };
        for (path, value) in self.waiting {
            let _ = writeln!(text, "{path}: {value} takes effect at the next start");
        }
        text.push('\n');
        for setting in self.settings {
            let value = setting.text.as_deref().unwrap_or("(not set)");
            let origin = match &setting.origin {
                Origin::Default => "default".to_owned(),
                Origin::File { line } => format!("file, line {line}"),
                Origin::Environment(name) => (*name).to_owned(),
                Origin::Flag => "flag".to_owned(),
            };
            let _ = writeln!(text, "{:<36} {value:<40} {origin}", setting.key.path);
        }
        text
    }
}
