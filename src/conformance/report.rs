//! What was found, for people and for programs.
//!
//! In: verdicts. Out: text of at most 80 columns, or JSON. Never: a colour where [`Style::Plain`] is asked for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::GROUPS;
use super::case::{Case, Verdict};

/// Of a line.
const COLUMNS: usize = 80;
/// Where a case's name begins, and the words below it.
const INDENT: usize = 12;

/// The verdicts of one run.
#[derive(Debug)]
pub struct Report {
    /// What was asked.
    pub url: String,
    /// In the order of their numbers.
    pub results: Vec<(&'static Case, Verdict)>,
    /// From the first request to the last answer.
    pub took: Duration,
}

/// How many of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    /// The numbers of the cases that failed.
    #[must_use]
    pub fn failed(&self) -> Vec<u8> {
        self.numbers(|verdict| matches!(verdict, Verdict::Fail { .. }))
    }

    /// The numbers of the cases that were not asked.
    #[must_use]
    pub fn skipped(&self) -> Vec<u8> {
        self.numbers(|verdict| matches!(verdict, Verdict::Skipped { .. }))
    }

    fn numbers(&self, picks: impl Fn(&Verdict) -> bool) -> Vec<u8> {
        let picked = self.results.iter().filter(|(_, verdict)| picks(verdict));
        picked.map(|(case, _)| case.number).collect()
    }

    fn counts(&self) -> Counts {
        let (failed, skipped) = (self.failed().len(), self.skipped().len());
        Counts { passed: self.results.len() - failed - skipped, failed, skipped }
    }

    /// The report for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let counts = self.counts();
        let cases: Vec<Value> =
            self.results.iter().map(|(case, found)| entry(case, found)).collect();
        json!({
            "url": self.url, "cases": cases, "seconds": self.took.as_secs_f64(),
            "passed": counts.passed, "failed": counts.failed, "skipped": counts.skipped,
        })
    }

    /// What could not be asked, by what it needs.
    fn unasked(&self) -> BTreeMap<(&str, &str), Vec<u8>> {
        let mut found: BTreeMap<_, Vec<u8>> = BTreeMap::new();
        for (case, verdict) in &self.results {
            match verdict {
                Verdict::Skipped { reason } => {
                    found.entry(("skipped", reason.as_str())).or_default().push(case.number);
                }
                Verdict::PassInPart { unasked } => {
                    found
                        .entry(("passed without", unasked.as_str()))
                        .or_default()
                        .push(case.number);
                }
                _ => {}
            }
        }
        found
    }
}

fn entry(case: &Case, verdict: &Verdict) -> Value {
    let group = GROUPS.iter().find(|group| group.cases.iter().any(|c| c.number == case.number));
    let mut entry = json!({
        "number": case.number, "name": case.name, "group": group.map(|group| group.title),
        "consequenceForHpa": case.consequence_for_hpa,
    });
    let more = match verdict {
        Verdict::Pass => json!({"verdict": "pass"}),
        Verdict::PassInPart { unasked } => json!({"verdict": "pass", "unasked": unasked}),
        Verdict::Fail { expected, got } => {
            json!({"verdict": "fail", "expected": expected, "got": got})
        }
        Verdict::Skipped { reason } => json!({"verdict": "skipped", "reason": reason}),
    };
    if let (Value::Object(entry), Value::Object(more)) = (&mut entry, more) {
        entry.extend(more);
    }
    entry
}

/// Whether a terminal shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Text alone.
    Plain,
    /// With the colours of ANSI terminals.
    Coloured,
}

/// Writes the report for people, as the cases are decided.
#[derive(Debug)]
pub struct Text {
    style: Style,
    group: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum Paint {
    Bold,
    Green,
    Red,
    Dim,
}

impl Text {
    /// In this style.
    #[must_use]
    pub const fn new(style: Style) -> Self {
        Self { style, group: None }
    }

