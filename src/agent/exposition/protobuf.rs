//! Prometheus' protobuf format, the only one with native histograms.
//!
//! In: families, gathered or written one value at a time. Out: messages, each after its length. Never: a field that the
//! message of github.com/prometheus/client_model does not have under that number.
//!
//! A latency histogram has its native and its classic buckets, and the exemplars at the classic ones: Prometheus takes the
//! native part alone unless told otherwise (`always_scrape_classic_histograms`).

use prometheus::proto::{self, MetricType};

use super::{HistogramSink, Sink};
use crate::agent::http_layer::{Exemplar, Exemplars};
use crate::signals::exponential::{Native, Snapshot, classic_bound};
use crate::signals::{Family, FamilyKind};
use crate::time::Timestamp;

mod message;
use message::Message;

/// As many buckets as the default of Prometheus' own client.
const MAX_NATIVE_BUCKETS: usize = 160;

/// Writes bodies, one after the other. What it needs besides the body is kept for the next.
#[derive(Debug, Default)]
pub(super) struct Writer {
    body: Vec<u8>,
    /// For the next body, so that it is allocated once.
    size: usize,
    /// Where the family that is being written begins, if there is one.
    start: Option<usize>,
    family: &'static str,
    native: Native,
}

impl Writer {
    /// Starts a body.
    pub(super) fn begin(&mut self) {
        self.body = Vec::with_capacity(self.size);
        (self.start, self.family) = (None, "");
    }

    /// The body that was written.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.end_family();
        self.size = super::with_room(self.body.len());
        std::mem::take(&mut self.body)
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
            let mut family = Message(&mut self.body);
            family.message(4, |message| {
                for pair in metric.get_label() {
                    label(message, pair.name(), pair.value());
                }
                match kind {
                    FamilyKind::Counter => number(message, kind, metric.get_counter().get_value()),
                    FamilyKind::Gauge => number(message, kind, metric.get_gauge().get_value()),
                    FamilyKind::Histogram => {
                        message.message(7, |message| classic(message, metric.get_histogram()));
                    }
                }
                let millis = metric.timestamp_ms();
                timestamp(message, (millis != 0).then(|| Timestamp::from_millis(millis)));
            });
        }
    }

    /// `MetricFamily`: name = 1, help = 2, type = 3; its metrics (4) follow.
    fn begin_family(&mut self, name: &str, kind: FamilyKind, help: &str) {
        self.end_family();
        self.start = Some(self.body.len());
        let mut family = Message(&mut self.body);
        family.string(1, name);
        family.string(2, help);
        // Of the enumeration `MetricType`.
        family.unsigned(
            3,
            match kind {
                FamilyKind::Counter => 0,
                FamilyKind::Gauge => 1,
                FamilyKind::Histogram => 4,
            },
        );
    }

    fn end_family(&mut self) {
        if let Some(start) = self.start.take() {
            message::insert_length(&mut self.body, start);
        }
    }

    fn of_family(&mut self, family: &'static Family) {
        if self.start.is_none() || self.family != family.name {
            self.begin_family(family.name, family.kind, family.help);
            self.family = family.name;
        }
    }
}

impl Sink for Writer {
    fn number(
        &mut self,
        family: &'static Family,
        values: &[&str],
        value: f64,
        at: Option<Timestamp>,
    ) {
        self.of_family(family);
        Message(&mut self.body).message(4, |message| {
            labels(message, family, values);
            number(message, family.kind, value);
            timestamp(message, at);
        });
    }
}

impl HistogramSink for Writer {
    fn histogram(
        &mut self,
        family: &'static Family,
        values: &[&str],
        durations: &Snapshot,
        exemplars: &Exemplars,
    ) {
        self.of_family(family);
        let native = &mut self.native;
        durations.native(MAX_NATIVE_BUCKETS, native);
        Message(&mut self.body).message(4, |message| {
            labels(message, family, values);
            message.message(7, |message| {
                let count = durations.count();
                message.unsigned(1, count);
                message.double(2, durations.sum().as_secs_f64());
                for (index, cumulative) in durations.classic().chain([count]).enumerate() {
                    bucket(message, cumulative, classic_bound(index), exemplars.of(index));
                }
                message.signed(5, native.schema.into());
                message.double(6, native.zero_threshold);
                message.unsigned(7, native.zero_count);
                for span in &native.spans {
                    message.message(12, |message| {
                        message.signed(1, span.offset.into());
                        message.unsigned(2, span.length.into());
                    });
                }
                native.deltas.iter().for_each(|&delta| message.signed(13, delta));
            });
        });
    }
}

