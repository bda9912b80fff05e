//! The service's signals under Headroom's names, from whatever its client library calls them.
//!
//! In: the families of the service. Out: families of the catalogue that the service does not serve itself, and a sentence about
//! each that could not be made. Never: a family that the service serves under the very name, a percentile made of a summary,
//! or an allocation that was not counted.
//!
//! The families are those that a policy reads without a sidecar too (`signals::catalogue`), so that adding one moves no demand.

use std::collections::BTreeMap;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::target_families::{TargetFamily, TargetSample};
use crate::signals::catalogue::families;
use crate::signals::{Family, FamilyKind};

/// A family whose samples are added up.
struct SumRule {
    family: &'static str,
    /// Only samples whose label has this value; a sample without the label counts.
    only: Option<(&'static str, &'static str)>,
    scale: f64,
    /// Who serves it.
    runtime: &'static str,
}

const fn sum(family: &'static str, runtime: &'static str) -> SumRule {
    SumRule { family, only: None, scale: 1.0, runtime }
}

const HEAP: [SumRule; 7] = [
    sum("go_memstats_heap_inuse_bytes", "Go client_golang"),
    SumRule {
        only: Some(("area", "heap")),
        ..sum("jvm_memory_used_bytes", "JVM Micrometer, client_java 1")
    },
    SumRule { only: Some(("area", "heap")), ..sum("jvm_memory_bytes_used", "JVM client_java 0") },
    sum("nodejs_heap_size_used_bytes", "Node.js prom-client"),
    sum("dotnet_gc_last_collection_heap_size_bytes", ".NET 9 System.Runtime"),
    sum("process_runtime_dotnet_gc_heap_size_bytes", ".NET OpenTelemetry runtime"),
    sum("dotnet_total_memory_bytes", ".NET prometheus-net"),
];

const ALLOCATION: [SumRule; 5] = [
    sum("go_memstats_alloc_bytes_total", "Go client_golang"),
    sum("jvm_gc_memory_allocated_bytes_total", "JVM Micrometer"),
    sum("jvm_memory_pool_allocated_bytes_total", "JVM client_java"),
    sum("dotnet_gc_heap_total_allocated_bytes_total", ".NET 9 System.Runtime"),
    sum("process_runtime_dotnet_gc_allocations_size_bytes_total", ".NET OpenTelemetry runtime"),
];

const CPU: [SumRule; 2] = [
    SumRule { scale: 1e-9, ..sum("process_cpu_time_ns_total", "JVM Micrometer") },
    sum("dotnet_process_cpu_time_seconds_total", ".NET 9 System.Runtime"),
];

/// A histogram of request durations.
struct LatencyRule {
    family: &'static str,
    seconds: f64,
    runtime: &'static str,
    /// How its own buckets are switched on, where it is often a summary.
    buckets: &'static str,
}

const OWN_BUCKETS: &str = "make it a histogram";
const LATENCY: [LatencyRule; 8] = [
    LatencyRule {
        family: families::REQUEST_DURATION.name,
        seconds: 1.0,
        runtime: ".NET 8, OpenTelemetry",
        buckets: OWN_BUCKETS,
    },
    LatencyRule {
        family: "http_server_requests_seconds",
        seconds: 1.0,
        runtime: "JVM Micrometer (Spring Boot)",
        buckets: "set management.metrics.distribution.percentiles-histogram.http.server.requests=true",
    },
    LatencyRule {
        family: "http_request_duration_seconds",
        seconds: 1.0,
        runtime: "Go promhttp, Node.js prom-client, Python prometheus-fastapi-instrumentator",
        buckets: OWN_BUCKETS,
    },
    LatencyRule {
        family: "starlette_request_duration_seconds",
        seconds: 1.0,
        runtime: "Python starlette_exporter",
        buckets: OWN_BUCKETS,
    },
    LatencyRule {
        family: "flask_http_request_duration_seconds",
        seconds: 1.0,
        runtime: "Python prometheus-flask-exporter",
        buckets: OWN_BUCKETS,
    },
    LatencyRule {
        family: "http_request_duration_ms",
        seconds: 1e-3,
        runtime: "Node.js prom-client",
        buckets: OWN_BUCKETS,
    },
    LatencyRule {
        family: "http_request_duration_milliseconds",
        seconds: 1e-3,
        runtime: "Node.js prom-client",
        buckets: OWN_BUCKETS,
    },
    LatencyRule {
        family: "http_server_duration_milliseconds",
        seconds: 1e-3,
        runtime: "OpenTelemetry before 1.21",
        buckets: OWN_BUCKETS,
    },
];

