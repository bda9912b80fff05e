//! The Prometheus text format 0.0.4, and what OpenMetrics adds to it.
//!
//! In: the bytes of one answer. Out: the wanted samples in the order of the answer, and a count of what was left out and why.
//! Never: part of a malformed answer (a line cut short may read `50` for `5000`), a value that is not finite, a negative one,
//! or more than [`Limits`] allow.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Accepted of OpenMetrics: `# EOF`, its metric types,
//! exemplars, and timestamps in seconds in an answer that ends with `# EOF`.

use std::collections::{BTreeMap, HashMap};

use crate::sample::{CollectFailure, DropReason, Dropped, Labels, MetricName, Sample, SeriesKey};
use crate::time::Timestamp;

use super::Wanted;

mod line;

use line::{Dialect, Line, RawSample};

/// What one answer may cost. Every bound is explicit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest answer in bytes.
    pub body_bytes: usize,
    /// The most wanted series of one pod; those after it are left out.
    pub series_per_pod: usize,
    /// The most labels of a wanted series.
    pub labels_per_series: usize,
    /// The longest label set of a wanted series, in bytes as written.
    pub label_bytes_per_series: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 16 << 20,
            series_per_pod: 10_000,
            labels_per_series: 64,
            label_bytes_per_series: 4 << 10,
        }
    }
}

/// What one good answer held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Wanted samples: finite, zero or more, each series once.
    pub samples: Vec<Sample>,
    /// Wanted samples that are left out: one entry per metric and reason.
    pub dropped: Vec<Dropped>,
}

/// Reads one whole answer. `answered_at` is the time of samples that carry none of their own. A time in the future stays as it
/// is: the store ages samples by arrival, and a time moved to now would make a frozen source look alive.
///
/// Every family that a policy reads is an amount, so a negative sample is left out whatever its type.
///
/// # Errors
/// [`CollectFailure::Malformed`] with the first bad line, [`CollectFailure::TooLarge`] past the limit.
pub fn parse(
    body: &[u8],
    wanted: &Wanted,
    limits: &Limits,
    answered_at: Timestamp,
) -> Result<Parsed, CollectFailure> {
    if body.len() > limits.body_bytes {
        return Err(CollectFailure::TooLarge { limit_bytes: limits.body_bytes });
    }
    let text = std::str::from_utf8(body).map_err(|error| CollectFailure::Malformed {
        line: 1 + body[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count(),
        reason: "not UTF-8",
    })?;
    let dialect = Dialect::of(text);
    let mut kept = Kept::new(limits);
    let mut ended = false;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let malformed = |reason| CollectFailure::Malformed { line: index + 1, reason };
        if ended {
            return Err(malformed("text after # EOF"));
        }
        match line::read(line, dialect).map_err(malformed)? {
            Line::Nothing => {}
            Line::End => ended = true,
            Line::Sample(raw) => {
                if let Some(name) = wanted.get(raw.name) {
                    kept.take(name, &raw, answered_at).map_err(malformed)?;
                }
            }
        }
    }
    Ok(kept.finish())
}

/// The wanted series of an answer while it is read.
struct Kept<'a> {
    limits: &'a Limits,
    slots: Vec<Slot>,
    index: HashMap<SeriesKey, usize>,
    dropped: BTreeMap<(MetricName, &'static str), Dropped>,
}

struct Slot {
    series: SeriesKey,
    value: Result<f64, DropReason>,
    at: Timestamp,
    copies: u64,
}

impl<'a> Kept<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { limits, slots: Vec::new(), index: HashMap::new(), dropped: BTreeMap::new() }
    }

    fn take(
        &mut self,
        name: &MetricName,
        raw: &RawSample<'_>,
        answered_at: Timestamp,
    ) -> Result<(), &'static str> {
        if raw.labels.count() > self.limits.labels_per_series
            || raw.labels.byte_len() > self.limits.label_bytes_per_series
        {
            self.drop(name.clone(), DropReason::LabelsTooLarge, 1);
            return Ok(());
        }
        let pairs: Vec<_> = raw.labels.pairs().collect();
        let labels: Labels = pairs.iter().map(|(key, value)| (*key, value)).collect();
        if labels.iter().count() != pairs.len() {
            return Err("a label name occurs twice");
        }
        let series = SeriesKey { name: name.clone(), labels };
        if let Some(slot) = self.index.get(&series) {
            self.slots[*slot].copies += 1;
        } else if self.slots.len() >= self.limits.series_per_pod {
            self.drop(name.clone(), DropReason::TooManySeries, 1);
        } else {
            self.index.insert(series.clone(), self.slots.len());
            let at = raw.at.unwrap_or(answered_at);
            self.slots.push(Slot { series, value: amount(raw.value), at, copies: 1 });
        }
        Ok(())
    }

    fn finish(mut self) -> Parsed {
        let mut samples = Vec::with_capacity(self.slots.len());
        for Slot { series, value, at, copies } in std::mem::take(&mut self.slots) {
            match value {
                _ if copies > 1 => self.drop(series.name, DropReason::Duplicate, copies),
                Ok(value) => samples.push(Sample { series, value, at }),
                Err(reason) => self.drop(series.name, reason, 1),
            }
        }
        Parsed { samples, dropped: self.dropped.into_values().collect() }
    }

    fn drop(&mut self, name: MetricName, reason: DropReason, samples: u64) {
        self.dropped
            .entry((name.clone(), reason.as_str()))
            .or_insert(Dropped { name, reason, samples: 0 })
            .samples += samples;
    }
}

/// A value as an amount; `-0` is 0.
fn amount(value: f64) -> Result<f64, DropReason> {
    if !value.is_finite() {
        Err(DropReason::NotFinite)
    } else if value < 0.0 {
        Err(DropReason::Negative)
    } else {
        Ok(value + 0.0)
    }
}

#[cfg(test)]
mod tests;
