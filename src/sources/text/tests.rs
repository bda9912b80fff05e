use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const WANTED: &[&str] = &[
    "tasks",
    "requests_total",
    "latency_seconds_bucket",
    "latency_seconds_sum",
    "latency_seconds_count",
    "queue:depth",
];

fn parse_with(body: &[u8], limits: &Limits) -> Result<Parsed, CollectFailure> {
    parse(body, &Wanted::of(WANTED), limits, NOW)
}

/// A sample as `name{label=value,…} value @milliseconds`; the time only where it is not that of the answer.
fn show(sample: &Sample) -> String {
    let labels: Vec<_> =
        sample.series.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let time =
        if sample.at == NOW { String::new() } else { format!(" @{}", sample.at.as_millis()) };
    format!("{}{{{}}} {}{time}", sample.series.name, labels.join(","), sample.value)
}

fn check(body: &str, samples: &[&str]) {
    let parsed = parse_with(body.as_bytes(), &Limits::default());
    let shown: Result<Vec<_>, _> = parsed.map(|parsed| parsed.samples.iter().map(show).collect());
    assert_eq!(shown, Ok(samples.iter().map(ToString::to_string).collect()), "{body}");
}

fn check_dropped(body: &str, limits: &Limits, kept: &[&str], dropped: &[(&str, DropReason, u64)]) {
    let parsed = parse_with(body.as_bytes(), limits).expect("the body is well-formed");
    assert_eq!(parsed.samples.iter().map(show).collect::<Vec<_>>(), kept, "{body}");
    let left_out: Vec<_> =
        parsed.dropped.iter().map(|d| (d.name.as_str(), d.reason, d.samples)).collect();
    assert_eq!(left_out, dropped, "{body}");
}

fn check_malformed(body: &str, line: usize, reason: &'static str) {
    let outcome = parse_with(body.as_bytes(), &Limits::default());
    assert_eq!(outcome, Err(CollectFailure::Malformed { line, reason }), "{body:?}");
}

#[test]
fn wanted_samples_are_kept_and_the_rest_is_forgotten() {
    check("", &[]);
    check("\n \t\n# a comment\n#\n", &[]);
    check("# HELP tasks Live tasks.\n# TYPE tasks gauge\ntasks 12\nother 3\n", &["tasks{} 12"]);
    check("  tasks\t1.5e3  \n", &["tasks{} 1500"]);
    check("queue:depth 1\n", &["queue:depth{} 1"]);
    check("tasks{} 1\n", &["tasks{} 1"]);
    check("tasks -0\n", &["tasks{} 0"]);
    check(
        "latency_seconds_bucket{le=\"+Inf\"} 4\nlatency_seconds_sum 0.5\nlatency_seconds_count 4\n",
        &[
            "latency_seconds_bucket{le=+Inf} 4",
            "latency_seconds_sum{} 0.5",
            "latency_seconds_count{} 4",
        ],
    );
}

