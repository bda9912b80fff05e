//! Heap profiles: which stacks hold memory now, and which allocated it since the start.
//!
//! In: jemalloc's sampled dump in its `heap_v2` text, through a memory file (no disk needed). Out: a gzipped profile
//! with estimates of the whole, not of the sample. Never: a zero for what jemalloc does not count.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt::Write;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::labels::Labels;
use super::profile::{Meaning, ProfileBuilder};
use super::symbols::{Detail, Function, Symbolizer};
use super::{CaptureError, Service, sys};
use crate::time::{Timestamp, wall_now};

#[expect(unsafe_code, reason = "mallctl names have types that only their documentation tells")]
mod control;
mod labelled;

use labelled::{Group, Known};

/// How samples are taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sampling {
    /// Whether any are.
    pub active: bool,
    /// Bytes allocated between two samples, on average.
    pub interval_bytes: u64,
}

impl Sampling {
    /// The settings of jemalloc.
    ///
    /// # Errors
    /// As [`dump`]; [`CaptureError::Control`] if jemalloc refuses.
    pub(super) fn read() -> Result<Self, CaptureError> {
        can_profile()?;
        let lg_interval = control::lg_interval().map_err(CaptureError::Control)?;
        let active = sys::heap_profiling_active().map_err(CaptureError::Control)?;
        let interval_bytes = u32::try_from(lg_interval).ok().and_then(|lg| 1_u64.checked_shl(lg));
        Ok(Self { active, interval_bytes: interval_bytes.unwrap_or(u64::MAX) })
    }

    /// Changes what is given, and says what holds now. A new interval forgets all samples.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn change(
        active: Option<bool>,
        interval_bytes: Option<u64>,
    ) -> Result<Self, CaptureError> {
        let present = Self::read()?;
        if let Some(bytes) = interval_bytes.filter(|bytes| *bytes != present.interval_bytes) {
            control::reset(bytes.ilog2()).map_err(CaptureError::Control)?;
            labelled::forget();
        }
        if let Some(active) = active {
            control::set_active(active).map_err(CaptureError::Control)?;
        }
        let now = Self::read()?;
        tracing::info!(
            active = now.active,
            interval_bytes = now.interval_bytes,
            "heap sampling was changed"
        );
        Ok(now)
    }
}

/// Has samples from now on carry the labels of the thread that allocates. Nothing where jemalloc does not profile.
pub(super) fn start_labelling() {
    if can_profile().is_ok()
        && let Err(error) = control::install_hooks()
    {
        tracing::warn!(%error, "heap samples have no labels: jemalloc takes no hooks");
    }
}

/// Which of the two profiles; they hold the same samples and differ in what is shown first, as in Go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeapView {
    /// Live objects first.
    InUse,
    /// All allocations first.
    Allocated,
}

/// Objects and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    objects: i64,
    bytes: i64,
}

/// What is estimated of one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    allocated: Tally,
    in_use: Tally,
}

/// What is told apart: stacks (addresses inside the calls, leaf first), and endpoint and task of the allocating thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Origin {
    stack: Vec<u64>,
    labels: Labels,
}

/// A stack as jemalloc sampled it: live and all objects.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sampled {
    stack: Vec<u64>,
    live: Tally,
    all: Tally,
}

/// jemalloc's profile at one time: estimates of the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeapSnapshot {
    taken: Timestamp,
    sample_interval_bytes: u64,
    origins: HashMap<Origin, Usage>,
    /// As it stood in the dump, without labels.
    sampled: Vec<Sampled>,
    /// Sampled objects whose labels found no room.
    unlabelled: u64,
}

/// Takes jemalloc's profile, as its text. Blocks for about a millisecond.
///
/// # Errors
/// Says what to do where jemalloc is not the allocator or was started without profiling.
fn dump(view: HeapView) -> Result<String, CaptureError> {
    can_profile()?;
    if view == HeapView::Allocated && !sys::heap_profiling_accumulates().unwrap_or(false) {
        return Err(CaptureError::NotAccumulated);
    }
    let mut file = sys::memory_file(c"headroom-heap").map_err(CaptureError::MemoryFile)?;
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .expect("a path of digits holds no NUL");
    sys::dump_heap_profile(&path).map_err(CaptureError::Dump)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(CaptureError::MemoryFile)?;
    Ok(text)
}

