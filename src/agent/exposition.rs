//! `/metrics`: Prometheus text 0.0.4 or OpenMetrics 1.0, whichever the client prefers.
//!
//! In: gathered metric families and an `Accept` header. Out: a body and its content type. Never: an error because one family
//! is odd; the formats' own rules (a counter's samples end in `_total`, timestamps in seconds) are applied here.

use std::fmt::Write as _;

use prometheus::proto::{Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// A format that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>
    Text,
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header prefers among the two. Without a header, or if it names neither: text.
    pub(super) fn negotiate(accept: Option<&str>) -> Self {
        let mut best = (Self::Text, 0.0);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let (mut quality, mut version) = (1.0_f32, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            let format = match (media_type.to_ascii_lowercase().as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => Self::OpenMetrics,
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => Self::Text,
                _ => continue,
            };
            if quality > best.1 {
                best = (format, quality);
            }
        }
        best.0
    }

    /// The `Content-Type` of a body in this format.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes the families, in their order.
    pub(super) fn encode(self, families: &[MetricFamily]) -> String {
        let mut writer = Writer { format: self, body: String::with_capacity(16 * 1024) };
        for family in families {
            writer.family(family);
        }
        if self == Self::OpenMetrics {
            writer.body.push_str("# EOF\n");
        }
        writer.body
    }
}

struct Writer {
    format: Format,
    body: String,
}

impl Writer {
    fn family(&mut self, family: &MetricFamily) {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            // The prometheus crate has no metric of these kinds; a foreign collector's are left out.
            MetricType::SUMMARY | MetricType::UNTYPED => return,
        };
        let name = family.name();
        let open = self.format == Format::OpenMetrics;
        let is_counter = family.get_field_type() == MetricType::COUNTER;
        let base = name.strip_suffix("_total").filter(|_| is_counter && open).unwrap_or(name);
        if !family.help().is_empty() {
            self.body.extend(["# HELP ", base, " "]);
            escape(&mut self.body, family.help(), open);
            self.body.push('\n');
        }
        self.body.extend(["# TYPE ", base, " ", kind, "\n"]);
        let counter_suffix = if open && is_counter { "_total" } else { "" };
        for metric in family.get_metric() {
            match family.get_field_type() {
                MetricType::HISTOGRAM => self.histogram(base, metric),
                MetricType::COUNTER => {
                    let value = metric.get_counter().get_value();
                    self.sample(base, counter_suffix, metric, None, value);
                }
                _ => self.sample(base, "", metric, None, metric.get_gauge().get_value()),
            }
        }
    }

    fn histogram(&mut self, name: &str, metric: &Metric) {
        let histogram: &Histogram = metric.get_histogram();
        let mut bound = String::new();
        for bucket in histogram.get_bucket() {
            if bucket.upper_bound().is_infinite() {
                continue;
            }
            bound.clear();
            // OpenMetrics wants `1.0` where the text format has always had `1`.
            let _ = match self.format {
                Format::OpenMetrics => write!(bound, "{:?}", bucket.upper_bound()),
                Format::Text => write!(bound, "{}", bucket.upper_bound()),
            };
            let count = bucket.cumulative_count() as f64;
            self.sample(name, "_bucket", metric, Some(&bound), count);
        }
        let count = histogram.get_sample_count() as f64;
        self.sample(name, "_bucket", metric, Some("+Inf"), count);
        self.sample(name, "_sum", metric, None, histogram.get_sample_sum());
        self.sample(name, "_count", metric, None, count);
    }

    fn sample(&mut self, name: &str, suffix: &str, metric: &Metric, le: Option<&str>, value: f64) {
        self.body.extend([name, suffix]);
        self.labels(metric.get_label(), le);
        self.body.push(' ');
        self.number(value);
        if metric.timestamp_ms() != 0 {
            let millis = metric.timestamp_ms();
            // Writing to a String cannot fail.
            let _ = match self.format {
                Format::Text => write!(self.body, " {millis}"),
                Format::OpenMetrics => {
                    write!(self.body, " {}.{:03}", millis.div_euclid(1000), millis.rem_euclid(1000))
                }
            };
        }
        self.body.push('\n');
    }

    fn labels(&mut self, labels: &[LabelPair], le: Option<&str>) {
        if labels.is_empty() && le.is_none() {
            return;
        }
        let pairs = labels.iter().map(|pair| (pair.name(), pair.value()));
        for (index, (name, value)) in pairs.chain(le.map(|bound| ("le", bound))).enumerate() {
            self.body.extend([if index == 0 { "{" } else { "," }, name, "=\""]);
            escape(&mut self.body, value, true);
            self.body.push('"');
        }
        self.body.push('}');
    }

    fn number(&mut self, value: f64) {
        // Writing to a String cannot fail.
        let _ = match value {
            f64::INFINITY => write!(self.body, "+Inf"),
            f64::NEG_INFINITY => write!(self.body, "-Inf"),
            _ => write!(self.body, "{value}"),
        };
    }
}

/// Both formats escape backslash and line feed; quotes in label values, and in OpenMetrics in help texts too.
fn escape(body: &mut String, text: &str, quotes: bool) {
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

    fn check_accept(accept: Option<&str>, expected: Format) {
        assert_eq!(Format::negotiate(accept), expected, "{accept:?}");
    }

    #[test]
    fn the_clients_preference_decides() {
        check_accept(None, Format::Text);
        check_accept(Some("*/*"), Format::Text);
        // Prometheus 3.5 with native histograms off.
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        check_accept(Some(prometheus), Format::OpenMetrics);
        check_accept(Some("text/plain;q=0.9, application/openmetrics-text;q=0.2"), Format::Text);
        check_accept(Some("application/openmetrics-text; version=0.0.1"), Format::Text);
        check_accept(Some("application/openmetrics-text; version=\"1.0.0\""), Format::OpenMetrics);
        check_accept(Some("application/openmetrics-text;q=0"), Format::Text);
        check_accept(Some("application/json"), Format::Text);
        check_accept(Some(";;,q=,;"), Format::Text);
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
        assert_eq!(Format::Text.encode(&gathered()), expected);
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
        assert_eq!(Format::OpenMetrics.encode(&gathered()), expected);
    }

    #[test]
    fn text_is_what_the_prometheus_crate_writes() {
        let families = gathered();
        let theirs =
            prometheus::TextEncoder::new().encode_to_string(&families).expect("valid families");
        assert_eq!(Format::Text.encode(&families), theirs);
    }
}
