//! The text formats: Prometheus 0.0.4 and OpenMetrics 1.0.
//!
//! In: families, gathered or written one value at a time. Out: lines. Never: a line that the format forbids; its rules (a
//! counter's samples end in `_total`, timestamps in seconds, `# EOF`) are applied here.

use std::fmt::Write as _;
use std::sync::LazyLock;

use prometheus::proto::{Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::{HistogramSink, Sink};
use crate::agent::http_layer::{Exemplar, Exemplars};
use crate::signals::exponential::{CLASSIC_BUCKETS, Snapshot, classic_bound};
use crate::signals::{Family, FamilyKind};
use crate::time::Timestamp;

/// The bounds of the classic buckets as label values, and `+Inf`. They are the shortest that read back as the same number.
type Bounds = [String; CLASSIC_BUCKETS + 1];
static BOUNDS: LazyLock<Bounds> = LazyLock::new(|| bounds(bound));
static OPEN_BOUNDS: LazyLock<Bounds> = LazyLock::new(|| bounds(open_bound));

fn bounds(print: fn(&mut String, f64)) -> Bounds {
    std::array::from_fn(|bucket| {
        let mut text = String::new();
        print(&mut text, classic_bound(bucket));
        text
    })
}

fn bound(text: &mut String, bound: f64) {
    number(text, bound);
}

/// OpenMetrics wants `1.0` where the text format has always had `1`.
fn open_bound(text: &mut String, bound: f64) {
    number(text, bound);
    if bound.is_finite() && !text.contains('.') {
        text.push_str(".0");
    }
}

/// Writes bodies, one after the other. What it needs besides the body is kept for the next.
#[derive(Debug, Default)]
pub(in crate::agent) struct Writer {
    /// OpenMetrics.
    open: bool,
    body: String,
    /// For the next body, so that it is allocated once.
    size: usize,
    /// The family that is being written, with its name as samples have it.
    family: &'static str,
    name: String,
    suffix: &'static str,
    /// The label pairs of the series that is being written.
    labels: String,
}

impl Writer {
    /// Starts a body, of OpenMetrics if `open`.
    pub(super) fn begin(&mut self, open: bool) {
        self.body = String::with_capacity(self.size);
        (self.open, self.family) = (open, "");
    }

    /// The body that was written.
    pub(super) fn finish(&mut self) -> String {
        if self.open {
            self.body.push_str("# EOF\n");
        }
        self.size = super::with_room(self.body.len());
        std::mem::take(&mut self.body)
    }

    /// Writes a family of the registry.
    pub(super) fn gathered(&mut self, family: &MetricFamily) {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => FamilyKind::Counter,
            MetricType::GAUGE => FamilyKind::Gauge,
            MetricType::HISTOGRAM => FamilyKind::Histogram,
            // The prometheus crate has no metric of these kinds; a foreign collector's are left out.
            MetricType::SUMMARY | MetricType::UNTYPED => return,
        };
        self.head(family.name(), kind, family.help());
        for metric in family.get_metric() {
            let pairs =
                metric.get_label().iter().map(|pair: &LabelPair| (pair.name(), pair.value()));
            self.series(pairs);
            let millis = metric.timestamp_ms();
            let at = (millis != 0).then(|| Timestamp::from_millis(millis));
            match kind {
                FamilyKind::Histogram => self.gathered_histogram(metric, at),
                FamilyKind::Counter => {
                    self.sample(self.suffix, metric.get_counter().get_value(), at)
                }
                FamilyKind::Gauge => self.sample("", metric.get_gauge().get_value(), at),
            }
        }
    }

    fn head(&mut self, name: &str, kind: FamilyKind, help: &str) {
        let counter_suffix = if self.open && kind == FamilyKind::Counter { "_total" } else { "" };
        self.name.clear();
        self.name.push_str(name.strip_suffix(counter_suffix).unwrap_or(name));
        self.suffix = counter_suffix;
        if !help.is_empty() {
            self.body.extend(["# HELP ", &self.name, " "]);
            escape(&mut self.body, help, self.open);
            self.body.push('\n');
        }
        let kind = match kind {
            FamilyKind::Counter => "counter",
            FamilyKind::Gauge => "gauge",
            FamilyKind::Histogram => "histogram",
        };
        self.body.extend(["# TYPE ", &self.name, " ", kind, "\n"]);
    }

    /// Keeps the label pairs for the samples that follow.
    fn series<'a>(&mut self, pairs: impl Iterator<Item = (&'a str, &'a str)>) {
        self.labels.clear();
        for (name, value) in pairs {
            self.labels.extend([if self.labels.is_empty() { "" } else { "," }, name, "=\""]);
            escape(&mut self.labels, value, true);
            self.labels.push('"');
        }
    }

    fn series_of(&mut self, family: &'static Family, values: &[&str]) {
        if self.family != family.name {
            self.head(family.name, family.kind, family.help);
            self.family = family.name;
        }
        self.series(family.labels.iter().copied().zip(values.iter().copied()));
    }

    fn gathered_histogram(&mut self, metric: &Metric, at: Option<Timestamp>) {
        let histogram: &Histogram = metric.get_histogram();
        let print = if self.open { open_bound } else { bound };
        let mut bound = String::new();
        for bucket in histogram.get_bucket() {
            if bucket.upper_bound().is_infinite() {
                continue;
            }
            bound.clear();
            print(&mut bound, bucket.upper_bound());
            self.bucket(&bound, bucket.cumulative_count());
            self.end(at);
        }
        self.bucket("+Inf", histogram.get_sample_count());
        self.end(at);
        self.sample("_sum", histogram.get_sample_sum(), at);
        self.sample("_count", histogram.get_sample_count() as f64, at);
    }

    /// A line up to the value.
    fn sample(&mut self, suffix: &str, value: f64, at: Option<Timestamp>) {
        self.body.extend([&self.name, suffix]);
        if !self.labels.is_empty() {
            self.body.extend(["{", &self.labels, "}"]);
        }
        self.body.push(' ');
        number(&mut self.body, value);
        self.end(at);
    }

    /// The line of a bucket up to its count.
    fn bucket(&mut self, bound: &str, cumulative: u64) {
        self.body.extend([&self.name, "_bucket{", &self.labels]);
        self.body.extend([if self.labels.is_empty() { "le=\"" } else { ",le=\"" }, bound, "\"} "]);
        // Writing to a String cannot fail.
        let _ = write!(self.body, "{cumulative}");
    }

    fn end(&mut self, at: Option<Timestamp>) {
        if let Some(millis) = at.map(Timestamp::as_millis) {
            // Writing to a String cannot fail.
            let _ = match self.open {
                false => write!(self.body, " {millis}"),
                true => {
                    write!(self.body, " {}.{:03}", millis.div_euclid(1000), millis.rem_euclid(1000))
                }
            };
        }
        self.body.push('\n');
    }

    fn exemplar(&mut self, exemplar: &Exemplar) {
        let Exemplar { trace, span, duration, at } = exemplar;
        // Writing to a String cannot fail.
        let _ = write!(
            self.body,
            " # {{trace_id=\"{trace:032x}\",span_id=\"{span:016x}\"}} {}",
            duration.as_secs_f64()
        );
        let millis = at.as_millis();
        let _ = write!(self.body, " {}.{:03}", millis.div_euclid(1000), millis.rem_euclid(1000));
    }
}

