//! Prometheus' protobuf format, the only one with native histograms.
//!
//! In: families, gathered or written one value at a time. Out: messages, each after its length. Never: a field that the
//! message of github.com/prometheus/client_model does not have under that number.
//!
//! A latency histogram has its native and its classic buckets, and the exemplars at the classic ones: Prometheus takes the
//! native part alone unless told otherwise (`always_scrape_classic_histograms`).

use prometheus::proto::{self, MetricType};
use prost::Message as _;

use super::Sink;
use crate::agent::http_layer::{Exemplar, Exemplars};
use crate::signals::exponential::{Snapshot, classic_bound};
use crate::signals::{Family, FamilyKind};

/// The messages of `io/prometheus/client/metrics.proto`, as far as they are needed here.
mod message {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct LabelPair {
        #[prost(string, optional, tag = "1")]
        pub(super) name: Option<String>,
        #[prost(string, optional, tag = "2")]
        pub(super) value: Option<String>,
    }

    /// Counter and gauge alike.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Number {
        #[prost(double, optional, tag = "1")]
        pub(super) value: Option<f64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Timestamp {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Exemplar {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(double, optional, tag = "2")]
        pub(super) value: Option<f64>,
        #[prost(message, optional, tag = "3")]
        pub(super) timestamp: Option<Timestamp>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Bucket {
        #[prost(uint64, optional, tag = "1")]
        pub(super) cumulative_count: Option<u64>,
        #[prost(double, optional, tag = "2")]
        pub(super) upper_bound: Option<f64>,
        #[prost(message, optional, tag = "3")]
        pub(super) exemplar: Option<Exemplar>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct BucketSpan {
        #[prost(sint32, optional, tag = "1")]
        pub(super) offset: Option<i32>,
        #[prost(uint32, optional, tag = "2")]
        pub(super) length: Option<u32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Histogram {
        #[prost(uint64, optional, tag = "1")]
        pub(super) sample_count: Option<u64>,
        #[prost(double, optional, tag = "2")]
        pub(super) sample_sum: Option<f64>,
        #[prost(message, repeated, tag = "3")]
        pub(super) bucket: Vec<Bucket>,
        #[prost(sint32, optional, tag = "5")]
        pub(super) schema: Option<i32>,
        #[prost(double, optional, tag = "6")]
        pub(super) zero_threshold: Option<f64>,
        #[prost(uint64, optional, tag = "7")]
        pub(super) zero_count: Option<u64>,
        #[prost(message, repeated, tag = "12")]
        pub(super) positive_span: Vec<BucketSpan>,
        #[prost(sint64, repeated, tag = "13")]
        pub(super) positive_delta: Vec<i64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Metric {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(message, optional, tag = "2")]
        pub(super) gauge: Option<Number>,
        #[prost(message, optional, tag = "3")]
        pub(super) counter: Option<Number>,
        #[prost(int64, optional, tag = "6")]
        pub(super) timestamp_ms: Option<i64>,
        #[prost(message, optional, tag = "7")]
        pub(super) histogram: Option<Histogram>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MetricFamily {
        #[prost(string, optional, tag = "1")]
        pub(super) name: Option<String>,
        #[prost(string, optional, tag = "2")]
        pub(super) help: Option<String>,
        #[prost(int32, optional, tag = "3")]
        pub(super) kind: Option<i32>,
        #[prost(message, repeated, tag = "4")]
        pub(super) metric: Vec<Metric>,
    }

    /// Of the enumeration `MetricType`.
    pub(super) const COUNTER: i32 = 0;
    pub(super) const GAUGE: i32 = 1;
    pub(super) const HISTOGRAM: i32 = 4;
}

use message::{Bucket, BucketSpan, LabelPair, Metric, Number};

/// As many buckets as the default of Prometheus' own client.
const MAX_NATIVE_BUCKETS: usize = 160;

pub(super) struct Writer {
    body: Vec<u8>,
    /// The family that is being written.
    family: Option<(FamilyKind, message::MetricFamily)>,
    label_names: &'static [&'static str],
}

impl Writer {
    pub(super) fn new(size: usize) -> Self {
        Self { body: Vec::with_capacity(size), family: None, label_names: &[] }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.end_family();
        self.body
    }

    /// Writes a family of the registry.
    pub(super) fn gathered(&mut self, family: &proto::MetricFamily) {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => FamilyKind::Counter,
            MetricType::GAUGE => FamilyKind::Gauge,
            MetricType::HISTOGRAM => FamilyKind::Histogram,
            // The prometheus crate has no metric of these kinds; a foreign collector's are left out.
            MetricType::SUMMARY | MetricType::UNTYPED => return,
        };
        self.begin_family(family.name(), kind, family.help());
        for metric in family.get_metric() {
            let pairs = metric.get_label().iter();
            let label = pairs.map(|pair| label_pair(pair.name(), pair.value())).collect();
            let timestamp_ms = Some(metric.timestamp_ms()).filter(|&millis| millis != 0);
            self.metric(match kind {
                FamilyKind::Counter => {
                    let counter = Some(number(metric.get_counter().get_value()));
                    Metric { label, timestamp_ms, counter, ..Metric::default() }
                }
                FamilyKind::Gauge => {
                    let gauge = Some(number(metric.get_gauge().get_value()));
                    Metric { label, timestamp_ms, gauge, ..Metric::default() }
                }
                FamilyKind::Histogram => {
                    let histogram = Some(classic_histogram(metric.get_histogram()));
                    Metric { label, timestamp_ms, histogram, ..Metric::default() }
                }
            });
        }
    }

    fn begin_family(&mut self, name: &str, kind: FamilyKind, help: &str) {
        self.end_family();
        let number = match kind {
            FamilyKind::Counter => message::COUNTER,
            FamilyKind::Gauge => message::GAUGE,
            FamilyKind::Histogram => message::HISTOGRAM,
        };
        let family = message::MetricFamily {
            name: Some(name.to_owned()),
            help: Some(help.to_owned()),
            kind: Some(number),
            metric: Vec::new(),
        };
        self.family = Some((kind, family));
    }

    fn end_family(&mut self) {
        if let Some((_, family)) = self.family.take() {
            family.encode_length_delimited(&mut self.body).expect("a Vec grows as needed");
        }
    }

    fn metric(&mut self, metric: Metric) {
        if let Some((_, family)) = &mut self.family {
            family.metric.push(metric);
        }
    }

    fn labels(&self, values: &[&str]) -> Vec<LabelPair> {
        self.label_names.iter().zip(values).map(|(name, value)| label_pair(name, value)).collect()
    }
}

impl Sink for Writer {
    fn family(&mut self, family: &Family) {
        self.label_names = family.labels;
        self.begin_family(family.name, family.kind, family.help);
    }

    fn number(&mut self, labels: &[&str], value: f64) {
        let is_counter = matches!(self.family, Some((FamilyKind::Counter, _)));
        let value = Some(number(value));
        let (counter, gauge) = if is_counter { (value, None) } else { (None, value) };
        self.metric(Metric { label: self.labels(labels), counter, gauge, ..Metric::default() });
    }

    fn histogram(&mut self, labels: &[&str], durations: &Snapshot, exemplars: &Exemplars) {
        let count = durations.count();
        let bucket = |(index, cumulative)| Bucket {
            cumulative_count: Some(cumulative),
            upper_bound: Some(classic_bound(index)),
            exemplar: exemplars.of(index).map(exemplar),
        };
        let native = durations.native(MAX_NATIVE_BUCKETS);
        let spans = native.spans.into_iter();
        let histogram = message::Histogram {
            sample_count: Some(count),
            sample_sum: Some(durations.sum().as_secs_f64()),
            bucket: durations.classic().chain([count]).enumerate().map(bucket).collect(),
            schema: Some(native.schema),
            zero_threshold: Some(native.zero_threshold),
            zero_count: Some(native.zero_count),
            positive_span: spans
                .map(|span| BucketSpan { offset: Some(span.offset), length: Some(span.length) })
                .collect(),
            positive_delta: native.deltas,
        };
        let (label, histogram) = (self.labels(labels), Some(histogram));
        self.metric(Metric { label, histogram, ..Metric::default() });
    }
}

fn label_pair(name: &str, value: &str) -> LabelPair {
    LabelPair { name: Some(name.to_owned()), value: Some(value.to_owned()) }
}

fn number(value: f64) -> Number {
    Number { value: Some(value) }
}

fn classic_histogram(histogram: &proto::Histogram) -> message::Histogram {
    let buckets = histogram.get_bucket().iter().map(|bucket| Bucket {
        cumulative_count: Some(bucket.cumulative_count()),
        upper_bound: Some(bucket.upper_bound()),
        exemplar: None,
    });
    message::Histogram {
        sample_count: Some(histogram.get_sample_count()),
        sample_sum: Some(histogram.get_sample_sum()),
        bucket: buckets.collect(),
        ..message::Histogram::default()
    }
}

fn exemplar(exemplar: Exemplar) -> message::Exemplar {
    let Exemplar { trace, span, duration, at } = exemplar;
    let millis = at.as_millis();
    let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or(0);
    message::Exemplar {
        label: vec![
            label_pair("trace_id", &format!("{trace:032x}")),
            label_pair("span_id", &format!("{span:016x}")),
        ],
        value: Some(duration.as_secs_f64()),
        timestamp: Some(message::Timestamp { seconds: millis.div_euclid(1000), nanos }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::signals::catalogue::families;
    use crate::signals::exponential;

    fn decoded(writer: Writer) -> Vec<message::MetricFamily> {
        let body = writer.finish();
        let (mut rest, mut families) = (body.as_slice(), Vec::new());
        while !rest.is_empty() {
            let family = message::MetricFamily::decode_length_delimited(&mut rest);
            families.push(family.expect("a whole message"));
        }
        families
    }

    #[test]
    fn families_of_the_registry_keep_kind_value_and_time() {
        let registry = prometheus::Registry::new();
        let jobs = prometheus::IntCounter::new("jobs_total", "Jobs").expect("a valid name");
        let depth = prometheus::IntGauge::new("queue_depth", "Jobs waiting").expect("a valid name");
        let options = prometheus::HistogramOpts::new("wait_seconds", "Waits");
        let waits = prometheus::Histogram::with_opts(options.buckets(vec![0.5, 1.0]));
        let waits = waits.expect("valid options");
        jobs.inc_by(3);
        depth.set(-2);
        waits.observe(0.7);
        registry.register(Box::new(jobs)).expect("a new name");
        registry.register(Box::new(depth)).expect("a new name");
        registry.register(Box::new(waits)).expect("a new name");
        let mut gathered = registry.gather();
        gathered[0].mut_metric()[0].set_timestamp_ms(1_790_000_000_042);
        let mut writer = Writer::new(0);
        gathered.iter().for_each(|family| writer.gathered(family));
        let families = decoded(writer);
        let kinds: Vec<_> =
            families.iter().map(|family| (family.name.as_deref(), family.kind)).collect();
        let expected = [("jobs_total", 0), ("queue_depth", 1), ("wait_seconds", 4)];
        assert_eq!(kinds, expected.map(|(name, kind)| (Some(name), Some(kind))));
        let [jobs, depth, waits] = [0, 1, 2].map(|index| &families[index].metric[0]);
        assert_eq!(jobs.counter, Some(number(3.0)));
        assert_eq!(jobs.timestamp_ms, Some(1_790_000_000_042));
        assert_eq!((depth.gauge.clone(), depth.timestamp_ms), (Some(number(-2.0)), None));
        let waits = waits.histogram.as_ref().expect("a histogram");
        assert_eq!((waits.sample_count, waits.schema, waits.bucket.len()), (Some(1), None, 2));
        assert_eq!(waits.bucket[1].cumulative_count, Some(1));
    }

    #[test]
    fn a_latency_histogram_has_native_and_classic_buckets_of_the_same_requests() {
        let histogram = exponential::Histogram::default();
        for millis in [1, 20, 20, 700, 60_000] {
            histogram.record(Duration::from_millis(millis));
        }
        let mut durations = Snapshot::default();
        histogram.add_to(&mut durations);
        let mut writer = Writer::new(0);
        writer.family(&families::REQUEST_DURATION);
        writer.histogram(&["GET /", "", "200"], &durations, &Exemplars::default());
        let families = decoded(writer);
        let metric = &families[0].metric[0];
        let values: Vec<_> = metric.label.iter().map(|pair| pair.value.as_deref()).collect();
        assert_eq!(values, [Some("GET /"), Some(""), Some("200")]);
        let histogram = metric.histogram.as_ref().expect("a histogram");
        assert_eq!((histogram.sample_count, histogram.schema), (Some(5), Some(3)));
        let last = histogram.bucket.last().expect("classic buckets");
        assert_eq!((last.cumulative_count, last.upper_bound), (Some(5), Some(f64::INFINITY)));
        let counts = histogram.positive_delta.iter().scan(0, |count, delta| {
            *count += delta;
            Some(*count)
        });
        assert_eq!(counts.sum::<i64>(), 5);
    }
}