fn can_profile() -> Result<(), CaptureError> {
    if !jemalloc_is_global() {
        return Err(CaptureError::NotJemalloc);
    }
    match tikv_jemalloc_ctl::profiling::prof::read() {
        Ok(true) => Ok(()),
        _ => Err(CaptureError::HeapProfilingOff),
    }
}

/// Takes and reads jemalloc's profile.
///
/// # Errors
/// As [`dump`], and [`CaptureError::MalformedDump`].
pub(super) fn snapshot(view: HeapView) -> Result<HeapSnapshot, CaptureError> {
    // Before the dump, which then holds all that is known here.
    let known = labelled::known();
    let text = dump(view)?;
    HeapSnapshot::parse(&text, wall_now(), &known)
}

/// The profile of one snapshot or, with an earlier one, of what changed since. Looks up symbols: blocks, with lines
/// for up to seconds.
pub(super) fn encode(
    service: &Service,
    view: HeapView,
    detail: Detail,
    now: HeapSnapshot,
    before: Option<HeapSnapshot>,
) -> Vec<u8> {
    let meaning = Meaning {
        samples: &[
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
        ],
        period_type: ("space", "bytes"),
        period: i64::try_from(now.sample_interval_bytes).unwrap_or(i64::MAX),
        default_sample: match view {
            HeapView::InUse => "inuse_space",
            HeapView::Allocated => "alloc_space",
        },
    };
    let mut profile = ProfileBuilder::new(service, &meaning, detail);
    if !sys::heap_profiling_active().unwrap_or(false) {
        profile.comment("sampling is off now (prof.active): newer allocations are missing");
    }
    if !sys::heap_profiling_accumulates().unwrap_or(false) {
        profile.comment("jemalloc started without prof_accum: alloc_* values are unknown");
    }
    match &before {
        Some(before) => profile.covers(now.taken, now.taken.since(before.taken)),
        None => profile.covers(now.taken, Duration::ZERO),
    }
    if now.unlabelled > 0 {
        profile.comment(&format!("sampled objects without their labels: {}", now.unlabelled));
    }
    for (Origin { stack, labels }, usage) in now.since(before) {
        let values = vec![
            usage.allocated.objects,
            usage.allocated.bytes,
            usage.in_use.objects,
            usage.in_use.bytes,
        ];
        profile.sample(&stack, values, is_allocator);
        profile.label("endpoint", &labels.endpoint.text());
        profile.label("task", &labels.task.text());
        profile.number("bytes", usage.object_bytes(), "bytes");
    }
    profile.finish()
}

/// Reads `text` as jemalloc's dump, without labels and with some for every stack. For fuzzing.
#[cfg(any(fuzzing, test))]
pub fn read_any_dump(text: &str) {
    let taken = Timestamp::from_millis(0);
    let Ok(snapshot) = HeapSnapshot::parse(text, taken, &Known::default()) else { return };
    let labels = Labels { trace: 1, ..Labels::NONE };
    let group = |sampled: &Sampled| Group {
        stack: labelled::stack_hash(sampled.stack.iter().map(|address| address + 1)),
        labels,
        bytes: sampled.live.bytes.unsigned_abs().max(1),
        live: sampled.live.objects.unsigned_abs(),
        all: sampled.all.objects.unsigned_abs(),
    };
    let known = Known { groups: snapshot.sampled.iter().map(group).collect(), lost: 0 };
    let labelled = HeapSnapshot::parse(text, taken, &known).expect("labels change no syntax");
    assert_eq!(labelled.sampled, snapshot.sampled);
    assert!(snapshot.clone().since(Some(snapshot)).is_empty(), "nothing changed since now");
    for usage in labelled.since(None).values() {
        assert!(usage.object_bytes() >= 0);
    }
}

