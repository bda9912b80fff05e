//! A `ScalingPolicy` object becomes a [`Policy`], or a list of everything that is wrong with it.
//!
//! In: an object as the API server gave it. Out: the validated policy that decisions are made with. Pure. Never: trust in
//! the schema; an object stored before a rule existed passes here or is refused with words.

use std::fmt::Display;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::scaling_policy::{
    Autoscaler, DescribedObjectRef, EndpointScheme, LatencySignal, LearnedStatus, MetricAggregate,
    MetricSignal, PolicyEndpoint, PolicySignal, ScaleTargetRef, ScalingPolicy,
};
use crate::policy::{
    Aggregate, DEMAND_METRIC, Endpoint, LatencyTarget, Learned, LearnedSignal, Policy, PolicyId,
    Port, Scheme, Signal, SignalKind, TargetRef, Threshold,
};
use crate::time::Timestamp;
use crate::units::{Measure, Ratio};

const MAX_SIGNALS: usize = 16;
const MAX_NAME_CHARS: usize = 63;
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));
const WINDOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// The longest window in intervals: the store keeps 240 points of a series, and a window needs some beyond its own.
const WINDOW_INTERVALS: u32 = 200;
/// How the parts of counters, histograms and summaries end.
const COUNTER_SUFFIXES: [&str; 4] = ["_total", "_sum", "_count", "_bucket"];
const GRACE: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(3600));
const LATENCY: (Duration, Duration) = (Duration::from_micros(10), Duration::from_secs(600));

/// One thing that is wrong with a policy's spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecProblem {
    /// The path of the field, e.g. `spec.signals[1].cpu.threshold`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Compiles a policy.
///
/// # Errors
/// Every problem of the spec, in the order of its fields.
pub fn compile(object: &ScalingPolicy) -> Result<Policy, Vec<SpecProblem>> {
    let mut problems = Problems::default();
    let spec = &object.spec;
    let id = policy_id(object, &mut problems);
    let target = target(&spec.scale_target_ref, &mut problems);
    let endpoint = endpoint(&spec.endpoint, &mut problems);
    let window = problems.duration("spec.window", &spec.window, WINDOW);
    let stale_after = problems.duration("spec.staleAfter", &spec.stale_after, WINDOW);
    let start_grace = problems.duration("spec.startGrace", &spec.start_grace, GRACE);
    let coverage_floor = coverage_floor(spec.coverage_floor, &mut problems);
    let signals = signals(&spec.signals, &mut problems);
    described_namespaces(object, &mut problems);
    let min_replicas =
        spec.autoscaler.as_ref().and_then(|block| min_replicas(block, &mut problems));
    let interval = endpoint.as_ref().map(|endpoint| endpoint.interval);
    if window.zip(interval).is_some_and(|(window, interval)| window < interval) {
        problems.add("spec.window", "is shorter than endpoint.interval");
    }
    if let Some(interval) = interval
        && window.is_some_and(|window| window > interval * WINDOW_INTERVALS)
    {
        let most = interval * WINDOW_INTERVALS;
        let problem = format!(
            "is longer than {WINDOW_INTERVALS} x endpoint.interval, {most:?}, and older samples are not kept"
        );
        problems.add("spec.window", problem);
    }
    if stale_after.zip(interval).is_some_and(|(stale_after, interval)| stale_after <= interval) {
        problems.add("spec.staleAfter", "is not longer than endpoint.interval");
    }
    let parts = (id, target, endpoint, window, stale_after, start_grace, coverage_floor);
    let (
        true,
        (
            Some(id),
            Some(target),
            Some(endpoint),
            Some(window),
            Some(stale_after),
            Some(start_grace),
            Some(floor),
        ),
    ) = (problems.0.is_empty(), parts)
    else {
        return Err(problems.0);
    };
    Ok(Policy {
        id,
        generation: object.metadata.generation.unwrap_or_default(),
        target,
        endpoint,
        window,
        stale_after,
        start_grace,
        coverage_floor: floor,
        learned: learned(object, &signals),
        signals,
        min_replicas,
        wants_usage: false,
        max_replicas: spec
            .autoscaler
            .as_ref()
            .and_then(|block| u32::try_from(block.max_replicas).ok()),
    })
}

