//! The profile `block`: stacks of polls that held a worker of tokio for over 100 ms.
//!
//! In: the holds that a [`Watcher`] saw. Out: how often and how long each stack held a worker, since the start of the
//! process, in Go's sample types. Never: a hold that was guessed: two questions to the worker's thread found the same
//! task in it. What could not be asked is counted.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Service;
use super::labels::Labels;
use super::profile::{Meaning, ProfileBuilder, Tags};
use super::symbols::{Detail, Symbolizer};
use crate::time::{Timestamp, wall_now};

mod watcher;

pub use watcher::Watcher;

/// Different stacks kept; holds of others are counted.
const MAX_STACKS: usize = 1_024;
/// Stacks that are kept apart by trace; later ones have no trace.
const MAX_TRACED_STACKS: usize = MAX_STACKS / 2;

const MEANING: Meaning = Meaning {
    samples: &[("contentions", "count"), ("delay", "nanoseconds")],
    period_type: ("contentions", "count"),
    period: 1,
    default_sample: "delay",
};

/// Where a worker was held, and on whose behalf.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    labels: Labels,
    /// The interrupted instruction, then return addresses.
    frames: Arc<[usize]>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    count: u64,
    delay: Duration,
}

/// All holds up to a moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockSnapshot {
    at: Timestamp,
    places: HashMap<Place, Held>,
    /// Holds whose stack is not among the places: the thread was not found, or there was no room.
    unplaced: u64,
    /// Times that a worker published nothing for as long, and was found in different polls.
    several: u64,
}

static HOLDS: Mutex<Option<BlockSnapshot>> = Mutex::new(None);

/// All holds since the start of the process; those that last, with what they have lasted so far.
pub(crate) fn snapshot() -> BlockSnapshot {
    let holds = HOLDS.lock().clone().unwrap_or_default();
    BlockSnapshot { at: wall_now(), ..holds }
}

impl BlockSnapshot {
    /// How many holds there were.
    pub(super) fn count(&self) -> u64 {
        self.places.values().map(|held| held.count).sum()
    }

    /// What came after `before`. A hold that lasts over both counts with its delay alone.
    fn since(mut self, before: &Self) -> Self {
        for (place, earlier) in &before.places {
            if let Some(held) = self.places.get_mut(place) {
                held.count -= earlier.count.min(held.count);
                held.delay = held.delay.saturating_sub(earlier.delay);
            }
        }
        self.places.retain(|_, held| *held != Held::default());
        self.unplaced = self.unplaced.saturating_sub(before.unplaced);
        self.several = self.several.saturating_sub(before.several);
        self
    }

    /// Adds a hold, and says where it is kept.
    fn begin(&mut self, mut labels: Labels, frames: Arc<[usize]>) -> Option<Place> {
        if self.places.len() >= MAX_TRACED_STACKS {
            labels.trace = 0;
        }
        let place = Place { labels, frames };
        if self.places.len() >= MAX_STACKS && !self.places.contains_key(&place) {
            self.unplaced += 1;
            return None;
        }
        self.places.entry(place.clone()).or_default().count += 1;
        Some(place)
    }

    fn extend(&mut self, place: &Place, delay: Duration) {
        if let Some(held) = self.places.get_mut(place) {
            held.delay = held.delay.saturating_add(delay);
        }
    }

    fn longest_first(&self) -> Vec<(&Place, &Held)> {
        let mut places: Vec<_> = self.places.iter().collect();
        places.sort_by_key(|(_, held)| Reverse(held.delay));
        places
    }
}

/// Changes the holds of the process.
fn change<T>(change: impl FnOnce(&mut BlockSnapshot) -> T) -> T {
    change(HOLDS.lock().get_or_insert_default())
}

/// The profile of one snapshot or, with an earlier one, of what came since. Looks up symbols: blocks, with lines for up
/// to seconds.
pub(super) fn encode(
    service: &Service,
    detail: Detail,
    now: BlockSnapshot,
    before: Option<BlockSnapshot>,
) -> Vec<u8> {
    let mut profile = ProfileBuilder::new(service, &MEANING, detail);
    let start = before.as_ref().map_or(now.at, |before| before.at);
    profile.covers(start, now.at.since(start));
    let holds = match &before {
        Some(before) => now.since(before),
        None => now,
    };
    if holds.unplaced > 0 {
        profile.comment(&format!("polls over 100 ms without a stack: {}", holds.unplaced));
    }
    if holds.several > 0 {
        profile.comment(&format!("times over 100 ms that several polls shared: {}", holds.several));
    }
    for (Place { labels, frames }, held) in holds.longest_first() {
        let addresses: Vec<u64> = frames.iter().enumerate().map(super::cpu::address).collect();
        let number = |number: u128| i64::try_from(number).unwrap_or(i64::MAX);
        let values = vec![number(held.count.into()), number(held.delay.as_nanos())];
        let (endpoint, task, trace) = labels.texts();
        let texts = [("endpoint", &*endpoint), ("task", &*task), ("trace_id", &*trace)];
        profile.tagged_sample(&addresses, values, &Tags { texts: &texts, numbers: &[] });
    }
    profile.finish()
}