impl HeapSnapshot {
    /// Reads `heap_v2` text: the interval, then for each stack a line `@ 0xpc …` and a line
    /// `t*: objects: bytes [all objects: all bytes]` (lines of single threads repeat the same and are skipped).
    fn parse(text: &str, taken: Timestamp, known: &Known) -> Result<Self, CaptureError> {
        let mut lines = text.lines().enumerate();
        let interval =
            lines.next().and_then(|(_, line)| line.strip_prefix("heap_v2/")?.parse().ok());
        let sample_interval_bytes = interval.ok_or(CaptureError::MalformedDump { line: 1 })?;
        let mut labelled: HashMap<u64, Vec<&Group>> = HashMap::new();
        for group in &known.groups {
            labelled.entry(group.stack).or_default().push(group);
        }
        let (mut origins, mut sampled) = (HashMap::new(), Vec::new());
        let mut stack: Option<Vec<u64>> = None;
        for (index, line) in lines {
            let malformed = || CaptureError::MalformedDump { line: index + 1 };
            if line.starts_with("MAPPED_LIBRARIES:") {
                break;
            } else if let Some(addresses) = line.strip_prefix('@') {
                stack = Some(parse_stack(addresses).ok_or_else(malformed)?);
            } else if let Some(tallies) = line.trim_start().strip_prefix("t*:") {
                let (live, all) = parse_tallies(tallies).ok_or_else(malformed)?;
                // The line before the first stack holds the totals.
                if let Some(stack) = stack.take() {
                    let whole = Usage {
                        in_use: unbias(live, sample_interval_bytes),
                        allocated: unbias(all, sample_interval_bytes),
                    };
                    let hash = labelled::stack_hash(stack.iter().map(|address| address + 1));
                    let groups = labelled.get(&hash).map_or(&[][..], Vec::as_slice);
                    split(whole, groups, sample_interval_bytes, |labels, usage| {
                        let origin = Origin { stack: stack.clone(), labels };
                        origins.entry(origin).or_insert_with(Usage::default).add(usage);
                    });
                    sampled.push(Sampled { stack, live, all });
                }
            }
        }
        Ok(Self { taken, sample_interval_bytes, origins, sampled, unlabelled: known.lost })
    }

    /// How many stacks and labels are told apart.
    pub(super) fn stacks(&self) -> i64 {
        i64::try_from(self.origins.len()).unwrap_or(i64::MAX)
    }

    /// What `debug=1` shows: Go's text, the stack with most memory in use first. The figures are those of the sample, which
    /// readers of this text scale by the interval in its first line. Looks up symbols.
    pub(super) fn text(mut self) -> String {
        self.sampled
            .sort_by_key(|sampled| std::cmp::Reverse((sampled.live.bytes, sampled.all.bytes)));
        let mut total = Usage::default();
        for Sampled { live, all, .. } in &self.sampled {
            total.add(Usage { allocated: *all, in_use: *live });
        }
        let interval = self.sample_interval_bytes;
        let mut text =
            format!("heap profile: {}heap_v2/{interval}\n", line(total.in_use, total.allocated));
        let mut symbols = Symbolizer::new(Detail::Functions);
        for Sampled { stack, live, all } in &self.sampled {
            text.push_str(line(*live, *all).trim_end());
            for address in stack {
                // Writing to a String does not fail, here and below.
                let _ = write!(text, " {:#x}", address + 1);
            }
            text.push('\n');
            for address in stack {
                let functions = symbols.resolve(*address);
                let name = functions.last().map_or("?", |function| function.name.as_str());
                let _ = writeln!(text, "#\t{:#x}\t{name}", address + 1);
            }
            text.push('\n');
        }
        text.push_str("MAPPED_LIBRARIES:\n");
        for mapping in symbols.mappings() {
            let (start, end, offset) = (mapping.start, mapping.end, mapping.offset);
            let _ = writeln!(
                text,
                "{start:x}-{end:x} r-xp {offset:08x} 00:00 0 {}",
                mapping.file.display()
            );
        }
        text
    }

    /// What changed since `before`; everything without it.
    fn since(self, before: Option<Self>) -> HashMap<Origin, Usage> {
        let mut origins = self.origins;
        for (origin, old) in before.into_iter().flat_map(|before| before.origins) {
            origins.entry(origin).or_default().subtract(old);
        }
        origins.retain(|_, usage| *usage != Usage::default());
        origins
    }
}

