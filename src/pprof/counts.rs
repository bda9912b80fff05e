//! Profiles that count things by name: tasks, threads. There is nothing to look up, so their frames have no address.
//!
//! In: groups of equal frames and labels, with values. Out: a gzipped profile or the text that `debug=1` asks for. Never: a
//! group of which all values are zero.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::Service;
use super::profile::{Meaning, ProfileBuilder};
use super::symbols::{Detail, Function};
use crate::time::{Timestamp, wall_now};

/// What is counted together.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    /// Innermost first.
    pub frames: Vec<Function>,
    /// Names and texts.
    pub labels: Vec<(&'static str, String)>,
    /// For the text, which has an address for each group; 0 if there is none.
    pub address: u64,
}

/// How many of what, at one time. The first value is the number, the others add to it.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    taken: Timestamp,
    groups: BTreeMap<Group, Vec<i64>>,
}

impl Counts {
    /// Nothing, as of now.
    pub(super) fn now() -> Self {
        Self { taken: wall_now(), groups: BTreeMap::new() }
    }

    /// Adds to a group.
    pub(super) fn add(&mut self, group: Group, values: &[i64]) {
        let sums = self.groups.entry(group).or_insert_with(|| vec![0; values.len()]);
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = sum.saturating_add(*value);
        }
    }

    /// The first values of all groups together.
    pub(super) fn total(&self) -> i64 {
        self.groups.values().filter_map(|values| values.first()).sum()
    }

    /// The profile, of each group's values the first `meaning.samples.len()`. With an earlier one: of what changed since.
    pub(super) fn encode(
        mut self,
        service: &Service,
        meaning: &Meaning,
        before: Option<Self>,
    ) -> Vec<u8> {
        let mut profile = ProfileBuilder::new(service, meaning, Detail::Functions);
        profile.needs_no_symbols();
        let duration = before.as_ref().map_or(Duration::ZERO, |old| self.taken.since(old.taken));
        profile.covers(self.taken, duration);
        for (group, values) in before.into_iter().flat_map(|before| before.groups) {
            let negative: Vec<_> = values.iter().map(|value| value.saturating_neg()).collect();
            self.add(group, &negative);
        }
        for (group, mut values) in self.groups {
            values.resize(meaning.samples.len(), 0);
            if values.iter().any(|value| *value != 0) {
                profile.named_sample(&group.frames, values);
                for (key, text) in &group.labels {
                    profile.label(key, text);
                }
            }
        }
        profile.finish()
    }

    /// The text of Go's count profiles: the largest group first.
    pub(super) fn text(&self, name: &str) -> String {
        let mut text = format!("{name} profile: total {}\n", self.total());
        let count = |values: &[i64]| values.first().copied().unwrap_or(0);
        let mut groups: Vec<_> =
            self.groups.iter().filter(|(_, values)| count(values) != 0).collect();
        groups.sort_by_key(|(_, values)| std::cmp::Reverse(count(values)));
        for (group, values) in groups {
            // Writing to a String does not fail.
            let _ = write!(text, "{} @", count(values));
            if group.address != 0 {
                let _ = write!(text, " {:#x}", group.address);
            }
            let labels: Vec<_> = group
                .labels
                .iter()
                .filter(|(_, text)| !text.is_empty())
                .map(|(key, text)| format!("{key:?}:{text:?}"))
                .collect();
            if !labels.is_empty() {
                let _ = write!(text, "\n# labels: {{{}}}", labels.join(", "));
            }
            text.push('\n');
            for frame in &group.frames {
                let _ = write!(text, "#\t{:#x}\t{}", group.address, frame.name);
                if !frame.file.is_empty() {
                    let _ = write!(text, "\t{}:{}", frame.file, frame.line);
                }
                text.push('\n');
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, state: &str) -> Group {
        let frame = Function {
            name: name.to_owned(),
            system_name: name.to_owned(),
            file: "src/main.rs".to_owned(),
            line: 7,
        };
        Group { frames: vec![frame], labels: vec![("state", state.to_owned())], address: 0x10 }
    }

    #[test]
    fn the_text_is_gos_with_the_largest_group_first() {
        let mut counts = Counts::now();
        counts.add(group("one", ""), &[1, 5]);
        counts.add(group("two", "idle"), &[1, 5]);
        counts.add(group("two", "idle"), &[1, 5]);
        counts.add(group("gone", "ended"), &[0, 5]);
        assert_eq!(
            counts.text("tasks"),
            "tasks profile: total 3\n\
             2 @ 0x10\n# labels: {\"state\":\"idle\"}\n#\t0x10\ttwo\tsrc/main.rs:7\n\n\
             1 @ 0x10\n#\t0x10\tone\tsrc/main.rs:7\n\n"
        );
    }
}