    /// The first lines.
    #[must_use]
    pub fn title(&self, url: &str) -> String {
        let title = format!("{url}, as an HPA sees it");
        hanging("", &title, 0, |line| self.paint(Paint::Bold, line)) + "\n"
    }

    /// The lines of a case, with the heading of its group if it is the first of it; each ends with a newline.
    pub fn case(&mut self, case: &Case, verdict: &Verdict) -> String {
        let mut text = self.heading(case).unwrap_or_default();
        let (paint, word) = match verdict {
            Verdict::Pass | Verdict::PassInPart { .. } => (Paint::Green, "PASS"),
            Verdict::Fail { .. } => (Paint::Red, "FAIL"),
            Verdict::Skipped { .. } => (Paint::Dim, "SKIP"),
        };
        let line = format!("  {} {:>3}  {}\n", self.paint(paint, word), case.number, case.name);
        text.push_str(&line);
        if let Verdict::Fail { expected, got } = verdict {
            text.push_str(&self.below("expected:", expected));
            text.push_str(&self.below("got:", got));
            text.push_str(&self.below("HPA:", case.consequence_for_hpa));
        }
        text
    }

    /// The end: what was not asked, and the counts.
    #[must_use]
    pub fn summary(&self, report: &Report) -> String {
        let mut text = String::new();
        let unasked = report.unasked();
        if !unasked.is_empty() {
            let _ = writeln!(text, "\n{}", self.paint(Paint::Bold, "Not asked"));
        }
        for ((how, reason), numbers) in &unasked {
            let sentence = format!("{how}: {reason}");
            text.push_str(&hanging("  ", &sentence, 2, |line| self.paint(Paint::Dim, line)));
            let cases: Vec<String> = numbers.iter().map(u8::to_string).collect();
            let noun = if cases.len() == 1 { "case" } else { "cases" };
            let cases = format!("{noun} {}", cases.join(", "));
            text.push_str(&hanging("    ", &cases, 4, str::to_owned));
        }
        let Counts { passed, failed, skipped } = report.counts();
        let failures = format!("{failed} failed");
        let failures = if failed == 0 { failures } else { self.paint(Paint::Red, &failures) };
        let seconds = report.took.as_secs_f64();
        let _ = writeln!(
            text,
            "\n{}, {failures}, {skipped} skipped in {seconds:.1} s",
            self.paint(Paint::Bold, &format!("{passed} passed")),
        );
        text
    }

    fn heading(&mut self, case: &Case) -> Option<String> {
        let group =
            GROUPS.iter().find(|group| group.cases.iter().any(|c| c.number == case.number))?;
        if self.group == Some(group.title) {
            return None;
        }
        let gap = if self.group.is_some() { "\n" } else { "" };
        self.group = Some(group.title);
        Some(format!("{gap}{}\n", self.paint(Paint::Bold, group.title)))
    }

    /// A labelled sentence below a case.
    fn below(&self, label: &str, text: &str) -> String {
        let first = format!("{:INDENT$}{label} ", "");
        hanging(&first, text, first.len(), |line| self.paint(Paint::Dim, line))
    }