/// `Metric`: label = 1.
fn labels(metric: &mut Message<'_>, family: &Family, values: &[&str]) {
    family.labels.iter().zip(values).for_each(|(name, value)| label(metric, name, value));
}

/// `LabelPair`: name = 1, value = 2.
fn label(message: &mut Message<'_>, name: &str, value: &str) {
    message.message(1, |pair| {
        pair.string(1, name);
        pair.string(2, value);
    });
}

/// `Metric`: gauge = 2, counter = 3; both have the value = 1.
fn number(metric: &mut Message<'_>, kind: FamilyKind, value: f64) {
    let field = if kind == FamilyKind::Counter { 3 } else { 2 };
    metric.message(field, |number| number.double(1, value));
}

/// `Metric`: timestamp_ms = 6.
fn timestamp(metric: &mut Message<'_>, at: Option<Timestamp>) {
    if let Some(at) = at {
        metric.int64(6, at.as_millis());
    }
}

/// `Histogram`: sample_count = 1, sample_sum = 2, bucket = 3, schema = 5, zero_threshold = 6, zero_count = 7, positive_span =
/// 12 (offset = 1, length = 2), positive_delta = 13.
fn classic(message: &mut Message<'_>, histogram: &proto::Histogram) {
    message.unsigned(1, histogram.get_sample_count());
    message.double(2, histogram.get_sample_sum());
    for counted in histogram.get_bucket() {
        bucket(message, counted.cumulative_count(), counted.upper_bound(), None);
    }
}

/// `Bucket`: cumulative_count = 1, upper_bound = 2, exemplar = 3.
fn bucket(histogram: &mut Message<'_>, cumulative: u64, bound: f64, kept: Option<Exemplar>) {
    histogram.message(3, |bucket| {
        bucket.unsigned(1, cumulative);
        bucket.double(2, bound);
        if let Some(kept) = kept {
            bucket.message(3, |message| exemplar(message, &kept));
        }
    });
}

/// `Exemplar`: label = 1, value = 2, timestamp = 3 (seconds = 1, nanos = 2).
fn exemplar(message: &mut Message<'_>, exemplar: &Exemplar) {
    let Exemplar { trace, span, duration, at } = exemplar;
    message.message(1, |pair| {
        pair.string(1, "trace_id");
        pair.format(2, format_args!("{trace:032x}"));
    });
    message.message(1, |pair| {
        pair.string(1, "span_id");
        pair.format(2, format_args!("{span:016x}"));
    });
    message.double(2, duration.as_secs_f64());
    message.message(3, |message| {
        message.int64(1, at.as_millis().div_euclid(1_000));
        message.int64(2, at.as_millis().rem_euclid(1_000) * 1_000_000);
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message as _;

    use super::*;
    use crate::signals::catalogue::families;
    use crate::signals::exponential;
    use proto2::Number;

    /// The messages of `io/prometheus/client/metrics.proto`, to read by another code what was written.
    mod proto2 {
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
    }

    fn decoded(mut writer: Writer) -> Vec<proto2::MetricFamily> {
        let body = writer.finish();
        let (mut rest, mut families) = (body.as_slice(), Vec::new());
        while !rest.is_empty() {
            let family = proto2::MetricFamily::decode_length_delimited(&mut rest);
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
        let mut writer = Writer::default();
        writer.begin();
        gathered.iter().for_each(|family| writer.gathered(family));
        let families = decoded(writer);
        let kinds: Vec<_> =
            families.iter().map(|family| (family.name.as_deref(), family.kind)).collect();
        let expected = [("jobs_total", 0), ("queue_depth", 1), ("wait_seconds", 4)];
        assert_eq!(kinds, expected.map(|(name, kind)| (Some(name), Some(kind))));
        let [jobs, depth, waits] = [0, 1, 2].map(|index| &families[index].metric[0]);
        assert_eq!(jobs.counter, Some(Number { value: Some(3.0) }));
        assert_eq!(jobs.timestamp_ms, Some(1_790_000_000_042));
        assert_eq!(
            (depth.gauge.clone(), depth.timestamp_ms),
            (Some(Number { value: Some(-2.0) }), None)
        );
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
        let mut writer = Writer::default();
        writer.begin();
        let labels = ["GET /", "", "200"];
        let family = &families::REQUEST_DURATION;
        writer.histogram(family, &labels, &durations, &Exemplars::default());
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
