//! One look at the pods of a workload: who reports, who should, and what a signal reads of each.
//!
//! In: the workload and the store. Out: [`View`] and, per signal, one [`Reading`] per pod. Never: a value for a pod that is
//! silent, other than as what it said last.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::families::summed_families;
use super::{Coverage, LeftOut, LeftOutReason, Pod, Policy, SignalKind, Workload};
use crate::sample::{MetricName, PodKey};
use crate::signals::catalogue::CGROUP_CPU_LIMIT;
use crate::store::{PodWindow, Store};
use crate::time::{Moment, Now, Timestamp};
use crate::units::Measure;

/// What all signals of one decision look at.
pub(super) struct View<'a> {
    pub(super) policy: &'a Policy,
    pub(super) workload: &'a Workload,
    /// The pods that are not ended.
    pub(super) pods: Vec<Observed<'a>>,
    pub(super) now: Now,
    /// The least time between the two points of a short span.
    pub(super) gap: Duration,
}

/// One pod that is not ended.
pub(super) struct Observed<'a> {
    pub(super) pod: &'a Pod,
    pub(super) window: Option<&'a PodWindow>,
    /// Its newest sample is younger than `staleAfter`.
    pub(super) fresh: bool,
    /// It has reported since its container started.
    pub(super) reported: bool,
    /// It is Ready for over `startGrace`.
    pub(super) due: bool,
    /// Since when it was Ready for the first time, as far as was seen.
    first_ready: Option<Timestamp>,
}

/// When pods became Ready for the first time.
pub(super) type FirstReady = HashMap<PodKey, Timestamp>;

/// Takes down who is Ready, and forgets pods that are gone.
pub(super) fn remember_ready(first_ready: &mut FirstReady, pods: &[Pod]) {
    let here: HashSet<&PodKey> = pods.iter().map(|pod| &pod.key).collect();
    first_ready.retain(|key, _| here.contains(key));
    for pod in pods {
        if let Some(since) = pod.ready_since {
            let first = first_ready.entry(pod.key.clone()).or_insert(since);
            *first = since.min(*first);
        }
    }
}

/// What a pod's window says about one signal.
pub(super) enum Found<T> {
    /// A value, and when its oldest part arrived.
    Value(T, Moment),
    /// A counter with a single sample.
    Awaiting,
    /// No series of the families, or not all that there are.
    Absent,
}

/// What one pod contributes to one signal.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reading<T> {
    /// Counts.
    Fresh(T),
    /// Reported since its container started and fell silent; with what it said last.
    Silent(Option<T>),
    /// Reports, but a counter needs a second sample.
    Awaiting,
    /// Reports, without the families of the signal, or with a part of one.
    Missing,
    /// Has not reported since its container started.
    Unheard,
}

impl<T> Reading<T> {
    /// The value that counts now.
    pub(super) fn fresh(&self) -> Option<&T> {
        match self {
            Self::Fresh(value) => Some(value),
            _ => None,
        }
    }

    /// The same standing with another value.
    pub(super) fn map<U>(&self, convert: impl Fn(&T) -> U) -> Reading<U> {
        match self {
            Self::Fresh(value) => Reading::Fresh(convert(value)),
            Self::Silent(last) => Reading::Silent(last.as_ref().map(convert)),
            Self::Awaiting => Reading::Awaiting,
            Self::Missing => Reading::Missing,
            Self::Unheard => Reading::Unheard,
        }
    }
}