/// What client libraries call the parts of a request, in the order in which they are looked for.
const METHOD: [&str; 3] = ["http_request_method", "method", "http_method"];
const ROUTE: [&str; 6] = ["http_route", "route", "uri", "handler", "path", "url"];
const STATUS: [&str; 5] =
    ["http_response_status_code", "status_code", "status", "code", "http_status_code"];
const ERROR: [&str; 2] = ["error_type", "exception"];

/// What could be made.
#[derive(Debug, Default)]
pub(super) struct Normalised {
    pub(super) families: Vec<MetricFamily>,
    /// The name that was made, and the service's family it was made of.
    pub(super) made: Vec<(&'static str, String)>,
    /// What could not be made, and why.
    pub(super) notes: Vec<String>,
    /// The service's own family under our name, which gets labels; the others are passed on as they are.
    pub(super) replaced: Option<&'static str>,
}

/// Makes what the service's families allow.
pub(super) fn normalise(served: &[TargetFamily<'_>]) -> Normalised {
    let mut made = Normalised::default();
    made.sum(&families::HEAP_ALLOCATED, &HEAP, served);
    made.sum(&families::HEAP_ALLOCATION_BYTES, &ALLOCATION, served);
    made.sum(&families::PROCESS_CPU, &CPU, served);
    made.latency(served);
    made
}

fn find<'a>(served: &'a [TargetFamily<'a>], name: &str) -> Option<&'a TargetFamily<'a>> {
    served.iter().find(|family| family.name == name)
}

impl Normalised {
    fn sum(&mut self, family: &'static Family, rules: &[SumRule], served: &[TargetFamily<'_>]) {
        if find(served, family.name).is_some() {
            return;
        }
        for rule in rules {
            let Some(source) = find(served, rule.family) else { continue };
            let counts = |sample: &&TargetSample<'_>| {
                rule.only
                    .is_none_or(|(label, value)| sample.label(label).is_none_or(|is| is == value))
            };
            let values: Vec<f64> = source.samples.iter().filter(counts).map(|s| s.value).collect();
            let total = values.iter().sum::<f64>() * rule.scale;
            if !values.is_empty() && total.is_finite() && total >= 0.0 {
                self.families.push(plain(family, total));
                self.made.push((family.name, format!("{} ({})", rule.family, rule.runtime)));
                return;
            }
        }
    }

    fn latency(&mut self, served: &[TargetFamily<'_>]) {
        let family = &families::REQUEST_DURATION;
        let own = find(served, family.name);
        let labelled = |family: &TargetFamily<'_>| {
            family.samples.iter().any(|sample| sample.label("endpoint").is_some())
        };
        if own.is_some_and(labelled) {
            return;
        }
        for rule in &LATENCY {
            let Some(source) = find(served, rule.family) else { continue };
            if source.kind != "histogram" {
                self.notes.push(format!(
                    "{} is a {} without buckets, from which no quantile of several pods follows: {}",
                    rule.family, source.kind, rule.buckets
                ));
                continue;
            }
            match histograms(source, rule) {
                Ok(metrics) => {
                    self.families.push(histogram_family(family, metrics));
                    self.made.push((family.name, format!("{} ({})", rule.family, rule.runtime)));
                    if rule.family == family.name {
                        self.replaced = Some(rule.family);
                    }
                    return;
                }
                Err(why) => self.notes.push(format!("{}: {why}", rule.family)),
            }
        }
    }
}

/// The labels of a series that is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct RequestLabels {
    endpoint: String,
    status_code: String,
    error_type: String,
    /// Those of the service, where the family keeps its name and so its labels.
    kept: Vec<(String, String)>,
}

#[derive(Default)]
struct Merged {
    /// Upper bound (as bits, which order like the positive numbers they are) and cumulative count.
    buckets: BTreeMap<u64, f64>,
    parts: usize,
    bounds: usize,
    sum: f64,
    count: f64,
}

