//! How values stand in JSON.
//!
//! In: values. Out: what serde writes of them. Never: a number where Kubernetes writes a text.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::sample::Labels;

/// For a value whose text is its JSON string.
pub(super) fn shown<T: fmt::Display, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(super) fn labels<S: Serializer>(labels: &Labels, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter())
}

/// Whole seconds.
pub(super) fn seconds<S: Serializer>(window: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(window.as_secs())
}

/// A duration as Go prints it, e.g. `1m30s`. Source: Go `time/time.go`, `Duration.String`.
#[derive(Clone, Copy, Debug)]
pub(super) struct GoDuration(pub(super) Duration);

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        let whole = self.0.as_secs();
        if whole == 0 {
            return fmt::Debug::fmt(&self.0, f);
        }
        let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        match self.0.subsec_nanos() {
            0 => write!(f, "{seconds}s"),
            nanos => write!(f, "{seconds}.{}s", format!("{nanos:09}").trim_end_matches('0')),
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        shown(self, serializer)
    }
}

/// A fragment. What is encoded here are texts and whole numbers, under texts.
pub(super) fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("texts and whole numbers have a form in JSON").into()
}

/// `head`, the fragments with commas between them, and the end of an array in an object.
pub(super) fn json_array<'a>(
    head: &str,
    fragments: impl Iterator<Item = &'a [u8]> + Clone,
) -> Bytes {
    let length: usize = fragments.clone().map(|fragment| fragment.len() + 1).sum();
    let mut body = Vec::with_capacity(head.len() + length + 2);
    body.extend_from_slice(head.as_bytes());
    for (index, fragment) in fragments.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(fragment);
    }
    body.extend_from_slice(b"]}");
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_prints_as_go_prints_it() {
        for (duration, printed) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(1), "1ns"),
            (Duration::from_nanos(1_100), "1.1µs"),
            (Duration::from_millis(250), "250ms"),
            (Duration::from_secs(15), "15s"),
            (Duration::from_millis(60_500), "1m0.5s"),
            (Duration::from_secs(90), "1m30s"),
            (Duration::from_secs(3600), "1h0m0s"),
            (Duration::from_millis(5_445_030), "1h30m45.03s"),
        ] {
            assert_eq!(GoDuration(duration).to_string(), printed);
        }
    }
}