/// Collects problems, so that all are told at once.
#[derive(Default)]
struct Problems(Vec<SpecProblem>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.push(SpecProblem { field: field.into(), problem: problem.into() });
    }

    fn take<T, E: Display>(&mut self, field: &str, outcome: Result<T, E>) -> Option<T> {
        outcome.map_err(|error| self.add(field, error.to_string())).ok()
    }

    fn duration(
        &mut self,
        field: &str,
        text: &str,
        (least, most): (Duration, Duration),
    ) -> Option<Duration> {
        let parsed = kube::core::Duration::from_str(text)
            .map_err(|error| format!("{text:?} is not a duration such as 30s: {error}"));
        let signed = self.take(field, parsed)?;
        let value = Duration::from(signed);
        if (signed.is_negative() && !value.is_zero()) || value < least || value > most {
            self.add(field, format!("{text} is not between {least:?} and {most:?}"));
            return None;
        }
        Some(value)
    }

    fn number(&mut self, field: &str, quantity: &Quantity) -> Option<f64> {
        let parsed = crate::quantity::Quantity::from_str(&quantity.0);
        self.take(field, parsed).map(crate::quantity::Quantity::to_f64)
    }

    fn threshold<T: Measure>(&mut self, field: &str, quantity: &Quantity) -> Option<Threshold<T>> {
        let value = self.number(field, quantity)?;
        self.take(
            field,
            Threshold::new(value).map_err(|_| format!("{} is not more than 0", quantity.0)),
        )
    }

    fn text(
        &mut self,
        field: &str,
        text: &str,
        valid: impl Fn(&str) -> bool,
        expected: &str,
    ) -> Option<Arc<str>> {
        if valid(text) {
            return Some(text.into());
        }
        self.add(field, format!("{text:?} is not {expected}"));
        None
    }
}

fn policy_id(object: &ScalingPolicy, problems: &mut Problems) -> Option<PolicyId> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if namespace.is_empty() {
        problems.add("metadata.namespace", "is missing");
    }
    if name.is_empty() || name.len() > MAX_NAME_CHARS {
        problems.add("metadata.name", "is a label value: 1 to 63 characters");
    }
    Some(PolicyId { namespace: namespace.into(), name: name.into() })
}

fn target(reference: &ScaleTargetRef, problems: &mut Problems) -> Option<TargetRef> {
    let ScaleTargetRef { api_version, kind, name } = reference;
    object_reference("spec.scaleTargetRef", [api_version, kind, name], problems)
}

/// `parts` are the object's apiVersion, kind and name.
fn object_reference(
    path: &str,
    [api_version, kind, name]: [&str; 3],
    problems: &mut Problems,
) -> Option<TargetRef> {
    let api_version = problems.text(
        &format!("{path}.apiVersion"),
        api_version,
        |text| text.split('/').all(|part| !part.is_empty()) && text.split('/').count() <= 2,
        "a group and version such as apps/v1",
    );
    let kind = problems.text(
        &format!("{path}.kind"),
        kind,
        |text| {
            text.starts_with(|c: char| c.is_ascii_uppercase())
                && text.chars().all(|c| c.is_ascii_alphanumeric())
        },
        "a kind such as Deployment",
    );
    let name = problems.text(
        &format!("{path}.name"),
        name,
        |text| !text.is_empty() && text.len() <= 253 && !text.contains(['/', '%']),
        "the name of an object",
    );
    Some(TargetRef { api_version: api_version?, kind: kind?, name: name? })
}

fn endpoint(endpoint: &PolicyEndpoint, problems: &mut Problems) -> Option<Endpoint> {
    let port = match &endpoint.port {
        IntOrString::Int(number) => match u16::try_from(*number) {
            Ok(number) if number > 0 => Some(Port::Number(number)),
            _ => {
                problems.add("spec.endpoint.port", format!("{number} is not between 1 and 65535"));
                None
            }
        },
        IntOrString::String(name) => {
            let valid = |text: &str| {
                text.len() <= 15
                    && text.bytes().any(|b| b.is_ascii_lowercase())
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            };
            let expected = "a port number, or the name of a container's port";
            problems.text("spec.endpoint.port", name, valid, expected).map(Port::Name)
        }
    };
    let path = problems.text(
        "spec.endpoint.path",
        &endpoint.path,
        |text| {
            text.starts_with('/')
                && text.len() <= 1024
                && text.bytes().all(|b| b.is_ascii_graphic())
        },
        "a path that starts with /",
    );
    let scheme = match endpoint.scheme {
        EndpointScheme::Http => Scheme::Http,
    };
    let interval = problems.duration("spec.endpoint.interval", &endpoint.interval, INTERVAL);
    Some(Endpoint { port: port?, path: path?, scheme, interval: interval? })
}