/// Gives each labelled part of a stack to its labels, and the rest to none. A rest within a hundredth of the whole comes
/// from jemalloc's rounding and goes to the largest part; less than nothing was freed between the two looks.
fn split(
    whole: Usage,
    groups: &[&Group],
    interval_bytes: u64,
    mut give: impl FnMut(Labels, Usage),
) {
    let mut parts: Vec<_> = groups
        .iter()
        .map(|group| {
            let tally = |objects: u64| {
                let bytes = objects.saturating_mul(group.bytes);
                unbias(Tally { objects: signed(objects), bytes: signed(bytes) }, interval_bytes)
            };
            let allocated = match whole.allocated {
                // jemalloc does not count them: prof_accum is off.
                Tally { objects: 0, .. } => Tally::default(),
                _ => tally(group.all),
            };
            (group.labels, Usage { allocated, in_use: tally(group.live) })
        })
        .collect();
    let mut rest = whole;
    parts.iter().for_each(|(_, part)| rest.subtract(*part));
    let is_rounding = |rest: Tally, whole: Tally| rest.bytes.saturating_abs() <= whole.bytes / 100;
    if is_rounding(rest.allocated, whole.allocated)
        && is_rounding(rest.in_use, whole.in_use)
        && let Some((_, largest)) = parts.iter_mut().max_by_key(|(_, part)| part.allocated.bytes)
    {
        largest.add(std::mem::take(&mut rest));
    }
    parts.into_iter().for_each(|(labels, part)| give(labels, part));
    rest = Usage { allocated: rest.allocated.at_least_none(), in_use: rest.in_use.at_least_none() };
    if rest != Usage::default() {
        give(Labels::NONE, rest);
    }
}

