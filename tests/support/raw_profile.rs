//! What a profile says, by value, whoever read it.
//!
//! In: what `go tool pprof -raw` prints, or what `tests/pyroscope` does. Out: the same [`RawProfile`] of both, where both understood
//! the same. Never: identifiers, which each reader numbers as it likes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// One profile.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RawProfile {
    /// Kind and unit of each value: `cpu/nanoseconds`.
    pub(crate) kinds: Vec<String>,
    /// The kind that tools show first, if the profile names one.
    pub(crate) default_kind: String,
    pub(crate) period_kind: String,
    pub(crate) period: i64,
    pub(crate) comments: Vec<String>,
    /// Range, file, build id, and what the mapping says of its symbols, as `-raw` prints them.
    pub(crate) mappings: Vec<String>,
    /// The values by stack and labels. Samples of nothing but zeroes are left out, as `go tool pprof` does.
    pub(crate) samples: BTreeMap<Place, Vec<i64>>,
}

/// Whose values they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Innermost first, each as `function file:line`, or as an address where no function is known.
    pub(crate) frames: Vec<String>,
    /// As `-raw` prints them: the texts in one line, the numbers in the next.
    pub(crate) labels: Vec<String>,
}

impl RawProfile {
    /// Reads what `go tool pprof -raw -symbolize=none` prints.
    ///
    /// # Errors
    /// The text is not of that form.
    pub(crate) fn of_go(text: &str) -> Result<Self> {
        let (head, rest) = text.split_once("\nSamples:\n").context("no samples")?;
        let (samples, rest) = rest.split_once("\nLocations\n").context("no locations")?;
        let (locations, mappings) = rest.split_once("\nMappings\n").context("no mappings")?;
        let mut profile = Self::default();
        for line in head.lines() {
            let (name, value) = line.split_once(": ").with_context(|| line.to_owned())?;
            match name {
                "Comment" => profile.comments.push(value.to_owned()),
                "PeriodType" => profile.period_kind = value.replacen(' ', "/", 1),
                "Period" => profile.period = value.parse()?,
                _ => {}
            }
        }
        let frames = frames_of_go(locations)?;
        let (kinds, samples) = samples.split_once('\n').context("no sample")?;
        for kind in kinds.split_whitespace() {
            let name = kind.trim_end_matches("[dflt]");
            if name != kind {
                profile.default_kind = name.split('/').next().unwrap_or_default().to_owned();
            }
            profile.kinds.push(name.to_owned());
        }
        profile.add_samples_of_go(samples, &frames)?;
        for line in mappings.lines() {
            let (_, mapping) = line.split_once(": ").with_context(|| line.to_owned())?;
            profile.mappings.push(mapping.trim_end().to_owned());
        }
        Ok(profile)
    }

    fn add_samples_of_go(
        &mut self,
        lines: &str,
        frames: &BTreeMap<u64, Vec<String>>,
    ) -> Result<()> {
        let mut lines = lines.lines().peekable();
        while let Some(line) = lines.next() {
            let (values, stack) = line.split_once(": ").with_context(|| line.to_owned())?;
            let values = values.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            let mut place = Place::default();
            for id in stack.split_whitespace() {
                let frame = frames.get(&id.parse()?).with_context(|| format!("location {id}"))?;
                place.frames.extend(frame.iter().cloned());
            }
            while let Some(label) = lines.next_if(|line| line.starts_with(LABELS)) {
                place.labels.push(label.trim().to_owned());
            }
            self.add(place, values);
        }
        Ok(())
    }

    /// Reads what `tests/pyroscope` prints.
    ///
    /// # Errors
    /// The text is not of that form.
    pub(crate) fn of_pyroscope(text: &str) -> Result<(Self, Understood)> {
        let mut understood: Understood = serde_json::from_str(text)?;
        let mut profile = Self {
            kinds: std::mem::take(&mut understood.kinds),
            default_kind: std::mem::take(&mut understood.default_kind),
            period_kind: std::mem::take(&mut understood.period_kind),
            period: understood.period,
            comments: std::mem::take(&mut understood.comments),
            ..Self::default()
        };
        for Mapping { start, limit, offset, file, build_id, has } in &understood.mappings {
            let line = format!("{start:#x}/{limit:#x}/{offset:#x} {file} {build_id} {has}");
            profile.mappings.push(line.trim_end().to_owned());
        }
        for sample in std::mem::take(&mut understood.samples) {
            let frames = sample.frames.into_iter().map(|frame| match frame.function.as_str() {
                "" => format!("{:#x}", frame.address),
                function => format!("{function} {}:{}", frame.file, frame.line),
            });
            let place = Place { frames: frames.collect(), labels: label_lines(&sample.labels) };
            profile.add(place, sample.values);
        }
        Ok((profile, understood))
    }

