//! The service's own `/metrics`, by family, to be passed on as it is.
//!
//! In: a body in text format 0.0.4. Out: families with their lines, borrowed. Never: part of a malformed body: whoever scrapes
//! the sidecar would lose the sidecar's own signals with it.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::borrow::Cow;
use std::collections::HashMap;

/// Why a body is not passed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("its metrics are not UTF-8")]
    Encoding,
    #[error("line {line} of its metrics is malformed: {reason}")]
    Line { line: usize, reason: &'static str },
}

/// One family as the service wrote it.
#[derive(Debug)]
pub(super) struct TargetFamily<'a> {
    pub(super) name: &'a str,
    /// `untyped` without a TYPE line.
    pub(super) kind: &'a str,
    help: Option<&'a str>,
    typed: Option<&'a str>,
    lines: Vec<&'a str>,
    pub(super) samples: Vec<TargetSample<'a>>,
}

/// One sample.
#[derive(Debug)]
pub(super) struct TargetSample<'a> {
    pub(super) name: &'a str,
    pub(super) labels: Vec<(&'a str, Cow<'a, str>)>,
    pub(super) value: f64,
}

impl TargetSample<'_> {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        let (_, value) = self.labels.iter().find(|(label, _)| *label == name)?;
        Some(value)
    }
}

impl TargetFamily<'_> {
    /// Writes the family as it came.
    pub(super) fn write(&self, body: &mut String) {
        for line in self.help.iter().chain(&self.typed).chain(&self.lines) {
            body.push_str(line);
            body.push('\n');
        }
    }

    /// Whether a sample of that name belongs to it.
    fn holds(&self, sample: &str) -> bool {
        let Some(suffix) = sample.strip_prefix(self.name) else { return false };
        match self.kind {
            "histogram" => matches!(suffix, "" | "_bucket" | "_sum" | "_count"),
            "summary" => matches!(suffix, "" | "_sum" | "_count"),
            _ => suffix.is_empty(),
        }
    }
}

/// Reads a whole body. Families come in the order of their first line.
pub(super) fn read(body: &[u8]) -> Result<Vec<TargetFamily<'_>>, BodyError> {
    let text = std::str::from_utf8(body).map_err(|_| BodyError::Encoding)?;
    let mut reader = Reader::default();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let malformed = |reason| BodyError::Line { line: index + 1, reason };
        // A number cut short is another number.
        let whole = line.strip_suffix('\n').or(line.trim_ascii().is_empty().then_some(line));
        let line = whole.ok_or(malformed("it does not end with a line feed"))?;
        reader.line(line.trim_ascii_end()).map_err(malformed)?;
    }
    Ok(reader.families)
}

#[derive(Default)]
struct Reader<'a> {
    families: Vec<TargetFamily<'a>>,
    index: HashMap<&'a str, usize>,
    current: usize,
}

impl<'a> Reader<'a> {
    fn line(&mut self, line: &'a str) -> Result<(), &'static str> {
        let trimmed = after_blanks(line);
        if trimmed.is_empty() {
            return Ok(());
        }
        if let Some(comment) = trimmed.strip_prefix('#') {
            return self.comment(line, after_blanks(comment));
        }
        let sample = sample(trimmed)?;
        let family = self.family_of(sample.name);
        family.lines.push(line);
        family.samples.push(sample);
        Ok(())
    }

    fn comment(&mut self, line: &'a str, comment: &'a str) -> Result<(), &'static str> {
        let (keyword, rest) = comment.split_once([' ', '\t']).unwrap_or((comment, ""));
        if keyword != "HELP" && keyword != "TYPE" {
            return Ok(());
        }
        let rest = after_blanks(rest);
        let (name, rest) = take_name(rest, true).ok_or("HELP or TYPE without a metric name")?;
        if !rest.is_empty() && !rest.starts_with(BLANKS) {
            return Err("HELP or TYPE with a malformed metric name");
        }
        let family = self.named(name);
        if keyword == "HELP" {
            family.help.get_or_insert(line);
            return Ok(());
        }
        let kind = rest.trim_ascii();
        if !["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind) {
            return Err("unknown metric type");
        }
        if family.typed.is_none() {
            (family.kind, family.typed) = (kind, Some(line));
        }
        Ok(())
    }

