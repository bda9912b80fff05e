//! The trace that a request belongs to.
//!
//! In: the header `traceparent` of W3C Trace Context. Out: its identifiers. Never: an identifier of a malformed header, or one
//! that is all zero.
//!
//! Format: <https://www.w3.org/TR/trace-context/#traceparent-header>.

use http::{HeaderMap, HeaderName};

/// What a caller says of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceContext {
    /// Never 0.
    pub(super) trace: u128,
    /// The caller's span. Never 0.
    pub(super) span: u64,
    /// The caller may have recorded the trace: it can be looked up.
    pub(super) sampled: bool,
}

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

impl TraceContext {
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(&TRACEPARENT)?.as_bytes())
    }

    /// `version-trace-parent-flags` in lower-case hexadecimal. Later versions may go on after the flags.
    fn parse(text: &[u8]) -> Option<Self> {
        let (known, rest) = text.split_at_checked(55)?;
        let dashes = [known[2], known[35], known[52]] == *b"---";
        let version = hexadecimal(&known[..2])?;
        let complete = if version == 0 { rest.is_empty() } else { matches!(rest, [] | [b'-', ..]) };
        if !dashes || !complete || version == 0xff {
            return None;
        }
        let trace = hexadecimal(&known[3..35])?;
        let span = u64::try_from(hexadecimal(&known[36..52])?).ok()?;
        let sampled = hexadecimal(&known[53..])? & 1 == 1;
        (trace != 0 && span != 0).then_some(Self { trace, span, sampled })
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// Reads `text` as the header: its identifiers, printed, read as the same again. For fuzzing.
#[cfg(any(fuzzing, test))]
pub fn read_any_traceparent(text: &[u8]) {
    if let Some(found) = TraceContext::parse(text) {
        let TraceContext { trace, span, sampled } = found;
        assert!(trace != 0 && span != 0);
        let printed = format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled));
        assert_eq!(TraceContext::parse(printed.as_bytes()), Some(found));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, expected: Option<(u128, u64, bool)>) {
        let found = TraceContext::parse(header.as_bytes());
        assert_eq!(found.map(|it| (it.trace, it.span, it.sampled)), expected, "{header}");
    }

    #[test]
    fn only_a_valid_header_names_a_trace() {
        // The example of the specification.
        let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
        let span = 0xb7ad_6b71_6920_3331;
        let example = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        check(example, Some((trace, span, true)));
        check(&example.replace("-01", "-00"), Some((trace, span, false)));
        check(&example.replace("-01", "-03"), Some((trace, span, true)));
        check(&example.replacen("00", "cc", 1), Some((trace, span, true)));
        check(&format!("{}-more", example.replacen("00", "cc", 1)), Some((trace, span, true)));
        check(&format!("{}.more", example.replacen("00", "cc", 1)), None);
        check(&format!("{example}-more"), None);
        check(&example.replacen("00", "ff", 1), None);
        check(&example.to_uppercase(), None);
        check(&example.replace('-', "_"), None);
        check(&example[..54], None);
        check("00-00000000000000000000000000000000-b7ad6b7169203331-01", None);
        check("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None);
        check("", None);
    }
}