    fn paint(&self, paint: Paint, text: &str) -> String {
        let code = match (self.style, paint) {
            (Style::Plain, _) => return text.to_owned(),
            (Style::Coloured, Paint::Bold) => "1",
            (Style::Coloured, Paint::Green) => "32",
            (Style::Coloured, Paint::Red) => "1;31",
            (Style::Coloured, Paint::Dim) => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Wraps a sentence; lines after the first begin at `indent`.
fn hanging(first: &str, text: &str, indent: usize, paint: impl Fn(&str) -> String) -> String {
    let mut shown = String::new();
    for (index, line) in wrapped(text, COLUMNS - indent).iter().enumerate() {
        let start = if index == 0 { first.to_owned() } else { " ".repeat(indent) };
        let _ = writeln!(shown, "{start}{}", paint(line));
    }
    shown
}

/// Lines of at most `width` characters, broken at spaces where there are any. Control characters, of which an answer can
/// hold any, are left out.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().filter(|c| !c.is_control()).collect();
        loop {
            let line = lines.last_mut().expect("there is always a line");
            let used = line.chars().count();
            let gap = usize::from(used > 0);
            if used + gap + word.len() <= width {
                if gap > 0 {
                    line.push(' ');
                }
                line.extend(word);
                break;
            }
            if used > 0 && word.len() <= width {
                lines.push(String::new());
                continue;
            }
            // Longer than a line: cut it.
            let room = width.saturating_sub(used + gap);
            if gap > 0 && room > 0 {
                line.push(' ');
            }
            let rest = word.split_off(room.min(word.len()));
            line.extend(word);
            word = rest;
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::find;

    fn report() -> Report {
        let case = |number| find(number).expect("the case exists");
        let fail = Verdict::Fail {
            expected: "a Content-Type".to_owned(),
            got: format!("GET /apis: 200 {}", "{\"kind\":\"List\"}".repeat(9)),
        };
        let results = vec![
            (case(18), Verdict::Pass),
            (case(31), fail),
            (case(38), Verdict::PassInPart { unasked: "the sample's time".to_owned() }),
            (case(52), Verdict::Skipped { reason: "needs a cluster".to_owned() }),
            (case(53), Verdict::Skipped { reason: "needs a cluster".to_owned() }),
        ];
        let took = Duration::from_millis(1234);
        Report { url: "https://127.0.0.1:6443".to_owned(), results, took }
    }

    fn text(style: Style) -> String {
        let report = report();
        let mut text = Text::new(style);
        let cases: String =
            report.results.iter().map(|(case, verdict)| text.case(case, verdict)).collect();
        cases + &text.summary(&report)
    }

    #[test]
    fn the_report_is_a_table_of_80_columns() {
        let expected = r#"Routing
  PASS  18  an external metric's name is found lower-cased

Encoding
  FAIL  31  the HPA's Accept gets an answer that it can decode
            expected: a Content-Type
            got: GET /apis: 200 {"kind":"List"}{"kind":"List"}{"kind":"List"}{"k
                 ind":"List"}{"kind":"List"}{"kind":"List"}{"kind":"List"}{"kind
                 ":"List"}{"kind":"List"}
            HPA: FailedGetExternalMetric: the answer cannot be decoded
  PASS  38  timestamps are the sample's: RFC 3339, UTC, whole seconds

What the HPA makes of it
  SKIP  52  another metric still scales up while this one fails
  SKIP  53  no metric scales down while this one fails

Not asked
  passed without: the sample's time
    case 38
  skipped: needs a cluster
    cases 52, 53

2 passed, 1 failed, 2 skipped in 1.2 s
"#;
        assert_eq!(text(Style::Plain), expected);
    }

    #[test]
    fn colours_change_nothing_but_the_colour() {
        let coloured = text(Style::Coloured);
        assert!(coloured.contains("\x1b[1;31mFAIL\x1b[0m"));
        let mut plain = String::new();
        let mut parts = coloured.split('\x1b');
        plain.push_str(parts.next().unwrap_or_default());
        plain.extend(parts.filter_map(|part| part.split_once('m').map(|(_, rest)| rest)));
        assert_eq!(plain, text(Style::Plain));
    }

    #[test]
    fn an_answer_cannot_write_control_characters_to_the_terminal() {
        assert_eq!(wrapped("a\x1b[2Jb\u{7}", 80), ["a[2Jb"]);
    }

    #[test]
    fn programs_read_the_same() {
        let json = report().json();
        assert_eq!(json["cases"][1]["expected"], "a Content-Type");
        assert_eq!(json["cases"][3]["reason"], "needs a cluster");
        assert_eq!(
            (&json["passed"], &json["failed"], &json["skipped"]),
            (&2.into(), &1.into(), &2.into())
        );
    }
}