fn coverage_floor(value: f64, problems: &mut Problems) -> Option<Ratio> {
    match Ratio::new(value) {
        Ok(ratio) if value <= 1.0 => Some(ratio),
        _ => {
            problems.add("spec.coverageFloor", format!("{value} is not between 0 and 1"));
            None
        }
    }
}

/// The HPA's least replicas: 1 where the block does not say.
fn min_replicas(block: &Autoscaler, problems: &mut Problems) -> Option<u32> {
    let min = block.min_replicas.unwrap_or(1);
    if block.max_replicas < 1 {
        problems
            .add("spec.autoscaler.maxReplicas", format!("{} is less than 1", block.max_replicas));
    } else if min > block.max_replicas {
        problems.add(
            "spec.autoscaler.minReplicas",
            format!("{min} is more than maxReplicas {}", block.max_replicas),
        );
    }
    let checked = u32::try_from(min).map_err(|_| format!("{min} is less than 0"));
    problems.take("spec.autoscaler.minReplicas", checked)
}

fn signals(specs: &[PolicySignal], problems: &mut Problems) -> Vec<Signal> {
    if specs.is_empty() || specs.len() > MAX_SIGNALS {
        problems
            .add("spec.signals", format!("has {} signals, not 1 to {MAX_SIGNALS}", specs.len()));
    }
    let mut compiled: Vec<Signal> = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let path = format!("spec.signals[{index}]");
        if specs[..index].iter().any(|earlier| earlier.name == spec.name) {
            problems.add(
                format!("{path}.name"),
                format!("{:?} is the name of an earlier signal", spec.name),
            );
        }
        compiled.extend(signal(&path, spec, problems));
    }
    compiled
}

fn signal(path: &str, spec: &PolicySignal, problems: &mut Problems) -> Option<Signal> {
    let name = problems.text(
        &format!("{path}.name"),
        &spec.name,
        |text| {
            !text.is_empty()
                && text.len() <= MAX_NAME_CHARS
                && !text.starts_with('-')
                && !text.ends_with('-')
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        },
        "a name of lower-case letters, digits and -",
    );
    let kind = signal_kind(path, spec, problems);
    let base = base(path, spec, problems);
    Some(Signal { name: name?, kind: kind?, base: base? })
}

fn base(path: &str, spec: &PolicySignal, problems: &mut Problems) -> Option<Option<f64>> {
    let Some(quantity) = &spec.base else { return Some(None) };
    let field = format!("{path}.base");
    if spec.tasks.is_none() && spec.heap.is_none() && spec.cpu.is_none() {
        problems.add(&field, "belongs to tasks, heap and cpu only");
        return None;
    }
    let value = problems.number(&field, quantity)?;
    if value < 0.0 {
        problems.add(&field, format!("{} is less than 0", quantity.0));
        return None;
    }
    Some(Some(value))
}

fn signal_kind(path: &str, spec: &PolicySignal, problems: &mut Problems) -> Option<SignalKind> {
    let mut kinds = Vec::new();
    if let Some(per_pod) = &spec.tasks {
        let threshold = problems.threshold(&format!("{path}.tasks.threshold"), &per_pod.threshold);
        kinds.push(threshold.map(SignalKind::Tasks));
    }
    if let Some(per_pod) = &spec.heap {
        let threshold = problems.threshold(&format!("{path}.heap.threshold"), &per_pod.threshold);
        kinds.push(threshold.map(SignalKind::Heap));
    }
    if let Some(per_pod) = &spec.allocation_rate {
        let threshold =
            problems.threshold(&format!("{path}.allocationRate.threshold"), &per_pod.threshold);
        kinds.push(threshold.map(SignalKind::AllocationRate));
    }
    if let Some(per_pod) = &spec.cpu {
        let threshold = problems.threshold(&format!("{path}.cpu.threshold"), &per_pod.threshold);
        kinds.push(threshold.map(SignalKind::Cpu));
    }
    if let Some(latency) = &spec.latency {
        kinds.push(
            latency_target(&format!("{path}.latency"), latency, problems).map(SignalKind::Latency),
        );
    }
    if let Some(metric) = &spec.metric {
        kinds.push(metric_kind(&format!("{path}.metric"), metric, problems));
    }
    if kinds.len() != 1 {
        let expected = "has exactly one of tasks, heap, allocationRate, cpu, latency, metric";
        problems.add(path, format!("{expected}, not {}", kinds.len()));
        return None;
    }
    kinds.pop().flatten()
}