    fn add(&mut self, place: Place, values: Vec<i64>) {
        if values.iter().all(|value| *value == 0) {
            return;
        }
        match self.samples.get_mut(&place) {
            Some(sums) => sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            None => drop(self.samples.insert(place, values)),
        }
    }

    /// The sum of a column over the samples whose stack holds the function; of all for "".
    pub(crate) fn sum(&self, column: usize, function: &str) -> i64 {
        let held = self.samples.iter().filter(|(place, _)| {
            function.is_empty() || place.frames.iter().any(|frame| frame.contains(function))
        });
        held.filter_map(|(_, values)| values.get(column)).sum()
    }
}

/// How `-raw` indents labels.
const LABELS: &str = "                ";

/// The frames of each location, innermost first.
fn frames_of_go(lines: &str) -> Result<BTreeMap<u64, Vec<String>>> {
    let mut frames: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let mut current = 0;
    for line in lines.lines() {
        let function = match line.strip_prefix("             ") {
            Some(inlined_into) => inlined_into,
            None => {
                let (id, rest) = line.split_once(": ").with_context(|| line.to_owned())?;
                current = id.trim().parse()?;
                let (address, rest) = rest.split_once(' ').with_context(|| line.to_owned())?;
                let rest = match rest.split_once(' ') {
                    Some((mapping, rest)) if mapping.starts_with("M=") => rest,
                    _ => rest,
                };
                if rest.is_empty() {
                    frames.insert(current, vec![address.to_owned()]);
                    continue;
                }
                rest
            }
        };
        // `function file:line:column s=0`, then maybe the linker's name in parentheses.
        let (place, _) = function.rsplit_once(" s=").with_context(|| line.to_owned())?;
        let (place, _column) = place.rsplit_once(':').with_context(|| line.to_owned())?;
        frames.entry(current).or_default().push(place.to_owned());
    }
    ensure!(!frames.is_empty(), "no locations");
    Ok(frames)
}

/// As `-raw` prints them.
fn label_lines(labels: &[Label]) -> Vec<String> {
    let line = |of_numbers: bool, text: fn(&Label) -> String| {
        let chosen = labels.iter().filter(|label| label.text.is_empty() == of_numbers);
        let mut texts: Vec<_> = chosen.map(text).collect();
        texts.sort_unstable();
        Some(texts.join(" ")).filter(|line| !line.is_empty())
    };
    let texts = line(false, |label| format!("{}:[{}]", label.key, label.text));
    let numbers = line(true, |label| match label.unit.as_str() {
        "" => format!("{}:[{}]", label.key, label.number),
        unit => format!("{}:[{} {unit}]", label.key, label.number),
    });
    texts.into_iter().chain(numbers).collect()
}

/// What `tests/pyroscope` prints.
#[derive(Debug, Deserialize)]
pub(crate) struct Understood {
    kinds: Vec<String>,
    default_kind: String,
    period_kind: String,
    period: i64,
    /// How long the profile covers.
    pub(crate) nanoseconds: i64,
    comments: Vec<String>,
    pub(crate) mappings: Vec<Mapping>,
    samples: Vec<Sample>,
}

/// One mapped file.
#[derive(Debug, Deserialize)]
pub(crate) struct Mapping {
    pub(crate) file: String,
    pub(crate) build_id: String,
    start: u64,
    limit: u64,
    offset: u64,
    has: String,
}

#[derive(Debug, Deserialize)]
struct Sample {
    frames: Vec<Frame>,
    values: Vec<i64>,
    labels: Vec<Label>,
}

#[derive(Debug, Deserialize)]
struct Frame {
    function: String,
    file: String,
    line: i64,
    address: u64,
}

#[derive(Debug, Deserialize)]
struct Label {
    key: String,
    text: String,
    number: i64,
    unit: String,
}