    fn family_of(&mut self, sample: &'a str) -> &mut TargetFamily<'a> {
        if self.families.get(self.current).is_some_and(|family| family.holds(sample)) {
            return &mut self.families[self.current];
        }
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.strip_suffix(suffix));
        let known = base.and_then(|base| self.index.get(base)).copied();
        match known.filter(|at| self.families[*at].holds(sample)) {
            Some(at) => {
                self.current = at;
                &mut self.families[at]
            }
            None => self.named(sample),
        }
    }

    fn named(&mut self, name: &'a str) -> &mut TargetFamily<'a> {
        self.current = *self.index.entry(name).or_insert_with(|| {
            let (lines, samples) = (Vec::new(), Vec::new());
            let (help, typed) = (None, None);
            self.families.push(TargetFamily { name, kind: "untyped", help, typed, lines, samples });
            self.families.len() - 1
        });
        &mut self.families[self.current]
    }
}

/// Other space, as a form feed, is none to Prometheus or to the adapter.
const BLANKS: [char; 2] = [' ', '\t'];

fn after_blanks(text: &str) -> &str {
    text.trim_start_matches(BLANKS)
}

fn take_name(text: &str, colons: bool) -> Option<(&str, &str)> {
    let inside =
        |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (colons && byte == b':');
    let end = text.bytes().position(|byte| !inside(byte)).unwrap_or(text.len());
    let starts = text.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    (end > 0 && starts).then(|| text.split_at(end))
}

fn sample(text: &str) -> Result<TargetSample<'_>, &'static str> {
    let (name, rest) = take_name(text, true).ok_or("a metric name was expected")?;
    let rest = after_blanks(rest);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None if rest.len() == text.len() - name.len() => return Err("no value"),
        None => (Vec::new(), rest),
    };
    let mut fields = rest.split(BLANKS).filter(|field| !field.is_empty());
    let value = fields.next().ok_or("no value")?;
    let value = value.parse().map_err(|_| "the value is not a number")?;
    if let Some(timestamp) = fields.next() {
        timestamp.parse::<i64>().map_err(|_| "the timestamp is not whole milliseconds")?;
    }
    if fields.next().is_some() {
        return Err("text after the sample");
    }
    Ok(TargetSample { name, labels, value })
}

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

fn labels(mut text: &str) -> Result<(Labels<'_>, &str), &'static str> {
    let mut labels = Vec::new();
    loop {
        text = after_blanks(text);
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, rest) = take_name(text, false).ok_or("a label name was expected")?;
        let rest = after_blanks(rest).strip_prefix('=').ok_or("a label without a value")?;
        let rest = after_blanks(rest).strip_prefix('"').ok_or("a label value is not quoted")?;
        let (value, rest) = quoted(rest).ok_or("the quote of a label value is not closed")?;
        if labels.iter().any(|(known, _)| *known == name) {
            return Err("a label name occurs twice");
        }
        labels.push((name, value));
        text = after_blanks(rest);
        match text.strip_prefix(',') {
            Some(rest) => text = rest,
            None if text.starts_with('}') => {}
            None => return Err("a comma or a closing brace was expected after a label"),
        }
    }
}

/// Up to the closing quote, unescaped.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut escaped = false;
    loop {
        match bytes.get(at)? {
            b'"' => break,
            b'\\' => {
                escaped = true;
                at += 2;
            }
            _ => at += 1,
        }
    }
    let (value, rest) = (&text[..at], &text[at + 1..]);
    if !escaped {
        return Some((Cow::Borrowed(value), rest));
    }
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match (character, character == '\\') {
            (_, true) => match characters.next() {
                Some('n') => plain.push('\n'),
                Some(other @ ('\\' | '"')) => plain.push(other),
                other => plain.extend(std::iter::once('\\').chain(other)),
            },
            (other, false) => plain.push(other),
        }
    }
    Some((Cow::Owned(plain), rest))
}