impl Sink for Writer {
    fn number(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        value: f64,
        at: Option<Timestamp>,
    ) {
        self.series_of(family, labels);
        self.sample(self.suffix, value, at);
    }
}

impl HistogramSink for Writer {
    fn histogram(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        durations: &Snapshot,
        exemplars: &Exemplars,
    ) {
        self.series_of(family, labels);
        let bounds: &Bounds = if self.open { &OPEN_BOUNDS } else { &BOUNDS };
        let count = durations.count();
        for (bucket, cumulative) in durations.classic().chain([count]).enumerate() {
            self.bucket(&bounds[bucket], cumulative);
            if self.open
                && let Some(exemplar) = exemplars.of(bucket)
            {
                self.exemplar(&exemplar);
            }
            self.body.push('\n');
        }
        self.sample("_sum", durations.sum().as_secs_f64(), None);
        self.sample("_count", count as f64, None);
    }
}

fn number(body: &mut String, value: f64) {
    // Writing to a String cannot fail.
    let _ = match value {
        f64::INFINITY => write!(body, "+Inf"),
        f64::NEG_INFINITY => write!(body, "-Inf"),
        _ => write!(body, "{value}"),
    };
}

/// Both formats escape backslash and line feed; quotes in label values, and in OpenMetrics in help texts too.
fn escape(body: &mut String, text: &str, quotes: bool) {
    let special = |byte: u8| byte == b'\\' || byte == b'\n' || (quotes && byte == b'"');
    if !text.bytes().any(special) {
        body.push_str(text);
        return;
    }
    for character in text.chars() {
        match character {
            '\\' => body.push_str("\\\\"),
            '\n' => body.push_str("\\n"),
            '"' if quotes => body.push_str("\\\""),
            other => body.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

    fn written(open: bool, families: &[MetricFamily]) -> String {
        let mut writer = Writer::default();
        writer.begin(open);
        families.iter().for_each(|family| writer.gathered(family));
        writer.finish()
    }

    fn gathered() -> Vec<MetricFamily> {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("jobs_total", "Jobs \"done\"\\"), &["kind"])
            .expect("valid options");
        counter.with_label_values(&["a\"b\\c\nd"]).inc_by(3);
        let options = HistogramOpts::new("wait_seconds", "Waits").buckets(vec![0.5, 1.0]);
        let histogram = HistogramVec::new(options, &["queue"]).expect("valid options");
        histogram.with_label_values(&["q"]).observe(0.7);
        registry.register(Box::new(counter)).expect("not registered before");
        registry.register(Box::new(histogram)).expect("not registered before");
        let mut families = registry.gather();
        families[0].mut_metric()[0].set_timestamp_ms(1_790_000_000_042);
        families
    }

    #[test]
    fn text_has_full_counter_names_and_milliseconds() {
        let expected = "# HELP jobs_total Jobs \"done\"\\\\\n# TYPE jobs_total counter\n\
                        jobs_total{kind=\"a\\\"b\\\\c\\nd\"} 3 1790000000042\n\
                        # HELP wait_seconds Waits\n# TYPE wait_seconds histogram\n\
                        wait_seconds_bucket{queue=\"q\",le=\"0.5\"} 0\n\
                        wait_seconds_bucket{queue=\"q\",le=\"1\"} 1\n\
                        wait_seconds_bucket{queue=\"q\",le=\"+Inf\"} 1\n\
                        wait_seconds_sum{queue=\"q\"} 0.7\nwait_seconds_count{queue=\"q\"} 1\n";
        assert_eq!(written(false, &gathered()), expected);
    }

    #[test]
    fn openmetrics_names_the_counter_family_without_total_and_ends_in_eof() {
        let expected = "# HELP jobs Jobs \\\"done\\\"\\\\\n# TYPE jobs counter\n\
                        jobs_total{kind=\"a\\\"b\\\\c\\nd\"} 3 1790000000.042\n\
                        # HELP wait_seconds Waits\n# TYPE wait_seconds histogram\n\
                        wait_seconds_bucket{queue=\"q\",le=\"0.5\"} 0\n\
                        wait_seconds_bucket{queue=\"q\",le=\"1.0\"} 1\n\
                        wait_seconds_bucket{queue=\"q\",le=\"+Inf\"} 1\n\
                        wait_seconds_sum{queue=\"q\"} 0.7\nwait_seconds_count{queue=\"q\"} 1\n# EOF\n";
        assert_eq!(written(true, &gathered()), expected);
    }

    #[test]
    fn text_is_what_the_prometheus_crate_writes() {
        let families = gathered();
        let theirs =
            prometheus::TextEncoder::new().encode_to_string(&families).expect("valid families");
        assert_eq!(written(false, &families), theirs);
    }
}
