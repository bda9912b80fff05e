//! The threads of this process, by name: profile `threadcreate`.
//!
//! In: `/proc/self/task`. Out: how many threads of each name are alive. Never: who created them: Linux does not keep that.
//! Go counts every thread ever created; these are the ones there are.

use super::counts::{Counts, Group};
use super::profile::Meaning;
use super::sampler::{thread_name, threads_of_process};
use super::symbols::Function;

/// As Go's.
pub(super) const MEANING: Meaning = Meaning {
    samples: &[("threadcreate", "count")],
    period_type: ("threadcreate", "count"),
    period: 1,
    default_sample: "",
};

/// The live threads. A thread without a readable name counts as `?`.
pub(super) fn counts() -> Counts {
    let mut counts = Counts::now();
    for thread in threads_of_process() {
        let name = match thread_name(thread) {
            unreadable if unreadable.is_empty() => "?".to_owned(),
            name => name,
        };
        let frame =
            Function { name: name.clone(), system_name: name, file: String::new(), line: 0 };
        counts.add(Group { frames: vec![frame], ..Group::default() }, &[1]);
    }
    counts
}