#[test]
fn label_values_are_unescaped_and_blanks_around_them_mean_nothing() {
    check("tasks{b=\"2\",a=\"1\"} 1\n", &["tasks{a=1,b=2} 1"]);
    check("tasks { a = \"1\" , b=\"2\" , }3\n", &["tasks{a=1,b=2} 3"]);
    let body = concat!(r#"tasks{a="x\\y\"z\n{},=# ä\d"} 1"#, "\n");
    check(body, &[concat!(r#"tasks{a=x\y"z"#, "\n", r"{},=# ä\d} 1")]);
}

#[test]
fn a_sample_has_its_own_time_where_it_carries_one() {
    check("tasks 1 1799999999000\n", &["tasks{} 1 @1799999999000"]);
    check("tasks 1 -5\n", &["tasks{} 1 @-5"]);
    check("tasks 1 1800000000001\n", &["tasks{} 1 @1800000000001"]);
    check("tasks 1 1799999999.25\n# EOF\n", &["tasks{} 1 @1799999999250"]);
    check("tasks 1 1e300\n# EOF\n", &["tasks{} 1 @9223372036854775807"]);
}

#[test]
fn what_openmetrics_adds_is_accepted() {
    check(
        "# TYPE requests counter\n# UNIT requests seconds\nrequests_total 3\n# EOF\n",
        &["requests_total{} 3"],
    );
    check("tasks 3\n# EOF", &["tasks{} 3"]);
    check("requests_total 3 # {trace_id=\"a\"} 0.6\n", &["requests_total{} 3"]);
    check(
        "requests_total 3 1799999999 # {} 0.6 1799999999.1\n# EOF\n",
        &["requests_total{} 3 @1799999999000"],
    );
}

#[test]
fn one_malformed_line_fails_the_whole_answer_and_is_named() {
    check_malformed("tasks 1\n<html>\n", 2, "a metric name was expected");
    check_malformed("tasks 1\nother 50", 2, "the last line does not end with a line feed");
    check_malformed("tasks\n", 1, "a malformed metric name, or no value");
    check_malformed("my-5 7\n", 1, "a malformed metric name, or no value");
    check_malformed("9lives 7\n", 1, "a metric name was expected");
    check_malformed("tasks \n", 1, "the value is not a number");
    check_malformed("tasks 1,5\n", 1, "the value is not a number");
    check_malformed("tasks 1 soon\n", 1, "the timestamp is not whole milliseconds");
    check_malformed("tasks 1 1.5\n", 1, "the timestamp is not whole milliseconds");
    check_malformed("tasks 1 NaN\n# EOF\n", 1, "the timestamp is not a number of seconds");
    check_malformed("tasks 1 2 3\n", 1, "text after the sample");
    check_malformed(
        "tasks{a=\"1\" 1\n",
        1,
        "a comma or a closing brace was expected after a label",
    );
    check_malformed(
        "tasks{a=\"1} 1\n",
        1,
        "a label value is not quoted, or its quote is not closed",
    );
    check_malformed(
        "tasks{a=\"1\\\"} 1\n",
        1,
        "a label value is not quoted, or its quote is not closed",
    );
    check_malformed("tasks{a=1} 1\n", 1, "a label value is not quoted, or its quote is not closed");
    check_malformed("tasks{a\"1\"} 1\n", 1, "an equals sign was expected after a label name");
    check_malformed("tasks{a:b=\"1\"} 1\n", 1, "an equals sign was expected after a label name");
    check_malformed("tasks{,} 1\n", 1, "a label name was expected");
    check_malformed("tasks{a=\"1\",a=\"2\"} 1\n", 1, "a label name occurs twice");
    check_malformed("# TYPE tasks amount\n", 1, "unknown metric type");
    check_malformed("# TYPE\n", 1, "HELP or TYPE without a metric name");
    check_malformed("# HELP my-tasks x\n", 1, "HELP or TYPE with a malformed metric name");
    check_malformed("tasks 1 # 0.6\n", 1, "an exemplar without labels");
    check_malformed("tasks 1 # {}\n", 1, "an exemplar without a value");
    check_malformed("tasks 1\n# EOF\ntasks{a=\"\"} 2\n", 3, "text after # EOF");
    check_malformed("tasks 1\r\n", 1, "the value is not a number");
}

#[test]
fn bytes_that_are_not_utf_8_fail_the_answer_at_their_line() {
    let outcome = parse_with(b"tasks 1\nother{a=\"\xff\"} 2\n", &Limits::default());
    assert_eq!(outcome, Err(CollectFailure::Malformed { line: 2, reason: "not UTF-8" }));
}

#[test]
fn what_is_not_an_amount_is_left_out_with_its_reason() {
    let limits = Limits::default();
    check_dropped("tasks NaN\n", &limits, &[], &[("tasks", DropReason::NotFinite, 1)]);
    check_dropped(
        "tasks{a=\"1\"} +Inf\ntasks{a=\"2\"} -Inf\ntasks{a=\"3\"} 1e999\ntasks 1\n",
        &limits,
        &["tasks{} 1"],
        &[("tasks", DropReason::NotFinite, 3)],
    );
    check_dropped(
        "requests_total -1\ntasks 1\nother -1\n",
        &limits,
        &["tasks{} 1"],
        &[("requests_total", DropReason::Negative, 1)],
    );
}

#[test]
fn of_a_series_that_occurs_twice_no_copy_is_believed() {
    let body = "tasks{a=\"1\",b=\"2\"} 1\ntasks{a=\"1\"} 5\ntasks{b=\"2\",a=\"1\"} NaN\n";
    let dropped = [("tasks", DropReason::Duplicate, 2)];
    check_dropped(body, &Limits::default(), &["tasks{a=1} 5"], &dropped);
}

#[test]
fn what_passes_a_limit_is_left_out_and_counted() {
    let two = Limits { series_per_pod: 2, ..Limits::default() };
    let body = "tasks{a=\"1\"} 1\nother 1\ntasks{a=\"2\"} 2\ntasks{a=\"3\"} 3\ntasks{a=\"4\"} 4\n";
    let kept = ["tasks{a=1} 1", "tasks{a=2} 2"];
    check_dropped(body, &two, &kept, &[("tasks", DropReason::TooManySeries, 2)]);

    let short = Limits { labels_per_series: 2, label_bytes_per_series: 20, ..Limits::default() };
    let body = "tasks{a=\"\",b=\"\",c=\"\"} 1\ntasks{a=\"123456789012345678\"} 1\ntasks 1\n";
    check_dropped(body, &short, &["tasks{} 1"], &[("tasks", DropReason::LabelsTooLarge, 2)]);

    let limits = Limits { body_bytes: 4, ..Limits::default() };
    let outcome = parse_with(b"tasks 1\n", &limits);
    assert_eq!(outcome, Err(CollectFailure::TooLarge { limit_bytes: 4 }));
}

/// Changes, cuts, doubles and inserts at random; half of the inserted bytes mean something to the grammar.
fn mutate(body: &mut Vec<u8>, random: &mut StdRng) {
    const MEANT: &[u8] = b"{}\"\\=,#\n \t\r.+-eNI0\xff\xc3\xa4";
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=body.len());
        let end = (at + random.random_range(0..20)).min(body.len());
        let byte = if random.random() {
            MEANT[random.random_range(0..MEANT.len())]
        } else {
            random.random()
        };
        match random.random_range(0..4) {
            0 => body.insert(at, byte),
            1 => drop(body.drain(at..end)),
            2 => body.truncate(end),
            _ => body.extend_from_within(at..end),
        }
    }
}

#[test]
fn no_mutation_of_an_answer_panics_or_yields_what_is_promised_never_to_come() {
    const SEED: &str = "# HELP tasks Live \"tasks\".\n# TYPE tasks gauge\ntasks{runtime=\"a\\\\b\\n\\\"ä\"} 1.5e3 1799999999000\n\
         requests_total{code=\"200\",} 7 # {trace=\"x\"} 0.1 1.5\nlatency_seconds_bucket{le=\"+Inf\"} 4\n\
         latency_seconds_sum -0.5\ntasks NaN\nqueue:depth{a=\"1\"} 1\nqueue:depth{a=\"1\"} 2\n# EOF\n";
    let limits = Limits { series_per_pod: 3, ..Limits::default() };
    let mut random = StdRng::seed_from_u64(42);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..20_000 {
        let mut body = SEED.as_bytes().to_vec();
        mutate(&mut body, &mut random);
        match parse_with(&body, &limits) {
            Ok(parsed) => {
                good += 1;
                assert!(parsed.samples.len() <= limits.series_per_pod);
                let mut seen = std::collections::HashSet::new();
                for sample in parsed.samples {
                    assert!(sample.value.is_finite() && sample.value >= 0.0, "{sample:?}");
                    assert!(seen.insert(sample.series));
                }
            }
            Err(CollectFailure::Malformed { line, .. }) => {
                bad += 1;
                let lines = body.iter().filter(|byte| **byte == b'\n').count() + 1;
                assert!((1..=lines).contains(&line), "line {line} of {lines}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    // Both sides of the grammar were visited.
    assert!(good > 1_000 && bad > 1_000, "{good} good, {bad} bad");
}
