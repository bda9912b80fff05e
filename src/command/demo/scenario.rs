//! What the demo is about: one policy with one signal of each kind, small enough for a laptop.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::load::Plan;
use crate::policy::{
    Aggregate, Endpoint, LatencyTarget, Learned, Policy, PolicyId, Port, Scheme, Signal,
    SignalKind, TargetRef, Threshold,
};
use crate::units::{ByteCount, BytesPerSecond, CpuCores, Measure, Ratio, TaskCount, UnitError};

/// The replica bounds of the demo's HPA.
pub(super) const MIN_REPLICAS: u32 = 1;
pub(super) const MAX_REPLICAS: u32 = 10;

/// A row of the view: the signal, where its raw value is read, and its threshold as people read it.
pub(super) struct Shown {
    pub signal: &'static str,
    pub metric: &'static str,
    pub unit: Unit,
    pub per_pod: &'static str,
}

#[derive(Clone, Copy)]
pub(super) enum Unit {
    Tasks,
    Bytes,
    BytesPerSecond,
    Cores,
    Milliseconds,
    Items,
}

impl Unit {
    /// The value as people read it.
    pub(super) fn show(self, value: f64) -> String {
        const MIB: f64 = 1024.0 * 1024.0;
        match self {
            Self::Tasks => format!("{value:.0} tasks"),
            Self::Bytes => format!("{:.0} MiB", value / MIB),
            Self::BytesPerSecond => format!("{:.1} MB/s", value / 1e6),
            Self::Cores => format!("{:.0}m cores", value * 1000.0),
            Self::Milliseconds => format!("{:.0} ms", value * 1000.0),
            Self::Items => format!("{value:.0} items"),
        }
    }
}

pub(super) const SHOWN: &[Shown] = &[
    Shown { signal: "tasks", metric: "headroom_tasks", unit: Unit::Tasks, per_pod: "200 tasks" },
    Shown { signal: "heap", metric: "headroom_heap_bytes", unit: Unit::Bytes, per_pod: "64 MiB" },
    Shown {
        signal: "alloc",
        metric: "headroom_allocation_bytes_per_second",
        unit: Unit::BytesPerSecond,
        per_pod: "20 MB/s",
    },
    Shown { signal: "cpu", metric: "headroom_cpu_cores", unit: Unit::Cores, per_pod: "200m cores" },
    Shown {
        signal: "latency",
        metric: "headroom_latency_seconds",
        unit: Unit::Milliseconds,
        per_pod: "150 ms",
    },
    Shown { signal: "queue", metric: "queue_depth", unit: Unit::Items, per_pod: "20 items" },
];

/// The policy `default/sample`.
///
/// # Errors
/// None with these constants; the units check them.
pub(super) fn policy(agent_port: u16) -> Result<Policy, UnitError> {
    let signal = |name: &str, kind| Signal { name: name.into(), kind, base: None };
    Ok(Policy {
        id: id(),
        generation: 1,
        target: TargetRef {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            name: "sample".into(),
        },
        endpoint: Endpoint {
            port: Port::Number(agent_port),
            path: "/metrics".into(),
            scheme: Scheme::Http,
            interval: Duration::from_secs(1),
        },
        window: Duration::from_secs(10),
        stale_after: Duration::from_secs(5),
        start_grace: Duration::from_secs(10),
        coverage_floor: Ratio::new(0.6)?,
        signals: vec![
            signal("tasks", SignalKind::Tasks(Threshold::new(200.0)?)),
            signal("heap", SignalKind::Heap(Threshold::new(64.0 * 1024.0 * 1024.0)?)),
            signal("alloc", SignalKind::AllocationRate(Threshold::new(20e6)?)),
            signal("cpu", SignalKind::Cpu(Threshold::new(0.2)?)),
            signal("latency", SignalKind::Latency(latency()?)),
            signal("queue", queue()?),
        ],
        min_replicas: Some(MIN_REPLICAS),
        wants_usage: false,
        max_replicas: Some(MAX_REPLICAS),
        learned: Learned::default(),
    })
}

/// The load at the top of its wave: two to four pods' worth of each signal.
///
/// # Errors
/// None with these constants; the units check them.
pub(super) fn load() -> Result<Plan, UnitError> {
    Ok(Plan {
        period: Duration::from_secs(120),
        tasks: TaskCount::new(800.0)?,
        heap: ByteCount::new(192.0 * 1024.0 * 1024.0)?,
        allocation: BytesPerSecond::new(60e6)?,
        cpu: CpuCores::new(0.5)?,
        work_per_second: 140.0,
        work_duration: Duration::from_millis(50),
        queue_items: 80.0,
    })
}

/// The demo's policy by name.
pub(super) fn id() -> PolicyId {
    PolicyId { namespace: "default".into(), name: "sample".into() }
}

fn latency() -> Result<LatencyTarget, UnitError> {
    Ok(LatencyTarget {
        quantile: Ratio::new(0.95)?,
        target: Threshold::new(0.15)?,
        endpoint: Some(Arc::from("POST /work")),
        concurrency: NonZeroU32::new(8),
        service_time: Some(Duration::from_millis(50)),
    })
}

fn queue() -> Result<SignalKind, UnitError> {
    Ok(SignalKind::Metric {
        describes: None,
        name: "queue_depth".into(),
        aggregate: Aggregate::Sum,
        threshold: Threshold::new(20.0)?,
    })
}