impl<'a> View<'a> {
    pub(super) fn new(
        policy: &'a Policy,
        store: &'a Store,
        workload: &'a Workload,
        first_ready: &FirstReady,
        now: Now,
    ) -> Self {
        let observe = |pod: &'a Pod| Observed {
            first_ready: first_ready.get(&pod.key).copied(),
            ..Observed::new(pod, store, policy, now)
        };
        let pods = workload.pods.iter().filter(|pod| !pod.ended).map(observe).collect();
        // A scraped short span needs half an interval, so that a scrape that is a little early still counts.
        Self { policy, workload, pods, now, gap: policy.endpoint.interval / 2 }
    }

    /// One reading per pod, in the order of `pods`.
    pub(super) fn read<T>(&self, find: impl Fn(&PodWindow) -> Found<T>) -> Vec<Reading<T>> {
        self.pods.iter().map(|pod| self.read_pod(pod, &find)).collect()
    }

    fn read_pod<T>(&self, pod: &Observed<'_>, find: impl Fn(&PodWindow) -> Found<T>) -> Reading<T> {
        let Some(window) = pod.window else { return Reading::Unheard };
        let found = find(window);
        if let Found::Value(value, arrived) = found {
            return match (self.is_fresh(arrived), pod.reported) {
                (true, _) => Reading::Fresh(value),
                (false, true) => Reading::Silent(Some(value)),
                (false, false) => Reading::Unheard,
            };
        }
        match (found, pod.fresh, pod.reported) {
            (Found::Awaiting, true, _) => Reading::Awaiting,
            (_, true, _) => Reading::Missing,
            (_, false, true) => Reading::Silent(None),
            (_, false, false) => Reading::Unheard,
        }
    }

    fn is_fresh(&self, arrived: Moment) -> bool {
        self.now.monotonic.since(arrived) < self.policy.stale_after
    }

    /// Coverage by pods, whatever the signal.
    pub(super) fn coverage(&self) -> Coverage {
        let count = |holds: &dyn Fn(&Observed<'_>) -> bool| {
            u32::try_from(self.pods.iter().filter(|pod| holds(pod)).count()).unwrap_or(u32::MAX)
        };
        Coverage {
            matched: count(&|_| true),
            reporting: count(&|pod| pod.fresh),
            expected: count(&|pod| pod.fresh || pod.reported || pod.due),
        }
    }

    /// The source time of the oldest of the newest samples; now, where nothing reports.
    pub(super) fn sampled_at(&self) -> Timestamp {
        let reporting = self.pods.iter().filter(|pod| pod.fresh);
        let oldest = reporting.filter_map(|pod| pod.window?.newest_source()).min();
        oldest.unwrap_or(self.now.wall)
    }

    /// The pods that do not report at all, and why.
    pub(super) fn silent(&self) -> Vec<LeftOut> {
        let silent = self.pods.iter().filter(|pod| !pod.fresh);
        silent.map(|pod| pod.left_out(pod.silence(), self.now)).collect()
    }

    /// The newest sample of any pod, fresh or not.
    pub(super) fn newest_report(&self) -> Option<Timestamp> {
        self.pods.iter().filter_map(|pod| Some(pod.window?.newest_point()?.arrived_at)).max()
    }
}

impl<'a> Observed<'a> {
    fn new(pod: &'a Pod, store: &'a Store, policy: &Policy, now: Now) -> Self {
        let window = policy.endpoint.on(pod).and_then(|endpoint| store.pod(&endpoint));
        let newest = window.and_then(PodWindow::newest_point);
        let good = window.and_then(PodWindow::last_good);
        Self {
            pod,
            window,
            fresh: newest
                .is_some_and(|seen| now.monotonic.since(seen.arrived) < policy.stale_after),
            reported: good.is_some_and(|seen| {
                pod.started_at.is_none_or(|started| seen.arrived_at >= started)
            }),
            due: pod.ready_since.is_some_and(|since| now.wall.since(since) > policy.start_grace),
            first_ready: pod.ready_since,
        }
    }

    /// What the measured process may use, in cores: what its own cgroup says, else the limit of the container behind the
    /// endpoint (which beside a sidecar agent is the sidecar's). `None` where neither limits it.
    pub(super) fn cpu_limit(&self) -> Option<f64> {
        let reported = self.window.into_iter().flat_map(|window| window.family(CGROUP_CPU_LIMIT));
        let reported = reported.map(|(_, series)| series.newest().value).reduce(f64::min);
        let stated = self.pod.cpu_limit.map(Measure::get);
        reported.filter(|&limit| limit > 0.0).or(stated).filter(|&limit| limit > 0.0)
    }

    fn silence(&self) -> LeftOutReason {
        if self.pod.ip.is_none() || self.pod.port.is_none() {
            return LeftOutReason::NoEndpoint;
        }
        match self.window {
            None => LeftOutReason::NotYetReported,
            Some(window) => match window.last_failure() {
                Some(last) => LeftOutReason::Failed(last.failure.clone()),
                None if window.newest_point().is_none() => LeftOutReason::NotYetReported,
                None => LeftOutReason::Stale,
            },
        }
    }

    /// A family that the signal adds up and of which the newest answer's samples were not all kept.
    pub(super) fn partial_family(&self, kind: &SignalKind) -> Option<MetricName> {
        let window = self.window?;
        let families = summed_families(kind).into_iter();
        families.filter(|family| !window.is_complete(family)).map(MetricName::new).next()
    }

    pub(super) fn left_out(&self, reason: LeftOutReason, now: Now) -> LeftOut {
        let newest = self.window.and_then(PodWindow::newest_point);
        LeftOut {
            name: self.pod.name.clone(),
            reason,
            silent_for: newest.map(|seen| now.monotonic.since(seen.arrived)),
        }
    }

    /// Whether a sample of that time shows the pod without load: services send work to Ready pods only. Being Ready for
    /// a second is not enough to get any; its time is written in whole seconds. Once it was Ready it may be loaded, Ready
    /// or not: losing readiness is what much load does.
    pub(super) fn was_idle(&self, at: Timestamp) -> bool {
        self.first_ready.is_none_or(|since| at <= since + Duration::from_secs(1))
    }
}