/// `2: 1024 [5: 2560] @ `
fn line(live: Tally, all: Tally) -> String {
    format!("{}: {} [{}: {}] @ ", live.objects, live.bytes, all.objects, all.bytes)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Usage {
    fn add(&mut self, other: Self) {
        self.allocated.add(other.allocated);
        self.in_use.add(other.in_use);
    }

    fn subtract(&mut self, other: Self) {
        self.allocated.subtract(other.allocated);
        self.in_use.subtract(other.in_use);
    }

    /// The mean size of an object: of those allocated, else of the live ones.
    fn object_bytes(&self) -> i64 {
        let Tally { objects, bytes } = match self.allocated.objects {
            0 => self.in_use,
            _ => self.allocated,
        };
        bytes.checked_div(objects).unwrap_or(0).saturating_abs()
    }
}

impl Tally {
    fn at_least_none(self) -> Self {
        Self { objects: self.objects.max(0), bytes: self.bytes.max(0) }
    }

    fn add(&mut self, other: Self) {
        self.objects = self.objects.saturating_add(other.objects);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    fn subtract(&mut self, other: Self) {
        self.objects = self.objects.saturating_sub(other.objects);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// ` 0x55d0 0x55e0`: return addresses, made addresses inside the call.
fn parse_stack(text: &str) -> Option<Vec<u64>> {
    text.split_ascii_whitespace()
        .map(|word| {
            u64::from_str_radix(word.strip_prefix("0x")?, 16).ok().map(|pc| pc.saturating_sub(1))
        })
        .collect()
}

/// ` 2: 1024 [5: 2560]`: live, then all since the start.
fn parse_tallies(text: &str) -> Option<(Tally, Tally)> {
    let (live, all) = text.split_once('[')?;
    Some((parse_tally(live)?, parse_tally(all.strip_suffix(']')?)?))
}

fn parse_tally(text: &str) -> Option<Tally> {
    let (objects, bytes) = text.split_once(':')?;
    let tally = Tally { objects: objects.trim().parse().ok()?, bytes: bytes.trim().parse().ok()? };
    (tally.objects >= 0 && tally.bytes >= 0).then_some(tally)
}

/// Estimates the whole from the sample of one stack.
///
/// An object of s bytes is sampled with probability 1 - exp(-s/interval); s is the stack's mean. Source:
/// `doc_internal/PROFILING_INTERNALS.md` of jemalloc (unbias each stack, then sum).
#[expect(clippy::cast_precision_loss, reason = "an estimate needs no more than 52 bits")]
#[expect(clippy::cast_possible_truncation, reason = "float to int saturates")]
fn unbias(sampled: Tally, interval_bytes: u64) -> Tally {
    if sampled.objects <= 0 || sampled.bytes <= 0 || interval_bytes == 0 {
        return sampled;
    }
    let (objects, bytes) = (sampled.objects as f64, sampled.bytes as f64);
    let scale = 1.0 / -(-(bytes / objects) / interval_bytes as f64).exp_m1();
    Tally { objects: (objects * scale).round() as i64, bytes: (bytes * scale).round() as i64 }
}

/// Whether an allocation of this program reaches jemalloc.
fn jemalloc_is_global() -> bool {
    let Ok(allocated) = tikv_jemalloc_ctl::thread::allocatedp::read() else {
        return false;
    };
    let before = allocated.get();
    drop(std::hint::black_box(vec![1_u8; 64]));
    allocated.get() != before
}

/// Frames between the function that wanted memory and the sample: jemalloc, the allocator's interface, collections.
/// Go leaves out `mallocgc` and `growslice` in the same way.
fn is_allocator(function: &Function) -> bool {
    const SOURCES: &[&str] =
        &["/library/alloc/src/", "/library/core/src/", "/hashbrown", "/tikv-jemalloc"];
    SOURCES.iter().any(|source| function.file.contains(source)) || is_allocator_name(&function.name)
}

/// For functions whose source file is not known.
fn is_allocator_name(function: &str) -> bool {
    const CRATES: &[&str] = &[
        "alloc::",
        "core::",
        "hashbrown::",
        "tikv_jemallocator::",
        "std::alloc::",
        "std::collections::",
    ];
    // Of what these implement for a service's own types, too, the service wrote no line.
    const INTERFACES: &[&str] = &["alloc::vec::", "alloc::slice::", "core::alloc::"];
    const SYMBOLS: &[&str] = &[
        "_rjem_",
        "je_",
        "prof_",
        "imalloc",
        "irallocx",
        "do_rallocx",
        "__rust_",
        "__rg_",
        "__rdl_",
    ];
    let starts = |path: &str, names: &[&str]| names.iter().any(|name| path.starts_with(name));
    match function.strip_prefix('<').and_then(|path| path.split_once(" as ")) {
        Some((path, interface)) => starts(path, CRATES) || starts(interface, INTERFACES),
        None if function.contains("::") => {
            starts(function.trim_start_matches('<'), CRATES) || function.contains("__rust_")
        }
        None => starts(function, SYMBOLS),
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels::Name;
    use super::*;

    const DUMP: &str = "heap_v2/524288\n  t*: 3: 1051648 [4: 1052672]\n  t0: 3: 1051648 [4: 1052672]\n\
        @ 0x1001 0x2001\n  t*: 2: 1048576 [2: 1048576]\n  t0: 2: 1048576 [2: 1048576]\n\
        @ 0x3001\n  t*: 1: 1024 [2: 2048]\n  t0: 1: 1024 [2: 2048]\n\nMAPPED_LIBRARIES:\n@ not a stack\n";

    fn parse(text: &str) -> HeapSnapshot {
        let known = Known::default();
        HeapSnapshot::parse(text, Timestamp::default(), &known).expect("the dump is well-formed")
    }

    fn origin(stack: &[u64], labels: Labels) -> Origin {
        Origin { stack: stack.to_vec(), labels }
    }

    #[test]
    fn a_stack_is_split_by_labels_and_the_rest_has_none() {
        let labels = Labels { task: Name::of("src/main.rs:7"), ..Labels::NONE };
        let stack = labelled::stack_hash([0x1001, 0x2001].into_iter());
        let group = |live, all| Group { stack, labels, bytes: 524_288, live, all };
        let check = |live, all, labelled_bytes, rest_bytes: Option<i64>| {
            let known = Known { groups: vec![group(live, all)], lost: 0 };
            let snapshot = HeapSnapshot::parse(DUMP, Timestamp::default(), &known);
            let origins = snapshot.expect("the dump is well-formed").origins;
            let bytes = |labels| {
                origins.get(&origin(&[0x1000, 0x2000], labels)).map(|usage| usage.in_use.bytes)
            };
            assert_eq!((bytes(labels), bytes(Labels::NONE)), (Some(labelled_bytes), rest_bytes));
        };
        // Of two live objects in the dump, one or both are known with labels.
        check(1, 1, 829_411, Some(829_412));
        check(2, 2, 1_658_823, None);
    }

    #[test]
    fn each_stack_is_scaled_by_the_chance_that_its_objects_are_sampled() {
        let origins = parse(DUMP).origins;
        // 512 KiB objects at 512 KiB: 1/(1 - 1/e) = 1.581977.
        let large = origins[&origin(&[0x1000, 0x2000], Labels::NONE)];
        assert_eq!(large.in_use, Tally { objects: 3, bytes: 1_658_823 });
        // 1 KiB objects: 1/(1 - exp(-1/512)) = 512.500.
        let small = origins[&origin(&[0x3000], Labels::NONE)];
        assert_eq!(small.in_use, Tally { objects: 513, bytes: 524_800 });
        assert_eq!(small.allocated, Tally { objects: 1025, bytes: 1_049_600 });
        assert_eq!(origins.len(), 2);
    }

    #[test]
    fn the_text_is_gos_with_the_most_used_stack_first() {
        let text = parse(DUMP).text();
        let (stacks, mappings) = text.split_once("MAPPED_LIBRARIES:\n").expect("both parts");
        assert_eq!(
            stacks,
            "heap profile: 3: 1049600 [4: 1050624] @ heap_v2/524288\n\
             2: 1048576 [2: 1048576] @ 0x1001 0x2001\n#\t0x1001\t?\n#\t0x2001\t?\n\n\
             1: 1024 [2: 2048] @ 0x3001\n#\t0x3001\t?\n\n"
        );
        assert!(mappings.contains(" r-xp "), "{mappings}");
    }

    #[test]
    fn a_difference_holds_only_what_changed_and_may_be_negative() {
        let before = parse(DUMP);
        let now = parse(
            "heap_v2/524288\n  t*: 0: 0 [0: 0]\n@ 0x1001 0x2001\n  t*: 2: 1048576 [2: 1048576]\n",
        );
        let changed = now.since(Some(before));
        assert_eq!(changed.len(), 1);
        assert_eq!(changed[&origin(&[0x3000], Labels::NONE)].in_use.bytes, -524_800);
    }

    #[test]
    fn a_dump_that_is_not_heap_v2_names_the_line() {
        for (text, expected) in [
            ("", 1),
            ("heap_v1/1", 1),
            ("heap_v2/1\n@ xyz\n", 2),
            ("heap_v2/1\n t*: 1 2\n", 2),
            ("heap_v2/1\n t*: 1: -9223372036854775808 [1: 1]\n", 2),
        ] {
            let error =
                HeapSnapshot::parse(text, Timestamp::default(), &Known::default()).expect_err(text);
            assert!(
                matches!(error, CaptureError::MalformedDump { line } if line == expected),
                "{error}"
            );
        }
    }

    #[test]
    fn collections_are_machinery_and_services_are_not() {
        for name in [
            "_rjem_malloc",
            "prof_backtrace_impl",
            "__rustc::__rust_alloc",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
            "alloc::raw_vec::RawVecInner<A>::grow_amortized",
            "<u8 as alloc::vec::spec_from_elem::SpecFromElem>::from_elem",
            "<tikv_jemallocator::Jemalloc as core::alloc::global::GlobalAlloc>::alloc",
        ] {
            assert!(is_allocator_name(name), "{name}");
        }
        for name in
            ["shop::prof_of", "<shop::Basket as core::clone::Clone>::clone", "main", "malloc_stats"]
        {
            assert!(!is_allocator_name(name), "{name}");
        }
    }
}
