//! The grammar of one line.
//!
//! In: a line with its line feed. Out: what it says, borrowed from it. Never: an allocation; most lines are not wanted.

use std::borrow::Cow;
use std::iter;

use crate::time::Timestamp;

/// Which of the two formats an answer is in: they differ in the unit of timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Timestamps are whole milliseconds.
    Prometheus,
    /// Timestamps are seconds.
    OpenMetrics,
}

impl Dialect {
    /// OpenMetrics must end with `# EOF`, the text format does not know it.
    pub(super) fn of(text: &str) -> Self {
        let is_open = text.trim_ascii_end().rsplit('\n').next() == Some(EOF);
        if is_open { Self::OpenMetrics } else { Self::Prometheus }
    }
}

/// What a line says.
#[derive(Debug)]
pub(super) enum Line<'a> {
    /// Blank, or a comment, which HELP, TYPE and UNIT are to us.
    Nothing,
    /// `# EOF`.
    End,
    /// One sample.
    Sample(RawSample<'a>),
}

/// A sample as written.
#[derive(Debug)]
pub(super) struct RawSample<'a> {
    pub(super) name: &'a str,
    pub(super) labels: RawLabels<'a>,
    pub(super) value: f64,
    pub(super) at: Option<Timestamp>,
}

/// The text between the braces; well-formed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RawLabels<'a> {
    text: &'a str,
    count: usize,
}

const EOF: &str = "# EOF";
const METRIC_TYPES: [&str; 9] = [
    "counter",
    "gauge",
    "histogram",
    "summary",
    "untyped",
    "unknown",
    "info",
    "stateset",
    "gaugehistogram",
];

type Reason = &'static str;

/// Reads one line.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(line: &str, dialect: Dialect) -> Result<Line<'_>, Reason> {
    let Some(text) = line.strip_suffix('\n') else {
        return match line.trim_ascii() {
            EOF => Ok(Line::End),
            "" => Ok(Line::Nothing),
            _ => Err("the last line does not end with a line feed"),
        };
    };
    let mut cursor = Cursor { rest: text };
    cursor.blanks();
    match cursor.peek() {
        None => Ok(Line::Nothing),
        Some(b'#') if text.trim_ascii_end() == EOF => Ok(Line::End),
        Some(b'#') => comment(cursor).map(|()| Line::Nothing),
        Some(_) => sample(cursor, dialect).map(Line::Sample),
    }
}

/// HELP and TYPE must be well-formed; any other comment says nothing.
fn comment(mut cursor: Cursor<'_>) -> Result<(), Reason> {
    cursor.eat(b'#');
    cursor.blanks();
    let keyword = cursor.token();
    if keyword != "HELP" && keyword != "TYPE" {
        return Ok(());
    }
    cursor.blanks();
    cursor.name(Colons::Allowed).ok_or("HELP or TYPE without a metric name")?;
    if !matches!(cursor.peek(), None | Some(b' ' | b'\t')) {
        return Err("HELP or TYPE with a malformed metric name");
    }
    if keyword == "TYPE" && !METRIC_TYPES.contains(&cursor.rest.trim_ascii()) {
        return Err("unknown metric type");
    }
    Ok(())
}

fn sample(mut cursor: Cursor<'_>, dialect: Dialect) -> Result<RawSample<'_>, Reason> {
    let name = cursor.name(Colons::Allowed).ok_or("a metric name was expected")?;
    if !matches!(cursor.peek(), Some(b' ' | b'\t' | b'{')) {
        return Err("a malformed metric name, or no value");
    }
    cursor.blanks();
    let labels =
        if cursor.peek() == Some(b'{') { labels(&mut cursor)? } else { RawLabels::default() };
    cursor.blanks();
    let value = cursor.number().ok_or("the value is not a number")?;
    cursor.blanks();
    let at = match cursor.peek() {
        None | Some(b'#') => None,
        Some(_) => Some(timestamp(cursor.token(), dialect)?),
    };
    cursor.blanks();
    if cursor.peek() == Some(b'#') {
        exemplar(&mut cursor)?;
    }
    if cursor.peek().is_some() {
        return Err("text after the sample");
    }
    Ok(RawSample { name, labels, value, at })
}

fn labels<'a>(cursor: &mut Cursor<'a>) -> Result<RawLabels<'a>, Reason> {
    cursor.eat(b'{');
    let start = cursor.rest;
    let mut count = 0;
    loop {
        cursor.blanks();
        let text = &start[..start.len() - cursor.rest.len()];
        if cursor.eat(b'}') {
            return Ok(RawLabels { text, count });
        }
        label(cursor)?;
        count += 1;
        cursor.blanks();
        if !cursor.eat(b',') && cursor.peek() != Some(b'}') {
            return Err("a comma or a closing brace was expected after a label");
        }
    }
}