/// Adds up the series that become one. Their bounds must agree, or a cumulative count would fall.
fn histograms(source: &TargetFamily<'_>, rule: &LatencyRule) -> Result<Vec<Metric>, &'static str> {
    let keep = rule.family == families::REQUEST_DURATION.name;
    let routed = source.samples.iter().any(|sample| first(sample, &ROUTE).is_some());
    let mut merged: BTreeMap<RequestLabels, Merged> = BTreeMap::new();
    for sample in &source.samples {
        let labels = request_labels(sample, routed, keep);
        let into = merged.entry(labels).or_default();
        let suffix = &sample.name[source.name.len()..];
        match suffix {
            "_bucket" => {
                let bound = sample.label("le").and_then(|bound| bound.parse::<f64>().ok());
                let bound = bound.ok_or("a bucket without a bound")? * rule.seconds;
                if bound.is_finite() && bound > 0.0 {
                    *into.buckets.entry(bound.to_bits()).or_default() += sample.value;
                    into.bounds += 1;
                }
            }
            "_sum" => into.sum += sample.value * rule.seconds,
            "_count" => {
                into.count += sample.value;
                into.parts += 1;
            }
            _ => {}
        }
    }
    if merged.values().all(|merged| merged.buckets.is_empty()) {
        return Err("no buckets");
    }
    if merged.values().any(|merged| merged.bounds != merged.buckets.len() * merged.parts) {
        return Err("series of one endpoint have different buckets");
    }
    Ok(merged.into_iter().map(|(labels, merged)| metric(labels, &merged)).collect())
}

/// The value of the first of these labels that says something.
fn first<'a>(sample: &'a TargetSample<'_>, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| sample.label(name).filter(|value| !value.is_empty()))
}

/// `routed`: the family knows routes, so that a series without one matched none.
fn request_labels(sample: &TargetSample<'_>, routed: bool, keep: bool) -> RequestLabels {
    let method = first(sample, &METHOD).unwrap_or_default().to_ascii_uppercase();
    let endpoint = match first(sample, &ROUTE) {
        // As the agent's own layer calls it.
        None if routed || method.is_empty() => "unmatched".to_owned(),
        None => method,
        Some(route) if method.is_empty() => route.to_owned(),
        Some(route) => format!("{method} {route}"),
    };
    let status_code = first(sample, &STATUS).unwrap_or_default().to_owned();
    let mut error_type = first(sample, &ERROR).unwrap_or_default().to_owned();
    if error_type.eq_ignore_ascii_case("none") {
        error_type.clear();
    }
    let ours = ["le", "endpoint", "status_code", "error_type"];
    let others = sample.labels.iter().filter(|(name, _)| keep && !ours.contains(name));
    let kept = others.map(|(name, value)| ((*name).to_owned(), value.clone().into_owned()));
    RequestLabels { endpoint, status_code, error_type, kept: kept.collect() }
}

fn plain(family: &Family, value: f64) -> MetricFamily {
    let mut metric = Metric::default();
    let kind = match family.kind {
        FamilyKind::Counter => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
            MetricType::COUNTER
        }
        FamilyKind::Gauge | FamilyKind::Histogram => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
            MetricType::GAUGE
        }
    };
    family_of(family, kind, vec![metric])
}

fn histogram_family(family: &Family, metrics: Vec<Metric>) -> MetricFamily {
    family_of(family, MetricType::HISTOGRAM, metrics)
}

fn family_of(family: &Family, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut made = MetricFamily::default();
    made.set_name(family.name.to_owned());
    made.set_help(family.help.to_owned());
    made.set_field_type(kind);
    made.set_metric(metrics);
    made
}

fn metric(labels: RequestLabels, merged: &Merged) -> Metric {
    let mut histogram = Histogram::default();
    let buckets = merged.buckets.iter().map(|(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(f64::from_bits(*bound));
        bucket.set_cumulative_count(whole(*count));
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_sum(merged.sum);
    histogram.set_sample_count(whole(merged.count));
    let ours = [
        ("endpoint".to_owned(), labels.endpoint),
        ("status_code".to_owned(), labels.status_code),
        ("error_type".to_owned(), labels.error_type),
    ];
    let pairs = ours.into_iter().chain(labels.kept).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name);
        pair.set_value(value);
        pair
    });
    let mut metric = Metric::from_label(pairs.collect());
    metric.set_histogram(histogram);
    metric
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count; the cast saturates, and NaN is 0"
)]
fn whole(count: f64) -> u64 {
    count as u64
}