/// As Go's `debug=1`: per stack the delay in nanoseconds, the count and the addresses, then a line for each function.
pub(crate) fn text(holds: &BlockSnapshot) -> String {
    let mut symbols = Symbolizer::new(Detail::Functions);
    let mut text = "--- contention:\ncycles/second=1000000000\n".to_owned();
    for (place, held) in holds.longest_first() {
        let _ = write!(text, "{} {} @", held.delay.as_nanos(), held.count);
        for frame in &*place.frames {
            let _ = write!(text, " {frame:#x}");
        }
        text.push('\n');
        let (endpoint, task, _) = place.labels.texts();
        if !endpoint.is_empty() || !task.is_empty() {
            let _ = writeln!(text, "#\tendpoint={endpoint:?} task={task:?}");
        }
        for address in place.frames.iter().enumerate().map(super::cpu::address) {
            let name = symbols.compiled_function(address).map(|(name, _)| name);
            let _ = writeln!(text, "#\t{address:#x}\t{}", name.as_deref().unwrap_or("?"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use pprof::protos::{Message, Profile};

    use super::*;

    const LONG: Duration = Duration::from_millis(150);

    #[test]
    fn a_difference_holds_what_came_since_and_what_lasted() {
        let mut before = BlockSnapshot::default();
        let lasting = before.begin(Labels::NONE, Arc::from([1])).expect("room");
        before.extend(&lasting, LONG);
        let over = before.begin(Labels::NONE, Arc::from([2])).expect("room");
        before.extend(&over, LONG);
        let mut now = before.clone();
        now.extend(&lasting, LONG);
        let new = now.begin(Labels::NONE, Arc::from([3])).expect("room");
        now.extend(&new, LONG * 2);
        now.unplaced = 1;
        assert_eq!(now.count(), 3);

        let since = now.since(&before);
        let expected = HashMap::from([
            (lasting, Held { count: 0, delay: LONG }),
            (new, Held { count: 1, delay: LONG * 2 }),
        ]);
        assert_eq!((since.places, since.unplaced), (expected, 1));
    }

    #[test]
    fn the_profile_has_go_s_sample_types_and_says_what_has_no_stack() {
        let mut holds = BlockSnapshot { at: Timestamp::from_millis(9_000), ..Default::default() };
        let place = holds.begin(Labels { trace: 0xabc, ..Labels::NONE }, Arc::from([1, 2]));
        holds.extend(&place.expect("room"), LONG);
        holds.unplaced = 3;
        holds.several = 4;
        let before = BlockSnapshot { at: Timestamp::from_millis(7_000), ..Default::default() };
        let service = Service { name: "shop".to_owned(), version: String::new() };
        let gzipped = encode(&service, Detail::Functions, holds, Some(before));
        let mut bytes = Vec::new();
        GzDecoder::new(gzipped.as_slice()).read_to_end(&mut bytes).expect("gzip");
        let profile = Profile::decode(bytes.as_slice()).expect("profile.proto");

        let text = |index: i64| &*profile.string_table[usize::try_from(index).expect("an index")];
        let kinds: Vec<_> =
            profile.sample_type.iter().map(|kind| (text(kind.ty), text(kind.unit))).collect();
        assert_eq!(kinds, [("contentions", "count"), ("delay", "nanoseconds")]);
        assert_eq!((profile.time_nanos, profile.duration_nanos), (7_000_000_000, 2_000_000_000));
        assert_eq!(profile.sample.len(), 1);
        let sample = &profile.sample[0];
        assert_eq!(
            (sample.value.as_slice(), sample.location_id.len()),
            ([1, 150_000_000].as_slice(), 2)
        );
        let tags: Vec<_> =
            sample.label.iter().map(|label| (text(label.key), text(label.str))).collect();
        assert_eq!(tags, [("trace_id", "00000000000000000000000000000abc")]);
        let has = |comment| profile.comment.iter().any(|found| text(*found) == comment);
        assert!(has("polls over 100 ms without a stack: 3"));
        assert!(has("times over 100 ms that several polls shared: 4"));
    }

    #[test]
    fn traces_are_left_out_before_stacks_and_both_are_bounded() {
        let mut holds = BlockSnapshot::default();
        let traced = |trace| Labels { trace, ..Labels::NONE };
        for frame in 0..MAX_STACKS {
            let place = holds.begin(traced(9), Arc::from([frame])).expect("room");
            assert_eq!(place.labels.trace == 0, frame >= MAX_TRACED_STACKS);
        }
        assert_eq!(holds.begin(traced(9), Arc::from([MAX_STACKS])), None);
        assert_eq!(holds.unplaced, 1);
        assert!(holds.begin(traced(9), Arc::from([MAX_STACKS - 1])).is_some());
    }

    #[test]
    fn the_text_form_names_delay_count_and_functions() {
        let mut holds = BlockSnapshot::default();
        let here = text as fn(&BlockSnapshot) -> String as usize;
        let labels =
            Labels { endpoint: super::super::labels::Name::of("GET /slow"), ..Labels::NONE };
        let place = holds.begin(labels, Arc::from([here])).expect("room");
        holds.extend(&place, LONG);
        let text = text(&holds);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["--- contention:", "cycles/second=1000000000"]);
        assert_eq!(lines[2], format!("150000000 1 @ {here:#x}"));
        assert_eq!(lines[3], "#\tendpoint=\"GET /slow\" task=\"\"");
        assert!(lines[4].ends_with("block::text"), "{}", lines[4]);
    }
}