fn metric_kind(path: &str, spec: &MetricSignal, problems: &mut Problems) -> Option<SignalKind> {
    let threshold = problems.threshold(&format!("{path}.threshold"), &spec.threshold);
    let aggregate = match spec.aggregate {
        MetricAggregate::Sum => Aggregate::Sum,
        MetricAggregate::Max => Aggregate::Max,
    };
    let valid = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
            && text.len() <= 200
    };
    let name = problems.text(&format!("{path}.name"), &spec.name, valid, "a metric name");
    if let Some(suffix) = COUNTER_SUFFIXES.iter().find(|suffix| spec.name.ends_with(**suffix)) {
        let problem = format!(
            "{:?} ends in {suffix} as counters do, which only grow, and a metric is read as a gauge; name a gauge, such as a \
             queue's depth, or use cpu, allocationRate or latency for what is counted",
            spec.name
        );
        problems.add(format!("{path}.name"), problem);
    }
    let described = spec.describes.as_ref();
    if described.is_some() && spec.name == DEMAND_METRIC {
        let problem = format!("{DEMAND_METRIC} is what a policy demands for its target");
        problems.add(format!("{path}.name"), problem);
    }
    // An outer None: not given. An inner one: given and wrong.
    let describes = described.map(|described| {
        let DescribedObjectRef { api_version, kind, name } = described;
        let path = format!("{path}.describes");
        let reference = object_reference(&path, [api_version, kind, name], problems);
        if api_version == "v1" && kind == "Pod" {
            problems
                .add(format!("{path}.kind"), "is Pod, but each pod's own value is served anyway");
        }
        reference
    });
    Some(SignalKind::Metric {
        name: name?,
        aggregate,
        threshold: threshold?,
        describes: describes.map_or(Some(None), |given| given.map(Some))?,
    })
}

/// Whether it is a Namespace.
pub(super) fn is_namespace(reference: &TargetRef) -> bool {
    &*reference.api_version == "v1" && &*reference.kind == "Namespace"
}

/// Of all namespaces, a policy may describe the one that it is in.
fn described_namespaces(object: &ScalingPolicy, problems: &mut Problems) {
    let own = object.metadata.namespace.as_deref().unwrap_or_default();
    for (index, signal) in object.spec.signals.iter().enumerate() {
        let described = signal.metric.as_ref().and_then(|metric| metric.describes.as_ref());
        if let Some(DescribedObjectRef { api_version, kind, name }) = described
            && (&**api_version, &**kind) == ("v1", "Namespace")
            && name != own
        {
            let field = format!("spec.signals[{index}].metric.describes.name");
            problems.add(field, format!("{name:?} is not the policy's own namespace, {own:?}"));
        }
    }
}

fn latency_target(
    path: &str,
    spec: &LatencySignal,
    problems: &mut Problems,
) -> Option<LatencyTarget> {
    let quantile = match spec.quantile.parse::<f64>() {
        Ok(value) if value > 0.0 && value < 1.0 => Ratio::new(value).ok(),
        _ => {
            problems.add(
                format!("{path}.quantile"),
                format!("{:?} is not a number between 0 and 1", spec.quantile),
            );
            None
        }
    };
    let target = problems
        .duration(&format!("{path}.target"), &spec.target, LATENCY)
        .and_then(|target| Threshold::new(target.as_secs_f64()).ok());
    let concurrency = spec.concurrency.map(|count| {
        let checked = u32::try_from(count).ok().and_then(NonZeroU32::new);
        problems.take(
            &format!("{path}.concurrency"),
            checked.ok_or_else(|| format!("{count} is less than 1")),
        )
    });
    let service_time = spec
        .service_time
        .as_deref()
        .map(|text| problems.duration(&format!("{path}.serviceTime"), text, LATENCY));
    Some(LatencyTarget {
        quantile: quantile?,
        target: target?,
        endpoint: spec.endpoint.as_deref().map(Arc::from),
        // An outer None: not given. An inner one: given and wrong.
        concurrency: concurrency.map_or(Some(None), |given| given.map(Some))?,
        service_time: service_time.map_or(Some(None), |given| given.map(Some))?,
    })
}

