//! CPU and memory in use by each pod, as `metrics.k8s.io` tells them.
//!
//! In: the container's counters and gauges, else the process's. Out: [`PodUsage`] per pod. Never: one of the two without the
//! other (a reader takes what is not there for 0), and never of a pod that is silent.

use std::time::Duration;

use super::PodUsage;
use super::observe::{Found, Reading, View};
use crate::signals::catalogue::{USAGE_CPU, USAGE_MEMORY};
use crate::store::PodWindow;
use crate::time::Moment;
use crate::units::{ByteCount, CpuCores, Measure};

/// What one pod uses.
struct InUse {
    cpu: CpuCores,
    memory: ByteCount,
    window: Duration,
}

/// One per pod of the view; empty where nobody asks.
pub(super) fn of_pods(view: &View<'_>) -> Vec<Option<PodUsage>> {
    if !view.policy.wants_usage {
        return Vec::new();
    }
    let readings = view.read(|window| find(window, view.policy.window));
    let pods = view.pods.iter().zip(readings);
    pods.map(|(pod, reading)| {
        let Reading::Fresh(InUse { cpu, memory, window }) = reading else { return None };
        let container = pod.pod.container.clone().unwrap_or_else(|| pod.pod.name.clone());
        Some(PodUsage { container, cpu, memory, window })
    })
    .collect()
}

fn find(window: &PodWindow, over: Duration) -> Found<InUse> {
    let (Some(cpu_family), Some(memory_family)) =
        (first(window, USAGE_CPU), first(window, USAGE_MEMORY))
    else {
        return Found::Absent;
    };
    let mut cores = 0.0;
    let mut bytes = 0.0;
    let mut longest = Duration::ZERO;
    let mut oldest: Option<Moment> = None;
    for (_, series) in window.family(cpu_family) {
        let Some(span) = series.span_over(over) else { return Found::Awaiting };
        cores += span.rate();
        longest = longest.max(span.to.since(span.from));
        oldest = oldest.into_iter().chain([series.newest().arrived]).min();
    }
    for (_, series) in window.family(memory_family) {
        bytes += series.newest().value;
        oldest = oldest.into_iter().chain([series.newest().arrived]).min();
    }
    match (CpuCores::new(cores), ByteCount::new(bytes), oldest) {
        (Ok(cpu), Ok(memory), Some(oldest)) => {
            Found::Value(InUse { cpu, memory, window: longest }, oldest)
        }
        _ => Found::Absent,
    }
}

/// The first family that the pod serves, if all of it was kept.
fn first(window: &PodWindow, families: &[&'static str]) -> Option<&'static str> {
    let serves = |family: &&&str| window.serves(family) || !window.is_complete(family);
    families.iter().find(serves).copied().filter(|family| window.is_complete(family))
}