/// One `name="value"`; the value still escaped.
fn label<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a str, &'a str), Reason> {
    let name = cursor.name(Colons::Refused).ok_or("a label name was expected")?;
    cursor.blanks();
    if !cursor.eat(b'=') {
        return Err("an equals sign was expected after a label name");
    }
    cursor.blanks();
    let value = cursor.quoted().ok_or("a label value is not quoted, or its quote is not closed")?;
    Ok((name, value))
}

/// ` # {labels} value [timestamp]`, checked and left out: no decision reads it.
fn exemplar(cursor: &mut Cursor<'_>) -> Result<(), Reason> {
    cursor.eat(b'#');
    cursor.blanks();
    if cursor.peek() != Some(b'{') {
        return Err("an exemplar without labels");
    }
    labels(cursor)?;
    cursor.blanks();
    cursor.number().ok_or("an exemplar without a value")?;
    cursor.blanks();
    if cursor.peek().is_some() {
        cursor.number().ok_or("an exemplar's timestamp is not a number")?;
        cursor.blanks();
    }
    Ok(())
}

fn timestamp(token: &str, dialect: Dialect) -> Result<Timestamp, Reason> {
    match dialect {
        Dialect::Prometheus => token
            .parse()
            .map(Timestamp::from_millis)
            .map_err(|_| "the timestamp is not whole milliseconds"),
        Dialect::OpenMetrics => match token.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => Ok(from_seconds(seconds)),
            _ => Err("the timestamp is not a number of seconds"),
        },
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the cast saturates, which is as wrong as the time is"
)]
fn from_seconds(seconds: f64) -> Timestamp {
    Timestamp::from_millis((seconds * 1000.0).round() as i64)
}

impl<'a> RawLabels<'a> {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn byte_len(&self) -> usize {
        self.text.len()
    }

    /// Names and unescaped values, as written.
    pub(super) fn pairs(self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        let mut cursor = Cursor { rest: self.text };
        iter::from_fn(move || {
            cursor.blanks();
            let (name, value) = label(&mut cursor).ok()?;
            cursor.blanks();
            cursor.eat(b',');
            Some((name, unescape(value)))
        })
    }
}

/// `\\`, `\"` and `\n`; before any other character a backslash stands for itself, as Prometheus reads it.
fn unescape(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            plain.push(char);
            continue;
        }
        match chars.next() {
            Some('n') => plain.push('\n'),
            Some(escaped @ ('\\' | '"')) => plain.push(escaped),
            other => plain.extend(iter::once('\\').chain(other)),
        }
    }
    Cow::Owned(plain)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Colons {
    Allowed,
    Refused,
}

/// What is left of a line.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.rest.as_bytes().first().copied()
    }

    /// Takes one ASCII byte if it comes next.
    fn eat(&mut self, byte: u8) -> bool {
        let comes = self.peek() == Some(byte);
        if comes {
            self.rest = &self.rest[1..];
        }
        comes
    }

    fn blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn take_until(&mut self, stop: impl Fn(u8) -> bool) -> &'a str {
        let end = self.rest.bytes().position(stop).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    /// Everything up to a blank or the end.
    fn token(&mut self) -> &'a str {
        self.take_until(|byte| matches!(byte, b' ' | b'\t'))
    }

    fn number(&mut self) -> Option<f64> {
        self.token().parse().ok()
    }

    fn name(&mut self, colons: Colons) -> Option<&'a str> {
        if self.peek()?.is_ascii_digit() {
            return None;
        }
        let colon = colons == Colons::Allowed;
        let name = self.take_until(|byte| {
            !(byte.is_ascii_alphanumeric() || byte == b'_' || (colon && byte == b':'))
        });
        (!name.is_empty()).then_some(name)
    }

    /// The text between two quotes, escapes as written; `None` without a closing quote.
    fn quoted(&mut self) -> Option<&'a str> {
        if !self.eat(b'"') {
            return None;
        }
        let bytes = self.rest.as_bytes();
        let mut at = 0;
        loop {
            match bytes.get(at)? {
                b'"' => break,
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        let value = &self.rest[..at];
        self.rest = &self.rest[at + 1..];
        Some(value)
    }
}