/// What an earlier run wrote into the status, of signals that still exist. A number that is none is left out: the status
/// is ours, so it is no fault of the spec.
fn learned(object: &ScalingPolicy, signals: &[Signal]) -> Learned {
    let entries = object.status.as_ref().map_or(&[][..], |status| &status.learned);
    let known = |entry: &LearnedStatus| -> Option<LearnedSignal> {
        let signal = signals.iter().find(|signal| *signal.name == *entry.name)?;
        let sound = |value: Option<f64>| value.filter(|value| value.is_finite() && *value >= 0.0);
        Some(LearnedSignal {
            name: signal.name.clone(),
            of: entry.of.as_str().into(),
            at: Timestamp::from_millis(entry.at.0.as_millisecond()),
            base: sound(entry.base),
            cost_seconds: sound(entry.cost_seconds),
            service_time_seconds: sound(entry.service_time_seconds),
            quantile_seconds: sound(entry.quantile_seconds),
        })
    };
    Learned { signals: entries.iter().filter_map(known).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::units::{ByteCount, TaskCount};

    fn object(change: impl FnOnce(&mut Value)) -> ScalingPolicy {
        let mut object = json!({
            "apiVersion": "headroom.dev/v1alpha1",
            "kind": "ScalingPolicy",
            "metadata": {"name": "checkout", "namespace": "shop", "generation": 3},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "checkout"},
                "endpoint": {"port": "metrics"},
                "signals": [{"name": "tasks", "tasks": {"threshold": 5000}}],
            },
        });
        change(&mut object);
        serde_json::from_value(object).expect("the object has the resource's form")
    }

    fn check_refused(change: impl FnOnce(&mut Value), expected: &[&str]) {
        let problems = compile(&object(change)).expect_err("the spec is wrong");
        let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_not_said_has_the_documented_defaults() {
        let policy = compile(&object(|_| {})).expect("the least policy is valid");
        assert_eq!(policy.generation, 3);
        assert_eq!(policy.endpoint.port, Port::Name("metrics".into()));
        assert_eq!(&*policy.endpoint.path, "/metrics");
        assert_eq!(policy.endpoint.interval, Duration::from_secs(5));
        assert_eq!(policy.window, Duration::from_secs(30));
        assert_eq!(policy.stale_after, Duration::from_secs(20));
        assert_eq!(policy.start_grace, Duration::from_secs(30));
        assert_eq!(policy.coverage_floor, Ratio::new(0.6).expect("a ratio"));
        assert_eq!(policy.min_replicas, None);
        assert_eq!(
            policy.signals[0].kind,
            SignalKind::Tasks(Threshold::<TaskCount>::new(5000.0).expect("positive"))
        );
    }

    #[test]
    fn a_window_longer_than_what_is_kept_is_refused() {
        let with = |interval: &'static str, window: &'static str| {
            move |object: &mut Value| {
                object["spec"]["endpoint"]["interval"] = json!(interval);
                object["spec"]["window"] = json!(window);
            }
        };
        assert!(compile(&object(with("5s", "1000s"))).is_ok());
        check_refused(
            with("5s", "1001s"),
            &[
                "spec.window: is longer than 200 x endpoint.interval, 1000s, and older samples are not kept",
            ],
        );
    }

    #[test]
    fn a_counter_is_no_gauge() {
        let named = |name: &'static str| {
            move |object: &mut Value| {
                object["spec"]["signals"][0] =
                    json!({"name": "queue", "metric": {"name": name, "threshold": 100}});
            }
        };
        assert!(compile(&object(named("totals_in_queue"))).is_ok());
        for name in ["orders_total", "latency_sum", "latency_count", "latency_bucket"] {
            let problems = compile(&object(named(name))).expect_err(name);
            let [problem] = &problems[..] else { panic!("{name}: {problems:?}") };
            assert_eq!(problem.field, "spec.signals[0].metric.name");
            assert!(problem.problem.contains("name a gauge"), "{problem}");
        }
    }

    #[test]
    fn every_kind_of_signal_keeps_its_unit() {
        let policy = compile(&object(|object| {
            object["spec"]["signals"] = json!([
                {"name": "heap", "heap": {"threshold": "2Gi"}, "base": "100Mi"},
                {"name": "alloc", "allocationRate": {"threshold": "200M"}},
                {"name": "cpu", "cpu": {"threshold": "800m"}},
                {"name": "latency", "latency": {"quantile": "0.95", "target": "200ms", "endpoint": "POST /checkout",
                    "concurrency": 64, "serviceTime": "15ms"}},
                {"name": "queue", "metric": {"name": "queue_depth", "aggregate": "Max", "threshold": 100}},
            ]);
            object["spec"]["autoscaler"] = json!({"maxReplicas": 5});
        }))
        .expect("the policy is valid");
        let heap = Threshold::<ByteCount>::new(2_147_483_648.0).expect("positive");
        assert_eq!(policy.signals[0].kind, SignalKind::Heap(heap));
        assert_eq!(policy.signals[0].base, Some(104_857_600.0));
        assert!(
            matches!(policy.signals[1].kind, SignalKind::AllocationRate(t) if t == Threshold::new(2e8).expect("positive"))
        );
        assert!(
            matches!(policy.signals[2].kind, SignalKind::Cpu(t) if t == Threshold::new(0.8).expect("positive"))
        );
        let SignalKind::Latency(latency) = &policy.signals[3].kind else {
            panic!("{:?}", policy.signals[3])
        };
        assert_eq!(latency.target, Threshold::new(0.2).expect("positive"));
        assert_eq!(latency.concurrency, NonZeroU32::new(64));
        assert_eq!(latency.service_time, Some(Duration::from_millis(15)));
        assert!(matches!(&policy.signals[4].kind,
            SignalKind::Metric { name, aggregate: Aggregate::Max, .. } if &**name == "queue_depth"));
        assert_eq!(policy.min_replicas, Some(1));
    }

    fn describing(metric: &'static str, object: Value) -> impl FnOnce(&mut Value) {
        move |policy: &mut Value| {
            policy["spec"]["signals"][0] = json!({"name": "m", "metric": {"name": metric, "threshold": 1, "describes": object}});
        }
    }

    #[test]
    fn a_metric_may_describe_an_object_of_its_namespace_or_the_namespace() {
        for object in [
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "main"}),
            json!({"apiVersion": "v1", "kind": "Namespace", "name": "shop"}),
            json!({"apiVersion": "example.com/v1", "kind": "Pod", "name": "of another group"}),
        ] {
            let policy =
                compile(&self::object(describing("rps", object.clone()))).expect("it is valid");
            let described: Vec<_> = policy.described().collect();
            let [described] = described[..] else { panic!("{described:?}") };
            let shown = json!({"apiVersion": &*described.api_version, "kind": &*described.kind,
                "name": &*described.name});
            assert_eq!(shown, object);
        }
    }

    #[test]
    fn what_a_metric_may_not_describe_is_refused() {
        check_refused(
            describing("rps", json!({"apiVersion": "v1", "kind": "Pod", "name": "checkout-1"})),
            &[
                "spec.signals[0].metric.describes.kind: is Pod, but each pod's own value is served anyway",
            ],
        );
        check_refused(
            describing("rps", json!({"apiVersion": "v1", "kind": "Namespace", "name": "bank"})),
            &[
                "spec.signals[0].metric.describes.name: \"bank\" is not the policy's own namespace, \"shop\"",
            ],
        );
        check_refused(
            describing("rps", json!({"apiVersion": "a/b/c", "kind": "ingress", "name": "a/b"})),
            &[
                "spec.signals[0].metric.describes.apiVersion: \"a/b/c\" is not a group and version such as apps/v1",
                "spec.signals[0].metric.describes.kind: \"ingress\" is not a kind such as Deployment",
                "spec.signals[0].metric.describes.name: \"a/b\" is not the name of an object",
            ],
        );
        check_refused(
            describing(
                "headroom_demand",
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "cart"}),
            ),
            &[
                "spec.signals[0].metric.name: headroom_demand is what a policy demands for its target",
            ],
        );
    }

    #[test]
    fn all_problems_are_told_at_once() {
        check_refused(
            |object| {
                object["spec"]["endpoint"] =
                    json!({"port": 70000, "path": "metrics", "interval": "5"});
                object["spec"]["window"] = json!("2h");
                object["spec"]["coverageFloor"] = json!(1.5);
                object["spec"]["signals"][0]["tasks"]["threshold"] = json!(0);
            },
            &[
                "spec.endpoint.port: 70000 is not between 1 and 65535",
                "spec.endpoint.path: \"metrics\" is not a path that starts with /",
                "spec.endpoint.interval: \"5\" is not a duration such as 30s: missing a unit: expected one of 'ns', 'us', 'µs', 'ms', 's', 'm', or 'h'",
                "spec.window: 2h is not between 1s and 3600s",
                "spec.coverageFloor: 1.5 is not between 0 and 1",
                "spec.signals[0].tasks.threshold: 0 is not more than 0",
            ],
        );
    }

    #[test]
    fn a_signal_has_exactly_one_kind() {
        check_refused(
            |object| {
                object["spec"]["signals"] = json!([
                    {"name": "none"},
                    {"name": "two", "tasks": {"threshold": 1}, "cpu": {"threshold": 1}},
                ]);
            },
            &[
                "spec.signals[0]: has exactly one of tasks, heap, allocationRate, cpu, latency, metric, not 0",
                "spec.signals[1]: has exactly one of tasks, heap, allocationRate, cpu, latency, metric, not 2",
            ],
        );
    }

    #[test]
    fn fields_that_contradict_each_other_are_refused() {
        check_refused(
            |object| {
                object["spec"]["endpoint"]["interval"] = json!("20s");
                object["spec"]["window"] = json!("10s");
                object["spec"]["autoscaler"] = json!({"minReplicas": 7, "maxReplicas": 5});
                object["spec"]["signals"] = json!([
                    {"name": "a", "tasks": {"threshold": 1}},
                    {"name": "a", "metric": {"name": "queue_depth", "threshold": 1}, "base": 1},
                ]);
            },
            &[
                "spec.signals[1].name: \"a\" is the name of an earlier signal",
                "spec.signals[1].base: belongs to tasks, heap and cpu only",
                "spec.autoscaler.minReplicas: 7 is more than maxReplicas 5",
                "spec.window: is shorter than endpoint.interval",
                "spec.staleAfter: is not longer than endpoint.interval",
            ],
        );
    }

    #[test]
    fn a_latency_objective_outside_its_bounds_is_refused() {
        check_refused(
            |object| {
                object["spec"]["signals"] = json!([{"name": "l", "latency":
                    {"quantile": "95", "target": "-1s", "concurrency": 0, "serviceTime": "1x"}}]);
            },
            &[
                "spec.signals[0].latency.quantile: \"95\" is not a number between 0 and 1",
                "spec.signals[0].latency.target: -1s is not between 10µs and 600s",
                "spec.signals[0].latency.concurrency: 0 is less than 1",
                "spec.signals[0].latency.serviceTime: \"1x\" is not a duration such as 30s: invalid unit: expected one of 'ns', 'us', 'µs', 'ms', 's', 'm', or 'h'",
            ],
        );
    }

    #[test]
    fn what_was_learned_is_taken_from_the_status_for_signals_that_still_exist() {
        let policy = compile(&object(|object| {
            object["status"] = json!({"learned": [
                {"name": "tasks", "of": "tasks of apps/v1 Deployment checkout", "at": "2026-09-21T14:13:20Z",
                    "base": 12.5, "costSeconds": -1.0},
                {"name": "gone", "at": "2026-09-21T14:13:20Z", "base": 1.0},
            ]});
        }))
        .expect("the policy is valid");
        let expected = LearnedSignal {
            name: "tasks".into(),
            of: policy.signals[0].subject(&policy.target),
            at: Timestamp::from_millis(1_790_000_000_000),
            base: Some(12.5),
            cost_seconds: None,
            service_time_seconds: None,
            quantile_seconds: None,
        };
        assert_eq!(policy.learned.signals, [expected]);
    }
}