/// Reads `body`: what is passed on of it reads as the same families again, and is made into signals. That text, if there is
/// any. For fuzzing.
#[cfg(any(fuzzing, test))]
pub fn read_any_target(body: &[u8]) -> Option<String> {
    use std::collections::BTreeSet;

    let written = |families: &[TargetFamily<'_>]| {
        let mut text = String::new();
        families.iter().for_each(|family| family.write(&mut text));
        text
    };
    let families = read(body).ok()?;
    let text = written(&families);
    let again = read(text.as_bytes()).expect("what is passed on is well formed");
    // A TYPE that comes after its samples may gather other lines the second time.
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(lines(&written(&again)), lines(&text));
    let samples = |families: &[TargetFamily<'_>]| -> usize {
        families.iter().map(|family| family.samples.len()).sum()
    };
    assert_eq!(samples(&again), samples(&families));
    drop(super::normalised::normalise(&families));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_is_what_came() {
        let body = "# HELP a_total Said \\\"once\\\"\n# TYPE a_total counter\na_total{x=\"1,}\\\"\\n\"} 3 1790000000042\n\
                    b 1e+06\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 2\nh_sum NaN\nh_count 2\nh_count_total 1\n";
        let families = read(body.as_bytes()).expect("a good body");
        let mut text = String::new();
        families.iter().for_each(|family| family.write(&mut text));
        assert_eq!(text, body);
        let names: Vec<_> = families.iter().map(|family| (family.name, family.kind)).collect();
        let expected = [
            ("a_total", "counter"),
            ("b", "untyped"),
            ("h", "histogram"),
            ("h_count_total", "untyped"),
        ];
        assert_eq!(names, expected);
        assert_eq!(families[0].samples[0].label("x"), Some("1,}\"\n"));
    }

    #[test]
    fn lines_of_one_family_are_brought_together() {
        let body = "a{x=\"1\"} 1\nb 1\na{x=\"2\"} 2\n# EXTRA comment\n";
        let mut text = String::new();
        read(body.as_bytes()).expect("a good body").iter().for_each(|f| f.write(&mut text));
        assert_eq!(text, "a{x=\"1\"} 1\na{x=\"2\"} 2\nb 1\n");
    }

    #[test]
    fn a_malformed_body_is_refused_whole_and_names_its_line() {
        let line = |text: &str| match read(text.as_bytes()) {
            Err(BodyError::Line { line, .. }) => Some(line),
            _ => None,
        };
        for text in [
            "a 1\nb 500",
            "a 1\nb\n",
            "a 1\nb x\n",
            "a 1\nb{c=\"d} 1\n",
            "a 1\nb{c=\"d\" e=\"f\"} 1\n",
            "a 1\nb 1 1.5\n",
            "a 1\nb 1 1 # {} 1\n",
            "a 1\n# TYPE b frob\n",
            "a 1\n<html>\n",
            // The adapter refuses these, and with them all signals of the pod. All but the last were found by fuzzing.
            "a 1\n# HELP b\" x\n",
            "a 1\n# HELP \u{c} b\n",
            "a 1\nb\r3\n",
            "a 1\nb 1\r3\n",
            "a 1\nb 3 \u{c}1790000000042\n",
            "a 1\nb{c\u{c}=\"d\"} 1\n",
            "a 1\nb{c=\"d\",c=\"e\"} 1\n",
        ] {
            assert_eq!(line(text), Some(2), "{text:?}");
        }
        // OpenTelemetry's exporter for .NET ends the text format so; to that format it is a comment.
        assert!(read(b"a 1\n# EOF\n").is_ok());
        assert_eq!(read(&[0xff, b'\n']).err(), Some(BodyError::Encoding));
        assert!(read(b"").is_ok_and(|families| families.is_empty()));
    }
}
